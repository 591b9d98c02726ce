# SPDX-License-Identifier: Apache-2.0
"""gather-query as a process: the records of all servers, and nothing else of this host."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dirq.QueueSimple import QueueSimple

from conftest import ROOT, Site
from infocluster.gather import drop

SETTINGS = {"durable": False, "lock_timeout_s": 10, "limit_bytes": 65536}


@pytest.fixture
def gathered(site: Site) -> Site:
    for number, server in enumerate(site.servers):
        for day in range(number + 1):
            record = {"time": 1795384800.25 + 86400 * day, "agent": 'it\'s; "odd"\n', f"only_{server}": day}
            drop.append("survey", record, SETTINGS, str(site.gather(server)))
    drop.append("form-signup", {"email": "ann@example.org", "topics": ["a", "b"]}, SETTINGS, str(site.gather("web2")))
    with next((site.gather("web1") / "survey").glob("*.jsonl")).open("ab") as file:
        file.write(b'not json\n{"id":"x","time":1,"agent":"torn')
    return site


def test_records_of_all_servers_are_found_as_table_csv_and_json(gathered: Site) -> None:
    asked = "select server, host, app, count(*) n, max(time) last from survey group by all order by server"
    done = gathered.batch("gather-query", asked)
    assert (done.returncode, done.stderr) == (0, "")
    head, line, *rows = done.stdout.splitlines()
    assert head.split() == ["server", "host", "app", "n", "last"] and set(line) == {"-", " "}
    assert [row.split()[:4] for row in rows] == [[f"web{n}", "www", "survey", str(n)] for n in (1, 2, 3)]
    done = gathered.batch("gather-query", "-json", 'select server, email, topics from "form-signup"')
    assert json.loads(done.stdout) == {"server": "web2", "email": "ann@example.org", "topics": ["a", "b"]}
    done = gathered.batch(
        "gather-query", "-csv", "select agent, segment, only_web3 from survey order by time desc limit 1"
    )
    assert done.stdout == 'agent,segment,only_web3\n"it\'s; ""odd""\n",2026-11-24.jsonl,2\n'


def test_entries_and_queues_are_read_beside_segments(gathered: Site) -> None:
    top = gathered.gather("web3") / "form-signup"
    drop.append("form-signup", {"email": "bob@example.org"}, SETTINGS, str(gathered.gather("web3")), drop.QUEUE)
    queue = QueueSimple(str(top))
    queue.add("no record of ours")
    record = {"id": "f" * 32, "time": 1795384800.5, "email": "cleo@example.org"}
    (top / f"{record['id']}.json").write_text(json.dumps(record) + "\n")
    asked = 'select server, segment, email from "form-signup" order by email'
    done = gathered.batch("gather-query", "-json", asked)
    assert (done.returncode, done.stderr) == (0, "")
    ann, bob, cleo = map(json.loads, done.stdout.splitlines())
    assert (ann["server"], ann["email"]) == ("web2", "ann@example.org")
    assert bob == {"server": "web3", "segment": next(iter(queue.names())), "email": "bob@example.org"}
    assert cleo == {"server": "web3", "segment": "f" * 32 + ".json", "email": "cleo@example.org"}


@pytest.mark.parametrize(
    "asked",
    [
        "select * from nosuch",
        "selec",
        " -- ",
        "select * from read_text('/etc/passwd')",
        "copy (select 1) to '{top}/out.csv'",
        "attach '{top}/x.db'",
        "set enable_external_access = true",
    ],
)
def test_query_that_is_wrong_or_reaches_out_is_refused(gathered: Site, asked: str) -> None:
    done = gathered.batch("gather-query", asked.replace("{top}", str(gathered.root)))
    assert done.returncode == 65 and done.stderr.startswith("gather-query: cannot query: "), done.stdout
    assert "\\x" not in done.stderr
    assert not Path(gathered.root / "out.csv").exists()


@pytest.mark.parametrize("output", ["-csv", "-json"])
def test_output_that_cannot_be_written_is_told_in_a_line(site: Site, output: str) -> None:
    command = [sys.executable, str(ROOT / "batch/gather-query"), output, "select * from range(100000)"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, env=site.environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (75, 1) and "No space left" in done.stderr


def test_application_without_records_hides_no_other(gathered: Site) -> None:
    (gathered.gather() / "strange").mkdir()
    (gathered.gather() / "strange/2026-11-22.jsonl").write_text("[1]\n")
    asked = "select (select count(*) from survey) as n, (select count(*) from information_schema.tables) as t"
    for names, t, fault in (("", 1, False), (" -- strange", 1, True), (', "form-signup"', 2, False)):
        done = gathered.batch("gather-query", "-csv", f"select n, t from ({asked}){names}")
        assert (done.returncode, done.stdout) == (fault, f"n,t\n6,{t}\n"), done.stderr
        assert fault == ("cannot make a table of strange" in done.stderr)


def test_answer_that_was_sent_twice_is_one_row_the_earlier_one(gathered: Site) -> None:
    for server, time_s in (("web1", 1795384801.0), ("web3", 1795384800.0)):
        record = {"id": "e" * 32, "time": time_s, "email": f"{server}@example.org"}
        drop.append("form-signup", record, SETTINGS, str(gathered.gather(server)))
    done = gathered.batch("gather-query", "-csv", 'select server, email from "form-signup" order by server')
    assert done.stdout.splitlines() == ["server,email", "web2,ann@example.org", "web3,web3@example.org"]


def test_without_anything_gathered_a_query_still_has_an_answer(site: Site) -> None:
    assert site.batch("gather-query", "select 1 + 1 as two").stdout.split() == ["two", "---", "2"]
