# SPDX-License-Identifier: Apache-2.0
"""Locks on paths of the production tree: a directory covers what is below it, a file blocks its parents.

Two paths conflict when they are equal or one is above the other, component by component: ``world/a`` conflicts
with ``world`` and with ``world/a/b.html``, never with ``world/ab``. Two requests conflict when a path of one
conflicts with a path of the other. The tree's name (``world``) stands for the whole tree, and `ALL`, the empty
path, for every tree: it lies above all paths.

A request takes all of its paths or none, in the order of arrival: it waits for every earlier request, holding
or waiting, that it conflicts with, so that files that keep coming never starve a directory; the others pass at
once. Requests wait for earlier ones only, so that they alone never wait in a circle; a process that would close
one because it holds other paths meanwhile is refused.

Shape: ``DIRECTORY/NUMBER.ticket``, one file a request, NUMBER of 16 decimal digits in the order of arrival, mode
    0660, such as ``0000000000000007.ticket``, one JSON object in UTF-8::

        {"user": "www", "host": "info", "pid": 4711, "paths": ["world/survey"], "since": 1763838251.25}

    ``paths`` sorted, none below another, ``""`` for `ALL`; ``since`` the Unix time of its arrival. The requester
    holds an exclusive flock(2) on it for as long as it waits and holds: a ticket whose flock is free is dead,
    whatever became of its process, and the next newcomer removes it. A live ticket that cannot be understood
    counts as `ALL`. A ticket is written, and locked, under a name that begins with ``.~``, before it gets its own.

    DIRECTORY itself, mode 2770, is the mutex: who adds a ticket holds an exclusive flock on it meanwhile, a
    millisecond or so. ``flock DIRECTORY COMMAND`` keeps all newcomers out. Never remove a live ticket by hand.

Who shares the locks is the directory's group: all tickets are its to read and to write, whatever umasks are.
Like every lock here it is the kernel's of one host; DIRECTORY lies on a local disk. Paths are compared as text:
two names that links make of one file are two paths.

RACE: a holder ends while a newcomer looks. It removes its ticket, then lets go of the flock. The newcomer misses
    the ticket, or opens it and finds the flock free, or waits for that flock and gets it: in each case the
    holder's work was over before it removed anything.
RACE: a ticket is removed between a waiter's look and its open. It has ended: the same as above.
RACE: a number is given again after its ticket is gone. A waiter waits for numbers below its own only, and new ones
    are above every live one, the waiter's own among them: a number it waits for is never given again.
RACE: a newcomer or `holders` tries a ticket's flock (shared) at the moment its owner wants it. The owner took it
    before the ticket had a name that anybody tries, and never takes it twice.
RACE: two requests arrive at once. The mutex puts one first; the second sees the first one's ticket.
RACE: a newcomer is killed under the mutex. The kernel frees the mutex; a ticket without its final name is removed
    by the next newcomer, since under the mutex nobody else can be writing one; a ticket with its name is dead.

A child that a holder forks has no part in its locks: it closes them at once, neither keeps nor ends them.

Source: flock(2), rename(2), inode(7) (set-group-ID), the wwwpush documentation.
"""

import json
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from infocluster import files, names
from infocluster.errors import RefusedError, UnavailableError, UsageError, reason
from infocluster.locks import lockfile

ALL = ""
HOLDS = "holds"
WAITS = "waits"
SUFFIX = ".ticket"
DIGITS = 16
DIRECTORY_MODE = 0o2770
TICKET_MODE = 0o660
# How long the mutex may be busy before somebody is told; it is busy for milliseconds.
MUTEX_S = 5.0
PATHS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One request for paths: whose, for what, since when, and how it stands.

    Shape: ``paths`` as in the ticket; ``since`` in Unix seconds; ``state`` is ``"holds"`` or ``"waits"``;
        ``waits_for`` has the numbers of the earlier requests it conflicts with, lowest first.
    """

    number: int
    user: str
    host: str
    pid: int
    paths: tuple[str, ...]
    since: float
    waits_for: tuple[int, ...] = ()

    @property
    def state(self) -> str:
        """Return whether it holds its paths or waits for them."""
        return WAITS if self.waits_for else HOLDS

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        verb = "waits for" if self.waits_for else "holds"
        return f"{who(self)} {verb} {listed(self.paths)} since {since}"


def who(request: Request) -> str:
    """Return whose request it is, such as ``www@info (pid 4711)``."""
    return f"{names.printable(request.user)}@{names.printable(request.host)} (pid {request.pid})"


def listed(paths: Sequence[str], limit: int | None = PATHS_SHOWN) -> str:
    """Return paths for a person, such as ``world/a, world/b and 7 more``; `ALL` is shown as ``everything``.

    Args:
        paths: the paths of a request.
        limit: how many are named; None names all.
    """
    words = [names.printable(path) if path else "everything" for path in paths[:limit]]
    more = len(paths) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def conflicts(paths: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether a path of one list is, or lies above or below, a path of the other.

    Args:
        paths: paths in their normal form (`names.tree_path`), or `ALL`.
        others: the same.
    """
    return _reach(paths, frozenset(others)) or _reach(others, frozenset(paths))


def _reach(paths: Sequence[str], others: frozenset[str]) -> bool:
    """Tell whether a path or one above it is among the others."""
    return any(step in others for path in paths for step in _upwards(path))


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = _parent(path)
    yield ALL


def normal(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of a request as its ticket has them: sorted, none twice, none below another.

    Args:
        paths: paths relative to the trees, such as ``world/survey``, or `ALL`.

    Raises:
        UsageError: there is none, or one is not a path (`names.tree_path`).
    """
    if isinstance(paths, str):
        raise UsageError(f"cannot lock {names.shown(paths)}: expected a list of paths")
    asked = {names.tree_path(path) if path != ALL else ALL for path in paths}
    if not asked:
        raise UsageError("cannot lock nothing: expected at least one path")
    return tuple(sorted(path for path in asked if not path or not _reach([_parent(path)], frozenset(asked))))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def hold(
    paths: Sequence[str],
    timeout_s: float | None = None,
    *,
    directory: str,
    say: Callable[[str], None] = _say,
) -> Iterator[None]:
    """Hold paths while the context is open: all of them or none, in the order of arrival.

    Threads of one process count as one: what one of them has, another is refused.

    Args:
        paths: such as ``["world/survey", "world/index.html"]``; ``[ALL]`` for everything there is.
        timeout_s: seconds to wait; 0 tries once, None waits as long as it takes.
        directory: where the tickets are, such as STATE_DIR/pathlocks; made when it is missing.
        say: gets a line for every request that has to be waited for, before the wait.

    Raises:
        UsageError: there is no path, or one is no path.
        RefusedError: this process has a conflicting path already, or waiting while it holds what it has would
            close a circle of processes that wait for one another.
        UnavailableError: the time is over (the message names who holds them), or a ticket cannot be written or read.
    """
    wanted = normal(paths)
    directory = os.path.realpath(directory)
    end = None if timeout_s is None else time.monotonic() + timeout_s
    ticket, earlier = _arrive(directory, wanted, end, say)
    try:
        _wait(ticket, earlier, timeout_s, end, say)
        yield
    finally:
        ticket.leave()


def holders(directory: str) -> list[Request]:
    """Return who holds paths and who waits for them, in the order of arrival, without taking anything.

    It is a look at one moment while others come and go. Nothing is written, no dead ticket removed.

    Args:
        directory: where the tickets are; one that is missing has none.

    Raises:
        UnavailableError: the directory or a ticket cannot be read.
    """
    live: list[Request] = []
    for number in sorted(filter(None, map(_number, _entries(directory)))):
        request = _look(directory, number)
        if request is not None:
            waits_for = tuple(other.number for other in live if conflicts(request.paths, other.paths))
            live.append(replace(request, waits_for=waits_for))
    return live


class _Ticket:
    """One request of this process, from its arrival to its end."""

    __slots__ = ("directory", "fd", "number", "paths")

    def __init__(self, directory: str, number: int, paths: tuple[str, ...], fd: int) -> None:
        self.directory = directory
        self.number = number
        self.paths = paths
        self.fd = fd
        _MINE.add(self)

    def leave(self) -> None:
        """End the request. In a forked child, which has closed it, there is nothing to end."""
        if self not in _MINE:
            return
        _MINE.remove(self)
        try:
            # First the name, then the flock: see the first RACE above.
            with suppress(FileNotFoundError):
                os.unlink(_file(self.directory, self.number))
        finally:
            lockfile.let_go(self.fd)


# The live requests of this process. It is no memory of what was done, but of which descriptors are open: the kernel
# cannot tell a process from its forked child, or one pid from the same in another container, and this can.
_MINE: set[_Ticket] = set()


def _forget() -> None:
    for ticket in _MINE:
        os.close(ticket.fd)
    _MINE.clear()


os.register_at_fork(after_in_child=_forget)


def _arrive(
    directory: str, wanted: tuple[str, ...], end: float | None, say: Callable[[str], None]
) -> tuple[_Ticket, list[Request]]:
    """Under the mutex: drop what is dead, refuse what would never end, leave a ticket of our own."""
    if not os.path.isdir(directory):
        _make(directory)
    with _mutex(directory, wanted, end, say):
        _sweep(directory)
        live = holders(directory)
        earlier = [request for request in live if conflicts(wanted, request.paths)]
        _refuse_circle(directory, wanted, earlier, live)
        if earlier and end is not None and end <= time.monotonic():
            raise UnavailableError(f"cannot lock {listed(wanted)}: {earlier[0]}")
        number = max((request.number for request in live), default=0) + 1
        return _written(directory, number, wanted), earlier


def _make(directory: str) -> None:
    """Make the directory of the tickets with the mode it has to have, whatever the umask is."""
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
def _mutex(directory: str, wanted: tuple[str, ...], end: float | None, say: Callable[[str], None]) -> Iterator[None]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(f"cannot open {directory}: {reason(error)}") from error
    try:
        left_s = 0.0 if end is None else end - time.monotonic()
        if not lockfile.take(fd, timeout_s=max(left_s, MUTEX_S)):
            held = f"{listed(wanted)}: {directory} is locked by {lockfile.holder(directory) or 'another process'}"
            if end is not None:
                raise UnavailableError(f"cannot lock {held}")
            say(f"waiting for {held}")
            lockfile.take(fd)
        yield
    finally:
        lockfile.let_go(fd)


def _sweep(directory: str) -> None:
    """Remove what processes left that were killed; under the mutex, so that nobody is just writing it."""
    for entry in _entries(directory):
        number = _number(entry)
        if files.is_temporary(entry) or (number and _look(directory, number) is None):
            try:
                os.unlink(f"{directory}/{entry}")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UnavailableError(f"cannot remove {directory}/{entry}: {reason(error)}") from error


def _refuse_circle(directory: str, wanted: tuple[str, ...], earlier: list[Request], live: list[Request]) -> None:
    """Raise if this process would wait for itself, or for one that waits for it.

    Whom a request waits for is settled when it arrives, so that the last arrival closes every circle there is.
    """
    mine = {ticket.number for ticket in list(_MINE) if ticket.directory == directory}
    for request in earlier:
        if request.number in mine:
            raise RefusedError(f"cannot lock {listed(wanted)}: this process has {listed(request.paths)} already")
    by_number = {request.number: request for request in live}
    ahead, seen = list(earlier) if mine else [], set()
    while ahead:
        process = _process(ahead.pop())
        if process in seen:
            continue
        seen.add(process)
        for request in live:
            if _process(request) != process:
                continue
            if mine.intersection(request.waits_for):
                held = listed([path for number in sorted(mine) for path in by_number[number].paths])
                raise UnavailableError(f"cannot lock {listed(wanted)} while holding {held}: {request}, so for us")
            ahead += [by_number[number] for number in request.waits_for]


def _process(request: Request) -> tuple[str, int, int]:
    # One that cannot be understood stands for itself alone.
    return (request.host, request.pid, 0 if request.pid else request.number)


def _written(directory: str, number: int, wanted: tuple[str, ...]) -> _Ticket:
    shape = {"user": _user(), "host": os.uname().nodename, "pid": os.getpid(), "paths": wanted, "since": time.time()}
    temporary = f"{directory}/{files.temporary_name(str(number))}"
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            lockfile.take(fd)
            os.fchmod(fd, TICKET_MODE)
            files.write_all(fd, json.dumps(shape).encode() + b"\n")
            os.rename(temporary, _file(directory, number))
            return _Ticket(directory, number, wanted, fd)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            lockfile.let_go(fd)
            raise
    except OSError as error:
        raise UnavailableError(f"cannot write a ticket in {directory}: {reason(error)}") from error


def _wait(
    ticket: _Ticket,
    earlier: list[Request],
    timeout_s: float | None,
    end: float | None,
    say: Callable[[str], None],
) -> None:
    """Wait until all earlier requests are over, one after the other, in the kernel."""
    for request in earlier:
        fd = _opened(ticket.directory, request.number)
        if fd is None:
            continue
        try:
            if lockfile.take(fd, shared=True, timeout_s=0):
                continue
            say(f"waiting for {listed(ticket.paths)}: {_now(ticket.directory, request)}")
            left_s = None if end is None else end - time.monotonic()
            if not lockfile.take(fd, shared=True, timeout_s=left_s):
                now = _now(ticket.directory, request)
                raise UnavailableError(f"cannot lock {listed(ticket.paths)} after {timeout_s:g} s: {now}")
        finally:
            os.close(fd)


def _now(directory: str, request: Request) -> Request:
    """Return how a request stands by now: one that waited may hold."""
    return next((now for now in holders(directory) if now.number == request.number), request)


def _look(directory: str, number: int) -> Request | None:
    """Return a live request, or None where its process has ended."""
    fd = _opened(directory, number)
    if fd is None:
        return None
    try:
        if lockfile.take(fd, shared=True, timeout_s=0):
            return None
        with open(fd, "rb", closefd=False) as stream:
            content = stream.read()
        return _understood(number, content) or Request(number, "unknown", "unknown", 0, (ALL,), os.fstat(fd).st_mtime)
    finally:
        os.close(fd)


def _opened(directory: str, number: int) -> int | None:
    try:
        return os.open(_file(directory, number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(f"cannot read {_file(directory, number)}: {reason(error)}") from error


def _understood(number: int, content: bytes) -> Request | None:
    try:
        shape = json.loads(content)
        user, host, pid, since = str(shape["user"]), str(shape["host"]), int(shape["pid"]), float(shape["since"])
        return Request(number, user, host, pid, normal(shape["paths"]), since)
    except (ValueError, TypeError, KeyError, AttributeError, UsageError):
        return None


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


def _file(directory: str, number: int) -> str:
    return f"{directory}/{number:0{DIGITS}}{SUFFIX}"


def _user() -> str:
    """Return who asks: whoever called sudo, as far as the environment tells, or the user this runs as."""
    called_by = os.environ.get("SUDO_USER", "")
    if names.is_name(called_by):
        return called_by
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
