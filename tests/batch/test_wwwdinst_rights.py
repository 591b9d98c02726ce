# SPDX-License-Identifier: Apache-2.0
"""Who may install what: real users, the sample of etc/sudoers read by a real sudo, and group permissions."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("samples")]

# Accounts that every Debian has, each with a group of its own name: the file owner, two developers, a stranger.
OWNER, JANE, JOE, STRANGER = "backup", "games", "news", "list"

# In a namespace of its own, so that the machine's own sudoers are as they were.
AS_USER = """
mount --make-rprivate / && mount --bind "$1" /etc/sudoers && mount -t tmpfs none /etc/sudoers.d &&
user=$2 group=$3 && shift 3 && exec setpriv --reuid "$user" --regid "$group" --init-groups -- "$@"
"""


@dataclass
class Host:
    """An installation, with its trees below it, and the sudoers that its sample makes."""

    prefix: Path
    sudoers: Path

    @property
    def dev(self) -> Path:
        return self.prefix / "var/wwwdev/world"

    @property
    def production(self) -> Path:
        return self.prefix / "var/www/world"

    def run(self, user: str, *command: str, group: str = "") -> subprocess.CompletedProcess[str]:
        program, *arguments = command
        program = str(self.prefix / "batch" / program) if program.startswith("www") else program
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", AS_USER, "sh", str(self.sudoers), user, group or user, program, *arguments],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def configure(self, install: str) -> None:
        (self.prefix / "etc/infocluster.toml").write_text(
            f'[install]\n{install}\n[[servers]]\nname = "web1"\ndestination = "{self.prefix}/var/web1"\n'
        )

    def share(self, group: str) -> None:
        """Let a group write production and the state, as where there is no sudo."""
        for directory in ("www", "state"):
            shutil.chown(self.prefix / "var" / directory, OWNER, group)
            (self.prefix / "var" / directory).chmod(0o2770)

    def write(self, user: str, path: str, content: str) -> None:
        place = self.dev / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
        place.chmod(0o664)
        for here in (place, *place.parents):
            if here == self.dev:
                break
            shutil.chown(here, user, user)


@pytest.fixture(scope="module")
def prefix() -> Iterator[Path]:
    # Not below pytest's directories, which are closed to other users.
    top = Path(tempfile.mkdtemp(prefix="infocluster-test-"))
    top.chmod(0o755)
    place = top / "infocluster"
    command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(place), "--extras", "batch"]
    try:
        subprocess.run(
            command, env={"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}, stdout=subprocess.DEVNULL, check=True
        )
        yield place
    finally:
        shutil.rmtree(top)


@pytest.fixture
def host(prefix: Path) -> Iterator[Host]:
    for program in ("sudo", "setpriv", "unshare"):
        assert shutil.which(program), f"{program} is not installed: .ci/packages installs it"
    sudoers = prefix.parent / "sudoers"
    text = (ROOT / "etc/sudoers").read_text()
    for here, there in (("wwwowner", OWNER), ("%webdev", f"%{JANE}, %{JOE}"), ("/opt/infocluster", str(prefix))):
        assert here in text
        text = text.replace(here, there)
    sudoers.write_text(text + "root ALL = (ALL) ALL\n")
    sudoers.chmod(0o440)
    this = Host(prefix, sudoers)
    for directory in ("www", "wwwdev/world", "wwwudev", "state", "web1"):
        (prefix / "var" / directory).mkdir(parents=True)
    for directory in ("www", "state", "web1"):
        shutil.chown(prefix / "var" / directory, OWNER, OWNER)
    this.configure(f'sudo = "{shutil.which("sudo")}"\ngroups = ["{JANE} world/a", "{JOE} *"]')
    this.write(JANE, "a/x", "x")
    this.write(JOE, "b/y", "y")
    yield this
    shutil.rmtree(prefix / "var")
    sudoers.unlink()


def test_developer_installs_as_the_file_owner_and_makes_as_himself(host: Host) -> None:
    host.write(JANE, "a/.wwwinstmk", "who: ; id -un >who; chmod 664 who\n")
    shown = host.run(JANE, "wwwdinst", "-show", "world/a")
    assert shown.returncode == 0, shown.stderr
    assert not (host.dev / "a/who").exists() and not (host.production / "a").exists()
    done = host.run(JANE, "wwwdinst", "-push", "world/a")
    assert done.returncode == 0, done.stderr
    assert (host.production / "a/who").read_text() == f"{JANE}\n"
    assert (host.dev / "a/who").owner() == JANE
    assert (host.production / "a/who").owner() == (host.production / "a").owner() == OWNER
    assert (host.prefix / "var/web1/world/a/x").read_text() == "x"
    assert f" {JANE} wwwdinst world/a: install 4" in host.run(JOE, "wwwdinst", "-log").stdout
    # Only who may install may undo, and without a path only what is his.
    assert host.run(JOE, "wwwdinst", "-undo").returncode == 77
    assert host.run(STRANGER, "wwwdinst", "-undo", "world/a").returncode != 0
    undone = host.run(JANE, "wwwdinst", "-undo")
    assert undone.returncode == 0, undone.stderr
    assert not (host.production / "a").exists()


def test_what_failed_for_the_developer_is_left_alone_by_the_file_owner(host: Host) -> None:
    host.write(JANE, "a/sub/.wwwinstmk", "all: ; false\n")
    host.write(JANE, "a/sub/z", "stale")
    # More to tell than an argument takes.
    deep = "/".join(["z" * 250] * 10)
    for number in range(60):
        host.write(JANE, f"a/{deep}/{number}/.wwwinstmk", "all: ; false\n")
    done = host.run(JANE, "wwwdinst", "-push", "world/a")
    lines = done.stdout.splitlines()
    assert lines[0] == "skip world/a/sub (make failed: make: *** [.wwwinstmk:1: all] Error 1)"
    assert lines[-1] == "not pushed, because not everything was installed; to push what was, type: wwwpush world/a"
    assert sum(line.startswith("skip ") for line in lines) == 61
    assert done.returncode == 1 and sorted(os.listdir(host.production / "a")) == ["x", "z" * 250]


@pytest.mark.parametrize("name", ["secret", "secret/page"])
def test_nothing_is_removed_where_something_new_cannot_be_read(host: Host, name: str) -> None:
    host.write(JANE, "a/old", "moved on")
    assert host.run(JANE, "wwwdinst", "world/a").returncode == 0
    (host.dev / "a/old").unlink()
    host.write(STRANGER, f"a/{name}", "moved on")
    (host.dev / "a/secret").chmod(0o700)
    shutil.chown(host.dev / "a", JANE, JANE)
    host.write(JANE, "a/x", "two")
    shown, done = host.run(JANE, "wwwdinst", "-show", "world/a"), host.run(JANE, "wwwdinst", "world/a")
    assert done.stdout.splitlines()[:-1] == [
        "skip world/a/secret (Permission denied)",
        "update world/a/x",
        "skip world/a/old (not everything new could be put in place)",
    ]
    assert (done.returncode, shown.stdout) == (1, done.stdout)
    # It is still the tree's own: the run that can read all of it removes it.
    shutil.rmtree(host.dev / "a" / name.partition("/")[0], ignore_errors=True)
    (host.dev / "a/secret").unlink(missing_ok=True)
    assert host.run(JANE, "wwwdinst", "world/a").stdout.splitlines()[0] == "remove world/a/old"


@pytest.mark.parametrize(
    ("user", "path", "why"),
    [
        (JANE, "world/b", f"the members of {JOE} may; see install.groups"),
        (JOE, "world/a", "is not yours to write"),
        (STRANGER, "world/a", f"the members of {JANE}, {JOE} may; see install.groups"),
    ],
)
def test_who_may_not_is_refused_before_anything_and_by_the_file_owner_too(
    host: Host, user: str, path: str, why: str
) -> None:
    host.write(JANE, "a/.wwwinstmk", "all: ; touch made\n")
    for option in ("-quiet", "-delete"):
        if option == "-delete":
            (host.production / path[6:]).mkdir(parents=True)
        done = host.run(user, "wwwdinst", option, path)
        assert (done.returncode, done.stdout) == (77, ""), done.stderr
        assert f"cannot install {path} as {user}: " in done.stderr and why in done.stderr
    # Whoever goes past his own part meets the same questions.
    program = str(host.prefix / "batch/wwwdinst")
    past = host.run(user, "sudo", "-n", "-u", OWNER, "--", program, "-made", path)
    assert past.returncode != 0 and (user == STRANGER or why in past.stderr), past.stderr
    for variable in ("SUDO_UID=34", "INFOCLUSTER_CONF=/dev/null"):
        assert host.run(user, "sudo", "-n", "-u", OWNER, variable, "--", program, "-made", path).returncode != 0
    assert not (host.dev / "a/made").exists() and not list(host.production.rglob("*/*"))


def test_makefile_of_a_developer_is_not_run_by_the_file_owner_or_root(host: Host) -> None:
    host.write(JANE, "a/.wwwinstmk", "all: ; touch made\n")
    done = host.run(OWNER, "wwwdinst", "world")
    assert "others than the file owner may write its .wwwinstmk" in done.stdout.splitlines()[0]
    assert done.returncode == 1 and (host.production / "b/y").exists() and not (host.production / "a/x").exists()
    as_root = host.run("root", "wwwdinst", "world")
    assert "others than the file owner may write its .wwwinstmk" in as_root.stdout.splitlines()[0], as_root.stderr
    assert not (host.dev / "a/made").exists()


def test_by_group_permissions_where_there_is_no_sudo(host: Host) -> None:
    host.configure("undo_count = 2\n")
    as_root = host.run("root", "wwwdinst", "world/a")
    assert as_root.returncode == 77 and f"call it as yourself, or as the file owner {OWNER}" in as_root.stderr
    for options in ([], ["-show"]):
        refused = host.run(JANE, "wwwdinst", *options, "world/a")
        assert (refused.returncode, refused.stdout) == (77, "")
        assert f"cannot install world/a as {JANE}: {host.prefix}/var/www is not for {JANE} to write" in refused.stderr
    host.share(JANE)
    done = host.run(JANE, "wwwdinst", "-json", "world/a")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["user"] == JANE
    assert (host.production / "a/x").owner() == JANE
    host.write(JANE, "a/x", "two")
    for arguments in (["world/a"], ["-undo"]):
        done = host.run(JANE, "wwwdinst", *arguments)
        assert done.stdout.splitlines()[0] == "update world/a/x", done.stderr
    # What one of them has kept, another of the group undoes, and drops where it is the oldest.
    (host.dev / "a").chmod(0o775)
    assert host.run(JANE, "wwwdinst", "world/a").returncode == 0
    host.write(JANE, "a/x", "three")
    assert host.run(JANE, "wwwdinst", "world/a/x").returncode == 0
    done = host.run(JOE, "wwwdinst", "-undo", "world/a/x", group=JANE)
    assert (done.stdout.splitlines()[0], done.returncode) == ("update world/a/x", 0), done.stderr
    assert (host.production / "a/x").read_text() == "two"
    for content in ("three", "fourth", "fifth"):
        host.write(JANE, "a/x", content)
        assert host.run(JOE, "wwwdinst", "world/a/x", group=JANE).returncode == 0
    kept = host.prefix / "var/state/install/undo"
    assert [place.owner() for place in kept.iterdir()] == [JOE, JOE]


def test_pushes_of_a_group_and_of_the_file_owner_keep_one_ledger(host: Host) -> None:
    host.configure("")
    host.share(JANE)
    page = host.prefix / "var/www/world/page"
    for directory in (page.parent, host.prefix / "var/web1/world"):
        directory.mkdir()
        shutil.chown(directory, OWNER, JANE)
        directory.chmod(0o2775)
    for user in (JANE, JOE, OWNER):
        page.write_text(f"pushed by {user}")
        done = host.run(user, "wwwpush", "world/page", group=JANE)
        assert (done.returncode, done.stderr, done.stdout[:19]) == (0, "", "web1: ok, 1 file\nww")
    lines = host.run(JOE, "wwwpush", "-status", group=JANE).stdout.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == [f"{user}:" for user in (JANE, JOE, OWNER)]


def test_directory_that_may_not_be_listed_is_said(host: Host) -> None:
    host.configure("")
    host.share(JANE)
    assert host.run(JANE, "wwwdinst", "world/a").returncode == 0
    for directory, arguments in ((host.production / "a", ["-undo"]), (host.dev, ["world"])):
        directory.chmod(0o311)
        done = host.run(JANE, "wwwdinst", *arguments)
        assert done.returncode == 75 and f"{directory}: Permission denied" in done.stderr, done.stderr
