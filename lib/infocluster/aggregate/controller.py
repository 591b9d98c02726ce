# SPDX-License-Identifier: Apache-2.0
"""The process that owns the aggregators: delivers reports to them, asks them for updates and answers.

One batch of reports is one transaction of the `store`: the elements that were read, the ids that took effect, what
the aggregators kept. Killed anywhere, the next process reads the same reports again and begins from what was kept
before them: at least once delivered, and exactly once in effect.

An aggregator that raises, or takes too long, has perhaps done half of something: the batch is rolled back, all
instances are made anew from what was kept, and the batch is delivered again without that report to that aggregator;
the report is set aside with the reason. One that fails with a request or an update is made anew alone: what it does
there is its own, and the others go on with what they have not kept yet. One that was late `LATE_LIMIT` times gets
nothing more from this process.
"""

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from infocluster import names
from infocluster.aggregate import answers, base, modules, reports, wire
from infocluster.aggregate.calls import CallError, Clock
from infocluster.aggregate.reports import Element
from infocluster.aggregate.store import DAY_S, Store
from infocluster.errors import UnavailableError, reason

BATCH = 256
LATE_LIMIT = 3
FAULTS_LIMIT = 1000
# Seconds: a fault that has not come again for so long is over; when it comes back, it is told anew.
FAULT_S = 3600.0
UPDATE_LIMIT_BYTES = 4 << 20
# What is told instead of an update over that, as JSON and protobuf.
LARGE = (b'{"large": true}', None)
# Bytes of a message beside its body.
HEAD_BYTES = 1 << 13

TAKEN = "taken"
DUPLICATE = "duplicate"
MALFORMED = "malformed"
UNREADABLE = "unreadable"
TOO_OLD = "too old"
TOO_NEW = "too new"
NO_AGGREGATOR = "no aggregator"
ASIDE = "set aside"

Say = Callable[[str], None]
Shaped = TypeVar("Shaped")


class _FailedError(Exception):
    """An aggregator failed with one report, or, without one, in `keep`."""

    def __init__(self, module: str, element: str, why: CallError) -> None:
        super().__init__(module)
        self.module = module
        self.element = element
        self.why = why


class Controller:
    """The aggregators of this host, while this process lives.

    Args:
        settings: of this host, by section.
        store: the open database.
        fault: told each thing that is wrong, once for as long as it lasts.
        clock: the time in Unix seconds.
    """

    def __init__(
        self, settings: dict[str, Any], store: Store, fault: Say, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings = settings
        self.own: dict[str, Any] = settings["aggregate"]
        self.store = store
        self.clock = clock
        # What is wrong, by when it came last, the latest last; and what this process does not get over.
        self._faults: dict[str, float] = {}
        self._lasting: dict[str, None] = {}
        self._tell = fault
        self._calls = Clock(self.own["call_limit_s"])
        self._late: dict[str, int] = {}
        gather = settings["gather"]
        self.queues = reports.Queues(gather["gather_dir"], gather["host"], self.own["app"])
        loaded = modules.load(self.own["module_dirs"], self.own["aggregators"], base.Aggregator, self._calls)
        for line in loaded.faults:
            self.fault(line, lasts=True)
        self._classes = loaded.classes
        # One of each class that was loaded; and those of them that are aggregators.
        self._modules: dict[str, base.Module] = {}
        self.instances: dict[str, base.Aggregator] = {}
        self._renew()

    def fault(self, line: str, lasts: bool = False) -> None:
        """Tell what is wrong, unless it was told and came again and again since.

        Args:
            line: the sentence.
            lasts: whether it stays so until the controller is started anew.
        """
        is_told = line in self._lasting or line in self.standing()
        if lasts:
            self._lasting[line] = None
        else:
            self._faults.pop(line, None)
            self._faults[line] = self.clock()
            if len(self._faults) > FAULTS_LIMIT:
                del self._faults[next(iter(self._faults))]
        if not is_told:
            self._tell(line)

    def standing(self, limit: int = FAULTS_LIMIT) -> list[str]:
        """Return what is wrong: all that lasts, and at most so many that came within the last `FAULT_S` seconds."""
        over = self.clock() - FAULT_S
        self._faults = {line: when for line, when in self._faults.items() if when > over}
        return [*self._lasting, *list(self._faults)[-limit:]]

    def _renew(self, only: str = "") -> None:
        """Make all instances from what was kept, or only the one of this name."""
        if not only:
            self._modules, self.instances = {}, {}
        for made in list(self._classes):
            name = made.__name__
            if only and name != only:
                continue
            instance = made.__new__(made)
            instance.settings = self.settings
            instance._save, instance._restore = self.store.save, self.store.restore
            instance._parts, instance._tell = self.store.parts, self.fault
            instance._others = self._modules
            try:
                self._calls.call(instance.__init__)  # type: ignore[misc] # a new instance's own
                if isinstance(instance, base.Aggregator):
                    self._calls.call(base.requests, instance, "")  # what it says of itself can be used
            except CallError as error:
                self.fault(f"cannot make {name}: {error}; it gets nothing in this run", lasts=True)
                self._forget(name)
                continue
            self._modules[name] = instance
            if isinstance(instance, base.Aggregator):
                self.instances[name] = instance

    def take(self, limit: int = BATCH * 8) -> int:
        """Take in reports that are new, the oldest first; return how many were read.

        One that is there and cannot be read now is none of them: who goes on until nothing is new comes to an end.

        Raises:
            UnavailableError: the database cannot be written; what was not committed is read again.
        """
        now = self.clock()
        found = self.queues.new(self.store.seen, limit, now)
        for line in self.queues.faults:
            self.fault(line)
        return sum(self._deliver(found[start : start + BATCH], now) for start in range(0, len(found), BATCH))

    def _deliver(self, batch: list[Element], now: float) -> int:
        contents = {element: content for element in batch if (content := self._content(element)) is not None}
        skipped: dict[tuple[str, str], str] = {}
        while True:
            try:
                with self.store.transaction():
                    for element, content in contents.items():
                        self._one(element, content, skipped, now)
                    self._keep()
                return len(contents)
            except _FailedError as error:
                self._renew()
                if not error.element:
                    self._put_out(error.module, f"cannot keep what {error.module} has: {error.why}")
                    continue
                skipped[error.element, error.module] = str(error.why)
                self._count_late(error.module, error.why)
            except UnavailableError:
                # What the instances have is not kept: the next ones begin from what is.
                self._renew()
                raise

    def _content(self, element: Element) -> bytes | None:
        try:
            return reports.read(element, self.own["limit_bytes"] + HEAD_BYTES)
        except OSError as error:
            self.fault(f"cannot read {element.path}: {reason(error)}")
            return None

    def _one(self, element: Element, content: bytes, skipped: dict[tuple[str, str], str], now: float) -> None:
        self.store.see(element.server, element.directory, element.name)
        if not content:
            self.store.count(UNREADABLE)
            return
        try:
            message = wire.parse(content, self.own["limit_bytes"])
        except wire.BadMessageError:
            self.store.count(MALFORMED)
            return
        made = message.number("date", int(element.time))
        if made < now - self.own["keep_days"] * DAY_S:
            self.store.count(TOO_OLD)
        elif made > element.time + self.own["clock_s"] + 1:
            self.store.count(TOO_NEW)
        elif not self.store.take(message.src, message.id, now):
            self.store.count(DUPLICATE)
        else:
            message.came = element.time
            period = min(message.number("period", self.own["period_s"]), 10**8)
            self.store.hear(message.src, min(element.time, now), period)
            self.store.count(TAKEN)
            key = f"{element.server}/{element.directory}/{element.name}"
            self._give(message, content, key, skipped)

    def _give(self, message: wire.Message, content: bytes, key: str, skipped: dict[tuple[str, str], str]) -> None:
        """Give a report to every aggregator that deals with its type."""
        found = False
        for name, instance in self.instances.items():
            process = base.reports(instance, message.kind, message.type)
            if process is None:
                continue
            found = True
            why = skipped.get((key, name))
            if why is None and self._late.get(name, 0) >= LATE_LIMIT:
                why = f"{name} was late {LATE_LIMIT} times"
            if why is not None:
                self._set_aside(name, why, message, content)
                continue
            try:
                self._calls.call(process, message)
            except CallError as error:
                raise _FailedError(name, key, error) from error
        if not found:
            self.store.count(NO_AGGREGATOR)

    def _set_aside(self, name: str, why: str, message: wire.Message, content: bytes) -> None:
        self.store.count(ASIDE)
        self.store.set_aside(message.came, name, why, content, self.own["aside_count"])
        self.fault(f"{name} cannot take report {message.id} of {message.src}: {why}")

    def _keep(self) -> None:
        for name, instance in self._modules.items():
            try:
                self._calls.call(instance.keep)
            except CallError as error:
                raise _FailedError(name, "", error) from error

    def _put_out(self, name: str, line: str) -> None:
        self.fault(f"{line}; it gets nothing more in this run", lasts=True)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._modules.pop(name, None)
        self.instances.pop(name, None)
        self._classes = [made for made in self._classes if made.__name__ != name]

    def _count_late(self, name: str, why: CallError) -> None:
        if why.is_late:
            self._late[name] = self._late.get(name, 0) + 1
            if self._late[name] == LATE_LIMIT:
                line = f"{name} was late {LATE_LIMIT} times: what it would get in this run is set aside"
                self.fault(line, lasts=True)

    def again(self) -> int:
        """Give the reports that were set aside to their aggregators once more; return how many were taken.

        Raises:
            UnavailableError: the database cannot be written.
        """
        done = 0
        for one in self.store.aside():
            instance = self.instances.get(one.module)
            message = wire.parse(one.message)
            message.came = one.time
            process = base.reports(instance, message.kind, message.type) if instance else None
            if process is None:
                continue
            try:
                with self.store.transaction():
                    try:
                        self._calls.call(process, message)
                    except CallError as error:
                        raise _FailedError(one.module, "", error) from error
                    self._keep()
                    self.store.clear_aside(one.number)
                done += 1
            except _FailedError as error:
                self._renew()
                self.fault(f"{one.module} cannot take report {message.id} of {message.src}: {error.why}")
        return done

    def update(self) -> list[int]:
        """Ask every aggregator what is new, and return the revisions of what was told; note which nodes turned.

        Raises:
            UnavailableError: the database cannot be written.
        """
        now = self.clock()
        told: list[int] = []
        for name in list(self.instances):
            try:
                with self.store.transaction():
                    told += self._updates(name, now)
            except _FailedError as error:
                self._renew(name)
                self.fault(f"cannot ask {error.module} for updates: {error.why}")
                self._count_late(error.module, error.why)
            except UnavailableError:
                self._renew(name)
                raise
        with self.store.transaction():
            turned = self.store.turn(now)
            if turned:
                silent = [node.name for node in self.store.nodes() if node.name in turned and node.gray]
                came = [name for name in turned if name not in silent]
                content, _ = answers.encoded("Nodes", {"silent": silent, "reporting": came})
                told.append(self._told("Nodes", content, None, now))
        return told

    def _told(self, kind: str, json: bytes, pb: bytes | None, now: float) -> int:
        """Give an update its revision, and return that."""
        return self.store.tell(now, kind, json, pb, self.own["updates_count"], self.own["updates_limit_bytes"])

    def _updates(self, name: str, now: float) -> list[int]:
        told = []
        instance = self.instances[name]
        if self._late.get(name, 0) >= LATE_LIMIT:
            return []
        try:
            made = self._calls.call(_updates, instance, now)
            self._calls.call(instance.keep)
            for kind, json, pb in made:
                forms = (json, pb)
                if len(json) > UPDATE_LIMIT_BYTES:
                    self.fault(f"cannot tell {kind} of {name}: {len(json)} bytes")
                    forms = LARGE
                told.append(self._told(kind, *forms, now))
        except CallError as error:
            raise _FailedError(name, "", error) from error
        return told

    def answer(self, query: dict[str, str]) -> tuple[bytes, bytes | None] | None:
        """Return the answer to a request as JSON, and as protobuf where it has such a form; None is nothing.

        Args:
            query: names and values; ``type`` says what is asked for. A File whose name is no plain one is nothing.

        Raises:
            UnavailableError: the aggregator could not answer.
        """
        fields = {name: value for name, value in query.items() if name != "type" and value}
        # The one is what people write, the other what the first aggregators read.
        for one, other in (("name", "filename"), ("filename", "name")):
            if one in fields:
                fields.setdefault(other, fields[one])
        if query.get("type") == "File" and not all(map(names.is_component, _file_names(fields))):
            return None  # what visitors ask for reaches no aggregator that would take it for a path
        message = wire.Message("GET", "-", "-", query.get("type", ""), fields=fields)
        for name, instance in list(self.instances.items()):
            process = base.requests(instance, message.type)
            if process is None:
                continue
            try:
                # What an aggregator keeps while it answers is no report's effect: it is not kept.
                self.store.db.execute("SAVEPOINT asked")
                try:
                    told: tuple[bytes, bytes | None] | None = self._calls.call(_answer, process, message)
                finally:
                    self.store.db.execute("ROLLBACK TO asked")
                    self.store.db.execute("RELEASE asked")
                return told
            except CallError as error:
                self._renew(name)
                self.fault(f"{name} cannot answer {message.type}: {error}")
                raise UnavailableError(f"cannot answer {message.type}: {error}") from error
        return None

    def ask(self, name: str, method: str, shape: Callable[[Any], Shaped], *arguments: Any) -> list[Shaped]:
        """Return what a method of an aggregator yields; what fails is told, and left out.

        Args:
            name: the aggregator's.
            method: the method's.
            shape: makes of one that it yields what the caller needs, or raises.
            arguments: of the method.
        """
        found = self.attempt(f"ask {name} for its {method}", lambda: list(self._bound(name, method)(*arguments)))
        shaped = [self.attempt(f"use one of the {method} of {name}", shape, one) for one in found or ()]
        return [one for one in shaped if one is not None]

    def _bound(self, name: str, method: str) -> Callable[..., Any]:
        return getattr(self.instances[name], method)  # type: ignore[no-any-return] # a method of Aggregator

    def attempt(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns that has to do with foreign code; None where it fails, which is told."""
        try:
            return self._calls.call(function, *arguments)
        except CallError as error:
            self.fault(f"cannot {what}: {error}")
            return None

    def tidy(self) -> None:
        """Forget what is no longer needed: elements that are gone, ids that are too old.

        Raises:
            UnavailableError: the database cannot be written.
        """
        with self.store.transaction():
            servers = {server for server, top in self.queues.servers() if os.path.isdir(top)}
            self.store.forget(self.queues.present(), servers)
            self.store.forget_ids(self.clock(), self.own["keep_days"])

    def marks(self) -> bytes:
        """Return the marks by which servers sweep their queues."""
        whole = []
        for server, top in self.queues.servers():
            for directory in sorted(name for one, name in self.queues.present() if one == server):
                try:
                    listed = {name for name in os.listdir(f"{top}/{directory}") if reports.is_element(name)}
                except OSError:
                    continue
                if listed <= self.store.seen(server, directory):
                    whole.append((server, directory, listed))
        return reports.marks(self.own["app"], whole, self.clock())


def _updates(instance: base.Aggregator, now: float) -> list[tuple[str, bytes, bytes | None]]:
    """Return what an aggregator has to tell, as it travels: type, JSON, protobuf."""
    return [(kind, *answers.encoded(kind, what)) for kind, what in base.updates(instance, now)]


def _file_names(fields: dict[str, str]) -> list[str]:
    return [fields[name] for name in ("name", "filename") if name in fields]


def _answer(process: Callable[[wire.Message], Any], message: wire.Message) -> tuple[bytes, bytes | None] | None:
    told = process(message)
    return None if told is None else answers.encoded(message.type, told)
