# SPDX-License-Identifier: Apache-2.0
"""The simple queue by itself, and with python-dirq on the other side."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dirq.QueueSimple import QueueSimple

from infocluster.errors import BadInputError, UnavailableError
from infocluster.queue import simple
from infocluster.queue.simple import Simple

LIB = Path(__file__).resolve().parents[2] / "lib"
NOON = 1795384800.25


def frozen() -> float:
    return NOON


def age(path: str | Path, seconds: float) -> None:
    before = time.time() - seconds
    os.utime(path, (before, before))


@pytest.fixture
def top(tmp_path: Path) -> str:
    return str(tmp_path / "queue")


def everything(top: str) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in Path(top).rglob("*"))


def test_element_is_a_file_named_by_its_time(top: str) -> None:
    name = Simple(top, digit=0xB, clock=frozen).add(b"content\n")
    assert name == "6b0365e0/6b0365e03d090b"
    assert (Path(top) / name).read_bytes() == b"content\n"
    assert everything(top) == sorted([name.split("/")[0], name])


@pytest.mark.parametrize(("granularity_s", "expected"), [(60, NOON - NOON % 60), (1, NOON), (0, NOON), (7, None)])
def test_directory_is_the_time_rounded_down_as_dirq_does(
    top: str, granularity_s: int, expected: float | None
) -> None:
    ours = Simple(top, granularity_s=granularity_s, clock=frozen).add(b"x").split("/")[0]
    assert ours == f"{int(NOON - int(NOON) % granularity_s if expected is None else expected):08x}"
    theirs = QueueSimple(top, granularity=granularity_s)
    before = time.time()
    directory = Simple(top, granularity_s=granularity_s).add(b"x").split("/")[0]
    names = {directory, theirs._add_dir()}
    assert len(names) == 1 or int(before) // max(granularity_s, 1) != int(time.time()) // max(granularity_s, 1)


def test_names_grow_and_differ_while_the_clock_stands(top: str) -> None:
    queue, other = (Simple(top, digit=3, clock=frozen) for _ in range(2))
    names = [(queue if place % 3 else other).add(b"%d" % place) for place in range(300)]
    assert len(set(names)) == 300
    assert sorted(names) == list(Simple(top))
    assert {(Path(top) / name).read_bytes() for name in names} == {b"%d" % place for place in range(300)}


def test_microseconds_carry_into_seconds(top: str) -> None:
    queue = Simple(top, digit=0, clock=lambda: 1795384800.999999)
    assert [queue.add(b"x")[9:17] for _ in range(2)] == [f"{1795384800:08x}", f"{1795384801:08x}"]


def test_what_we_add_dirq_iterates_locks_gets_and_removes(top: str) -> None:
    queue = Simple(top, granularity_s=1)
    added = {queue.add(content): content for content in (b"", b"one\n", bytes(range(256)) * 5000)}
    theirs = QueueSimple(top)
    assert list(theirs.names()) == sorted(added)
    assert theirs.count() == 3
    for name, content in added.items():
        assert theirs.lock(name)
        assert not queue.lock(name)
        assert queue.get(name) is None
        assert not queue.remove(name)
        assert not queue.unlock(name)
        assert theirs.get(name) == content
        theirs.remove(name)
    assert queue.count() == 0


def test_what_dirq_adds_we_iterate_lock_get_and_remove(top: str, tmp_path: Path) -> None:
    theirs = QueueSimple(top, granularity=1)
    (tmp_path / "file").write_bytes(b"from a path")
    added = {
        theirs.add(b"one"): b"one",
        theirs.add(b""): b"",
        theirs.add_path(str(tmp_path / "file")): b"from a path",
    }
    queue = Simple(top)
    assert list(queue) == sorted(added)
    for name in queue:
        assert queue.lock(name)
        assert not theirs.lock(name)
        assert os.path.samefile(queue.location(name), f"{top}/{name}")
        assert queue.get(name) == added[name]
        assert queue.remove(name)
    assert theirs.count() == queue.count() == 0
    assert not [path for path in everything(top) if "/" in path]


def test_unlocked_element_is_there_for_the_next(top: str) -> None:
    queue, other = Simple(top), Simple(top)
    name = queue.add(b"x")
    assert queue.lock(name)
    assert not other.lock(name)
    assert not queue.lock(name)
    assert queue.unlock(name)
    assert not queue.unlock(name)
    assert other.lock(name) and other.get(name) == b"x"


def test_element_that_is_not_locked_is_never_removed(top: str) -> None:
    queue = Simple(top)
    name = queue.add(b"x")
    assert not queue.remove(name)
    assert queue.get(name) is None
    assert list(queue) == [name]


def test_lock_that_was_broken_and_taken_by_another_is_not_ours(top: str) -> None:
    queue, other = Simple(top), Simple(top)
    name = queue.add(b"x")
    assert queue.lock(name)
    age(queue.location(name), 700)
    QueueSimple(top).purge()
    assert other.lock(name)
    assert not queue.touch(name)
    assert queue.get(name) == b"x", "it cannot know yet"
    assert not queue.remove(name)
    assert queue.get(name) is None
    assert not queue.unlock(name)
    assert other.get(name) == b"x"
    assert other.remove(name)
    assert everything(top) == [name.split("/")[0]]


def test_lock_that_another_takes_while_we_find_ours_gone_is_left_to_him(top: str) -> None:
    """In a process of its own, where the other one comes between two steps of ours."""
    program = """
import posix, sys
from infocluster.queue.simple import Simple
queue, other = Simple(sys.argv[1]), Simple(sys.argv[1])
looked = posix.lstat
def look_and_let_lock(path, **named):
    try:
        return looked(path, **named)
    except FileNotFoundError:
        posix.lstat = looked
        print("other", other.lock(name))
        raise
name = queue.add(b"x")
queue.lock(name)
posix.unlink(queue.location(name))
posix.lstat = look_and_let_lock
print(queue.remove(name), other.get(name), other.remove(name))
"""
    assert run(program, top) == "other True\nFalse b'x' True\n"


def test_touched_lock_is_kept_by_purges_and_still_ours(top: str) -> None:
    queue = Simple(top)
    name = queue.add(b"x")
    assert queue.lock(name)
    age(queue.location(name), 700)
    assert not queue.touch(name), "a lock whose time was moved by another is no longer ours"
    assert queue.purge() == (0, 1, 0)
    assert queue.lock(name) and queue.touch(name)
    before = os.stat(queue.location(name)).st_mtime
    QueueSimple(top).purge()
    assert queue.purge() == (0, 0, 0)
    assert before > time.time() - 5
    assert queue.remove(name)


def test_purge_takes_what_is_old_and_leaves_the_rest(top: str) -> None:
    queue = Simple(top, clock=frozen)
    name = queue.add(b"x")
    directory = Path(top) / name.split("/")[0]
    (Path(top) / "00000001").mkdir()
    (Path(top) / "00000002").mkdir()
    (Path(top) / "00000002/kept").touch()
    old, new, orphan = (directory / f"{stem}" for stem in ("0" * 14 + ".tmp", "1" * 14 + ".tmp", "2" * 14 + ".lck"))
    for path in (old, new, orphan, directory / "other.tmp", directory / "x.dat"):
        path.touch()
    age(old, 301)
    age(orphan, 601)
    age(directory / "other.tmp", 9999)
    unfinished, kept = Path(top) / ".~6b0365e0.0123456789ab", Path(top) / ".~mine"
    for path in (unfinished, kept):
        path.mkdir()
    (kept / "file").touch()
    for path in (unfinished, kept):
        age(path, 301)
    assert queue.lock(name)
    assert queue.purge() == (2, 1, 1)
    assert kept.exists() and not unfinished.exists()
    left = {path.name for path in directory.iterdir()}
    assert left == {name[9:], name[9:] + ".lck", new.name, "other.tmp", "x.dat"}
    assert (Path(top) / "00000002/kept").exists()
    age(queue.location(name), 601)
    age(new, 301)
    assert queue.purge(0, 0) == (0, 0, 0)
    assert queue.purge() == (1, 1, 0)


def test_strange_entries_are_ignored_and_never_fatal(top: str, tmp_path: Path) -> None:
    queue = Simple(top)
    name = queue.add(b"x")
    directory = Path(top) / name.split("/")[0]
    for stray in (
        "0123456789ABCD",
        "0123456789abc",
        "0123456789abcde",
        "0123456789abcd\n",
        "0123456789abcd.tmp",
        "x.dat",
        "\u00fc",
    ):
        (directory / stray).touch()
    (directory / "0123456789abcd").mkdir()
    (directory / "0123456789abce").symlink_to(tmp_path)
    os.mkfifo(directory / "0123456789abcf")
    os.mkdir(os.fsencode(top) + b"/\xff")
    for stray in ("0123ABCD", "0123456", "012345678", "temporary"):
        (Path(top) / stray).mkdir()
        (Path(top) / stray / "0123456789abcd").touch()
    (Path(top) / "01234567").touch()
    for stray in (f"{name[9:]}.tmp", "0123456789abc0.lck"):
        (directory / stray).mkdir()
        age(directory / stray, 9999)
    assert list(queue) == [name]
    assert queue.count() == 1
    for stray in ("0123456789abcd", "0123456789abce", "0123456789abcf"):
        assert not queue.lock(f"{directory.name}/{stray}")
        assert not os.path.lexists(directory / f"{stray}.lck")
    assert not queue.lock("01234567/0123456789abcd")
    before = everything(top)
    queue.purge()
    assert everything(top) == before
    assert list(queue.locked()) == [name]


def test_link_that_took_an_elements_place_is_not_followed(top: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    queue = Simple(top)
    names = [queue.add(b"x") for _ in range(2)]
    for place, name in enumerate(queue.locked()):
        if place == 0:
            os.unlink(f"{top}/{names[1]}")
            os.symlink(tmp_path / "secret", f"{top}/{names[1]}")
            queue.unlock(name)
            continue
        with pytest.raises(UnavailableError, match="symbolic links"):
            queue.get(name)
        assert queue.unlock(name)
    assert place == 1
    assert os.stat(tmp_path / "secret").st_nlink == 1


def test_queue_that_nobody_made_is_empty(top: str) -> None:
    queue = Simple(top)
    assert (list(queue), list(queue.locked()), queue.count(), queue.purge()) == ([], [], 0, (0, 0, 0))
    assert not os.path.exists(top)
    assert not queue.lock("00000000/00000000000000")


def test_directory_that_vanishes_is_silent(top: str) -> None:
    queue = Simple(top, granularity_s=1, clock=lambda: next(clock))
    clock = (1795384800.0 + place for place in range(100))
    names = [queue.add(b"x") for _ in range(4)]
    walk = iter(queue)
    found = [next(walk)]
    for name in names[1:3]:
        os.unlink(f"{top}/{name}")
        os.rmdir(f"{top}/{name.split('/')[0]}")
    found += walk
    assert found == [names[0], names[3]]


def test_umask_of_a_queue_is_not_that_of_the_process(top: str) -> None:
    before = os.umask(0o022)
    try:
        for umask, modes in ((0o007, (0o770, 0o660)), (0o077, (0o700, 0o600)), (None, (0o755, 0o644))):
            queue = Simple(f"{top}/{umask}/below", umask=umask, granularity_s=1)
            name = queue.add(b"x")
            found = tuple(
                os.stat(path).st_mode & 0o777
                for path in (f"{queue.path}/{name.split('/')[0]}", f"{queue.path}/{name}")
            )
            assert found == modes
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_directories_of_a_shared_queue_inherit_its_group(top: str) -> None:
    os.mkdir(top)
    os.chmod(top, 0o2770)
    name = Simple(top, umask=0o007).add(b"x")
    assert os.stat(f"{top}/{name.split('/')[0]}").st_mode & 0o7777 == 0o2770


def test_real_error_is_raised_at_once_and_leaves_nothing(top: str, tmp_path: Path) -> None:
    Path(top).write_text("a file")
    with pytest.raises(UnavailableError, match="Not a directory"):
        Simple(top).add(b"x")
    with pytest.raises(UnavailableError, match="File name too long"):
        Simple(f"{tmp_path}/{'x' * 300}").add(b"x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnavailableError):
        Simple(str(tmp_path / "dangling")).add(b"x")
    queue = Simple(str(tmp_path / "other"), clock=frozen)
    name = queue.add(b"x")
    directory = f"{queue.path}/{name.split('/')[0]}"
    os.rename(directory, directory + ".away")
    os.symlink("nowhere", directory)
    with pytest.raises(UnavailableError):
        Simple(queue.path, clock=frozen).add(b"x")


def test_too_many_open_files_is_an_error_and_not_a_wait(top: str) -> None:
    queue, other = Simple(top), Simple(f"{top}/other")
    name = other.add(b"x")
    before = everything(top)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        for action in (
            lambda: queue.add(b"x"),
            lambda: Simple(other.path).lock(name),
            lambda: next(iter(other.locked())),
            other.count,
            other.purge,
        ):
            with pytest.raises(UnavailableError, match="Too many open files"):
                action()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert everything(top) == before


@pytest.mark.root
def test_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], check=True)
    try:
        queue = Simple(f"{tmp_path}/queue")
        with pytest.raises(UnavailableError, match="No space left"):
            queue.add(b"x" * 100000)
        assert everything(queue.path) == []
        name = queue.add(b"x")
        with pytest.raises(UnavailableError, match="No space left"):
            queue.add(b"x" * 100000)
        assert everything(queue.path) == sorted([name.split("/")[0], name])
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        for action in (lambda: queue.add(b"x"), lambda: queue.lock(name)):
            with pytest.raises(UnavailableError, match="Read-only file system"):
                action()
        assert everything(queue.path) == sorted([name.split("/")[0], name])
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.root
def test_refused_directory_is_an_error(open_dir: Path) -> None:
    queue = Simple(str(open_dir / "queue"))
    name = queue.add(b"x")
    before = everything(queue.path)
    program = (
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from infocluster.queue.simple import Simple; from infocluster.errors import UnavailableError\n"
        "queue = Simple(sys.argv[1])\n"
        "for action in (lambda: queue.add(b'x'), lambda: queue.lock(sys.argv[2])):\n"
        "    try: action(); print('done')\n"
        "    except UnavailableError as error: print(error)\n"
    )
    said = run(program, queue.path, name)
    assert said.count("Permission denied") + said.count("Operation not permitted") == 2, said
    assert everything(queue.path) == before


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(LIB)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_path_is_moved_with_its_mode(top: str, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"whole")
    source.chmod(0o604)
    queue = Simple(top, umask=0o077)
    name = queue.add_path(str(source))
    assert not source.exists()
    assert os.stat(f"{top}/{name}").st_mode & 0o777 == 0o604
    assert queue.lock(name) and queue.get(name) == b"whole"
    for other in (tmp_path, tmp_path / "gone"):
        with pytest.raises((BadInputError, UnavailableError)):
            queue.add_path(str(other))


def test_path_on_another_file_system_stays(top: str) -> None:
    source = Path("/dev/shm") / f"infocluster-{os.getpid()}"
    source.write_bytes(b"whole")
    try:
        with pytest.raises(UnavailableError, match="cross-device"):
            Simple(top).add_path(str(source))
        assert source.read_bytes() == b"whole"
    finally:
        source.unlink()
    assert everything(top) == []


def test_path_whose_directory_a_purge_takes_is_added_and_one_that_the_disk_refuses_stays(
    top: str, tmp_path: Path
) -> None:
    """In a process of its own, where the disk and a purge do as they are told."""
    (tmp_path / "file").write_bytes(b"whole")
    program = """
import posix, sys
from infocluster.errors import UnavailableError
from infocluster.queue.simple import Simple
opened, synced, (top, file) = posix.open, posix.fsync, sys.argv[1:]
queue = Simple(top, durable=True)
def refuse(fd):
    if posix.fstat(fd).st_mode & 0o40000:
        raise OSError(5, "Input/output error")
posix.fsync = refuse
try:
    queue.add_path(file)
except UnavailableError as error:
    print(str(error).rpartition(": ")[2])
print(opened(file, posix.O_RDONLY) > 0, queue.count())
posix.fsync = synced
def purge_and_open(path, *rest, **named):
    if posix.open is not opened and path.startswith(top + "/"):
        posix.open = opened
        posix.rmdir(path)
    return opened(path, *rest, **named)
posix.open = purge_and_open
print(posix.open is not opened, queue.add_path(file) == list(queue)[0], posix.open is opened)
"""
    assert run(program, top, str(tmp_path / "file")) == "Input/output error\nTrue 0\nTrue True True\n"


def test_durable_element_and_its_directories_are_synced_before_add_returns(top: str) -> None:
    """In a process of its own, which says what it asks the kernel for."""
    program = """
import posix, shutil, sys
from infocluster.queue.simple import Simple
opened, synced, linked, names = posix.open, posix.fsync, posix.link, {}
def open_and_note(path, *rest, **named):
    fd = opened(path, *rest, **named)
    names[fd] = path
    return fd
posix.open = open_and_note
posix.fsync = lambda fd: print("fsync", names[fd]) or synced(fd)
posix.link = lambda old, new, **named: print("link", new) or linked(old, new, **named)
queue = Simple(sys.argv[1], durable=True, digit=0, clock=lambda: 1795384800.0)
print("added", queue.add(b"x"))
print("added", queue.add(b"x"))
shutil.rmtree(sys.argv[1] + "/6b0365e0")
print("added", queue.add(b"x"))
"""
    steps = run(program, top).replace(top, "TOP").splitlines()
    first, second, third = (f"6b0365e0/6b0365e00000{place}0" for place in range(3))
    assert steps == [
        "fsync TOP/..",
        f"fsync {first[9:]}.tmp",
        f"link {first[9:]}",
        "fsync TOP/6b0365e0",
        "fsync TOP",
        f"added {first}",
        f"fsync {second[9:]}.tmp",
        f"link {second[9:]}",
        "fsync TOP/6b0365e0",
        f"added {second}",
        f"fsync {third[9:]}.tmp",
        f"link {third[9:]}",
        "fsync TOP/6b0365e0",
        "fsync TOP",
        f"added {third}",
    ]


def test_walk_gives_one_consumer_everything_in_order(top: str) -> None:
    ticks = iter(range(10**6))
    queue = Simple(top, granularity_s=5, clock=lambda: 1795384800 + next(ticks) / 10)
    names = sorted(queue.add(b"x") for _ in range(200))
    consumer = Simple(top)
    assert [name for name in consumer.locked() if consumer.remove(name)] == names


def test_walk_skips_what_others_have_and_gives_each_once(top: str) -> None:
    ticks = iter(range(10**6))
    queue = Simple(top, granularity_s=20, clock=lambda: 1795384800 + next(ticks) / 10)
    names = {queue.add(b"x") for _ in range(300)}
    consumers = [Simple(top) for _ in range(4)]
    walks = [consumer.locked() for consumer in consumers]
    found: list[str] = []
    lost = 0
    while walks:
        for consumer, walk in list(zip(consumers, walks, strict=True)):
            name = next(walk, None)
            if name is None:
                walks.remove(walk)
                consumers.remove(consumer)
                continue
            if len(found) % 7 == 0:
                assert consumer.unlock(name)
                lost += 1
                names.discard(name)
                os.unlink(f"{top}/{name}")
            else:
                assert consumer.remove(name)
                names.remove(name)
            found.append(name)
    assert not names and len(found) == len(set(found))
    assert queue.count() == 0


def test_walk_gives_an_element_that_its_caller_unlocked_once(top: str) -> None:
    queue = Simple(top)
    name = queue.add(b"x")
    found = []
    for element in queue.locked():
        found.append(element)
        queue.unlock(element)
    assert found == [name]


def test_name_of_an_element_is_told_from_everything_else() -> None:
    assert simple.is_name("6b0365e0/6b0365e03d090b")
    for text in ("", "6b0365e0", "6b0365e0/6b0365e03d090b\n", "6B0365E0/6b0365e03d090b", "../../../../etc/passwd.."):
        assert not simple.is_name(text)
