# SPDX-License-Identifier: Apache-2.0
"""backup-watch: a state goes on by what the backend says and by the clock, and each doubt holds the core filer."""

import email
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, Site
from infocluster.poll import agent, state
from infocluster.poll.state import State

NOW = int(time.time())

COMMAND = """
[[core_filers]]
name = "cf-one"
backend = "command"
start = ["/bin/sh", "-c", "echo start $RUN_ID >>{log}; exec sh {dir}/start"]
status = ["/bin/sh", "{dir}/status", "%r"]
"""


def commands(site: Site, start: str = "echo job-7", status: str = "echo 42%; exit 75", more: str = "") -> None:
    (site.root / "start").write_text(start)
    (site.root / "status").write_text(status)
    site.configure(COMMAND.format(dir=site.root, log=site.root / "log") + more)


def put(site: Site, name: str, target: int = NOW, asked: float = NOW - 5, mass: str = "cf-one") -> Path:
    """Leave a state as an earlier program would have."""
    path = Path(state.file(str(site.gather() / "poll"), mass, target))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(state.content(State(mass, target, "5f0c2a9be7d14c33", name, asked, asked)))
    return path


def watch(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = site.batch("backup-watch", *arguments, SERVER_GATHER=str(site.gather()))
    assert "Traceback" not in done.stderr
    return done


def found(path: Path, mass: str = "cf-one") -> State:
    one = state.read(str(path), mass, int(path.stem))
    assert one
    return one


def starts(site: Site) -> int:
    log = site.root / "log"
    return log.read_text().count("start") if log.exists() else 0


def subjects(site: Site) -> list[str]:
    letters = (site.gather() / "poll/letters").glob("*.eml")
    return sorted(email.message_from_bytes(path.read_bytes())["Subject"] for path in letters)


def test_new_backup_is_started_once_and_followed_to_its_end(site: Site) -> None:
    commands(site)
    path = put(site, "new")
    assert watch(site).returncode == 0
    assert (found(path).state, found(path).progress, found(path).job) == ("running", "42%", "job-7")
    (site.root / "status").write_text("exit 0")
    assert watch(site).returncode == 0
    assert found(path).state == "complete"
    watch(site)
    assert starts(site) == 1


@pytest.mark.parametrize(
    ("start", "status", "why"),
    [
        ("echo no space >&2; exit 1", "exit 0", "its start ended with exit status 1: no space"),
        ("kill -9 $$", "exit 0", "its start ended with signal 9"),
        ("sleep 60", "exit 0", "not done after 0.5 s"),
        ("", "echo tape torn; exit 1", "its status ended with exit status 1: tape torn"),
    ],
)
def test_failed_backup_says_why_is_told_by_letter_and_is_final(site: Site, start: str, status: str, why: str) -> None:
    commands(site, start, status, "[poll]\nstart_timeout_s = 0.5\n")
    path = put(site, "new")
    done = watch(site)
    assert done.returncode == 1 and why in done.stderr
    (site.root / "status").write_text("exit 0")
    watch(site)
    assert found(path).state == "failed" and why in found(path).why
    assert subjects(site) == ["Backup of cf-one: failed"]
    assert starts(site) == 1


@pytest.mark.parametrize("status", ["sleep 60", "kill -9 $$"])
def test_backend_that_cannot_be_asked_changes_nothing(site: Site, status: str) -> None:
    commands(site, status=status, more="[poll]\nask_timeout_s = 0.3\n")
    path = put(site, "running")
    assert watch(site).returncode == 1
    assert found(path).state == "running"


@pytest.mark.parametrize(
    ("by_run", "status", "expected"),
    [
        (True, "exit 0", "complete"),
        (True, "exit 75", "running"),
        (True, "exit 1", "failed"),
        (False, "exit 0", "failed"),
    ],
)
def test_broken_start_goes_on_only_where_the_backend_knows_the_run(
    site: Site, by_run: bool, status: str, expected: str
) -> None:
    commands(site, status=status)
    if not by_run:
        site.conf_file.write_text(site.conf_file.read_text().replace(', "%r"]', "]"))
    path = put(site, "starting")
    watch(site)
    assert found(path).state == expected
    assert starts(site) == 0


@pytest.mark.parametrize("name", ["new", "starting", "running"])
def test_what_is_not_complete_in_time_expires(site: Site, name: str) -> None:
    commands(site, more="limit_s = 100\n")
    path = put(site, name, NOW - 200, NOW - 150)
    watch(site)
    assert found(path).state == "expired"
    assert subjects(site) == ["Backup of cf-one: expired"] and starts(site) == 0


def test_failure_releases_only_where_the_settings_say_so_and_after_its_time(site: Site) -> None:
    commands(site, more='on_failure = "release"\nhold_s = 10000\n')
    late, early = put(site, "failed", NOW, NOW - 10_050), put(site, "failed", NOW + 300, NOW - 50)
    done = watch(site)
    assert (found(late).state, found(late).flags, found(early).state) == ("released", "forced", "failed")
    assert "released-although-not-complete" in done.stderr
    assert subjects(site) == ["Backup of cf-one: released-although-not-complete"]
    [letter] = (site.gather() / "poll/letters").glob("*.eml")
    assert agent.RELEASE not in letter.read_text()
    commands(site)
    held = put(site, "failed", NOW - 300, NOW - 20_000)
    watch(site)
    assert found(held).state == "failed"


def test_letter_that_cannot_be_kept_stops_a_release_and_nothing_else(site: Site) -> None:
    more = 'on_failure = "release"\nhold_s = 100\n[mail]\nto = ["no..address@example.org"]\n'
    commands(site, "exit 1", more=more)
    fresh, late = put(site, "new"), put(site, "failed", NOW + 300, NOW - 150)
    assert watch(site).returncode == 1
    assert (found(fresh).state, found(late).state) == ("failed", "failed")
    commands(site, more=more.replace('"no..address@example.org"', ""))
    watch(site)
    assert (found(late).state, subjects(site)) == ("released", [])


def test_backup_that_is_done_is_not_late(site: Site) -> None:
    commands(site, status="exit 0", more="limit_s = 100\n")
    path = put(site, "running", NOW - 200, NOW - 150)
    watch(site)
    assert found(path).state == "complete"


@pytest.mark.parametrize("content", [b"", b"wait3\n", b"infocluster poll 2\nstate complete\n"])
def test_unreadable_state_becomes_failed_and_never_releases(site: Site, content: bytes) -> None:
    commands(site, more='on_failure = "release"\nhold_s = 0\n')
    path = put(site, "complete")
    path.write_bytes(content)
    done = watch(site)
    assert done.returncode == 1 and str(path) in done.stderr
    for _ in range(2):
        watch(site)
        assert found(path).state == "failed"
    [kept] = path.parent.glob("*.unreadable-*")
    assert kept.read_bytes() == content and kept.name in found(path).why
    assert subjects(site) == ["Backup of cf-one: failed"] and starts(site) == 0


def test_states_are_forgotten_long_after_nobody_may_ask(site: Site) -> None:
    commands(site, more="[poll]\nage_s = 100\nkeep_days = 1\n")
    # NOW is when the run began; this may be an hour later.
    old = put(site, "released", NOW - 100 - 86400 - 60, NOW - 100 - 86400 - 50)
    young = put(site, "released", NOW - 100 - 86400 + 7200, NOW - 100 - 86400)
    left = old.with_name(".~1.state.0123456789ab")
    left.write_bytes(b"half")
    os.utime(left, (NOW - 7200, NOW - 7200))
    watch(site)
    assert not old.exists() and young.exists() and not left.exists()


def test_second_watch_leaves_a_core_filer_to_the_first(site: Site) -> None:
    # The first one is at it until the pipe is read: in its start command.
    os.mkfifo(site.root / "go")
    commands(site, start=f"test -e {site.root}/begun || {{ touch {site.root}/begun; read x <{site.root}/go; }}")
    path = put(site, "new")
    program = [sys.executable, str(Path(__file__).parents[2] / "batch/backup-watch")]
    with subprocess.Popen(
        program, env=site.environment(SERVER_GATHER=str(site.gather())), stdout=subprocess.DEVNULL
    ) as first:
        while found(path).state != "starting":
            assert first.poll() is None
        second = put(site, "new", NOW + 300)
        assert watch(site).returncode == 0
        assert (found(path).state, found(second).state) == ("starting", "new")
        (site.root / "go").write_text("x\n")
        assert first.wait(30) == 0
    # It looked again before it left: the second one was started too, and each once.
    assert (found(path).state, found(second).state) == ("running", "running")
    assert starts(site) == 2


def test_core_filer_that_hangs_does_not_keep_the_others(site: Site) -> None:
    commands(site)
    os.mkfifo(site.root / "never")
    status = f'["/bin/cat", "{site.root}/never"]'
    other = f'[[core_filers]]\nname = "cf-two"\nbackend = "command"\nstart = ["/bin/true"]\nstatus = {status}\n'
    site.conf_file.write_text(other + "[poll]\nask_timeout_s = 20\n" + site.conf_file.read_text())
    one, two = put(site, "new"), put(site, "new", mass="cf-two")
    program = [sys.executable, str(Path(__file__).parents[2] / "batch/backup-watch")]
    with subprocess.Popen(
        program, env=site.environment(SERVER_GATHER=str(site.gather())), stdout=subprocess.DEVNULL
    ) as running:
        while found(one).state != "running" or found(two, "cf-two").state != "running":
            assert running.poll() is None
        (site.root / "never").write_text("")
        assert running.wait(30) == 0
    assert found(two, "cf-two").state == "complete"


OWN = """
from infocluster.poll.backends import base


class Backend(base.Base):
    def start(self, state):
        return self.filer["nothing"]

    def status(self, state):
        return state.nothing

    confirm = status
"""


def test_backend_of_ones_own_that_is_wrong_stops_nobody_else(site: Site, tmp_path: Path) -> None:
    for name in ("batch", "lib"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
    backends = tmp_path / "lib/infocluster/poll/backends"
    (backends / "own.py").write_text(OWN)
    (backends / "bad.py").write_text("class Backend(:\n")
    others = "".join(f'[[core_filers]]\nname = "cf-{one}"\nbackend = "{one}"\n' for one in ("bad", "own"))
    commands(site)
    site.conf_file.write_text(f"{others}limit_s = 3600\n{site.conf_file.read_text()}")
    put(site, "new", mass="cf-bad")
    fresh, broken = put(site, "new", mass="cf-own"), put(site, "starting", NOW + 1, mass="cf-own")
    asked, late = put(site, "running", NOW + 2, mass="cf-own"), put(site, "running", NOW - 7200, NOW - 5400, "cf-own")
    path = put(site, "new")
    program = [sys.executable, str(tmp_path / "batch/backup-watch")]
    environment = site.environment(SERVER_GATHER=str(site.gather()))
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "backend bad for cf-bad: SyntaxError: " in done.stderr
    assert f"cf-own {NOW + 2}: AttributeError: " in done.stderr
    stand = [found(one, "cf-own").state for one in (fresh, broken, asked, late)]
    assert stand == ["failed", "starting", "running", "expired"]
    assert "KeyError: 'nothing'" in found(fresh, "cf-own").why
    assert found(path).state == "running"


def test_fifty_core_filers_are_looked_at_in_one_round(site: Site) -> None:
    names = [f"cf-{number}" for number in range(50)]
    sections = (
        f'[[core_filers]]\nname = "{name}"\nbackend = "marker"\nmarker = "{site.root}/%m"\n' for name in names
    )
    site.configure("".join(sections))
    paths = {name: put(site, "running", mass=name) for name in names}
    for name in names[::2]:
        (site.root / name).touch()
    assert watch(site).returncode == 0
    assert [found(paths[name], name).state for name in names] == ["complete", "running"] * 25


def test_settings_that_cannot_work_are_told(site: Site) -> None:
    site.configure('[[core_filers]]\nname = "cf-one"\nbackend = "none-such"\n')
    put(site, "new")
    assert "there is none" in watch(site).stderr
    site.configure('[[core_filers]]\nname = "cf-one"\nbackend = "systemd"\n')
    assert "core_filers.unit is not set" in watch(site).stderr
    site.configure('[[core_filers]]\nname = "cf-one"\nbackend = "marker"\n' * 2)
    assert watch(site).returncode == 78
    assert watch(site, "-only", "cf-two").returncode == 78


def test_changed_settings_are_followed(site: Site) -> None:
    """poll.cgi reads them at each poll: what it starts by new ones has to be asked for too."""
    commands(site, more="[poll]\nfollow_s = 0.1\n")
    first, second = put(site, "new"), put(site, "new", mass="cf-two")
    whole = site.conf_file.read_text()
    other = COMMAND.format(dir=site.root, log=site.root / "log").replace("cf-one", "cf-two")
    program = ["/usr/bin/timeout", "60", sys.executable, str(ROOT / "batch/backup-watch"), "-follow"]
    environment = site.environment(SERVER_GATHER=str(site.gather()))
    with subprocess.Popen(
        program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as following:
        try:
            while found(first).state != "running":
                assert following.poll() is None
            site.conf_file.write_text("none = 1\n")
            assert following.stderr and str(site.conf_file) in following.stderr.readline()
            site.conf_file.write_text(whole + other)
            while found(second, "cf-two").state != "running":
                assert following.poll() is None
        finally:
            following.terminate()
            following.communicate()


@pytest.mark.root
def test_states_of_another_user_are_shown_and_left_alone(open_dir: Path) -> None:
    """What root wrote into them, the web server's user could not read: every poll would be answered 503."""
    site = Site(open_dir).build()
    commands(site)
    path = put(site, "new")
    for one in (path.parent.parent, path.parent, path):
        shutil.chown(one, "www-data", "www-data")
    done = watch(site)
    assert (
        done.returncode == 77
        and "cannot watch as root: the states in " in done.stderr
        and "www-data's" in done.stderr
    )
    assert path.stat().st_uid != 0 and found(path).state == "new" and starts(site) == 0
    path.chmod(0o600)
    program = [sys.executable, "-IS", str(ROOT / "batch/backup-watch"), "-status"]
    environment = site.environment(SERVER_GATHER=str(site.gather()))
    for mode, stands in ((0o600, "unknown"), (state.MODE, "new")):
        path.chmod(mode)
        done = subprocess.run(
            program, env=environment, user="nobody", group="nogroup", extra_groups=[], capture_output=True, text=True
        )
        assert f" {stands} " in done.stdout, done
    path.chmod(0o600)
    assert watch(site, "-status", "-only", "cf-one").returncode == 0


def test_backup_that_said_it_is_done_needs_nobody_who_saw_its_start(site: Site) -> None:
    more = '[[core_filers]]\nname = "cf-two"\nbackend = "callback"\nsecret = "key"\nstart = ["/bin/false"]\n'
    commands(site, more=more)
    paths = [put(site, "starting", target, mass="cf-two") for target in (NOW, NOW + 300)]
    paths[0].with_suffix(state.DONE_SUFFIX).write_text("done\n")
    watch(site)
    assert [found(path, "cf-two").state for path in paths] == ["complete", "failed"]


def test_status_shows_every_state_and_no_phrase(site: Site) -> None:
    commands(site)
    put(site, "released")
    put(site, "running", NOW + 300).write_bytes(b"torn")
    done = watch(site, "-status")
    head, *rows = done.stdout.splitlines()
    assert head.startswith("Core filer  Target time") and len(rows) == 2
    assert "released" in done.stdout and "cannot be used" in done.stdout and agent.RELEASE not in done.stdout
    assert watch(site, "-status", "-only", "cf-two").returncode == 64
