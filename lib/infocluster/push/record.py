# SPDX-License-Identifier: Apache-2.0
"""What is told of a push: a line for each server, equal ones in one, and a record that is kept.

Shape: the record of a push is one file in STATE_DIR/pushes, ``20251122T190411.250000Z-4711.json`` (the UTC time of
    its start and the process), with one JSON object::

        {"format": "infocluster push 1", "program": "wwwpush", "kind": "web", "user": "jane", "pid": 4711,
         "started": 1763838251.25, "waited_s": 0.0, "held": [1763838251.25, 1763838251.66], "duration_s": 0.42,
         "paths": ["world/sample"], "show": false,
         "ok": false,
         "faults": ["push host push1: not heard for 10 s; the other push hosts will serve web[1,3]"],
         "left": [{"path": "world/sample/draft.html", "reason": "others may not read it (mode 0600)"}],
         "servers": [{"name": "web1", "ok": true, "installed": 1, "updated": 2, "removed": 0, "bytes": 8211,
                      "duration_s": 0.31, "faults": []}],
         "notify": [{"to": ["www-mgmt@localhost"], "servers": "web[1-3]"}],
         "changes": [{"servers": "web[1-3]", "install": ["world/sample/a.html"], "update": [...], "remove": [],
                      "more": 0}]}

    ``started`` in Unix seconds, ``waited_s`` for the path locks, which were ``held`` from one Unix time to
    another. ``ok`` says that every server has everything; ``faults`` are what was wrong beside what is ``left`` out
    and with servers. ``changes`` has one element for each set of servers to which the same was done; of more than
    1000 paths the first are kept and ``more`` counts the others. The newest 1000 records are kept.

Source: documentation of wwwpush; ClusterShell's node sets.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from infocluster import files, trees
from infocluster.push import nodes
from infocluster.push.order import Outcome

FORMAT = "infocluster push 1"
CHANGES_LIMIT = 1000
RECORDS_KEPT = 1000
FAULTS_SHOWN = 3
RECORD_MODE = 0o660

Record = dict[str, Any]


def result_lines(outcomes: list[Outcome], show: bool) -> Iterator[tuple[str, bool]]:
    """Yield ``(line, whether it is a fault)``: what each server got, servers with the same result in one line."""
    if show:
        for alike, done in _same_changes(outcomes):
            for action in done:
                yield f"{alike}: {action.verb} {action.path}{'/' if action.is_directory else ''}", False
    groups: dict[tuple[str, bool], list[str]] = {}
    for outcome in outcomes:
        groups.setdefault((_result(outcome, show), bool(outcome.faults)), []).append(outcome.server)
    for (result, is_fault), equal in groups.items():
        yield f"{nodes.folded(equal)}: {result}", is_fault


def _result(outcome: Outcome, show: bool) -> str:
    sent = [action for action in outcome.changes if action.verb != "remove"]
    counts = (
        (sum(not action.is_directory for action in sent), "file", "files"),
        (sum(action.is_directory for action in sent), "directory", "directories"),
    )
    parts = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    removed = len(outcome.changes) - len(sent)
    if show and not outcome.faults and outcome.changes:
        would = [f"send {', '.join(parts)}"] if parts else []
        would += [f"remove {removed}"] if removed else []
        return f"would {', '.join(would)}"
    parts += [f"{removed} {'to remove' if show else 'removed'}"] if removed else []
    done = ", ".join(parts) or "nothing to do"
    if not outcome.faults:
        return f"ok, {done}"
    more = len(outcome.faults) - FAULTS_SHOWN
    why = "; ".join(outcome.faults[:FAULTS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"failed{' after ' + done if parts else ''}: {why}"


def _same_changes(outcomes: list[Outcome]) -> Iterator[tuple[str, tuple[trees.Action, ...]]]:
    groups: dict[tuple[trees.Action, ...], list[str]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(outcome.changes), []).append(outcome.server)
    for done, alike in groups.items():
        if done:
            yield nodes.folded(alike), done


def changes(outcomes: list[Outcome], limit: int | None = None) -> list[Record]:
    """Return what was done, once for each set of servers to which the same was done."""
    return [
        {
            "servers": alike,
            **{
                verb: [action.path for action in done[:limit] if action.verb == verb]
                for verb in ("install", "update", "remove")
            },
            "more": len(done) - len(done[:limit]),
        }
        for alike, done in _same_changes(outcomes)
    ]


def of_server(outcome: Outcome) -> Record:
    """Return a server's part of the record."""
    counts = {"install": 0, "update": 0, "remove": 0}
    for action in outcome.changes:
        counts[action.verb] += 1
    return {
        "name": outcome.server,
        "ok": not outcome.faults,
        "installed": counts["install"],
        "updated": counts["update"],
        "removed": counts["remove"],
        "bytes": sum(action.size for action in outcome.changes),
        "duration_s": round(outcome.duration_s, 3),
        "faults": outcome.faults[:CHANGES_LIMIT],
    }


def keep(record: Record, directory: str) -> None:
    """Write a record in a directory, which the ledger has made, and remove the oldest beyond those that are kept.

    Raises:
        OSError: it cannot be written.
    """
    seconds, rest = divmod(round(record["started"] * 1e6), 1_000_000)
    start = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{rest:06d}Z"
    files.replace(
        f"{directory}/{start}-{record['pid']}.json", json.dumps(record).encode() + b"\n", RECORD_MODE, False
    )
    kept = sorted(name for name in os.listdir(directory) if name[:1].isdecimal() and name.endswith(".json"))
    for name in kept[:-RECORDS_KEPT]:
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")
