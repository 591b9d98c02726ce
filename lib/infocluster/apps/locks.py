# SPDX-License-Identifier: Apache-2.0
"""What the program locks does: show who holds paths of the production tree, and who waits for whom."""

import json
import time

from infocluster.cron.command import Run
from infocluster.locks import pathlocks
from infocluster.locks.pathlocks import Request

HEAD = ("STATE", "USER", "HOST", "PID", "SINCE", "WAITS FOR", "PATHS")


def show(run: Run) -> str:
    """List all requests in the order of their arrival.

    Shape: with ``-json`` one line, a list with an object for each request, such as::

        [{"number": 8, "state": "waits", "user": "www", "host": "info", "pid": 4712, "paths": ["world"],
          "since": 1763838251.25, "waits_for": [7]}]

    ``waits_for`` are numbers of requests that are in the list too; the path ``""`` is everything.
    """
    requests = pathlocks.holders(f"{run.settings['site']['state_dir']}/pathlocks")
    if run.arguments["json"]:
        run.say(json.dumps([_shape(request) for request in requests]))
        return ""
    if not requests:
        return "nobody holds a path, nobody waits"
    for line in _columns([HEAD, *_rows(requests)]):
        run.say(line)
    waiting = sum(request.state == pathlocks.WAITS for request in requests)
    return f"{len(requests) - waiting} holding, {waiting} waiting"


def _shape(request: Request) -> dict[str, object]:
    return {
        "number": request.number,
        "state": request.state,
        "user": request.user,
        "host": request.host,
        "pid": request.pid,
        "paths": request.paths,
        "since": request.since,
        "waits_for": request.waits_for,
    }


def _rows(requests: list[Request]) -> list[tuple[str, ...]]:
    pids = {request.number: str(request.pid) if request.pid else "unknown" for request in requests}
    return [
        (
            request.state,
            request.user,
            request.host,
            pids[request.number],
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(request.since)),
            ", ".join(f"pid {pids[number]}" for number in request.waits_for) or "-",
            pathlocks.listed(request.paths),
        )
        for request in requests
    ]


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines, every column but the last as wide as its widest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
