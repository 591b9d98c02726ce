# SPDX-License-Identifier: Apache-2.0
"""Counters of nodes: CounterCollector reads them, Counters keeps the last values, their course and what a day added.

A counter grows for as long as its node runs; a smaller value than before means that the node was started anew, and
all of that value is new.
"""

import math
import os
import time
from collections.abc import Iterable
from typing import Any

from infocluster import charts, names
from infocluster.aggregate import answers, messages_pb2
from infocluster.aggregate.base import Aggregator, Collector
from infocluster.aggregate.wire import Message
from infocluster.errors import BadInputError, InfoclusterError

# Made at its import, so that no type checker knows what is in it.
messages: Any = messages_pb2

POINTS = 120
STEP_S = 60.0
DAYS = 366
NAME_LIMIT = 80
PICTURES = 24
_PROCESSES = ("ctxt", "processes", "intr")


class Counters(Aggregator):
    """Keeps counters by node and name."""

    reporttype = "Counters"
    updatetype = "Counters"
    requesttypes = ("Counters",)

    def __init__(self) -> None:
        self.limit: int = self.settings["aggregate"]["counters_limit"]
        # By node: by name {"value", "time", "points": [[time, value]], "days": [[day, added]]}.
        self.known: dict[str, dict[str, dict[str, Any]]] = {
            node: self.restoreData({}, node) for node in self.savedParts()
        }
        self.news: list[str] = self.restoreData([])
        self._changed: set[str] = set()

    def processReport(self, msg: Message) -> None:
        """Take in the values of a report.

        Raises:
            BadInputError: a counter's name is none, its value is no number, or there would be too many.
        """
        told = answers.parsed("Counters", msg.data)
        known = self.known.setdefault(msg.src, {})
        for one in told.counters:
            if not one.name or len(one.name) > NAME_LIMIT or not one.name.isprintable():
                raise BadInputError(f"cannot count {names.shown(one.name)}: it is no name of a counter")
            if not math.isfinite(one.value) or one.value < 0:
                raise BadInputError(f"cannot count {names.shown(one.name)}: {one.value} is no count")
        if len(known.keys() | {one.name for one in told.counters}) > self.limit:
            raise BadInputError(f"cannot count for {msg.src}: over {self.limit} counters")
        default = float(msg.number("date", int(time.time())))
        for one in told.counters:
            # Read after its report was made, says a wrong clock: until that time came, nothing else would count.
            when = one.time if 0 < one.time < default + 1 else default
            _add(known.setdefault(one.name, {"value": 0.0, "time": 0.0, "points": [], "days": []}), when, one.value)
        self._changed.add(msg.src)
        if msg.src not in self.news:
            self.news.append(msg.src)

    def keep(self) -> None:
        """Keep what changed."""
        for node in self._changed:
            self.saveData(self.known[node], node)
        if self._changed:
            self.saveData(self.news)
        self._changed.clear()

    def processREQUEST(self, msg: Message) -> bytes | None:
        """Return all counters with their courses, or those of one node; None of one that told none."""
        node = msg.fields.get("node", "")
        if node and node not in self.known:
            return None
        return self._told([node] if node else sorted(self.known), has_history=True)

    def getUpdateMessage(self) -> bytes | None:
        """Return the counters of the nodes that told some since it was asked last."""
        if not self.news:
            return None
        told = self._told(self.news, has_history=False)
        self.news = []
        self.saveData(self.news)
        return told

    def _told(self, nodes: list[str], has_history: bool) -> bytes:
        data = messages.Counters()
        for node in nodes:
            for name, one in sorted(self.known.get(node, {}).items()):
                counter = data.counters.add(name=name, node=node, value=one["value"], time=one["time"])
                for when, value in one["points"] if has_history else ():
                    counter.history.add(time=when, value=value)
        return bytes(data.SerializeToString())

    def published(self) -> Iterable[dict[str, str]]:
        """Return the requests for all, and for each node."""
        yield {"type": "Counters"}
        for node in self.known:
            yield {"type": "Counters", "node": node}

    def sections(self, now: float) -> Iterable[dict[str, Any]]:
        """Return a table of counters, and a picture of the course of each of the busiest."""
        rows: list[list[Any]] = []
        busy = []
        for node, known in sorted(self.known.items()):
            for name, one in sorted(known.items()):
                today = one["days"][-1][1] if one["days"] and one["days"][-1][0] == _day(now) else 0
                rows.append([node, name, f"{one['value']:,.0f}", f"{today:,.0f}"])
                if len(one["points"]) > 1:
                    busy.append((today, node, name, one))
        pictures = []
        for _, node, name, one in sorted(busy, key=lambda item: item[:3], reverse=True)[:PICTURES]:
            try:
                svg = charts.course(f"{node}: {name}", [(when, value) for when, value in one["points"]])
            except InfoclusterError:
                continue
            pictures.append((f"{node}: {name}", svg))
        head = ["Node", "Counter", "Value", "Today"]
        yield {"id": "counters", "title": "Counters", "head": head, "rows": rows, "pictures": sorted(pictures)}

    def metrics(self, now: float) -> Iterable[tuple[str, str, dict[str, str], float]]:
        """Return the values."""
        for node, known in sorted(self.known.items()):
            for name, one in sorted(known.items()):
                labels = {"node": node, "counter": name}
                yield "node_counter", "A node's own counter, as it told it last.", labels, one["value"]


def _add(one: dict[str, Any], when: float, value: float) -> None:
    """Take in a value; one that is older than the last known changes nothing."""
    if when < one["time"]:
        return
    added = value - one["value"] if value >= one["value"] else value
    if not one["points"]:
        added = 0.0  # what it counted before we knew it
    points, days = one["points"], one["days"]
    if len(points) > 1 and when - points[-2][0] < STEP_S:
        points[-1] = [when, value]
    else:
        points.append([when, value])
        del points[:-POINTS]
    if days and days[-1][0] == _day(when):
        days[-1][1] += added
    else:
        days.append([_day(when), added])
        del days[:-DAYS]
    one["value"], one["time"] = value, when


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(when))


class CounterCollector(Collector):
    """Reads the counters of the system, and of files with a line ``NAME NUMBER`` for each."""

    def getReport(self, now: float) -> Any:
        """Return the values now."""
        data = messages.Counters()
        for path in self.settings["aggregate"]["counters"]:
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read(1 << 20)
            except OSError:
                continue
            for name, value in _values(path, text):
                data.counters.add(name=name[:NAME_LIMIT], value=value, time=now)
        return ("Counters", data.SerializeToString()) if data.counters else None


def _values(path: str, text: str) -> Iterable[tuple[str, float]]:
    if path == "/proc/net/dev":
        for line in text.splitlines()[2:]:
            name, _, rest = line.partition(":")
            words = rest.split()
            if len(words) >= 9 and name.strip() != "lo":
                yield f"{name.strip()} received bytes", float(words[0])
                yield f"{name.strip()} sent bytes", float(words[8])
    elif path == "/proc/stat":
        ticks = os.sysconf("SC_CLK_TCK")
        for line in text.splitlines():
            words = line.split()
            if words and words[0] == "cpu":
                yield "processor seconds", (sum(map(float, words[1:4])) + sum(map(float, words[6:8]))) / ticks
            elif words and words[0] in _PROCESSES:
                yield words[0], float(words[1])
    else:
        for line in text.splitlines():
            name, _, number = line.strip().rpartition(" ")
            try:
                value = float(number)
            except ValueError:
                continue
            if name and name.isprintable() and math.isfinite(value) and value >= 0:
                yield name.strip(), value
