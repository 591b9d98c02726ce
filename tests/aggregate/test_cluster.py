# SPDX-License-Identifier: Apache-2.0
"""Reports through real processes: node-report, Apache and report.cgi, queue, controller, request.cgi, the page."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from aggregate.cluster import KEY, SEED, Cluster, cluster, until
from aggregate.house import files_report
from conftest import Site
from infocluster.aggregate import messages_pb2, refusals, reports, signing, wire

MORE = 'collectors = ["FileCollector", "CounterCollector", "HealthCollector"]\nfiles = ["{top}/out/*"]\n'


def page(site: Cluster) -> str:
    status, _, body = site.get("/nodes/")
    assert status == 200
    return body.decode()


@pytest.mark.root
def test_the_first_aggregator_ever_written_gets_files_from_a_node_to_the_page(open_dir: Path) -> None:
    with cluster(open_dir, 'aggregators = ["FileProcessor", "Counters", "NodeHealth"]') as site:
        (open_dir / "modules/seed.py").write_text(SEED.replace("@storagedir@", f"{open_dir}/seed"))
        (open_dir / "out").mkdir()
        (open_dir / "out/result.txt").write_text("forty-two\n")
        site.node("node1", MORE.format(top=open_dir))
        done = site.run("node-report", conf="node1")
        assert (done.returncode, done.stdout, done.stderr) == (
            0,
            "node-report: 3 reports made, 3 handed in, 0 left\n",
            "",
        )
        # Nobody listens yet, and nothing is published.
        status, fields, _ = site.get("/cgi-bin/request.cgi?type=FileList")
        assert (status, fields["Retry-After"]) == (503, "10")
        done = site.run("controller", "-once")
        assert (done.returncode, done.stdout, done.stderr) == (0, "controller: 3 reports read, 3 updates\n", "")
        # From what was published, with its age.
        status, fields, body = site.get("/cgi-bin/request.cgi?type=FileList")
        (file,) = json.loads(body)["files"]
        assert (status, file["name"]) == (200, "result.txt")
        assert fields["X-Infocluster-Source"] == "published" and int(fields["Age"]) < 60
        assert site.get("/cgi-bin/request.cgi?type=FileList", If_None_Match=fields["ETag"])[0] == 304
        status, fields, body = site.get(
            "/cgi-bin/request.cgi?type=File&name=result.txt", Accept="application/x-protobuf"
        )
        assert messages_pb2.Files.FromString(body).files[0].data == b"forty-two\n"
        status, fields, body = site.get("/cgi-bin/request.cgi?type=File&name=result.txt&format=raw")
        assert body == b"forty-two\n" and fields["Content-Disposition"].startswith("attachment")
        told = site.ask("updates&since=0")
        assert [one["type"] for one in told["updates"]] == ["FileList", "Counters", "Health"] and not told["reset"]
        assert site.ask(f"updates&since={told['revision']}")["updates"] == []
        assert site.ask("updates&since=99999")["reset"] and site.ask("updates&since=1&epoch=other")["reset"]
        body = site.get("/cgi-bin/request.cgi?updates", Accept="application/x-protobuf")[2]
        parsed = messages_pb2.Updates.FromString(body)
        assert (parsed.revision, parsed.epoch, len(parsed.updates)) == (told["revision"], told["epoch"], 3)
        assert messages_pb2.Files.FromString(parsed.updates[0].data).files[0].name == "result.txt"
        html = page(site)
        for word in ("node1", "result.txt", "<svg", "processor seconds", "reporting"):
            assert word in html, word
        # Live, once the controller stays.
        with site.serving() as controller:
            until(lambda: site.get("/cgi-bin/request.cgi?type=FileList")[1]["X-Infocluster-Source"] == "live")
            (open_dir / "out/more.txt").write_text("more\n")
            assert site.run("node-report", conf="node1").returncode == 0
            until(lambda: len(site.ask("type=FileList")["files"]) == 2)
            until(lambda: "more.txt" in page(site))
            assert site.ask("type=File&name=more.txt")["files"][0]["data"] == "bW9yZQo="
            assert site.get("/cgi-bin/request.cgi?type=File&name=none")[0] == 404
            # What a node handed in is kept and runs nowhere; pages have the policy of the site.
            _, fields, body = site.get("/cgi-bin/request.cgi?type=File&name=more.txt&format=raw")
            assert body == b"more\n" and fields["Content-Disposition"].startswith("attachment")
            assert fields["Content-Security-Policy"] == "default-src 'none'; sandbox"
            assert site.get("/nodes/")[1]["Content-Security-Policy"].startswith("default-src 'self'; ")
            assert site.get("/cgi-bin/request.cgi?type=Nothing")[0] == 404
            body = site.get("/cgi-bin/request.cgi?updates", Accept="application/x-protobuf")[2]
            assert len(messages_pb2.Updates.FromString(body).updates) > 3
            # There is one controller; one that does not answer in time is not waited for.
            assert site.run("controller", "-once").returncode == 75
            controller.send_signal(signal.SIGSTOP)
            fields = site.get("/cgi-bin/request.cgi?type=FileList")[1]
            assert fields["X-Infocluster-Source"] == "published"
            controller.send_signal(signal.SIGCONT)
        assert "Failed open/read none" in site.told and site.told.count("\n") == 1
        metrics = site.get("/cgi-bin/status.cgi?format=openmetrics")[2].decode()
        assert 'infocluster_node_up{node="node1"} 1.0\n' in metrics and metrics.endswith("# EOF\n")
        assert "infocluster_own_queue 6\n" in metrics
        assert b"node1" in site.get("/cgi-bin/status.cgi")[2]
        # The owner drops what was read.
        assert (open_dir / "www/gather/marks/reports.queue").exists()
        queue = open_dir / "own/reports"
        later = time.time() + 3600
        marks = (open_dir / "www/gather/marks/reports.queue").read_bytes()
        assert reports.sweep(str(queue), marks, "marks", later, 0, print) == 0  # it was not yet over then


@pytest.mark.root
def test_report_that_is_not_to_be_taken_is_refused_counted_and_kept_nowhere(open_dir: Path) -> None:
    with cluster(open_dir, has_socket=False) as site:
        site.node("node1")
        good = files_report("good", a_txt=b"1")
        assert site.report(good) == (200, "stored good\n")
        assert site.report(good) == (200, "duplicate good\n")
        assert site.report(files_report("x", "node2", a_txt=b"1"))[0] == 403
        assert site.report(files_report("x", a_txt=b"1"), signature="0" * 64)[0] == 403
        assert site.report(files_report("x", a_txt=b"1"), signature="")[0] == 403
        assert site.report(files_report("x", a_txt=b"1"), id="y")[0] == 403
        assert site.report(files_report("x", a_txt=b"1"), node="../../infocluster.toml")[0] == 403
        assert site.report(files_report("x", a_txt=b"1"), date=str(int(time.time()) - 1000))[0] == 403
        assert site.report(files_report("x", a_txt=b"1"), date="soon")[0] == 400
        update = files_report("u", a_txt=b"1")
        update.kind = "UPDATE"
        assert site.report(update)[0] == 400
        assert site.get("/cgi-bin/report.cgi")[0] == 405
        elements = [name for _, _, names in os.walk(open_dir / "own/reports") for name in names]
        assert len(elements) == 1
        text = (open_dir / "own/reports.refused").read_text()
        for line in ("count unknown 2", "count signature 3", "count clock 1", "count malformed 2", "ghost node2 1 "):
            assert line in text
        shown = site.get("/cgi-bin/status.cgi")[2].decode()
        assert "node2" in shown and "not taken: signature" in shown
        done = site.run("controller", "-once")
        assert done.stdout.startswith("controller: 1 report read"), done.stderr
        assert "node2" in page(site)


@pytest.mark.root
def test_report_waits_in_the_spool_while_no_server_takes_it_and_leaves_in_order(open_dir: Path) -> None:
    with cluster(open_dir, has_socket=False) as site:
        site.node(
            "node1", 'collectors = ["FileCollector"]\nfiles = ["' + str(open_dir) + '/out/*"]\nspool_limit = 4\n'
        )
        key = open_dir / "infocluster/etc/secrets/nodes/node1"
        text = key.read_bytes()
        key.unlink()
        (open_dir / "out").mkdir()
        for number in range(6):
            (open_dir / "out/a.txt").write_text("x" * number)
            done = site.run("node-report", conf="node1")
            assert done.returncode == 1 and "answers 403" in done.stderr
        assert "5 left" not in done.stdout and "4 left" in done.stdout
        key.write_bytes(text)
        done = site.run("node-report", "-resend", conf="node1")
        assert done.stdout == "node-report: 0 reports made, 4 handed in, 0 left\n" and done.returncode == 0
        found = []
        for directory, _, names in sorted(os.walk(open_dir / "own/reports")):
            found += [(Path(directory) / name).read_bytes() for name in sorted(names)]
        sizes = [len(messages_pb2.Files.FromString(one.partition(b"\n\n")[2]).files[0].data) for one in found]
        assert sizes == [2, 3, 4, 5]


def test_whatever_is_not_taken_is_counted_by_its_reason(site: Site) -> None:
    keys = site.root / "etc/secrets/nodes"
    keys.mkdir(parents=True)
    (keys / "node1").write_bytes(KEY)
    body = wire.content(files_report("good", a_txt=b"1"))
    date = int(time.time())
    signed = {
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_X_SEER_NODE": "node1",
        "HTTP_X_SEER_ID": "good",
        "HTTP_X_SEER_DATE": str(date),
        "HTTP_X_SEER_SIGNATURE": signing.sign(KEY, "POST", "/cgi-bin/report.cgi", "node1", "good", date, body),
    }
    for changed, status, word in (
        ({}, 200, ""),
        ({}, 200, "duplicate"),
        ({}, 200, "duplicate"),
        ({"REQUEST_METHOD": "GET"}, 405, "method"),
        ({"CONTENT_LENGTH": ""}, 411, "length"),
        ({"CONTENT_LENGTH": "5000000"}, 413, "size"),
        ({"CONTENT_LENGTH": "x"}, 400, "malformed"),
        ({"CONTENT_LENGTH": str(len(body) + 1)}, 400, "malformed"),
        ({"HTTP_X_SEER_NODE": "node2"}, 403, "unknown"),
        ({"HTTP_X_SEER_DATE": "1"}, 403, "clock"),
        ({"HTTP_X_SEER_ID": "other"}, 403, "signature"),
    ):
        path = str(site.gather() / "reports.refused")
        before = refusals.read(path).counts
        reply = site.cgi("report.cgi", "POST", body, **{**signed, **changed})
        assert reply.status == status, (changed, reply.body, reply.errors)
        counts = refusals.read(path).counts
        assert counts == ({**before, word: before.get(word, 0) + 1} if word else before), changed
    shown = site.cgi("status.cgi").body.decode()
    assert "not taken: duplicate" in shown and "not taken: size" in shown


def test_request_with_odd_arguments_is_an_answer_and_never_a_fault(site: Site) -> None:
    (site.delivered("web1") / "world/nodes").mkdir(parents=True)
    (site.delivered("web1") / "world/nodes/updates.json").write_text("{}")
    for query, status in (
        ("", 400),
        ("type=", 400),
        ("type=../../etc", 400),
        ("type=File&type=File", 400),
        ("type=File&name=../../../etc/passwd", 404),
        ("type=File&name=%00", 400),
        ("type=File&name=" + "a" * 400, 400),
        ("type=File&Src=x", 400),
        ("type=File&src=x", 400),
        ("type=Updates", 400),
        ("&".join(f"a{n}=1" for n in range(20)), 400),
        ("updates&since=x", 503),
        ("type=%ff%fe", 400),
    ):
        reply = site.cgi("request.cgi", QUERY_STRING=query)
        assert reply.status == status, (query, reply.body, reply.errors)
