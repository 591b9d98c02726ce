# SPDX-License-Identifier: Apache-2.0
"""What a module file subclasses: Module, Aggregator, Collector.

An aggregator is written in one of two shapes, or in both at once. The simple one names what it deals with and has
three methods::

    class FileProcessor(Aggregator):
        reporttype = "FileOutput"
        updatetype = "FileList"
        requesttypes = "File", "FileList"

        def processReport(self, msg): ...      # a REPORT of that type; msg is a wire.Message
        def processREQUEST(self, msg): ...     # returns what was asked for, None is nothing
        def getUpdateMessage(self): ...        # returns what is new, None is nothing

The other one has hooks that are found by their names: ``process_REPORT_<type>(msg)``, ``process_PUT_<type>(msg)``,
``process_GET_<type>(msg)`` and ``doUpdates(now)``, which returns ``(type, what is new)``, a list of such pairs, or
None.

What a request or an update returns is bytes (a serialized protobuf message), a protobuf message, a text, or anything
that JSON has; `answers` tells how it travels.

What an aggregator remembers between two runs of the controller goes through saveData, and comes back from
restoreData when its next instance is made. What it keeps while it processes a report takes effect exactly once,
whatever is killed when; so does what it keeps in `keep`, called before what was processed is committed. Attributes
that were not kept are gone with the process; so they are when an aggregator raised, or took too long: a new instance
is made from what was kept last.

Source: SEER aggregator and add-on documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from infocluster import names

if TYPE_CHECKING:
    from infocluster.aggregate.wire import Message

_GET = "process_GET_"

Saved = Callable[[str, str, Any], None]
Restored = Callable[[str, str, Any], Any]


def _unheard(_line: str) -> None:
    return


def _nowhere(_name: str, _part: str, _data: Any) -> None:
    return


def _default(_name: str, _part: str, default: Any) -> Any:
    return default


def _none(_name: str) -> list[str]:
    return []


class Module:
    """Anything that a module file defines; one instance of each class lives in the process that loaded it.

    Attributes:
        DEPENDS: names of classes that have to be loaded first, and are, with what they depend on.
        settings: the settings of this host, by section; there before ``__init__`` runs.
    """

    DEPENDS: Iterable[str] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012 (never changed: each instance gets its own)
    _save: Saved = staticmethod(_nowhere)
    _restore: Restored = staticmethod(_default)
    _parts: Callable[[str], list[str]] = staticmethod(_none)
    _others: dict[str, Module] = {}  # noqa: RUF012 (as settings)
    _tell: Callable[[str], None] = staticmethod(_unheard)

    def saveData(self, data: Any, part: str = "") -> None:
        """Keep this for the next instance of this class: anything of None, bool, int, float, text, bytes, list, dict.

        Args:
            data: what is kept in place of what was.
            part: a name, where an aggregator keeps much and changes little of it at once.

        Raises:
            TypeError: it holds something else.
        """
        self._save(type(self).__name__, part, data)

    def restoreData(self, default: Any = None, part: str = "") -> Any:
        """Return what was kept last, or the default. Tuples come back as lists."""
        return self._restore(type(self).__name__, part, default)

    def savedParts(self) -> list[str]:
        """Return the names of the parts that were kept."""
        return self._parts(type(self).__name__)

    def fault(self, line: str) -> None:
        """Tell what is wrong and stops nothing: to standard error, and on the controller to the page."""
        self._tell(line)

    def other(self, name: str) -> Module:
        """Return the instance of a class that DEPENDS names.

        Raises:
            KeyError: no such class was loaded.
        """
        return self._others[name]

    def keep(self) -> None:
        """Called before what was processed is committed: the place to call saveData once for many messages."""


class Aggregator(Module):
    """Deals with messages on the controller; see the module.

    Attributes:
        reporttype: the type of the REPORTs that processReport gets, or None.
        updatetype: the type of what getUpdateMessage returns, or None.
        requesttypes: the types of requests that processREQUEST answers.
    """

    reporttype: str | None = None
    updatetype: str | None = None
    requesttypes: Iterable[str] = ()

    def processReport(self, msg: Message) -> None:
        """Take in a REPORT of `reporttype`."""

    def processREQUEST(self, msg: Message) -> Any:
        """Return what is asked for by a request of one of `requesttypes`; None is nothing."""

    def getUpdateMessage(self) -> Any:
        """Return what is to be told of type `updatetype`; None is nothing."""

    def published(self) -> Iterable[dict[str, str]]:
        """Return the requests whose answers are published for web servers that have no controller near.

        Each is its query: ``{"type": "File", "name": "a.txt"}``; under the name ``""`` it may have a mark: while that
        is what it was, so is the answer. By default, each of `requesttypes`, and each that has a hook, on its own;
        where FileList and File are two of them, every file of the list in place of the latter.
        """
        hooks = [name.removeprefix(_GET) for name in dir(type(self)) if name.startswith(_GET)]
        kinds = dict.fromkeys((*_tuple(self.requesttypes), *hooks))
        has_files = "FileList" in kinds and "File" in kinds
        yield from ({"type": name} for name in kinds if name != "File" or not has_files)
        if has_files:
            from infocluster.aggregate import answers, wire

            process = requests(self, "FileList")
            told = process(wire.Message("GET", "-", "-", "FileList")) if process else None
            for file in answers.parsed("Files", told).files if isinstance(told, bytes) else ():
                yield {"type": "File", "name": file.name}

    def sections(self, now: float) -> Iterable[dict[str, Any]]:
        """Return what the page shows of this aggregator.

        Each section is ``{"id": "files", "title": "Files", "head": ["Name", "Size"], "rows": [["a.txt", "12"]],
        "pictures": [["Sizes", svg], ...], "text": "..."}``; all but id and title may be left out. The id is a name, a
        picture a pair of its title and SVG text, a cell a text, or a pair of a text and the query of a request
        (``?type=File&name=a.txt``) that it leads to. What is anything else is told, and left out.
        """
        return ()

    def metrics(self, now: float) -> Iterable[tuple[str, str, dict[str, str], float]]:
        """Return (name, help, labels, value) of each gauge for others' monitoring."""
        return ()


class Collector(Module):
    """Says on a node what it sees."""

    def getReport(self, now: float) -> Any:
        """Return ``(type, data)``, a list of such pairs, or None; data is bytes or a protobuf message."""

    def delivered(self, report: Any) -> None:
        """Called when what getReport returned is in the spool, durable: what it told need not be told again.

        Args:
            report: what is there, as (type, bytes); a pair that cannot travel (its type is no name, or it is over
                16 MiB) is told, and left out.
        """


def _tuple(value: Iterable[str] | str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def reports(module: Aggregator, kind: str, message_type: str) -> Callable[[Message], Any] | None:
    """Return what processes messages of a kind (REPORT, PUT) and type, None where nothing does."""
    found = getattr(module, f"process_{kind}_{message_type}", None)
    if found is None and kind == "REPORT" and module.reporttype == message_type:
        found = module.processReport
    return found if callable(found) else None


def requests(module: Aggregator, message_type: str) -> Callable[[Message], Any] | None:
    """Return what answers requests of a type, None where nothing does."""
    found = getattr(module, _GET + message_type, None)
    if found is None and message_type in _tuple(module.requesttypes):
        found = module.processREQUEST
    return found if callable(found) else None


def updates(module: Aggregator, now: float) -> list[tuple[str, Any]]:
    """Return what a module has to tell now, as (type, what).

    Raises:
        TypeError: doUpdates returned something else, or a type is no name.
    """
    told = []
    if module.updatetype:
        told.append((module.updatetype, module.getUpdateMessage()))
    hook = getattr(module, "doUpdates", None)
    told += pairs(hook(now)) if callable(hook) else []
    if not all(names.is_name(name) for name, _ in told):
        raise TypeError("the type of an update is no name")
    return [(name, what) for name, what in told if what is not None]


def query(told: Any) -> dict[str, str]:
    """Return one of the requests that `published` gave.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(told, dict) or not all(isinstance(text, str) for pair in told.items() for text in pair):
        raise TypeError("expected a request such as {'type': 'File', 'name': 'a.txt'}")
    return dict(told)


def pairs(told: Any) -> list[tuple[str, Any]]:
    """Return what a hook returned as a list of (type, what).

    Raises:
        TypeError: it is no such thing.
    """
    if told is None:
        return []
    if isinstance(told, tuple):
        told = [told]
    found = list(told)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in found):
        raise TypeError("expected (type, data), a list of such pairs, or None")
    return found
