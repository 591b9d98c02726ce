# SPDX-License-Identifier: Apache-2.0
"""One push: from the paths that were named to a result for every server.

Shape: the record of a push is one file in STATE_DIR/pushes, ``20251122T190411.250000Z-4711.json`` (the UTC time of
    its start and the process), with one JSON object::

        {"format": "infocluster push 1", "program": "wwwpush", "kind": "web", "user": "jane", "pid": 4711,
         "started": 1763838251.25, "waited_s": 0.0, "duration_s": 0.42, "paths": ["world/sample"], "show": false,
         "ok": false,
         "left": [{"path": "world/sample/draft.html", "reason": "others may not read it (mode 0600)"}],
         "servers": [{"name": "web1", "ok": true, "installed": 1, "updated": 2, "removed": 0, "bytes": 8211,
                      "duration_s": 0.31, "faults": []}],
         "changes": [{"servers": "web[1-3]", "install": ["world/sample/a.html"], "update": [...], "remove": [],
                      "more": 0}]}

    ``started`` in Unix seconds, ``waited_s`` for the path locks. ``changes`` has one element for each set of servers
    to which the same was done; of more than 1000 paths the first are kept and ``more`` counts the others. ``ok``
    says that every server has everything. The newest 1000 records are kept.

Source: documentation of wwwpush; rdist(1); ClusterShell's node sets.
"""

import json
import os
import pwd
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infocluster import files, names, trees
from infocluster.config import Settings
from infocluster.errors import RefusedError, UnavailableError, UsageError, reason
from infocluster.locks import pathlocks
from infocluster.push import servers, transport
from infocluster.push.servers import Server

FORMAT = "infocluster push 1"
CHANGES_LIMIT = 1000
RECORDS_KEPT = 1000
FAULTS_SHOWN = 3
RECORD_MODE = 0o640

Say = Callable[[str], None]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a push was asked for.

    Attributes:
        program: what it was asked by, such as ``wwwpush``.
        kind: the family of servers, as [[servers]] kind has it.
        paths: tree paths.
        everything: whether a whole tree may be named; without paths, every tree is.
        show: whether to change nothing and only find out what would be done.
        timeout_s: seconds to wait for the path locks.
    """

    program: str
    kind: str
    paths: Sequence[str]
    everything: bool = False
    show: bool = False
    timeout_s: float | None = None


def push(request: Request, conf: Settings, finish: Callable[[Sequence[str]], object], say: Say, fault: Say) -> Record:
    """Bring paths of the production tree to every server of a kind, and return the record of it.

    Args:
        request: what is asked for.
        conf: the settings.
        finish: called with the paths when they are locked; completes what publishes left undone in them.
        say: gets a line for whom is being waited for, and for servers that have everything.
        fault: gets a line for what is left out, and for servers that failed.

    Returns:
        The record, see above, with all changes; what is kept of it in STATE_DIR/pushes has the first 1000.

    Raises:
        UsageError: no path, one that is none, or a whole tree without being asked for everything.
        RefusedError: a path leads through a symbolic link, or its tree is not there or empty.
        ConfigError: no server of this kind, or one whose destination is the production tree.
        UnavailableError: the locks were not free in time; the production tree cannot be read.
    """
    targets = servers.of_kind(conf, request.kind)
    started, began = time.time(), time.monotonic()
    faults: list[str] = []

    def told(line: str) -> None:
        faults.append(line)
        fault(line)

    paths = _paths(request, conf["site"]["production_dir"], told)
    with _held(paths, request, conf, say):
        waited_s = time.monotonic() - began
        if not request.show:
            finish(paths)
        listing = trees.scan(conf["site"]["production_dir"], paths, _unreadable)
        for path, why in listing.left:
            told(f"cannot push {names.printable(path)}: {why}; the servers keep what they have")
        outcomes = _sent(targets, listing, conf, paths, request.show)
    for line, is_fault in _result_lines(outcomes, request.show):
        (told if is_fault else say)(line)
    record: Record = {
        "format": FORMAT,
        "program": request.program,
        "kind": request.kind,
        "user": _user(),
        "pid": os.getpid(),
        "started": round(started, 3),
        "waited_s": round(waited_s, 3),
        "duration_s": round(time.monotonic() - began, 3),
        "paths": paths,
        "show": request.show,
        "ok": not faults,
        "left": [{"path": path, "reason": why} for path, why in listing.left],
        "servers": [_server_record(outcome) for outcome in outcomes],
    }
    if not request.show:
        try:
            _keep(record | {"changes": _changes(outcomes, CHANGES_LIMIT)}, conf["site"]["state_dir"] + "/pushes")
        except OSError as error:
            told(f"cannot write the record of this push: {reason(error)}")
            record["ok"] = False
    return record | {"changes": _changes(outcomes)}


def _paths(request: Request, production_dir: str, told: Say) -> list[str]:
    """Return the paths of a push in their one form, none below another."""
    paths = [names.tree_path(path) for path in request.paths]
    for path in paths:
        tree = path.partition("/")[0]
        if path == tree and not request.everything:
            raise UsageError(f"cannot push {names.printable(path)}: it is a whole tree; give -all to push it so")
        is_there, has_content = _tree(production_dir, tree)
        if not is_there:
            raise RefusedError(
                f"cannot push {names.printable(path)}: {production_dir} has no tree {names.shown(tree)}"
            )
        # An empty mount point would empty the servers.
        if path != tree and not has_content:
            raise RefusedError(f"cannot push {names.printable(path)}: the tree {names.shown(tree)} is empty here")
    if request.everything and not paths:
        paths = list(_trees(production_dir, told))
        if not paths:
            raise UnavailableError(f"cannot push: {production_dir} has no tree with anything in it")
    if not paths:
        raise UsageError("cannot push: expected a path such as world/sample, or -all")
    return trees.outermost(paths)


def _trees(production_dir: str, told: Say) -> Iterator[str]:
    """Yield the trees: the directories of the production tree, but for hidden ones and a file system's own."""
    try:
        listed = sorted(os.listdir(production_dir))
    except OSError as error:
        raise UnavailableError(f"cannot read {production_dir}: {reason(error)}") from error
    for name in listed:
        if name.startswith(".") or name == "lost+found" or not os.path.isdir(f"{production_dir}/{name}"):
            continue
        shown = names.printable(name)
        if os.path.islink(f"{production_dir}/{name}"):
            told(f"cannot push {shown}: a tree is a directory, and this is a symbolic link")
            continue
        try:
            names.tree_path(name)
            has_content = _tree(production_dir, name)[1]
        except (UsageError, UnavailableError) as error:
            told(str(error))
            continue
        if has_content:
            yield name
        else:
            told(f"cannot push {shown}: it is empty here; to empty it on the servers, name it beside -all")


def _tree(production_dir: str, tree: str) -> tuple[bool, bool]:
    """Tell whether a tree is there, and whether it has anything in it; a link passes, to be refused later."""
    path = f"{production_dir}/{tree}"
    try:
        with os.scandir(path) as listed:
            return True, any(not files.is_temporary(item.name) for item in listed)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.islink(path), os.path.islink(path)
    except OSError as error:
        raise UnavailableError(f"cannot read {names.printable(path)}: {reason(error)}") from error


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


def _sent(
    targets: list[Server], listing: trees.Listing, conf: Settings, paths: list[str], show: bool
) -> list[transport.Outcome]:
    """Serve all servers, so many at once, and return how it went in their order."""
    stopped = threading.Event()
    timeout_s = conf["push"]["server_timeout_s"]

    def send(server: Server) -> transport.Outcome:
        order = transport.Order(conf, paths, show, False, time.monotonic() + timeout_s, stopped)
        return transport.send(server, listing, order)

    with ThreadPoolExecutor(min(conf["push"]["parallel"], len(targets)), "server") as pool:
        futures = [pool.submit(send, server) for server in targets]
        try:
            wait(futures)
        except BaseException:
            # A signal: each server ends behind the file it is at, and only then are the locks given back.
            stopped.set()
            raise
    return [future.result() for future in futures]


def _result_lines(outcomes: list[transport.Outcome], show: bool) -> Iterator[tuple[str, bool]]:
    """Yield ``(line, whether it is a fault)``: what each server got, servers with the same result in one line."""
    if show:
        for alike, changes in _same_changes(outcomes):
            for action in changes:
                yield f"{alike}: {action.verb} {action.path}{'/' if action.is_directory else ''}", False
    groups: dict[tuple[str, bool], list[str]] = {}
    for outcome in outcomes:
        groups.setdefault((_result(outcome, show), bool(outcome.faults)), []).append(outcome.server)
    for (result, is_fault), equal in groups.items():
        yield f"{servers.folded(equal)}: {result}", is_fault


def _result(outcome: transport.Outcome, show: bool) -> str:
    sent = [action for action in outcome.changes if action.verb != "remove"]
    counts = (
        (sum(not action.is_directory for action in sent), "file", "files"),
        (sum(action.is_directory for action in sent), "directory", "directories"),
    )
    parts = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    removed = len(outcome.changes) - len(sent)
    parts += [f"{removed} {'to remove' if show else 'removed'}"] if removed else []
    done = ", ".join(parts) or "nothing to do"
    if not outcome.faults:
        return f"would do {done}" if show and parts else f"ok, {done}"
    more = len(outcome.faults) - FAULTS_SHOWN
    why = "; ".join(outcome.faults[:FAULTS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"failed{' after ' + done if parts else ''}: {why}"


def _same_changes(outcomes: list[transport.Outcome]) -> Iterator[tuple[str, tuple[trees.Action, ...]]]:
    groups: dict[tuple[trees.Action, ...], list[str]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(outcome.changes), []).append(outcome.server)
    for changes, alike in groups.items():
        if changes:
            yield servers.folded(alike), changes


def _changes(outcomes: list[transport.Outcome], limit: int | None = None) -> list[Record]:
    return [
        {
            "servers": alike,
            **{
                verb: [action.path for action in changes[:limit] if action.verb == verb]
                for verb in ("install", "update", "remove")
            },
            "more": len(changes) - len(changes[:limit]),
        }
        for alike, changes in _same_changes(outcomes)
    ]


def _server_record(outcome: transport.Outcome) -> Record:
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


def _keep(record: Record, directory: str) -> None:
    """Write a record and remove the oldest beyond those that are kept."""
    files.make_directories(directory, 0o750)
    start = datetime.fromtimestamp(record["started"], UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    files.replace(
        f"{directory}/{start}-{record['pid']}.json", json.dumps(record).encode() + b"\n", RECORD_MODE, False
    )
    kept = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    for name in kept[:-RECORDS_KEPT]:
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")


def _user() -> str:
    """Return who asks: whoever called sudo, as far as the environment tells, or the user this runs as."""
    called_by = os.environ.get("SUDO_USER", "")
    if names.is_name(called_by):
        return called_by
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
