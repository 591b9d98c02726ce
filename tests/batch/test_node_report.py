# SPDX-License-Identifier: Apache-2.0
"""node-report as a process: the order of what waits, what a server will never take, collectors that fail."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aggregate.cluster import KEY, until
from conftest import ROOT, Site
from infocluster.aggregate import messages_pb2, wire

MODULE = """from infocluster.aggregate.base import Collector, Module
class Numbers(Module):
    def __init__(self):
        for n in range(3): self.saveData(n, f"part{n}")
    def all(self):
        return [self.restoreData(None, part) for part in self.savedParts()]
class Three(Collector):
    DEPENDS = ["Numbers"]
    def getReport(self, now):
        return [("Number", str(n).encode()) for n in self.other("Numbers").all()]
class Raises(Collector):
    def getReport(self, now):
        raise RuntimeError("broken")
class Hangs(Collector):
    def getReport(self, now):
        while True: pass
class Typed(Collector):
    def getReport(self, now):
        return [("my type", b"x"), ("Number", b"typed")]
class Large(Collector):
    def getReport(self, now):
        return "Number", b"x" * (1 << 24) + b"y"
class Deaf(Collector):
    def getReport(self, now):
        return "Number", b"deaf"
    def delivered(self, report):
        raise ValueError("not to me")
class Wrong(Collector):
    def getReport(self, now):
        return "text"
"""


@contextmanager
def taker(answers: list[int | None]) -> Iterator[tuple[int, list[bytes]]]:
    """Serve HTTP on a port: the next status of the list to each POST, None hangs up, 200 after the last."""
    taken: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            message = wire.parse(self.rfile.read(int(self.headers["Content-Length"])))
            status = answers.pop(0) if answers else 200
            if status is None:
                self.close_connection = True
                return
            body = f"{'stored' if status == 200 else 'refused:'} {message.id}\n".encode()
            if status == 200:
                taken.append(message.data)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, taken
        finally:
            server.shutdown()
            thread.join()


def configure(site: Site, port: int, *collectors: str, more: str = "") -> None:
    modules = site.root / "modules"
    modules.mkdir(mode=0o755, exist_ok=True)
    (modules / "own.py").write_text(MODULE)
    keys = site.root / "etc/secrets/nodes"
    keys.mkdir(parents=True, exist_ok=True)
    (keys / "node1").write_bytes(KEY)
    named = ", ".join(f'"{name}"' for name in collectors)
    site.configure(
        f'[aggregate]\nnode = "node1"\nreport_url = "http://127.0.0.1:{port}/x"\nmodule_dirs = ["{modules}"]\n'
        f"collectors = [{named}]\ncall_limit_s = 0.3\n{more}"
    )


def test_one_that_is_not_taken_now_is_overtaken_by_none(site: Site) -> None:
    with taker([200, 503, 200, 403]) as (port, taken):
        configure(site, port, "Three")
        said = []
        for expected in (1, 1, 0):
            done = site.batch("node-report", *(["-resend"] if said else []))
            assert done.returncode == expected, done.stderr
            said.append(done.stdout.partition("made, ")[2].strip())
        assert said == ["1 handed in, 2 left", "1 handed in, 1 left", "1 handed in, 0 left"]
        assert taken == [b"0", b"1", b"2"]


def test_what_a_server_will_never_take_is_set_aside(site: Site) -> None:
    with taker([413, 200, 400]) as (port, taken):
        configure(site, port, "Three")
        done = site.batch("node-report")
        assert done.returncode == 1 and done.stdout.endswith("1 handed in, 0 left\n") and taken == [b"1"]
        assert done.stderr.count("it is set aside") == 2
        assert len(list((site.root / "var/state/spool/refused").rglob("*"))) >= 3


def test_collector_that_fails_is_told_and_the_others_are_asked(site: Site) -> None:
    with taker([]) as (port, taken):
        configure(site, port, "Raises", "Hangs", "Wrong", "Typed", "Large", "Deaf", "Three", "Nowhere")
        done = site.batch("node-report")
        assert done.returncode == 1 and taken == [b"typed", b"deaf", b"0", b"1", b"2"], done.stderr
        for word in (
            "by Raises: RuntimeError: broken",
            "by Hangs: not done after 0.3 s",
            "by Wrong:",
            "what Typed collected: cannot read a message: its Type",
            "what Large collected: cannot read a message: a body of 16777217 bytes",
            "cannot tell Deaf that it was heard: ValueError: not to me",
            "'Nowhere'",
        ):
            assert word in done.stderr, word
        shown = site.batch("node-report", "-show")
        assert "Deaf: Number, 4 bytes" in shown.stdout and len(taken) == 5


def test_file_that_is_not_handed_in_is_told_when_it_changed(site: Site) -> None:
    for name in ("a", "b"):
        (site.root / name).mkdir()
        (site.root / name / "x").write_text(name)
    (site.root / "a/large").write_text("x" * 101)
    (site.root / "a/d").mkdir()
    (site.root / "a/-led").write_text("")
    (site.root / os.fsdecode(b"a/\xff")).write_text("")
    more = f'files = ["{site.root}/[ab]/*", "{site.root}/a/x"]\nfile_limit_bytes = 100\n'
    with taker([]) as (port, taken):
        configure(site, port, "FileCollector", more=more)

        def told() -> list[str]:
            done = site.batch("node-report")
            lines = done.stderr.splitlines()
            assert done.returncode == bool(lines), done.stderr
            return [line.removeprefix(f"node-report: cannot hand in {site.root}/") for line in lines]

        both = [f"b/x: {site.root}/a/x goes by the same name", "a/large: it has 101 bytes, at most 100"]
        odd = ["a/-led: its name is not plain", "a/\\udcff: its name is not plain"]
        assert sorted(told()) == sorted(both + odd) and len(taken) == 1
        assert told() == [] and len(taken) == 1
        (site.root / "b/x").write_text("other")
        assert told() == both[:1] and len(taken) == 1
        # Nothing stands in its way any more: it is handed in as it is.
        (site.root / "a/x").unlink()
        (site.root / "a/large").write_text("")
        assert told() == [] and len(taken) == 3
        found = {file.name: file.data for data in taken for file in messages_pb2.Files.FromString(data).files}
        assert found == {"x": b"other", "large": b""}
        # What is gone is not remembered for ever.
        kept = (site.root / "var/state/spool/kept.msgpack").read_bytes()
        assert b"b/x" in kept and b"a/x" not in kept


def test_the_spool_is_told_as_it_was_before_this_run(site: Site) -> None:
    with taker([503]) as (port, taken):
        configure(site, port, "Three", "HealthCollector")
        for _ in range(2):
            site.batch("node-report")
        waiting = [messages_pb2.Health.FromString(data).queues[-1].waiting for data in (taken[3], taken[7])]
        assert waiting == [0, 4]


def test_it_needs_its_spool_alone_and_is_alone_at_it(site: Site) -> None:
    (site.root / "var/state").rmdir()
    (site.root / "var/state").write_text("the place of another user")
    with taker([]) as (port, taken):
        configure(site, port, "Three", more=f'spool_dir = "{site.root}/spool"\n')
        assert site.batch("node-report").returncode == 0 and len(taken) == 3
        command = [sys.executable, str(ROOT / "batch/node-report"), "-follow"]
        with subprocess.Popen(command, env=site.environment(), stderr=subprocess.PIPE, text=True) as following:
            try:
                until(lambda: len(taken) == 6)
                done = site.batch("node-report")
                assert done.returncode == 75 and "spool/lock: held by pid" in done.stderr and len(taken) == 6
            finally:
                following.terminate()
            assert following.communicate()[1] == ""
        assert site.batch("node-report", "-resend").returncode == 0


def test_without_key_or_address_nothing_is_made(site: Site) -> None:
    configure(site, 1, "Three")
    (site.root / "etc/secrets/nodes/node1").unlink()
    assert site.batch("node-report").returncode == 78
    (site.root / "etc/secrets/nodes/node1").write_bytes(b"short")
    assert site.batch("node-report").returncode == 78
    (site.root / "etc/secrets/nodes/node1").write_bytes(KEY)
    done = site.batch("node-report")
    assert done.returncode == 1 and "cannot reach" in done.stderr and done.stdout.endswith("3 left\n")
