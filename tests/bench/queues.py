# SPDX-License-Identifier: Apache-2.0
"""Queue: adds and consumption on tmpfs and disk, beside python-dirq and a bare loop of the same system calls.

Every number is a ratio of medians of rounds in which the alternatives took turns. One process is measured by the time
it had on a processor, as others share the machine; several at once and durable adds by the clock on the wall.
"""

import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dirq.QueueSimple import QueueSimple

from infocluster.queue.simple import Simple

BODY = b"Site: EXAMPLE\n" * 73
ELEMENTS, ROUNDS = 8000, 9
SHARED_ELEMENTS, SHARED_ROUNDS = 20000, 5
DURABLE, DURABLE_ROUNDS = 300, 5
IMAGE_BYTES = 4 << 30


def add_ours(top: str, count: int, durable: bool = False) -> None:
    queue = Simple(top, durable=durable)
    for _ in range(count):
        queue.add(BODY)


def add_dirq(top: str, count: int) -> None:
    queue = QueueSimple(top)
    for _ in range(count):
        queue.add(BODY)


def add_bare(top: str, count: int, durable: bool = False) -> None:
    directory = f"{top}/6b0365e0"
    os.makedirs(directory, exist_ok=True)
    for number in range(count):
        element = f"{directory}/{number:014x}"
        temporary = element + ".tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.write(fd, BODY)
        if durable:
            os.fsync(fd)
        os.close(fd)
        os.link(temporary, element)
        os.unlink(temporary)
        if durable:
            fd = os.open(directory, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def consume_ours(top: str) -> int:
    queue, done = Simple(top), 0
    for name in queue.locked():
        if queue.get(name) is not None and queue.remove(name):
            done += 1
    return done


def consume_dirq(top: str) -> int:
    queue, done = QueueSimple(top), 0
    for name in queue:
        if queue.lock(name):
            queue.get(name)
            queue.remove(name)
            done += 1
    return done


def consume_bare(top: str) -> int:
    done = 0
    for directory in sorted(os.listdir(top)):
        for name in sorted(os.listdir(f"{top}/{directory}")):
            element = f"{top}/{directory}/{name}"
            lock = element + ".lck"
            os.link(element, lock)
            os.utime(element, None)
            fd = os.open(lock, os.O_RDONLY)
            os.read(fd, 1 << 16)
            os.close(fd)
            os.unlink(element)
            os.unlink(lock)
            done += 1
    return done


ADD: dict[str, Callable[[str, int], None]] = {"bare": add_bare, "dirq": add_dirq, "ours": add_ours}
CONSUME: dict[str, Callable[[str], int]] = {"bare": consume_bare, "dirq": consume_dirq, "ours": consume_ours}


def alone(place: str) -> None:
    """One process adds, and one consumes."""
    added: dict[str, list[float]] = {name: [] for name in ADD}
    consumed: dict[str, list[float]] = {name: [] for name in ADD}
    tops: dict[str, list[str]] = {name: [] for name in ADD}
    # All are added before one is consumed: some file systems are slow to use again what was just removed.
    for turn in range(ROUNDS):
        for name in [*ADD][turn % 3 :] + [*ADD][: turn % 3]:
            tops[name].append(tempfile.mkdtemp(dir=place))
            began = time.process_time()
            ADD[name](tops[name][-1], ELEMENTS)
            added[name].append(time.process_time() - began)
    for turn in range(ROUNDS):
        for name in [*ADD][turn % 3 :] + [*ADD][: turn % 3]:
            began = time.process_time()
            assert CONSUME[name](tops[name][turn]) == ELEMENTS
            consumed[name].append(time.process_time() - began)
    for what, times in (("add", added), ("lock, get, remove", consumed)):
        median = {name: statistics.median(values) for name, values in times.items()}
        rates = "   ".join(f"{name} {ELEMENTS / value:7.0f}/s" for name, value in median.items())
        against = " ".join(f"{median[name] / median['ours']:.2f} of {name}" for name in ("dirq", "bare"))
        print(f"{what:20} {rates}   ours is {against}", flush=True)


def _consumer(name: str, top: str, gate: object, results: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    results.put(CONSUME[name](top))  # type: ignore[attr-defined]


def together(place: str) -> None:
    """One consumer, and four, of the same queue."""
    fork = multiprocessing.get_context("fork")
    times: dict[tuple[str, int], list[float]] = {(name, n): [] for name in ("dirq", "ours") for n in (1, 4)}
    for _ in range(SHARED_ROUNDS):
        for name, n in [*times]:
            top = tempfile.mkdtemp(dir=place)
            add_ours(top, SHARED_ELEMENTS)
            gate, results = fork.Barrier(n + 1), fork.Queue()
            consumers = [fork.Process(target=_consumer, args=(name, top, gate, results)) for _ in range(n)]
            for consumer in consumers:
                consumer.start()
            gate.wait()
            began = time.perf_counter()
            done = sum(results.get() for _ in consumers)
            times[name, n].append(time.perf_counter() - began)
            for consumer in consumers:
                consumer.join()
            assert done == SHARED_ELEMENTS
            shutil.rmtree(top)
    for name in ("dirq", "ours"):
        one, four = (statistics.median(times[name, n]) for n in (1, 4))
        print(
            f"{name:5} one consumer {SHARED_ELEMENTS / one:7.0f}/s   four {SHARED_ELEMENTS / four:7.0f}/s   "
            f"four are {one / four:.2f} of one",
            flush=True,
        )


def durable(place: str) -> None:
    """Adds that are on the disk before they return."""
    alternatives = {"bare": add_bare, "ours": add_ours}
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(DURABLE_ROUNDS):
        for name, add in alternatives.items():
            top = tempfile.mkdtemp(dir=place)
            began = time.perf_counter()
            add(top, DURABLE, True)
            times[name].append(time.perf_counter() - began)
            shutil.rmtree(top)
    bare, ours = (statistics.median(times[name]) for name in ("bare", "ours"))
    rates = f"bare {DURABLE / bare:7.0f}/s   ours {DURABLE / ours:7.0f}/s"
    print(f"{'durable add':20} {rates}   ours is {bare / ours:.2f} of bare", flush=True)


@contextmanager
def fresh(directory: str) -> Iterator[str]:
    """Give a directory on a file system made for this run, where there are rights and a program to make one.

    What was deleted on a disk a moment ago costs the next adds there up to ten times their time, whoever makes them.
    """
    image, place = f"{directory}/image", f"{directory}/place"
    Path(place).mkdir()
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        print("on the disk as it is: rates swing with what was deleted there before")
        yield place
        return
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        print(f"tmpfs (/dev/shm), {ELEMENTS} elements of {len(BODY)} bytes")
        alone(place)
        together(place)
    disk = os.environ.get("BENCH_DIR", tempfile.gettempdir())
    with tempfile.TemporaryDirectory(dir=disk) as directory, fresh(directory) as place:
        print(f"disk ({disk}), {ELEMENTS} elements of {len(BODY)} bytes")
        alone(place)
        durable(place)


if __name__ == "__main__":
    main()
