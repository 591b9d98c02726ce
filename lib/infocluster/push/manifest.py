# SPDX-License-Identifier: Apache-2.0
"""Manifests: what the master's tree was when each server last got it, so that only what changed since is sent.

1. When a server has got everything that a push was for, `remember` keeps what that was: for every file its size,
   mtime and permissions, for every link its text. A push of a part renews that part only.
2. A quick push reads the tree once and asks `plan` which servers need which paths of it: what is new, changed or
   gone. Servers that had the same get the same; one of which nothing is known gets everything.

What this cannot know: a server that was changed behind our back, by hand, by a restored disk or by a push that was
not ours; and a file whose content changed while size, mtime and permissions did not. The nightly ``-all`` compares
every server with the tree and heals the first, ``-verify`` compares contents and finds both. A push that failed or
was killed is the ledger's to know: what a server lacks there is sent in any case.

Shape: in STATE_DIR/pushes/manifests:

    ``index.json``: who has what; each set of servers that had the same stands once, so that a thousand servers cost
    one file::

        {"format": "infocluster manifests 1",
         "web": [{"parts": [["6f0e...", ["world", "uw"]], ["91ab...", ["world/sample"]]],
                  "servers": [["web1", "ssh:/srv/www"], ["web2", "ssh:/srv/www"]]}]}

    A set's parts are laid one over the other, the last on top. Each has the name of its file, the BLAKE2b digest of
    the content, and the paths that it is of, or where these are many their trees. A server whose transport or
    destination has changed since is an unknown one.

    ``6f0e...``: one part: the line ``infocluster manifest 1 cpython-311``, then a directory as `marshal` writes it:
    ``(permissions, entries, left, absent, directories)``. Permissions are -1 or -2 for a directory of which only
    the way to a named path is known, -2 if the master had no such directory; entries is `marshal`'s text of
    ``{name: (type and permissions, size in bytes, mtime in ns, text of a link)}``, which is compared as it stands and
    read only where it differs; ``left`` and ``absent`` as in `trees.Directory`; directories by name.

    ``lock``: held while any of these is read (shared) or written.

Nothing here is fsynced: what a power cut takes away or tears is found out, and sent again.

Source: rsync(1) for what its quick check compares.
"""

import json
import marshal
import os
import stat
import sys
from _blake2 import blake2b  # as in `ssh`
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from infocluster import files, trees
from infocluster.errors import RefusedError, UnavailableError, reason
from infocluster.locks import lockfile, tickets
from infocluster.names import printable
from infocluster.push.servers import Server
from infocluster.trees import ABSENT, Directory, Entry, Listing, join

FORMAT = "infocluster manifests 1"
HEAD = f"infocluster manifest 1 {sys.implementation.cache_tag}\n".encode()
# The format of marshal without references: the same content gives the same bytes.
MARSHAL = 2
WAY, NO_WAY = -1, -2
# So many parts are laid over one another before they are made one.
PARTS_LIMIT = 64
PATHS_LIMIT = 16
# So many parts are kept in memory while servers are looked through.
SHELF_LIMIT = 100
FILE_MODE = 0o660
LOCK_S = 60.0

Say = Callable[[str], None]
# (permissions, entries, left, absent, directories), see above.
Image = tuple[int, bytes, tuple[str, ...], tuple[str, ...], "dict[str, Image]"]
# (name of its file, paths it is of)
Part = tuple[str, tuple[str, ...]]
# By the parts they have: (name, transport and destination) of each server.
Sets = dict[tuple[Part, ...], list[tuple[str, str]]]


class Share(NamedTuple):
    """What some servers of a quick push get: paths, none below another, and the listing of them; maybe none."""

    servers: list[Server]
    paths: list[str]
    listing: Listing


def image(directory: Directory) -> Image:
    """Return a directory of a listing as it is compared and kept."""
    way = NO_WAY if directory.mode == ABSENT else WAY
    return (
        directory.mode & 0o777 | 0o700 if directory.whole else way,
        marshal.dumps(directory.entries, MARSHAL),
        tuple(sorted(directory.left)),
        tuple(sorted(directory.absent)),
        {name: image(below) for name, below in directory.directories.items()},
    )


def _entries(content: bytes) -> dict[str, Entry]:
    entries: dict[str, Entry] = marshal.loads(content)  # noqa: S302  (what is read from a file has its digest)
    return entries


def changed(new: Image, old: Image | None) -> list[str]:
    """Return the outermost tree paths in which a server differs: what is new there, changed or gone.

    Args:
        new: what is pushed, the image of a listing's top.
        old: what the server got; None where that is not known.
    """
    paths: list[str] = []
    _compare(new, old, "", paths)
    return sorted(paths)


def _compare(new: Image, old: Image | None, path: str, paths: list[str]) -> None:
    mode, content, left, _, directories = new
    if mode < 0:
        _compare_named(new, old, path, paths)
        return
    # The permissions of the root are not pushed.
    if old is None or old[0] < 0 or (path and old[0] != mode):
        if path:
            paths.append(path)
        else:
            paths += [*_entries(content), *directories]
        return
    _, old_content, old_left, _, old_directories = old
    if content != old_content or left != old_left or directories.keys() != old_directories.keys():
        entries, before = _entries(content), _entries(old_content)
        paths += [join(path, name) for name, entry in entries.items() if before.get(name) != entry]
        gone = {*before, *old_left, *old_directories} - entries.keys() - directories.keys() - set(left)
        paths += [join(path, name) for name in gone]
    for name, below in directories.items():
        _compare(below, old_directories.get(name), join(path, name), paths)


def _compare_named(new: Image, old: Image | None, path: str, paths: list[str]) -> None:
    """Compare a directory of which only names on the way to something are pushed."""
    _, content, _, absent, directories = new
    entries = _entries(content)
    before = _entries(old[1]) if old is not None else {}
    old_left, old_absent = (old[2], old[3]) if old is not None else ((), ())
    old_directories: dict[str, Image] = old[4] if old is not None else {}
    is_whole = old is not None and old[0] >= 0
    paths += [join(path, name) for name, entry in entries.items() if before.get(name) != entry]
    for name in absent:
        is_there = name in before or name in old_directories or name in old_left
        if is_there or not (is_whole or name in old_absent):
            paths.append(join(path, name))
    for name, below in directories.items():
        if below[0] == NO_WAY and is_whole and name not in old_directories and name not in old_left:
            # The server has no such directory either, so nothing below it.
            continue
        _compare(below, old_directories.get(name), join(path, name), paths)


def laid_over(old: Image | None, new: Image) -> Image:
    """Return what a server has that had `old` and got `new`: only what `new` is of differs from `old`."""
    if old is None or new[0] >= 0:
        return new
    _, content, left, absent, directories = new
    mode, old_content, old_left, old_absent, old_directories = old
    fresh = _entries(content)
    below = {}
    for name, directory in directories.items():
        if directory[0] != NO_WAY or name in old_directories:
            below[name] = laid_over(old_directories.get(name), directory)
        elif mode < 0:
            below[name] = directory
    named = fresh.keys() | below.keys() | set(left) | set(absent)
    entries = {name: entry for name, entry in _entries(old_content).items() if name not in named} | fresh
    return (
        mode,
        marshal.dumps(entries, MARSHAL),
        tuple(sorted((set(old_left) - named) | set(left))),
        () if mode >= 0 else tuple(sorted((set(old_absent) - named) | set(absent))),
        {name: directory for name, directory in old_directories.items() if name not in named} | below,
    )


def part(listing: Listing, paths: Iterable[str]) -> Listing:
    """Return the part of a listing that lies at or below paths, as `trees.scan` of these paths would.

    Args:
        listing: a whole tree, or what was named of it; it shares its directories with the part.
        paths: tree paths, each at or below a path of the listing; one that is not there is absent in the part.

    Raises:
        RefusedError: a path leads through a symbolic link.
        ValueError: the listing does not say what is at a path.
    """
    result = Listing(listing.source)
    result.leave, result.has_links = listing.leave, listing.has_links
    for path in trees.outermost(paths):
        here: Directory | None = listing.top
        node, done = result.top, ""
        *parents, last = path.split("/")
        for name in parents:
            if here is not None and name in here.left:
                node.left.add(name)
                break
            if here is not None and name in here.entries and stat.S_ISLNK(here.entries[name][0]):
                link = printable(join(done, name))
                raise RefusedError(f"cannot use {printable(path)}: {link} is a symbolic link")
            below = None if here is None or _is_gone(here, name, path) else here.directories.get(name)
            mode = ABSENT if below is None else below.mode
            node = node.directories.setdefault(name, Directory(mode, False))
            # Below what is not there, nothing is.
            here, done = None if mode == ABSENT else below, join(done, name)
        else:
            _put(node, here, last, path)
    taken = set(_left(result.top, ""))
    result.left = [item for item in listing.left if item[0] in taken]
    result.count, result.size_bytes = _sum(result.top)
    return result


def _is_gone(here: Directory, name: str, path: str) -> bool:
    """Tell whether a directory has no such name, which has to be known: what is absent is removed on the servers."""
    if name in here.entries or name in here.directories:
        return False
    if not (here.whole or name in here.absent):
        raise ValueError(f"not in the listing: {path}")
    return True


def _put(node: Directory, here: Directory | None, name: str, path: str) -> None:
    if here is not None and name in here.left:
        node.left.add(name)
    elif here is None or _is_gone(here, name, path):
        node.absent.add(name)
    elif name in here.entries:
        node.entries[name] = here.entries[name]
    else:
        node.directories[name] = here.directories[name]


def _left(directory: Directory, path: str) -> Iterable[str]:
    yield from (join(path, name) for name in directory.left)
    for name, below in directory.directories.items():
        yield from _left(below, join(path, name))


def _sum(directory: Directory) -> tuple[int, int]:
    count, size = len(directory.entries), sum(entry[1] for entry in directory.entries.values())
    for below in directory.directories.values():
        more = _sum(below)
        count, size = count + more[0], size + more[1]
    return count, size


def plan(
    state_dir: str,
    servers: Sequence[Server],
    listing: Listing,
    paths: Sequence[str],
    lacking: Mapping[str, Sequence[str]],
    report: Say,
) -> list[Share]:
    """Return which servers need what of a listing: what changed since they got it, and what they lack besides.

    Args:
        state_dir: the settings' state_dir.
        servers: whom the push is for, of one family.
        listing: what the tree is now.
        paths: tree paths that the listing is of.
        lacking: by server, the paths that the ledger says it lacks, "" for everything.
        report: gets a line for what is kept and cannot be read; these servers get everything.

    Raises:
        UnavailableError: the lock is not to be had.
    """
    directory = _directory(state_dir)
    new = image(listing.top)
    everything = trees.outermost(paths)
    groups: dict[tuple[tuple[Part, ...], tuple[str, ...]], list[Server]] = {}
    shares = []
    with _read_locked(directory):
        sets = _index(directory, report).get(servers[0].kind, {}) if servers else {}
        parts_of = {key: parts for parts, keys in sets.items() for key in keys}
        for server in servers:
            lacks = tuple(_within(lacking.get(server.name, ()), everything))
            groups.setdefault((parts_of.get(_key(server), ()), lacks), []).append(server)
        shelf = _Shelf(directory, report)
        since = {parts: changed(new, shelf.laid(parts)) for parts in {parts for parts, _ in groups}}
    for (parts, lacks), alike in groups.items():
        wanted = trees.outermost([*since[parts], *(_standing(listing, path) for path in lacks)])
        shares.append(Share(alike, wanted, listing if wanted == everything else part(listing, wanted)))
    return shares


def remember(
    state_dir: str,
    servers: Sequence[Server],
    listing: Listing,
    paths: Sequence[str],
    configured: Iterable[Server],
    report: Say,
) -> None:
    """Keep what servers have now that they got everything of a listing; call it before the ledger is told so.

    Args:
        state_dir: the settings' state_dir.
        servers: who has it, of one family.
        listing: what the tree was when the push began.
        paths: tree paths that the listing is of.
        configured: all servers of that family; what is kept of others is dropped.
        report: gets a line for what is kept and cannot be read.

    Raises:
        UnavailableError: it cannot be written, or the lock is not to be had.
    """
    if not servers:
        return
    directory = _directory(state_dir)
    content = _written(image(listing.top))
    top: Part = (_digest(content), _short(paths))
    updated = {_key(server) for server in servers}
    kept = {_key(server) for server in configured} | updated
    try:
        if not os.path.isdir(directory):
            tickets.make(directory)
        with lockfile.hold(f"{directory}/lock", timeout_s=LOCK_S):
            index = _index(directory, report)
            sets: Sets = {}
            known: set[tuple[str, str]] = set()
            _store(directory, top[0], content)
            for parts, keys in index.get(servers[0].kind, {}).items():
                got = [key for key in keys if key in updated]
                if got:
                    below = tuple(one for one in parts if not _covers(paths, one[1]) and one != top)
                    sets.setdefault(_few(directory, (*below, top), report), []).extend(got)
                others = [key for key in keys if key in kept and key not in updated]
                if others:
                    sets.setdefault(parts, []).extend(others)
                known.update(got)
            if newcomers := sorted(updated - known):
                sets.setdefault((top,), []).extend(newcomers)
            index[servers[0].kind] = sets
            _store_index(directory, index)
            _sweep(directory, index)
    except OSError as error:
        raise UnavailableError(f"cannot write {directory}: {reason(error)}") from error


def _directory(state_dir: str) -> str:
    return f"{state_dir}/pushes/manifests"


def _read_locked(directory: str) -> AbstractContextManager[object]:
    # RACE: the first ever to be remembered may come just now: that it was not seen costs a full push.
    return lockfile.hold(f"{directory}/lock", True, LOCK_S) if os.path.isdir(directory) else nullcontext()


def _key(server: Server) -> tuple[str, str]:
    return (server.name, f"{server.transport}:{server.destination}")


def _within(lacks: Iterable[str], paths: Sequence[str]) -> list[str]:
    """Return what lies both in what is lacked and in what is pushed, none below another."""
    found = []
    for lack in lacks:
        for path in paths:
            if not lack or _is_below(path, lack):
                found.append(path)
            elif _is_below(lack, path):
                found.append(lack)
    return trees.outermost(found)


def _standing(listing: Listing, path: str) -> str:
    """Return a path, or what stands in its way: a parent that is gone, or is a file or link by now."""
    here, done = listing.top, ""
    for name in path.split("/"):
        done = join(done, name)
        below = here.directories.get(name)
        if below is None or below.mode == ABSENT:
            return path if name in here.left or below is not None else done
        here = below
    return path


def _is_below(path: str, above: str) -> bool:
    return path == above or path.startswith(above + "/")


def _covers(paths: Sequence[str], others: Sequence[str]) -> bool:
    return all(any(_is_below(other, path) for path in paths) for other in others)


def _short(paths: Sequence[str]) -> tuple[str, ...]:
    """Return paths for the index; of many, their trees, which cover them."""
    if len(paths) <= PATHS_LIMIT:
        return tuple(paths)
    return tuple(sorted({path.partition("/")[0] for path in paths}))


def _few(directory: str, parts: tuple[Part, ...], report: Say) -> tuple[Part, ...]:
    """Return parts as they are, or as one where they have become many."""
    if len(parts) <= PARTS_LIMIT:
        return parts
    whole = _Shelf(directory, report).laid(parts)
    if whole is None:
        return parts[-1:]
    content = _written(whole)
    digest = _digest(content)
    _store(directory, digest, content)
    return ((digest, _short(trees.outermost(path for _, paths in parts for path in paths))),)


def _written(directory: Image) -> bytes:
    return HEAD + marshal.dumps(directory, MARSHAL)


def _store(directory: str, name: str, content: bytes) -> None:
    file = f"{directory}/{name}"
    # One that was torn has the right name too.
    if not os.path.exists(file) or files.read(file) != content:
        files.replace(file, content, FILE_MODE, durable=False)


class _Shelf:
    """Parts as they are read, under the lock; most servers have the same ones below."""

    def __init__(self, directory: str, report: Say) -> None:
        self.directory = directory
        self.report = report
        self.read: dict[str, Image | None] = {}

    def laid(self, parts: Iterable[Part]) -> Image | None:
        """Return what parts make together; None where there is none, or where one cannot be read."""
        result: Image | None = None
        for name, _ in parts:
            if name not in self.read:
                if len(self.read) >= SHELF_LIMIT:
                    self.read.clear()
                self.read[name] = self.one(name)
            on_top = self.read[name]
            if on_top is None:
                return None
            result = laid_over(result, on_top)
        return result

    def one(self, name: str) -> Image | None:
        file = f"{self.directory}/{name}"
        try:
            content = files.read(file)
        except OSError as error:
            self.report(f"cannot read {file}: {reason(error)}; its servers get everything")
            return None
        if _digest(content) != name:
            self.report(f"cannot use {file}: it is not what was written; its servers get everything")
            return None
        if not content.startswith(HEAD):
            # Another version of Python, or of ours, wrote it.
            return None
        found: Image = marshal.loads(memoryview(content)[len(HEAD) :])  # noqa: S302  (it has its digest)
        return found


def _index(directory: str, report: Say) -> dict[str, Sets]:
    file = f"{directory}/index.json"
    try:
        content = files.read(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        report(f"cannot read {file}: {reason(error)}; its servers get everything")
        return {}
    try:
        written = json.loads(content)
        if written.pop("format") != FORMAT:
            raise ValueError
        return {kind: dict(map(_set, sets)) for kind, sets in written.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        report(f"cannot use {file}: not an index of manifests; its servers get everything")
        return {}


def _set(written: dict[str, Any]) -> tuple[tuple[Part, ...], list[tuple[str, str]]]:
    parts = tuple((_checked(name), tuple(map(str, paths))) for name, paths in written["parts"])
    return parts, [(str(name), str(where)) for name, where in written["servers"]]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=32).hexdigest()


def _checked(text: str) -> str:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ValueError(text)
    return text


def _store_index(directory: str, index: dict[str, Sets]) -> None:
    shape: dict[str, Any] = {"format": FORMAT}
    for kind, sets in index.items():
        shape[kind] = [{"parts": parts, "servers": keys} for parts, keys in sets.items()]
    files.replace(f"{directory}/index.json", json.dumps(shape).encode() + b"\n", FILE_MODE, durable=False)


def _sweep(directory: str, index: dict[str, Sets]) -> None:
    """Remove parts that nobody has any more, and what was not finished; under the lock, so that nobody writes."""
    used = {name for sets in index.values() for parts in sets for name, _ in parts}
    for name in os.listdir(directory):
        if name not in used and name not in ("index.json", "lock"):
            os.unlink(f"{directory}/{name}")
