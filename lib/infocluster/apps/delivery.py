# SPDX-License-Identifier: Apache-2.0
"""Delivery: batch/wwwpush and batch/ftppush, from their arguments to a push and what is told of it.

A push completes what publishes left undone in its paths before it reads them; as rooms of one floor do not know
each other, the two are brought together here.
"""

import json
import math
import sys
from functools import partial

from infocluster.cron.command import Run
from infocluster.errors import UsageError
from infocluster.locks import pathlocks
from infocluster.names import shown
from infocluster.publish import place
from infocluster.push import run as pushing
from infocluster.push.plan import Request
from infocluster.push.record import Record

# The name a program is called by picks its family of servers.
KINDS = {"wwwpush": "web", "ftppush": "ftp"}


def push(run: Run) -> str:
    """Push what the arguments name, and return the summary.

    Raises:
        UsageError: the arguments do not go together.
        InfoclusterError: as `pushing.push`.
    """
    arguments = run.arguments
    kind = KINDS.get(run.program)
    if kind is None:
        raise UsageError(f"cannot push as {shown(run.program)}: expected to be called {' or '.join(KINDS)}")
    paths = arguments["path"]
    request = Request(
        run.program,
        kind,
        paths if isinstance(paths, list) else [],
        everything=bool(arguments["all"]),
        show=bool(arguments["show"]),
        timeout_s=_seconds(arguments["timeout"]),
    )
    # With -json the record alone is on the standard output; with -quiet, nothing.
    say = _aside if arguments["json"] else _nothing if arguments["quiet"] else run.say
    finish = partial(place.finish, conf=run.settings, say=say)
    record = pushing.push(request, run.settings, finish, say, run.fault, run.progress)
    if arguments["json"]:
        run.say(json.dumps(record))
    return "" if arguments["json"] or arguments["quiet"] else _summary(record)


def _summary(record: Record) -> str:
    done = sum(server["ok"] for server in record["servers"])
    verb = "compared" if record["show"] else "pushed"
    servers = len(record["servers"])
    count = f"{done} of {servers}" if done < servers else str(servers)
    what = pathlocks.listed(record["paths"])
    return f"{verb} {what} on {count} {'server' if servers == 1 else 'servers'} in {record['duration_s']:.2f} s"


def _seconds(text: object) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(str(text))
    except ValueError:
        seconds = -1.0
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"cannot wait {shown(str(text))}: expected a number of seconds")
    return seconds


def _aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _nothing(_line: str) -> None:
    return
