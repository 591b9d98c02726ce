# SPDX-License-Identifier: Apache-2.0
"""The simple directory queue: one file an element, shared with python-dirq, Perl's Directory::Queue and SSM2.

Shape: ``TOP/DDDDDDDD/SSSSSSSSMMMMMR``, such as ``/var/spool/apel/outgoing/6b0365e0/6b0365e03d090b``.
    ``DDDDDDDD`` is an intermediate directory: the time of the addition in Unix seconds, rounded down to the
    granularity, as 8 hexadecimal digits. The element is a file: seconds (8 digits), microseconds (5) and a digit that
    tells adders apart. ``NAME.tmp`` is an element that is not whole yet. ``NAME.lck``, a second link to the element,
    is its lock; the time of the lock is the file's mtime. Everything else in these directories is somebody else's: it
    is never shown, counted or removed, and no other file of ours lies there.

* An element appears under its name by link(2) once it is written and closed, so nobody sees a part of it.
* A lost race is an answer: ``False``, or ``None``. A real error (a full disk, too many open files, no permission) is
  an exception at once, and nothing of the attempt stays.
* `remove` and `unlock` act on the lock that `lock` of this object took, and on no other: a lock that was broken by a
  purge and taken by somebody else has another time.
* Delivery is at least once. A consumer whose work may take longer than the age at which purges break locks (600 s)
  calls `touch` meanwhile.

RACE, known and left, as the format has no better: a consumer that is held up exactly between `remove`'s look at its
lock and the unlink that follows, until a purge breaks the lock for its age, removes an element that somebody else may
have locked by then. It has been consumed by that time; the other one's `get` gives None or a second copy, and its
`remove` False.

RACE: a lock's file appears (link) before its time is set (utime), so for a moment the lock is as old as its element.
Our `purge` looks a second time at such locks. One that another library's purge takes in that moment is lost without a
word: `get` gives None then, or `remove` is False, as above.

A hit that adds loads this module: it stays with `posix`.

Source: Directory::Queue::Simple and python-dirq documentation; SSM2 "adding files"; link(2), proc_sys_fs(5) for
protected_hardlinks.
"""

import posix
import time

from infocluster import files
from infocluster.errors import BadInputError, UnavailableError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

GRANULARITY_S = 60
TEMPORARY_AGE_S = 300.0
LOCK_AGE_S = 600.0
TEMPORARY = ".tmp"
LOCK = ".lck"

_DIGITS = "0123456789abcdef"
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
_READ = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
_KIND, _PLAIN, _FOLDER = 0o170000, 0o100000, 0o040000
# errno(3); the module of these names is one more to load.
_EPERM, _ENOENT, _EEXIST, _ENOTDIR, _ENOTEMPTY = 1, 2, 17, 20, 39
# How often a directory may vanish under an addition, taken by a purge, before that is a fault.
_ATTEMPTS = 100
# A lock that was made this recently may not have its own time yet; how long to wait for that.
_YOUNG_S = 2.0
# No purge breaks a lock that is younger than this, in ns.
_FRESH_NS = 30 * 1000000000
_CHUNK_BYTES = 1 << 16
_SETTLE_S = 0.05
# Elements that a walk lost to others, as a share of those it listed, before it lists them again.
_STALE_SHARE = 16


class Names:
    """The names that one adder gives: each tells when, and none comes twice, also where the clock stands still.

    Args:
        digit: their last digit, 0 to 15; by default a random one.
        clock: what tells the time, in Unix seconds.
        granularity_s: seconds for which one intermediate directory is used.
    """

    __slots__ = ("_clock", "_digit", "_directory", "_granularity_s", "_last_us", "_second")

    def __init__(
        self, digit: int | None, clock: "Callable[[], float]" = time.time, granularity_s: int = GRANULARITY_S
    ) -> None:
        self._clock = clock
        self._digit = f"{(posix.urandom(1)[0] if digit is None else digit) % 16:x}"
        self._granularity_s = granularity_s
        self._last_us = 0
        self._second = -1
        self._directory = ""

    def next(self) -> tuple[str, str]:
        """Return the names of an intermediate directory and of an element for now."""
        now_us = int(self._clock() * 1000000)
        if self._last_us - 1000000 < now_us <= self._last_us:
            now_us = self._last_us + 1
        self._last_us = now_us
        seconds, microseconds = divmod(now_us, 1000000)
        if seconds != self._second:
            self._second = seconds
            granule = self._granularity_s
            self._directory = f"{seconds - seconds % granule if granule > 1 else seconds:08x}"
        return self._directory, f"{seconds:08x}{microseconds:05x}{self._digit}"


class Queue:
    """What the two formats have in common: where a queue is, and which locks this object took.

    A format tells whether a lock is still ours (`_is_ours`), and how one is made new (`_set_time`) and ended.

    Attributes:
        path: the queue's top directory.
        umask: the umask of what is made in it.
        durable: whether an element is on the disk before it is named.
        lock_suffix: what the path of an element's lock has behind the element's; a lock with a ``/`` is inside.
    """

    __slots__ = ("_held", "_names", "durable", "path", "umask")

    lock_suffix = LOCK

    def __init__(self, path: str, umask: int | None, durable: bool, names: Names) -> None:
        self.path = path
        self.umask = umask
        self.durable = durable
        self._names = names
        # Our locks: name to time, in ns.
        self._held: dict[str, int] = {}

    def lock(self, name: str) -> bool:
        """Lock an element; False where somebody else has it, where it is gone, or where it is none.

        Raises:
            UnavailableError: the file system refuses.
        """
        raise NotImplementedError

    def unlock(self, name: str) -> bool:
        """Give an element back to the next consumer; False where our lock on it had ended already.

        Raises:
            UnavailableError: the file system refuses.
        """
        try:
            return self._is_ours(name) and self._end_lock(f"{self.path}/{name}")
        except OSError as error:
            raise UnavailableError(f"cannot unlock {self.path}/{name}: {reason(error)}") from error
        finally:
            self._held.pop(name, None)

    def touch(self, name: str) -> bool:
        """Say that we still work on an element that we locked: its lock is new again. False where that had ended.

        Raises:
            UnavailableError: the file system refuses.
        """
        try:
            if not self._is_ours(name):
                return False
            self._held[name] = self._set_time(name)
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UnavailableError(f"cannot touch {self.path}/{name}: {reason(error)}") from error

    def take_out(self, name: str, path: str) -> bool:
        """Move an element that we locked out of the queue, to a path on the same file system.

        Returns:
            False where it is not locked, or its lock is not the one that we took: the element stays then.

        Raises:
            UnavailableError: the file system refuses, or there is something at that path; it is locked still.
        """
        element = f"{self.path}/{name}"
        try:
            if not self._is_ours(name):
                self._held.pop(name, None)
                return False
            if _is_there(path):
                raise FileExistsError(_EEXIST, posix.strerror(_EEXIST))
            posix.rename(element, path)
            self._held.pop(name)
            self._end_lock(path if self.lock_suffix.startswith("/") else element)
            return True
        except OSError as error:
            raise UnavailableError(f"cannot move {element} to {path}: {reason(error)}") from error

    def _is_taken(self, name: str, refused: "Callable[[str], None] | None") -> bool | None:
        """Lock an element; None where this user may not, and that was told. Raises as `lock` where nobody is told."""
        try:
            return self.lock(name)
        except UnavailableError as error:
            if refused is None or not isinstance(error.__cause__, PermissionError):
                raise
            refused(str(error))
            return None

    def _retried(self, what: str, once: "Callable[[], str]") -> str:
        """Return the name that an addition gives; it gives "" where a purge took a directory from under it.

        Args:
            what: the file that is added, for a message; "" for a content.
            once: one try; it leaves nothing behind where it fails.

        Raises:
            UnavailableError: it could not be added; the cause is the OSError.
        """
        try:
            for _ in range(_ATTEMPTS):
                name = once()
                if name:
                    return name
            why = "its directories vanish"
            cause = None
        except OSError as error:
            why, cause = reason(error), error
        raise UnavailableError(f"cannot add {what and what + ' '}to the queue {self.path}: {why}") from cause

    def _is_ours(self, name: str) -> bool:
        """Tell whether an element has the lock that we took. Raises OSError."""
        raise NotImplementedError

    def _set_time(self, name: str) -> int:
        """Let our lock on an element begin now, and return the time that it has, in ns. Raises OSError."""
        raise NotImplementedError

    def _end_lock(self, element: str) -> bool:
        """Remove the lock of an element at a path; False where it is gone. Raises OSError."""
        return _gone(element + self.lock_suffix)


class Simple(Queue):
    """One queue. Nothing on the disk is touched before it is used; a queue that is not there yet is empty.

    Args:
        path: its top directory; made by the first addition where it is missing.
        umask: the umask of what is made, such as 0o007; None for the process' own, which is never changed.
        granularity_s: seconds for which one intermediate directory is used; 0 or 1 for each second its own.
        durable: whether an element is on the disk before `add` returns.
        digit: the last digit of names, 0 to 15; by default a random one.
        clock: what tells the time, in Unix seconds.
    """

    __slots__ = ("_at", "_at_name", "_is_exact", "_open_fd", "_open_name", "_synced")

    def __init__(
        self,
        path: str,
        umask: int | None = None,
        granularity_s: int = GRANULARITY_S,
        durable: bool = False,
        digit: int | None = None,
        clock: "Callable[[], float]" = time.time,
    ) -> None:
        super().__init__(path, umask, durable, Names(digit, clock, granularity_s))
        self._synced = ""
        # Whether the file system keeps a time as we give it, so that there is no need to ask for it.
        self._is_exact = False
        self._open_fd = -1
        self._open_name = ""
        self._at = -1
        self._at_name = ""

    def add(self, content: bytes) -> str:
        """Add an element and return its name, such as ``6b0365e0/6b0365e03d090b``.

        Args:
            content: the whole of it; a text is encoded by the caller.

        Raises:
            UnavailableError: it could not be added, and nothing of it is left; the cause is the OSError.
        """
        return self._retried("", lambda: self._added(content))

    def add_path(self, path: str) -> str:
        """Move a file into the queue as it is, with its owner and mode, and return the element's name.

        Args:
            path: a plain file on the same file system, that nobody writes to any more.

        Raises:
            BadInputError: it is no plain file.
            UnavailableError: it could not be added; it is where it was then.
        """
        return self._retried(path, lambda: self._moved(path))

    def lock(self, name: str) -> bool:
        """Lock an element.

        Args:
            name: as iteration gives it.

        Returns:
            Whether it is ours now; False where somebody else has it, where it is gone, or where it is no plain file.
            A link that took an element's place since it was listed may be locked, and is never followed.

        Raises:
            UnavailableError: the file system refuses; with ``fs.protected_hardlinks`` that is so for another user's
                file that we may not both read and write.
        """
        # Names relative to their directory, which is open: the kernel does not walk the path again for each call.
        element = name[9:]
        lock = element + LOCK
        try:
            at = self._at if name[:8] == self._at_name else self._open(name[:8])
            posix.link(element, lock, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
        except FileExistsError:
            return False
        except (FileNotFoundError, NotADirectoryError):
            return self._is_stale() and self.lock(name)
        except OSError as error:
            if _is_no_element(f"{self.path}/{name}"):
                return False
            why = "; another user's element has to be ours to read and write (fs.protected_hardlinks)"
            raise UnavailableError(
                f"cannot lock {self.path}/{name}: {reason(error)}{why if error.errno == _EPERM else ''}"
            ) from error
        try:
            # By the element's name, not the lock's: where the element is gone by now, so is what we locked.
            if self._is_exact:
                now_ns = time.time_ns()
                try:
                    posix.utime(element, ns=(now_ns, now_ns), dir_fd=at, follow_symlinks=False)
                except PermissionError:  # another user's
                    now_ns = self._set_time(name)
            else:
                now_ns = self._set_time(name)
        except FileNotFoundError:
            # RACE: its holder, whose lock a purge had broken, removed it: nobody else can have a lock on it any more.
            now_ns = 0
        except OSError as error:
            _gone(self.location(name))
            raise UnavailableError(f"cannot lock {self.path}/{name}: {reason(error)}") from error
        if not now_ns:
            _gone(self.location(name))
            return False
        self._held[name] = now_ns
        return True

    def get(self, name: str) -> bytes | None:
        """Return the content of an element that we locked; None where our lock on it has ended.

        A lock of ours that is younger than any purge's age is taken to be ours still: `remove` asks in any case.

        Raises:
            UnavailableError: it cannot be read.
        """
        if name not in self._held:
            return None
        if self._open_fd >= 0:
            self._close()
        try:
            at = self._at if name[:8] == self._at_name else self._open(name[:8])
            fd = posix.open(name[9:] + LOCK, _READ, dir_fd=at)
            # Open until it is removed: what `remove` looks at is what was read, and looking costs half as much.
            self._open_fd, self._open_name = fd, name
            if not -_FRESH_NS < time.time_ns() - self._held[name] < _FRESH_NS and not self._is_ours(name):
                return None
            content = posix.read(fd, _CHUNK_BYTES)
            if len(content) == _CHUNK_BYTES:
                chunks = [content]
                while content := posix.read(fd, _CHUNK_BYTES):
                    chunks.append(content)
                content = b"".join(chunks)
            return content
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(f"cannot read {self.path}/{name}: {reason(error)}") from error

    def location(self, name: str) -> str:
        """Return the path of an element that is locked, for a program that reads files."""
        return f"{self.path}/{name}{LOCK}"

    def remove(self, name: str) -> bool:
        """Remove an element that we locked, for good.

        Returns:
            False where it is not locked, or its lock is not the one that we took: the element stays then.

        Raises:
            UnavailableError: the file system refuses.
        """
        held = self._held.pop(name, None)
        if held is None:
            return False
        element = name[9:]
        lock = element + LOCK
        try:
            at = self._at if name[:8] == self._at_name else self._open(name[:8])
            if name == self._open_name:
                fd, self._open_fd, self._open_name = self._open_fd, -1, ""
                status = posix.fstat(fd)
                posix.close(fd)
            else:
                status = posix.lstat(lock, dir_fd=at)
            # A lock has two names at least, the element's and its own.
            if status.st_mtime_ns != held or status.st_nlink < 2:
                return False
            posix.unlink(element, dir_fd=at)
            _gone(lock, at)
            return True
        except FileNotFoundError:
            # RACE: a purge took our lock, and maybe somebody else the element; a lock that is there now is another's.
            return False
        except OSError as error:
            raise UnavailableError(f"cannot remove {self.path}/{name}: {reason(error)}") from error

    def __iter__(self) -> "Iterator[str]":
        """Yield the names of the elements in their order, locked ones too; a directory as it is when its turn comes.

        Raises:
            UnavailableError: a directory cannot be read.
        """
        for directory in self._directories():
            elements, _ = self._listed(directory)
            elements.sort()
            for element in elements:
                yield f"{directory}/{element}"

    def locked(self, refused: "Callable[[str], None] | None" = None) -> "Iterator[str]":
        """Yield elements that were just locked for the caller, who removes or unlocks each before the next.

        One consumer gets them in the order of their names. Of several, each that meets another's lock goes on
        somewhere else, so that they share the work instead of following each other.

        Args:
            refused: told of each element that this user may not lock, and the walk goes on; None for an error.

        Raises:
            UnavailableError: a directory cannot be read, or the file system refuses a lock.
        """
        directories = self._directories()
        directories.reverse()
        while directories:
            # Where others are at work, somewhere in the queue is better than the next directory.
            directory = directories.pop()
            if (yield from self._locked_in(directory, refused)) and directories:
                place = int.from_bytes(posix.urandom(4), "little") % len(directories)
                directories[place], directories[-1] = directories[-1], directories[place]

    def _locked_in(self, directory: str, refused: "Callable[[str], None] | None") -> "Generator[str, None, bool]":
        """Yield elements of a directory that were just locked; return whether others were at work there."""
        is_shared = False
        seen: set[str] = set()
        while True:
            listed, locks = self._listed(directory)
            waiting = [element for element in listed if element not in locks and element not in seen]
            if not waiting:
                return is_shared
            waiting.sort()
            losses = max(4, len(waiting) // _STALE_SHARE)
            # What is still to be walked, as ranges of places; where others are at work, we begin somewhere.
            ranges = [(0, len(waiting))]
            if is_shared:
                _split(ranges, 0, len(waiting))
            while ranges and losses:
                place, end = ranges.pop()
                while place < end and losses:
                    element = waiting[place]
                    place += 1
                    seen.add(element)
                    name = f"{directory}/{element}"
                    is_ours = self._is_taken(name, refused)
                    if is_ours:
                        yield name
                    if is_ours is not False:
                        continue
                    # Who took this one takes the next ones too: leave them, and go on further down.
                    is_shared = True
                    losses -= 1
                    _split(ranges, place, end)
                    break
            if not is_shared:
                return False

    def count(self) -> int:
        """Return how many elements there are, locked ones too.

        Raises:
            UnavailableError: a directory cannot be read.
        """
        return sum(len(self._listed(directory)[0]) for directory in self._directories())

    def purge(self, temporary_age_s: float = TEMPORARY_AGE_S, lock_age_s: float = LOCK_AGE_S) -> tuple[int, int, int]:
        """Remove what died: elements never finished, locks whose holders are gone, directories that are empty.

        The last directory stays: somebody may be about to add to it.

        Args:
            temporary_age_s: seconds after which an unfinished element goes; 0 for never.
            lock_age_s: seconds after which a lock goes; 0 for never.

        Returns:
            How many unfinished elements and directories, locks, and empty directories were removed.

        Raises:
            UnavailableError: something may not be read or removed.
        """
        removed = {TEMPORARY: 0, LOCK: 0}
        directories = self._directories()
        try:
            young = []
            now = time.time()
            ages = {TEMPORARY: temporary_age_s, LOCK: lock_age_s}
            for directory in directories:
                for path, suffix in self._volatile(directory):
                    if not ages[suffix]:
                        continue
                    try:
                        status = posix.lstat(path)
                    except FileNotFoundError:
                        continue
                    if status.st_mtime >= now - ages[suffix] or status.st_mode & _KIND == _FOLDER:
                        continue
                    if suffix == LOCK and status.st_ctime > now - _YOUNG_S:
                        young.append((path, status.st_mtime_ns))
                    else:
                        removed[suffix] += _gone(path)
            if young:
                time.sleep(_SETTLE_S)
            for path, mtime_ns in young:
                try:
                    if posix.lstat(path).st_mtime_ns == mtime_ns:
                        removed[LOCK] += _gone(path)
                except FileNotFoundError:
                    continue
            removed[TEMPORARY] += purge_unfinished(self.path, now - temporary_age_s) if temporary_age_s else 0
            emptied = sum(self._is_emptied(directory) for directory in directories[:-1])
        except OSError as error:
            raise UnavailableError(f"cannot purge the queue {self.path}: {reason(error)}") from error
        return removed[TEMPORARY], removed[LOCK], emptied

    def _moved(self, path: str) -> str:
        """Give a file an element's name instead of its own, and return that; "" where the directory vanished."""
        if posix.lstat(path).st_mode & _KIND != _PLAIN:
            raise BadInputError(f"cannot add {path} to the queue {self.path}: no plain file")
        if self.durable:
            fd = posix.open(path, _READ)
            try:
                posix.fsync(fd)
            finally:
                posix.close(fd)
        directory, element = self._names.next()
        made = self._make(directory)
        try:
            element = self._linked(path, None, directory, element, self._open(directory))
        except FileNotFoundError:  # a purge took the directory
            return ""
        except BaseException:
            if made:
                self._is_emptied(directory)
            raise
        return element and f"{directory}/{element}"

    def _added(self, content: bytes) -> str:
        """Add an element and return its name; "" where its directory vanished meanwhile."""
        directory, name = self._names.next()
        temporary = name + TEMPORARY
        made = looked = False
        try:
            while True:
                try:
                    at = self._at if directory == self._at_name else self._open(directory)
                    fd = posix.open(temporary, _CREATE, 0o666, dir_fd=at)
                    break
                except FileExistsError:
                    name = self._names.next()[1]
                    temporary = name + TEMPORARY
                except FileNotFoundError:
                    self._leave()
                    if looked:  # a purge took it before we could use it
                        return ""
                    looked, made = True, self._make(directory)
            try:
                try:
                    written = posix.write(fd, content)
                    if written != len(content):
                        files.write_all(fd, content[written:])
                    if self.umask is not None:
                        posix.fchmod(fd, 0o666 & ~self.umask)
                    if self.durable:
                        posix.fsync(fd)
                finally:
                    posix.close(fd)
                name = self._linked(temporary, at, directory, name, at)
                return name and f"{directory}/{name}"
            except BaseException:
                _gone(f"{self.path}/{directory}/{temporary}")
                raise
        except BaseException:
            if made:
                self._is_emptied(directory)
            raise

    def _linked(self, path: str, beside: int | None, directory: str, name: str, at: int) -> str:
        """Let a whole file have an element's name instead of its own.

        Args:
            path: the file, counted from the open directory `beside` if there is one.
            directory, name: the element's.
            at: its directory, open.

        Returns:
            The name that it has; "" where the file or the directory vanished.
        """
        while True:
            try:
                posix.link(path, name, src_dir_fd=beside, dst_dir_fd=at, follow_symlinks=False)
                break
            except FileExistsError:
                name = self._names.next()[1]
            except FileNotFoundError:
                return ""
        try:
            if self.durable:
                posix.fsync(at)
                if self._synced != directory:
                    files.sync_directory(self.path)
                    self._synced = directory
            _gone(path, beside)
        except BaseException:
            _gone(f"{self.path}/{directory}/{name}")
            raise
        return name

    def _open(self, directory: str) -> int:
        """Open an intermediate directory instead of the last one, and return its descriptor."""
        self._leave()
        self._at = posix.open(f"{self.path}/{directory}", _DIRECTORY)
        self._at_name = directory
        return self._at

    def _leave(self) -> None:
        if self._at >= 0:
            at, self._at, self._at_name = self._at, -1, ""
            posix.close(at)

    def _is_stale(self) -> bool:
        """Tell whether the open directory was removed, and close it then: there may be another of its name."""
        if self._at >= 0 and posix.fstat(self._at).st_nlink == 0:
            self._leave()
            return True
        return False

    def _set_time(self, name: str) -> int:
        """Let a lock begin now, and return the time that the file system has for that, in ns; 0 for no plain file.

        Raises:
            FileNotFoundError: the element is gone.
            OSError: as utime(2).
        """
        element = f"{self.path}/{name}"
        now_ns = time.time_ns()
        try:
            posix.utime(element, ns=(now_ns, now_ns), follow_symlinks=False)
        except PermissionError:
            # Another user's file that is ours to write: the kernel sets its own time alone.
            now_ns = 0
            posix.utime(element, follow_symlinks=False)
        status = posix.lstat(element)
        if status.st_mode & _KIND != _PLAIN:
            return 0
        self._is_exact = status.st_mtime_ns == now_ns
        return status.st_mtime_ns

    def _is_ours(self, name: str) -> bool:
        """Tell whether an element has the lock that we took."""
        held = self._held.get(name)
        if held is None:
            return False
        try:
            return posix.lstat(self.location(name)).st_mtime_ns == held
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        fd, self._open_fd, self._open_name = self._open_fd, -1, ""
        posix.close(fd)

    def __del__(self) -> None:
        if self._open_fd >= 0:
            self._close()
        self._leave()

    def _make(self, directory: str) -> bool:
        """Make an intermediate directory, and the queue itself where it is missing; return whether it was new."""
        path = f"{self.path}/{directory}"
        self._synced = ""
        try:
            return make_directory(path, self.umask)
        except FileNotFoundError:
            make_top(self.path, self.umask, self.durable)
            return make_directory(path, self.umask)

    def _is_emptied(self, directory: str) -> bool:
        """Remove an intermediate directory if it is empty, and say whether it was."""
        try:
            posix.rmdir(f"{self.path}/{directory}")
            return True
        except OSError as error:
            if error.errno in (_ENOTEMPTY, _EEXIST, _ENOENT, _ENOTDIR):
                return False
            raise

    def _directories(self) -> "list[str]":
        """Return the names of the intermediate directories, in order."""
        try:
            return sorted(name for name in posix.listdir(self.path) if is_number(name, 8))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnavailableError(f"cannot read the queue {self.path}: {reason(error)}") from error

    def _listed(self, directory: str) -> "tuple[list[str], set[str]]":
        """Return the names of a directory's elements, and of those that have a lock; nothing where it is gone."""
        elements, locks = [], set()
        try:
            with posix.scandir(f"{self.path}/{directory}") as entries:
                for entry in entries:
                    name = entry.name
                    if len(name) == 14:
                        # Nothing is left of a name of digits; this takes a third of the time that a set needs.
                        if not name.strip(_DIGITS) and entry.is_file(follow_symlinks=False):
                            elements.append(name)
                    elif len(name) == 18 and name.endswith(LOCK):
                        locks.add(name[:14])
        except (FileNotFoundError, NotADirectoryError):
            return [], set()
        except OSError as error:
            raise UnavailableError(f"cannot read the queue {self.path}/{directory}: {reason(error)}") from error
        return elements, locks

    def _volatile(self, directory: str) -> "list[tuple[str, str]]":
        """Return the paths of a directory's unfinished elements and locks, each with its suffix."""
        try:
            names = posix.listdir(f"{self.path}/{directory}")
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [
            (f"{self.path}/{directory}/{name}", name[14:])
            for name in names
            if name[14:] in (TEMPORARY, LOCK) and is_number(name[:14], 14)
        ]


def make_directory(path: str, umask: int | None) -> bool:
    """Make a directory, with a umask of its own if there is one; False where it exists.

    Raises:
        OSError: as mkdir(2); nothing was made.
    """
    if umask is None:
        try:
            posix.mkdir(path, 0o777)
            return True
        except FileExistsError:
            return False
    try:
        posix.lstat(path)
        return False
    except FileNotFoundError:
        pass
    # Under a name of its own until its mode is right; a set-group-ID bit that it inherited stays.
    parent, _, name = path.rpartition("/")
    temporary = f"{parent or '.'}/{files.temporary_name(name)}"
    posix.mkdir(temporary, 0o700)
    try:
        inherited = posix.lstat(temporary).st_mode & 0o7000
        posix.chmod(temporary, inherited | (0o777 & ~umask))
        try:
            posix.rename(temporary, path)
        except OSError:
            # Somebody else has made it meanwhile, and it has something in it or is another user's.
            posix.lstat(path)
            posix.rmdir(temporary)
            return False
    except BaseException:
        posix.rmdir(temporary)
        raise
    return True


def make_top(path: str, umask: int | None, durable: bool) -> None:
    """Make a queue's top directory, and what is missing above it.

    Raises:
        OSError: as mkdir(2), fsync(2).
    """
    top = path.rstrip("/")
    files.make_directories(top.rpartition("/")[0] or ".")
    if make_directory(top, umask) and durable:
        files.sync_directory(f"{top}/..")


def purge_unfinished(top: str, before: float) -> int:
    """Remove what `make_directory` left in a queue's top directory where it was killed.

    Args:
        top: the directory; it may be missing.
        before: the time before which they were made, Unix time, s.

    Returns:
        How many were removed.

    Raises:
        OSError: as readdir(3), rmdir(2).
    """
    removed = 0
    try:
        names = [name for name in posix.listdir(top) if files.is_temporary(name)]
    except FileNotFoundError:
        return 0
    for name in names:
        path = f"{top}/{name}"
        try:
            if posix.lstat(path).st_mtime < before:
                posix.rmdir(path)
                removed += 1
        except OSError as error:
            # Taken by another purge, or nothing of ours.
            if error.errno not in (_ENOTEMPTY, _EEXIST, _ENOENT, _ENOTDIR):
                raise
    return removed


def is_number(text: str, digits: int) -> bool:
    """Tell whether a text consists of so many hexadecimal digits, in small letters."""
    return len(text) == digits and not text.strip(_DIGITS)


def is_name(text: str) -> bool:
    """Tell whether a text is the name of an element, such as ``6b0365e0/6b0365e03d090b``."""
    return text[8:9] == "/" and is_number(text[:8], 8) and is_number(text[9:], 14)


def _gone(path: str, beside: int | None = None) -> bool:
    """Unlink a file, counted from an open directory if there is one; False where it was gone already."""
    try:
        posix.unlink(path, dir_fd=beside)
        return True
    except FileNotFoundError:
        return False


def _is_there(path: str) -> bool:
    try:
        posix.lstat(path)
        return True
    except FileNotFoundError:
        return False


def _is_no_element(path: str) -> bool:
    """Tell whether something that cannot be linked is nothing that could be an element: a directory, or gone."""
    try:
        return posix.lstat(path).st_mode & _KIND != _PLAIN
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def _split(ranges: "list[tuple[int, int]]", place: int, end: int) -> None:
    """Put a range back in two, so that its second part comes next; where it begins is left to chance."""
    if place < end:
        middle = place + int.from_bytes(posix.urandom(4), "little") % (end - place)
        if place < middle:
            ranges.append((place, middle))
        ranges.append((middle, end))
