# SPDX-License-Identifier: Apache-2.0
"""kill -9 before each durable step of a poll and a round: never released early or started twice, always ended."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import steps
from conftest import ROOT, Site
from infocluster.locks import lockfile
from infocluster.poll import agent, state, tokens
from infocluster.poll.state import State

NOW = int(time.time())
CONF = """
[[core_filers]]
name = "cf"
backend = "command"
start = ["/bin/sh", "-c", "echo start >>{root}/log; echo job"]
status = ["/bin/sh", "-c", "grep -q start {root}/log || exit 1; test -e {root}/finished || exit 75", "%r"]
"""
UNIT = """
[[core_filers]]
name = "cf"
backend = "systemd"
unit = "backup.service"
systemctl = "{root}/systemctl"
"""
SYSTEMCTL = """#!/bin/sh
cd {root}
test $1 = show || {{ echo start >>log; exit; }}
echo LoadState=loaded; echo Result=success
test -e log || {{ echo ActiveState=inactive; echo SubState=dead; exit; }}
echo InvocationID=ours
test -e finished && echo ActiveState=active || echo ActiveState=activating
echo SubState=exited
"""
ENDS = {"released", "failed"}


def run(site: Site, n: int, program: str, query: str = f"mass=cf&targetTime={NOW}") -> int:
    """Run a program, killed before its step n, and return how many steps it took (n = -1), or -9."""
    environment = site.environment(SERVER_GATHER=str(site.gather()), REQUEST_METHOD="GET", QUERY_STRING=query)
    done, ended = steps.run(n, [program], environment)
    assert done.returncode in (0, 1, -9) and b"Traceback" not in done.stderr, done.stderr
    assert (agent.RELEASE.encode() in done.stdout) <= (site.root / "finished").exists()
    return ended


POLL = str(ROOT / "cgi-bin/poll.cgi")
WATCH = str(ROOT / "batch/backup-watch")


def stands(site: Site, target: int = NOW) -> str:
    found = state.read(state.file(str(site.gather() / "poll"), "cf", target), "cf", target)
    return found.state if found else ""


def play(site: Site, phase: str, n: int, conf: str) -> int:
    """Play a backup to its end, with one program killed in one phase; return how that program ended."""
    site.configure(conf.format(root=site.root))
    (site.root / "systemctl").write_text(SYSTEMCTL.format(root=site.root))
    (site.root / "systemctl").chmod(0o755)
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
@pytest.mark.parametrize(
    ("phase", "conf"),
    [("first poll", CONF), ("start", CONF), ("start", UNIT), ("end", CONF), ("last poll", CONF)],
    ids=["first poll", "start", "start of a unit", "end", "last poll"],
)
def test_kill_at_each_step_never_releases_early_never_starts_twice_and_always_ends(
    tmp_path: Path, phase: str, conf: str
) -> None:
    count = play(Site(tmp_path / "whole").build(), phase, -1, conf)
    assert count > (15 if phase == "start" else 5)
    ends = set()
    for n in range(count):
        site = Site(tmp_path / str(n)).build()
        assert play(site, phase, n, conf) == -9, n
        ends.add(stands(site))
    # What was started and is known by its run goes on; what was not is failed.
    assert ends == (ENDS if phase == "start" else {"released"})


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


MORE = """
[poll]
age_s = 1000
keep_days = 1
[[core_filers]]
name = "cf"
on_failure = "release"
hold_s = 50000
limit_s = 10000
backend = "{backend}"
secret = "{secret}"
marker = "{root}/marker"
"""


def letters(site: Site) -> list[Path]:
    return list(site.gather().glob("poll/letters/*.eml"))


def beside(site: Site) -> list[str]:
    directory = Path(state.place(str(site.gather() / "poll"), "cf"))
    return sorted(path.name for path in directory.iterdir() if path.name != "lock" and path.name[:2] != ".~")


def told_first(site: Site, target: int) -> None:
    """What a letter tells of is not true before the letter is there."""
    assert stands(site, target) in {"failed", "running"} or letters(site)


def kept(site: Site, target: int) -> None:
    """At no moment is there no file, or the next poll would start the backup once more."""
    content = Path(state.file(str(site.gather() / "poll"), "cf", target)).read_bytes()
    is_kept = any(name.startswith(f"{target}.unreadable-") for name in beside(site))
    assert content == b"torn\n" or (b"\nflags held\n" in content and is_kept and letters(site))


def last_of_all(site: Site, target: int) -> None:
    """The state goes last: what lies beside it is found by its name."""
    assert not beside(site) or f"{target}.state" in beside(site)


# What is there before, as (backend, state, age in s, what lies beside it), what holds after every kill, and the end.
WALKS: dict[str, tuple[str, str, int, str, Callable[[Site, int], None], str]] = {
    "forced": ("marker", "failed", 80000, "", told_first, "released"),
    "expired": ("marker", "running", 20000, "", told_first, "expired"),
    "unreadable": ("marker", "", 10, "", kept, "failed"),
    "forgotten": ("callback", "released", 3 * 86400, ".done .unreadable-1", last_of_all, ""),
    "confirmed": ("marker", "starting", 10, "marker", lambda site, target: None, "complete"),
    "said": ("callback", "running", 10, ".done", lambda site, target: None, "complete"),
}


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS)
def test_kill_at_each_step_of_what_a_round_does_besides(tmp_path: Path, walk: str) -> None:
    backend, name, age_s, more, holds, end = WALKS[walk]
    target = NOW - age_s

    def begun(top: Path) -> Site:
        site = Site(top).build()
        site.configure(MORE.format(root=site.root, backend=backend, secret="key" * (backend == "callback")))
        (site.root / "etc/secrets").mkdir(exist_ok=True)
        (site.root / "etc/secrets/key").write_text("a key")
        path = Path(state.file(str(site.gather() / "poll"), "cf", target))
        path.parent.mkdir(parents=True)
        path.write_bytes(state.content(State("cf", target, "0" * 16, name, target, target)) if name else b"torn\n")
        for word in more.split():
            (path.with_suffix(word) if word[0] == "." else site.root / word).write_text("done\n")
        return site

    def walked(site: Site, n: int) -> int:
        done, ended = steps.run(n, [WATCH], site.environment(SERVER_GATHER=str(site.gather())))
        assert done.returncode in (0, 1, -9) and b"Traceback" not in done.stderr, done.stderr
        holds(site, target)
        return ended

    count = walked(begun(tmp_path / "whole"), -1)
    assert count > 3
    for n in range(count):
        site = begun(tmp_path / str(n))
        assert walked(site, n) == -9
        walked(site, -2)
        walked(site, -2)
        assert stands(site, target) == end and (walk == "forgotten") == (not beside(site)), n
        assert bool(letters(site)) == (walk in {"forced", "expired", "unreadable"})


@pytest.mark.slow
def test_kill_of_a_backup_that_says_it_is_done(tmp_path: Path) -> None:
    n, ended = 0, -9
    while ended == -9:
        site = Site(tmp_path / str(n)).build()
        site.configure(MORE.format(root=site.root, backend="callback", secret="key"))
        (site.root / "etc/secrets").mkdir(exist_ok=True)
        (site.root / "etc/secrets/key").write_text("a key")
        path = Path(state.file(str(site.gather() / "poll"), "cf", NOW))
        path.parent.mkdir(parents=True)
        path.write_bytes(state.content(State("cf", NOW, "0" * 16, "running", float(NOW), float(NOW))))
        said = f"mass=cf&targetTime={NOW}&done={tokens.token('done', 'cf', NOW, b'a key').decode()}"
        with lockfile.hold(str(path.parent / "lock")):
            ended = run(site, n, POLL, said)
            run(site, -2, WATCH)
            assert stands(site) == "running"
            run(site, -2, POLL, said)
        run(site, -2, WATCH)
        assert stands(site) == "complete"
        n += 1
    assert n > 4
