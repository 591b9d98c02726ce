# SPDX-License-Identifier: Apache-2.0
"""The rounds of controller -serve: what is due is done, also while requests keep coming."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aggregate.house import House
from infocluster.aggregate import wire
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
