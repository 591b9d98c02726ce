# SPDX-License-Identifier: Apache-2.0
"""Slots: at most N of something at once on this host, in the order of arrival, with an N that may change meanwhile.

A request has its slot when fewer than N earlier requests are alive. New ones come behind all others, so that a
request's place only ever gets better: with the same N nobody is overtaken, and there are never more than N inside.
An N that is raised lets the next ones in; one that is lowered sends nobody away, it lets nobody in until enough have
left. A slot is free again when its holder ends, however it ends.

Shape: a request is a ticket (`tickets` has the file); one that has its slot has a second line, which tells since
    when, for those who look; nothing else rests on it::

        {"user": "www", "host": "info", "pid": 4711, "since": 1763838251.25}
        {"held_since": 1763838254.5}

A waiter waits in the kernel for the oldest request, and looks every `LOOK_S` at the others before it and at N.

Source: flock(2), the wwwpush documentation.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from infocluster.errors import InfoclusterError, RefusedError, UnavailableError
from infocluster.locks import tickets
from infocluster.locks.tickets import HOLDS, WAITS, Asker, Say, Ticket

# How late a waiter notices that N was raised, or that another than the oldest has left.
LOOK_S = 0.05


class Request(Asker):
    """One request for a slot: whose, since when (Unix seconds), and since when it has it; None while it waits."""

    __slots__ = ("held_since", "since")

    def __init__(self, number: int, user: str, host: str, pid: int, since: float, held_since: float | None) -> None:
        super().__init__(number, user, host, pid)
        self.since = since
        self.held_since = held_since

    @property
    def state(self) -> str:
        """Return whether it has its slot or waits for it."""
        return WAITS if self.held_since is None else HOLDS

    def __str__(self) -> str:
        return f"{tickets.who(self)} {self.state} since {tickets.local(self.held_since or self.since)}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def hold(
    limit: Callable[[], int], *, directory: str, say: Say = _say, timeout_s: float | None = None
) -> Iterator[None]:
    """Hold a slot while the context is open. A process has one at most.

    Args:
        limit: returns how many there are, 1 or more; asked again whenever it is decided, so that it may change. Where
            it raises while this waits, the last number goes on to count.
        directory: where the tickets are, such as STATE_DIR/slots; made when it is missing.
        say: gets a line when this has to wait, before the wait.
        timeout_s: seconds to wait; 0 tries once, None waits as long as it takes.

    Raises:
        RefusedError: this process has a slot already, or waits for one.
        UnavailableError: the time is over (the message names who is inside), or a ticket cannot be written or read.
    """
    directory = os.path.realpath(directory)
    count = max(1, limit())
    end = None if timeout_s is None else time.monotonic() + timeout_s
    with tickets.arriving(directory, "a slot", end, say, "get"):
        earlier = [number for number in tickets.numbers(directory) if not tickets.has_ended(directory, number)]
        if tickets.mine(directory):
            raise RefusedError("cannot get a slot: this process has one already, or waits for it")
        shape = tickets.origin() | {"since": time.time()}
        ticket = tickets.add(directory, earlier[-1] + 1 if earlier else 1, shape)
    try:
        _wait(ticket, earlier, limit, count, timeout_s, end, say)
        ticket.note({"held_since": time.time()})
        yield
    finally:
        ticket.leave()


def _wait(
    ticket: Ticket,
    earlier: list[int],
    limit: Callable[[], int],
    count: int,
    timeout_s: float | None,
    end: float | None,
    say: Say,
) -> None:
    """Wait until fewer than `count` of the earlier requests are alive; dead ones leave the list."""
    is_told = False
    while not _is_below(ticket.directory, earlier, count):
        if end is not None and end <= time.monotonic():
            waited = f" after {timeout_s:g} s" if timeout_s else ""
            raise UnavailableError(f"cannot get a slot{waited}: {_taken(ticket, count)}")
        if not is_told:
            say(f"waiting for a slot: {_taken(ticket, count)}")
            is_told = True
        pause_s = LOOK_S if end is None else min(LOOK_S, max(end - time.monotonic(), 0))
        tickets.has_ended(ticket.directory, earlier[0], pause_s)
        count = _asked(limit, count)


def _is_below(directory: str, earlier: list[int], count: int) -> bool:
    """Tell whether fewer than so many requests are alive; looks at no more of them than that takes."""
    place = 0
    while place < count and place < len(earlier):
        if tickets.has_ended(directory, earlier[place]):
            del earlier[place]
        else:
            place += 1
    return place < count


def _asked(limit: Callable[[], int], last: int) -> int:
    try:
        return max(1, limit())
    except InfoclusterError:
        # Somebody is just writing the settings, or wrote nonsense: no reason to give up a place in the queue.
        return last


def _taken(ticket: Ticket, count: int) -> str:
    """Return why there is no slot: how many are inside, how many wait before, and who is longest inside."""
    before = [request for request in holders(ticket.directory) if request.number < ticket.number]
    inside = [request for request in before if request.state == HOLDS]
    words = f"{len(inside)} of {count} in use"
    if len(before) > len(inside):
        words += f", {len(before) - len(inside)} waiting before"
    return f"{words}; {inside[0]}" if inside else words


def holders(directory: str) -> list[Request]:
    """Return who has a slot and who waits for one, in the order of arrival, without taking anything.

    Args:
        directory: where the tickets are; one that is missing has none.

    Raises:
        UnavailableError: the directory or a ticket cannot be read.
    """
    found = ((number, tickets.look(directory, number)) for number in tickets.numbers(directory))
    return [_understood(number, *ticket) for number, ticket in found if ticket is not None]


def _understood(number: int, content: bytes, written: float) -> Request:
    first, _, second = content.partition(b"\n")
    held_since = None
    # Without the second line it waits; with a part of it, it is just getting its slot.
    with suppress(ValueError, TypeError, KeyError):
        held_since = float(json.loads(second)["held_since"])
    try:
        shape = json.loads(first)
        user, host, pid = str(shape["user"]), str(shape["host"]), int(shape["pid"])
        return Request(number, user, host, pid, float(shape["since"]), held_since)
    except (ValueError, TypeError, KeyError):
        return Request(number, "unknown", "unknown", 0, written, held_since)
