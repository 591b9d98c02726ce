# SPDX-License-Identifier: Apache-2.0
"""The write side of gather: append a record to the day's segment, whole and once.

Shape: a segment ``$SERVER_GATHER/<app>/<YYYY-MM-DD>.jsonl`` holds the records of one day (UTC), one JSON object
    a line in UTF-8, each with at least ``id`` (16 or more hexadecimal digits, unique) and ``time`` (Unix seconds;
    its day is the segment's):

    {"id":"5f0c2a9be7d14c33","time":1795384800.25,"agent":"Mozilla/5.0 (X11; Linux x86_64; rv:145.0)"}

Writers hold ``$SERVER_GATHER/<app>.lock``. A line without its end was torn by a crash and was never
acknowledged: the next writer ends it, and the reader counts it as no record.

A segment that changed before the place up to which it was read (restored from a backup, or its end lost with the
power where ``durable`` is false) is told by every night and read no further, since nobody but a person can say which
of its lines were counted. They are those whose ``time`` lies before the last night that told nothing of it. As the
server's user, on the server, take them out, here the first 512: what is left is a new segment, and read from its
start. Of a form one line is enough, since its answers are known by their ids. Where gather-pull fetches the files,
remove the copy as well.

    cd $SERVER_GATHER && flock survey.lock sed -i 1,512d survey/2026-11-22.jsonl

A hit loads this module: it stays with `posix`.

An application may use a simple directory queue instead (see `queue.simple`): an element a record, the same line.

Source: gather documentation; RFC 8259; JSON Lines; open(2), fsync(2).
"""

import posix
import time

from infocluster import files, names
from infocluster.errors import BadInputError, UnavailableError, reason
from infocluster.locks import lockfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SEGMENTS = "segments"
QUEUE = "queue"
_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o644


def append(
    app: str,
    record: "dict[str, Any]",
    settings: "dict[str, Any]",
    directory: str | None = None,
    store: str = SEGMENTS,
) -> str:
    """Append one record to an application's segment of the day and return its id.

    When this returns, the record is in the segment once and whole and, with ``durable``, on the disk.

    Args:
        app: the application's name.
        record: what to keep: names to texts, numbers, true, false, None, lists and dictionaries of those. ``id``
            and ``time`` are added where it has none.
        settings: the section ``[gather]``: ``durable``, ``lock_timeout_s``, ``limit_bytes``.
        directory: the gather directory; by default what SERVER_GATHER names.
        store: `SEGMENTS`, or `QUEUE` to add it as an element to a directory queue ``<directory>/<app>``.

    Raises:
        UsageError: the name is none.
        BadInputError: the record cannot be written as JSON, or is over ``limit_bytes``.
        UnavailableError: no directory, no permission, disk full, lock held too long. The segment is then as it
            was, or, where only the fsync failed, holds the record whole.
    """
    names.name(app, "an application's name")
    if directory is None:
        directory = posix.environ.get(b"SERVER_GATHER", b"").decode("utf-8", "surrogateescape")
    if not directory.startswith("/"):
        raise UnavailableError("cannot gather: SERVER_GATHER names no directory (the web server has to set it)")
    now = time.time()
    record_id = record.get("id") or posix.urandom(12).hex()
    when = record.get("time", now)
    if not isinstance(when, (int, float)) or not isinstance(record_id, str):
        raise BadInputError(f"cannot gather a record for {app}: its id is no text or its time is no number")
    content = line({"id": record_id, "time": when, **record})
    if len(content) > settings["limit_bytes"]:
        raise BadInputError(
            f"cannot gather a record for {app}: {len(content)} bytes, and {settings['limit_bytes']} are allowed"
        )
    if store == QUEUE:
        from infocluster.queue.simple import Simple

        # A queue makes its own directory, and what is missing above it: not where a file system is not mounted.
        try:
            posix.stat(directory)
        except OSError as error:
            raise UnavailableError(f"cannot add to {directory}/{app}: {reason(error)}") from error
        Simple(f"{directory}/{app}", durable=settings["durable"]).add(content)
        return record_id
    day = time.strftime("%Y-%m-%d", time.gmtime(when))
    segment = f"{directory}/{app}/{day}.jsonl"
    try:
        with lockfile.hold(f"{directory}/{app}.lock", timeout_s=settings["lock_timeout_s"]):
            fd = _append(segment, content)
        # Not under the lock: hits that wait for the disk wait together.
        try:
            if settings["durable"]:
                posix.fsync(fd)
        finally:
            posix.close(fd)
    except OSError as error:
        raise UnavailableError(f"cannot append to {segment}: {reason(error)}") from error
    return record_id


def line(record: "dict[str, Any]") -> bytes:
    """Return a record as one line of JSON in UTF-8, the same as ``json.dumps`` makes it without blanks.

    Args:
        record: names to values. A character that UTF-8 has no bytes for becomes ``?``.

    Raises:
        BadInputError: a value is of a type that JSON has not, or a number that is none.
    """
    parts = []
    for name, value in record.items():
        text = _plain(value)
        if not text:
            return _library_line(record)
        parts.append(f"{_quoted(name)}:{text}")
    return ("{" + ",".join(parts) + "}\n").encode("utf-8", "replace")


def _plain(value: "Any") -> str:
    """Return a text, number, true, false or list of texts as JSON; "" for anything else, which the library takes."""
    if type(value) is str:
        return _quoted(value)
    if type(value) is int or (type(value) is float and value - value == 0):
        return repr(value)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is list and all(type(item) is str for item in value):
        return "[" + ",".join([_quoted(item) for item in value]) + "]"
    return ""


def _quoted(text: str) -> str:
    """Return a text as JSON: in quotes as it is where nothing in it needs escaping, else by the library."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    try:
        from _json import encode_basestring  # the C half of json: a quarter of the price
    except ImportError:  # another Python
        from json.encoder import encode_basestring
    return encode_basestring(text)


def _library_line(record: "dict[str, Any]") -> bytes:
    import json

    try:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(f"cannot write a record as JSON: {error}") from None
    return (text + "\n").encode("utf-8", "replace")


def _append(segment: str, content: bytes) -> int:
    """Write a line at the end of a segment and return the open descriptor, or leave the segment as it was."""
    flags = posix.O_RDWR | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW
    is_new = False
    try:
        fd = posix.open(segment, flags)
    except FileNotFoundError:
        parent = segment.rpartition("/")[0]
        try:
            posix.mkdir(parent, _DIRECTORY_MODE)
            files.sync_directory(parent.rpartition("/")[0])
        except FileExistsError:
            pass
        fd = posix.open(segment, flags | posix.O_CREAT | posix.O_EXCL, _FILE_MODE)
        is_new = True
    try:
        size = posix.fstat(fd).st_size
        if size and posix.pread(fd, 1, size - 1) != b"\n":
            content = b"\n" + content
        try:
            files.write_all(fd, content)
            if is_new:
                files.sync_directory(segment.rpartition("/")[0])
        except BaseException:
            posix.ftruncate(fd, size)
            if is_new:
                posix.unlink(segment)
            raise
    except BaseException:
        posix.close(fd)
        raise
    return fd
