# SPDX-License-Identifier: Apache-2.0
"""The write side of reports: into this server's gather queue, once and durable.

Shape: ``$SERVER_GATHER/<app>/`` is a simple directory queue whose elements are messages (`wire`).
    ``$SERVER_GATHER/<app>.nodes/NODE`` holds the ids that came from a node lately, one a line; what was there before
    the file grew over 64 KiB is in ``NODE~``, which is no node's name. A report whose id stands there is a duplicate.

Both are done under a lock on the node's file: the queue first, the id behind it. RACE: killed in between, the same
report is put into the queue again when its node, which was not answered, sends it again; the controller takes the
second one for a duplicate, by the same id.

A hit loads this module: it stays with `posix`.

Source: documentation of the simple directory queue.
"""

import posix

from infocluster import files, names
from infocluster.errors import UnavailableError, reason
from infocluster.locks import lockfile
from infocluster.queue.simple import Simple

IDS_LIMIT_BYTES = 1 << 16
LOCK_TIMEOUT_S = 10.0
ASIDE = "~"
_FLAGS = posix.O_RDWR | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW


def queue_dir(app: str, directory: str) -> str:
    """Return the queue's directory.

    Args:
        app: its name.
        directory: the gather directory, what SERVER_GATHER names.

    Raises:
        UnavailableError: that is none.
        UsageError: the name is none.
    """
    names.name(app, "an application's name")
    if not directory.startswith("/"):
        raise UnavailableError("cannot take reports: SERVER_GATHER names no directory (the web server has to set it)")
    return f"{directory}/{app}"


def put(queue: str, node: str, message_id: str, message: bytes, keep_s: float, now: float, durable: bool) -> bool:
    """Put a report into the queue; return False where it came before.

    Args:
        queue: the queue's directory.
        node: whose report it is.
        message_id: the message's Id.
        message: the message.
        keep_s: seconds that an id is remembered at least: as long as a request can be repeated.
        now: Unix time, s.
        durable: whether it is on the disk when this returns.

    Raises:
        UnavailableError: it could not be kept; the node has to send it again.
    """
    own = f"{queue}.nodes/{names.name(node, 'the name of a node')}"
    line = message_id.encode("ascii") + b"\n"
    try:
        fd = _opened(own)
        try:
            if not lockfile.take(fd, timeout_s=LOCK_TIMEOUT_S):
                raise UnavailableError(f"cannot lock {own} after {LOCK_TIMEOUT_S:g} s")
            if not _is_there(own, fd):
                # RACE: another hit moved it aside while we waited: the ids are in two files now.
                return put(queue, node, message_id, message, keep_s, now, durable)
            text = _whole(fd)
            if _has(text, line) or _has(_before(own), line):
                return False
            Simple(queue, umask=0o022, durable=durable).add(message)
            size = len(text)
            if size and text[-1:] != b"\n":
                line = b"\n" + line
            files.write_all(fd, line)
            if size > IDS_LIMIT_BYTES:
                _rotate(own, keep_s, now)
        finally:
            posix.close(fd)
    except OSError as error:
        raise UnavailableError(f"cannot put a report of {node} into {queue}: {reason(error)}") from error
    return True


def _opened(own: str) -> int:
    try:
        return posix.open(own, _FLAGS | posix.O_CREAT, 0o644)
    except FileNotFoundError:
        parent = own.rpartition("/")[0]
        try:
            posix.mkdir(parent, 0o755)
        except FileExistsError:  # RACE: another hit made it in between
            return posix.open(own, _FLAGS | posix.O_CREAT, 0o644)
        return posix.open(own, _FLAGS | posix.O_CREAT, 0o644)


def _is_there(own: str, fd: int) -> bool:
    try:
        return posix.stat(own).st_ino == posix.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _has(text: bytes, line: bytes) -> bool:
    return text.startswith(line) or b"\n" + line in text


def _whole(fd: int) -> bytes:
    size = posix.fstat(fd).st_size
    return posix.pread(fd, size, 0) if size else b""


def _before(own: str) -> bytes:
    try:
        return files.read(own + ASIDE)
    except FileNotFoundError:
        return b""


def _rotate(own: str, keep_s: float, now: float) -> None:
    """Move the ids aside, unless those that were moved last can still be asked for."""
    try:
        if now < posix.stat(own + ASIDE).st_mtime + 2 * keep_s:
            return
    except FileNotFoundError:
        pass
    posix.rename(own, own + ASIDE)
    posix.utime(own + ASIDE, (now, now))
