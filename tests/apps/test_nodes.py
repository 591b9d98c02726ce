# SPDX-License-Identifier: Apache-2.0
"""The rounds of controller -serve: what is due is done, also while requests keep coming."""

import base64
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aggregate.house import House, files_report, report
from infocluster.aggregate import answers, messages_pb2, wire
from infocluster.apps import nodes, nodes_served
from infocluster.cron import progress
from infocluster.cron.command import Run


class Ended(Exception):
    """The test has seen enough."""


class Passing:
    """What `Rounds.serve` waits at, where nobody asks: the house's time passes until an end."""

    def __init__(self, site: House, seconds: float, seen: Callable[[], None]) -> None:
        self.site, self.end, self.seen = site, site.now + seconds, seen

    def serve(self, wait_s: float, _asked: Any) -> None:
        self.seen()
        self.site.now += wait_s
        if self.site.now > self.end:
            raise Ended


def rounds(site: House, control: Any) -> nodes.Rounds:
    (site.root / "var/www/world").mkdir(parents=True, exist_ok=True)
    return nodes.Rounds(Run("controller", site.settings, {}, progress.bar), control)


def test_marks_go_out_every_hour_though_publications_are_rare(tmp_path: Path) -> None:
    site = House(tmp_path, '[aggregate]\naggregators = ["Counters"]\nupdate_period_s = 400\nlook_s = 7\n')
    (tmp_path / "var/gather").mkdir(parents=True)
    marks = tmp_path / "var/www/gather/marks/reports.queue"
    made: set[int] = set()
    with site.controller() as control:
        try:
            passing = Passing(site, 6.2 * 3600, lambda: made.add(json.loads(marks.read_bytes())["made"]))
            rounds(site, control).serve(passing)  # type: ignore[arg-type] # as a Listener does
        except Ended:
            pass
    assert len(made) == 7, sorted(made)


def test_what_is_published_of_a_file_is_its_newest_content_whatever_its_time_and_size(tmp_path: Path) -> None:
    site = House(tmp_path, '[aggregate]\naggregators = ["FileProcessor"]\n')
    query = {"type": "File", "node": "node1", "name": "a.txt"}
    published = tmp_path / "var/www/world/nodes" / answers.answer_name(query)
    with site.controller() as control:

        def held() -> bytes:
            found = control.answer(query)
            assert found
            return base64.b64decode(json.loads(found[0])["files"][0]["data"])

        this = rounds(site, control)
        for number, content in enumerate((b"one", b"two")):
            site.put(files_report(f"f{number}", a_txt=content))
            site.now += 1
            control.take()
            this.publish(site.now, False)
            (file,) = json.loads(published.read_bytes())["files"]
            assert base64.b64decode(file["data"]) == content
        # A report of a server that was out of reach, or one that was set aside, brings nothing older back.
        site.now -= 60
        site.put(files_report("late", a_txt=b"old"), "web2")
        site.now += 60
        assert control.take() == 1 and held() == b"two"
        failing = tmp_path / "var/state/files/node1"
        failing.rename(failing.with_name("aside"))
        failing.write_text("no directory")
        site.put(files_report("aside", a_txt=b"set aside"))
        control.take()
        assert len(control.store.aside()) == 1
        failing.unlink()
        failing.with_name("aside").rename(failing)
        site.now += 1
        site.put(files_report("last", a_txt=b"last"))
        control.take()
        assert control.again() == 1 and not control.store.aside() and held() == b"last"


SPEAKER = """
class Speaker(Aggregator):
    def doUpdates(self, now):
        text, self.text = self.text, None
        return text and ("Said", text)
"""


def test_updates_are_kept_within_bytes_and_a_live_answer_is_what_the_published_one_would_be(tmp_path: Path) -> None:
    more = 'module_dirs = ["modules"]\nupdates_limit_bytes = 3500\n'
    site = House(tmp_path, f'[aggregate]\naggregators = ["Speaker", "Counters"]\n{more}')
    site.module(SPEAKER)
    with site.controller() as control:
        this = rounds(site, control)
        kept = []
        for size in (1000, 1000, 1000, 1000, 9000, 1000, 1000):
            control.instances["Speaker"].text = "x" * (size - 2)  # type: ignore[attr-defined]
            control.update()
            kept.append([one.revision for one in control.store.updates()])
        assert kept == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [5], [6], [6, 7]]
        data = messages_pb2.Counters()
        data.counters.add(name="hits", value=1)
        site.put(report("Counters", data.SerializeToString(), "1"))
        control.take()
        assert control.update() == [8]
        this.publish(site.now, False)
        published = json.loads((tmp_path / "var/www/world/nodes/updates.json").read_bytes())
        resets = {}
        for since in ("", "0", "4", "5", "6", "7", "8", "9", "x", "9" * 30):
            for epoch in ("", control.store.epoch, "other"):
                status, told, protobuf = this.asked({"type": "Updates", "since": since, "epoch": epoch})
                assert (status, told, protobuf) == (200, *nodes_served.updates(published, since, epoch))
                found = json.loads(told)
                resets[since, epoch] = found["reset"], [one["revision"] for one in found["updates"]]
        every = [6, 7, 8]
        assert (
            resets["5", ""] == (False, every) and resets["7", ""] == (False, [8]) and resets["8", ""] == (False, [])
        )
        assert resets["4", ""] == resets["9", ""] == resets["8", "other"] == (True, every)


def test_listener_returns_when_its_time_is_over_though_requests_are_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = nodes_served.Listener(path)
    clients: list[socket.socket] = []
    answers = 0

    def asked(_query: dict[str, str]) -> tuple[int, bytes, bytes | None]:
        nonlocal answers
        answers += 1
        if answers < 100_000:
            ask()
        return 200, b"{}", None

    def ask() -> None:
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(path)
        clients[-1].sendall(wire.content(wire.Message("GET", "x", "cgi", "Updates")))
        if len(clients) > 2:
            clients.pop(0).close()

    try:
        ask()
        listener.serve(0.05, asked)
        assert 0 < answers < 100_000
        # With no time at all, whoever waits is answered all the same.
        before = answers
        listener.serve(0, asked)
        assert before < answers < 100_000
    finally:
        listener.close()
        for client in clients:
            client.close()
