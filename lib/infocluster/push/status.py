# SPDX-License-Identifier: Apache-2.0
"""How the pushes of a family of servers stand: the last ones, and which server lags behind with what since when.

Shape: `record` returns, and ``-status -json`` prints::

    {"kind": "web",
     "pushes": [{"program": "wwwpush", "user": "jane", "started": 1763838251.25, "duration_s": 0.42,
                 "paths": ["world/sample"], "ok": false, "servers": [{"name": "web1", "ok": true, ...}], ...}],
     "servers": [{"name": "web1", "lacks": [], "since": null},
                 {"name": "web2", "lacks": ["world/sample"], "since": 1763838251.25}]}

    ``pushes`` are records as `push.record` keeps them, without their ``changes``, the oldest first; ``lacks`` are
    tree paths, ``""`` for everything; ``since`` is in Unix seconds, null where nothing is lacked or nobody knows.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from infocluster import files
from infocluster.errors import UnavailableError, reason
from infocluster.locks import pathlocks, tickets
from infocluster.names import printable
from infocluster.push import ledger, nodes
from infocluster.push import record as records
from infocluster.push.servers import Server

PUSHES_SHOWN = 10
NEVER = ", never had a complete push"

Say = Callable[[str], None]


def record(state_dir: str, kind: str, servers: Sequence[Server], report: Say) -> dict[str, Any]:
    """Return how it stands, see above.

    Args:
        state_dir: the settings' state_dir.
        kind: the family.
        servers: all of its servers.
        report: gets a line for a file that cannot be used.

    Raises:
        UnavailableError: what is kept cannot be read.
    """
    lacks = ledger.since(state_dir, servers, report)
    return {
        "kind": kind,
        "pushes": _pushes(f"{state_dir}/pushes", kind, report),
        "servers": [
            {"name": name, "lacks": sorted(of), "since": min((s for s in of.values() if s is not None), default=None)}
            for name, of in lacks.items()
        ],
    }


def status(state_dir: str, kind: str, servers: Sequence[Server], now: float, report: Say) -> list[str]:
    """Return how it stands, for a person: a line for each push, one for each thing that was wrong with it but for
    its servers, then one for all servers that lag behind equally.

    Args:
        state_dir: the settings' state_dir.
        kind: the family.
        servers: all of its servers.
        now: Unix time.
        report: gets a line for a file that cannot be used.

    Raises:
        UnavailableError: what is kept cannot be read.
    """
    found = record(state_dir, kind, servers, report)
    lines = [line for push in found["pushes"] for line in _push_lines(push)] or ["no push yet"]
    alike: dict[tuple[tuple[str, ...], float | None], list[str]] = {}
    for server in found["servers"]:
        alike.setdefault((tuple(server["lacks"]), server["since"]), []).append(server["name"])
    complete = alike.pop(((), None), [])
    if complete:
        lines.append(f"{nodes.folded(complete)}: {'has' if len(complete) == 1 else 'have'} everything")
    for (lacks, since), equal in sorted(alike.items(), key=lambda item: item[0][1] or 0):
        verb = "lacks" if len(equal) == 1 else "lack"
        when = "" if since is None else f" since {tickets.local(since)} ({_span(now - since)})"
        lines.append(f"{nodes.folded(equal)}: {verb} {pathlocks.listed(lacks)}{when or NEVER}")
    return lines


def _push_lines(push: dict[str, Any]) -> list[str]:
    good = [server["name"] for server in push["servers"] if server["ok"]]
    bad = [server["name"] for server in push["servers"] if not server["ok"]]
    results = [f"{nodes.folded(names)} {how}" for names, how in ((good, "ok"), (bad, "failed")) if names]
    if push["left"]:
        results.append(f"{len(push['left'])} left out")
    what = f"{push['program']} {pathlocks.listed(push['paths'])}"
    when = tickets.local(push["started"])
    line = f"{when} {printable(push['user'])}: {what}: {', '.join(results)}, in {push['duration_s']:.2f} s"
    return [line, *(f"  {printable(fault)}" for fault in push["faults"])]


def _pushes(directory: str, kind: str, report: Say) -> list[dict[str, Any]]:
    """Return the last records of a family, the oldest first."""
    try:
        names = sorted((name for name in os.listdir(directory) if _is_record(name)), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnavailableError(f"cannot read {directory}: {reason(error)}") from error
    found: list[dict[str, Any]] = []
    for name in names:
        if len(found) == PUSHES_SHOWN:
            break
        try:
            push = json.loads(files.read(f"{directory}/{name}"))
            if push["format"] != records.FORMAT:
                raise ValueError
            if push["kind"] == kind:
                del push["changes"]
                push.setdefault("faults", [])
                _push_lines(push)
                found.append(push)
        except FileNotFoundError:
            # A push that just ended dropped the oldest.
            continue
        except OSError as error:
            raise UnavailableError(f"cannot read {directory}/{name}: {reason(error)}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            report(f"cannot use {directory}/{name}: not the record of a push")
    return found[::-1]


def _is_record(name: str) -> bool:
    return name[:1].isdecimal() and name.endswith(".json")


def _span(seconds: float) -> str:
    """Return a span of time in its largest unit, such as ``3 h``."""
    for unit, length in (("days", 172800), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // (86400 if unit == 'days' else length))} {unit}"
    return f"{max(int(seconds), 0)} s"
