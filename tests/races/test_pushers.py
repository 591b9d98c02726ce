# SPDX-License-Identifier: Apache-2.0
"""Forty pushes at once, a nightly one among them, some killed: none that conflict overlap, and all others end."""

import filecmp
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, Site
from infocluster.locks import pathlocks

PUSHERS, KILLED = 40, 6


def start(site: Site, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "batch/wwwpush"), *arguments],
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def same(one: Path, other: Path) -> bool:
    compared = filecmp.dircmp(one, other)
    return not (compared.left_only or compared.right_only or compared.diff_files) and all(
        same(one / name, other / name) for name in compared.common_dirs
    )


@pytest.mark.slow
def test_pushes_that_conflict_never_overlap_and_all_others_end(site: Site) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    paths = []
    for top, below, page in itertools.product("abcd", "xyz", range(5)):
        file = site.production / f"world/{top}/{below}/page{page}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{top}{below}{page}" * 100)
        paths.append(f"world/{top}/{below}/page{page}.html")
    directories = sorted({path.rpartition("/")[0] for path in paths} | {f"world/{top}" for top in "abcd"})
    site.configure("[push]\nslots = 6\n")
    pushers = []
    for number in range(PUSHERS):
        wanted = (
            ["-all"] if number == PUSHERS // 2 else chance.sample(paths + directories * 2, chance.randrange(1, 4))
        )
        pushers.append(start(site, *wanted))
    doomed = chance.sample([p for number, p in enumerate(pushers) if number != PUSHERS // 2], KILLED)
    for pusher in doomed:
        time.sleep(chance.uniform(0, 0.5))
        pusher.send_signal(signal.SIGKILL)
    outputs = {pusher.pid: pusher.communicate(timeout=240)[0] for pusher in pushers}
    for pusher in pushers:
        assert pusher.returncode in ((0, -signal.SIGKILL) if pusher in doomed else (0,)), outputs[pusher.pid]

    records = [json.loads(file.read_text()) for file in (site.state / "pushes").glob("2*.json")]
    ended = [pusher for pusher in pushers if pusher.returncode == 0]
    assert {record["pid"] for record in records} >= {pusher.pid for pusher in ended}
    overlaps = 0
    for one, other in itertools.combinations(records, 2):
        is_apart = one["held"][1] <= other["held"][0] or other["held"][1] <= one["held"][0]
        overlaps += not is_apart
        if pathlocks.conflicts(one["paths"], other["paths"]):
            assert is_apart, (one["paths"], one["held"], other["paths"], other["held"])
    assert overlaps  # those that do not conflict do run at once
    assert site.batch("wwwpush", "-all").returncode == 0
    for server in site.servers:
        assert same(site.production / "world", site.delivered(server) / "world")
