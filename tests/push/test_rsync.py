# SPDX-License-Identifier: Apache-2.0
"""push.rsync and what it rests on, through real transfers: over an sshd and to an rsync daemon, both on loopback."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import sshd
from infocluster import trees
from infocluster.errors import InfoclusterError, UnavailableError
from infocluster.push import archives, fan, parcel, rsync, transport
from infocluster.push.order import Order, UnreachableError
from infocluster.push.servers import Server
from infocluster.push.skeleton import LeftOut

# ssh: rsync compares. find: the server tells what it lacks. archive: it gets what is new as archives. parcel: it gets
# a little at once. daemon: an rsync daemon.
WAYS = ("ssh", "find", "archive", "parcel", "daemon")
NEVER, ALWAYS = 10**9, 0

HOSTILE = (
    "#comment", ";comment", "- rule", "+ rule", "!", "-rf", "--delete", "a[1].html", "a1.html", "*", "a*", "**",
    "?x", "[", "]", "{a,b}", "back\\slash", "back\\[slash", "\\#012", "\\", "a b", " lead", "trail ", "tab\tin",
    "new\nline", "\n", "cr\rin", "quote'", 'quote"', "$HOME", "`id`", "a;b", "a|b", "a:b", "host:path", "a -> b",
    "%n", "=", "é", "à", "\udcff\udca0", "\udc80", "\x01", "\x1b[31m", "\x7f", ".hidden", "..x", "...", "~", "x~",
    ".x.AbCdEf", "x" * 255,
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    root = tmp_path_factory.mktemp("cluster")
    (root / "bin").mkdir()
    with sshd.cluster(root, "web1", "web2", path=f"{root}/bin:/usr/local/bin:/usr/bin:/bin") as running:
        yield running


@pytest.fixture(scope="module")
def daemon_port(tmp_path_factory):
    assert os.geteuid() == 0, "the rsync daemon of these tests needs root"
    root = tmp_path_factory.mktemp("daemon")
    base = tmp_path_factory.getbasetemp()
    modules = f"[all]\npath = {base}\nread only = no\n[fixed]\npath = {base}\nread only = yes\n"
    with sshd.rsync_daemon(root, modules) as port:
        yield port


@dataclass
class Pushed:
    """A production tree and a server's copy of it."""

    cluster: sshd.Cluster
    root: Path
    way: str
    port: int
    module: str
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def source(self) -> Path:
        return self.root / "production"

    @property
    def copy(self) -> Path:
        return self.root / "copy of it"

    @property
    def server(self) -> Server:
        if self.way == "daemon":
            inside = self.copy.relative_to(self.root.parent)
            return Server("localhost", "web", "daemon", f"/{self.module}/{inside}", port=self.port)
        if self.way == "local":
            return Server("web1", "web", "local", str(self.copy))
        return Server("web1", "web", "ssh", str(self.copy))

    def write(self, path, content="x", mode=0o644, where=None):
        file = (where or self.source) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)
        return file

    def listing(self, *paths, leave=None):
        return trees.scan(str(self.source), paths, leave)

    def push(self, *paths, leave=None, show=False, atomic=False, left_s=20.0, listing=None, **push):
        listing = listing or self.listing(*paths, leave=leave)
        settings = self.cluster.settings(**push)
        order = Order(settings, trees.outermost(paths), show, atomic, time.monotonic() + left_s, self.stopped)
        return list(transport.TRANSPORTS[self.server.transport](self.server, listing, order))


@pytest.fixture
def site(cluster, tmp_path, request, monkeypatch):
    way = getattr(request, "param", "ssh")
    port = request.getfixturevalue("daemon_port") if way == "daemon" else 0
    monkeypatch.setattr(rsync, "LARGE_COUNT", ALWAYS if way in ("find", "archive") else NEVER)
    monkeypatch.setattr(archives, "MANY", ALWAYS if way == "archive" else NEVER)
    if way != "parcel":
        monkeypatch.setattr(parcel, "FEW_COUNT", -1)
    result = Pushed(cluster, tmp_path, way, port, "all")
    result.source.mkdir()
    result.copy.mkdir()
    yield result
    for wrapper in (cluster.root / "bin").iterdir():
        wrapper.unlink()


every_way = pytest.mark.parametrize("site", WAYS, indirect=True)
switching = pytest.mark.parametrize("site", ("ssh", "find", "local"), indirect=True)
over_ssh = pytest.mark.parametrize("site", WAYS[:4], indirect=True)


def wrap(cluster, name, script):
    """Put a program of ours before one of the server's."""
    file = cluster.root / "bin" / name
    file.write_text("#!/bin/sh\n" + script)
    file.chmod(0o755)


def breaking(site, program):
    """Return a script that runs a program of the server's until it has read much, then the connection breaks."""
    limit = (
        "import os\nleft = 300000\nwhile left > 0 and (part := os.read(0, left)):\n"
        "    os.write(1, part)\n    left -= len(part)\n"
    )
    (site.root / "limit.py").write_text(limit)
    return f'{sys.executable} {site.root}/limit.py | {program} "$@"; kill -9 $PPID'


def told(actions):
    return [(action.verb, action.path) for action in actions]


def state(root):
    """Return what is below a directory, as far as a push makes it the same."""
    found = {}
    for directory, directories, names in os.walk(os.fsencode(root)):
        for name in directories + names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(root))
            if stat.S_ISLNK(status.st_mode):
                found[key] = os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                found[key] = oct(status.st_mode)
            else:
                with open(path, "rb") as file:
                    found[key] = (oct(status.st_mode), status.st_mtime_ns, file.read())
    return found


@every_way
def test_every_name_arrives_and_goes(site):
    for number, name in enumerate(HOSTILE):
        site.write(f"world/dir/{name}", f"{number}")
        site.write(f"world/at {number}/{name[:250]}/x", "in a directory")
        os.symlink(name, site.source / f"world/dir/{name[:200]}.link")
    actions = site.push("world")
    assert state(site.copy) == state(site.source)
    assert {action.path for action in actions} == {os.fsdecode(path) for path in state(site.source)}
    assert {action.verb for action in actions} == {"install"}
    assert site.push("world") == []
    for name in HOSTILE:
        (site.source / f"world/dir/{name}").unlink()
    actions = site.push("world")
    assert state(site.copy) == state(site.source)
    assert sorted(told(actions)) == sorted(("remove", f"world/dir/{name}") for name in HOSTILE)


@every_way
def test_every_name_can_be_named(site):
    paths = [f"world/dir/{name}" for name in HOSTILE] + ["#tree/x", ";tree/x"]
    for path in paths:
        site.write(path, path.encode("utf-8", "replace").decode())
    assert {action.path for action in site.push(*paths)} == {*paths, "world", "world/dir", "#tree", ";tree"}
    assert state(site.copy) == state(site.source)
    for path in paths:
        (site.source / path).unlink()
    assert sorted(told(site.push(*paths))) == sorted(("remove", path) for path in paths)
    assert state(site.copy) == state(site.source)


@every_way
def test_every_name_can_be_left_out(site):
    for name in (*HOSTILE, "kept"):
        site.write(f"world/{name}/below", "new")
        site.write(f"world/{name}/below", "old", where=site.copy)
        site.write(f"world/file/{name}", "new")
        site.write(f"world/{name}/gone", "old", where=site.copy)
    left = {("world", name) for name in HOSTILE} | {("world/file", name) for name in HOSTILE}
    actions = site.push("world", leave=lambda directory, name, _mode: "why" if (directory, name) in left else None)
    assert {action.path for action in actions} >= {"world/kept/below", "world/kept/gone", "world/file/kept"}
    assert not [action for action in actions if set(HOSTILE) & set(action.path.split("/")[1:])]
    for name in HOSTILE:
        assert (site.copy / f"world/{name}/below").read_text() == "old"
        assert (site.copy / f"world/{name}/gone").read_text() == "old"
        assert not (site.copy / f"world/file/{name}").exists()
    assert (site.copy / "world/kept/below").read_text() == "new"
    assert not (site.copy / "world/kept/gone").exists()


@pytest.mark.parametrize("site", (*WAYS, "local"), indirect=True)
def test_what_only_a_server_has_stays_where_the_listing_says_so(site):
    site.write("world/page", "new")
    for path in ("world/page", "world/its.log", "world/goes", "world/gone/its.log", "world/gone/x", "world/old/x"):
        site.write(path, "old", where=site.copy)

    def leave(_directory, name, _mode):
        return LeftOut("skel, line 1, leaves it out") if name.endswith(".log") else None

    def push(**how):
        listing = site.listing("world", leave=leave)
        listing.leave = leave
        return sorted(pair for pair in told(site.push("world", listing=listing, **how)) if pair[0] != "keep")

    gone = ["world/goes", "world/gone/x", "world/old", "world/old/x"]
    expected = [*(("remove", path) for path in gone), ("update", "world/page")]
    assert push(show=True) == expected
    assert push() == expected
    assert set(state(site.copy)) == {b"world", b"world/gone", b"world/gone/its.log", b"world/its.log", b"world/page"}
    assert push() == []
    if site.way != "daemon":
        site.write("world/page", "newest")
        assert push(atomic=True) == [("update", "world/page")]
        assert (site.copy / "world/its.log").read_text() == (site.copy / "world/gone/its.log").read_text() == "old"


def grown(root, rng):
    """Make a random tree of few names, so that two of them have much in common and much in each other's place."""
    for _ in range(rng.randint(5, 60)):
        path = root / "world" / "/".join(rng.choice("abcd") for _ in range(rng.randint(1, 4)))
        if any(above.is_symlink() for above in (path, *path.parents)):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = rng.choice("ffffld")
            if kind == "f":
                path.write_text(rng.choice(("", "x", "y", "long" * 1000)))
                path.chmod(rng.choice((0o644, 0o664, 0o755, 0o4755)))
                os.utime(path, ns=(0, rng.choice((10**18 + 1, 10**18 + 2, 10**18 + 123_456_789, 5))))
            elif kind == "l":
                path.symlink_to(rng.choice(("a", "../b", "/nowhere", "https://www.example.edu/")))
            else:
                path.mkdir()
                path.chmod(rng.choice((0o755, 0o775, 0o2755)))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue


@every_way
@pytest.mark.parametrize("seed", range(4))
def test_random_trees_become_what_plain_rsync_makes_of_them(site, seed):
    rng = random.Random(seed)
    grown(site.source, rng)
    grown(site.copy, rng)
    plain = site.root / "plain"
    subprocess.run(["rsync", "-a", f"{site.copy}/", plain], check=True)
    (site.source / "world").mkdir(exist_ok=True)
    shown = told(site.push("world", show=True))
    before = state(site.copy)
    actions = told(site.push("world"))
    subprocess.run(
        ["rsync", "-a", "--delete", "--modify-window=-1", "--chmod=ug-s,Du+rwx", f"{site.source}/world", plain],
        check=True,
    )
    assert state(site.copy) == state(plain)
    assert sorted(shown) == sorted(actions)
    # What is told is what changed, to the letter.
    after = state(site.copy)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert {os.fsencode(path) for _, path in actions} == changed
    gone = {os.fsencode(path) for verb, path in actions if verb == "remove"}
    assert gone == before.keys() - after.keys()
    assert site.push("world") == []


@every_way
def test_only_what_is_named_changes(site):
    site.write("world/a/new")
    site.write("world/b/new")
    for path in ("world/a/old", "world/b/old", "world/old", "world/gone/deep/x", "world/kept/x", "other/x"):
        site.write(path, where=site.copy)
    site.copy.chmod(0o700)
    assert sorted(told(site.push("world/a", "world/gone"))) == [
        ("install", "world/a/new"),
        ("remove", "world/a/old"),
        ("remove", "world/gone"),
        ("remove", "world/gone/deep"),
        ("remove", "world/gone/deep/x"),
    ]
    assert {path for path in state(site.copy) if b"new" in path or b"old" in path} == {
        b"world/a/new",
        b"world/b/old",
        b"world/old",
    }
    assert (site.copy / "world/kept/x").exists()
    assert (site.copy / "other/x").exists()
    assert site.copy.stat().st_mode & 0o777 == 0o700


@every_way
def test_path_whose_directories_are_gone_too_is_removed(site):
    site.write("world/page")
    site.write("world/gone/deep/page", where=site.copy)
    site.write("world/gone/deep/kept", where=site.copy)
    assert told(site.push("world/gone/deep/page", "world/never/was")) == [("remove", "world/gone/deep/page")]
    assert (site.copy / "world/gone/deep/kept").exists()
    assert not (site.copy / "world/never").exists()


@every_way
def test_link_in_the_place_of_a_directory_leads_no_removal_elsewhere(site):
    site.write("world/page")
    site.write("elsewhere/page", where=site.copy)
    (site.copy / "world").mkdir()
    (site.copy / "world/dir").symlink_to("../elsewhere")
    site.push("world/dir/page")
    assert (site.copy / "elsewhere/page").exists()


@every_way
def test_show_tells_what_a_push_would_do_and_changes_nothing(site):
    for path in ("world/new/page", "world/changed", "world/dir/page", "fresh/dir/page"):
        site.write(path, "new content")
    site.write("world/changed", "old", where=site.copy)
    site.write("world/dir", "in the way", where=site.copy)
    site.write("world/gone/page", where=site.copy)
    site.write("other/page", where=site.copy)
    before = state(site.copy)
    named = ("world", "other/page", "fresh/dir")
    shown = site.push(*named, show=True)
    assert state(site.copy) == before
    assert site.push(*named) == shown
    assert ("install", "fresh") in told(shown)
    assert ("install", "world/new/page") in told(shown)
    assert ("update", "world/changed") in told(shown)
    assert ("remove", "other/page") in told(shown)
    assert ("remove", "world/gone/page") in told(shown)
    assert [action.size for action in shown if action.path == "world/changed"] == [11]


@every_way
def test_modes_times_links_and_hard_links_are_as_on_the_master(site):
    page = site.write("world/page", mode=0o4751)
    os.link(page, site.source / "world/same")
    os.utime(page, ns=(1, 1_234_567_890_123_456_789))
    (site.source / "world/redirect").symlink_to("https://www.example.edu/?a=b&c")
    (site.source / "world/dir").mkdir()
    (site.source / "world/dir").chmod(0o1755)
    site.push("world")
    there = (site.copy / "world/page").stat()
    assert there.st_mode & 0o7777 == 0o751
    assert there.st_mtime_ns == 1_234_567_890_123_456_789
    assert there.st_ino == (site.copy / "world/same").stat().st_ino
    assert os.readlink(site.copy / "world/redirect") == "https://www.example.edu/?a=b&c"
    assert (site.copy / "world/dir").stat().st_mode & 0o7777 == 0o755
    (site.copy / "world/page").chmod(0o640)
    assert ("update", "world/page") in told(site.push("world"))
    assert (site.copy / "world/page").stat().st_mode & 0o7777 == 0o751


@every_way
def test_change_within_the_second_is_seen(site):
    page = site.write("world/page", "one")
    os.utime(page, ns=(0, 10**18 + 1))
    site.push("world")
    page.write_text("two")
    os.utime(page, ns=(0, 10**18 + 2))
    assert told(site.push("world")) == [("update", "world/page")]
    assert (site.copy / "world/page").read_text() == "two"


@every_way
def test_unfinished_writes_are_not_sent_and_those_on_the_server_are_removed(site):
    site.write("world/.~page.0123456789ab")
    site.write("world/.~dir/x")
    site.write("world/page")
    site.write("world/dir/page")
    site.write("world/.~tmp~/page", where=site.copy)
    site.write("world/dir/.~tmp~/other", where=site.copy)
    shutil.copy2(site.source / "world/dir/page", site.copy / "world/dir/page")
    site.write("world/.~old.0123456789ab", where=site.copy)
    site.push("world")
    assert set(state(site.copy)) == {b"world", b"world/page", b"world/dir", b"world/dir/page"}


@every_way
def test_nothing_is_removed_when_something_could_not_be_sent(site):
    site.write("world/dir/page")
    gone = site.write("world/dir/goes")
    site.write("world/dir/old", where=site.copy)
    site.write("world/dir/older/x", where=site.copy)
    listing = site.listing("world", "world2/gone")
    site.write("world2/gone", where=site.copy)
    gone.unlink()
    if site.way != "find":
        # An rsync that lists itself does not miss a file that nobody told it of; one that it was told of it does.
        listing = trees.scan(str(site.source), ["world"])
        listing.top.directories["world"].whole = False
        listing.top.directories["world"].directories["dir"].whole = False
        listing.top.directories["world"].directories["dir"].entries["goes"] = (0o100644, 1, 1, "")
        listing.top.directories["world"].directories["dir"].absent |= {"old", "older"}
    actions = site.push("world", "world2/gone", listing=listing)
    assert ("install", "world/dir/page") in told(actions)
    [fault] = [action for action in actions if action.verb == "fail"]
    assert (fault.path, bool(fault.reason)) == ("world/dir/goes", True)
    assert [action for action in actions if action.verb == "keep"]
    assert not [action for action in actions if action.verb == "remove"]
    assert (site.copy / "world/dir/old").exists()
    assert (site.copy / "world/dir/older/x").exists()


@pytest.fixture
def mounted(tmp_path):
    """Return a function that mounts something and has it gone behind the test."""
    points = []

    def mount(point, *options):
        point.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", *options, str(point)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        points.append(point)

    yield mount
    for point in reversed(points):
        # Lazily: whoever served it may not have closed its last file yet.
        subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.mark.root
@every_way
def test_full_disk_is_told_in_plain_words_and_takes_nothing_away(site, mounted):
    mounted(site.copy, "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    site.write("world/old", where=site.copy)
    site.write("world/page", "old", where=site.copy)
    site.write("world/page", "new")
    site.write("world/big", "x" * 500_000)
    with pytest.raises(UnavailableError, match=r"cannot write .*/world/\w+: No space left on device") as caught:
        site.push("world")
    assert not isinstance(caught.value, UnreachableError)
    assert (site.copy / "world/old").exists()
    assert (site.copy / "world/page").read_text() in ("old", "new")
    assert not (site.copy / "world/big").exists()
    (site.source / "world/big").unlink()
    site.push("world")
    assert state(site.copy) == state(site.source)


@pytest.mark.root
@every_way
def test_server_that_may_not_be_written_says_so_and_keeps_all(site, mounted):
    site.write("world/page", "old", where=site.copy)
    mounted(site.copy, "--bind", str(site.copy))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(site.copy)], check=True)
    site.write("world/page", "new")
    with pytest.raises(UnavailableError, match="Read-only file system"):
        site.push("world")
    assert (site.copy / "world/page").read_text() == "old"


@pytest.mark.root
@every_way
def test_nothing_is_removed_when_the_server_could_not_write_something(site, mounted):
    site.write("world/a/page", "new")
    site.write("world/b/page", "new")
    site.write("world/a/old", where=site.copy)
    site.write("world/b/page/in/the/way", where=site.copy)
    # What is mounted there cannot be removed to make way.
    mounted(site.copy / "world/b/page/in", "-t", "tmpfs", "tmpfs")
    actions = site.push("world")
    assert ("install", "world/a/page") in told(actions)
    assert [action.path for action in actions if action.verb == "fail"]
    assert {action.path for action in actions if action.verb == "fail"} <= {"world/b/page", "world/b/page/in"}
    assert [action for action in actions if action.verb == "keep"]
    assert (site.copy / "world/a/old").exists()


@every_way
def test_destination_that_is_not_there_is_not_made(site):
    site.write("world/page")
    site.copy.rmdir()
    with pytest.raises(UnavailableError, match=r"No such file|no such directory"):
        site.push("world")
    assert not site.copy.exists()


@over_ssh
def test_connection_that_breaks_in_the_middle_is_worth_another_try(site, cluster):
    for number in range(40):
        site.write(f"world/{number:02}", os.urandom(20_000).hex())
        site.write(f"world/{number:02}", "old", where=site.copy)
    site.write("world/gone", where=site.copy)
    wrap(cluster, "rsync", breaking(site, sshd.RSYNC))
    with pytest.raises(UnreachableError):
        site.push("world")
    # What is there is old or new, never half, and nothing went.
    for number in range(40):
        content = (site.copy / f"world/{number:02}").read_text()
        assert content in ("old", (site.source / f"world/{number:02}").read_text())
    assert (site.copy / "world/gone").exists()
    (cluster.root / "bin/rsync").unlink()
    site.push("world")
    assert state(site.copy) == state(site.source)


@over_ssh
def test_all_that_was_done_is_told_when_a_later_try_did_the_rest(site, cluster):
    for number in range(40):
        site.write(f"world/{number:02}", os.urandom(20_000).hex())
    site.write("world/old", where=site.copy)
    for name in ("rsync", "tar"):
        real = str(shutil.which(name))
        once = f'test -e {site.root}/broke && exec {real} "$@"\ntouch {site.root}/broke\n'
        wrap(cluster, name, once + breaking(site, real))
    job = fan.Job(site.server, site.listing("world"), ["world"])
    settings = cluster.settings(parallel=1, server_timeout_s=20.0, retries=1, retry_pause_s=0)
    (outcome,) = fan.out([job], settings)
    assert (site.root / "broke").exists()
    assert outcome.faults == []
    expected = [("install", f"world/{number:02}") for number in range(40)] + [("remove", "world/old")]
    assert sorted(told(outcome.changes)) == expected


@over_ssh
def test_push_that_is_stopped_ends_at_once_and_leaves_nothing_running(site, cluster):
    site.write("world/page")
    flag, pid_file = site.root / "started", site.root / "pid"
    for program in ("rsync", "tar"):
        wrap(cluster, program, f"echo $$ >{pid_file}; mv {pid_file} {flag}; exec sleep 60")

    def stop():
        end = time.monotonic() + 20
        while not flag.exists() and time.monotonic() < end:
            time.sleep(0.01)
        site.stopped.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="stopped"):
        site.push("world", left_s=60.0)
    assert time.monotonic() - began < 20
    stopper.join()
    ours = set(sshd.descendants(os.getpid())) - set(sshd.descendants(cluster.daemon.pid))
    assert not [words for words in map(command, ours) if "--secluded-args" in words]
    os.kill(int(flag.read_text()), signal.SIGKILL)


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@over_ssh
def test_server_that_takes_too_long_is_given_up(site, cluster):
    site.write("world/page")
    for program in ("rsync", "tar"):
        wrap(cluster, program, "exec sleep 5")
    with pytest.raises(UnavailableError, match="not done after"):
        site.push("world", left_s=1.0)


@pytest.mark.parametrize("site", ("ssh", "find", "parcel"), indirect=True)
def test_server_without_rsync_says_so(site, cluster):
    site.write("world/page")
    wrap(cluster, "rsync", "echo 'sh: 1: rsync: not found' >&2; exit 127")
    with pytest.raises(UnavailableError, match="web1: it has no rsync") as caught:
        site.push("world")
    assert not isinstance(caught.value, UnreachableError)


@over_ssh
def test_server_that_is_not_reached_is_told_apart(site, cluster):
    site.write("world/page")
    try:
        cluster.configure(port=sshd.free_port())
        with pytest.raises(UnreachableError, match=r"cannot reach web1: .*Connection refused"):
            site.push("world")
        cluster.configure(key="other_key")
        with pytest.raises(UnavailableError, match=r"cannot use web1: .*Permission denied") as caught:
            site.push("world")
        assert not isinstance(caught.value, UnreachableError)
    finally:
        cluster.configure()


@pytest.mark.parametrize("site", ["find"], indirect=True)
@pytest.mark.parametrize("program", ["find", "sort", "sha256sum", "mktemp"])
def test_server_without_a_program_to_compare_with_is_served_as_well(site, cluster, program):
    wrap(cluster, program, "exit 1")
    site.write("world/page")
    site.write("world/gone", where=site.copy)
    assert sorted(told(site.push("world"))) == [("install", "world/page"), ("remove", "world/gone")]
    assert site.push("world") == []


@pytest.mark.parametrize("site", ["find"], indirect=True)
def test_server_that_lacks_nothing_runs_no_rsync(site, cluster):
    site.write("world/page")
    site.push("world")
    wrap(cluster, "rsync", "exit 9")
    assert site.push("world") == []
    (site.copy / "world/page").chmod(0o600)
    with pytest.raises(InfoclusterError):
        site.push("world")


@pytest.mark.parametrize("site", ["parcel"], indirect=True)
def test_few_small_files_run_no_rsync(site, cluster):
    page, other = site.write("world/dir/page", "old"), site.write("world/other/a  page\n", "old")
    os.symlink("https://www.example.edu/", site.source / "world/dir/link")
    site.push("world")
    wrap(cluster, "rsync", "exit 9")
    page.write_text("new")
    page.chmod(0o2754)
    os.utime(page, ns=(1, 1_700_000_000_123_456_789))
    os.link(page, site.source / "world/dir/new -> page")
    (site.source / "world/dir/link").unlink()
    os.symlink("https://www.example.edu/new", site.source / "world/dir/link")
    expected = [("update", "world/dir/link"), ("install", "world/dir/new -> page"), ("update", "world/dir/page")]
    assert told(site.push("world/dir/page", "world/dir/new -> page", "world/dir/link", show=True)) == expected
    assert told(site.push("world/dir/page", "world/dir/new -> page", "world/dir/link")) == expected
    page.chmod(0o754)
    assert state(site.copy) == state(site.source)
    assert (site.copy / "world/dir/page").samefile(site.copy / "world/dir/new -> page")
    other.write_text("newer")
    assert told(site.push("world")) == [("update", "world/other/a  page\n")]
    assert state(site.copy) == state(site.source)
    assert site.push("world") == []


def many(site, count=50):
    """Make many files, and a link, in directories of several modes; return the paths of all."""
    for number in range(count):
        page = site.write(f"world/{number % 7}/d\n{number % 3}/page {number}", f"{number}", 0o604 | number % 8 * 8)
        os.utime(page, ns=(1, 1_700_000_000_123_456_789 + number))
    for number in range(7):
        (site.source / f"world/{number}").chmod(0o705 | number * 8)
    os.symlink("https://www.example.edu/#a b", site.source / "world/3/link")
    return sorted(str(path.relative_to(site.source)) for path in (site.source / "world").rglob("*"))


@pytest.mark.parametrize("site", ["archive"], indirect=True)
def test_much_that_is_new_runs_no_rsync(site, cluster, monkeypatch):
    monkeypatch.setattr(archives, "SHIPMENT_COUNT", 19)
    monkeypatch.setattr(archives, "PIECE_COUNT", 5)
    paths = many(site)
    wrap(cluster, "rsync", "exit 9")
    assert told(site.push("world")) == [("install", path) for path in ["world", *paths]]
    assert state(site.copy) == state(site.source)
    assert not list(site.copy.rglob(".*"))
    assert site.push("world") == []


@pytest.mark.parametrize("site", ["parcel", "archive"], indirect=True)
def test_what_was_unpacked_when_its_shell_was_killed_is_removed_by_the_next_push(site, cluster):
    site.write("world/dir/page", os.urandom(200_000).hex())
    site.write("world/dir/page", "old", where=site.copy)
    site.write("world/dir/new")
    # Another push of this tree is at it.
    other = site.copy / f"world/.~push.0123456789ab.{os.getpid()}"
    other.mkdir()
    wrap(cluster, "tar", breaking(site, "/bin/tar"))
    site.push("world/dir")
    (left,) = set(site.copy.glob("world/.~*")) - {other}
    assert left.stat().st_mode & 0o777 == 0o700
    (cluster.root / "bin/tar").unlink()
    site.write("world/dir/newer")
    site.push("world/dir")
    assert list(site.copy.glob("world/.~*")) == [other]
    other.rmdir()
    assert state(site.copy) == state(site.source)


@pytest.mark.parametrize("site", ["archive"], indirect=True)
def test_rsync_goes_on_where_an_archive_cannot_be_unpacked(site, cluster, monkeypatch):
    monkeypatch.setattr(archives, "SHIPMENT_COUNT", 9)
    paths = many(site)
    site.write("world/old", "old", where=site.copy)
    site.write("world/0/gone", "gone", where=site.copy)
    site.write("world/old", "new")
    # The third one ends when it has written a part.
    wrap(
        cluster,
        "tar",
        f'echo >>{cluster.root}/tars; test $(wc -l <{cluster.root}/tars) -lt 3 && exec /bin/tar "$@"; '
        'head -c 9000 | /bin/tar "$@"; exit 2',
    )
    expected = [("install", path) for path in paths if path != "world/0"]
    expected += [("update", "world/old"), ("remove", "world/0/gone")]
    done = [one for one in told(site.push("world")) if one[1] not in ("world", "world/0")]
    assert sorted(done) == sorted(expected)
    assert (cluster.root / "tars").read_text() == "\n" * 3
    assert state(site.copy) == state(site.source)
    assert not list(site.copy.rglob(".*"))


@pytest.mark.parametrize("site", ["archive"], indirect=True)
def test_hard_links_stay_links_whatever_is_new(site, monkeypatch):
    monkeypatch.setattr(archives, "PIECE_COUNT", 2)
    many(site, 9)
    os.link(site.source / "world/0/d\n0/page 0", site.source / "world/6/other")
    site.push("world")
    assert state(site.copy) == state(site.source)
    assert (site.copy / "world/6/other").samefile(site.copy / "world/0/d\n0/page 0")


@pytest.mark.parametrize("site", ["find"], indirect=True)
def test_answer_that_was_cut_off_is_not_believed(site, cluster):
    site.write("world/page")
    site.write("world/gone", where=site.copy)
    wrap(cluster, "cat", 'head -c 5 "$1"')
    assert sorted(told(site.push("world"))) == [("install", "world/page"), ("remove", "world/gone")]


@pytest.mark.parametrize("site", ["daemon"], indirect=True)
def test_daemon_that_says_no_is_heard(site):
    site.write("world/page")
    site.module = "fixed"
    with pytest.raises(UnavailableError, match="read only") as caught:
        site.push("world")
    assert not isinstance(caught.value, UnreachableError)
    site.module = "nosuch"
    with pytest.raises(UnavailableError, match="Unknown module"):
        site.push("world")
    site.port = sshd.free_port()
    with pytest.raises(UnreachableError, match="Connection refused"):
        site.push("world")


def test_our_environment_does_not_steer_rsync(site, monkeypatch):
    site.write("world/page")
    monkeypatch.setenv("RSYNC_RSH", "false")
    monkeypatch.setenv("RSYNC_CHECKSUM_LIST", "nosuch")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert ("install", "world/page") in told(site.push("world"))


def test_program_and_configuration_may_have_blanks_and_quotes_in_their_paths(site, cluster):
    odd = site.root / 'it\'s "odd" '
    odd.mkdir()
    shutil.copy(cluster.config_file, odd / "ssh config")
    (odd / "my ssh").symlink_to("/usr/bin/ssh")
    site.write("world/page")
    actions = site.push("world", ssh=str(odd / "my ssh"), ssh_config=str(odd / "ssh config"), ssh_keep_s=0.0)
    assert ("install", "world/page") in told(actions)


@switching
def test_directory_switches_over_in_one_step(site):
    for name in ("a", "b/c"):
        site.write(f"world/dir/{name}", "0")
    site.write("world/page", "0")
    site.push("world/dir", "world/page", atomic=True)
    assert state(site.copy) == state(site.source)
    stop, mixtures, seen = threading.Event(), [], set()

    def look():
        while not stop.is_set():
            try:
                fd = os.open(site.copy / "world/dir", os.O_RDONLY)
            except FileNotFoundError:
                mixtures.append("no directory")
                continue
            try:
                both = [content(fd, name) for name in ("a", "b/c")]
            except FileNotFoundError:
                # The old one, on its way to be removed.
                continue
            finally:
                os.close(fd)
            seen.add(both[0])
            if both[0] != both[1]:
                mixtures.append(both)

    looker = threading.Thread(target=look)
    looker.start()
    for version in range(1, 6):
        for name in ("a", "b/c"):
            site.write(f"world/dir/{name}", str(version))
        assert ("update", "world/dir/a") in told(site.push("world/dir", atomic=True))
    stop.set()
    looker.join()
    assert mixtures == []
    assert len(seen) > 1
    assert state(site.copy) == state(site.source)


def content(fd, name):
    opened = os.open(name, os.O_RDONLY, dir_fd=fd)
    try:
        return os.read(opened, 100)
    finally:
        os.close(opened)


@switching
def test_switch_keeps_what_is_left_out_and_links_what_is_the_same(site):
    for path in ("world/dir/same", "world/dir/new", "world/dir/sub/private"):
        site.write(path, "new")
    site.push("world/dir/same")
    for path in (
        "world/dir/sub/private",
        "world/dir/gone",
        "world/dir/.~x.0123456789ab",
        "world/.~dir.0123456789ab/x",
    ):
        site.write(path, "old", where=site.copy)
    site.write("world/.~dir.page.0123456789ab", "another's", where=site.copy)
    os.symlink("nowhere", site.copy / "world/dir/sub/link")
    same = (site.copy / "world/dir/same").stat()
    leave = lambda _directory, name, _mode: "why" if name == "private" else None  # noqa: E731
    shown = told(site.push("world/dir", leave=leave, atomic=True, show=True))
    assert (site.copy / "world/dir/gone").exists()
    assert told(site.push("world/dir", leave=leave, atomic=True)) == shown
    assert ("remove", "world/dir/gone") in shown
    assert (site.copy / "world/dir/sub/private").read_text() == "old"
    assert (site.copy / "world/dir/new").read_text() == "new"
    there = (site.copy / "world/dir/same").stat()
    assert (there.st_ino, there.st_nlink) == (same.st_ino, 1)
    assert sorted(os.listdir(site.copy / "world")) == [".~dir.page.0123456789ab", "dir"]
    assert sorted(os.listdir(site.copy / "world/dir")) == ["new", "same", "sub"]
    assert os.listdir(site.copy / "world/dir/sub") == ["private"]
    inode = (site.copy / "world/dir").stat().st_ino
    assert site.push("world/dir", leave=leave, atomic=True) == []
    assert (site.copy / "world/dir").stat().st_ino == inode


@switching
def test_switch_works_with_every_name(site):
    for name in HOSTILE[::3]:
        site.write(f"world/{name}/{name[:250]}", name.encode("utf-8", "replace").decode())
        site.write(f"world/{name}/old", where=site.copy)
    paths = [f"world/{name}" for name in HOSTILE[::3]]
    site.push(*paths, "world/gone", atomic=True)
    assert state(site.copy) == state(site.source)


@over_ssh
def test_switch_that_cannot_be_is_refused_and_changes_nothing(site, cluster):
    site.write("world/dir/page", "new")
    site.write("world/dir/page", "old", where=site.copy)
    wrap(cluster, "python3", "exit 127")
    with pytest.raises(UnavailableError, match=r"cannot switch over world/dir on web1: it has no python3"):
        site.push("world/dir", atomic=True)
    assert (site.copy / "world/dir/page").read_text() == "old"
    assert os.listdir(site.copy / "world") == ["dir"]


@over_ssh
def test_switch_that_fails_on_its_way_leaves_the_old_directory(site, cluster):
    site.write("world/dir/page", "new")
    site.write("world/dir/page", "old", where=site.copy)
    # What only shows passes; what writes does not.
    wrap(cluster, "rsync", f'test -e {site.root}/fail || exec {sshd.RSYNC} "$@"; exit 9')
    assert told(site.push("world/dir", atomic=True, show=True)) == [("update", "world/dir/page")]
    listing = site.listing("world/dir")
    real = rsync.Push.put

    def fail(self, *arguments, **named):
        if named.get("below"):
            (site.root / "fail").touch()
        return real(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rsync.Push, "put", fail)
        with pytest.raises(InfoclusterError):
            site.push("world/dir", atomic=True, listing=listing)
    assert (site.copy / "world/dir/page").read_text() == "old"
    assert os.listdir(site.copy / "world") == ["dir"]


@pytest.mark.parametrize("site", ["daemon"], indirect=True)
def test_daemon_refuses_to_switch_over(site):
    site.write("world/dir/page")
    with pytest.raises(InfoclusterError, match="cannot switch over"):
        site.push("world/dir", atomic=True)
