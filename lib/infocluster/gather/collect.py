# SPDX-License-Identifier: Apache-2.0
"""The read side of gather: what is new in every server's files, which are never written to.

An application's records on one host are found at ``<gather_dir>/<server>/<host>/<app>``, in one of these forms:

``segments``
    a directory of our own segments, ``<YYYY-MM-DD>.jsonl`` (see `drop`), read without a lock up to the last end
    of a line;
``lines``
    a plain file with a record a line, appended to by a program that is not ours;
``separated``
    a plain file whose records end with a line that holds only a separator;
``entries``
    a directory with one file an entry; an entry is read once, when it is a plain file and its name does not
    begin with ``.``.

For the last three the shared lock is taken where the writer's lock file ``<app>.lock`` exists, and the file's own
flock besides: writers of either habit are waited for. NFS does not carry a server's own locks to the batch host;
check-site says whether they exclude there.

A file is known by its name and its first record (`first_id`): the record's ``id``, or the SHA-256 of the first
line, 16 hexadecimal digits of it, where it has none. A file that was emptied and begun again is new.

Source: gather documentation; flock(2).
"""

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from infocluster import names
from infocluster.errors import InfoclusterError, UnavailableError, reason
from infocluster.gather.cursor import Position
from infocluster.locks import lockfile

FORMS = ("segments", "lines", "separated", "entries")
TAIL_BYTES = 256
BLOCK_BYTES = 1 << 20
LOCK_TIMEOUT_S = 30.0

Positions = Mapping[tuple[str, str, str], Position]


@dataclass(frozen=True, slots=True)
class Part:
    """The new records of one file: bytes `start` to `end`, both behind an end of record."""

    path: str
    server: str
    host: str
    app: str
    segment: str
    first_id: str
    start: int
    end: int

    def position(self) -> Position:
        """Return the position behind this part.

        Raises:
            OSError: the file is gone or cannot be read.
        """
        with open(self.path, "rb") as file:
            tail = _tail(file.fileno(), self.end)
        return Position(self.server, self.host, self.app, self.segment, self.first_id, self.end, tail)


@dataclass(slots=True)
class Found:
    """What a look at all servers found.

    Attributes:
        parts: what is new.
        seen: every file there is, as (server, segment, first_id), new or not.
        faults: a sentence for each file or server that could not be read.
    """

    parts: list[Part] = field(default_factory=list)
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def look(
    gather_dir: str,
    app: str,
    host: str,
    positions: Positions,
    servers: tuple[str, ...] = (),
    form: str = "segments",
    separator: bytes = b"",
) -> Found:
    """Look at every server for what is new.

    Args:
        gather_dir: where the servers' directories are seen.
        app: the application's name.
        host: the HOST part of the path.
        positions: how far was read before, by (server, segment, first_id).
        servers: the servers that have to be there.
        form: one of `FORMS`.
        separator: for ``separated``, the separator line without its end.

    Returns:
        What was found; one bad file never hides the others.
    """
    names.name(app, "an application's name")
    found = Found()
    try:
        present = sorted(entry for entry in os.listdir(gather_dir) if names.is_name(entry))
    except OSError as error:
        found.faults.append(f"cannot read {gather_dir}: {reason(error)}")
        return found
    for server in servers:
        if not os.path.isdir(f"{gather_dir}/{server}/{host}"):
            found.faults.append(
                f"cannot read the gather directory of {server}: {gather_dir}/{server}/{host} is missing"
            )
    for server in present:
        top = f"{gather_dir}/{server}/{host}/{app}"
        try:
            for segment, path in _segments(top, app, form):
                _look_at(found, positions, (server, host, app, segment), path, form, separator)
        except (FileNotFoundError, NotADirectoryError):
            continue  # nobody sent anything to this server, or it is none
        except OSError as error:
            found.faults.append(f"cannot read {top}: {reason(error)}")
    return found


def read(
    gather_dir: str,
    app: str,
    host: str,
    positions: Positions,
    servers: tuple[str, ...] = (),
    form: str = "segments",
    separator: bytes = b"",
) -> Iterator[tuple[str, str, int, bytes]]:
    """Yield every new record: (server, segment, end offset in bytes, record without its end).

    Args: as `look`.

    Raises:
        UnavailableError: something could not be read, after everything else was yielded.
    """
    found = look(gather_dir, app, host, positions, servers, form, separator)
    for part in found.parts:
        offset = part.start
        for record, length in records(content(part), form, separator):
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


def records(text: bytes, form: str, separator: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """Yield each record of a text and the bytes that it took, its end included."""
    if form == "entries":
        if text:
            yield text, len(text)
        return
    end = b"\n" if form != "separated" else b"\n" + separator + b"\n"
    place = 0
    while (stop := text.find(end, place)) >= 0:
        yield text[place:stop], stop + len(end) - place
        place = stop + len(end)


def first_id(first_record: bytes) -> str:
    """Return what a file is known by: its first record's id, or a digest of it."""
    try:
        found = json.loads(first_record)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, str) and found else hashlib.sha256(first_record).hexdigest()[:16]


def _segments(top: str, app: str, form: str) -> Iterator[tuple[str, str]]:
    if form in ("lines", "separated"):
        yield app, top
        return
    for name in sorted(os.listdir(top)):
        wanted = (name.endswith(".jsonl") and names.is_name(name)) if form == "segments" else name[0] != "."
        if wanted:
            yield name, f"{top}/{name}"


def _look_at(
    found: Found,
    positions: Positions,
    place: tuple[str, str, str, str],
    path: str,
    form: str,
    separator: bytes,
) -> None:
    server, host, app, segment = place
    try:
        with ExitStack() as stack:
            if form != "segments":
                _wait_for_writer(stack, path, form)
            # O_NONBLOCK: a fifo in the place of a file must not stop the night.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                if form != "entries":
                    found.faults.append(f"cannot read {path}: no plain file")
                return
            end = status.st_size if form == "entries" else _last_end(fd, status.st_size, form, separator)
            first = _first_record(fd, end, form, separator)
            if first is None:
                return
            key = (server, segment, first_id(first))
            found.seen.add(key)
            before = positions.get(key)
            start = before.offset if before else 0
            if before and (end < start or _tail(fd, start) != before.tail):
                found.faults.append(
                    f"cannot read on in {path}: it changed before byte {start}, up to which it was read; "
                    "was it restored from a backup, or did the server lose power?"
                )
                return
            if end > start:
                found.parts.append(Part(path, server, host, app, segment, key[2], start, end))
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


def _last_end(fd: int, size: int, form: str, separator: bytes) -> int:
    """Return the offset behind the last end of a record."""
    end = b"\n" if form != "separated" else b"\n" + separator + b"\n"
    high = size
    while high > 0:
        low = max(0, high - BLOCK_BYTES)
        # Blocks overlap by an end's length, so that an end that lies across two of them is found.
        block = os.pread(fd, high - low + len(end) - 1, low)
        if (found := block.rfind(end)) >= 0:
            return low + found + len(end)
        high = low
    return 0


def _first_record(fd: int, end: int, form: str, separator: bytes) -> bytes | None:
    if end == 0:
        return None
    size = min(end, 4096)
    while True:
        text = os.pread(fd, size, 0)
        for record, _ in records(text, form, separator):
            return record
        if size >= end:
            return text
        size = min(end, size * 16)


def _tail(fd: int, offset: int) -> str:
    start = max(0, offset - TAIL_BYTES)
    return f"{zlib.crc32(os.pread(fd, offset - start, start)):08x}"
