# SPDX-License-Identifier: Apache-2.0
"""What the program locks does: show who holds paths of the production tree or has a slot, and who waits for whom."""

import json
from collections.abc import Iterator, Sequence

from infocluster.cron.command import Run
from infocluster.locks import pathlocks, slots, tickets

HEAD = ("STATE", "USER", "HOST", "PID", "SINCE", "WAITS FOR", "PATHS")


def show(run: Run) -> str:
    """List all requests, those for paths and then those for slots, each in the order of their arrival.

    Shape: with ``-json`` one line, a list with an object for each request, such as::

        [{"what": "paths", "number": 8, "state": "waits", "user": "www", "host": "info", "pid": 4712,
          "since": 1763838251.25, "waits_for": [7], "paths": ["world"]},
         {"what": "slot", "number": 3, "state": "holds", "user": "www", "host": "info", "pid": 4711,
          "since": 1763838250.5, "waits_for": [], "held_since": 1763838251.5}]

    ``waits_for`` are numbers of requests of the same sort that are in the list too: for paths all of them, for a
    slot any; the path ``""`` is everything; ``held_since`` is null while it waits.
    """
    state_dir = run.settings["site"]["state_dir"]
    paths, pushes = pathlocks.holders(f"{state_dir}/pathlocks"), slots.holders(f"{state_dir}/slots")
    inside = [request for request in pushes if request.state == tickets.HOLDS]
    if run.arguments["json"]:
        shapes = [_shape(request, request.waits_for) | {"paths": request.paths} for request in paths]
        for request in pushes:
            waits_for = [] if request in inside else [holder.number for holder in inside]
            shapes.append(_shape(request, waits_for) | {"held_since": request.held_since})
        run.say(json.dumps(shapes))
        return ""
    count = run.settings["push"]["slots"]
    if paths or pushes:
        for line in columns([HEAD, *_path_rows(paths), *_slot_rows(pushes, inside)]):
            run.say(line)
    waiting = sum(request.state == tickets.WAITS for request in paths)
    summary = f"{len(paths) - waiting} holding, {waiting} waiting" if paths else "nobody holds a path, nobody waits"
    if pushes:
        summary += f"; {len(inside)} of {count} slots in use, {len(pushes) - len(inside)} waiting"
    return summary


def _shape(request: pathlocks.Request | slots.Request, waits_for: Sequence[int]) -> dict[str, object]:
    return {
        "what": "slot" if isinstance(request, slots.Request) else "paths",
        "number": request.number,
        "state": request.state,
        "user": request.user,
        "host": request.host,
        "pid": request.pid,
        "since": request.since,
        "waits_for": waits_for,
    }


def _path_rows(requests: list[pathlocks.Request]) -> Iterator[tuple[str, ...]]:
    pids = {request.number: _pid(request) for request in requests}
    for request in requests:
        waits_for = ", ".join(f"pid {pids[number]}" for number in request.waits_for)
        yield _row(request, request.since, waits_for, pathlocks.listed(request.paths))


def _slot_rows(requests: list[slots.Request], inside: list[slots.Request]) -> Iterator[tuple[str, ...]]:
    any_of = " or ".join(f"pid {_pid(holder)}" for holder in inside)
    for request in requests:
        yield _row(request, request.held_since or request.since, "" if request in inside else any_of, "(a slot)")


def _row(request: pathlocks.Request | slots.Request, since: float, waits_for: str, what: str) -> tuple[str, ...]:
    return (
        request.state,
        request.user,
        request.host,
        _pid(request),
        tickets.local(since),
        waits_for or "-",
        what,
    )


def _pid(request: tickets.Asker) -> str:
    return str(request.pid) if request.pid else "unknown"


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines, every column but the last as wide as its widest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
