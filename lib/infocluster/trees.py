# SPDX-License-Identifier: Apache-2.0
"""One directory tree made the copy of another: what differs, and whole files put in its place.

1. `scan` reads the source once and returns a `Listing`: everything that is there, or what was named of it.
2. `mirror` compares a destination with a listing and makes it the same, or only says what it would do. New and
   changed things are put in place first, all over the tree; only then is removed what the source no longer has.

What counts as the same: for a file, size, mtime and permissions; for a symbolic link, its text, which is copied
as it is and never followed (it may be a URL, which is no path at all); for a directory, its permissions.
A file appears under its name whole: temporary name, content, mode, mtime, rename. Permissions are the nine of
chmod(1): set-user-id and set-group-id are never copied, because a copy belongs to us and not to whoever set
them; and a directory always keeps u+rwx, without which we could neither fill nor empty it.

Both trees are walked by directory descriptors that are opened with O_NOFOLLOW, so that a link that is put in the
place of a directory meanwhile leads nowhere. Unfinished writes of ours (`files.is_temporary`) are never copied,
and are removed at the destination. The caller holds the lock under which nobody else writes there.

Source: openat(2), rename(2), utimensat(2), rsync(1) for what ``-a --delete`` is expected to do.
"""

import _thread
import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from infocluster import files
from infocluster.errors import RefusedError, UnavailableError, reason
from infocluster.names import printable

if TYPE_CHECKING:
    from queue import SimpleQueue
    from threading import Thread

# (type and permissions, size in bytes, mtime in ns, text of a link): two that are equal need no copy.
Entry = tuple[int, int, int, str]

# Called with a directory ("" is the root), a name in it and its st_mode; returns why it is to be left alone, or None.
Leave = Callable[[str, str, int], str | None]

# Called with a directory and a descriptor of it; returns a test of which files in it a `Leave` has to be asked for.
Narrow = Callable[[str, int], Callable[[str], object]]

ABSENT = -1
NOT_ALL = "not everything new could be put in place"
SPECIAL = "neither file, directory nor symbolic link"
DEPTH_LIMIT = 256
CHUNK_BYTES = 1 << 20
# Files that are written and on their way to the disk, and how many the disk is given at once.
STAGED, SYNCS = 64, 8
WHOLE_SECOND_NS = 1_000_000_000

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_TARGET = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# After one of these no further file can be written either.
_HOPELESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Emptied(str):
    """A reason to keep a directory, but not what is in it: that is asked for one by one."""

    __slots__ = ()


class Unread(str):
    """A reason that something of a source is left alone: it could not be read."""

    __slots__ = ()


class Action(NamedTuple):
    """One thing that was done, or that would be done where nothing is to be changed.

    ``verb`` is "install", "update" or "remove"; "fail" when it could not be done, and "keep" when something was
    not removed because it is to be kept, or because something else had failed; ``reason`` then says why. ``size``
    is in bytes, files only.
    """

    verb: str
    path: str
    is_directory: bool = False
    size: int = 0
    reason: str = ""


class Directory:
    """A directory of a listing, with what is in it.

    ``whole`` tells whether everything in it is listed, so that what is not listed is to go; of the directories
    above a named path only the way down is listed. ``mode`` is ABSENT where the source has no such directory, and
    ``mtime_ns`` where it was not looked at.
    """

    __slots__ = ("absent", "directories", "entries", "left", "mode", "mtime_ns", "whole")

    def __init__(self, mode: int, whole: bool, mtime_ns: int = ABSENT) -> None:
        self.mode = mode
        self.whole = whole
        self.mtime_ns = mtime_ns
        self.entries: dict[str, Entry] = {}
        self.directories: dict[str, Directory] = {}
        self.left: set[str] = set()
        self.absent: set[str] = set()


class Listing:
    """What a source tree holds, or the named part of it.

    Attributes:
        source: the root of the tree.
        top: its root as a `Directory`.
        left: ``(path, why)`` of everything that is neither copied nor removed, in the order of the walk; what could
            not be read has a reason of its own kind (`Unread`).
        count: files and links listed.
        size_bytes: bytes in them.
        has_links: whether a file in it may have another name.
        leave: why something that only a destination has stays there, if it does; None: all of it goes.
        worked_out: what a reader of it worked out once for all that need it.
    """

    __slots__ = ("count", "has_links", "leave", "left", "size_bytes", "source", "top", "worked_out")

    def __init__(self, source: str) -> None:
        self.source = source
        self.top = Directory(ABSENT, False)
        self.left: list[tuple[str, str]] = []
        self.count = 0
        self.size_bytes = 0
        self.has_links = True
        self.leave: Leave | None = None
        self.worked_out: object = None

    def directory(self, path: str) -> Directory | None:
        """Return a directory by its tree path, "" for the root; None where the listing has none."""
        node: Directory | None = self.top
        for name in path.split("/") if path else ():
            node = node.directories.get(name) if node is not None else None
        return node

    def stays(self, path: str) -> str | None:
        """Return why something that only a destination has at a path stays there, or None."""
        if self.leave is None:
            return None
        parts = path.split("/")
        every = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        whys = (
            self.leave(above.rpartition("/")[0], above.rpartition("/")[2], stat.S_IFDIR | 0o777) for above in every
        )
        return next((why for why in whys if why is not None), None)


def outermost(paths: Iterable[str]) -> list[str]:
    """Return tree paths sorted, each once, without those that lie below another of them."""
    kept: list[str] = []
    for parts in sorted({tuple(path.split("/")) for path in paths}):
        if not kept or not "/".join(parts).startswith(kept[-1] + "/"):
            kept.append("/".join(parts))
    return kept


def open_directory(root: str | int, path: str, make: bool = False) -> int:
    """Return a descriptor of a directory below a root; no component of the path may be a symbolic link.

    Args:
        root: the root's path or descriptor; the root itself may be reached through links.
        path: a tree path, or "" for the root.
        make: whether to make what is missing, each directory durable and with mode 0755.

    Raises:
        RefusedError: a component is a symbolic link.
        OSError: as open(2); ``filename`` is the path that could not be opened.
    """
    fd = _opened_root(root)
    try:
        parts = path.split("/") if path else []
        for depth in range(len(parts)):
            try:
                below = _opened_below(fd, parts, depth)
            except FileNotFoundError:
                if not make:
                    raise
                below = _made(fd, parts[depth], 0o755, durable=True)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


class Way:
    """A way down from a root that is gone again and again: what a path has in common with the last one stays open.

    To be closed, as by `contextlib.closing`. While it is open, nothing that it leads through is removed.
    """

    __slots__ = ("_fds", "_parts", "_root")

    def __init__(self, root: str | int) -> None:
        self._root = root
        self._parts: list[str] = []
        self._fds: list[int] = []

    def open(self, path: str) -> int:
        """Return a descriptor of a directory, which is good until the next call and is not to be closed.

        Raises:
            RefusedError, OSError: as `open_directory`.
        """
        parts = path.split("/") if path else []
        shared = 0
        while shared < min(len(parts), len(self._parts)) and parts[shared] == self._parts[shared]:
            shared += 1
        self._cut(shared + 1)
        if not self._fds:
            self._fds.append(_opened_root(self._root))
        for depth in range(shared, len(parts)):
            self._fds.append(_opened_below(self._fds[-1], parts, depth))
            self._parts.append(parts[depth])
        return self._fds[-1]

    def close(self) -> None:
        """Close all that is open."""
        self._cut(0)

    def _cut(self, length: int) -> None:
        while len(self._fds) > length:
            os.close(self._fds.pop())
        del self._parts[max(length - 1, 0) :]


def _opened_root(root: str | int) -> int:
    if isinstance(root, int):
        return os.open(".", _OPEN_DIRECTORY, dir_fd=root)
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _opened_below(fd: int, parts: list[str], depth: int) -> int:
    """Open the next directory of a path."""
    try:
        return os.open(parts[depth], _OPEN_DIRECTORY, dir_fd=fd)
    except OSError as error:
        done = "/".join(parts[: depth + 1])
        if not isinstance(error, FileNotFoundError) and _is_link(fd, parts[depth]):
            path = "/".join(parts)
            raise RefusedError(f"cannot use {printable(path)}: {printable(done)} is a symbolic link") from None
        error.filename = done
        raise


def join(directory: str, name: str) -> str:
    """Return the tree path of a name in a directory, where "" is the root."""
    return f"{directory}/{name}" if directory else name


def above(path: str) -> Iterator[str]:
    """Yield the tree paths of the directories that a path lies in, innermost first, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def scan(
    source: str, paths: Iterable[str] | None = None, leave: Leave | None = None, narrow: Narrow | None = None
) -> Listing:
    """Return what a tree holds.

    Sockets, fifos, devices, what cannot be read and what lies over 256 directories deep are left alone, and
    told in ``left``, as is what `leave` gives a reason for.

    Args:
        source: the root of the tree.
        paths: tree paths to list, each with what is below it; None lists everything. A path that is not there
            is listed as absent: a destination then loses it.
        leave: see `Leave`; called for every file, link and directory, a named path's parents included.
        narrow: see `Narrow`; called for every directory that is listed whole, before what is in it.

    Raises:
        RefusedError: a named path leads through a symbolic link, or names an unfinished write.
        UnavailableError: the root cannot be read.
    """
    scanner = _Scanner(source, leave, narrow)
    try:
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(f"cannot read {source}: {reason(error)}") from error
    try:
        if paths is None:
            scanner.listing.top = scanner.directory(fd, "", os.fstat(fd), 0)
        else:
            for path in outermost(paths):
                scanner.named(fd, path)
    except OSError as error:
        raise UnavailableError(f"cannot read {source}: {reason(error)}") from error
    finally:
        os.close(fd)
    return scanner.listing


def mirror(
    listing: Listing,
    destination: str,
    show: bool = False,
    durable: bool = False,
    keep: Leave | None = None,
    removes: bool = True,
    aged: Callable[[str], object] | None = None,
) -> Iterator[Action]:
    """Make a destination the same as a listing and yield each `Action` when it is done.

    A thing that fails is yielded as "fail" and the rest goes on, but then nothing is removed any more ("keep"):
    a destination that could not take all that is new does not lose what is old. The generator may be left early;
    every file is then old or new. The permissions of the destination's root are not touched.

    Args:
        listing: what `scan` returned; its source is read again for the contents.
        destination: a directory that exists.
        show: whether to change nothing and only say what would be done.
        durable: whether each file is on the disk before it gets its name, and names before the end.
        keep: asked for everything that would be removed, a directory before what is in it; where it gives a
            reason, that stays, and so does a directory that holds it (`Emptied`: the directory alone). A directory
            that holds what is kept does not make way for a file, nor does what is kept for a directory.
        removes: False where something has failed before, so that nothing is removed.
        aged: called with each directory that is there and has another mtime than the one that is listed whole.

    Raises:
        UnavailableError: a root cannot be opened, or nothing more can be written (a full or failing disk).
    """
    source_fd = destination_fd = -1
    work: _Mirror | None = None
    try:
        try:
            source_fd = os.open(listing.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(f"cannot read {listing.source}: {reason(error)}") from error
        try:
            destination_fd = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(f"cannot open {destination}: {reason(error)}") from error
        work = _Mirror(source_fd, destination_fd, destination, show, durable, keep)
        work.failed = not removes
        work.aged = aged
        yield from work.finished(work.fill(destination_fd, listing.top, ""))
        work.sync()
        yield from work.remove_gone()
        work.sync()
    except OSError as error:
        raise UnavailableError(f"cannot update {destination}: {reason(error)}") from error
    finally:
        if work is not None:
            work.way.close()
            work.disk.leave()
        for fd in (source_fd, destination_fd):
            if fd >= 0:
                os.close(fd)


class _Scanner:
    """One walk over a source."""

    def __init__(self, source: str, leave: Leave | None, narrow: Narrow | None) -> None:
        self.listing = Listing(source)
        self.listing.has_links = False
        self.leave = leave
        self.narrow = narrow

    def named(self, root: int, path: str) -> None:
        *parents, last = path.split("/")
        if any(files.is_temporary(name) for name in (*parents, last)):
            raise RefusedError(f"cannot use {printable(path)}: it is a write that was not finished")
        node, here, fd = self.listing.top, "", os.dup(root)
        try:
            for name in parents:
                status = _status(fd, name) if fd >= 0 else None
                if status is not None and stat.S_ISLNK(status.st_mode):
                    link = join(here, name)
                    raise RefusedError(f"cannot use {printable(path)}: {printable(link)} is a symbolic link")
                if status is not None and self.left(node, here, name, status.st_mode):
                    return
                below = -1
                if status is not None and stat.S_ISDIR(status.st_mode):
                    below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
                if fd >= 0:
                    os.close(fd)
                fd = below
                mode = ABSENT if fd < 0 or status is None else status.st_mode
                node = node.directories.setdefault(name, Directory(mode, False))
                here = join(here, name)
            status = _status(fd, last) if fd >= 0 else None
            if status is None:
                node.absent.add(last)
            else:
                self.entry(node, fd, here, last, status, len(parents))
        finally:
            if fd >= 0:
                os.close(fd)

    def directory(self, fd: int, path: str, status: os.stat_result, depth: int) -> Directory:
        """Return a directory with everything below it. Raises OSError when its names cannot be read."""
        found = Directory(status.st_mode, True, status.st_mtime_ns)
        entries, leave, regular = found.entries, self.leave, stat.S_IFREG
        is_asked = None if self.narrow is None else self.narrow(path, fd)
        others = []
        count = size = 0
        has_links = False
        with os.scandir(fd) as listed:
            for item in listed:
                name = item.name
                if name.startswith(files.TEMPORARY):
                    continue
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                kind = status.st_mode
                if kind & 0o170000 != regular:
                    others.append((name, status))
                elif (
                    leave is not None
                    and (is_asked is None or is_asked(name))
                    and (why := leave(path, name, kind)) is not None
                ):
                    self.leave_alone(found, path, name, why)
                else:
                    entries[name] = (kind & 0o100777, status.st_size, status.st_mtime_ns, "")
                    count += 1
                    size += status.st_size
                    has_links |= status.st_nlink > 1
        self.listing.count += count
        self.listing.size_bytes += size
        self.listing.has_links |= has_links
        others.sort()
        for name, status in others:
            self.entry(found, fd, path, name, status, depth)
        return found

    def entry(self, node: Directory, fd: int, here: str, name: str, status: os.stat_result, depth: int) -> None:
        mode, path = status.st_mode, join(here, name)
        if self.left(node, here, name, mode):
            return
        try:
            if stat.S_ISDIR(mode):
                if depth >= DEPTH_LIMIT:
                    self.leave_alone(node, here, name, f"over {DEPTH_LIMIT} directories deep")
                    return
                below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
                try:
                    node.directories[name] = self.directory(below, path, status, depth + 1)
                finally:
                    os.close(below)
                return
            if stat.S_ISREG(mode):
                node.entries[name] = (mode & 0o100777, status.st_size, status.st_mtime_ns, "")
                self.listing.size_bytes += status.st_size
                self.listing.has_links |= status.st_nlink > 1
            elif stat.S_ISLNK(mode):
                node.entries[name] = (stat.S_IFLNK, 0, 0, os.readlink(name, dir_fd=fd))
            else:
                self.leave_alone(node, here, name, SPECIAL)
                return
            self.listing.count += 1
        except OSError as error:
            self.leave_alone(node, here, name, Unread(reason(error)))

    def left(self, node: Directory, here: str, name: str, mode: int) -> bool:
        if name in node.left:
            return True
        why = self.leave(here, name, mode) if self.leave is not None else None
        if why is None:
            return False
        self.leave_alone(node, here, name, why)
        return True

    def leave_alone(self, node: Directory, here: str, name: str, why: str) -> None:
        node.left.add(name)
        self.listing.left.append((join(here, name), why))


class _Mirror:
    """One destination on its way to being the same as a listing."""

    def __init__(
        self, source: int, destination: int, root: str, show: bool, durable: bool, keep: Leave | None
    ) -> None:
        self.way = Way(source)
        self.destination = destination
        self.root = root
        self.show = show
        self.durable = durable
        self.keep = keep
        # Directories in which names have changed that are not on the disk yet.
        self.changed: list[str] = []
        self.disk = _Disk()
        self.failed = False
        self.aged: Callable[[str], object] | None = None
        self.gone: list[tuple[str, list[str]]] = []

    def finished(self, steps: "Iterator[_Step]") -> Iterator[Action]:
        """Yield what is done, in its order; what is staged gets its name when it is on the disk."""
        ahead: deque[_Step] = deque()
        count = 0
        try:
            for step in steps:
                if not ahead and not isinstance(step, _Staged):
                    yield from self.done(step)
                    continue
                ahead.append(step)
                count += isinstance(step, _Staged)
                while count > STAGED:
                    count -= isinstance(ahead[0], _Staged)
                    yield from self.done(ahead.popleft())
            while ahead:
                yield from self.done(ahead.popleft())
        finally:
            for step in ahead:
                if isinstance(step, _Staged):
                    step.drop()

    def done(self, step: "_Step") -> Iterator[Action]:
        """Do what is left of one step: all steps before it are done."""
        if isinstance(step, Action):
            yield step
        else:
            try:
                yield from self.name(step)
            finally:
                step.drop()

    def name(self, step: "_Staged") -> Iterator[Action]:
        aside = step.aside
        try:
            step.written.result()
            _rename(step.there, step.temporary, step.name, aside)
            step.temporary = ""
            yield step.action
            if aside is not None:
                yield from self.try_to_remove(step.there, aside, step.action.path, below_only=True)
        except OSError as error:
            yield self.fault(step.action.path, error)

    def sync(self) -> None:
        """Make durable which names directories have; all at once, since one write of the journal may serve many.

        Raises:
            OSError: as fsync(2).
        """
        waits: deque[_Sync] = deque()
        with contextlib.closing(Way(self.destination)) as way:
            for path in self.changed:
                if len(waits) >= STAGED:
                    waits.popleft().result()
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, RefusedError):
                    waits.append(self.disk.sync(os.dup(way.open(path)), and_close=True))
        while waits:
            waits.popleft().result()
        self.changed.clear()

    def fill(self, there: int, wanted: Directory, path: str) -> "Iterator[_Step]":
        """Put in place what is new or changed in one directory and below; note what is to go.

        Args:
            there: the destination's directory, or -1 where it would only now be made.
            wanted: what it should hold.
            path: its tree path.
        """
        found = self.found(there, wanted)
        # No listing has one.
        stale = sorted(name for name in found.keys() - wanted.entries.keys() if files.is_temporary(name))
        for name in stale:
            del found[name]
            yield from self.try_to_remove(there, name, join(path, name))
        wrong = [
            name
            for name, new in wanted.entries.items()
            if (old := found.get(name)) != new and (old is None or not _is_same(old, new))
        ]
        if wrong:
            yield from self.put_all(there, sorted(wrong), found, wanted, path)
        if wanted.whole:
            gone = found.keys() - wanted.entries.keys() - wanted.directories.keys() - wanted.left
        else:
            gone = found.keys() & wanted.absent
        if gone and self.keep is not None:
            for name in sorted(gone):
                why = self.keep(path, name, found[name][0])
                if why is not None and not isinstance(why, Emptied):
                    gone.discard(name)
                    yield Action("keep", join(path, name), stat.S_ISDIR(found[name][0]), 0, why)
        if gone:
            self.gone.append((path, sorted(gone)))
        for name in sorted(wanted.directories):
            yield from self.enter(there, name, found.get(name), wanted.directories[name], join(path, name))
        if not self.durable or self.show or there < 0:
            return
        if (
            stale
            or wrong
            or any(name not in found or not stat.S_ISDIR(found[name][0]) for name in wanted.directories)
        ):
            self.changed.append(path)

    def found(self, there: int, wanted: Directory) -> dict[str, Entry]:
        if there < 0:
            return {}
        found: dict[str, Entry] = {}
        if wanted.whole:
            regular, directory = stat.S_IFREG, stat.S_IFDIR
            with os.scandir(there) as listed:
                for item in listed:
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    mode = status.st_mode
                    if mode & 0o170000 == regular:
                        found[item.name] = (mode, status.st_size, status.st_mtime_ns, "")
                    elif mode & 0o170000 == directory:
                        found[item.name] = (mode, 0, status.st_mtime_ns, "")
                    else:
                        found[item.name] = _entry(there, item.name, status)
            return found
        for name in (*wanted.entries, *wanted.directories, *wanted.absent):
            named = _status(there, name)
            if named is not None:
                found[name] = _entry(there, name, named)
        return found

    def put_all(
        self, there: int, wrong: list[str], found: dict[str, Entry], wanted: Directory, path: str
    ) -> "Iterator[_Step]":
        try:
            here = -1 if self.show else self.way.open(path)
            for name in wrong:
                yield from self.put(here, there, name, found.get(name), wanted.entries[name], join(path, name))
        except (OSError, RefusedError) as error:
            yield self.fault(path, error)

    def put(self, here: int, there: int, name: str, old: Entry | None, new: Entry, path: str) -> "Iterator[_Step]":
        """Put one file or link in place, over whatever has its name."""
        action = Action("update" if old else "install", path, False, new[1])
        try:
            if old is not None and stat.S_ISDIR(old[0]) and (kept := self.kept_in(there, name, path, old[0], 0)):
                raise RefusedError(f"the directory in its place holds {printable(kept)}, which is kept")
            # A directory that has to make way goes aside first, and is removed when its successor stands.
            aside = files.temporary_name(name) if old is not None and stat.S_ISDIR(old[0]) else None
            if not self.show and (old is None or old[1:] != new[1:] or not _chmod(there, name, new)):
                if self.durable and stat.S_ISREG(new[0]):
                    yield _staged(here, there, name, action, aside, self.disk)
                    return
                _copy(here, there, name, new, aside)
            yield action
            if aside is not None:
                yield from self.try_to_remove(there, name if self.show else aside, path, below_only=True)
        except (OSError, RefusedError) as error:
            yield self.fault(path, error)

    def enter(self, there: int, name: str, old: Entry | None, wanted: Directory, path: str) -> "Iterator[_Step]":
        """Go on in a directory below, which is made where it is missing."""
        is_there = old is not None and stat.S_ISDIR(old[0])
        if not is_there and not _holds(wanted):
            return
        below = -1
        try:
            mode = wanted.mode & 0o777 | 0o700
            if not is_there:
                if old is not None and (why := self.why_kept(name, path, old[0])) is not None:
                    raise RefusedError(f"what is in its place is kept: {why}")
                if not self.show:
                    if old is not None:
                        os.unlink(name, dir_fd=there)
                    below = _made(there, name, mode)
                yield Action("install" if old is None else "update", path, True)
            else:
                below = os.open(name, _OPEN_DIRECTORY, dir_fd=there)
                if wanted.whole and old is not None and old[0] & 0o777 != mode:
                    if not self.show:
                        os.fchmod(below, old[0] & 0o7000 | mode)
                    yield Action("update", path, True)
                if self.aged is not None and wanted.whole and not (old and _is_same_time(old[2], wanted.mtime_ns)):
                    self.aged(path)
            yield from self.fill(below, wanted, path)
        except (OSError, RefusedError) as error:
            yield self.fault(path, error)
        finally:
            if below >= 0:
                os.close(below)

    def remove_gone(self) -> Iterator[Action]:
        """Remove what the source no longer has, unless something failed before."""
        for path, gone in self.gone:
            if self.failed:
                for name in gone:
                    yield Action("keep", join(path, name), False, 0, NOT_ALL)
                continue
            try:
                there = open_directory(self.destination, path)
            except (OSError, RefusedError) as error:
                yield self.fault(path, error)
                continue
            try:
                for name in gone:
                    yield from self.try_to_remove(there, name, join(path, name))
                if self.durable and not self.show:
                    self.changed.append(path)
            finally:
                os.close(there)

    def try_to_remove(self, there: int, name: str, path: str, below_only: bool = False) -> Iterator[Action]:
        """Remove a file, link or directory with all that is in it.

        Args:
            there: the directory it is in.
            name: its name there.
            path: its tree path, as it is told.
            below_only: whether to tell only of what was in it.
        """
        try:
            yield from self.remove(there, name, path, below_only, 0)
        except OSError as error:
            yield self.fault(path, error)

    def remove(self, there: int, name: str, path: str, below_only: bool, depth: int) -> Generator[Action, None, bool]:
        """Remove something and return whether it is gone."""
        status = _status(there, name)
        if status is None:
            return True
        is_directory = stat.S_ISDIR(status.st_mode)
        why = None if below_only else self.why_kept(name, path, status.st_mode)
        if why is not None and not isinstance(why, Emptied):
            yield Action("keep", path, is_directory, 0, why)
            return False
        if is_directory:
            if depth > 2 * DEPTH_LIMIT:
                raise OSError(errno.ENAMETOOLONG, "nested too deep")
            below = os.open(name, _OPEN_DIRECTORY, dir_fd=there)
            try:
                if not self.show and status.st_mode & 0o700 != 0o700:
                    os.fchmod(below, 0o700)
                for inner in sorted(os.listdir(below)):
                    if not (yield from self.remove(below, inner, join(path, inner), False, depth + 1)):
                        why = why or "what it holds is kept"
            finally:
                os.close(below)
            if why is not None:
                yield Action("keep", path, True, 0, why)
                return False
            if not self.show:
                os.rmdir(name, dir_fd=there)
        elif not self.show:
            os.unlink(name, dir_fd=there)
        if not below_only:
            yield Action("remove", path, is_directory)
        return True

    def why_kept(self, name: str, path: str, mode: int) -> str | None:
        """Return why something is to be kept, or None; unfinished writes never are."""
        if self.keep is None or files.is_temporary(name):
            return None
        return self.keep(path.rpartition("/")[0], name, mode)

    def kept_in(self, there: int, name: str, path: str, mode: int, depth: int) -> str | None:
        """Return what is to be kept of something that would be removed, as its path, or None."""
        if self.why_kept(name, path, mode) is not None:
            return path
        if self.keep is None or not stat.S_ISDIR(mode) or depth > 2 * DEPTH_LIMIT:
            return None
        below = os.open(name, _OPEN_DIRECTORY, dir_fd=there)
        try:
            for inner in sorted(os.listdir(below)):
                status = _status(below, inner)
                if status is not None and (
                    kept := self.kept_in(below, inner, join(path, inner), status.st_mode, depth + 1)
                ):
                    return kept
        finally:
            os.close(below)
        return None

    def fault(self, path: str, error: Exception) -> Action:
        why = reason(error) if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno in _HOPELESS:
            place = f"{self.root}/{printable(path)}" if path else self.root
            raise UnavailableError(f"cannot write {place}: {why}") from error
        self.failed = True
        return Action("fail", path, False, 0, why)


def _is_same(old: Entry, new: Entry) -> bool:
    """Tell whether a destination that keeps whole seconds has all of a file that it can have."""
    return _is_same_time(old[2], new[2]) and (old[0], old[1], old[3]) == (new[0], new[1], new[3])


def _is_same_time(old_ns: int, new_ns: int) -> bool:
    return old_ns == new_ns or (old_ns % WHOLE_SECOND_NS == 0 and old_ns == new_ns - new_ns % WHOLE_SECOND_NS)


def _holds(wanted: Directory) -> bool:
    """Tell whether there is anything to put into a directory that may only be on the way to a removal."""
    return wanted.whole or bool(wanted.entries) or any(_holds(below) for below in wanted.directories.values())


def _status(fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_link(fd: int, name: str) -> bool:
    status = _status(fd, name)
    return status is not None and stat.S_ISLNK(status.st_mode)


def _entry(fd: int, name: str, status: os.stat_result) -> Entry:
    if stat.S_ISREG(status.st_mode):
        return (status.st_mode, status.st_size, status.st_mtime_ns, "")
    if stat.S_ISLNK(status.st_mode):
        return (stat.S_IFLNK, 0, 0, os.readlink(name, dir_fd=fd))
    return (status.st_mode, 0, status.st_mtime_ns, "")


def _made(fd: int, name: str, mode: int, durable: bool = False) -> int:
    """Make a directory, unless somebody just did, and return a descriptor of it."""
    try:
        os.mkdir(name, 0o700, dir_fd=fd)
    except FileExistsError:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    try:
        os.fchmod(below, stat.S_IMODE(os.fstat(below).st_mode) & 0o7000 | mode)
        if durable:
            os.fsync(fd)
    except BaseException:
        os.close(below)
        raise
    return below


def _chmod(there: int, name: str, new: Entry) -> bool:
    """Give a file that is the same but for its permissions the right ones; False where it has to be copied."""
    if not stat.S_ISREG(new[0]):
        return False
    try:
        fd = os.open(name, _OPEN_SOURCE, dir_fd=there)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != new[1:3]:
            return False
        os.fchmod(fd, new[0] & 0o777)
        return True
    except PermissionError:  # another user's file: a copy is ours
        return False
    finally:
        os.close(fd)


class _Staged:
    """A file that has a temporary name, and is on its way to the disk.

    ``there`` is a descriptor of its directory, ``fd`` of the file; ``temporary`` is "" when it has its own name.
    """

    __slots__ = ("action", "aside", "fd", "name", "temporary", "there", "written")

    def __init__(
        self,
        there: int,
        fd: int,
        name: str,
        temporary: str,
        action: Action,
        aside: str | None,
        written: "_Sync",
    ) -> None:
        self.there = there
        self.fd = fd
        self.name = name
        self.temporary = temporary
        self.action = action
        self.aside = aside
        self.written = written

    def drop(self) -> None:
        """Close it, and remove it where it did not get its name."""
        self.written.wait()
        try:
            if self.temporary:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.temporary, dir_fd=self.there)
        finally:
            os.close(self.fd)
            os.close(self.there)


def _staged(here: int, there: int, name: str, action: Action, aside: str | None, disk: "_Disk") -> _Staged:
    """Write a file of one directory into another under a temporary name. Raises OSError, and then leaves nothing."""
    temporary = files.temporary_name(name)
    fd = _copy_file(here, there, name, temporary)
    try:
        return _Staged(os.dup(there), fd, name, temporary, action, aside, disk.sync(fd))
    except BaseException:
        os.close(fd)
        os.unlink(temporary, dir_fd=there)
        raise


_Step = Action | _Staged


class _Sync:
    """One fsync(2) that another thread does."""

    __slots__ = ("_and_close", "_done", "_error", "_fd")

    def __init__(self, fd: int, and_close: bool) -> None:
        self._fd = fd
        self._and_close = and_close
        self._error: OSError | None = None
        self._done = _thread.allocate_lock()
        self._done.acquire()

    def run(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            self._error = error
        finally:
            if self._and_close:
                os.close(self._fd)
            self._done.release()

    def wait(self) -> None:
        with self._done:
            return

    def result(self) -> None:
        """Wait for it. Raises OSError as fsync(2)."""
        self.wait()
        if self._error is not None:
            raise self._error


class _Disk:
    """Threads that write to the disk while a walk goes on, so that what is written shares its waits.

    As `concurrent.futures` has them, but for its import, which takes as long as eighty files.
    """

    def __init__(self) -> None:
        self._threads: list[Thread] = []
        self._queue: SimpleQueue[_Sync | None] | None = None

    def sync(self, fd: int, and_close: bool = False) -> _Sync:
        """Begin to write what a descriptor has to the disk; it stays open until that is done."""
        if self._queue is None:
            from queue import SimpleQueue

            self._queue = SimpleQueue()
        if len(self._threads) < SYNCS:
            from threading import Thread

            self._threads.append(Thread(target=_serve, args=(self._queue,)))
            self._threads[-1].start()
        todo = _Sync(fd, and_close)
        self._queue.put(todo)
        return todo

    def leave(self) -> None:
        """Wait for the last write, and need no more."""
        if self._queue is not None:
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()


def _serve(queue: "SimpleQueue[_Sync | None]") -> None:
    while (todo := queue.get()) is not None:
        todo.run()


def _rename(there: int, temporary: str, name: str, aside: str | None) -> None:
    """Give a file or link its name; a directory that has it goes aside. Raises OSError, and then all is as it was."""
    if aside is not None:
        os.rename(name, aside, src_dir_fd=there, dst_dir_fd=there)
    try:
        os.rename(temporary, name, src_dir_fd=there, dst_dir_fd=there)
    except OSError:
        if aside is not None:
            os.rename(aside, name, src_dir_fd=there, dst_dir_fd=there)
        raise


def _copy(here: int, there: int, name: str, new: Entry, aside: str | None) -> None:
    """Put a file or link of one directory into another, whole.

    Args:
        here: the source's directory.
        there: the destination's directory.
        name: its name in both.
        new: what it was when the source was listed.
        aside: the temporary name for a directory that stands in its place, or None.

    Raises:
        OSError: the destination is as it was, and no temporary name is left.
    """
    temporary = files.temporary_name(name)
    try:
        if stat.S_ISLNK(new[0]):
            os.symlink(new[3], temporary, dir_fd=there)
        else:
            os.close(_copy_file(here, there, name, temporary))
        _rename(there, temporary, name, aside)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=there)
        raise


def _copy_file(here: int, there: int, name: str, temporary: str) -> int:
    """Write a file of one directory into another, return a descriptor. Raises OSError, and then leaves nothing."""
    source = os.open(name, _OPEN_SOURCE, dir_fd=here)
    target = -1
    try:
        before = os.fstat(source)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "it is no longer a file")
        target = os.open(temporary, _OPEN_TARGET, 0o600, dir_fd=there)
        left = before.st_size
        while chunk := os.read(source, min(max(left, 1), CHUNK_BYTES)):
            files.write_all(target, chunk)
            left -= len(chunk)
            if left == 0:
                break
        os.fchmod(target, before.st_mode & 0o777)
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = os.fstat(source)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise OSError(errno.EAGAIN, "it changed while it was copied")
        return target
    except BaseException:
        if target >= 0:
            os.close(target)
            os.unlink(temporary, dir_fd=there)
        raise
    finally:
        os.close(source)
