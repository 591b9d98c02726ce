# SPDX-License-Identifier: Apache-2.0
"""Verify: the contents on the servers against the master's, and what drifted, by server.

1. The paths are locked as for a push and read once for each kind of server, every file's content through SHA-256.
2. Each server is asked once, several at a time: find(1) and sha256sum(1) there write the same items, which are hashed
   in their order. Where that is what it has to be, all that comes back is one word; otherwise the items come.
3. What is only here is missing there, what is only there is extra, what is in both and not equal differs. Names that
   are left out of a push are not compared.

A directory of this host is read by the same programs. Servers by rdist are reached by ssh as the others. An rsync
daemon compares checksums itself (``--checksum --dry-run``). Times and permissions are not compared: the nightly
``-all`` does that.

Shape: items end in a null byte; the paths in them begin with ``./``, such as::

    h2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae  ./world/index.html
    f./world/index.html
    l./world/old.html//https://www.example.edu/new.html
    d./world
    o./world/pipe

    A file has two, so that one that cannot be read there is told from one that is missing.

Source: find(1) of GNU findutils, sort(1) and sha256sum(1) of GNU coreutils, rsync(1).
"""

import hashlib
import os
import shlex
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from infocluster import processes, trees
from infocluster.config import Settings
from infocluster.errors import InfoclusterError, UnavailableError, reason
from infocluster.locks import pathlocks
from infocluster.names import printable
from infocluster.push import nodes, plan, servers
from infocluster.push.order import Order
from infocluster.push.servers import Server
from infocluster.push.skeleton import Skeleton, located
from infocluster.trees import Directory, Listing, join

SAME = b"same"
NO_DESTINATION = 97
NO_PROGRAM = 96
_END = b"end"
OUTPUT_LIMIT_BYTES = 1 << 30
PATHS_SHOWN = 1000
FAULTS_SHOWN = 3

Say = Callable[[str], None]


@dataclass(slots=True)
class Drift:
    """What is not the same on a server, by tree path, sorted.

    Attributes:
        server: its name.
        missing: what it does not have.
        extra: what only it has.
        differ: what is another thing there, or has another content.
        unread: files that cannot be read there, or here.
        faults: why it could not be compared, or not wholly.
        duration_s: how long it took, s.
    """

    server: str
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def is_same(self) -> bool:
        """Return whether it is known to have what it should have."""
        return not (self.missing or self.extra or self.differ or self.unread or self.faults)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a kind of server should have.

    Attributes:
        paths: tree paths, none below another.
        listing: what is at them.
        skeleton: what is left out.
        items: all of it as items.
        digest: SHA-256 of the items in their order.
        unread: files that could not be read here, with the reason; they are in no item.
    """

    paths: list[str]
    listing: Listing
    skeleton: Skeleton
    items: frozenset[bytes]
    digest: str
    unread: dict[str, str]


def all_servers(request: plan.Request, conf: Settings, say: Say, fault: Say) -> list[Drift]:
    """Compare contents on all servers of a family, and tell it: servers that are equal in one line.

    Args:
        request: paths and servers as for a push.
        conf: the settings.
        say: gets a line for whom is being waited for, and for servers that are the same.
        fault: gets a line for what drifted, for what could not be compared, and for what is left out.

    Returns:
        What drifted, by server, in their order.

    Raises:
        UsageError, RefusedError, ConfigError, UnavailableError: as for a push.
    """
    every = servers.of_kind(conf, request.kind)
    targets = servers.chosen(every, request.on, conf) if request.on else every
    skeletons = {
        name: Skeleton.read(located(name), conf) if name else Skeleton.none(conf)
        for name in {server.skeleton for server in targets}
    }
    production_dir = conf["site"]["production_dir"]
    paths = plan.checked(request, production_dir, fault)
    with pathlocks.hold(paths, request.timeout_s, directory=conf["site"]["state_dir"] + "/pathlocks", say=say):
        should = {name: contents(production_dir, paths, skeleton) for name, skeleton in skeletons.items()}
        plan.tell_gone((one.listing for one in should.values()), say)
        told: set[str] = set()
        for one in should.values():
            for path, why in one.unread.items():
                if path not in told:
                    told.add(path)
                    fault(f"cannot compare {printable(path)}: {why}")
        found = _all(targets, should, conf)
    for line, is_fault in lines(found):
        (fault if is_fault else say)(line)
    return found


def as_record(found: Sequence[Drift]) -> list[dict[str, Any]]:
    """Return what was found for ``-json``.

    Shape: a list with an object for each server, such as::

        {"server": "web2", "missing": [], "extra": ["world/x"], "differ": ["world/index.html"], "unread": [],
         "faults": [], "duration_s": 1.25, "ok": false}
    """
    return [asdict(one) | {"duration_s": round(one.duration_s, 3), "ok": one.is_same} for one in found]


def lines(found: Sequence[Drift]) -> Iterator[tuple[str, bool]]:
    """Yield ``(line, whether it is a fault)``: what was found, servers with the same in one line."""
    groups: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for one in found:
        key = (one.missing, one.extra, one.differ, one.unread, one.faults)
        groups.setdefault(tuple(map(tuple, key)), []).append(one.server)
    for (missing, extra, differ, unread, faults), alike in groups.items():
        who = nodes.folded(alike)
        drifted = [
            f"{word} {printable(path)}"
            for word, paths in (("missing", missing), ("extra", extra), ("differs", differ), ("cannot read", unread))
            for path in paths
        ]
        for line in drifted[:PATHS_SHOWN]:
            yield f"{who}: {line}", True
        if len(drifted) > PATHS_SHOWN:
            yield f"{who}: and {len(drifted) - PATHS_SHOWN} more", True
        if faults:
            yield f"{who}: {'; '.join(faults[:FAULTS_SHOWN])}", True
        if not drifted and not faults:
            yield f"{who}: same", False


def contents(production_dir: str, paths: Sequence[str], skeleton: Skeleton) -> Contents:
    """Read what a kind of server should have of some paths.

    Raises:
        RefusedError, UnavailableError: as `trees.scan`.
    """
    out = dict(skeleton.left_out(paths))
    mine = [path for path in paths if path not in out]

    def leave(directory: str, name: str, mode: int) -> str | None:
        return skeleton.leave(directory, name, mode) or _unreadable(mode)

    listing = trees.scan(production_dir, mine, leave)
    skeleton.guard(listing)
    # SHA-256 leaves the interpreter to others, so that threads are enough for all cores.
    with ThreadPoolExecutor(os.cpu_count() or 1, "digest") as pool:
        parts = list(pool.map(lambda pair: _of_directory(production_dir, *pair), _directories(listing.top, "")))
    items = sorted(item for some, _ in parts for item in some)
    unread = {path: why for _, some in parts for path, why in some.items()}
    digest = hashlib.sha256(b"".join(item + b"\0" for item in items)).hexdigest()
    return Contents(mine, listing, skeleton, frozenset(items), digest, unread)


def _unreadable(mode: int) -> str | None:
    """Return why a push would leave something out, or None."""
    needed = 0o5 if stat.S_ISDIR(mode) else 0o4
    return None if stat.S_ISLNK(mode) or mode & needed == needed else "others may not read it"


def _directories(node: Directory, path: str) -> Iterator[tuple[str, Directory]]:
    yield path, node
    for name, below in node.directories.items():
        yield from _directories(below, join(path, name))


def _of_directory(production_dir: str, path: str, node: Directory) -> tuple[list[bytes], dict[str, str]]:
    """Return a directory and what is in it, but for directories, as items; and what could not be read."""
    items = [b"d" + _words(path)] if node.whole and path else []
    unread = {}
    for name, (_, _, _, text) in node.entries.items():
        here = join(path, name)
        if text:
            items.append(b"l" + _words(here) + b"//" + os.fsencode(text))
            continue
        try:
            fd = os.open(f"{production_dir}/{here}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            unread[here] = reason(error)
            continue
        items += [b"f" + _words(here), b"h" + digest.encode() + b"  " + _words(here)]
    return items, unread


def _words(path: str) -> bytes:
    return b"./" + os.fsencode(path)


def _all(targets: Sequence[Server], should: dict[str, Contents], conf: Settings) -> list[Drift]:
    stopped = threading.Event()
    push = conf["push"]

    def one(server: Server) -> Drift:
        wanted = should[server.skeleton]
        end = time.monotonic() + push["server_timeout_s"]
        return compare(server, wanted, Order(conf, wanted.paths, True, False, end, stopped))

    with ThreadPoolExecutor(max(1, min(push["parallel"], len(targets))), "verify") as pool:
        futures = [pool.submit(one, server) for server in targets]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stopped.set()
            for future in futures:
                future.cancel()
            raise


def compare(server: Server, wanted: Contents, order: Order) -> Drift:
    """Compare one server and return what drifted there; what goes wrong is in the result, never raised."""
    began = time.monotonic()
    result = Drift(server.name)
    try:
        if not wanted.paths:
            return result
        if server.transport == "daemon":
            _by_daemon(server, wanted, order, result)
        else:
            _by_script(server, wanted, order, result)
    except InfoclusterError as error:
        result.faults.append(str(error))
    except Exception as error:  # whatever is wrong with one server, the others are compared
        result.faults.append(f"{type(error).__name__}: {error}")
    result.duration_s = time.monotonic() - began
    return result


def script(wanted: Contents, destination: str) -> bytes:
    """Return what a POSIX shell on the server reads to compare a destination.

    It exits with NO_DESTINATION where that is not there, with NO_PROGRAM where a program cannot do what is needed.
    """
    named = " ".join(shlex.quote(f"./{path}") for path in wanted.paths)
    text = f"""
LC_ALL=C; export LC_ALL
cd {shlex.quote(destination)}/ 2>/dev/null || exit {NO_DESTINATION}
test "$(find . -maxdepth 0 -printf x 2>/dev/null)" = x || exit {NO_PROGRAM}
printf x | sha256sum -z >/dev/null 2>&1 && printf x | sort -z >/dev/null 2>&1 || exit {NO_PROGRAM}
items() {{
    find {named} -type f -printf 'f%p\\0' -o -type d -printf 'd%p\\0' -o -type l -printf 'l%p//%l\\0' \
-o -printf 'o%p\\0' </dev/null 2>/dev/null
    find {named} -type f -print0 </dev/null 2>/dev/null | xargs -0 -r sha256sum -z -- | sed -z 's/^/h/'
}}
if test "$(items | sort -z 2>/dev/null | sha256sum)" = '{wanted.digest}  -'; then printf same; exit 0; fi
items
printf end
"""
    return text.encode("utf-8", "surrogateescape")


def _by_script(server: Server, wanted: Contents, order: Order, result: Drift) -> None:
    """Ask a server that can run programs, this host among them."""
    content = script(wanted, server.destination)
    if server.transport == "local":
        left_s = max(order.end - time.monotonic(), 0)
        answer = processes.run(
            ["/bin/sh", "-s"],
            left_s,
            content,
            is_stopped=order.stopped.is_set,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
        )
    else:
        from infocluster.push import ssh

        answer = ssh.run(server, ["/bin/sh", "-s"], order, content, OUTPUT_LIMIT_BYTES)
    if answer.status == NO_DESTINATION:
        raise UnavailableError(f"cannot open {server.destination}: no such directory on {server.name}")
    if answer.status == NO_PROGRAM:
        raise UnavailableError(f"cannot verify {server.name}: it needs find, sort, sed, xargs and sha256sum of GNU")
    if answer.output == SAME:
        return
    *theirs, end = answer.output.split(b"\0")
    if end != _END:
        said = answer.errors.decode("utf-8", "backslashreplace").strip().splitlines()
        why = printable(said[-1]) if said else f"it ended with status {answer.status}"
        raise UnavailableError(f"cannot verify {server.name}: {why}")
    _drifted(wanted, frozenset(theirs), result)


def _drifted(wanted: Contents, theirs: frozenset[bytes], result: Drift) -> None:
    """Take into a result what two sets of items have not in common."""
    ours, there = _by_path(wanted.items), _by_path(theirs)
    for path, mine in ours.items():
        other = there.get(path)
        if other == mine:
            continue
        if other is None:
            paths = result.missing
        else:
            paths = result.unread if mine[0] == other[0] == b"f" and not other[1] else result.differ
        paths.append(os.fsdecode(path[2:]))
    unread = {_words(path) for path in wanted.unread}
    result.extra += _not_left(wanted, (os.fsdecode(path[2:]) for path in there.keys() - ours.keys() - unread))
    for paths in (result.missing, result.differ, result.unread):
        paths.sort()


def _by_path(items: Iterable[bytes]) -> dict[bytes, tuple[bytes, bytes]]:
    """Return by path what stands there: its kind, and its digest or the text of a link."""
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for item in items:
        kind = item[:1]
        if kind == b"h":
            found[item[67:]] = (b"f", item[1:65])
        elif kind == b"l":
            path, _, text = item[1:].partition(b"//")
            found[path] = (kind, text)
        else:
            found.setdefault(item[1:], (kind, b""))
    return found


def _not_left(wanted: Contents, paths: Iterable[str]) -> list[str]:
    """Return those paths, sorted, that neither are nor lie below something that a push leaves alone."""
    left = {path for path, _ in wanted.listing.left}
    return sorted(
        path
        for path in paths
        if not any(above in left or wanted.skeleton.reason(above) is not None for above in _downwards(path))
    )


def _downwards(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))


def _by_daemon(server: Server, wanted: Contents, order: Order, result: Drift) -> None:
    """Let an rsync daemon compare; it tells what it would send and remove, and does neither."""
    from infocluster.push import rsync

    work = rsync.Push(server, wanted.listing, order._replace(show=True))
    report = rsync.Report()
    if work.named:
        contents_only = ["--checksum", "--no-perms", "--no-times", "--no-hard-links"]
        work.put(report, work.named, ["--recursive", "--delete-delay", *contents_only])
    if work.absent:
        work.remove(report, work.absent)
    unread = {path for path in report.faults if path in report.put}
    for path, action in report.put.items():
        if path not in unread and path not in wanted.unread:
            paths = result.missing if action.verb == "install" and path not in report.removed else result.differ
            paths.append(path)
    result.extra += _not_left(wanted, report.removed.keys() - report.put.keys())
    result.faults += [f"{printable(path)}: {why}" for path, why in report.faults.items() if path not in wanted.unread]
    result.missing.sort()
    result.differ.sort()
