# SPDX-License-Identifier: Apache-2.0
"""One lock on one file or directory.

A lock is flock(2) on a file that is made once and never removed, or on a directory itself. It excludes every
other user of flock(2) on that file: flock(1), Perl's ``flock``, and programs of another user, who need no more
than read permission. NFS does not carry it from a client to the server's own processes; nothing here relies
on that.

Three ways in:

* `hold` waits in the kernel, so that of many waiting hits each starts the moment it may (a lock that is
  polled costs a waiting hit 50 ms and more);
* `take` and `let_go` do the same with a descriptor that the caller has opened;
* `alone` is for one user's batch jobs; it is filelock's, which a hit has no time to load.

The lock ends when its holder lets go of it or dies. A program that the holder starts never inherits it
(O_CLOEXEC). A child that it forks shares it: the child cannot let go of it, does not keep it once the holder has let
go, and keeps it only where the holder was killed, until the child ends too.

A wait with a time limit uses SIGALRM and its timer in the main thread, and gives the handler back; in another
thread, which has no signals, it polls.

Source: flock(2), setitimer(2), proc_locks(5), filelock documentation.
"""

import _signal
import fcntl
import posix
import time

from infocluster.errors import UnavailableError, reason

POLL_LEAST_S = 0.001
POLL_MOST_S = 0.02
ALARM_AGAIN_S = 0.02
_FLAGS = posix.O_CLOEXEC | posix.O_NOFOLLOW


class _ExpiredError(Exception):
    """The time to wait is over; raised by the alarm, never seen outside."""


class Hold:
    """A lock while it is held: a context manager, made by `hold`."""

    __slots__ = ("fd", "path", "pid", "shared", "timeout_s")

    def __init__(self, path: str, shared: bool, timeout_s: float | None) -> None:
        self.path = path
        self.shared = shared
        self.timeout_s = timeout_s
        self.fd = -1
        self.pid = 0

    def __enter__(self) -> "Hold":
        self.fd = _open(self.path)
        try:
            if not take(self.fd, self.shared, self.timeout_s):
                held_by = holder(self.path)
                waited = "" if not self.timeout_s else f" after {self.timeout_s:g} s"
                raise UnavailableError(f"cannot lock {self.path}{waited}: held by {held_by or 'another process'}")
        except BaseException:
            posix.close(self.fd)
            raise
        self.pid = posix.getpid()
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid == posix.getpid():
            let_go(self.fd)
        else:  # a forked child on its way out: the lock is its parent's
            posix.close(self.fd)


def hold(path: str, shared: bool = False, timeout_s: float | None = None) -> Hold:
    """Return a context manager that holds a lock on a file or directory while it is open.

    A file that is missing is made, empty, mode 0644 less the umask; its directory has to exist.

    Args:
        path: the lock file, or a directory. A symbolic link is refused.
        shared: whether other shared holders may hold it too.
        timeout_s: seconds to wait; 0 tries once, None waits as long as it takes.

    Raises:
        UnavailableError: on entering: still held when the time is over (the message names the holder where
            the kernel tells), or it cannot be opened.
    """
    return Hold(path, shared, timeout_s)


def take(fd: int, shared: bool = False, timeout_s: float | None = None) -> bool:
    """Take a lock on a descriptor that is open already; return whether it was had in time.

    Args:
        fd: a file or directory, opened for reading at least; with ``O_CLOEXEC``, or a program it starts inherits it.
        shared: whether other shared holders may hold it too.
        timeout_s: seconds to wait; 0 tries once, None waits as long as it takes.

    Returns:
        False when the time is over; nothing is held then.

    Raises:
        OSError: as flock(2).
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if timeout_s is not None and timeout_s <= 0:
            return False
    if timeout_s is None:
        fcntl.flock(fd, operation)
        return True
    return _taken_in_time(fd, operation, timeout_s)


def let_go(fd: int) -> None:
    """Give back the lock that `take` took, and close its descriptor.

    Forked children may have the descriptor open still: the lock ends for them too.

    Raises:
        OSError: as flock(2) and close(2).
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        posix.close(fd)


def alone(path: str) -> "filelock.BaseFileLock":  # type: ignore[name-defined] # noqa: F821
    """Take a lock at once and return it, to be released by its ``release()`` or the end of the process.

    Args:
        path: the lock file, in a directory that only its user can write.

    Raises:
        UnavailableError: another process of this user holds it, and is named where the kernel tells.
    """
    import filelock

    lock = filelock.FileLock(path, timeout=0, mode=0o640, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UnavailableError(f"cannot lock {path}: held by {holder(path) or 'another process'}") from None
    except OSError as error:
        raise UnavailableError(f"cannot lock {path}: {reason(error)}") from error
    return lock


def holder(path: str) -> str | None:
    """Return who holds a lock on a file, such as ``pid 4711 (survey.cgi)``, or None where it cannot be known."""
    try:
        status = posix.stat(path)
        wanted = f"{posix.major(status.st_dev):02x}:{posix.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks", encoding="ascii", errors="replace") as table:
            for line in table:
                fields = line.split()
                # A line of a waiter has "->" behind its number.
                if fields[1] == "FLOCK" and fields[5] == wanted and fields[4] != "0":
                    return f"pid {fields[4]} ({_program(fields[4])})"
    except (OSError, IndexError):
        return None
    return None


def _program(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "of another user or host"


def _open(path: str) -> int:
    try:
        try:
            return posix.open(path, posix.O_RDWR | _FLAGS)
        except FileNotFoundError:
            return _made(path)
        except (PermissionError, IsADirectoryError):
            return posix.open(path, posix.O_RDONLY | _FLAGS)
    except OSError as error:
        raise UnavailableError(f"cannot open the lock {path}: {reason(error)}") from error


def _made(path: str) -> int:
    # Only now O_CREAT: in a sticky directory the kernel refuses it on another user's file
    # (fs.protected_regular, proc_sys_fs(5)).
    try:
        return posix.open(path, posix.O_RDWR | posix.O_CREAT | _FLAGS, 0o644)
    except PermissionError as denied:
        # RACE: another user makes it between our two attempts: it is there now, and ours to read only.
        try:
            return posix.open(path, posix.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            raise denied from None


def _taken_in_time(fd: int, operation: int, timeout_s: float) -> bool:
    try:
        before = _signal.signal(_signal.SIGALRM, _expire)
    except ValueError:  # not the main thread, which alone has signals
        return _polled(fd, operation, timeout_s)
    try:
        # RACE: the alarm may come after the interpreter last looked for one and before the kernel begins to wait:
        # nothing would ever end that wait. Therefore it comes again until it is heard.
        _signal.setitimer(_signal.ITIMER_REAL, timeout_s, ALARM_AGAIN_S)
        fcntl.flock(fd, operation)
        # RACE: the alarm may come between these two lines; the lock that was just taken is then given back.
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        return True
    except _ExpiredError:
        fcntl.flock(fd, fcntl.LOCK_UN)
        return False
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, before)


def _expire(*_: object) -> None:
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    raise _ExpiredError


def _polled(fd: int, operation: int, timeout_s: float) -> bool:
    end, pause_s = time.monotonic() + timeout_s, POLL_LEAST_S
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, POLL_MOST_S)
