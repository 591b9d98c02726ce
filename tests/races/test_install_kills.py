# SPDX-License-Identifier: Apache-2.0
"""kill -9 of installs, at random moments and before each step: files are whole, the next run or an undo is right."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import steps
from conftest import ROOT, Site
from infocluster import files

# 200 in all, on two cores.
PARTS, ROUNDS = 2, 100
NAMES = [f"{directory}/{name}" for directory in ("a", "b", "b/c", "d") for name in ("w", "x", "y", "z", "n")]
NAMES += [f"many/page{number}" for number in range(120)]
# Over what one write, or one chunk of a copy, takes.
LARGEST_BYTES = 3 << 20


def content(path: str, chance: random.Random) -> bytes:
    """Return a content that tells by itself whether it is all there."""
    size = chance.choice([0, 10, 5000, 70_000]) if chance.random() > 0.01 else LARGEST_BYTES
    return f"{path} {size}\n".encode() + b"%d" % chance.randrange(10) * size


def is_whole(path: str, found: bytes) -> bool:
    head, _, rest = found.partition(b"\n")
    name, _, size = head.decode().rpartition(" ")
    return name == path and len(rest) == int(size) and len(set(rest)) <= 1


def change(root: Path, chance: random.Random) -> None:
    """Make some files new, some of them gone, and some another kind of thing."""
    for path in chance.sample(NAMES, 40):
        place = root / path
        for above in reversed(place.relative_to(root).parents[:-1]):
            if (root / above).is_symlink() or (root / above).is_file():
                (root / above).unlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.is_dir():
            shutil.rmtree(place)
        kind = chance.random()
        if kind < 0.1:
            place.symlink_to(f"http://host/{chance.randrange(1000)}")
        elif kind < 0.2:
            place.mkdir()
            (place / "in").write_bytes(content(f"{path}/in", chance))
        elif kind < 0.85:
            place.write_bytes(content(path, chance))
            place.chmod(chance.choice([0o664, 0o775]))
    if chance.random() < 0.2:
        where = root / chance.choice(["b/c", "d", "a"])
        if where.is_dir() and not where.is_symlink():
            shutil.rmtree(where)
            where.write_bytes(content(str(where.relative_to(root)), chance))


def read(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for here, below, plain in os.walk(root):
        for name in (*below, *plain):
            path = os.path.join(here, name)
            status = os.lstat(path)
            key = os.path.relpath(path, root)
            if stat.S_ISLNK(status.st_mode):
                found[key] = os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                found[key] = None
            else:
                found[key] = (status.st_mode, status.st_mtime_ns, Path(path).read_bytes())
    return found


class Reader(threading.Thread):
    """Reads production all the time, as a web server would; ``halves`` are what it should not have seen."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.halves: list[str] = []
        self.count = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.is_set():
            for here, _, plain in os.walk(self.root):
                for name in plain:
                    if not files.is_temporary(name) and not any(map(files.is_temporary, here.split("/"))):
                        self.look(os.path.join(here, name))

    def look(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # gone since, or a link
            return
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a directory has taken its place
            os.close(fd)
            return
        with open(fd, "rb") as stream:
            found = stream.read()
        self.count += 1
        if not is_whole(os.path.relpath(path, self.root), found):
            self.halves.append(f"{path}: {len(found)} bytes")


def start(site: Site) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "batch/wwwdinst"), "world"],
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen[str], chance: random.Random, longest_s: float) -> None:
    """Kill an install at a random moment, mostly while it is at work: to start and to look takes it longer."""
    assert process.stdout is not None
    if chance.random() < 0.3:
        time.sleep(chance.random() * longest_s)
    else:
        # It tells of each thing when that is done.
        for _ in range(chance.randrange(1, 30)):
            process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_install_that_is_killed_shows_whole_files_and_is_made_right_by_the_next(site: Site, part: int) -> None:
    seed = time.time_ns()
    print(f"part {part}, seed {seed}")
    chance = random.Random(seed)
    development, production = site.root / "var/wwwdev/world", site.production / "world"
    shutil.rmtree(development / "survey")
    for path in NAMES:
        (development / path).parent.mkdir(parents=True, exist_ok=True)
        (development / path).write_bytes(content(path, chance))
    # What a job has published stays, whatever is killed.
    (development / "night").mkdir()
    (development / "night/.wwwinstrc").write_text("data\n")
    assert site.batch("wwwdinst", "world").returncode == 0
    (production / "night/data").write_bytes(b"night/data 2\n00")
    change(development, chance)
    began = time.monotonic()
    assert site.batch("wwwdinst", "world").returncode == 0
    longest_s = time.monotonic() - began
    reader = Reader(production)
    reader.start()
    killed = midway = number = 0
    try:
        while killed < ROUNDS:
            number += 1
            change(development, chance)
            before = read(production)
            with start(site) as process:
                kill(process, chance, longest_s)
            killed += process.returncode == -signal.SIGKILL
            left = read(production)
            again = site.batch("wwwdinst", "world")
            assert again.returncode == 0, (number, again.stdout, again.stderr)
            after = read(production)
            midway += process.returncode != 0 and before != left != after
            expected = read(development)
            del expected["night/.wwwinstrc"]
            assert after.pop("night/data")[2] == b"night/data 2\n00"  # type: ignore[index]
            assert after == expected, number
            assert not [path for path in after if ".~" in path]
    finally:
        reader.is_over.set()
        reader.join()
    assert not reader.halves
    print(f"{killed} of {number} killed, {midway} with part of the work done; {reader.count} files read meanwhile")
    assert midway > ROUNDS / 4 and reader.count > ROUNDS
    # Nothing of a killed run stays anywhere else.
    assert site.batch("locks").returncode == 0
    assert len(list((site.state / "install/undo").iterdir())) <= 50
    assert site.batch("wwwdinst", "world").stdout == "wwwdinst: world: nothing to do\n"
    assert site.batch("wwwdinst", "-log").returncode == 0


def make(root: Path, tree: dict[str, str]) -> None:
    """Make a tree with files alone, but for what begins with "-> ", which is a link."""
    shutil.rmtree(root, ignore_errors=True)
    for path, text in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            (root / path).symlink_to(text[3:])
        else:
            (root / path).write_text(text)
            (root / path).chmod(0o664)
    for here, _, _ in os.walk(root):
        os.chmod(here, 0o775)


@pytest.mark.slow
def test_install_that_is_killed_before_any_step_is_undone_and_so_is_an_undo_asked_for_again(site: Site) -> None:
    development, production, saved = site.root / "var/wwwdev/world", site.production / "world", site.root / "saved"
    make(saved, {"x": "1", "d/in/y": "y", "f": "a file", "l": "-> http://host/", "gone/z": "z"})
    make(development, {"x": "two", "d": "now a file", "f/in/y": "now a directory", "l": "-> x", "new/n": "n"})
    before, program = read(saved), [str(ROOT / "batch/wwwdinst")]
    for command in ("world", "-undo"):
        for n in range(1000):
            shutil.rmtree(production, ignore_errors=True)
            shutil.copytree(saved, production, symlinks=True)
            shutil.rmtree(site.state, ignore_errors=True)
            if command == "-undo":
                assert site.batch("wwwdinst", "world").returncode == 0
            _, ended = steps.run(n, [*program, command], site.environment())
            if ended >= 0:
                break
            done = site.batch("wwwdinst", "-undo")
            # Nothing is on record before anything is changed, nor when all is put back.
            assert done.returncode in (0, 77), (command, n, done.stdout, done.stderr)
            assert read(production) == before, (command, n, done.stdout, done.stderr)
        assert n > 30
