# SPDX-License-Identifier: Apache-2.0
"""The ledger: which server lacks which paths, since when.

1. A push writes down, before it sends anything, that its servers lack its paths: were it killed, the ledger knows.
2. What a server got completely is crossed out: the paths and all that lies below them; a push of all trees that
   left none out crosses out everything.
3. `lacking` is what a retry sends, to each server exactly that. A push of anything that covers it does as well.
4. Where a skeleton asks for commands on the servers, these are due from the beginning too. What is `due` of the
   paths of a push it runs, though the files changed in an earlier one; what has run is crossed out.

A server of which the ledger knows nothing lacks everything: it is new, or its transport or destination is another by
now, or the file is lost or torn. What is told of a server that is not configured any more is forgotten.

Shape: STATE_DIR/pushes/ledger.json, replaced whole and fsynced, under a lock on ``ledger.lock`` beside it; by family
    and server, where its files go, the Unix times since when it lacks what, ``""`` for everything, and the paths at
    and below which commands are due::

        {"format": "infocluster ledger 1",
         "web": {"web1": {"where": "ssh:/srv/www", "lacks": {}, "due": []},
                 "web2": {"where": "ssh:/srv/www", "lacks": {"world/sample": 1763838251.25},
                          "due": ["world/sample/index.html"]}}}

    No path lies below another one of its server; each that is due lies in one that is lacked. Of over a thousand
    paths, their trees are kept.

A file that is torn or not ours is reported and counts as lost; the next push writes it anew.

Source: documentation of wwwpush.
"""

import json
import os
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from infocluster import files, trees
from infocluster.errors import UnavailableError, reason
from infocluster.locks import lockfile, tickets
from infocluster.push.servers import Server

FORMAT = "infocluster ledger 1"
ALL = ""
PATHS_LIMIT = 1000
FILE_MODE = 0o660
LOCK_S = 60.0

# By path, the Unix time since when it is lacked; None where nobody knows.
Lacks = dict[str, float | None]
Say = Callable[[str], None]
Pairs = Iterable[tuple[Server, Sequence[str]]]
# What a server lacks, and what is due there.
State = tuple[Lacks, list[str]]


def failed(
    state_dir: str,
    behind: Pairs,
    configured: Sequence[Server],
    report: Say,
    now: float | None = None,
    commanded: Container[str] = (),
) -> None:
    """Write down that servers lack paths: before these are sent, and when they could not be.

    Args:
        state_dir: the settings' state_dir.
        behind: servers, each with its paths: tree paths, or `ALL`.
        configured: all servers of the family; what is told of others is forgotten.
        report: gets a line for a file that cannot be used.
        now: Unix time, by default the clock's. What was lacked before stays lacked since then.
        commanded: the names of those servers whose commands are due for these paths too.

    Raises:
        UnavailableError: it cannot be written, or the lock is not to be had.
    """
    now = time.time() if now is None else now
    paths_of = {server.name: paths for server, paths in behind}

    def change(name: str, lacks: Lacks, due: list[str]) -> State:
        paths = paths_of.get(name, ())
        return _with(lacks, paths, now), _few([*due, *paths]) if name in commanded else due

    if paths_of:
        _update(state_dir, configured, report, now, change)


def has(
    state_dir: str,
    complete: Pairs,
    configured: Sequence[Server],
    report: Say,
    now: float | None = None,
    owed: Iterable[tuple[Server, Sequence[str], Sequence[str]]] = (),
) -> None:
    """Write down that servers got paths completely, with all that lies below them.

    Args:
        state_dir: the settings' state_dir.
        complete: servers, each with its paths: tree paths, or `ALL`.
        configured: all servers of the family; what is told of others is forgotten.
        report: gets a line for a file that cannot be used.
        now: Unix time, by default the clock's.
        owed: servers that are not complete, each with the paths of the push, and those at and below which commands
            are due still.

    Raises:
        UnavailableError: it cannot be written, or the lock is not to be had.
    """
    now = time.time() if now is None else now
    paths_of = {server.name: paths for server, paths in complete}
    owed_by = {server.name: (paths, due) for server, paths, due in owed if server.name not in paths_of}

    def change(name: str, lacks: Lacks, due: list[str]) -> State:
        got = paths_of.get(name, ())
        ran, still = owed_by.get(name, (got, ()))
        return _without(lacks, got), _few([*_without(dict.fromkeys(due), ran), *still])

    if paths_of or owed_by:
        _update(state_dir, configured, report, now, change)


def lacking(state_dir: str, servers: Sequence[Server], report: Say) -> dict[str, list[str]]:
    """Return the outermost paths that each server lacks, sorted, `ALL` for everything; nothing for who lacks nothing.

    Args:
        state_dir: the settings' state_dir.
        servers: of one family.
        report: gets a line for a file that cannot be used.

    Raises:
        UnavailableError: the file cannot be read.
    """
    return {name: sorted(lacks) for name, lacks in since(state_dir, servers, report).items() if lacks}


def since(state_dir: str, servers: Sequence[Server], report: Say) -> dict[str, Lacks]:
    """Return what each server lacks since when, in the order of the settings; None where nobody knows.

    Args:
        state_dir: the settings' state_dir.
        servers: of one family.
        report: gets a line for a file that cannot be used.

    Raises:
        UnavailableError: the file cannot be read.
    """
    return {name: lacks for name, (lacks, _) in _of(servers, _read(_file(state_dir), report)).items()}


def due(state_dir: str, servers: Sequence[Server], report: Say) -> dict[str, list[str]]:
    """Return the outermost paths at and below which commands of skeletons are due on each server.

    Args:
        state_dir: the settings' state_dir.
        servers: of one family.
        report: gets a line for a file that cannot be used.

    Raises:
        UnavailableError: the file cannot be read.
    """
    return {name: due for name, (_, due) in _of(servers, _read(_file(state_dir), report)).items()}


def _file(state_dir: str) -> str:
    return f"{state_dir}/pushes/ledger.json"


def _of(servers: Sequence[Server], written: dict[str, Any]) -> dict[str, State]:
    result: dict[str, State] = {}
    for server in servers:
        known = written.get(server.kind, {}).get(server.name)
        is_known = known is not None and known["where"] == _where(server)
        result[server.name] = (known["lacks"], known["due"]) if is_known else ({ALL: None}, [])
    return result


def _update(
    state_dir: str,
    configured: Sequence[Server],
    report: Say,
    now: float,
    change: Callable[[str, Lacks, list[str]], State],
) -> None:
    file, directory = _file(state_dir), f"{state_dir}/pushes"
    try:
        if not os.path.isdir(directory):
            tickets.make(directory)
        with lockfile.hold(f"{directory}/ledger.lock", timeout_s=LOCK_S):
            written = _read(file, report)
            known = _of(configured, written)
            shape: dict[str, Any] = {}
            for server in configured:
                lacks, due = change(server.name, *known[server.name])
                # One that is seen for the first time is known from now on.
                left = {path: now if first is None else first for path, first in lacks.items()}
                shape.setdefault(server.kind, {})[server.name] = {"where": _where(server), "lacks": left, "due": due}
            if written | shape != written:
                files.replace(file, json.dumps({"format": FORMAT} | written | shape).encode() + b"\n", FILE_MODE)
    except OSError as error:
        raise UnavailableError(f"cannot write {file}: {reason(error)}") from error


def _read(file: str, report: Say) -> dict[str, Any]:
    """Return what the file says by family, each part of it in the form it has to have."""
    try:
        content = files.read(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnavailableError(f"cannot read {file}: {reason(error)}") from error
    try:
        written = json.loads(content)
        if written.pop("format") != FORMAT:
            raise ValueError
        return {kind: {name: _checked(one) for name, one in of.items()} for kind, of in written.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        report(f"cannot use {file}: not a ledger of ours; every server counts as lacking everything")
        return {}


def _where(server: Server) -> str:
    return f"{server.transport}:{server.destination}"


def _checked(written: dict[str, Any]) -> dict[str, Any]:
    lacks = {str(path): float(since) for path, since in written["lacks"].items()}
    due = written.get("due", [])
    if not isinstance(written["where"], str) or not all(isinstance(path, str) for path in due):
        raise ValueError
    return {"where": written["where"], "lacks": lacks, "due": list(due)}


def _with(lacks: Lacks, paths: Sequence[str], now: float) -> Lacks:
    result = dict(lacks)
    for path in paths:
        if _is_covered(path, result):
            continue
        below = [other for other in result if _is_below(other, path)]
        result[path] = min([now, *(since for other in below if (since := result.pop(other)) is not None)])
    if len(result) > PATHS_LIMIT:
        oldest: dict[str, float | None] = {}
        for path, since in sorted(result.items(), key=lambda item: item[1] or 0):
            oldest.setdefault(path.partition("/")[0], since)
        return oldest
    return result


def _without(lacks: Lacks, paths: Sequence[str]) -> Lacks:
    got = frozenset(paths)
    return {path: since for path, since in lacks.items() if not _is_covered(path, got)}


def _few(paths: Iterable[str]) -> list[str]:
    """Return the outermost of paths, or their trees where they are very many."""
    outermost = trees.outermost(paths)
    if len(outermost) > PATHS_LIMIT:
        return sorted({path.partition("/")[0] for path in outermost})
    return outermost


def _is_covered(path: str, by: Iterable[str]) -> bool:
    """Tell whether a path or one above it is among others."""
    if ALL in by or path in by:
        return True
    while "/" in path:
        path = path.rpartition("/")[0]
        if path in by:
            return True
    return False


def _is_below(path: str, above: str) -> bool:
    return not above or path.startswith(above + "/")


def standing(production_dir: str, paths: Iterable[str]) -> list[str]:
    """Return paths as they can be pushed: where a parent is gone, or is a file or link by now, that parent.

    Args:
        production_dir: the production tree.
        paths: tree paths that were directories' once.
    """
    return trees.outermost(_stands(production_dir, path) for path in paths)


def _stands(production_dir: str, path: str) -> str:
    done = ""
    for name in path.split("/")[:-1]:
        done = trees.join(done, name)
        place = f"{production_dir}/{done}"
        if os.path.islink(place) or not os.path.isdir(place):
            return done
    return path
