# SPDX-License-Identifier: Apache-2.0
"""gather-pull as a process, over a real sshd: the copy is counted as the directories themselves would be."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sshd
from cgi_bin.form_site import GUESTBOOK, declare, stored_as
from conftest import ROOT, Site
from infocluster.aggregate import wire
from infocluster.gather import drop
from infocluster.queue.simple import Simple

SETTINGS = {"durable": False, "lock_timeout_s": 10, "limit_bytes": 65536}
SERVERS = ("web1", "web2")


class Pulled:
    """A site whose servers keep what they gathered for themselves."""

    def __init__(self, site: Site, cluster: sshd.Cluster) -> None:
        self.site, self.cluster = site, cluster
        self.real = cluster.root / "real"
        self.copy = site.root / "copy"
        for server in SERVERS:
            (self.real / server / "www").mkdir(parents=True)
        self.configure(str(self.copy))

    def configure(
        self, gather_dir: str, pull_from: str = "", servers: str = "web[1-2]", rsync: str = "rsync"
    ) -> None:
        self.site.conf_file.write_text(
            f'[site]\nproduction_dir = "{self.site.production}"\nstate_dir = "{self.site.root}/state"\n'
            f'[gather]\ngather_dir = "{gather_dir}"\nkeep_days = 0\n'
            f'pull_from = "{pull_from or f"{self.real}/%h"}"\n'
            f'[push]\nrsync = "{rsync}"\nssh_config = "{self.cluster.config_file}"\nconnect_timeout_s = 5\n'
            f'[[servers]]\nname = "{servers}"\ntransport = "ssh"\n'
            f'destination = "{self.cluster.root}/servers/%h/www"\n'
        )

    def visit(self, server: str, when: float | None = None) -> Path:
        top = self.real / server / "www"
        drop.append("survey", {"agent": "x", "time": when or time.time()}, SETTINGS, str(top))
        return max((top / "survey").iterdir())

    def queue(self, server: str, app: str, days: float = 0) -> Simple:
        """Return a queue of a server whose elements are so many days old."""
        return Simple(str(self.real / server / "www" / app), clock=lambda: time.time() - days * 86400)

    def sweep(self, server: str) -> None:
        """Have a server drop what was read, by the marks that it would have been pushed."""
        gather = str(self.real / server / "www")
        done = self.site.batch("gather-sweep", SERVER_GATHER=gather)
        assert (done.returncode, done.stderr) == (0, "")

    def elements(self, app: str) -> list[str]:
        """Return the elements of a queue's copies."""
        return sorted(path.name for path in self.copy.glob(f"*/www/{app}/*/*"))

    def pull(self) -> subprocess.CompletedProcess[str]:
        return self.site.batch("gather-pull")

    def counted(self) -> str:
        done = self.site.batch("survey-nightly")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split(": ", 1)[1].split(" visit")[0]


@pytest.fixture
def pulled(site: Site, tmp_path: Path) -> Iterator[Pulled]:
    root = tmp_path / "cluster"
    root.mkdir()
    with sshd.cluster(root, *SERVERS) as cluster:
        yield Pulled(site, cluster)


def test_what_was_fetched_is_counted_once_also_when_nfs_comes_and_goes(pulled: Pulled) -> None:
    for server in (*SERVERS, "web1"):
        pulled.visit(server)
    done = pulled.pull()
    assert (done.returncode, done.stderr) == (0, "") and "2 of 2 servers" in done.stdout
    assert pulled.counted() == "3"
    pulled.visit("web2")
    pulled.configure(str(pulled.real))
    assert pulled.counted() == "1"
    pulled.configure(str(pulled.copy))
    pulled.visit("web1")
    assert pulled.pull().returncode == 0
    assert pulled.counted() == "1"
    assert pulled.counted() == "0"


def test_only_what_is_new_of_a_segment_travels(pulled: Pulled) -> None:
    for _ in range(3000):
        segment = pulled.visit("web1")
    pulled.pull()
    pulled.visit("web1")
    done = pulled.pull()
    assert int(done.stdout.split()[-2]) < os.stat(segment).st_size / 50
    copied = pulled.copy / segment.relative_to(pulled.real)
    assert copied.read_bytes() == segment.read_bytes()
    # What was added on another ground is not mixed with what was here.
    text = segment.read_bytes()
    copied.write_bytes(b"x" * 1000)
    pulled.pull()
    assert copied.read_bytes() == text


def test_torn_line_is_counted_when_it_is_whole(pulled: Pulled) -> None:
    segment = pulled.visit("web1")
    whole = segment.read_bytes()
    pulled.visit("web1")
    added = segment.read_bytes()
    segment.write_bytes(added[: len(whole) + 10])
    pulled.pull()
    assert pulled.counted() == "1"
    segment.write_bytes(added)
    pulled.pull()
    assert pulled.counted() == "1"


def test_server_out_of_reach_is_told_of_and_caught_up(pulled: Pulled) -> None:
    pulled.visit("web1")
    pulled.visit("web2")
    away = pulled.real / "away"
    (pulled.real / "web2").rename(away)
    pulled.configure(str(pulled.copy), servers="web[1-3].invalid,web[1-2]")
    done = pulled.pull()
    assert done.returncode == 1 and "1 of 5 servers" in done.stdout
    assert "cannot fetch all of web2: " in done.stderr and "cannot reach web3.invalid: " in done.stderr
    away.rename(pulled.real / "web2")
    pulled.configure(str(pulled.copy))
    assert pulled.pull().returncode == 0
    assert pulled.counted() == "2"


def test_nothing_but_plain_files_comes(pulled: Pulled) -> None:
    segment = pulled.visit("web1")
    directory = segment.parent
    (directory / "2026-11-01.jsonl").symlink_to("/etc/passwd")
    (directory.parent / "other").symlink_to("/etc")
    os.mkfifo(directory / "2026-11-02.jsonl")
    (directory / ".~unfinished").write_text("half")
    (directory / "line\nfeed").write_text("odd")
    queue = directory.parent / "reports/6b0365e0"
    queue.mkdir(parents=True)
    for name in ("6b0365e03d090b", "6b0365e03d090b.lck", "6b0365e03d090c.tmp", "other"):
        (queue / name).write_text("element")
    (directory.parent / "form-x.rate").mkdir()
    (directory.parent / "form-x.rate/2026112308").write_text("counted")
    assert pulled.pull().returncode == 0
    found = sorted(str(path.relative_to(pulled.copy)) for path in pulled.copy.rglob("*") if not path.is_dir())
    element = "web1/www/reports/6b0365e0/6b0365e03d090b"
    assert found == [element, f"web1/www/survey/{segment.name}", "web1/www/survey/line\nfeed"]


def test_states_of_polls_are_those_of_the_server_and_nothing_else_goes_with_them(pulled: Pulled) -> None:
    segment = pulled.visit("web1")
    state = segment.parents[1] / "poll/cf/1795384800.json"
    state.parent.mkdir(parents=True)
    entry = segment.parents[1] / "form-x/1.json"
    entry.parent.mkdir()
    for path in (state, entry):
        path.write_text("12")
    pulled.pull()
    copies = [pulled.copy / path.relative_to(pulled.real) for path in (state, entry, segment)]
    stamp = state.stat().st_mtime_ns
    state.write_text("21")
    os.utime(state, ns=(stamp + 10**9, stamp + 10**9))
    pulled.pull()
    assert [path.read_bytes() for path in copies] == [b"21", b"12", segment.read_bytes()]
    for path in (state, entry, segment):
        path.unlink()
    assert pulled.pull().returncode == 0
    assert [path.exists() for path in copies] == [False, True, True]


def test_what_was_read_goes_from_the_copy_a_day_after_the_server_may_drop_it(pulled: Pulled) -> None:
    old, young, unread = (pulled.visit("web1", time.time() - days * 86400) for days in (0, 0, 0))
    assert old == young == unread
    days = [old.with_name(time.strftime("%Y-%m-%d.jsonl", time.gmtime(time.time() - age * 86400))) for age in (1, 3)]
    for day, number in zip(days, "12", strict=True):
        day.write_text(f'{{"id":"{number * 16}","time":1795305600,"agent":"x"}}\n')
    pulled.pull()
    assert pulled.counted() == "5"
    for day in days:
        day.unlink()
    assert pulled.pull().returncode == 0
    left = sorted(path.name for path in (pulled.copy / "web1/www/survey").iterdir())
    assert left == sorted([days[0].name, old.name])


def test_key_that_may_only_read_is_enough_and_writes_nothing(pulled: Pulled) -> None:
    segment = pulled.visit("web1")
    keys = pulled.cluster.root / "authorized_keys"
    keys.write_text(f'restrict,command="rrsync -ro {pulled.real}/web1" {keys.read_text()}')
    pulled.configure(str(pulled.copy), ".", "web1")
    done = pulled.pull()
    assert (done.returncode, done.stderr) == (0, "")
    assert pulled.counted() == "1"
    ssh = f"ssh -F {pulled.cluster.config_file}"
    for target in ("web1:", "web1:www/survey/"):
        command = ["rsync", "-t", "-e", ssh, "/etc/passwd", target]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert [path.name for path in segment.parent.iterdir()] == [segment.name]


def test_element_of_a_queue_counts_once_whoever_drops_it_first(pulled: Pulled) -> None:
    queue = pulled.queue("web1", "survey", days=3)
    for _ in range(3):
        queue.add(json.dumps({"id": os.urandom(12).hex(), "time": time.time(), "agent": "x"}).encode())
    pulled.pull()
    assert pulled.counted() == "3"
    # The copy would be old enough; but its server has it still, and it would come again.
    assert pulled.pull().returncode == 0
    assert len(pulled.elements("survey")) == 3
    assert pulled.counted() == "0"
    away = pulled.real.rename(pulled.real.with_name("away"))
    assert pulled.pull().returncode == 1 and len(pulled.elements("survey")) == 3
    away.rename(pulled.real)
    pulled.sweep("web1")
    assert queue.count() == 0
    assert pulled.pull().returncode == 0 and not pulled.elements("survey")
    # What a server lost before it was read is in the copy still.
    name = queue.add(json.dumps({"id": "0" * 24, "time": time.time(), "agent": "x"}).encode())
    pulled.pull()
    (pulled.real / "web1/www/survey" / name).unlink()
    pulled.pull()
    assert pulled.counted() == "1"
    assert pulled.pull().returncode == 0 and not pulled.elements("survey")
    assert pulled.counted() == "0"


def test_reports_of_nodes_come_too_and_take_effect_once(pulled: Pulled) -> None:
    for number, server in enumerate((*SERVERS, "web1")):
        message = wire.Message("REPORT", f"m{number}", "node1", "Other", b"x", {"period": "60"})
        pulled.queue(server, "reports", days=3).add(wire.content(message))
    pulled.pull()
    assert len(pulled.elements("reports")) == 3
    told = [pulled.site.batch("controller", "-once").stdout for _ in range(2)]
    assert "3 reports read" in told[0] and "0 reports read" in told[1]
    pulled.pull()
    assert len(pulled.elements("reports")) == 3
    pulled.sweep("web1")
    pulled.pull()
    assert len(pulled.elements("reports")) == 1
    assert "0 reports read" in pulled.site.batch("controller", "-once").stdout


def answer(pulled: Pulled, server: str, number: int, store: str) -> None:
    """Gather an answer with a file, as form.cgi does."""
    top, name = pulled.real / server / "www", f"{number:032x}"
    content = f"{number} ".encode() * 8000
    file = f"{name}-picture-0-0.txt"
    (top / "form-guestbook.files").mkdir(exist_ok=True)
    (top / "form-guestbook.files" / file).write_bytes(content)
    told = {"name": "a", "type": "text/plain", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record = {
        "id": name,
        "time": time.time(),
        "name": "Ann",
        "entry": "x" * 50000,
        "picture": [{**told, "file": file}],
    }
    if store == "entries":
        (top / "form-guestbook").mkdir(exist_ok=True)
        (top / "form-guestbook" / f"{name}.json").write_text(json.dumps(record) + "\n")
    else:
        kept_in = drop.QUEUE if store == "queue" else drop.SEGMENTS
        drop.append("form-guestbook", record, SETTINGS, str(top), kept_in)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["segment", "entries", "queue"])
def test_pull_that_is_killed_anywhere_loses_nothing_and_leaves_nothing(pulled: Pulled, store: str) -> None:
    """Killed at growing times, while servers gather and nights read what has come; then one is let through."""
    slow = pulled.site.root / "slow"
    slow.write_text('#!/bin/sh\nexec rsync --bwlimit=500 "$@"\n')
    slow.chmod(0o755)
    pulled.configure(str(pulled.copy), rsync=str(slow))
    form = GUESTBOOK.replace('mail = "night"', 'mail = "never"').replace("upload_kb = 2", "upload_kb = 64")
    declare(pulled.site, text=stored_as(store, form))
    environment = pulled.site.environment()
    # A night needs a place to read from, also where the first pull is killed before it has made it.
    pulled.copy.mkdir()
    sent = visits = counted = 0
    for turn in range(10):
        for server in SERVERS:
            for _ in range(8):
                answer(pulled, server, sent, store)
                sent += 1
            for _ in range(100):
                pulled.visit(server)
                visits += 1
        with subprocess.Popen([sys.executable, ROOT / "batch/gather-pull"], env=environment) as process:
            try:
                process.wait(0.3 + 0.2 * turn)
            except subprocess.TimeoutExpired:
                process.kill()
        if turn % 4:  # else it is an orphan that works on
            subprocess.run(["pkill", "-9", "-f", f"{pulled.copy}/web"], check=False)
        counted += int(pulled.counted().replace(",", ""))
        assert "Traceback" not in pulled.site.batch("forms-nightly").stderr
    subprocess.run(["pkill", "-9", "-f", f"{pulled.copy}/web"], check=False)
    pulled.configure(str(pulled.copy))
    done = pulled.pull()
    assert (done.returncode, done.stderr) == (0, "")
    counted += int(pulled.counted())
    assert counted == visits
    night = pulled.site.batch("forms-nightly")
    assert (night.returncode, night.stderr) == (0, "")
    kept = pulled.site.root / "state/forms/guestbook"
    ids = [
        row["id"] for file in kept.glob("*.csv") for row in csv.DictReader(file.read_text("utf-8-sig").splitlines())
    ]
    assert sorted(ids) == [f"{number:032x}" for number in range(sent)]
    assert len(list((kept / "files").iterdir())) == sent
    assert not [path for path in pulled.copy.rglob(".*") if path.is_file()]


@pytest.mark.root
def test_full_disk_is_told_of_and_the_next_pull_goes_on(pulled: Pulled) -> None:
    pulled.copy.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "none", str(pulled.copy)], check=True)
    try:
        for _ in range(4000):
            pulled.visit("web1")
        pulled.visit("web2")
        done = pulled.pull()
        assert done.returncode == 1 and "cannot fetch all of web" in done.stderr and "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        before = int(pulled.counted())
        assert 0 < before < 4001
        subprocess.run(["mount", "-o", "remount,size=4m", str(pulled.copy)], check=True)
        assert pulled.pull().returncode == 0
        assert before + int(pulled.counted().replace(",", "")) == 4001
    finally:
        subprocess.run(["umount", "-l", str(pulled.copy)], check=True)
