# SPDX-License-Identifier: Apache-2.0
"""What a master and the relay of a push host say to each other, written and read.

Shape: one JSON object a line, each way. From the relay, in this order::

    {"format": "infocluster relay 1", "version": "0.1.0"}
    {"say": "waiting for ..."}
    {"locked": true}
    {"server": "web1", "changes": [["install", "world/a.html", false, 8211]], "begun": [], "faults": [],
     "duration_s": 0.31, "was_unreachable": false}
    {"done": 1}

    or at any place ``{"error": "cannot ..."}`` as the last line. From the master::

    {"format": "infocluster relay 1", "version": "0.1.0", "lease_s": 10.0, "server_timeout_s": 3600,
     "atomic": false, "keep": false, "paths": ["world"], "listings": [[...]],
     "skeletons": [["${FILES} -> ...", "/etc/infocluster/distfile.web.skel", "/www"]],
     "jobs": [{"server": {"name": "web1", "kind": "web", ...}, "paths": ["world"], "listing": 0}]}
    {"go": true}

    A listing has one array for each directory, parents first: ``["world/a", 16877, true, {"b.html": [33188, 8211,
    1763838251250000000, ""]}, ["left.html"], ["absent.html"]]``: path, mode, whether it is whole, entries, names left
    alone, names absent, as in `trees.Directory`. Each listing has its skeleton, or null: its text, its file, and the
    directory as which the master read it; so what only a server has stays there as it does without a relay. Bytes
    that are not UTF-8 travel as lone surrogates in JSON escapes.
    An empty line says that its sender is there.

Whoever can write to a relay can push what is below the paths as that host's file owner; nothing else is to be had
from it: no path that leads elsewhere, no directory of that host as a destination, nothing that becomes an option.

Source: RFC 8259 (JSON).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infocluster import __version__, files, names, trees
from infocluster import settings as table
from infocluster.errors import BadInputError, RefusedError, UsageError
from infocluster.names import printable, shown
from infocluster.push import transport
from infocluster.push.fan import Job
from infocluster.push.order import Outcome
from infocluster.push.servers import Server

if TYPE_CHECKING:
    from infocluster.push.skeleton import Skeleton

FORMAT = "infocluster relay 1"
HELLO = {"format": FORMAT, "version": __version__}
LOCKED = {"locked": True}
GO = {"go": True}
BEAT = b"\n"
LEASE_LEAST_S = 3.0
LEASE_MOST_S = 3600.0
LIMIT_BYTES = 1 << 28
LEFT = "the master leaves it out"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Share:
    """What one relay has to do.

    Attributes:
        paths: the tree paths of the whole push, none below another.
        jobs: one a server, their paths below those.
        lease_s: seconds without a word from the master after which the work ends.
        server_timeout_s: seconds that one server may take.
        atomic: see `order.Order`.
        keep: see `order.Order`.
    """

    paths: list[str]
    jobs: list[Job]
    lease_s: float
    server_timeout_s: float
    atomic: bool
    keep: bool = False


def written(message: Message) -> bytes:
    """Return a message as its line."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def read(line: bytes) -> Message:
    """Return what a line says.

    Raises:
        BadInputError: it is no JSON object.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise BadInputError(f"unexpected line {shown(line[:200].decode('utf-8', 'replace'))}")
    return message


def check_version(message: Message) -> None:
    """Make sure that a message comes from this very version: both sides run the same code.

    Raises:
        BadInputError: it comes from another one.
    """
    if (message.get("format"), message.get("version")) != (FORMAT, __version__):
        theirs = f"{message.get('format')} of version {message.get('version')}"
        raise BadInputError(f"the other side speaks {shown(theirs)}, this one {FORMAT} of version {__version__}")


def share_told(share: Share) -> Message:
    """Return the message that hands over a share."""
    places: dict[int, int] = {}
    listings: list[list[Any]] = []
    skeletons: list[list[str] | None] = []
    for job in share.jobs:
        if id(job.listing) not in places:
            places[id(job.listing)] = len(listings)
            listings.append(list(_packed(job.listing.top, "")))
            skeleton = job.skeleton
            skeletons.append([skeleton.text, skeleton.file, skeleton.top] if skeleton else None)
    return {
        **HELLO,
        "lease_s": share.lease_s,
        "server_timeout_s": share.server_timeout_s,
        "atomic": share.atomic,
        "keep": share.keep,
        "paths": share.paths,
        "listings": listings,
        "skeletons": skeletons,
        "jobs": [
            {"server": job.server._asdict(), "paths": job.paths, "listing": places[id(job.listing)]}
            for job in share.jobs
        ],
    }


def share_read(message: Message, production_dir: str) -> Share:
    """Return the share that a master hands over, its listings as listings of this host's production tree.

    Raises:
        BadInputError: it is not in its form, or of another version.
        ConfigError: a skeleton cannot be read.
        RefusedError: it names something that a relay does not do.
    """
    check_version(message)
    try:
        lease_s, timeout_s, atomic, keep, paths, listings, skeletons, jobs = _values(
            message,
            *("lease_s", "server_timeout_s", "atomic", "keep", "paths", "listings", "skeletons", "jobs"),
            also=HELLO,
        )
        _check_paths(paths)
        read = [_skeleton(each) for each in skeletons]
        unpacked = [_unpacked(*each, paths, production_dir) for each in zip(listings, read, strict=True)]
        work = [_job(each, paths, unpacked, read) for each in jobs]
        share = Share(paths, work, float(lease_s), float(timeout_s), atomic, keep)
        if not (LEASE_LEAST_S <= share.lease_s <= LEASE_MOST_S and 0 < share.server_timeout_s <= 86400):
            raise ValueError("a number of seconds is out of its range")
        if not jobs or not (isinstance(atomic, bool) and isinstance(keep, bool)):
            raise ValueError("there is no server, or atomic or keep is neither true nor false")
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, UsageError) as error:
        raise BadInputError(f"the work is not in its form: {printable(str(error))}") from error
    return share


def outcome_told(outcome: Outcome) -> Message:
    """Return the message that tells how it went on one server."""
    return {
        "server": outcome.server,
        "changes": _actions_told(outcome.changes),
        "begun": _actions_told(outcome.begun),
        "faults": outcome.faults,
        "duration_s": outcome.duration_s,
        "was_unreachable": outcome.was_unreachable,
    }


def _actions_told(actions: Iterable[trees.Action]) -> list[list[Any]]:
    return [[each.verb, each.path, each.is_directory, each.size] for each in actions]


def outcome_read(message: Message) -> Outcome:
    """Return what a relay told of one server.

    Raises:
        BadInputError: it is not in its form.
    """
    try:
        server, *told, faults, duration_s, was_unreachable = _values(
            message, "server", "changes", "begun", "faults", "duration_s", "was_unreachable"
        )
        changes, begun = (
            [trees.Action(verb, path, is_directory, size) for verb, path, is_directory, size in each] for each in told
        )
        fits = (
            isinstance(server, str)
            and isinstance(faults, list)
            and all(isinstance(fault, str) for fault in faults)
            and all(action.verb in ("install", "update", "remove") for action in changes + begun)
            and all(isinstance(action.path, str) for action in changes + begun)
            and all(isinstance(action.is_directory, bool) for action in changes + begun)
            and all(isinstance(action.size, int) for action in changes + begun)
            and isinstance(was_unreachable, bool)
            and (bool(faults) or not was_unreachable)
        )
        if not fits:
            raise ValueError("a value is of another type")
        outcome = Outcome(server, changes, faults, float(duration_s), was_unreachable)
        outcome.begun = begun
        return outcome
    except (TypeError, ValueError) as error:
        raise BadInputError(f"what is told of a server is not in its form: {printable(str(error))}") from error


def _packed(directory: trees.Directory, path: str) -> Iterator[list[Any]]:
    left, absent = sorted(directory.left), sorted(directory.absent)
    yield [path, directory.mode, directory.whole, directory.entries, left, absent]
    for name, below in directory.directories.items():
        yield from _packed(below, trees.join(path, name))


def _values(message: Any, *wanted: str, also: Iterable[str] = ()) -> list[Any]:
    """Return the fields of an object that has to have these and no others."""
    if not isinstance(message, dict) or message.keys() != {*wanted, *also}:
        raise ValueError(f"expected an object with {', '.join(wanted)}")
    return [message[name] for name in wanted]


def _check_paths(paths: Any) -> None:
    if not isinstance(paths, list) or not paths or [names.tree_path(path) for path in paths] != paths:
        raise ValueError("paths are not in their one form")
    if trees.outermost(paths) != paths:
        raise ValueError("a path is below another")


def _cover(paths: Sequence[str], others: Iterable[str]) -> bool:
    """Tell whether every one of the others is one of the paths or lies below one."""
    return all(any(other == path or other.startswith(path + "/") for path in paths) for other in others)


def _skeleton(values: Any) -> "Skeleton | None":
    if values is None:
        return None
    from infocluster.push.skeleton import Skeleton

    text, file, top = values
    return Skeleton.parsed(str(text), str(file), str(top))


def _job(message: Any, paths: list[str], listings: list[trees.Listing], skeletons: "list[Skeleton | None]") -> Job:
    server, own_paths, place = _values(message, "server", "paths", "listing")
    _check_paths(own_paths)
    if not _cover(paths, own_paths):
        raise RefusedError("cannot relay: a server's paths are not below those of the push")
    if not 0 <= place < len(listings):
        raise ValueError("there is no such listing")
    return Job(_server(server), listings[place], own_paths, skeletons[place])


def _server(message: Any) -> Server:
    values = dict(zip(Server._fields, _values(message, *Server._fields), strict=True))
    for setting in table.TABLE:
        if setting.section == "servers" and setting.name in values and not setting.kind.fits(values[setting.name]):
            raise ValueError(f"{setting.name}: expected {setting.kind.expected}")
    server = Server(**values)
    names.name(server.name, "the name of a server")
    if server.transport == "local" or server.transport not in transport.TRANSPORTS:
        raise RefusedError(f"cannot relay to {server.name}: its transport is {shown(server.transport)}")
    return server


def _unpacked(packed: Any, skeleton: "Skeleton | None", paths: list[str], production_dir: str) -> trees.Listing:
    """Return a listing of this host's tree that holds what the master's does, and nothing but what is below paths."""
    listing = trees.Listing(production_dir)
    listing.leave = skeleton.leave if skeleton else None
    known: dict[str, trees.Directory] = {}
    for path, mode, whole, entries, left, absent in packed:
        directory = trees.Directory(int(mode), bool(whole))
        parent, _, name = path.rpartition("/")
        if known:
            known[parent].directories[_component(name)] = directory
        elif path == "":
            listing.top = directory
        else:
            raise ValueError("a listing begins with its root")
        known[path] = directory
        for name, (kind, size, mtime_ns, text) in entries.items():
            directory.entries[_component(name)] = (int(kind), int(size), int(mtime_ns), str(text))
            listing.count += 1
            listing.size_bytes += int(size)
        directory.left.update(_component(name) for name in left)
        for name in left:
            why = skeleton.leave(path, name, 0) if skeleton else None
            listing.left.append((trees.join(path, name), why or LEFT))
        directory.absent.update(_component(name) for name in absent)
        held = [path] if whole else [trees.join(path, name) for name in (*entries, *absent)]
        if not _cover(paths, held):
            raise RefusedError("cannot relay: what is listed is not below the paths")
    if not known:
        raise ValueError("a listing without its root")
    return listing


def _component(name: Any) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"no name in a directory: {shown(str(name))}")
    if files.is_temporary(name):
        raise ValueError(f"a write that was not finished: {shown(name)}")
    return name
