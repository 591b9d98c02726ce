# SPDX-License-Identifier: Apache-2.0
"""Tickets: requests of several processes in the order of their arrival, each alive as long as its process wants it.

What a request is for, and whom it waits for, is up to the module that uses the tickets: `pathlocks`, `slots`.

Shape: ``DIRECTORY/NUMBER.ticket``, one file a request, NUMBER of 16 decimal digits in the order of arrival, mode
    0660, such as ``0000000000000007.ticket``, one JSON object in UTF-8 that says who asks and since when (Unix
    time), with what the using module adds::

        {"user": "www", "host": "info", "pid": 4711, "since": 1763838251.25}

    The requester holds an exclusive flock(2) on it for as long as the request lives: a ticket whose flock is free
    is dead, whatever became of its process, and the next newcomer removes it. A ticket is written, and locked,
    under a name that begins with ``.~``, before it gets its own.

    DIRECTORY itself, mode 2770, is the mutex: who adds a ticket holds an exclusive flock on it meanwhile, a
    millisecond or so. ``flock DIRECTORY COMMAND`` keeps all newcomers out. Never remove a live ticket by hand.

Who shares the tickets is the directory's group: all are its to read and to write, whatever umasks are. Like every
lock here they are the kernel's of one host; DIRECTORY lies on a local disk.

RACE: a request ends while a newcomer looks. It removes its ticket, then lets go of the flock. The newcomer misses
    the ticket, or opens it and finds the flock free, or waits for that flock and gets it: in each case the
    work under that request was over before it removed anything.
RACE: a ticket is removed between a waiter's look and its open. It has ended: the same as above.
RACE: a number is given again after its ticket is gone. A waiter waits for numbers below its own only, and new ones
    are above every live one, the waiter's own among them: a number it waits for is never given again.
RACE: a newcomer or an onlooker tries a ticket's flock (shared) at the moment its owner wants it. The owner took it
    before the ticket had a name that anybody tries, and never takes it twice.
RACE: two requests arrive at once. The mutex puts one first; the second sees the first one's ticket.
RACE: a newcomer is killed under the mutex. The kernel frees the mutex; a ticket without its final name is removed
    by the next newcomer, since under the mutex nobody else can be writing one; a ticket with its name is dead.

A child that a requester forks has no part in its tickets: it closes them at once, neither keeps nor ends them.

Source: flock(2), rename(2), inode(7) (set-group-ID).
"""

import json
import os
import pwd
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from infocluster import files, names
from infocluster.errors import UnavailableError, reason
from infocluster.locks import lockfile

HOLDS = "holds"
WAITS = "waits"
SUFFIX = ".ticket"
DIGITS = 16
DIRECTORY_MODE = 0o2770
TICKET_MODE = 0o660
# How long the mutex may be busy before somebody is told; it is busy for milliseconds.
MUTEX_S = 5.0

Say = Callable[[str], None]


class Asker:
    """Whose request it is; ``pid`` is 0 where that cannot be understood."""

    __slots__ = ("host", "number", "pid", "user")

    def __init__(self, number: int, user: str, host: str, pid: int) -> None:
        self.number = number
        self.user = user
        self.host = host
        self.pid = pid


def who(asker: Asker) -> str:
    """Return whose request it is, such as ``www@info (pid 4711)``."""
    return f"{names.printable(asker.user)}@{names.printable(asker.host)} (pid {asker.pid})"


def local(seconds: float) -> str:
    """Return a Unix time as people here write it, such as ``2025-11-22 19:04:11``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def origin() -> dict[str, Any]:
    """Return what every ticket says first: user, host and pid of this process."""
    return {"user": user(), "host": os.uname().nodename, "pid": os.getpid()}


class Ticket:
    """One request of this process, from its arrival to its end."""

    __slots__ = ("directory", "fd", "number")

    def __init__(self, directory: str, number: int, fd: int) -> None:
        self.directory = directory
        self.number = number
        self.fd = fd
        _MINE.add(self)

    def note(self, shape: dict[str, Any]) -> None:
        """Add a line to what the ticket says; nothing that anybody relies on.

        Raises:
            UnavailableError: it cannot be written; part of the line may be.
        """
        try:
            files.write_all(self.fd, _line(shape))
        except OSError as error:
            raise UnavailableError(f"cannot write {file(self.directory, self.number)}: {reason(error)}") from error

    def leave(self) -> None:
        """End the request. In a forked child, which has closed it, there is nothing to end."""
        if self not in _MINE:
            return
        _MINE.remove(self)
        try:
            # First the name, then the flock: see the first RACE above.
            with suppress(FileNotFoundError):
                os.unlink(file(self.directory, self.number))
        finally:
            lockfile.let_go(self.fd)


# The live requests of this process. It is no memory of what was done, but of which descriptors are open: the kernel
# cannot tell a process from its forked child, or one pid from the same in another container, and this can.
_MINE: set[Ticket] = set()


def _forget() -> None:
    for ticket in _MINE:
        os.close(ticket.fd)
    _MINE.clear()


os.register_at_fork(after_in_child=_forget)


def mine(directory: str) -> set[int]:
    """Return the numbers of this process's own live requests in a directory (a real path)."""
    return {ticket.number for ticket in list(_MINE) if ticket.directory == directory}


@contextmanager
def arriving(directory: str, what: str, end: float | None, say: Say, verb: str = "lock") -> Iterator[None]:
    """Hold the mutex of a directory, in which every ticket is alive then; it is made where it is missing.

    Args:
        directory: a real path.
        what: what the newcomer asks for, as messages name it.
        end: when the newcomer gives up, as `time.monotonic` has it; None never. The mutex is waited for a while
            even when that is over.
        say: gets a line when the mutex is not free for long.
        verb: what the newcomer cannot do, as messages say.

    Raises:
        UnavailableError: the directory cannot be made, read or locked in time.
    """
    if not os.path.isdir(directory):
        make(directory)
    with _mutex(directory, what, end, say, verb):
        _sweep(directory)
        yield


def make(directory: str) -> None:
    """Make a directory that is its group's, as that of the tickets, whatever the umask is; one that exists stays.

    Raises:
        UnavailableError: it cannot be made.
    """
    parent, _, name = directory.rpartition("/")
    parent = parent or "/"
    temporary = f"{parent}/{files.temporary_name(name)}"
    try:
        files.make_directories(parent)
        # Under a lock on the parent and a temporary name: it is nobody's before it is everybody's.
        with lockfile.hold(parent):
            if not os.path.isdir(directory):
                os.mkdir(temporary, 0o700)
                os.chmod(temporary, DIRECTORY_MODE)
                os.rename(temporary, directory)
    except OSError as error:
        raise UnavailableError(f"cannot make {directory}: {reason(error)}") from error


@contextmanager
def _mutex(directory: str, what: str, end: float | None, say: Say, verb: str) -> Iterator[None]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(f"cannot open {directory}: {reason(error)}") from error
    try:
        left_s = 0.0 if end is None else end - time.monotonic()
        if not lockfile.take(fd, timeout_s=max(left_s, MUTEX_S)):
            held = f"{what}: {directory} is locked by {lockfile.holder(directory) or 'another process'}"
            if end is not None:
                raise UnavailableError(f"cannot {verb} {held}")
            say(f"waiting for {held}")
            lockfile.take(fd)
        yield
    finally:
        lockfile.let_go(fd)


def _sweep(directory: str) -> None:
    """Remove what processes left that were killed; under the mutex, so that nobody is just writing it."""
    for entry in _entries(directory):
        number = _number(entry)
        if files.is_temporary(entry) or (number and has_ended(directory, number)):
            try:
                os.unlink(f"{directory}/{entry}")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UnavailableError(f"cannot remove {directory}/{entry}: {reason(error)}") from error


def add(directory: str, number: int, shape: dict[str, Any]) -> Ticket:
    """Leave a ticket of our own, under the mutex.

    Args:
        directory: a real path.
        number: above every live one.
        shape: what it says.

    Raises:
        UnavailableError: it cannot be written.
    """
    temporary = f"{directory}/{files.temporary_name(str(number))}"
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            lockfile.take(fd)
            os.fchmod(fd, TICKET_MODE)
            files.write_all(fd, _line(shape))
            os.rename(temporary, file(directory, number))
            return Ticket(directory, number, fd)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            lockfile.let_go(fd)
            raise
    except OSError as error:
        raise UnavailableError(f"cannot write a ticket in {directory}: {reason(error)}") from error


def numbers(directory: str) -> list[int]:
    """Return the numbers of all tickets, dead ones too, in the order of arrival.

    Raises:
        UnavailableError: the directory cannot be read; one that is missing has none.
    """
    return sorted(filter(None, map(_number, _entries(directory))))


def look(directory: str, number: int) -> tuple[bytes, float] | None:
    """Return what a live ticket says and its mtime (Unix time), or None where its request has ended.

    Raises:
        UnavailableError: it cannot be read.
    """
    fd = _opened(directory, number)
    if fd is None:
        return None
    try:
        if lockfile.take(fd, shared=True, timeout_s=0):
            return None
        with open(fd, "rb", closefd=False) as stream:
            return stream.read(), os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def has_ended(directory: str, number: int, timeout_s: float | None = 0) -> bool:
    """Wait, in the kernel, until a request has ended, and return whether it has.

    Args:
        directory: where its ticket is.
        number: its number, which was alive under the mutex.
        timeout_s: seconds to wait; 0 only looks, None waits as long as it takes.

    Raises:
        UnavailableError: its ticket cannot be read.
    """
    fd = _opened(directory, number)
    if fd is None:
        return True
    try:
        return lockfile.take(fd, shared=True, timeout_s=timeout_s)
    finally:
        os.close(fd)


def file(directory: str, number: int) -> str:
    """Return the path of a ticket."""
    return f"{directory}/{number:0{DIGITS}}{SUFFIX}"


def _opened(directory: str, number: int) -> int | None:
    try:
        return os.open(file(directory, number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(f"cannot read {file(directory, number)}: {reason(error)}") from error


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnavailableError(f"cannot read {directory}: {reason(error)}") from error


def _number(entry: str) -> int | None:
    """Return the number of a ticket's name, None where it is no ticket."""
    digits = entry.removesuffix(SUFFIX)
    if len(entry) == DIGITS + len(SUFFIX) and len(digits) == DIGITS and digits.isascii() and digits.isdecimal():
        return int(digits)
    return None


def _line(shape: dict[str, Any]) -> bytes:
    return json.dumps(shape).encode() + b"\n"


def user() -> str:
    """Return who asks: whoever called sudo, as far as the environment tells, or the user this runs as."""
    called_by = os.environ.get("SUDO_USER", "")
    if names.is_name(called_by):
        return called_by
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
