# SPDX-License-Identifier: Apache-2.0
"""How what a listing holds gets to one server: a transport is a function that yields each thing it did there.

A transport gets a server's settings, the `trees.Listing` of what is pushed and an `Order`. It yields a
`trees.Action` for each thing that was put in place or removed, or could not be; it raises an InfoclusterError
when nothing more can be done on that server. It puts all that is new in place before it removes anything, and removes
below the named paths only. It may be stopped between two actions. `send` runs any of them and keeps their time limit.

Source: rsync(1) and rdist(1) for what is expected of a push.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from infocluster import trees
from infocluster.errors import InfoclusterError, UnavailableError
from infocluster.names import printable

Server = dict[str, Any]


@dataclass(slots=True)
class Order:
    """What is asked of a transport: ``show`` changes nothing; at ``end`` (monotonic seconds) the time is over."""

    show: bool
    end: float
    stopped: threading.Event


@dataclass(slots=True)
class Outcome:
    """How it went on one server.

    ``changes`` has what was installed, updated and removed, in that order of events; ``faults`` a line for each
    thing that went wrong.
    """

    server: str
    changes: list[trees.Action] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    duration_s: float = 0.0


def local(server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
    """Bring a listing to a directory of this host, which has to exist: a disk that is not mounted is not filled."""
    return trees.mirror(listing, server["destination"], show=order.show)


TRANSPORTS: dict[str, Callable[[Server, trees.Listing, Order], Iterator[trees.Action]]] = {"local": local}


def send(
    server: Server, listing: trees.Listing, timeout_s: float, stopped: threading.Event, show: bool = False
) -> Outcome:
    """Bring a listing to one server and return how it went; what goes wrong there is in the outcome, never raised.

    Args:
        server: a section [[servers]] of the settings.
        listing: what is pushed.
        timeout_s: seconds it may take; looked at between two actions.
        stopped: set when the whole push is to end.
        show: whether to change nothing and only find out what would be done.
    """
    began = time.monotonic()
    order = Order(show, began + timeout_s, stopped)
    outcome = Outcome(server["name"])
    kept = 0
    try:
        for action in TRANSPORTS[server["transport"]](server, listing, order):
            if action.verb == "fail":
                outcome.faults.append(f"{printable(action.path)}: {action.reason}")
            elif action.verb == "keep":
                kept += 1
            else:
                outcome.changes.append(action)
            if stopped.is_set():
                raise UnavailableError("the push was stopped")
            if time.monotonic() > order.end:
                raise UnavailableError(f"not done after {timeout_s:g} s")
    except InfoclusterError as error:
        outcome.faults.append(str(error))
    except Exception as error:  # whatever is wrong with one server or its transport, the others are served
        outcome.faults.append(f"{type(error).__name__}: {error}")
    if kept:
        outcome.faults.append(f"{kept} not removed, because not everything new could be put in place")
    outcome.duration_s = time.monotonic() - began
    return outcome
