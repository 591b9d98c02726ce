# SPDX-License-Identifier: Apache-2.0
"""A controller over queues in a temporary directory, for tests of this directory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infocluster import config
from infocluster.aggregate import messages_pb2, store, wire
from infocluster.aggregate.controller import Controller
from infocluster.queue.simple import Simple

# An aggregator that keeps at every report.
LEDGER = """
class Ledger(Aggregator):
    reporttype = "Number"
    updatetype = "Ledger"
    requesttypes = "Ledger",

    def __init__(self):
        self.state = self.restoreData({"total": 0, "reports": 0})
        self.told = None

    def processReport(self, msg):
        self.state["total"] += int(msg.data)
        self.state["reports"] += 1
        self.saveData(self.state)

    def processREQUEST(self, msg):
        return self.state

    def getUpdateMessage(self):
        if self.told == self.state:
            return None
        self.told = dict(self.state)
        return self.told
"""


class House:
    """Settings and queues below a directory, and the time, which only the test moves."""

    def __init__(self, root: Path, more: str = "") -> None:
        self.root = root
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "etc/infocluster.toml").write_text(more)
        self.settings = config.load(str(root / "etc/infocluster.toml"))
        self.now = time.time()
        self.faults: list[str] = []

    def queue(self, server: str = "web1") -> Simple:
        path = self.root / "var/gather" / server / "www/reports"
        path.parent.mkdir(parents=True, exist_ok=True)
        return Simple(str(path), digit=0, clock=lambda: self.now)

    def put(self, message: wire.Message, server: str = "web1") -> str:
        return self.queue(server).add(wire.content(message))

    def module(self, text: str, name: str = "own.py") -> None:
        directory = self.root / "modules"
        directory.mkdir(exist_ok=True, mode=0o755)
        (directory / name).write_text("from infocluster.aggregate.base import Aggregator, Collector, Module\n" + text)
        (directory / name).chmod(0o644)

    @contextmanager
    def controller(self) -> Iterator[Controller]:
        with store.opened(str(self.root / "var/state/aggregate/aggregate.sqlite")) as opened:
            yield Controller(self.settings, opened, self.faults.append, lambda: self.now)


def report(kind: str, data: bytes, message_id: str, src: str = "node1", **fields: str) -> wire.Message:
    return wire.Message("REPORT", message_id, src, kind, data, fields)


def files_report(message_id: str, src: str = "node1", **contents: bytes) -> wire.Message:
    data = messages_pb2.Files()
    for name, content in contents.items():
        data.files.add(name=name.replace("_", "."), modtime=1795384800, data=content)
    return report("FileOutput", data.SerializeToString(), message_id, src)
