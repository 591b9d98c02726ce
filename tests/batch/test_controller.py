# SPDX-License-Identifier: Apache-2.0
"""controller as a process over three servers: their reports, what is published and pushed, what owners drop."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from aggregate.cluster import until
from aggregate.house import files_report
from conftest import ROOT, Site
from infocluster.aggregate import answers, refusals, wire
from infocluster.apps import nodes_served
from infocluster.queue.simple import Simple

PUSH = '[aggregate]\npush = true\nmetrics_file = "{root}/metrics.prom"\naggregators = ["FileProcessor"]\n'


# Each is wrong in one thing, and the last two in none.
FAULTY = {
    "Pictured": "def sections(self, now): yield {'id': 'a', 'title': 'A', 'pictures': ['<svg></svg>']}",
    "Nameless": "def sections(self, now): yield {'title': 'B'}",
    "Blank": "def sections(self, now): yield {'id': 'my files', 'title': 'C'}",
    "Twice": "def sections(self, now): yield from ({'id': 'twice', 'title': 'D%d' % n} for n in range(2))",
    "Shown": "def sections(self, now): yield {'id': 'faults', 'title': 'E'}",
    "Textual": "def published(self): yield 'Sum'",
    "Numeric": "def published(self): yield {'type': 5}",
    "Dated": "requesttypes = 'Dated',; processREQUEST = lambda self, msg: [{'modtime': 1e300}]",
    "Types": "requesttypes = 5",
    "Told": "updatetype = 'no name'; getUpdateMessage = lambda self: 1",
    "Odd": "def doUpdates(self, now): return 'Odd', type('X', (), {'SerializeToString': 1})()",
    "Labelled": "def metrics(self, now): yield 'one', 'Help.', {'no good': '1'}, 2",
    "Dotted": "def metrics(self, now): yield 'a-b.c', 'Help.', {}, 2",
    "Borrowed": "def metrics(self, now): yield 'revision', 'Help.', {}, 2",
    "Reserved": "def metrics(self, now): yield 'own_refused_total', 'Help.', {}, 2",
    "Measured": "def metrics(self, now): yield 'measured', 'Help.', {'n': 1}, 'much'",
    "Hooked": "def process_GET_Graph(self, msg): return {'edges': 7}",
    "Good": """def sections(self, now):
        yield {'id': 'good', 'title': 'Good', 'pictures': [('P', '<svg id="p"></svg>')]}
    def metrics(self, now): yield 'good', 'Help.', {'n': 1}, 2
    def published(self): yield from ({'type': 'Good', 'n': str(n)} for n in range(2))
    def process_GET_Good(self, msg): return msg.fields['n']""",
}


def put(site: Site, server: str, message: wire.Message, age_s: float) -> None:
    queue = Simple(str(site.gather(server) / "reports"), clock=lambda: time.time() - age_s)
    queue.add(wire.content(message))


def element(site: Site, server: str) -> os.stat_result:
    (found,) = (path for path in (site.gather(server) / "reports").rglob("*") if path.is_file())
    return found.stat()


def test_reports_of_all_servers_are_read_published_pushed_and_dropped_by_their_owners(site: Site) -> None:
    site.configure(PUSH.format(root=site.root))
    refusals.note(str(site.gather("web1") / "reports.refused"), "signature")
    for number, server in enumerate(site.servers):
        put(site, server, files_report(f"old-{server}", f"node{number}", a_txt=server.encode()), 7200)
    put(site, "web1", files_report("young", "node0", b_txt=b"young"), 0)
    done = site.batch("controller", "-once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("controller: 4 reports read, 2 updates\n")
    # Every server answers from its own copy, by JSON and by hand of a person.
    for server in site.servers:
        reply = site.cgi("request.cgi", server=server, QUERY_STRING="type=FileList")
        assert [one["node"] for one in json.loads(reply.body)["files"]] == ["node0", "node0", "node1", "node2"]
        assert reply.fields["X-Infocluster-Source"] == "published" and int(reply.fields["Age"]) < 100
        query = "type=File&name=a.txt&node=node1&format=raw"
        assert site.cgi("request.cgi", server=server, QUERY_STRING=query).body == b"web2"
        # Of no node in particular, and there are three: nothing of this kind is published.
        assert site.cgi("request.cgi", server=server, QUERY_STRING="type=File&name=a.txt").status == 404
        shown = site.cgi("status.cgi", server=server).body.decode()
        assert "published it" in shown and "node2" in shown and "<td>silent</td>" in shown
        told = site.cgi("status.cgi", server=server, QUERY_STRING="format=openmetrics")
        assert told.fields["Content-Type"].startswith("application/openmetrics-text")
        assert 'infocluster_node_files{node="node0"} 2.0\n' in told.body.decode()
    assert (site.root / "metrics.prom").read_text().endswith("# EOF\n")
    # Run again it reads nothing anew, and publishes the same.
    again = site.batch("controller", "-once")
    assert again.stdout.endswith("controller: 0 reports read, 0 updates\n") and not again.stderr
    # What else was published then is shown by every server, and what is gathered on it.
    shown = site.cgi("status.cgi", server="web2").body.decode()
    for words in (
        "<h3>Pushes</h3>",
        "<td>gather/marks, world/nodes</td>",
        "<td>everywhere</td>",
        "<td>not taken by web1: signature</td><td>1</td>",
        f"<td>reports</td><td>1</td><td>{element(site, 'web2').st_size}</td>",
    ):
        assert words in shown, (words, shown)
    assert "<h3>Faults</h3>" not in shown
    # Each owner drops what was read, once nothing can be added to it; what is young stays.
    left = {}
    for server in site.servers:
        marks = str(site.delivered(server) / "gather/marks")
        swept = site.batch("gather-sweep", "-marks", marks, SERVER_GATHER=str(site.gather(server)))
        assert (swept.returncode, swept.stderr) == (0, "") and "drop 1 report\n" in swept.stdout
        left[server] = sum(len(names) for _, _, names in os.walk(site.gather(server) / "reports"))
    assert left == {"web1": 1, "web2": 0, "web3": 0}
    assert site.batch("controller", "-once").stdout.endswith("controller: 0 reports read, 0 updates\n")


def test_what_was_set_aside_is_listed_while_another_one_runs(site: Site) -> None:
    site.configure('[aggregate]\naggregators = ["FileProcessor"]\nfiles_limit = 1\n')
    put(site, "web1", files_report("1", a_txt=b"1", b_txt=b"2"), 0)
    command = [sys.executable, str(ROOT / "batch/controller"), "-serve"]
    with subprocess.Popen(command, env=site.environment(), stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stderr and "cannot keep the files of node1" in serving.stderr.readline()
            while not (listed := site.batch("controller", "-aside")).stdout.endswith("1 reports set aside\n"):
                assert listed.returncode == 0, listed.stderr  # not committed yet
            assert "FileProcessor: cannot keep the files of node1" in listed.stdout
            assert site.batch("controller", "-again").returncode == 75
        finally:
            serving.terminate()


HOLD = """
import sys
from infocluster.locks import pathlocks
with pathlocks.hold(["world"], directory=sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_push_of_what_is_published_keeps_no_report_and_no_request_waiting(site: Site, open_dir: Path) -> None:
    path = f"{open_dir}/socket"
    more = 'aggregators = ["FileProcessor"]\nlook_s = 0.1\nupdate_period_s = 0.1\n'
    site.configure(f'[aggregate]\nsocket = "{path}"\n{more}')
    page = site.production / "world/nodes/index.html"
    command = [sys.executable, str(ROOT / "batch/controller"), "-serve"]
    hold = [sys.executable, "-c", HOLD, str(site.root / "var/state/pathlocks")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(hold, env={"PYTHONPATH": str(ROOT / "lib")}, text=True, **pipes) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with subprocess.Popen(command, env=site.environment(), stderr=subprocess.PIPE, text=True) as serving:
            try:
                put(site, "web1", files_report("1", a_txt=b"1"), 0)
                query = {"type": "File", "name": "a.txt"}
                until(lambda: (nodes_served.ask(path, query, 5) or [0])[0] == 200)
                assert not page.exists()
                other.communicate("")
                until(lambda: page.exists() and "a.txt" in page.read_text())
                # Somebody tidied up there: it ends as it should all the same.
                os.unlink(path)
            finally:
                serving.terminate()
            said = serving.communicate()[1]
            assert said.startswith("controller: cannot lock world/nodes: ") and said.count("\n") == 1


def test_what_is_no_socket_is_not_removed_for_one(site: Site, open_dir: Path) -> None:
    (open_dir / "precious").write_text("kept")
    site.configure(f'[aggregate]\nsocket = "{open_dir}/precious"\n')
    done = site.batch("controller", "-serve")
    assert done.returncode == 78 and f"cannot listen at {open_dir}/precious" in done.stderr
    assert (open_dir / "precious").read_text() == "kept"
    # Nor is a place made up for a page where there is no production tree.
    shutil.rmtree(site.production)
    done = site.batch("controller", "-once")
    assert done.returncode == 1
    assert f"cannot publish world/nodes: {site.production}: No such file" in done.stderr


def test_report_that_is_not_ours_to_read_waits_and_holds_up_nothing(site: Site) -> None:
    site.configure('[aggregate]\naggregators = ["FileProcessor"]\n')
    for name in ("shut", "open"):
        put(site, "web1", files_report(name, a_txt=b"a"), 0)
    shut = min(path for path in (site.gather("web1") / "reports").rglob("*") if path.is_file())
    shut.chmod(0)
    # root reads everything, unless it is told not to
    under = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    for read in (1, 0):
        command = [*under, sys.executable, str(ROOT / "batch/controller"), "-once"]
        done = subprocess.run(
            command, env=site.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr.count("Permission denied")) == (1, 1), done.stderr
        assert done.stdout.startswith(f"controller: {read} report")
    shut.chmod(0o644)
    assert site.batch("controller", "-once").stdout.startswith("controller: 1 report read")


def test_what_an_install_would_remove_again_is_not_published(site: Site) -> None:
    (site.root / "var/wwwdev/world/nodes").mkdir()
    done = site.batch("controller", "-once")
    assert done.returncode == 1 and ".wwwinstrc add the lines" in done.stderr
    (site.root / "var/wwwdev/world/nodes/.wwwinstrc").write_text("*\n")
    assert site.batch("controller", "-once").returncode == 0
    assert (site.production / "world/nodes/index.html").exists()


def test_module_that_cannot_be_loaded_is_told_and_the_others_run(site: Site) -> None:
    modules = site.root / "modules"
    modules.mkdir(mode=0o755)
    (modules / "bad.py").write_text(
        "from infocluster.aggregate.base import Aggregator\nclass Bad(Aggregator): pass\n1 / 0\n"
    )
    site.configure(f'[aggregate]\nmodule_dirs = ["{modules}"]\naggregators = ["Bad", "FileProcessor"]\n')
    put(site, "web1", files_report("1", a_txt=b"x"), 0)
    done = site.batch("controller", "-once")
    assert done.returncode == 1 and f"{modules}/bad.py:3: cannot load it: ZeroDivisionError" in done.stderr
    assert done.stdout.endswith("controller: 1 report read, 1 update\n")
    assert site.batch("controller").returncode == 64
    # What cannot come about in a test of one host is put beside what was published.
    status = site.production / "world/nodes/status.json"
    values = json.loads(status.read_text())
    values["backups"] = [["web1", "cf one", "12:00", "running", "11:00", "40 %", "", ""]]
    values["locks"] = [["world/a", "holds", "www", 1795384800.0], ["a slot", "waits", "ftp", 1795384800.0]]
    values["servers"] = [{"name": "web3", "lacks": ["world/b"]}, {"name": "web2", "lacks": []}]
    status.write_text(json.dumps(values))
    root = str(site.production / "world")
    shown = site.cgi("status.cgi", DOCUMENT_ROOT=root).body.decode()
    for words in (
        "bad.py:3: cannot load it",
        "cf one",
        "<td>world/a</td><td>holds</td>",
        "<td>a slot</td>",
        "world/b",
    ):
        assert words in shown, (words, shown)
    for guard in ('allow = ["192.0.2.7"]', 'token = "none"'):
        site.configure(f"[poll]\n{guard}\n")
        assert "cf one" not in site.cgi("status.cgi", DOCUMENT_ROOT=root).body.decode()


def test_aggregator_that_gives_what_nobody_can_use_is_told_and_the_others_are_published(site: Site) -> None:
    modules = site.root / "modules"
    modules.mkdir(mode=0o755)
    text = "".join(f"class {name}(Aggregator):\n    {body}\n" for name, body in FAULTY.items())
    (modules / "own.py").write_text("from infocluster.aggregate.base import Aggregator\n" + text)
    named = ", ".join(f'"{name}"' for name in FAULTY)
    site.configure(f'[aggregate]\nmodule_dirs = ["{modules}"]\naggregators = [{named}]\n')
    done = site.batch("controller", "-once")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stdout.endswith("controller: 0 reports read, 0 updates\n")
    for name in FAULTY:
        assert (f" {name}" in done.stderr) is (name not in ("Hooked", "Good")), (name, done.stderr)
    nodes = site.production / "world/nodes"
    graph = json.loads((nodes / answers.answer_name({"type": "Graph"})).read_text())
    assert graph == {"edges": 7} and "Hooked: Graph" in (nodes / "index.html").read_text()
    assert '<svg id="p">' in (nodes / "index.html").read_text()
    metrics = (nodes / "metrics.txt").read_text()
    assert 'infocluster_good{n="1"} 2.0\n' in metrics
    assert metrics.count("Help.") == 1 and "infocluster_revision 0.0\n" in metrics
    for n in range(2):
        assert json.loads((nodes / answers.answer_name({"type": "Good", "n": str(n)})).read_text()) == str(n)
