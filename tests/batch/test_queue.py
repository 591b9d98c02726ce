# SPDX-License-Identifier: Apache-2.0
"""The program queue, run as people and cron run it."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from dirq.queue import Queue
from dirq.QueueSimple import QueueSimple

from conftest import ROOT, Site
from infocluster.queue import simple

SUM = "import os, sys; text = sys.stdin.buffer.read().decode(); print(os.environ['QUEUE_ELEMENT'], text)"


@pytest.fixture
def top(tmp_path: Path) -> str:
    return str(tmp_path / "outgoing")


def failing(on: str) -> list[str]:
    """Return a command that fails for one content."""
    return [sys.executable, "-c", f"import sys; sys.exit(3 * (sys.stdin.read() == {on!r}))"]


def test_what_is_added_is_listed_counted_and_shown(site: Site, top: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"first\n")
    (tmp_path / "two").write_bytes(b"second \xff\n")
    done = site.batch("queue", "add", top, str(tmp_path / "one"), str(tmp_path / "two"))
    names = done.stdout.split()
    assert done.returncode == 0 and len(names) == 2 and all(map(simple.is_name, names))
    assert site.batch("queue", "list", top).stdout.split() == names
    theirs = QueueSimple(top)
    assert theirs.lock(names[0])
    assert site.batch("queue", "list", top).stdout == f"{names[0]} locked\n{names[1]}\n"
    assert json.loads(site.batch("queue", "list", "-json", top).stdout)[0] == {"name": names[0], "locked": True}
    theirs.unlock(names[0])
    assert site.batch("queue", "count", top).stdout == "2\n"
    command = [sys.executable, str(ROOT / "batch/queue"), "get", top, *names]
    shown = subprocess.run(command, env=site.environment(), capture_output=True, check=True)
    assert shown.stdout == b"first\nsecond \xff\n"
    assert theirs.count() == 2


def test_file_is_moved_where_that_is_asked_for(site: Site, top: str, tmp_path: Path) -> None:
    os.mkdir(top)
    source = tmp_path / "one"
    source.write_bytes(b"first\n")
    number = source.stat().st_ino
    name = site.batch("queue", "add", "-move", top, str(source)).stdout.strip()
    assert os.stat(f"{top}/{name}").st_ino == number and not source.exists()


def test_consumer_removes_what_succeeds_and_unlocks_what_fails(site: Site, top: str) -> None:
    theirs = QueueSimple(top, granularity=1)
    names = [theirs.add(content) for content in (b"good", b"bad", b"fine")]
    done = site.batch("queue", "consume", top, "--", *failing("bad"))
    assert done.returncode == 1
    assert done.stderr == f"queue: {names[1]}: exit status 3\n"
    assert done.stdout == "queue: 2 consumed, 1 failed\n"
    assert list(theirs.names()) == names[1:2]
    assert theirs.lock(names[1]) and theirs.get(names[1]) == b"bad"


def test_what_a_command_says_on_its_standard_error_is_told(site: Site, top: str) -> None:
    QueueSimple(top).add(b"x")
    done = site.batch("queue", "consume", top, "--", "sh", "-c", "echo one >&2; echo two >&2; exit 1")
    (name,) = QueueSimple(top).names()
    assert (done.returncode, done.stderr) == (1, f"one\nqueue: {name}: exit status 1: two\n")
    done = site.batch("queue", "consume", top, "--", "sh", "-c", "echo one >&2; echo two >&2")
    assert (done.returncode, done.stderr) == (0, "one\ntwo\n")


def test_element_that_fails_again_and_again_is_set_aside_beside_the_queue(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    name = theirs.add(b"bad")
    for _ in range(2):
        assert "set aside" not in site.batch("queue", "consume", top, "--", *failing("bad")).stderr
    assert os.listdir(f"{top}/{name.split('/')[0]}") == [name.split("/")[1]]
    assert f"{name}: set aside in {top}.failed" in site.batch("queue", "consume", top, "--", *failing("bad")).stderr
    assert theirs.count() == 0
    aside = QueueSimple(f"{top}.failed")
    assert list(aside.names()) == [name]
    assert os.listdir(f"{top}.failed/failures") == []
    assert site.batch("queue", "consume", f"{top}.failed", "--", "cat").stdout == "badqueue: 1 consumed, 0 failed\n"


def test_element_is_set_aside_beside_a_queue_that_is_named_by_a_point(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    name = theirs.add(b"bad")
    command = [sys.executable, str(ROOT / "batch/queue"), "consume", "-failures", "1", ".", "--", *failing("bad")]
    subprocess.run(command, env=site.environment(), cwd=top, capture_output=True, check=False)
    assert os.listdir(top) == [name.split("/")[0]]
    assert list(QueueSimple(f"{top}.failed").names()) == [name]


def test_command_says_all_that_it_says_on_our_output(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    content = b"line\n" * 500_000
    theirs.add(content)
    assert (
        site.batch("queue", "consume", top, "--", "cat").stdout == f"{content.decode()}queue: 1 consumed, 0 failed\n"
    )
    theirs.add(content)
    command = [sys.executable, str(ROOT / "batch/queue"), "consume", top, "--", "cat"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, env=site.environment(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr and b"Traceback" not in done.stderr
    assert theirs.count() == 1
    (name,) = theirs.names()
    command[2:] = ["get", top, name]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, env=site.environment(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (
        75,
        b"queue: cannot write to the standard output: No space left on device\n",
    )


def test_command_is_done_when_it_has_ended_whatever_it_left_running(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    theirs.add(b"x")
    left = f"sleep 1000 >/dev/null & echo $! > {top}.pid; exit 0"
    done = site.batch("queue", "consume", "-timeout", "60", top, "--", "sh", "-c", left)
    os.kill(int(Path(f"{top}.pid").read_text()), signal.SIGKILL)
    assert (done.returncode, done.stderr, theirs.count()) == (0, "", 0)


def test_command_that_is_not_there_fails_before_any_element(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    theirs.add(b"x")
    done = site.batch("queue", "consume", "-failures", "1", top, "--", "no-such-program")
    assert done.returncode == 64 and theirs.count() == 1


def test_consumer_that_is_asked_to_end_unlocks_and_counts_nothing(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    name = theirs.add(b"x")
    command = [sys.executable, str(ROOT / "batch/queue"), "consume", "-failures", "1", top, "--"]
    said = "import os, sys, time; open(sys.argv[1], 'w').close(); time.sleep(60)"
    begun = f"{top}.begun"
    consumer = subprocess.Popen([*command, sys.executable, "-c", said, begun], env=site.environment())
    while not os.path.exists(begun):
        assert consumer.poll() is None
        time.sleep(0.01)
    assert not theirs.lock(name)
    consumer.terminate()
    assert consumer.wait() == 128 + signal.SIGTERM
    assert theirs.lock(name) and theirs.get(name) == b"x"
    assert os.listdir(f"{top}.failed/failures") == []


def test_what_ssm_received_is_consumed_with_its_sender(site: Site, tmp_path: Path) -> None:
    top = str(tmp_path / "incoming")
    received = Queue(top, schema={"body": "string", "signer": "string", "empaid": "string?"})
    received.add({"body": "Site: one\n", "signer": "/CN=host"})
    bad = received.add({"body": "bad", "signer": "/CN=host"})
    assert site.batch("queue", "get", top, bad).stdout == "bad"
    assert site.batch("queue", "get", "-field", "signer", top, bad).stdout == "/CN=host"
    done = site.batch("queue", "get", "-field", "empaid", top, bad, f"{bad[:-1]}{'1' if bad[-1] == '0' else '0'}")
    assert done.returncode == 1 and done.stderr.count("queue: cannot") == 2
    program = (
        "import os, sys; text = sys.stdin.read(); print(os.environ['QUEUE_SIGNER'], text); sys.exit(text == 'bad')"
    )
    done = site.batch("queue", "consume", "-failures", "1", top, "--", sys.executable, "-c", program)
    assert done.stdout == "/CN=host Site: one\n\n/CN=host bad\nqueue: 1 consumed, 1 failed\n"
    assert received.count() == 0
    aside = Queue(f"{top}.failed", schema={"body": "string"})
    assert aside.lock(bad) and aside.get(bad) == {"body": "bad"}


@pytest.mark.parametrize(
    ("schema", "fields", "why"),
    [
        ({"signer": "string"}, {"signer": "x"}, "lacks this field"),
        ({"body": "binary"}, {"body": b"\xff\xfe"}, "can't decode"),
        ({"body": "string", "signer": "string"}, {"body": "x", "signer": "a\0b"}, "QUEUE_SIGNER: it holds a NUL"),
    ],
)
def test_element_that_cannot_be_handed_on_is_set_aside_like_one_that_fails(
    site: Site, top: str, schema: dict[str, str], fields: dict[str, str], why: str
) -> None:
    bad = Queue(top, schema=schema).add(fields)
    good = Queue(top, schema={"body": "string"})
    good.add({"body": "good"})
    for count, _ in ((1, "first"), (0, "second")):
        done = site.batch("queue", "consume", "-failures", "2", top, "--", "cat")
        assert (done.returncode, good.count()) == (1, count), done.stderr
        assert f"queue: {bad}: " in done.stderr and why in done.stderr
    assert list(Queue(f"{top}.failed", schema=schema).names()) == [bad]


@pytest.mark.parametrize("obstacle", ["taken", "other file system"])
def test_element_that_cannot_be_set_aside_is_unlocked_and_the_rest_goes_on(
    site: Site, top: str, obstacle: str
) -> None:
    theirs = QueueSimple(top, granularity=1)
    bad = theirs.add(b"bad")
    theirs.add(b"good")
    aside = f"{top}.failed" if obstacle == "taken" else tempfile.mkdtemp(dir="/dev/shm")
    Path(aside, bad).parent.mkdir(parents=True)
    if obstacle == "taken":
        Path(aside, bad).write_bytes(b"another")
    try:
        done = site.batch("queue", "consume", "-failures", "1", "-aside", aside, top, "--", *failing("bad"))
        assert done.returncode == 1 and f"cannot move {top}/{bad}" in done.stderr
        assert done.stdout == "queue: 1 consumed, 1 failed\n"
        assert list(theirs.names()) == [bad] and theirs.lock(bad)
        assert [path.read_bytes() for path in Path(aside).glob("[0-9]*/*")] == [b"another"] * (obstacle == "taken")
    finally:
        shutil.rmtree(aside)


def test_consumer_that_counts_no_failures_writes_nothing_beside_the_queue(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    theirs.add(b"bad")
    for command in (failing("bad"), ["cat"]):
        site.batch("queue", "consume", "-failures", "0", "-timeout", "0", top, "--", *command)
    assert theirs.count() == 0 and not os.path.exists(f"{top}.failed")


def test_lock_is_new_again_and_again_while_a_command_runs(site: Site, top: str) -> None:
    """The command ends once the time of its element's lock has moved."""
    theirs = QueueSimple(top)
    name = theirs.add(b"x")
    time_of = "os.stat(sys.argv[1]).st_mtime_ns"
    program = f"import os, sys\nbefore = {time_of}\nwhile {time_of} == before: pass"
    command = [sys.executable, "-c", program, theirs.get_path(name)]
    done = site.batch("queue", "consume", "-lock-age", "1", "-timeout", "60", top, "--", *command)
    assert (done.returncode, done.stderr, theirs.count()) == (0, "", 0)


def test_purge_says_what_it_removed(site: Site, top: str) -> None:
    theirs = QueueSimple(top)
    name = theirs.add(b"x")
    assert theirs.lock(name)
    os.utime(theirs.get_path(name), (1, 1))
    done = site.batch("queue", "purge", top)
    assert done.stdout == "queue: 0 unfinished, 1 old locks and 0 empty directories removed\n"
    assert theirs.lock(name)


def test_what_ssm_would_not_carry_is_refused_or_made_fit(site: Site, top: str, tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes("head: v1\nSite: M\u00fcnchen\n%%\n".encode())
    done = site.batch("queue", "ssm-check", str(file))
    assert done.returncode == 65
    assert "line 2 holds bytes that are no printable ASCII (0xbc 0xc3): -base64 encodes it" in done.stdout
    assert site.batch("queue", "add", "-ssm", top, str(file)).returncode == 65
    assert not os.path.exists(top)
    assert site.batch("queue", "ssm-check", "-base64", str(file)).returncode == 0
    assert site.batch("queue", "add", "-ssm", "-base64", top, str(file)).returncode == 0
    file.write_bytes(b"head: v1\n" + b"".join(b"Site: %d\n%%%%\n" % number for number in range(20)))
    assert "-split makes several" in site.batch("queue", "ssm-check", "-limit", "100", str(file)).stdout
    (tmp_path / "lump").write_bytes(b"x" * 101)
    done = site.batch("queue", "ssm-check", "-split", "-limit", "100", str(tmp_path / "lump"), str(file))
    assert done.returncode == 65 and "lump: cannot split" in done.stdout and "message: ok, in 3 mess" in done.stdout
    done = site.batch("queue", "add", "-ssm", "-split", "-limit", "100", top, str(file))
    assert done.returncode == 0 and len(done.stdout.split()) == 3
    assert QueueSimple(top).count() == 4
    file.write_bytes(file.read_bytes() + "Site: M\u00fc\n%%\n".encode())
    done = site.batch("queue", "add", "-ssm", "-split", "-limit", "100", top, str(file))
    assert (done.returncode, done.stdout) == (65, ""), "all of a file or nothing"
    file.write_bytes(b"head: v1\n" + "Site: M\u00fc\n%%\n".encode() * 20)
    done = site.batch("queue", "add", "-ssm", "-base64", "-split", "-limit", "160", top, str(file))
    assert done.returncode == 0, done.stderr
    parts = [base64.b64decode(Path(top, name).read_bytes()).decode() for name in done.stdout.split()]
    assert "".join(part.removeprefix("head: v1\n") for part in parts) == "Site: M\u00fc\n%%\n" * 20
    assert len(parts) > 1 and all(part.startswith("head: v1\n") for part in parts)


def test_wrong_words_are_told_with_64(site: Site, top: str) -> None:
    name = QueueSimple(top).add(b"x")
    for words in (
        [],
        ["fly", top],
        ["get", top],
        ["add"],
        ["add", ""],
        ["consume", top],
        ["consume", "-aside", f"{top}/.", top, "--", "cat"],
        ["consume", "-aside", f"{top}/{name[:8]}/aside", top, "--", "cat"],
        ["consume", "-failures", "0.5", top, "--", "cat"],
        ["add", "-umask", "9", top],
        *([action, top, top] for action in ("list", "count", "purge")),
    ):
        done = site.batch("queue", *words)
        assert done.returncode == 64, (words, done.stderr)
    assert list(QueueSimple(top).names()) == [name]
    assert site.batch("queue", "count", f"{top}/nowhere").returncode == 75
