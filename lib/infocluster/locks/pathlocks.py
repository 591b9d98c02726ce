# SPDX-License-Identifier: Apache-2.0
"""Locks on paths of the production tree: a directory covers what is below it, a file blocks its parents.

Two paths conflict when they are equal or one is above the other, component by component: ``world/a`` conflicts
with ``world`` and with ``world/a/b.html``, never with ``world/ab``. Two requests conflict when a path of one
conflicts with a path of the other. The tree's name (``world``) stands for the whole tree, and `ALL`, the empty
path, for every tree: it lies above all paths.

A request takes all of its paths or none, in the order of arrival: it waits for every earlier request, holding
or waiting, that it conflicts with, so that files that keep coming never starve a directory; the others pass at
once. Requests wait for earlier ones only, so that they alone never wait in a circle; a process that would close
one because it holds other paths meanwhile is refused.

Shape: a request is a ticket (`tickets` has the file), which says for what it is besides who asks::

        {"user": "www", "host": "info", "pid": 4711, "paths": ["world/survey"], "since": 1763838251.25}

    ``paths`` sorted, none below another, ``""`` for `ALL`; ``since`` the Unix time of its arrival. It lives for as
    long as the request waits and holds. A live ticket that cannot be understood counts as `ALL`.

Paths are compared as text: two names that links make of one file are two paths. Like every lock here it is the
kernel's of one host, and shared by the group of DIRECTORY.

Source: flock(2), the wwwpush documentation.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from infocluster import names
from infocluster.errors import RefusedError, UnavailableError, UsageError
from infocluster.locks import tickets
from infocluster.locks.tickets import HOLDS, WAITS, Asker, Ticket, who

ALL = ""
PATHS_SHOWN = 3


class Request(Asker):
    """One request for paths: whose, for what, since when, and how it stands.

    Shape: ``paths`` as in the ticket; ``since`` in Unix seconds; ``state`` is ``"holds"`` or ``"waits"``;
        ``waits_for`` has the numbers of the earlier requests it conflicts with, lowest first.
    """

    __slots__ = ("paths", "since", "waits_for")

    def __init__(self, number: int, user: str, host: str, pid: int, paths: tuple[str, ...], since: float) -> None:
        super().__init__(number, user, host, pid)
        self.paths = paths
        self.since = since
        self.waits_for: tuple[int, ...] = ()

    @property
    def state(self) -> str:
        """Return whether it holds its paths or waits for them."""
        return WAITS if self.waits_for else HOLDS

    def __str__(self) -> str:
        verb = "waits for" if self.waits_for else "holds"
        return f"{who(self)} {verb} {listed(self.paths)} since {tickets.local(self.since)}"


def listed(paths: Sequence[str], limit: int | None = PATHS_SHOWN) -> str:
    """Return paths for a person, such as ``world/a, world/b and 7 more``; `ALL` is shown as ``everything``.

    Args:
        paths: the paths of a request.
        limit: how many are named; None names all.
    """
    words = [names.printable(path) if path else "everything" for path in paths[:limit]]
    more = len(paths) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def conflicts(paths: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether a path of one list is, or lies above or below, a path of the other.

    Args:
        paths: paths in their normal form (`names.tree_path`), or `ALL`.
        others: the same.
    """
    return _reach(paths, frozenset(others)) or _reach(others, frozenset(paths))


def _reach(paths: Sequence[str], others: frozenset[str]) -> bool:
    """Tell whether a path or one above it is among the others."""
    return any(step in others for path in paths for step in _upwards(path))


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = _parent(path)
    yield ALL


def normal(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of a request as its ticket has them: sorted, none twice, none below another.

    Args:
        paths: paths relative to the trees, such as ``world/survey``, or `ALL`.

    Raises:
        UsageError: there is none, or one is not a path (`names.tree_path`).
    """
    if isinstance(paths, str):
        raise UsageError(f"cannot lock {names.shown(paths)}: expected a list of paths")
    asked = {names.tree_path(path) if path != ALL else ALL for path in paths}
    if not asked:
        raise UsageError("cannot lock nothing: expected at least one path")
    return tuple(sorted(path for path in asked if not path or not _reach([_parent(path)], frozenset(asked))))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def hold(
    paths: Sequence[str],
    timeout_s: float | None = None,
    *,
    directory: str,
    say: Callable[[str], None] = _say,
) -> Iterator[None]:
    """Hold paths while the context is open: all of them or none, in the order of arrival.

    Threads of one process count as one: what one of them has, another is refused.

    Args:
        paths: such as ``["world/survey", "world/index.html"]``; ``[ALL]`` for everything there is.
        timeout_s: seconds to wait; 0 tries once, None waits as long as it takes.
        directory: where the tickets are, such as STATE_DIR/pathlocks; made when it is missing.
        say: gets a line for every request that has to be waited for, before the wait.

    Raises:
        UsageError: there is no path, or one is no path.
        RefusedError: this process has a conflicting path already, or waiting while it holds what it has would
            close a circle of processes that wait for one another.
        UnavailableError: the time is over (the message names who holds them), or a ticket cannot be written or read.
    """
    wanted = normal(paths)
    directory = os.path.realpath(directory)
    end = None if timeout_s is None else time.monotonic() + timeout_s
    ticket, earlier = _arrive(directory, wanted, end, say)
    try:
        _wait(ticket, wanted, earlier, timeout_s, end, say)
        yield
    finally:
        ticket.leave()


def holders(directory: str) -> list[Request]:
    """Return who holds paths and who waits for them, in the order of arrival, without taking anything.

    It is a look at one moment while others come and go. Nothing is written, no dead ticket removed.

    Args:
        directory: where the tickets are; one that is missing has none.

    Raises:
        UnavailableError: the directory or a ticket cannot be read.
    """
    live: list[Request] = []
    for number in tickets.numbers(directory):
        request = _look(directory, number)
        if request is not None:
            request.waits_for = tuple(other.number for other in live if conflicts(request.paths, other.paths))
            live.append(request)
    return live


def _arrive(
    directory: str, wanted: tuple[str, ...], end: float | None, say: Callable[[str], None]
) -> tuple[Ticket, list[Request]]:
    """Under the mutex: drop what is dead, refuse what would never end, leave a ticket of our own."""
    with tickets.arriving(directory, listed(wanted), end, say):
        live = holders(directory)
        earlier = [request for request in live if conflicts(wanted, request.paths)]
        _refuse_circle(directory, wanted, earlier, live)
        if earlier and end is not None and end <= time.monotonic():
            raise UnavailableError(f"cannot lock {listed(wanted)}: {earlier[0]}")
        number = max((request.number for request in live), default=0) + 1
        shape = tickets.origin() | {"paths": wanted, "since": time.time()}
        return tickets.add(directory, number, shape), earlier


def _refuse_circle(directory: str, wanted: tuple[str, ...], earlier: list[Request], live: list[Request]) -> None:
    """Raise if this process would wait for itself, or for one that waits for it.

    Whom a request waits for is settled when it arrives, so that the last arrival closes every circle there is.
    """
    mine = tickets.mine(directory)
    for request in earlier:
        if request.number in mine:
            raise RefusedError(f"cannot lock {listed(wanted)}: this process has {listed(request.paths)} already")
    by_number = {request.number: request for request in live}
    ahead, seen = list(earlier) if mine else [], set()
    while ahead:
        process = _process(ahead.pop())
        if process in seen:
            continue
        seen.add(process)
        for request in live:
            if _process(request) != process:
                continue
            if mine.intersection(request.waits_for):
                held = listed([path for number in sorted(mine) for path in by_number[number].paths])
                raise UnavailableError(f"cannot lock {listed(wanted)} while holding {held}: {request}, so for us")
            ahead += [by_number[number] for number in request.waits_for]


def _process(request: Request) -> tuple[str, int, int]:
    # One that cannot be understood stands for itself alone.
    return (request.host, request.pid, 0 if request.pid else request.number)


def _wait(
    ticket: Ticket,
    wanted: tuple[str, ...],
    earlier: list[Request],
    timeout_s: float | None,
    end: float | None,
    say: Callable[[str], None],
) -> None:
    """Wait until all earlier requests are over, one after the other, in the kernel."""
    for request in earlier:
        if tickets.has_ended(ticket.directory, request.number):
            continue
        say(f"waiting for {listed(wanted)}: {_now(ticket.directory, request)}")
        left_s = None if end is None else end - time.monotonic()
        if not tickets.has_ended(ticket.directory, request.number, left_s):
            now = _now(ticket.directory, request)
            raise UnavailableError(f"cannot lock {listed(wanted)} after {timeout_s:g} s: {now}")


def _now(directory: str, request: Request) -> Request:
    """Return how a request stands by now: one that waited may hold."""
    return next((now for now in holders(directory) if now.number == request.number), request)


def _look(directory: str, number: int) -> Request | None:
    """Return a live request, or None where its process has ended."""
    found = tickets.look(directory, number)
    if found is None:
        return None
    content, since = found
    return _understood(number, content) or Request(number, "unknown", "unknown", 0, (ALL,), since)


def _understood(number: int, content: bytes) -> Request | None:
    try:
        shape = json.loads(content)
        user, host, pid, since = str(shape["user"]), str(shape["host"]), int(shape["pid"]), float(shape["since"])
        return Request(number, user, host, pid, normal(shape["paths"]), since)
    except (ValueError, TypeError, KeyError, AttributeError, UsageError):
        return None
