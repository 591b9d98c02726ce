# SPDX-License-Identifier: Apache-2.0
"""Many servers at once: nobody waits for another's fault, and those that were not reached are tried again."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infocluster import trees
from infocluster.errors import UnavailableError
from infocluster.push import fan, transport
from infocluster.push.order import Order, Outcome, UnreachableError
from infocluster.push.servers import Server


class Net:
    """A transport whose servers answer as their name says; it counts how they are called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()

    def send(self, server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
        with self.lock:
            self.calls.append((server.name, time.monotonic()))
            seen = sum(name == server.name for name, _ in self.calls)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            order.stopped.wait(0.01)
            if server.name.startswith("broke"):
                # Each try puts one more thing in place, and says so, before the connection breaks.
                yield from (trees.Action("install", f"world/{number}", False, 1) for number in {1, seen})
                if seen < 3:
                    raise UnreachableError("the connection broke")
                return
            if server.name.startswith("down") or (server.name.startswith("late") and seen < 3):
                raise UnreachableError("cannot reach it: connection refused")
            if server.name.startswith("full"):
                raise UnavailableError("No space left on device")
            yield trees.Action("install", "world/a", False, 1)
        finally:
            with self.lock:
                self.at_once -= 1


def settings(**push: object) -> dict[str, object]:
    usual = {"parallel": 4, "server_timeout_s": 60, "retries": 2, "retry_pause_s": 0.01}
    return {"push": usual | push}


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    net = Net()
    monkeypatch.setitem(transport.TRANSPORTS, "net", net.send)
    return net


def jobs(tmp_path: Path, *names: str) -> list[fan.Job]:
    listing = trees.scan(str(tmp_path))
    return [fan.Job(Server(name, "web", "net", "/srv"), listing, ["world"]) for name in names]


def test_outcomes_come_in_the_order_of_the_servers_and_faults_stay_where_they_are(net: Net, tmp_path: Path) -> None:
    names = ["web1", "down1", "full1", "web2", "late1"]
    outcomes = fan.out(jobs(tmp_path, *names), settings())
    assert [outcome.server for outcome in outcomes] == names
    assert [bool(outcome.faults) for outcome in outcomes] == [False, True, True, False, False]
    assert outcomes[1].faults == ["cannot reach it: connection refused", "tried 3 times"]
    assert net.most_at_once <= 4


def test_only_what_was_not_reached_is_tried_again_and_later_each_time(net: Net, tmp_path: Path) -> None:
    fan.out(jobs(tmp_path, "down1", "full1"), settings(retry_pause_s=0.05))
    times = [when for name, when in net.calls if name == "down1"]
    assert len(times) == 3
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.1
    assert sum(name == "full1" for name, _ in net.calls) == 1


def test_what_was_done_before_a_connection_broke_is_told(net: Net, tmp_path: Path) -> None:
    (outcome,) = fan.out(jobs(tmp_path, "broke1"), settings())
    assert outcome.faults == []
    assert [action.path for action in outcome.changes] == ["world/1", "world/2", "world/3"]


def test_no_try_goes_beyond_the_time_limit(net: Net, tmp_path: Path) -> None:
    (outcome,) = fan.out(jobs(tmp_path, "down1"), settings(server_timeout_s=0.5, retry_pause_s=60))
    assert len(net.calls) == 1
    assert outcome.faults


def test_equal_changes_of_many_servers_are_kept_once(net: Net, tmp_path: Path) -> None:
    outcomes = fan.out(jobs(tmp_path, *(f"web{n}" for n in range(20))), settings())
    assert len({id(outcome.changes) for outcome in outcomes}) == 1


def test_interrupt_stops_every_server_and_leaves_no_thread(net: Net, tmp_path: Path) -> None:
    def interrupt(_job: fan.Job, _outcome: Outcome) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fan.out(jobs(tmp_path, *(f"web{n}" for n in range(200))), settings(parallel=2), done=interrupt)
    assert len(net.calls) < 20
    assert threading.active_count() == before
