# SPDX-License-Identifier: Apache-2.0
"""Health of nodes: HealthCollector looks at load, disks, gathered files, queues, the push; NodeHealth keeps it."""

import math
import os
import time
from collections.abc import Iterable
from typing import Any

from infocluster import charts, names
from infocluster.aggregate import answers, messages_pb2
from infocluster.aggregate.base import Aggregator, Collector
from infocluster.aggregate.wire import Message
from infocluster.errors import BadInputError
from infocluster.queue.simple import Simple

# Made at its import, so that no type checker knows what is in it.
messages: Any = messages_pb2

PARTS_LIMIT = 50
FULL_SHARE = 0.9


class NodeHealth(Aggregator):
    """Keeps what each node said of itself last."""

    reporttype = "Health"
    updatetype = "Health"
    requesttypes = ("Health",)

    def __init__(self) -> None:
        self.known: dict[str, bytes] = {node: self.restoreData(b"", node) for node in self.savedParts()}
        self.news: list[str] = self.restoreData([])

    def processReport(self, msg: Message) -> None:
        """Take in what a node says.

        Raises:
            BadInputError: it is too much, or a number in it is none.
        """
        told = answers.parsed("Health", msg.data)
        if max(len(told.disks), len(told.backlogs), len(told.queues)) > PARTS_LIMIT:
            raise BadInputError(
                f"cannot keep the health of {msg.src}: over {PARTS_LIMIT} disks, queues or applications"
            )
        numbers = (told.load_1, told.load_5, told.load_15, told.uptime_s, told.last_push)
        numbers += tuple(log.oldest for log in told.backlogs)
        if not all(math.isfinite(number) and 0 <= number < 1e11 for number in numbers):
            raise BadInputError(f"cannot keep the health of {msg.src}: a number in it is none")
        told.node = msg.src
        told.time = float(msg.number("date", int(time.time())))
        if msg.src in self.known and self._of(msg.src).time > told.time:
            return  # one that waited in the spool: newer is known
        self.known[msg.src] = told.SerializeToString()
        self.saveData(self.known[msg.src], msg.src)
        if msg.src not in self.news:
            self.news.append(msg.src)
            self.saveData(self.news)

    def processREQUEST(self, msg: Message) -> Any:
        """Return the health of all nodes, or of one; None of one that told none."""
        node = msg.fields.get("node", "")
        if node and node not in self.known:
            return None
        return self._told([node] if node else sorted(self.known))

    def getUpdateMessage(self) -> Any:
        """Return the health of the nodes that told it since this was asked last."""
        if not self.news:
            return None
        told = self._told(self.news)
        self.news = []
        self.saveData(self.news)
        return told

    def published(self) -> Iterable[dict[str, str]]:
        """Return the requests for all, and for each node."""
        yield {"type": "Health"}
        for node in self.known:
            yield {"type": "Health", "node": node}

    def sections(self, now: float) -> Iterable[dict[str, Any]]:
        """Return a table of the nodes with a picture of loads, one of their queues, one of what they gathered."""
        every = [self._of(node) for node in sorted(self.known)]
        rows: list[list[Any]] = [[one.node, *_row(one)] for one in every]
        head = ["Node", "Load", "Memory free", "Disks", "Up", "Pushed"]
        loads = [(one.node, round(100 * one.load_1 / max(one.processors, 1))) for one in every]
        busy = sorted(loads, key=lambda pair: -pair[1])[:20]
        pictures = [("Load in percent of the processors", charts.bars("Load in percent", busy))] if busy else []
        yield {"id": "health", "title": "Health", "head": head, "rows": rows, "pictures": pictures}
        waiting = [
            [one.node, names.visible(queue.name), f"{queue.waiting:,}"] for one in every for queue in one.queues
        ]
        yield {"id": "queues", "title": "Queues", "head": ["Node", "Queue", "Waiting"], "rows": waiting}
        backlogs = [
            [one.node, names.visible(log.app), f"{log.files:,}", f"{log.size_bytes:,}", _moment(log.oldest)]
            for one in every
            for log in one.backlogs
        ]
        if backlogs:
            head = ["Node", "Application", "Files", "Bytes", "Oldest"]
            yield {"id": "gathered", "title": "Gathered", "head": head, "rows": backlogs}

    def metrics(self, now: float) -> Iterable[tuple[str, str, dict[str, str], float]]:
        """Return load, disks, backlogs and queues."""
        for node in sorted(self.known):
            one = self._of(node)
            yield "node_load", "Processes that want to run, average of a minute.", {"node": node}, one.load_1
            for disk in one.disks:
                labels = {"node": node, "path": disk.path}
                yield "node_disk_free_bytes", "Free bytes of a file system.", labels, disk.free_bytes
                yield "node_disk_size_bytes", "Size of a file system.", labels, disk.size_bytes
            for log in one.backlogs:
                labels = {"node": node, "app": log.app}
                yield "node_gathered_bytes", "Gathered and not yet swept.", labels, log.size_bytes
            for queue in one.queues:
                labels = {"node": node, "queue": queue.name}
                yield "node_queue_waiting", "Elements in a directory queue.", labels, queue.waiting

    def _of(self, node: str) -> Any:
        return answers.parsed("Health", self.known[node])

    def _told(self, nodes: list[str]) -> bytes:
        data = messages.Healths()
        for node in nodes:
            if node in self.known:
                data.healths.append(self._of(node))
        return bytes(data.SerializeToString())


def _row(one: Any) -> list[str]:
    disks = [f"{names.visible(disk.path)} {_share(disk)}" for disk in one.disks]
    memory = f"{100 * one.memory_free_bytes // one.memory_bytes} %" if one.memory_bytes else ""
    days, rest = divmod(int(one.uptime_s), 86400)
    up = f"{days} d {rest // 3600} h" if days else f"{rest // 3600} h {rest % 3600 // 60} min"
    pushed = _moment(one.last_push) or "never seen"
    return [f"{one.load_1:.2f} of {one.processors}", memory, ", ".join(disks), up, pushed]


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when)) if when else ""


def _share(disk: Any) -> str:
    used = 1 - disk.free_bytes / disk.size_bytes if disk.size_bytes else 0.0
    return f"{100 * used:.0f}\u00a0% full" + (", little is left" if used > FULL_SHARE else "")


class HealthCollector(Collector):
    """Looks at this node."""

    def getReport(self, now: float) -> Any:
        """Return how it is."""
        own = self.settings["aggregate"]
        data = messages.Health()
        data.load_1, data.load_5, data.load_15 = os.getloadavg()
        data.processors = os.cpu_count() or 1
        memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo")}
        data.memory_bytes, data.memory_free_bytes = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
        data.uptime_s = float(next(iter(_lines("/proc/uptime")), "0").split()[0])
        for path in own["disks"]:
            try:
                status = os.statvfs(path)
            except OSError:
                continue
            free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
            data.disks.add(path=path, size_bytes=size, free_bytes=free)
        gather = os.environ.get("SERVER_GATHER", "")
        for app in sorted(os.listdir(gather)) if os.path.isdir(gather) else ():
            if names.is_name(app) and os.path.isdir(f"{gather}/{app}"):
                data.backlogs.append(_backlog(app, f"{gather}/{app}"))
        for path in own["queues"]:
            data.queues.add(name=os.path.basename(path.rstrip("/")), waiting=Simple(path).count())
        data.queues.add(name="spool", waiting=Simple(own["spool_dir"] + "/queue").count())
        try:
            told = f"{self.settings['site']['production_dir']}/{own['directory']}/status.json"
            data.last_push = os.stat(told).st_ctime
        except OSError:
            data.last_push = 0.0
        del data.disks[PARTS_LIMIT:], data.backlogs[PARTS_LIMIT:], data.queues[PARTS_LIMIT:]
        return "Health", data.SerializeToString()


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _backlog(app: str, top: str) -> Any:
    count, size, oldest = 0, 0, 0.0
    for directory, _, found in os.walk(top):
        for name in found:
            try:
                status = os.lstat(f"{directory}/{name}")
            except OSError:
                continue
            count, size = count + 1, size + status.st_size
            oldest = min(oldest or status.st_mtime, status.st_mtime)
    return messages.Backlog(app=app, files=count, size_bytes=size, oldest=oldest)
