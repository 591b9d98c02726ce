# SPDX-License-Identifier: Apache-2.0
"""The read side of gather: what is new in every server's files, which are never written to.

An application's records on one host are found at ``<gather_dir>/<server>/<host>/<app>``, in one of these forms:

``segments``
    a directory of our own segments, ``<YYYY-MM-DD>.jsonl`` (see `drop`), read without a lock up to the last end
    of a line; another name that ends so is a fault;
``lines``
    a plain file with a record a line, appended to by a program that is not ours;
``separated``
    a plain file whose records end with a line that holds only a separator;
``entries``
    a directory with one file an entry; an entry is read once, when it is a plain file and its name does not
    begin with ``.``.
``queue``
    a simple directory queue (see `queue.simple`) with an element a record, read without a lock: an element is whole
    when it is seen, and never changes. Its name is ``DDDDDDDD/SSSSSSSSMMMMMR``; what was read is not opened again.

For lines, separated and entries the shared lock is taken where the writer's lock file ``<app>.lock`` exists, and the
file's own flock besides: writers of either habit are waited for. NFS does not carry a server's own locks to the batch
host; check-site says whether they exclude there.

A file is known by its name and its first record (`first_id`): the record's ``id``, or the SHA-256 of the record,
16 hexadecimal digits of it, where it has none. A file that was emptied and begun again is new. Where its first record
has no id and is what it was before, its content tells: it is new if it is shorter, or if the bytes before the place
up to which it was read are others. One that has grown over that place since, and has the same `TAIL_BYTES` before it,
cannot be told apart: what precedes it is not read again. Programs that empty their files do well to write ids or
times. A segment, and a file whose first record has an id, is not begun again; one that changed is a fault.

Source: gather documentation; flock(2).
"""

import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date

from infocluster import names
from infocluster.errors import InfoclusterError, UnavailableError, reason
from infocluster.gather.cursor import Position
from infocluster.locks import lockfile
from infocluster.queue import simple
from infocluster.queue.simple import Simple

SUFFIX = ".jsonl"
FORMS = ("segments", "lines", "separated", "entries", "queue")
TAIL_BYTES = 256
BLOCK_BYTES = 1 << 20
LOCK_TIMEOUT_S = 30.0

Positions = Mapping[tuple[str, str, str], Position]


@dataclass(frozen=True, slots=True)
class Source:
    """What is read: one application's records, on every server.

    Attributes:
        gather_dir: where the servers' directories are seen.
        app: the application's name.
        host: the HOST part of the path.
        servers: the servers that have to be there.
        form: one of `FORMS`.
        separator: for ``separated``, the separator line without its end.
        ending: for ``entries``, what the names of entries end in.
        is_copy: whether the directories are gather-pull's copies: what is consumed in one would come again.
    """

    gather_dir: str
    app: str
    host: str
    servers: tuple[str, ...] = ()
    form: str = "segments"
    separator: bytes = b""
    ending: str = ""
    is_copy: bool = False

    @property
    def end(self) -> bytes:
        """Return what ends a record."""
        return b"\n" + self.separator + b"\n" if self.form == "separated" else b"\n"


@dataclass(frozen=True, slots=True)
class Part:
    """The new records of one file: bytes `start` to `end`, both behind an end of record.

    `tail` is the CRC of the bytes before `end`, as they were when the file was looked at (see `cursor`).
    """

    path: str
    server: str
    host: str
    app: str
    segment: str
    first_id: str
    start: int
    end: int
    tail: str

    def position(self) -> Position:
        """Return the position behind this part."""
        return Position(self.server, self.host, self.app, self.segment, self.first_id, self.end, self.tail)


@dataclass(slots=True)
class Found:
    """What a look at all servers found.

    Attributes:
        parts: what is new.
        seen: every file there is, as (server, segment, first_id), new or not.
        faults: a sentence for each file or server that could not be read.
        unread: servers of which not everything could be listed.
    """

    parts: list[Part] = field(default_factory=list)
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)


def look(source: Source, positions: Positions) -> Found:
    """Look at every server for what is new.

    Args:
        source: what is read.
        positions: how far was read before, by (server, segment, first_id).

    Returns:
        What was found; one bad file never hides the others.
    """
    names.name(source.app, "an application's name")
    found = Found()
    try:
        present = sorted(entry for entry in os.listdir(source.gather_dir) if names.is_name(entry))
    except OSError as error:
        found.faults.append(f"cannot read {source.gather_dir}: {reason(error)}")
        return found
    for server in source.servers:
        directory = f"{source.gather_dir}/{server}/{source.host}"
        if not os.path.isdir(directory):
            found.faults.append(f"cannot read the gather directory of {server}: {directory} is missing")
    read = {key[:2]: key for key in positions} if source.form == "queue" else {}
    for server in present:
        top = f"{source.gather_dir}/{server}/{source.host}/{source.app}"
        try:
            for segment, path in _segments(top, source):
                if (server, segment) in read:
                    found.seen.add(read[server, segment])
                elif source.form == "segments" and not is_segment(segment):
                    odd = names.printable(path)
                    found.faults.append(f"cannot read {odd}: a segment's name is a day, YYYY-MM-DD{SUFFIX}")
                else:
                    _look_at(found, positions, source, server, segment, path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # nobody sent anything to this server, or it is none
        except (OSError, UnavailableError) as error:
            found.unread.add(server)
            found.faults.append(f"cannot read {top}: {reason(error)}" if isinstance(error, OSError) else str(error))
    return found


def read(source: Source, positions: Positions) -> Iterator[tuple[str, str, int, bytes]]:
    """Yield every new record: (server, segment, end offset in bytes, record without its end).

    Args: as `look`.

    Raises:
        UnavailableError: something could not be read, after everything else was yielded.
    """
    found = look(source, positions)
    for part in found.parts:
        offset = part.start
        for record, length in records(content(part), source):
            offset += length
            yield part.server, part.segment, offset, record
    if found.faults:
        raise UnavailableError("; ".join(found.faults))


def content(part: Part) -> bytes:
    """Return the bytes of a part.

    Raises:
        OSError: as open(2), read(2).
    """
    with open(part.path, "rb") as file:
        file.seek(part.start)
        return file.read(part.end - part.start)


def records(text: bytes, source: Source) -> Iterator[tuple[bytes, int]]:
    """Yield each record of a text and the bytes that it took, its end included."""
    if source.form in ("entries", "queue"):
        if text:
            yield text.removesuffix(b"\n") if source.form == "queue" else text, len(text)
        return
    place = 0
    while (stop := text.find(source.end, place)) >= 0:
        yield text[place:stop], stop + len(source.end) - place
        place = stop + len(source.end)


def first_id(first_record: bytes) -> str:
    """Return what a file is known by: its first record's id, or a digest of it."""
    try:
        found = json.loads(first_record)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, str) and found else _digest(first_record)


def tail(part: Part) -> str:
    """Return the CRC of the bytes before a part's end, as they are now; "" of an element, which never changes.

    Raises:
        OSError: the file is gone or cannot be read.
    """
    if simple.is_name(part.segment):
        return ""
    with open(part.path, "rb") as file:
        return _tail(file.fileno(), part.end)


def is_segment(name: str) -> bool:
    """Tell whether a file is called as a segment is, by a day on which a record can have been taken."""
    day = name.removesuffix(SUFFIX)
    try:
        # Other forms of ISO 8601 name a day too. A week of the last year that there is does not end in it.
        return name != day and date.fromisoformat(day).isoformat() == day and "1970" <= day < "9999"
    except ValueError:
        return False


def day_of(segment: str) -> str:
    """Return the day (UTC) of a segment's records, or of an element of a queue, as ``YYYY-MM-DD``."""
    if simple.is_name(segment):
        return time.strftime("%Y-%m-%d", time.gmtime(int(segment[9:17], 16)))
    return segment.removesuffix(SUFFIX)


def consume(
    source: Source, read: set[tuple[str, str, str]], fault: Callable[[str], None]
) -> set[tuple[str, str, str]]:
    """Remove what was read and committed from the queues that this user may remove from, and purge those.

    Args:
        source: what was read, of the form ``queue``.
        read: (server, element, first_id) of what was committed.
        fault: told of each queue that is ours to write and cannot be written.

    Returns:
        What was removed. Another user's queue, and a copy, is left as it is: gather-sweep, or gather-pull, sweeps it.
    """
    removed: set[tuple[str, str, str]] = set()
    if source.is_copy:
        return removed
    for server in sorted({server for server, _, _ in read}):
        top = f"{source.gather_dir}/{server}/{source.host}/{source.app}"
        if not os.access(top, os.W_OK):
            continue
        queue = Simple(top)
        try:
            for key in sorted(key for key in read if key[0] == server and simple.is_name(key[1])):
                if os.access(f"{top}/{key[1][:8]}", os.W_OK) and queue.lock(key[1]) and queue.remove(key[1]):
                    removed.add(key)
            queue.purge()
        except UnavailableError as error:
            fault(str(error))
    return removed


def gone(found: Found, positions: Positions) -> list[tuple[str, str, str]]:
    """Return the elements of queues that were read and are no more, so that nobody has to remember them.

    Only of servers that showed another element, and all that they have: one that shows none may be out of reach.
    """
    alive = {server for server, _, _ in found.seen} - found.unread
    return [key for key in positions if key[0] in alive and key not in found.seen and simple.is_name(key[1])]


def _segments(top: str, source: Source) -> Iterator[tuple[str, str]]:
    if source.form in ("lines", "separated"):
        yield source.app, top
        return
    if source.form == "queue":
        for name in Simple(top):
            yield name, f"{top}/{name}"
        return
    ending = SUFFIX if source.form == "segments" else source.ending
    for name in sorted(os.listdir(top)):
        if name[0] != "." and name.endswith(ending):
            yield name, f"{top}/{name}"


def _look_at(found: Found, positions: Positions, source: Source, server: str, segment: str, path: str) -> None:
    form = source.form
    try:
        with ExitStack() as stack:
            if form not in ("segments", "queue"):
                _wait_for_writer(stack, path, form)
            # O_NONBLOCK: a fifo in the place of a file must not stop the night.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                if form != "entries":
                    found.faults.append(f"cannot read {path}: no plain file")
                return
            if form == "queue":
                key = (server, segment, first_id(os.pread(fd, status.st_size, 0).removesuffix(b"\n")))
                found.seen.add(key)
                found.parts.append(
                    Part(path, server, source.host, source.app, segment, key[2], 0, status.st_size, "")
                )
                return
            end = status.st_size if form == "entries" else _last_end(fd, status.st_size, source.end)
            first = _first_record(fd, end, source)
            if first is None:
                return
            key = (server, segment, first_id(first))
            found.seen.add(key)
            before = positions.get(key)
            start = before.offset if before else 0
            if before and (end < start or _tail(fd, start) != before.tail):
                if form == "segments" or key[2] != _digest(first):
                    found.faults.append(
                        f"cannot read on in {path}: it changed before byte {start}, up to which it was read; "
                        "was it restored from a backup, or did the server lose power? "
                        "infocluster-segment(5) has the mend"
                    )
                    return
                start = 0  # begun again, with the first record that it had
            if end > start:
                part = Part(path, server, source.host, source.app, segment, key[2], start, end, _tail(fd, end))
                found.parts.append(part)
    except FileNotFoundError:
        return  # swept while we looked: all of it had been read
    except (OSError, InfoclusterError) as error:
        text = reason(error) if isinstance(error, OSError) else str(error)
        found.faults.append(f"cannot read {path}: {text}")


def _wait_for_writer(stack: ExitStack, path: str, form: str) -> None:
    target = os.path.dirname(path) if form == "entries" else path
    if os.path.exists(target + ".lock"):
        stack.enter_context(lockfile.hold(target + ".lock", shared=True, timeout_s=LOCK_TIMEOUT_S))
    if os.path.exists(target):
        stack.enter_context(lockfile.hold(target, shared=True, timeout_s=LOCK_TIMEOUT_S))


def _last_end(fd: int, size: int, end: bytes) -> int:
    """Return the offset behind the last end of a record."""
    high = size
    while high > 0:
        low = max(0, high - BLOCK_BYTES)
        # Blocks overlap by an end's length, so that an end that lies across two of them is found.
        block = os.pread(fd, high - low + len(end) - 1, low)
        if (found := block.rfind(end)) >= 0:
            return low + found + len(end)
        high = low
    return 0


def _first_record(fd: int, end: int, source: Source) -> bytes | None:
    if end == 0:
        return None
    size = end if source.form == "entries" else min(end, 4096)
    while True:
        text = os.pread(fd, size, 0)
        for record, _ in records(text, source):
            return record
        if size >= end:
            return text
        size = min(end, size * 16)


def _digest(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]


def _tail(fd: int, offset: int) -> str:
    start = max(0, offset - TAIL_BYTES)
    return f"{zlib.crc32(os.pread(fd, offset - start, start)):08x}"
