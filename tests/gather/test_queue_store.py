# SPDX-License-Identifier: Apache-2.0
"""An application that gathers in a directory queue: counted once, whoever removes what was read."""

import json
import os
import time
from pathlib import Path

import pytest
from dirq.QueueSimple import QueueSimple

from conftest import Site
from infocluster.gather import drop, marks, sweep
from infocluster.queue.simple import Simple

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"


def prepared(site: Site, store: str = "queue") -> Site:
    site.protect("world/survey", "*\n")
    (site.root / "var/wwwdev/gather/marks").mkdir(parents=True, exist_ok=True)
    site.protect("gather/marks", "*\n")
    site.configure(f'[survey]\nstore = "{store}"\n[gather]\nkeep_days = 0\n')
    return site


def visits(site: Site) -> int:
    return int(json.loads((site.production / "world/survey/index.json").read_text())["visits"])


def hit(site: Site, server: str = "web1") -> None:
    assert site.cgi("survey.cgi", server=server, HTTP_USER_AGENT=AGENT).status == 200


def test_night_counts_a_queue_once_and_consumes_what_it_may_remove(site: Site) -> None:
    prepared(site)
    for server in ("web1", "web2", "web1"):
        hit(site, server)
    queue = QueueSimple(str(site.gather("web1") / "survey"))
    assert queue.count() == 2
    done = site.batch("survey-nightly")
    assert (done.returncode, done.stderr) == (0, "")
    assert visits(site) == 3
    assert queue.count() == 0
    hit(site)
    site.batch("survey-nightly")
    assert visits(site) == 4


def test_change_of_the_store_loses_nothing(site: Site) -> None:
    for store in ("segments", "queue", "segments"):
        prepared(site, store)
        hit(site)
    site.batch("survey-nightly")
    assert visits(site) == 3


@pytest.mark.root
def test_night_that_may_not_remove_keeps_a_cursor_and_the_owner_sweeps(open_dir: Path) -> None:
    site = prepared(Site(open_dir / "site").build())
    for path in (site.state, site.production, site.root / "var/wwwdev"):
        os.system(f"chown -R 61001 {path}")
    for _ in range(3):
        hit(site)
    top = site.gather() / "survey"
    queue = QueueSimple(str(top))
    for counted in (3, 3, 4):
        if counted == 4:
            hit(site)
        done = as_user(61001, site)
        assert (done, visits(site)) == (0, counted)
    assert queue.count() == 4
    environment = {"SERVER_GATHER": str(site.gather())}
    locked = next(iter(queue.names()))
    assert queue.lock(locked)
    done = site.batch("gather-sweep", **environment)
    assert done.returncode == 0 and done.stdout.count("drop survey/") == 3
    assert list(queue.names()) == [locked]
    queue.unlock(locked)
    hit(site)
    assert as_user(61001, site) == 0
    assert visits(site) == 5


def as_user(uid: int, site: Site) -> int:
    """Run the night as a user who owns the production tree and may only read what is gathered."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([uid])
            os.setgid(uid)
            os.setuid(uid)
            status = site.batch("survey-nightly").returncode
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_element_that_no_mark_names_or_is_young_stays(tmp_path: Path) -> None:
    settings = {"durable": True, "lock_timeout_s": 10, "limit_bytes": 65536}
    ids = [drop.append("survey", {"agent": "x"}, settings, str(tmp_path), drop.QUEUE) for _ in range(2)]
    queue = QueueSimple(str(tmp_path / "survey"))
    first, second = queue.names()
    read = [
        marks.Mark("web1", "www", "survey", first, ids[0], 1),
        # Another server's, of the same name.
        marks.Mark("web2", "www", "survey", second, "5f0c2a9be7d14c33", 1),
        marks.Mark("web2", "www", "survey", "6b0365e0/6b0365e03d090b", "5f0c2a9be7d14c33", 1),
    ]
    died = tmp_path / "survey" / first[:8] / f"{'0' * 14}.tmp"
    died.touch()
    os.utime(died, (1, 1))
    said: list[str] = []
    for now, left in ((time.time() + 86399, [first, second]), (time.time() + 86401, [second])):
        sweep.sweep(str(tmp_path), "survey", read, 1, now, 1, said.append, said.append)
        assert list(queue.names()) == left
    assert said == [f"drop survey/{first}"]
    assert not died.exists()


@pytest.mark.root
def test_what_cannot_be_listed_for_a_night_or_cleared_is_told_and_nothing_counts_twice(open_dir: Path) -> None:
    site = prepared(Site(open_dir / "site").build())
    for path in (site.state, site.production, site.root / "var/wwwdev"):
        os.system(f"chown -R 61001 {path}")
    top = site.gather() / "survey"
    names = []
    for content in (
        b'{"id":"00000000000000a1","time":1,"agent":"x"}\n',
        b'{"id":"00000000000000a2","time":2,"agent":"x"}',
    ):
        names.append(Simple(str(top), granularity_s=1, clock=lambda: 1795384800.0 + len(names)).add(content))
    hidden = top / names[1][:8]
    # A top that is ours to write, and below it what is another's and died.
    os.chown(top, 0, 61001)
    top.chmod(0o2775)
    (top / names[0][:8] / "0123456789abcd.tmp").touch()
    os.utime(top / names[0][:8] / "0123456789abcd.tmp", (1, 1))
    for mode, status in ((0o755, 1), (0, 1), (0o755, 1)):
        hidden.chmod(mode)
        assert as_user(61001, site) == status
        assert visits(site) == 2
    (top / names[0][:8] / "0123456789abcd.tmp").unlink()
    assert as_user(61001, site) == 0
    read = json.loads((site.production / "gather/marks/survey.json").read_text())["marks"]
    assert [(mark["segment"], mark["first_id"][-2:]) for mark in read] == [(names[0], "a1"), (names[1], "a2")]
