# SPDX-License-Identifier: Apache-2.0
"""One push: from the paths that were named to a result for every server.

Source: documentation of wwwpush; rdist(1); ClusterShell's node sets.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from infocluster import names, trees
from infocluster.config import Settings
from infocluster.errors import reason
from infocluster.locks import pathlocks
from infocluster.push import fan, plan, record, servers
from infocluster.push.plan import Request, Say
from infocluster.push.record import Record

Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def push(
    request: Request,
    conf: Settings,
    finish: Callable[[Sequence[str]], object],
    say: Say,
    fault: Say,
    progress: Progress,
) -> Record:
    """Bring paths of the production tree to every server of a kind, and return the record of it.

    Args:
        request: what is asked for.
        conf: the settings.
        finish: called with the paths when they are locked; completes what publishes left undone in them.
        say: gets a line for whom is being waited for, and for servers that have everything.
        fault: gets a line for what is left out, and for servers that failed.
        progress: shows how many servers are done.

    Returns:
        The record (see `record`), with all changes; what is kept of it in STATE_DIR/pushes has the first 1000.

    Raises:
        UsageError: no path, one that is none, or a whole tree without being asked for everything.
        RefusedError: a path leads through a symbolic link, or its tree is not there or empty.
        ConfigError: no server of this kind, or one whose destination is the production tree.
        UnavailableError: the locks were not free in time; the production tree cannot be read.
    """
    targets = servers.of_kind(conf, request.kind)
    if request.on:
        targets = servers.chosen(targets, request.on, conf)
    started, began = time.time(), time.monotonic()
    faults: list[str] = []

    def told(line: str) -> None:
        faults.append(line)
        fault(line)

    production_dir = conf["site"]["production_dir"]
    paths = plan.checked(request, production_dir, told)
    with _held(paths, request, conf, say):
        waited_s = time.monotonic() - began
        if not request.show:
            finish(paths)
        listing = trees.scan(production_dir, paths, _unreadable)
        for path, why in listing.left:
            told(f"cannot push {names.printable(path)}: {why}; the servers keep what they have")
        jobs = [fan.Job(server, listing, paths) for server in targets]
        with progress("pushing", len(jobs), "servers") as advance:
            outcomes = fan.out(jobs, conf, request.show, request.atomic, advance)
    for line, is_fault in record.result_lines(outcomes, request.show):
        (told if is_fault else say)(line)
    result: Record = {
        "format": record.FORMAT,
        "program": request.program,
        "kind": request.kind,
        "user": record.user(),
        "pid": os.getpid(),
        "started": round(started, 3),
        "waited_s": round(waited_s, 3),
        "duration_s": round(time.monotonic() - began, 3),
        "paths": paths,
        "show": request.show,
        "ok": not faults,
        "left": [{"path": path, "reason": why} for path, why in listing.left],
        "servers": [record.of_server(outcome) for outcome in outcomes],
    }
    if not request.show:
        try:
            kept = result | {"changes": record.changes(outcomes, record.CHANGES_LIMIT)}
            record.keep(kept, conf["site"]["state_dir"] + "/pushes")
        except OSError as error:
            told(f"cannot write the record of this push: {reason(error)}")
            result["ok"] = False
    return result | {"changes": record.changes(outcomes)}


@contextmanager
def _held(paths: list[str], request: Request, conf: Settings, say: Say) -> Iterator[None]:
    if request.show:
        yield
        return
    timeout_s = conf["push"]["lock_timeout_s"] if request.timeout_s is None else request.timeout_s
    with pathlocks.hold(paths, timeout_s, directory=conf["site"]["state_dir"] + "/pathlocks", say=say):
        yield


def _unreadable(_directory: str, _name: str, mode: int) -> str | None:
    """Return why something is not for everybody to read, or None. The permissions of a link mean nothing."""
    kind, needed = stat.S_IFMT(mode), 0o5 if stat.S_ISDIR(mode) else 0o4
    if kind == stat.S_IFLNK or mode & needed == needed:
        return None
    return f"others may not read it (mode {mode & 0o7777:04o})"
