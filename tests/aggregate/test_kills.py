# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the controller at random moments: every valid report takes effect once, every other one is counted."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from aggregate import feed
from aggregate.cluster import until
from aggregate.house import LEDGER, House
from conftest import ROOT
from infocluster.aggregate import refusals

KILLS = 50
REPORTS = 20000
CONF = """[gather]
durable = false
[aggregate]
aggregators = ["Ledger", "Sum"]
module_dirs = ["modules"]
directory = "world/nodes"
look_s = 0.05
update_period_s = 0.2
"""
# The one keeps at every report, the other once for many; both begin from what was kept.
MODULE = f"""{LEDGER}

class Sum(Aggregator):
    requesttypes = "Sum",

    def __init__(self):
        self.total = self.restoreData(0)

    def process_REPORT_Number(self, msg):
        self.total += int(msg.data)

    def keep(self):
        self.saveData(self.total)

    def process_GET_Sum(self, msg):
        return self.total
"""


def counted(root: Path) -> int:
    """Return how many reports the controller has counted, whatever came of them."""
    database = f"file:{root}/var/state/aggregate/aggregate.sqlite?mode=ro"
    try:
        with closing(sqlite3.connect(database, uri=True)) as db:
            return int(db.execute("SELECT COALESCE(SUM(n), 0) FROM counts").fetchone()[0])
    except sqlite3.OperationalError:  # it is being made
        return 0


@pytest.mark.slow
def test_every_valid_report_takes_effect_once_whatever_is_killed_when(tmp_path: Path) -> None:
    site = House(tmp_path, CONF)
    site.module(MODULE)
    (tmp_path / "var/www/world").mkdir(parents=True)
    for server in ("web1", "web2"):
        (tmp_path / "var/gather" / server / "www").mkdir(parents=True)
    secrets = tmp_path / "etc/secrets/nodes"
    secrets.mkdir(parents=True)
    for number in range(feed.NODES):
        (secrets / f"node{number}").write_bytes(feed.KEY + f"node{number}".encode())
    environment = {
        "PATH": os.defpath,
        "INFOCLUSTER_CONF": str(tmp_path / "etc/infocluster.toml"),
        "PYTHONPATH": f"{ROOT}/lib:{ROOT}/tests",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    seed = os.environ.get("SEED", str(time.time_ns()))
    print("SEED", seed)
    chance = random.Random(seed)
    feeder = [sys.executable, feed.__file__, str(tmp_path), seed, str(REPORTS), str(KILLS)]
    controller = [sys.executable, str(ROOT / "batch/controller")]
    with subprocess.Popen(feeder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as feeding:
        assert feeding.stdin
        for _ in range(KILLS):
            # Some 360 come into the queues in each round: so many are taken before the kill, however long it takes.
            wanted = counted(tmp_path) + chance.randrange(1, 300)
            feeding.stdin.write(b"\n")
            feeding.stdin.flush()
            with subprocess.Popen([*controller, "-serve"], env=environment, stderr=subprocess.PIPE) as process:
                # It is at work when it is killed: what was handed in has begun to take effect, and more comes.
                until(lambda process=process, n=wanted: process.poll() is not None or counted(tmp_path) >= n)
                time.sleep(chance.uniform(0, 0.4))
                assert process.poll() is None, process.stderr and process.stderr.read()
                process.kill()
        told = json.loads(feeding.communicate(timeout=400)[0])
    done = subprocess.run(
        [*controller, "-once"], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    sent, answered = told["sent"], told["answered"]
    valid = sent["good"] + sent["twice"] + sent["elsewhere"]
    with site.controller() as control:
        ledger = json.loads(control.answer({"type": "Ledger"})[0])  # type: ignore[index]
        assert ledger == {"total": told["total"], "reports": valid}
        assert control.answer({"type": "Sum"}) == (str(told["total"]).encode(), None)
        assert control.store.counts() == {"taken": valid, "duplicate": sent["elsewhere"], "malformed": sent["raw"]}
        nodes = control.store.nodes()
        assert len(nodes) == feed.NODES and sum(node.reports for node in nodes) == valid
        updates = control.store.updates()
        assert json.loads(updates[-1].json) == ledger or updates[-1].type == "Nodes"
        revisions = [one.revision for one in updates]
        assert revisions == list(range(revisions[0], revisions[-1] + 1))
    # Each of the others was refused with its reason, and is counted where it was refused.
    assert answered == {
        "good 200": sent["good"],
        "twice 200": 2 * sent["twice"],
        "elsewhere 200": 2 * sent["elsewhere"],
        "signature 403": sent["signature"],
        "malformed 400": sent["malformed"],
        "unknown 403": sent["unknown"],
        "clock 403": sent["clock"],
    }
    counts: dict[str, int] = {}
    ghosts = set()
    for server in ("web1", "web2"):
        found = refusals.read(str(tmp_path / "var/gather" / server / "www/reports.refused"))
        ghosts |= found.ghosts.keys()
        for reason, n in found.counts.items():
            counts[reason] = counts.get(reason, 0) + n
    refused = {name: sent[name] for name in ("signature", "malformed", "unknown", "clock")}
    assert counts == {**refused, "duplicate": sent["twice"]}
    assert ghosts == {f"ghost{number}" for number in range(7)}
    published = json.loads((tmp_path / "var/www/world/nodes/status.json").read_text())
    assert published["counts"]["taken"] == valid
