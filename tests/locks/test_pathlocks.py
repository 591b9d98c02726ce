# SPDX-License-Identifier: Apache-2.0
"""Locks on paths, between real processes: who excludes whom, in which order, and what is left when one is killed."""

import contextlib
import fcntl
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster.errors import InfoclusterError, RefusedError, UnavailableError, UsageError
from infocluster.locks import lockfile, pathlocks
from infocluster.locks.pathlocks import ALL
from locks.askers import LIB, Asker


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pathlocks"


@pytest.fixture
def asker(directory: Path) -> Iterator[Callable[..., Asker]]:
    """Start askers for one directory that are gone when the test is."""
    started: list[Asker] = []

    def begin(*user_and_group: int, at: Path = directory) -> Asker:
        started.append(Asker(at, *user_and_group))
        return started[-1]

    yield begin
    for one in started:
        one.dies()
        one.process.communicate()


def tickets(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def tried(directory: Path, *paths: str) -> bool:
    """Tell whether paths can be had at once."""
    try:
        with pathlocks.hold(paths, 0, directory=str(directory)):
            return True
    except UnavailableError:
        return False


def standing(directory: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(request.pid, request.state, request.paths) for request in pathlocks.holders(str(directory))]


# The rule


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        (["world/webinfo/behind"], ["world/webinfo/behind"], True),
        (["world/webinfo/behind"], ["world/webinfo/behind/push.html"], True),
        (["world/webinfo/behind/push.html"], ["world"], True),
        (["world/webinfo/behind/push.html"], ["world/webinfo/behind/index.html"], False),
        (["world/a"], ["world/ab"], False),
        (["world/a.html"], ["world/a"], False),
        (["world"], ["world2"], False),
        (["world"], ["other"], False),
        (["world/a/a"], ["world/a/b/a"], False),
        (["world/a", "other/b"], ["world/b", "other/b/c"], True),
        (["world/a", "other/b"], ["world/b", "other/a"], False),
        ([ALL], ["world"], True),
        ([ALL], ["other/a/b"], True),
        ([ALL], [ALL], True),
    ],
)
def test_conflict(one: list[str], other: list[str], conflict: bool) -> None:
    assert pathlocks.conflicts(one, other) is conflict
    assert pathlocks.conflicts(other, one) is conflict


# What names a world of nine times nine files makes of it: a path stands for the files at or below it.
NAMES = ("a", "ab", "b")
FILES = [*itertools.product(NAMES, repeat=4)]
PATHS = st.lists(st.lists(st.sampled_from(NAMES), max_size=4).map("/".join), min_size=1, max_size=4)


def files_of(paths: list[str] | tuple[str, ...]) -> set[tuple[str, ...]]:
    heads = [path.split("/") if path else [] for path in paths]
    return {file for file in FILES if any(list(file[: len(head)]) == head for head in heads)}


@given(one=PATHS, other=PATHS)
def test_requests_conflict_when_they_have_a_file_in_common(one: list[str], other: list[str]) -> None:
    assert pathlocks.conflicts(one, other) is bool(files_of(one) & files_of(other))


@given(paths=PATHS)
def test_normal_form_keeps_every_file_and_names_none_twice(paths: list[str]) -> None:
    normal = pathlocks.normal(paths)
    assert files_of(normal) == files_of(paths)
    assert sum(len(files_of([path])) for path in normal) == len(files_of(paths))
    assert normal == tuple(sorted(normal)) == pathlocks.normal([f"{path}/" if path else path for path in paths])


@pytest.mark.parametrize("paths", [[], "world", ["/world"], ["world/../etc"], ["world", "a\nb"], ["/"]])
def test_what_is_no_path_is_refused(directory: Path, paths: list[str]) -> None:
    with pytest.raises(UsageError), pathlocks.hold(paths, directory=str(directory)):
        pass
    assert not directory.exists()


# Who waits for whom


def test_conflicting_paths_exclude_each_other_and_others_pass(directory: Path, asker: Callable[..., Asker]) -> None:
    asker().holds("world/webinfo/behind")
    assert not tried(directory, "world/webinfo/behind/push.html")
    assert not tried(directory, "world/webinfo")
    assert not tried(directory, ALL)
    assert tried(directory, "world/webinfo/behind2")
    assert tried(directory, "world/webinfo/before", "other")
    assert len(tickets(directory)) == 1


def test_everything_excludes_every_tree(directory: Path, asker: Callable[..., Asker]) -> None:
    holder = asker().holds(ALL, "world/a")
    assert not tried(directory, "other/a")
    assert standing(directory) == [(holder.pid, "holds", (ALL,))]


def test_directory_is_served_before_files_that_come_later(directory: Path, asker: Callable[..., Asker]) -> None:
    first = asker().holds("world/a/x")
    whole = asker().waits("world/a")
    later = asker().waits("world/a/y")
    beside = asker().holds("world/b")
    assert standing(directory) == [
        (first.pid, "holds", ("world/a/x",)),
        (whole.pid, "waits", ("world/a",)),
        (later.pid, "waits", ("world/a/y",)),
        (beside.pid, "holds", ("world/b",)),
    ]
    first.leaves()
    assert whole.says() == "held"
    assert standing(directory)[:2] == [(whole.pid, "holds", ("world/a",)), (later.pid, "waits", ("world/a/y",))]
    whole.leaves()
    assert later.says() == "held"


def test_request_takes_all_of_its_paths_or_none(directory: Path, asker: Callable[..., Asker]) -> None:
    holder = asker().holds("world/b")
    both = asker().asks("world/a", "world/b", timeout_s=0.05)
    assert both.says().startswith("waiting for world/a, world/b: ")
    assert both.says().startswith("UnavailableError: cannot lock world/a, world/b after 0.05 s: ")
    assert standing(directory) == [(holder.pid, "holds", ("world/b",))]
    assert tried(directory, "world/a")
    both.waits("world/a", "world/b")
    assert not tried(directory, "world/a")
    holder.leaves()
    assert both.says() == "held"
    assert not tried(directory, "world/a")
    assert not tried(directory, "world/b")


def test_waiter_says_at_once_for_whom_and_again_when_that_changes(
    directory: Path, asker: Callable[..., Asker]
) -> None:
    one, two = asker().holds("world/a"), asker().holds("world/b/c")
    waiter = asker().asks("world")
    pattern = r"waiting for world: \S+@\S+ \(pid {}\) {} {} since 2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(pattern.format(one.pid, "holds", "world/a"), waiter.says())
    behind = asker().asks("world/b")
    assert re.fullmatch(pattern.replace("world:", "world/b:").format(two.pid, "holds", "world/b/c"), behind.says())
    one.leaves()
    assert re.fullmatch(pattern.format(two.pid, "holds", "world/b/c"), waiter.says())
    two.leaves()
    assert waiter.says() == "held"
    assert re.fullmatch(pattern.replace("world:", "world/b:").format(waiter.pid, "holds", "world"), behind.says())
    waiter.leaves()
    assert behind.says() == "held"


@pytest.mark.parametrize(("timeout_s", "waited", "lines"), [(0, "", 0), (0.05, " after 0.05 s", 1)])
def test_time_out_names_who_has_it_and_leaves_nothing(
    directory: Path, asker: Callable[..., Asker], timeout_s: float, waited: str, lines: int
) -> None:
    holder = asker().holds("world/a")
    said: list[str] = []
    before = time.monotonic()
    words = (
        rf"cannot lock world{waited}: \S+@{re.escape(os.uname().nodename)} \(pid {holder.pid}\) holds world/a since "
    )
    with (
        pytest.raises(UnavailableError, match=words),
        pathlocks.hold(["world"], timeout_s, directory=str(directory), say=said.append),
    ):
        pass
    assert timeout_s <= time.monotonic() - before < 5
    assert len(said) == lines
    assert standing(directory) == [(holder.pid, "holds", ("world/a",))]
    assert len(tickets(directory)) == 1


def test_wait_with_a_time_limit_ends_with_the_lock(directory: Path, asker: Callable[..., Asker]) -> None:
    holder = asker().holds("world/a")
    waiter = asker().asks("world", timeout_s=60)
    assert waiter.says().startswith("waiting")
    holder.leaves()
    assert waiter.says() == "held"


def test_who_called_sudo_is_the_one_who_is_named(
    directory: Path, asker: Callable[..., Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "somebody")
    asker().holds("world")
    monkeypatch.setenv("SUDO_USER", "not a\nname")
    asker().holds("other")
    users = [request.user for request in pathlocks.holders(str(directory))]
    assert users[0] == "somebody"
    assert "\n" not in users[1]


# What is left


def test_nothing_is_left_when_all_have_ended(directory: Path, asker: Callable[..., Asker]) -> None:
    holder = asker().holds("world")
    waiter = asker().waits("world/a")
    holder.ends()
    assert waiter.says() == "held"
    waiter.ends()
    with contextlib.suppress(KeyError), pathlocks.hold(["world"], directory=str(directory)):
        raise KeyError
    assert tickets(directory) == []
    descriptors = os.listdir("/proc/self/fd")
    with pathlocks.hold(["world"], directory=str(directory)):
        assert tickets(directory) == ["0000000000000001.ticket"]
    assert os.listdir("/proc/self/fd") == descriptors


def test_killed_holder_and_killed_waiter_free_those_behind_them(directory: Path, asker: Callable[..., Asker]) -> None:
    holder = asker().holds("world/a")
    whole = asker().waits("world")
    behind_whole, behind_holder = asker().waits("world/b"), asker().waits("world/a/c")
    whole.dies()
    assert behind_whole.says() == "held"
    assert standing(directory)[0] == (holder.pid, "holds", ("world/a",))
    holder.dies()
    # It waited for the holder, then for the one that is dead as well.
    assert behind_holder.says() == "held"
    assert len(tickets(directory)) == 4
    assert tried(directory, "other")
    assert len(tickets(directory)) == 2


def test_program_or_child_of_a_killed_holder_does_not_keep_its_paths(directory: Path) -> None:
    code = f"""
import os, signal, subprocess, sys
sys.path.insert(0, {LIB!r})
from infocluster.locks import pathlocks
with pathlocks.hold(["world"], directory=sys.argv[1]):
    started = subprocess.Popen(["sleep", "30"], close_fds=False, stdout=subprocess.DEVNULL).pid
    ready, begun = os.pipe()
    forked = os.fork()
    if not forked:
        os.write(begun, b"x")
        os.closerange(0, 3)
        signal.alarm(30)
        signal.pause()
    os.read(ready, 1)
    print(started, forked, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-I", "-c", code, str(directory)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        children = [int(pid) for pid in holder.stdout.readline().split()]
        try:
            assert not tried(directory, "world")
            holder.kill()
            holder.wait()
            assert tried(directory, "world")
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)


def test_forked_child_on_its_way_out_does_not_end_its_parents_lock(directory: Path) -> None:
    with pathlocks.hold(["world"], directory=str(directory)):
        code = 0
        with contextlib.ExitStack() as stack:
            stack.enter_context(pathlocks.hold(["other"], directory=str(directory)))
            descriptor = os.open("/dev/null", os.O_RDONLY)
            child = os.fork()
            if not child:
                # What the child opens now may have the numbers of the tickets that it closed.
                opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
                try:
                    stack.close()
                    code += tried(directory, "other/a")
                    for one in [descriptor, *opened]:
                        os.fstat(one)
                except BaseException:
                    code += 2
                os._exit(code)
            os.close(descriptor)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert standing(directory) == [(os.getpid(), "holds", ("world",)), (os.getpid(), "holds", ("other",))]


def test_ticket_is_what_the_specification_says(directory: Path) -> None:
    before = time.time()
    with pathlocks.hold(["world/b/", "world/a\udce9", "world/b/c"], directory=str(directory)):
        file = directory / "0000000000000001.ticket"
        shape = json.loads(file.read_bytes())
        assert lockfile.holder(str(file)) is not None
        assert pathlocks.holders(str(directory))[0].paths == ("world/a\udce9", "world/b")
    assert list(shape) == ["user", "host", "pid", "paths", "since"]
    assert (shape["host"], shape["pid"]) == (os.uname().nodename, os.getpid())
    assert shape["paths"] == ["world/a\udce9", "world/b"]
    assert before <= shape["since"] <= time.time()


def test_modes_do_not_depend_on_the_umask(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        with pathlocks.hold(["world"], directory=str(directory)):
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())]
    finally:
        os.umask(before)
    assert [oct(mode) for mode in modes] == ["0o2770", "0o660"]


def test_leftovers_are_dropped_and_other_files_left_alone(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "0000000000000041.ticket").write_bytes(b"")
    (directory / "0000000000000042.ticket").write_text('{"user": "www", "paths": ["world"]}')
    (directory / ".~43.0123456789ab").write_text('{"user"')
    (directory / "README").write_text("ours")
    (directory / "43.ticket").write_text("not a ticket's name")
    assert pathlocks.holders(str(directory)) == []
    assert tried(directory, "world")
    assert tickets(directory) == ["43.ticket", "README"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"user": 1, "host": "h", "pid": 1, "paths": "ab", "since": 1}'])
def test_live_ticket_that_cannot_be_understood_blocks_everything(directory: Path, content: str) -> None:
    directory.mkdir(parents=True)
    with (directory / "0000000000000007.ticket").open("w") as file:
        file.write(content)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert standing(directory) == [(0, "holds", (ALL,))]
        assert not tried(directory, "other/a")
    assert tried(directory, "other/a")


def test_newcomers_wait_for_the_mutex_and_are_told_who_has_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tried(directory, "world")
    monkeypatch.setattr("infocluster.locks.tickets.MUTEX_S", 0.05)
    command = ["flock", str(directory), "sh", "-c", "echo held; cat >/dev/null"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        words = rf"cannot lock world: \S+/pathlocks is locked by pid {process.pid} \(flock\)"
        with pytest.raises(UnavailableError, match=words), pathlocks.hold(["world"], 0, directory=str(directory)):
            pass
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            assert process.stdin is not None
            process.stdin.close()

        with pathlocks.hold(["world"], directory=str(directory), say=say):
            assert len(said) == 1
            assert f"pid {process.pid} (flock)" in said[0]


def test_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UnavailableError, match=r"cannot make .*/file/pathlocks: Not a directory"),
        pathlocks.hold(["world"], directory=f"{tmp_path}/file/pathlocks"),
    ):
        pass


def test_nobody_holds_where_there_is_no_directory(directory: Path) -> None:
    assert pathlocks.holders(str(directory)) == []
    assert not directory.exists()


# A process that has some already


@pytest.mark.parametrize("path", ["world/a", "world", "world/a/b", ALL])
def test_process_that_asks_for_what_it_has_is_refused(directory: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "link").symlink_to("state")
    refused: list[str] = []
    kinds: set[type] = set()

    def ask(through: Path) -> None:
        try:
            with pathlocks.hold([path], 5, directory=str(through)):
                refused.append("held")
        except InfoclusterError as error:
            refused.append(str(error))
            kinds.add(type(error))

    with pathlocks.hold(["world/a"], directory=str(directory)):
        ask(directory)
        ask(tmp_path / "link/pathlocks")
        thread = threading.Thread(target=ask, args=(directory,))
        thread.start()
        thread.join()
        with pathlocks.hold(["world/b"], directory=str(directory)):
            assert len(standing(directory)) == 2
    assert refused == [f"cannot lock {path or 'everything'}: this process has world/a already"] * 3
    assert kinds == {RefusedError}
    assert tickets(directory) == []


def test_circle_of_processes_that_wait_for_one_another_is_refused(
    directory: Path, asker: Callable[..., Asker]
) -> None:
    one, two, three = (asker().holds(path) for path in ("world/1", "world/2", "world/3"))
    one.waits("world/2")
    two.waits("world/3")
    line = three.asks("world/1").says()
    assert line.startswith("UnavailableError: cannot lock world/1 while holding world/3: ")
    assert f"(pid {two.pid}) waits for world/3" in line
    three.leaves()
    assert two.says() == "held"
    three.waits("world/1")
    two.leaves()
    two.leaves()
    assert one.says() == "held"


# Two users


@pytest.mark.root
def test_users_of_one_group_exclude_wait_for_and_clean_up_after_each_other(asker: Callable[..., Asker]) -> None:
    state = Path(tempfile.mkdtemp(prefix="infocluster-test-"))
    try:
        os.chown(state, 0, 60010)
        state.chmod(0o2775)
        at = state / "pathlocks"
        first = asker(60001, 60010, at=at).holds("world")
        second = asker(60002, 60010, at=at).waits("world/a")
        modes = [(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) for path in at.iterdir()]
        assert sorted(modes) == [(60001, 60010, 0o660), (60002, 60010, 0o660)]
        assert [request.user for request in pathlocks.holders(str(at))] == ["60001", "60002"]
        first.dies()
        assert second.says() == "held"
        asker(60003, 60010, at=at).holds("world/b")
        assert [path.stat().st_uid for path in sorted(at.iterdir())] == [60002, 60003]
        line = asker(60004, 60011, at=at).asks("world/c").says()
        assert line == f"UnavailableError: cannot open {at}: Permission denied"
    finally:
        shutil.rmtree(state)


@pytest.mark.root
def test_ticket_of_another_group_stops_those_who_cannot_read_it(asker: Callable[..., Asker]) -> None:
    state = Path(tempfile.mkdtemp(prefix="infocluster-test-"))
    try:
        at = state / "pathlocks"
        state.chmod(0o755)
        at.mkdir()
        at.chmod(0o777)
        asker(60001, 60010, at=at).holds("world/a")
        line = asker(60002, 60011, at=at).asks("other").says()
        assert line == f"UnavailableError: cannot read {at}/0000000000000001.ticket: Permission denied"
    finally:
        shutil.rmtree(state)


# All at once

CROWD = """
import os, random, sys
sys.path.insert(0, sys.argv[1])
from infocluster.locks import pathlocks
seed, rounds, dies_in = map(int, sys.argv[4:])
choice = random.Random(seed)
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND)
names = ["world", *(f"world/{d}" for d in "abc"), *(f"world/{d}/{f}" for d in "abc" for f in "xyz"), "other/o"]

def tell(word, paths):
    os.write(log, f"{word} {os.getpid()} {' '.join(paths)}\\n".encode())

sys.stdin.readline()
for turn in range(rounds):
    paths = choice.sample(names, choice.choice((1, 1, 2, 3)))
    timeout_s = choice.choice((None, None, 120))
    with pathlocks.hold(paths, timeout_s, directory=sys.argv[2], say=lambda line: None):
        tell("enter", paths)
        if turn == dies_in:
            tell("doomed", ())
            os.kill(os.getpid(), 9)
        os.sched_yield()
        tell("leave", paths)
tell("done", ())
"""


def overlaps(events: list[str]) -> list[str]:
    """Return what is wrong with a log: two that conflict were inside at once, or one left that was not inside."""
    inside: dict[str, list[str]] = {}
    wrong = []
    for event in events:
        word, pid, *paths = event.split(" ")
        if word == "enter":
            wrong += [
                f"{event}: {other} is inside with {theirs}"
                for other, theirs in inside.items()
                if any(f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in paths for b in theirs)
            ]
            inside[pid] = paths
        elif word == "leave" and inside.pop(pid, None) != paths:
            wrong.append(f"{event}: was not inside")
        elif word in ("doomed", "done"):
            inside.pop(pid, None)
    return wrong


def test_the_checker_of_the_log_sees_what_is_wrong() -> None:
    assert not overlaps(
        ["enter 1 world/a", "enter 2 world/ab", "leave 1 world/a", "enter 3 world/a", "leave 3 world/a"]
    )
    assert not overlaps(["enter 1 world/a", "doomed 1 ", "enter 2 world"])
    assert overlaps(["enter 1 world/a", "enter 2 world"])
    assert overlaps(["enter 1 world b/c", "enter 2 x b/c/d"])
    assert overlaps(["enter 1 world", "leave 1 world", "leave 1 world"])


def test_crowd_never_overlaps_and_all_finish_though_some_are_killed(directory: Path, tmp_path: Path) -> None:
    crowd, rounds, suicides, murders = 40, 6, 5, 5
    log = tmp_path / "log"
    log.touch()
    processes = []
    for seed in range(crowd):
        dies_in = seed % rounds if seed < suicides else -1
        numbers = map(str, (seed, rounds, dies_in))
        command = [sys.executable, "-I", "-c", CROWD, LIB, str(directory), str(log), *numbers]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        victims = random.Random(1).sample(processes[suicides:], murders)
        murdered = set()
        for number, victim in enumerate(victims, 1):
            while log.read_bytes().count(b"leave") < number * 15:
                assert any(process.poll() is None for process in processes)
            # Stopped first: what it does last is in the log before its end is.
            victim.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(victim.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                with log.open("a") as stream:
                    stream.write(f"doomed {victim.pid} \n")
                victim.kill()
                murdered.add(victim)
            else:
                victim.returncode = os.waitstatus_to_exitcode(status)
        for process in processes:
            process.wait(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    events = log.read_text().splitlines()
    assert overlaps(events) == []
    assert len(murdered) >= 2, "too few were alive to be killed"
    survivors = [process for process in processes[suicides:] if process not in murdered]
    assert [process.returncode for process in processes[:suicides]] == [-signal.SIGKILL] * suicides
    assert [process.returncode for process in survivors] == [0] * len(survivors)
    for process in survivors:
        assert sum(event.startswith(f"enter {process.pid} ") for event in events) == rounds
    with pathlocks.hold([ALL], 0, directory=str(directory)):
        assert len(tickets(directory)) == 1
    assert tickets(directory) == []


def test_checkers_own_rule_is_the_rule_of_the_locks() -> None:
    for one, other in itertools.product(["world", "world/a", "world/ab", "world/a/x", "other"], repeat=2):
        assert bool(overlaps([f"enter 1 {one}", f"enter 2 {other}"])) is pathlocks.conflicts([one], [other])
