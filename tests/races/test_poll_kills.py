# SPDX-License-Identifier: Apache-2.0
"""kill -9 before each durable step of a poll and a round: never released early or started twice, always ended."""

import time
from pathlib import Path

import pytest

import steps
from conftest import ROOT, Site
from infocluster.locks import lockfile
from infocluster.poll import agent, state

NOW = int(time.time())
CONF = """
[[core_filers]]
name = "cf"
backend = "command"
start = ["/bin/sh", "-c", "echo start >>{root}/log; echo job"]
status = ["/bin/sh", "-c", "grep -q start {root}/log || exit 1; test -e {root}/finished || exit 75", "%r"]
"""
ENDS = {"released", "failed"}


def run(site: Site, n: int, *program: str) -> int:
    """Run a program, killed before its step n, and return how many steps it took (n = -1), or -9."""
    environment = site.environment(
        SERVER_GATHER=str(site.gather()), REQUEST_METHOD="GET", QUERY_STRING=f"mass=cf&targetTime={NOW}"
    )
    done, ended = steps.run(n, program, environment)
    assert done.returncode in (0, 1, -9) and b"Traceback" not in done.stderr, done.stderr
    assert (agent.RELEASE.encode() in done.stdout) <= (site.root / "finished").exists()
    return ended


POLL = str(ROOT / "cgi-bin/poll.cgi")
WATCH = str(ROOT / "batch/backup-watch")


def stands(site: Site) -> str:
    found = state.read(state.file(str(site.gather() / "poll"), "cf", NOW), "cf", NOW)
    return found.state if found else ""


def play(site: Site, phase: str, n: int) -> int:
    """Play a backup to its end, with one program killed in one phase; return how that program ended."""
    site.configure(CONF.format(root=site.root))
    lock = Path(state.place(str(site.gather() / "poll"), "cf")) / "lock"
    lock.parent.mkdir(parents=True)
    ended = 0
    # While this is held a poll starts nobody: what happens next is ours to say.
    with lockfile.hold(str(lock)):
        ended = run(site, n if phase == "first poll" else -2, POLL)
    ended = run(site, n, WATCH) if phase == "start" else ended
    with lockfile.hold(str(lock)):
        run(site, -2, POLL)
    run(site, -2, WATCH)
    assert stands(site) in {"running", "failed"}
    (site.root / "finished").touch()
    ended = run(site, n, WATCH) if phase == "end" else ended
    run(site, -2, WATCH)
    assert stands(site) in {"complete", "failed"}
    ended = run(site, n, POLL) if phase == "last poll" else ended
    run(site, -2, POLL)
    assert stands(site) in ENDS
    starts = (site.root / "log").read_text().count("start") if (site.root / "log").exists() else 0
    assert starts <= 1
    assert stands(site) == "failed" or starts == 1
    assert not list(site.gather().glob("poll/*/.~*")) or ended == -9
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["first poll", "start", "end", "last poll"])
def test_kill_at_each_step_never_releases_early_never_starts_twice_and_always_ends(
    tmp_path: Path, phase: str
) -> None:
    count = play(Site(tmp_path / "whole").build(), phase, -1)
    assert count > (15 if phase == "start" else 5)
    for n in range(count):
        assert play(Site(tmp_path / str(n)).build(), phase, n) == -9, n


@pytest.mark.slow
def test_kill_of_a_poll_that_starts_somebody(tmp_path: Path) -> None:
    """As above with the lock free: the starter is a process of its own, and may be at it while we look."""
    n, ended = 0, -9
    while ended == -9:
        site = Site(tmp_path / str(n)).build()
        site.configure(CONF.format(root=site.root))
        ended = run(site, n, POLL)
        run(site, -2, POLL)
        (site.root / "finished").touch()
        end = time.monotonic() + 60
        while stands(site) not in ENDS:
            assert time.monotonic() < end
            run(site, -2, WATCH)
            run(site, -2, POLL)
        assert stands(site) == "released" and (site.root / "log").read_text().count("start") == 1
        n += 1
    assert n > 8
