# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments, of hits and of the night: what was acknowledged is counted exactly once."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT, Site

ROUNDS = 200
HITS = 4


def hit(site: Site, agent: str, kill_after_s: float | None) -> bool:
    """Run survey.cgi, killed after a time; return whether the visitor got an answer that says the visit is noted."""
    environment = site.environment(
        REQUEST_METHOD="GET", SERVER_GATHER=str(site.gather("web1")), HTTP_USER_AGENT=agent, DOCUMENT_ROOT="/nowhere"
    )
    program = [sys.executable, "-IS", str(ROOT / "cgi-bin/survey.cgi")]
    with subprocess.Popen(program, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
    return output.startswith(b"Status: 200")


def night(site: Site, kill_after_s: float | None) -> int:
    program = [sys.executable, str(ROOT / "batch/survey-nightly")]
    with subprocess.Popen(
        program,
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            errors = process.communicate(timeout=kill_after_s)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors = process.communicate()[1]
    assert "Traceback" not in errors, errors
    return process.returncode


@pytest.mark.slow
def test_what_was_acknowledged_is_counted_exactly_once_whatever_is_killed(site: Site) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    acknowledged = {"Warm/1", "Timed/1"}
    killed_nights = 0
    hit(site, "Warm/1", None)
    began = time.monotonic()
    assert hit(site, "Timed/1", None)
    hit_s = time.monotonic() - began
    began = time.monotonic()
    assert night(site, None) == 0
    night_s = time.monotonic() - began
    with ThreadPoolExecutor(HITS + 1) as pool:
        for number in range(ROUNDS):
            agents = [f"Round/{number} hit/{which} {'x' * chance.randrange(300)}" for which in range(HITS)]
            # Half are killed somewhere on their way; they share the machine, so that takes longer than one alone.
            delays = [chance.choice([None, chance.uniform(0, HITS * hit_s)]) for _ in agents]
            hits = [pool.submit(hit, site, agent, delay) for agent, delay in zip(agents, delays, strict=True)]
            status = pool.submit(night, site, chance.choice([None, chance.uniform(0, 2 * night_s)])).result()
            killed_nights += status == -signal.SIGKILL
            acknowledged |= {agent for agent, done in zip(agents, hits, strict=True) if done.result()}
    assert night(site, None) in (0, 1)  # 1: torn lines, which are reported

    recorded: Counter[str] = Counter()
    for segment in site.gather("web1").glob("survey/*.jsonl"):
        for line in segment.read_bytes().split(b"\n")[:-1]:
            try:
                recorded[json.loads(line)["agent"]] += 1
            except ValueError:
                continue
    with sqlite3.connect(site.state / "survey.sqlite") as db:
        (counted,) = db.execute("SELECT sum(n) FROM counts WHERE period = 'always' AND kind = 'visits'").fetchone()
    published = json.loads((site.production / "world/survey/index.json").read_text())
    assert acknowledged <= recorded.keys()
    assert set(recorded.values()) == {1}
    assert counted == len(recorded) == published["visits"]
    assert 0 < len(acknowledged) < len(recorded) < ROUNDS * HITS  # some were killed between record and answer
    assert 0 < killed_nights < ROUNDS
    print(f"{len(acknowledged)} acknowledged, {len(recorded)} recorded and counted, {killed_nights} nights killed")
