# SPDX-License-Identifier: Apache-2.0
"""One lock on one file or directory.

A lock is flock(2) on a file that is made once and never removed, or on a directory itself. It excludes every
other user of flock(2) on that file: flock(1), Perl's ``flock``, and programs of another user, who need no more
than read permission. NFS does not carry it from a client to the server's own processes; nothing here relies
on that.

Two ways in:

* `hold` waits in the kernel, so that of many waiting hits each starts the moment it may (a lock that is
  polled costs a waiting hit 50 ms and more);
* `alone` is for one user's batch jobs; it is filelock's, which a hit has no time to load.

Source: flock(2), setitimer(2), proc_locks(5), filelock documentation.
"""

import _signal
import fcntl
import posix
import time

from infocluster.errors import UnavailableError, reason

POLL_LEAST_S = 0.001
POLL_MOST_S = 0.02


class _ExpiredError(Exception):
    """The time to wait is over; raised by the alarm, never seen outside."""


class Hold:
    """A lock while it is held: a context manager, made by `hold`."""

    __slots__ = ("fd", "path", "shared", "timeout_s")

    def __init__(self, path: str, shared: bool, timeout_s: float | None) -> None:
        self.path = path
        self.shared = shared
        self.timeout_s = timeout_s
        self.fd = -1

    def __enter__(self) -> "Hold":
        self.fd = _open(self.path)
        try:
            if not _acquired(self.fd, fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX, self.timeout_s):
                held_by = holder(self.path)
                waited = "" if not self.timeout_s else f" after {self.timeout_s:g} s"
                raise UnavailableError(f"cannot lock {self.path}{waited}: held by {held_by or 'another process'}")
        except BaseException:
            posix.close(self.fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
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
    flags = posix.O_CLOEXEC | posix.O_NOFOLLOW
    try:
        try:
            return posix.open(path, posix.O_RDWR | flags)
        except FileNotFoundError:
            # Only now O_CREAT: in a sticky directory the kernel refuses it on another user's file
            # (fs.protected_regular, proc_sys_fs(5)).
            return posix.open(path, posix.O_RDWR | posix.O_CREAT | flags, 0o644)
        except (PermissionError, IsADirectoryError):
            return posix.open(path, posix.O_RDONLY | flags)
    except OSError as error:
        raise UnavailableError(f"cannot open the lock {path}: {reason(error)}") from error


def _acquired(fd: int, operation: int, timeout_s: float | None) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if timeout_s == 0:
            return False
    if timeout_s is None:
        fcntl.flock(fd, operation)
        return True
    try:
        before = _signal.signal(_signal.SIGALRM, _expire)
    except ValueError:  # not the main thread, which alone has signals
        return _polled(fd, operation, timeout_s)
    try:
        _signal.setitimer(_signal.ITIMER_REAL, timeout_s)
        fcntl.flock(fd, operation)
        # RACE: the alarm may come between these two lines; the lock that was just taken is then given back.
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        return True
    except _ExpiredError:
        return False
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, before)


def _expire(*_: object) -> None:
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
