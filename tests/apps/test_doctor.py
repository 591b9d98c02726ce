# SPDX-License-Identifier: Apache-2.0
"""check-site, run as root over a real installation of two users: all is well, then one thing at a time is not."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infocluster import config
from infocluster.apps import accounts, checks, checks_host, doctor, installation

ROOT = Path(__file__).resolve().parents[2]
# One installation is hurt and mended in turn.
pytestmark = pytest.mark.xdist_group("doctor")

# What this machine's cron, and settings of this host that are not set, leave unchecked.
NOT_HERE = {"cron", "queues", "reach", "runbatch"}
SERVER, OWNER = "www-data", "nobody"


@dataclass
class Patient:
    """An installation, its trees and a gather directory, where two users can reach them."""

    top: Path

    @property
    def tree(self) -> Path:
        return self.top / "infocluster"

    @property
    def conf(self) -> Path:
        return self.tree / "etc/infocluster.toml"

    @property
    def gather(self) -> Path:
        return self.top / "gather/web1/www"

    @property
    def state(self) -> Path:
        return self.top / "state"

    @property
    def production(self) -> Path:
        return self.top / "www"

    def configure(self, more: str = "") -> None:
        self.conf.write_text(
            f'[site]\nproduction_dir = "{self.production}"\nstate_dir = "{self.state}"\nserver_user = "{SERVER}"\n'
            f'file_owner = "{OWNER}"\ndevelopment_dirs = ["{self.top}/dev"]\n'
            f'[gather]\ngather_dir = "{self.top}/gather"\n'
            f'[aggregate]\nmodule_dirs = ["{self.top}/modules"]\n[poll]\ntoken = "poll"\n'
            f'[[servers]]\nname = "web1"\ndestination = "{self.top}/copy"\n'
            f'[[core_filers]]\nname = "cf"\nbackend = "callback"\nsecret = "poll"\nstart = ["/bin/true"]\n'
            f'[[core_filers]]\nname = "m"\nbackend = "marker"\nmarker = "/done"\nmarker_text = "%t"\n{more}'
        )
        config.compile_settings(str(self.conf))

    def check(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.tree / "batch/check-site"), *options],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SERVER_GATHER": str(self.gather)},
            capture_output=True,
            text=True,
            check=False,
        )

    def faults(self, *options: str) -> list[dict[str, str]]:
        done = self.check("-json", *options)
        found = json.loads(done.stdout)["faults"]
        # Cron is this machine's, which no test touches; see below for it.
        assert done.returncode == (1 if found else 0), done.stderr
        return [fault for fault in found if fault["check"] != "cron"]

    def found(self, check: str) -> list[checks.Fault]:
        """Return what one check finds; what a tree's packages are, only its own process can tell."""
        if check == "tree":
            return [checks.Fault(one["fault"], one["mend"]) for one in self.faults() if one["check"] == check]
        return list(doctor.CHECKS[check](self.place()))

    def place(self) -> checks.Place:
        file = str(self.conf)
        installed = installation.manifest(str(self.tree))
        return checks.Place(str(self.tree), file, config.load(file), installed, str(self.gather), True, True)


@pytest.fixture(scope="module")
def healthy() -> Iterator[Patient]:
    # Not tmp_path: pytest lets nobody else into its directories.
    top = Path(tempfile.mkdtemp(prefix="infocluster-"))
    top.chmod(0o755)
    found = Patient(top / "host")
    command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(found.tree)]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}
    try:
        subprocess.run(command, env=environment, capture_output=True, check=True)
        for directory, owner, mode in (
            (found.gather, SERVER, 0o755),
            (found.state, OWNER, 0o750),
            (found.production / "world", OWNER, 0o755),
            (found.production, OWNER, 0o755),
            (found.top / "copy", OWNER, 0o755),
            (found.top / "dev", "root", 0o2775),
            (found.top / "modules", OWNER, 0o755),
            (found.tree / "etc/secrets/nodes", "root", 0o750),
        ):
            directory.mkdir(parents=True, exist_ok=True)
            shutil.chown(directory, owner)
            directory.chmod(mode)
        for name in ("forms", "poll", "nodes/node1"):
            secret = found.tree / "etc/secrets" / name
            secret.write_text("0123456789abcdef")
            secret.chmod(0o640)
            for path in (secret, secret.parent):
                # Both users read the one of forms: a hit, and the night that makes links of letters.
                shutil.chown(path, OWNER, group=SERVER)
        found.configure()
        _copy(found.top, top / "healthy")
        yield found
    finally:
        shutil.rmtree(top)


@pytest.fixture
def patient(healthy: Patient) -> Patient:
    """The host as it was when it was healthy."""
    _copy(healthy.top.parent / "healthy", healthy.top)
    return healthy


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["rsync", "-a", "--delete", f"{source}/", f"{target}/"], check=True)


@pytest.mark.root
def test_healthy_host_has_no_faults_and_nothing_is_left_behind(patient: Patient) -> None:
    done = patient.check("-json")
    told = json.loads(done.stdout)
    assert {state for name, state in told["checks"].items() if name not in NOT_HERE} == {"ok"}
    assert patient.faults() == []
    assert os.listdir(patient.gather / "check-site") == []
    assert (patient.gather / "check-site").stat().st_uid == accounts.by_name(SERVER).uid  # type: ignore[union-attr]


def _edit(patient: Patient) -> None:
    with (patient.tree / "lib/infocluster/files.py").open("a") as file:
        file.write("# edited\n")


def _ahead(patient: Patient) -> None:
    (patient.gather / "survey").mkdir()
    line = json.dumps({"id": "0" * 16, "time": time.time() + 900, "agent": "a"})
    (patient.gather / "survey/2099-01-01.jsonl").write_text(line + "\n")


def _module(text: str) -> Callable[[Patient], None]:
    def write(patient: Patient) -> None:
        (patient.top / "modules/own.py").write_text(text)
        shutil.chown(patient.top / "modules/own.py", OWNER)

    return write


def _closed(patient: Patient) -> None:
    for directory in (patient.tree / "lib/infocluster").rglob("__pycache__"):
        directory.chmod(0o700)


def _shared(patient: Patient) -> None:
    shutil.chown(patient.gather, "root")
    patient.gather.chmod(0o777)


def _secret(patient: Patient) -> None:
    (patient.tree / "etc/secrets/node").write_text("x")
    (patient.tree / "etc/secrets/node").chmod(0o644)


def _form(patient: Patient, limit: str) -> None:
    text = (
        f'title = "T"\n[limits]\n{limit}\n[[fields]]\nname = "f"\nlabel = "F"\nkind = "file"\ntypes = ["image/png"]\n'
    )
    (patient.tree / "etc/forms/a.toml").write_text(text)


def _nobody_named(patient: Patient) -> None:
    patient.conf.write_text(patient.conf.read_text().replace(f'file_owner = "{OWNER}"\n', ""))
    shutil.rmtree(patient.production)


# What is done to the patient, the check that has to find it, a word of the fault, and a word of the mend.
ILLS: list[tuple[Callable[[Patient], object], str, str, str]] = [
    (_nobody_named, "users", "nobody is named as file owner", "set site.file_owner to a user that is there"),
    (lambda p: (p.tree / "etc/secrets/forms").unlink(), "forms", "is missing: no form can be sent", "openssl rand"),
    (
        lambda p: shutil.chown(p.tree / "etc/secrets", group="root"),
        "forms",
        "etc/secrets is not for www-data to read",
        "chgrp www-data",
    ),
    (lambda p: shutil.chown(p.tree / "etc/secrets", "root"), "forms", "is not for nobody to read", "chown nobody"),
    (lambda p: os.utime(p.tree / "etc/forms/signup.toml"), "forms", "form signup is missing or older", "-compile"),
    (lambda p: (p.tree / "etc/forms/a.toml").write_text("title = 1"), "forms", "a.toml:1: title", "edit it"),
    (
        lambda p: _form(p, "body_kb = 65"),
        "forms",
        "a takes texts of 66560 bytes, and a record may have 65536",
        "raise",
    ),
    (
        lambda p: _form(p, "upload_kb = 16384"),
        "forms",
        "a takes 16826368 bytes with its files, and",
        "raise BODY_LIMIT there",
    ),
    (lambda p: p.state.chmod(0o755), "state", "is open to everyone: mode 0755", "chmod o-rwx"),
    (lambda p: p.state.chmod(0o770), "state", "is shared with group", "chmod g+s"),
    (
        lambda p: shutil.chown(p.state, "daemon"),
        "state",
        "belongs to daemon, not to the file owner",
        "chown -R nobody",
    ),
    (lambda p: shutil.rmtree(p.production), "production", "is missing", "install -d -o nobody -m 0755"),
    (lambda p: shutil.chown(p.production / "world", SERVER), "production", "belongs to www-data", "chown"),
    (lambda p: (p.production / "world").chmod(0o777), "production", "is for everyone to write", "chmod o-w"),
    (
        lambda p: (shutil.chown(p.production / "world", group=SERVER), (p.production / "world").chmod(0o775)),
        "production",
        "is for www-data to write, by its group www-data",
        "chmod g-w",
    ),
    (lambda p: (p.gather).chmod(0o777), "gather", "is for others to write: mode 0777", "chmod go-w"),
    (lambda p: shutil.chown(p.gather, "root"), "gather", "is not for www-data to write", "install -d -o www-data"),
    (lambda p: p.gather.chmod(0o700), "gather", "nobody cannot read what was gathered", "chmod a+rx"),
    (lambda p: p.gather.chmod(0o700), "servers", "is not for nobody to read", "chmod o+rx"),
    (lambda p: shutil.rmtree(p.gather), "servers", "nothing of web1 will be read", "gather-pull"),
    (_ahead, "servers", "the clock of web1 is ", "timedatectl set-ntp true, on web1"),
    (_secret, "secrets", "has mode 0644", "chmod 0640"),
    (_edit, "compiled", "files.py was changed after", "check-site -compile"),
    (_edit, "tree", "files.py is not what was installed", "make install PREFIX="),
    (lambda p: os.unlink(p.tree / "batch/gather-sweep"), "tree", "gather-sweep is missing", "make install"),
    (lambda p: (p.tree / "cgi-bin/survey.cgi").chmod(0o700), "tree", "survey.cgi has mode 0700", "chmod 0755"),
    (lambda p: shutil.rmtree(p.tree / "lib/site/jinja2"), "tree", "the package jinja2 is missing", "make install"),
    (lambda p: os.unlink(f"{p.conf}.compiled"), "compiled", "infocluster.toml is missing or older", "-compile"),
    (_closed, "compiled", "more is not for www-data to read", "chmod -R go+rX"),
    (lambda p: p.conf.chmod(0o666), "settings", "is for everyone to write: mode 0666", "chmod o-w"),
    (_shared, "gather", "is for others to write: mode 0777", "chmod +t"),
    (lambda p: shutil.rmtree(p.top / "copy"), "destinations", "the destination of web1, is missing", "install -d"),
    (lambda p: shutil.chown(p.top / "copy", "root"), "destinations", "is not for nobody to write", "chown -R nobody"),
    (
        lambda p: (p.production / "world").chmod(0o775),
        "production",
        "is shared with a group, and what is made in it would not be",
        "chmod g+s",
    ),
    (lambda p: (p.tree / "etc/secrets/nodes/node1").chmod(0o644), "secrets", "node1 has mode 0644", "chmod 0640"),
    (lambda p: (p.tree / "etc/secrets/poll").unlink(), "polling", "poll is missing", "openssl rand"),
    (
        lambda p: shutil.chown(p.tree / "etc/secrets/poll", group="root"),
        "polling",
        "poll is not for www-data to read",
        "chgrp www-data",
    ),
    (lambda p: (p.gather / "poll").mkdir(), "polling", "poll is not www-data's", "chown -R www-data "),
    (
        lambda p: p.conf.write_text(p.conf.read_text().replace("[poll]\n", '[poll]\nstate_dir = "/none"\n')),
        "polling",
        "poll.state_dir /none is missing",
        "install -d -o www-data ",
    ),
    (
        lambda p: p.configure('[[core_filers]]\nname = "other"\nbackend = "marker"\n'),
        "polling",
        "cannot use the backend marker for other: core_filers.marker is not set",
        "set it in",
    ),
    (
        lambda p: p.configure(
            '[[core_filers]]\nname = "o"\nbackend = "command"\nstart = ["/no"]\nstatus = ["true"]\n'
        ),
        "polling",
        "o: core_filers.start names /no, which is missing",
        "whole path",
    ),
    (
        lambda p: p.configure('[[core_filers]]\nname = "late"\nbackend = "marker"\nmarker = "/done"\n'),
        "polling",
        "late: core_filers.marker is that of any target time",
        "put %t into marker",
    ),
    (lambda p: (p.tree / "etc/secrets/nodes/node1").write_text("short"), "nodes", "a key has 16 bytes", "openssl"),
    (
        lambda p: (p.tree / "etc/secrets/nodes/node1").chmod(0o600),
        "nodes",
        "node1 is not for www-data to read",
        "chmod 0640",
    ),
    (lambda p: (p.top / "modules").chmod(0o777), "nodes", "others than its owner may write it", "module_dirs"),
    (_module("class A(:"), "nodes", "own.py:1: cannot load it", "module_dirs"),
    (
        lambda p: shutil.chown(p.top / "modules", SERVER),
        "nodes",
        "it belongs to another user",
        "module_dirs",
    ),
    (
        lambda p: p.configure('[mail]\ntransport = "sendmail"\nsendmail = "/nowhere/sendmail"\n'),
        "programs",
        "/nowhere/sendmail is missing",
        "mail.transport",
    ),
]


@pytest.mark.root
@pytest.mark.parametrize("number", range(len(ILLS)))
def test_each_ill_is_found_with_its_mend(patient: Patient, number: int) -> None:
    hurt, check, fault, mend = ILLS[number]
    assert patient.found(check) == []
    hurt(patient)
    found = patient.found(check)
    assert any(fault in one.fault and mend in one.mend for one in found), found


@pytest.mark.root
def test_state_directory_that_is_missing_is_told_and_not_made_for_root(patient: Patient) -> None:
    shutil.rmtree(patient.state)
    assert patient.check("-compile").returncode == 0
    [fault] = patient.faults()
    assert (fault["check"], fault["mend"]) == ("state", f"install -d -o {OWNER} -m 0750 {patient.state}")
    assert not patient.state.exists()


@pytest.mark.root
def test_compile_mends_what_compiled_finds(patient: Patient) -> None:
    _edit(patient)
    os.unlink(f"{patient.conf}.compiled")
    assert patient.check("-compile").returncode == 0
    assert [fault["check"] for fault in patient.faults()] == ["tree"]
    patient.conf.write_text("[site]\nname = 3\n")
    done = patient.check("-compile")
    assert done.returncode == 78 and "infocluster.toml:2: site.name: 3: expected a text" in done.stderr


@pytest.mark.root
def test_part_that_is_asked_for_is_all_that_is_checked(patient: Patient) -> None:
    patient.state.chmod(0o777)
    assert patient.faults("-web") == []
    patient.state.chmod(0o750)
    patient.gather.chmod(0o777)
    assert "gather" not in {fault["check"] for fault in patient.faults("-batch")}
    [fault] = patient.faults("-web", "-gather", f"{patient.conf}/x")  # what cannot even be looked at is a fault
    assert "infocluster.toml/x: Not a directory" in fault["fault"]


@pytest.mark.root
def test_cron_is_held_against_the_sample(patient: Patient) -> None:
    timetables = patient.top / "cron.d"
    timetables.mkdir()
    place = patient.place()
    place.timetables = (str(timetables),)
    missing = [fault.fault for fault in checks_host.cron(place)]
    assert f"cron does not run {patient.tree}/batch/survey-nightly" in missing
    assert f"cron does not run {patient.tree}/batch/gather-sweep" in missing
    sample = (patient.tree / "etc/crontab").read_text()
    (timetables / "infocluster").write_text(sample.replace("wwwowner", OWNER))
    left = [fault.fault for fault in checks_host.cron(place)]
    assert left == []
    night = f"{patient.tree}/batch/forms-nightly"
    for gone in (f"{night} >", f"{night} -soon >"):
        kept = [line for line in sample.replace("wwwowner", OWNER).splitlines() if gone not in line]
        (timetables / "infocluster").write_text("\n".join(kept) + "\n")
        assert [fault.fault for fault in checks_host.cron(place)] == [f"cron does not run {gone[:-2]}"]
    (timetables / "infocluster").write_text(sample.replace("wwwowner", "root"))
    assert f"cron runs {patient.tree}/batch/survey-nightly as root" in [
        fault.fault for fault in checks_host.cron(place)
    ]


def test_crontab_is_read_as_cron_reads_it() -> None:
    text = (
        "# all\nMAILTO=www-mgmt\nPATH = /bin\n\n0 4 * * *  owner  /opt/x/batch/wwwpush -all\n"
        "@daily other /opt/x/batch/a\n  5 4 * * 1-5\towner\tA=b /opt/x/b\n"
    )
    found = list(checks_host.cron_entries(text, None))
    assert ("owner", "/opt/x/batch/wwwpush -all") in found and ("other", "/opt/x/batch/a") in found
    assert len(found) == 3
    assert list(checks_host.cron_entries("0 4 * * * /opt/x/batch/a -b\n", "me")) == [("me", "/opt/x/batch/a -b")]


def test_file_system_is_that_of_the_longest_mount(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:40 / /srv rw shared:1 - nfs4 host:/srv rw\n"
        "24 23 8:2 / /srv/with\\040blank rw - xfs /dev/sdb rw\n"
    )
    mounts = str(table)
    assert checks_host.file_system("/srv/state", mounts) == "nfs4"
    assert checks_host.file_system("/srv/with blank/state", mounts) == "xfs"
    assert checks_host.file_system("/srvstate", mounts) == "ext4"


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "expected"),
    [(7, 9, 0o755, True), (8, 7, 0o775, True), (8, 9, 0o777, True), (8, 9, 0o775, False), (7, 7, 0o077, False)],
)
def test_who_may_write_is_decided_by_the_first_class_that_fits(
    tmp_path: Path, uid: int, gid: int, mode: int, expected: bool
) -> None:
    user = accounts.User("seven", 7, 7, frozenset({7}))
    status = os.stat_result((0o040000 | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
    assert accounts.may_write(status, user) is expected


@pytest.mark.root
def test_task_as_another_user_can_do_no_more_than_he(tmp_path: Path) -> None:
    user = accounts.by_name(OWNER)
    assert user is not None
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o600)

    def read() -> dict[str, object]:
        return {"read": (tmp_path / "secret").read_text()}

    assert "Permission denied" in str(accounts.as_user(user, read)["fault"])
    assert accounts.as_user(user, lambda: {"uid": os.getuid(), "groups": os.getgroups()}) == {
        "uid": user.uid,
        "groups": sorted(user.groups),
    }
    assert os.getuid() == 0


@pytest.mark.root
def test_shared_queue_is_tried_as_its_users(healthy: Patient) -> None:
    def faults() -> list[str]:
        return [fault["fault"] for fault in healthy.faults() if fault["check"] == "queues"]

    queue = healthy.top / "queue"
    healthy.configure(f'[[queues]]\nqueue_dir = "{queue}"\nusers = ["{OWNER}"]\n')
    try:
        assert faults() == [f"{queue} is missing"]
        queue.mkdir()
        shutil.chown(queue, OWNER, accounts.group_name(getattr(accounts.by_name(OWNER), "gid", 0)))
        queue.chmod(0o2770)
        assert faults() == []
        assert list(queue.iterdir()) == []
    finally:
        healthy.configure()
        shutil.rmtree(queue, ignore_errors=True)
