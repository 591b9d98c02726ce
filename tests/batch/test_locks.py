# SPDX-License-Identifier: Apache-2.0
"""The program locks, run as a person and as a program run it."""

import json
import os
import time
from collections.abc import Callable, Iterator

import pytest

from conftest import Site
from locks.askers import Asker, SlotAsker


@pytest.fixture
def asker(site: Site) -> Iterator[Callable[[], Asker]]:
    started: list[Asker] = []

    def begin() -> Asker:
        started.append(Asker(site.state / "pathlocks"))
        return started[-1]

    yield begin
    for one in started:
        one.dies()
        one.process.communicate()


def test_nobody_is_said_so_and_is_no_failure(site: Site) -> None:
    done = site.batch("locks")
    assert (done.returncode, done.stdout, done.stderr) == (0, "locks: nobody holds a path, nobody waits\n", "")
    done = site.batch("locks", "-json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert list(site.state.iterdir()) == []


def test_holders_and_waiters_are_listed_in_columns(site: Site, asker: Callable[[], Asker]) -> None:
    holder = asker().holds("world/survey", "world/a page", "world/b", "world/c", "world/d")
    waiter = asker().waits("world")
    last = asker().waits("world/b", "world/survey/index.html")
    done = site.batch("locks")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows, summary = done.stdout.splitlines()
    assert summary == "locks: 1 holding, 2 waiting"
    starts = [head.index(name) for name in ("STATE", "USER", "HOST", "PID", "SINCE", "WAITS FOR", "PATHS")]
    columns = [
        [row[start:end].rstrip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for row in rows
    ]
    assert [row[0] for row in columns] == ["holds", "waits", "waits"]
    assert {row[2] for row in columns} == {os.uname().nodename}
    assert [row[3] for row in columns] == [str(one.pid) for one in (holder, waiter, last)]
    assert all(time.strptime(row[4], "%Y-%m-%d %H:%M:%S") for row in columns)
    assert [row[5] for row in columns] == ["-", f"pid {holder.pid}", f"pid {holder.pid}, pid {waiter.pid}"]
    assert [row[6] for row in columns] == [
        "world/a page, world/b, world/c and 2 more",
        "world",
        "world/b, world/survey/index.html",
    ]


def test_json_has_everything_and_nothing_else(site: Site, asker: Callable[[], Asker]) -> None:
    before = time.time()
    holder = asker().holds("world/survey", "world/a")
    waiter = asker().waits("")
    done = site.batch("locks", "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    first, second = json.loads(done.stdout)
    assert (first["state"], first["pid"], first["paths"], first["waits_for"]) == (
        "holds",
        holder.pid,
        ["world/a", "world/survey"],
        [],
    )
    assert (second["state"], second["pid"], second["paths"]) == ("waits", waiter.pid, [""])
    assert second["waits_for"] == [first["number"]]
    assert first["host"] == second["host"] == os.uname().nodename
    assert before <= first["since"] <= second["since"] <= time.time()


def test_slots_are_listed_behind_the_paths(site: Site, asker: Callable[[], Asker]) -> None:
    (site.state / "slots.limit").write_text("2")
    site.configure("[push]\nslots = 2\n")
    pushes = []
    try:
        for _ in range(2):
            pushes.append(SlotAsker(site.state / "slots"))
            pushes[-1].holds()
        pushes.append(SlotAsker(site.state / "slots"))
        pushes[-1].waits()
        one, two, three = (push.pid for push in pushes)
        done = site.batch("locks")
        assert done.stdout.splitlines()[-1] == (
            "locks: nobody holds a path, nobody waits; 2 of 2 slots in use, 1 waiting"
        )
        asker().holds("world")
        done = site.batch("locks")
        _, *rows, summary = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        assert summary == "locks: 1 holding, 0 waiting; 2 of 2 slots in use, 1 waiting"
        assert [row.split()[0] for row in rows] == ["holds", "holds", "holds", "waits"]
        assert [row.endswith("(a slot)") for row in rows] == [False, True, True, True]
        assert f"  pid {one} or pid {two}  " in rows[-1]
        paths, first, _, last = json.loads(site.batch("locks", "-json").stdout)
        assert [shape["what"] for shape in (paths, first, last)] == ["paths", "slot", "slot"]
        assert (first["state"], first["pid"], first["waits_for"]) == ("holds", one, [])
        assert first["since"] <= first["held_since"] <= time.time()
        assert (last["state"], last["pid"], last["waits_for"], last["held_since"]) == ("waits", three, [1, 2], None)
    finally:
        for push in pushes:
            push.dies()
            push.process.communicate()


def test_looking_takes_nothing_and_disturbs_nobody(site: Site, asker: Callable[[], Asker]) -> None:
    holder = asker().holds("world")
    waiter = asker().waits("world/a")
    asker().holds("other").dies()
    tickets = sorted(path.name for path in (site.state / "pathlocks").iterdir())
    for _ in range(3):
        assert site.batch("locks").stdout.splitlines()[-1] == "locks: 1 holding, 1 waiting"
    assert sorted(path.name for path in (site.state / "pathlocks").iterdir()) == tickets
    holder.leaves()
    assert waiter.says() == "held"


def test_tickets_that_cannot_be_read_are_told(site: Site) -> None:
    (site.state / "pathlocks").write_text("not a directory")
    done = site.batch("locks")
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == f"locks: cannot read {site.state}/pathlocks: Not a directory\n"


def test_wrong_arguments_are_answered_with_the_usage(site: Site) -> None:
    done = site.batch("locks", "world")
    assert done.returncode == 64
    assert "Usage: locks [-json]" in done.stderr
    assert "Usage: locks [-json]" in site.batch("locks", "-help").stdout
