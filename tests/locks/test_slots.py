# SPDX-License-Identifier: Apache-2.0
"""Slots, between real processes: how many are inside, in which order, and what a killed one leaves."""

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infocluster.errors import RefusedError, UnavailableError
from infocluster.locks import slots
from locks.askers import LIB, SlotAsker


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "slots"


@pytest.fixture
def asker(directory: Path) -> Iterator[Callable[..., SlotAsker]]:
    """Start askers for one directory that are gone when the test is."""
    started: list[SlotAsker] = []

    def begin(*user_and_group: int, at: Path = directory) -> SlotAsker:
        started.append(SlotAsker(at, *user_and_group))
        return started[-1]

    yield begin
    for one in started:
        one.dies()
        one.process.communicate()


def allow(directory: Path, count: object) -> None:
    """Say how many slots there are, whole at any moment."""
    new = directory.with_suffix(".new")
    new.write_text(str(count))
    new.rename(directory.with_suffix(".limit"))


def standing(directory: Path) -> list[tuple[int, str]]:
    return [(request.pid, request.state) for request in slots.holders(str(directory))]


def tried(directory: Path, count: int) -> bool:
    """Tell whether one more can get in at once."""
    try:
        with slots.hold(lambda: count, directory=str(directory), timeout_s=0):
            return True
    except UnavailableError:
        return False


def test_as_many_as_there_are_get_in_and_the_next_waits(directory: Path, asker: Callable[..., SlotAsker]) -> None:
    allow(directory, 2)
    first, second = asker().holds(), asker().holds()
    third = asker().asks()
    time_of = r"2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    pattern = rf"waiting for a slot: 2 of 2 in use; \S+@\S+ \(pid {first.pid}\) holds since {time_of}"
    assert re.fullmatch(pattern, third.says())
    fourth = asker().asks()
    assert fourth.says().startswith("waiting for a slot: 2 of 2 in use, 1 waiting before; ")
    pids = [one.pid for one in (first, second, third, fourth)]
    assert standing(directory) == list(zip(pids, ["holds", "holds", "waits", "waits"], strict=True))
    second.leaves()
    assert third.says() == "held"
    assert standing(directory) == [(first.pid, "holds"), (third.pid, "holds"), (fourth.pid, "waits")]


def test_slots_are_given_in_the_order_of_arrival(directory: Path, asker: Callable[..., SlotAsker]) -> None:
    allow(directory, 1)
    inside = asker().holds()
    queue = [asker().waits() for _ in range(5)]
    queue.pop(2).dies()
    for at, following in enumerate(queue):
        inside.leaves() if at % 2 else inside.dies()
        assert following.says() == "held"
        later = [(one.pid, "waits") for one in queue[at + 1 :]]
        assert standing(directory) == [(following.pid, "holds"), *later]
        # A newcomer does not overtake them, free or not.
        assert not tried(directory, 1)
        inside = following


def test_number_that_is_raised_lets_in_those_who_wait(directory: Path, asker: Callable[..., SlotAsker]) -> None:
    allow(directory, 1)
    first = asker().holds()
    queue = [asker().waits() for _ in range(3)]
    allow(directory, 3)
    assert [queue[0].says(), queue[1].says()] == ["held", "held"]
    assert [state for _, state in standing(directory)] == ["holds", "holds", "holds", "waits"]
    first.leaves()
    assert queue[2].says() == "held"


def test_number_that_is_lowered_lets_nobody_in_until_enough_have_left(
    directory: Path, asker: Callable[..., SlotAsker]
) -> None:
    allow(directory, 3)
    inside = [asker().holds() for _ in range(3)]
    waiter = asker().waits()
    allow(directory, 1)
    for left in (2, 1):
        inside.pop(0).leaves()
        # By the time a later one has given up, the waiter has looked more than once.
        late = asker().asks(timeout_s=5 * slots.LOOK_S)
        assert late.says().startswith(f"waiting for a slot: {left} of 1 in use, 1 waiting before; ")
        assert late.says().startswith(f"UnavailableError: cannot get a slot after 0.25 s: {left} of 1 in use, ")
        assert standing(directory) == [*((one.pid, "holds") for one in inside), (waiter.pid, "waits")]
    inside[0].leaves()
    assert waiter.says() == "held"


def test_waiter_keeps_its_place_while_the_number_cannot_be_read(
    directory: Path, asker: Callable[..., SlotAsker]
) -> None:
    allow(directory, 1)
    first = asker().holds()
    waiter = asker().waits()
    allow(directory, "[push")
    first.leaves()
    assert waiter.says() == "held"
    assert asker().asks().says() == "InfoclusterError: cannot read the settings"


def test_time_out_names_who_is_inside_and_leaves_nothing(directory: Path, asker: Callable[..., SlotAsker]) -> None:
    allow(directory, 1)
    holder = asker().holds()
    for timeout_s, waited, lines in ((0, "", 0), (0.02, " after 0.02 s", 1)):
        said: list[str] = []
        words = rf"cannot get a slot{waited}: 1 of 1 in use; \S+ \(pid {holder.pid}\) holds since "
        with (
            pytest.raises(UnavailableError, match=words),
            slots.hold(lambda: 1, directory=str(directory), say=said.append, timeout_s=timeout_s),
        ):
            pass
        assert len(said) == lines
    assert len(list(directory.iterdir())) == 1
    holder.ends()
    with contextlib.suppress(KeyError), slots.hold(lambda: 1, directory=str(directory), timeout_s=0):
        raise KeyError
    assert list(directory.iterdir()) == []


def test_any_of_those_inside_may_make_room(directory: Path, asker: Callable[..., SlotAsker]) -> None:
    """A waiter in the main thread and one in another thread, which has no signals."""
    allow(directory, 3)
    _oldest, middle, newest = (asker().holds() for _ in range(3))
    waiter = asker().waits()
    newest.dies()
    assert waiter.says() == "held"
    entered = threading.Event()

    def wait() -> None:
        with slots.hold(lambda: 3, directory=str(directory), say=lambda line: middle.dies(), timeout_s=60):
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert entered.is_set()


def test_process_that_has_a_slot_is_refused_another(directory: Path) -> None:
    with slots.hold(lambda: 9, directory=str(directory)):
        for _ in range(2):
            with (
                pytest.raises(RefusedError, match="has one already"),
                slots.hold(lambda: 9, directory=str(directory)),
            ):
                pass
        child = os.fork()
        if not child:
            # The slot is its parent's: the child may have its own.
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if tried(directory, 2) and not tried(directory, 1) else 1
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert standing(directory) == [(os.getpid(), "holds")]


def test_ticket_is_what_the_specification_says(directory: Path) -> None:
    before = time.time()
    with slots.hold(lambda: 1, directory=str(directory)):
        first, second = (directory / "0000000000000001.ticket").read_text().splitlines()
    shape = json.loads(first)
    assert list(shape) == ["user", "host", "pid", "since"]
    assert (shape["host"], shape["pid"]) == (os.uname().nodename, os.getpid())
    assert before <= shape["since"] <= json.loads(second)["held_since"] <= time.time()


def test_live_ticket_that_cannot_be_understood_counts(directory: Path) -> None:
    directory.mkdir()
    with (directory / "0000000000000007.ticket").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert standing(directory) == [(0, "waits")]
        assert not tried(directory, 1)
        assert tried(directory, 2)
    assert tried(directory, 1)


@pytest.mark.root
def test_users_of_one_group_share_the_slots(asker: Callable[..., SlotAsker], open_dir: Path) -> None:
    os.chown(open_dir, 0, 60010)
    open_dir.chmod(0o2775)
    at = open_dir / "slots"
    allow(at, 1)
    first = asker(60001, 60010, at=at).holds()
    second = asker(60002, 60010, at=at).waits()
    assert [request.user for request in slots.holders(str(at))] == ["60001", "60002"]
    first.dies()
    assert second.says() == "held"
    third = asker(60003, 60010, at=at).waits()
    assert [path.stat().st_uid for path in sorted(at.iterdir())] == [60002, 60003]
    second.leaves()
    assert third.says() == "held"
    assert asker(60004, 60011, at=at).asks().says() == f"UnavailableError: cannot open {at}: Permission denied"


# All at once

CROWD = """
import os, random, sys
sys.path.insert(0, sys.argv[1])
from infocluster.locks import slots
seed, rounds, dies_in, count = map(int, sys.argv[4:])
choice = random.Random(seed)
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND)

def tell(word):
    os.write(log, f"{word} {os.getpid()}\\n".encode())

sys.stdin.readline()
for turn in range(rounds):
    timeout_s = choice.choice((None, 120))
    with slots.hold(lambda: count, directory=sys.argv[2], say=lambda line: None, timeout_s=timeout_s):
        tell("enter")
        if turn == dies_in:
            tell("doomed")
            os.kill(os.getpid(), 9)
        for _ in range(choice.randrange(20)):
            os.sched_yield()
        tell("leave")
tell("done")
"""


def most_inside(events: list[str]) -> int:
    """Return how many were inside at once, at most, as a log has it."""
    inside: set[str] = set()
    most = 0
    for event in events:
        word, pid = event.split(" ")
        if word == "enter":
            assert pid not in inside
            inside.add(pid)
        elif word == "leave":
            inside.remove(pid)
        else:
            inside.discard(pid)
        most = max(most, len(inside))
    return most


def test_crowd_is_never_more_than_so_many_though_some_are_killed(directory: Path, tmp_path: Path) -> None:
    crowd, rounds, suicides, murders, count = 20, 5, 4, 4, 3
    log = tmp_path / "log"
    log.touch()
    processes = []
    for seed in range(crowd):
        dies_in = seed % rounds if seed < suicides else -1
        numbers = map(str, (seed, rounds, dies_in, count))
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
            while log.read_bytes().count(b"leave") < number * 8:
                assert any(process.poll() is None for process in processes)
            # Stopped first: what it does last is in the log before its end is.
            victim.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(victim.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                with log.open("a") as stream:
                    stream.write(f"doomed {victim.pid}\n")
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
    assert most_inside(events) == count
    assert murdered
    survivors = [process for process in processes[suicides:] if process not in murdered]
    assert [process.returncode for process in processes[:suicides]] == [-signal.SIGKILL] * suicides
    assert [process.returncode for process in survivors] == [0] * len(survivors)
    for process in survivors:
        assert events.count(f"enter {process.pid}") == rounds
    assert tried(directory, 1)
    assert list(directory.iterdir()) == []


def test_the_checker_of_the_log_counts() -> None:
    assert most_inside(["enter 1", "enter 2", "leave 1", "enter 3", "doomed 3", "enter 4"]) == 2
