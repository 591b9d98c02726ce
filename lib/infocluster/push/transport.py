# SPDX-License-Identifier: Apache-2.0
"""How what a listing holds gets to one server: a transport is a function that yields each thing it did there.

A transport gets a server's settings, the `trees.Listing` of what is pushed and an `Order`. It yields a
`trees.Action` for each thing that was put in place or removed, or could not be; it raises an InfoclusterError
when nothing more can be done on that server, and yields before, with the reason `BEGUN`, what may have been done. It
puts all that is new in place before it removes anything, and removes below the named paths only. It may be stopped
between two actions. `send` runs any of them and keeps their time limit.

Source: rsync(1) and rdist(1) for what is expected of a push.
"""

import time
from collections.abc import Callable, Iterator

from infocluster import trees
from infocluster.errors import InfoclusterError, RefusedError, UnavailableError
from infocluster.names import printable
from infocluster.push.order import BEGUN, Order, Outcome, UnreachableError
from infocluster.push.servers import Server


def local(server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
    """Bring a listing to a directory of this host, which has to exist: a disk that is not mounted is not filled."""
    if order.atomic:
        return _switched(server, listing, order)
    return trees.mirror(listing, server.destination, show=order.show, keep=listing.leave)


def over_ssh(server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
    """Bring a listing to a server over ssh: a few small files as a `parcel`, what that leaves with `rsync`."""
    if order.atomic:
        yield from _switched(server, listing, order)
        return
    from infocluster.push import parcel

    found, is_done = parcel.send(server, listing, order)
    if found and (is_done or order.show):
        yield from found.actions()
        return
    from infocluster.push import rsync

    yield from rsync.Push(server, listing, order).work(found)


def daemon(server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
    """Bring a listing to a module of an rsync daemon; a password is taken from the variable RSYNC_PASSWORD.

    The module has to have ``use chroot = yes``: without it the daemon alters the texts of links.

    Raises:
        RefusedError: each directory should switch over in one step, which takes more than an rsync daemon does.
    """
    if order.atomic:
        raise RefusedError(f"cannot switch over directories on {server.name}: it takes ssh, an rsync daemon cannot")
    from infocluster.push import rsync

    return rsync.Push(server, listing, order).work()


def _switched(server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
    """Bring a listing to a server, each of its directories in one step."""
    from infocluster.push import rsync, switch

    return switch.work(rsync.Push(server, listing, order))


def by_rdist(server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
    """Have rdist bring a listing to a server: see `rdist`."""
    from infocluster.push import rdist

    return rdist.push(server, listing, order)


TRANSPORTS: dict[str, Callable[[Server, trees.Listing, Order], Iterator[trees.Action]]] = {
    "local": local,
    "ssh": over_ssh,
    "daemon": daemon,
    "rdist": by_rdist,
}


def send(server: Server, listing: trees.Listing, order: Order) -> Outcome:
    """Bring a listing to one server and return how it went; what goes wrong there is in the outcome, never raised.

    Args:
        server: who gets it.
        listing: what is pushed.
        order: how; its time limit is looked at between two actions.
    """
    began = time.monotonic()
    outcome = Outcome(server.name)
    kept = 0
    try:
        for action in TRANSPORTS[server.transport](server, listing, order):
            if action.verb == "fail":
                outcome.faults.append(f"{printable(action.path)}: {action.reason}")
            elif action.verb == "keep":
                # A reason of a skeleton's own kind is no fault.
                kept += type(action.reason) is str
            elif action.reason == BEGUN:
                outcome.begun.append(action._replace(reason=""))
                continue
            else:
                outcome.changes.append(action)
            if order.stopped.is_set():
                raise UnavailableError("the push was stopped")
            if time.monotonic() > order.end:
                raise UnavailableError(f"not done after {order.end - began:.0f} s")
    except InfoclusterError as error:
        outcome.faults.append(str(error))
        outcome.was_unreachable = isinstance(error, UnreachableError)
    except Exception as error:  # whatever is wrong with one server or its transport, the others are served
        outcome.faults.append(f"{type(error).__name__}: {error}")
    if kept:
        outcome.faults.append(f"{kept} not removed, because not everything new could be put in place")
    outcome.duration_s = time.monotonic() - began
    return outcome
