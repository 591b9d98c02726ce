# SPDX-License-Identifier: Apache-2.0
"""The write side of reports: once, durable, also at once from many; the ids that are remembered stay few."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aggregate.cluster import until
from conftest import ROOT
from infocluster.aggregate import intake, refusals
from infocluster.errors import UnavailableError
from infocluster.locks import lockfile
from infocluster.queue.simple import Simple

NOW = 1795384800.0
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from infocluster.aggregate import intake, refusals
taken = 0
for n in range(100):
    taken += intake.put(sys.argv[2], "node1", f"m{n}", b"x", 600, 5.0, False)
    refusals.note(sys.argv[2] + ".refused", "signature", f"ghost{n}", "192.0.2.1", n)
print(taken)
"""


def test_many_at_once_store_each_report_once_and_count_each_refusal(tmp_path: Path) -> None:
    queue = str(tmp_path / "reports")
    program = [sys.executable, "-IS", "-c", PROGRAM, str(ROOT / "lib"), queue]
    running = [subprocess.Popen(program, stdout=subprocess.PIPE) for _ in range(4)]
    told = [int(one.communicate(timeout=60)[0]) for one in running]
    assert sum(told) == 100 and Simple(queue).count() == 100
    found = refusals.read(queue + ".refused")
    assert found.counts == {"signature": 400} and len(found.ghosts) == 100
    assert all(ghost == (4, "192.0.2.1", int(name[5:])) for name, ghost in found.ghosts.items())


def test_ids_are_moved_aside_and_still_known_for_as_long_as_they_can_come_again(tmp_path: Path) -> None:
    queue = str(tmp_path / "reports")
    count = intake.IDS_LIMIT_BYTES // 60 + 10
    assert intake.put(queue, "node1.old", "another node's", b"x", 600, NOW, False)

    def put(number: int, now: float) -> bool:
        return intake.put(queue, "node1", f"{number:060d}", b"x", 600, now, False)

    assert all(put(number, NOW) for number in range(count))
    own = tmp_path / "reports.nodes/node1"
    assert own.with_name("node1~").stat().st_size > intake.IDS_LIMIT_BYTES > own.stat().st_size
    # Those that were moved may still come: they are not moved out of sight by the next ones.
    assert all(put(number, NOW + 10) for number in range(count, 2 * count))
    assert not any(put(number, NOW + 20) for number in range(0, 2 * count, 50))
    assert not intake.put(queue, "node1.old", "another node's", b"x", 600, NOW, False)
    # Later they may go.
    assert put(2 * count, NOW + 2000) and put(2 * count + 1, NOW + 2000)
    assert not put(2 * count, NOW + 2000) and put(0, NOW + 2000)


def test_ids_that_are_moved_while_a_report_waits_keep_it_from_nothing(tmp_path: Path) -> None:
    queue, own = str(tmp_path / "reports"), tmp_path / "reports.nodes/node1"
    assert intake.put(queue, "node1", "before", b"x", 600, NOW, False)
    with own.open("rb+") as held:
        assert lockfile.take(held.fileno(), timeout_s=10)
        program = [sys.executable, "-IS", "-c", PROGRAM, str(ROOT / "lib"), queue]
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
            until(lambda: f"-> FLOCK  ADVISORY  WRITE {waiting.pid} " in Path("/proc/locks").read_text())
            own.rename(own.with_name("node1~"))
            held.close()
            assert waiting.communicate(timeout=60) == (b"100\n", b"")


def test_line_of_an_id_that_was_torn_is_no_id(tmp_path: Path) -> None:
    queue = str(tmp_path / "reports")
    (tmp_path / "reports.nodes").mkdir()
    (tmp_path / "reports.nodes/node1").write_bytes(b"whole\nto")
    assert not intake.put(queue, "node1", "whole", b"x", 600, NOW, True)
    assert intake.put(queue, "node1", "to", b"x", 600, NOW, True)
    assert intake.put(queue, "node1", "rn", b"x", 600, NOW, True)
    assert not intake.put(queue, "node1", "to", b"x", 600, NOW, True)


def test_what_cannot_be_kept_is_not_remembered(tmp_path: Path) -> None:
    queue = tmp_path / "reports"
    queue.write_text("no directory")
    with pytest.raises(UnavailableError):
        intake.put(str(queue), "node1", "m1", b"x", 600, NOW, True)
    os.unlink(queue)
    assert intake.put(str(queue), "node1", "m1", b"x", 600, NOW, True)


def test_ghosts_are_bounded(tmp_path: Path) -> None:
    path = str(tmp_path / "refused")
    for number in range(refusals.GHOSTS_LIMIT + 50):
        refusals.note(path, "unknown", f"ghost{number}", "x; rm\n", 1)
    found = refusals.read(path)
    assert len(found.ghosts) == refusals.GHOSTS_LIMIT and found.counts == {"unknown": refusals.GHOSTS_LIMIT + 50}
    assert set(Path(path).read_text().split("\n")[0].split()) == {"infocluster", "refused", "1"}
