# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the controller before each step that the disk could see: each report takes effect once all the same."""

import json
import os
from pathlib import Path

import pytest

import steps
from aggregate.house import LEDGER, House, files_report, report
from conftest import ROOT
from infocluster.aggregate import wire

CONF = """[aggregate]
aggregators = ["Ledger", "FileProcessor"]
module_dirs = ["modules"]
directory = "world/nodes"
"""
NUMBERS = range(1, 6)


def once(site: House, n: int) -> int:
    """Run the controller, killed before its step n, and return how many steps it took (n = -1), or -9."""
    environment = {"PATH": os.defpath, "INFOCLUSTER_CONF": str(site.root / "etc/infocluster.toml")}
    done, ended = steps.run(n, [str(ROOT / "batch/controller"), "-once"], environment)
    assert done.returncode in (0, -9) and (n >= 0 or not done.stderr), done.stderr
    return ended


def play(root: Path, n: int) -> int:
    """Hand in reports, have the controller killed once, let it run, and look at what came of them."""
    root.mkdir()
    site = House(root, CONF)
    site.module(LEDGER)
    (root / "var/www/world").mkdir(parents=True)
    for number in NUMBERS:
        message = report("Number", str(number).encode(), f"m{number}", period="60")
        site.put(message, "web1")
        site.put(message, "web2")  # the same one, by another server
    site.put(files_report("f1", a_txt=b"first"))
    site.put(files_report("f2", a_txt=b"second", b_txt=b"other"))
    site.queue().add(wire.content(report("Number", b"1", "x"))[:20])
    ended = once(site, n)
    assert once(site, -2) > 0
    for name in ("a.txt", "b.txt"):
        (kept,) = (root / "var/state/files").rglob(name)
        assert kept.read_bytes() == (b"second" if name == "a.txt" else b"other")
    assert not [path for path in root.rglob(".~*") if ended != -9]
    with site.controller() as control:
        ledger = json.loads(control.answer({"type": "Ledger"})[0])  # type: ignore[index]
        assert ledger == {"total": sum(NUMBERS), "reports": len(NUMBERS)}
        assert control.store.counts() == {"taken": len(NUMBERS) + 2, "duplicate": len(NUMBERS), "malformed": 1}
        updates = control.store.updates()
        revisions = [one.revision for one in updates]
        assert revisions == list(range(1, len(revisions) + 1))
        assert json.loads([one for one in updates if one.type == "Ledger"][-1].json) == ledger
    status = json.loads((root / "var/www/world/nodes/status.json").read_text())
    assert status["revision"] == revisions[-1] and status["counts"]["taken"] == len(NUMBERS) + 2
    return ended


@pytest.mark.slow
def test_kill_at_each_step_loses_no_report_and_counts_none_twice(tmp_path: Path) -> None:
    # The steps of two runs may differ by what a clock decides, so the end is where nothing was left to kill.
    n = 0
    while play(tmp_path / str(n), n) == -9:
        n += 1
    assert n > 20
