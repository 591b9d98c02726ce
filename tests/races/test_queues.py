# SPDX-License-Identifier: Apache-2.0
"""Adders, consumers and purges of one queue at once, and kill -9 at any time."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from dirq.QueueSimple import QueueSimple

import steps
from conftest import ROOT, Site
from infocluster.queue.normal import Normal
from infocluster.queue.simple import Simple
from races import queues

PROGRAM = [sys.executable, queues.__file__]
LIB = Path(__file__).resolve().parents[2] / "lib"


def start(*arguments: object) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(LIB)}
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, env=environment)


def adding(top: str, adders: int, count: int, *same: object, action: str = "add") -> Counter[bytes]:
    processes = [start(action, top, count, f"adder{label}", *same) for label in range(adders)]
    said = b"".join(process.communicate()[0] for process in processes)
    assert all(process.returncode == 0 for process in processes)
    names = [line.split()[0] for line in said.splitlines()]
    assert len(set(names)) == len(names) == adders * count
    return Counter(line.split(b" ", 1)[1] for line in said.splitlines())


def all_contents(top: str) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    for name in Simple(top):
        text = Path(f"{top}/{name}").read_bytes()
        assert queues.is_whole(text), name
        found[text.splitlines()[0]] += 1
    return found


@pytest.mark.parametrize(("adders", "count"), [(4, 300), pytest.param(8, 6000, marks=pytest.mark.slow)])
def test_adders_with_one_digit_and_a_clock_that_stands_lose_and_mix_nothing(
    tmp_path: Path, adders: int, count: int
) -> None:
    top = str(tmp_path / "queue")
    added = adding(top, adders, count, 7, 1795384800.5)
    assert len(added) == adders * count
    assert all_contents(top) == added
    assert QueueSimple(top).count() == adders * count
    assert not [name for _, _, names in os.walk(top) for name in names if "." in name]


# Every second one purges. A lock of an old element is old until it has its own time: only our purge looks twice.
FRESH = ("ours", "ours", "ours", "ours", "dirq", "dirq")
OLD = ("ours", "ours", "dirq", "ours", "dirq", "ours")
NORMAL = ("ours-normal", "ours-normal", "dirq-normal", "ours-normal")


@pytest.mark.parametrize(
    ("adders", "count", "kinds", "is_old"),
    [
        (2, 1000, FRESH, False),
        (2, 1000, OLD, True),
        (2, 500, NORMAL, False),
        pytest.param(4, 5000, FRESH, False, marks=pytest.mark.slow),
        pytest.param(4, 5000, OLD, True, marks=pytest.mark.slow),
        pytest.param(4, 2500, NORMAL, False, marks=pytest.mark.slow),
    ],
)
def test_consumers_of_both_libraries_deliver_each_element_once_while_purges_run(
    tmp_path: Path, adders: int, count: int, kinds: tuple[str, ...], is_old: bool
) -> None:
    top = str(tmp_path / "queue")
    is_normal = kinds == NORMAL
    added = adding(top, adders, count, action="add-normal" if is_normal else "add")
    for name in Simple(top) if is_old else ():
        os.utime(f"{top}/{name}", (1, 1))
    logs = [tmp_path / f"log{place}" for place in range(len(kinds))]
    consumers = [
        start("consume", top, kind, log, *["purges"] * (place % 2))
        for place, (kind, log) in enumerate(zip(kinds, logs, strict=True))
    ]
    for consumer in consumers:
        consumer.communicate()
        assert consumer.returncode == 0
    delivered = Counter(line for log in logs for line in log.read_bytes().splitlines())
    assert delivered == added
    assert (Normal(top) if is_normal else Simple(top)).count() == 0


@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_adders_leave_nothing_partial_and_lose_nothing_they_named(tmp_path: Path, rounds: int) -> None:
    top = str(tmp_path / "queue")
    chance = random.Random(rounds)
    named: Counter[bytes] = Counter()
    for turn in range(rounds):
        adder = start("add", top, 10**6, f"adder{turn}")
        assert adder.stdout
        first = adder.stdout.readline()
        time.sleep(chance.random() / 20)
        adder.kill()
        said = first + adder.communicate()[0]
        named.update(line.split(b" ", 1)[1] for line in said.splitlines() if line.count(b" ") == 2)
    found = all_contents(top)
    # The last line that was said may be cut, and its element is there without it.
    assert not named - found
    assert (found - named).total() <= 2 * rounds
    assert max(found.values()) == 1
    for temporary in Path(top).rglob("*.tmp"):
        os.utime(temporary, (1, 1))
    Simple(top).purge()
    assert not list(Path(top).rglob("*.tmp"))
    assert all_contents(top) == found


@pytest.mark.parametrize(("rounds", "count"), [(6, 600), pytest.param(40, 4000, marks=pytest.mark.slow)])
def test_what_a_killed_consumer_held_comes_back_and_nothing_is_lost(tmp_path: Path, rounds: int, count: int) -> None:
    top, log = str(tmp_path / "queue"), tmp_path / "log"
    added = adding(top, 1, count)
    log.touch()
    chance = random.Random(count)
    for _ in range(rounds):
        before = log.stat().st_size
        consumers = [start("consume", top, "ours", log) for _ in range(2)]
        while log.stat().st_size == before and any(consumer.poll() is None for consumer in consumers):
            time.sleep(0.001)
        time.sleep(chance.random() / 50)
        for consumer in consumers:
            consumer.kill()
            consumer.communicate()
    for lock in Path(top).rglob("*.lck"):
        assert not Simple(top).lock(str(lock.relative_to(top)).removesuffix(".lck"))
        os.utime(lock, (1, 1))
    Simple(top).purge()
    last = start("consume", top, "ours", log)
    last.communicate()
    delivered = Counter(log.read_bytes().splitlines())
    assert last.returncode == 0
    assert delivered.keys() ^ added.keys() == set()
    # Each kill may let one element a consumer be delivered again.
    assert (delivered - added).total() <= 2 * rounds
    assert not list(Path(top).rglob("*.*"))


def test_adder_that_is_killed_before_any_of_its_steps_leaves_what_a_purge_takes(site: Site, tmp_path: Path) -> None:
    """Durable, and with a umask, for which directories are made under another name first."""
    (tmp_path / "file").write_bytes(queues.content("file", 1))
    top = f"{tmp_path}/queue"
    program = [str(ROOT / "batch/queue"), "add", "-umask", "007", top, f"{tmp_path}/file"]
    _, count = steps.run(-1, program, site.environment())
    assert count > 10
    for n in range(count):
        shutil.rmtree(top, ignore_errors=True)
        done, status = steps.run(n, program, site.environment())
        assert status == -9
        assert all_contents(top).total() <= 1
        assert all_contents(top).total() == 1 or not done.stdout
        for directory, _, names in os.walk(top, topdown=False):
            for path in (directory, *(f"{directory}/{name}" for name in names if name.endswith(".tmp"))):
                os.utime(path, (1, 1))
        Simple(top).purge()
        assert not [path for path in Path(top).rglob("*") if "." in path.name]


def test_adder_and_consumer_of_a_normal_queue_killed_before_any_of_their_steps_lose_nothing(tmp_path: Path) -> None:
    top, log = tmp_path / "queue", tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": str(LIB), "PYTHONDONTWRITEBYTECODE": "1"}
    add = [queues.__file__, "add-normal", str(top), "1", "adder"]
    consume = [queues.__file__, "consume", str(top), "ours-normal", str(log)]
    for program in (add, consume):
        count, n = 0, -1
        while n < count:
            shutil.rmtree(top, ignore_errors=True)
            log.write_bytes(b"")
            if program is consume:
                start("add-normal", top, 1, "adder").communicate()
            done, status = steps.run(n, program, environment)
            n += 1
            if n == 0:
                count = status
                assert count > 2
                continue
            assert status == -9
            for path in (*top.glob("*/*"), *top.glob(".~*")):
                os.utime(path, (1, 1))
            Normal(str(top)).purge()
            assert not [*top.glob("0*/*/locked"), *top.glob("[to]*/*"), *top.glob(".~*")]
            waiting = Normal(str(top)).count()
            assert waiting <= 1 and (waiting or log.stat().st_size or not done.stdout)
            last = start("consume", top, "ours-normal", log)
            last.communicate()
            delivered = set(log.read_bytes().splitlines())
            assert last.returncode == 0 and delivered <= {b"adder 0"}
            assert delivered or program is add
