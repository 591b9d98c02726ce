# SPDX-License-Identifier: Apache-2.0
"""One durable state file for each core filer and target time.

Shape: ``STATE_DIR/<digest>/<target time>.state``, the digest being of the core filer's name, is UTF-8, such as

    infocluster poll 1
    mass cf-projects
    target 1795384800
    run 5f0c2a9be7d14c33
    state running
    asked 1795384801.250
    since 1795384802.500
    progress 42%
    job 4711
    why
    flags
    end 6d0c1f7a93b2e845

    All lines, in this order. ``asked`` is the time of the first poll, ``since`` that of the state; ``job`` is what
    the backend calls the backup; ``flags`` are ``forced`` (released though the backup failed) and ``held`` (an
    unreadable file stood here: never to be released). The last line is a digest of all before it. The file's mtime is
    the time of the last poll.

A file is put in place whole: linked when it is the first one of its key, renamed over when it follows another. What
is torn, foreign or of another version is no state: it raises `BadStateError`.

A hit loads this module: it stays with `posix`.

Source: link(2), rename(2), utimensat(2); RFC 7693 (BLAKE2).
"""

import posix

from infocluster import files
from infocluster.errors import BadInputError, UnavailableError, reason

MARK = "infocluster poll 1"
SUFFIX = ".state"
DONE_SUFFIX = ".done"
LIMIT_BYTES = 8192
# As of all that is gathered: the file owner shows it on the nodes' page.
MODE = 0o644
TEXT_LIMIT = 300
STATES = frozenset({"new", "starting", "running", "complete", "released", "failed", "expired"})
_NAMES = ("mass", "target", "run", "state", "asked", "since", "progress", "job", "why", "flags")
_FLAGS = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK


class BadStateError(BadInputError):
    """A state file that is none of ours, or not of this key, or not of this version, or not whole."""


class State:
    """How one backup stands.

    Attributes:
        mass: the core filer's name.
        target: the target time, Unix seconds.
        run: 16 hexadecimal digits, drawn when the key was first asked for.
        state: one of `STATES`.
        asked: when it was first asked for, Unix time in s.
        since: when it came into this state.
        progress: what the backend says of it.
        job: what the backend calls it.
        why: why it failed, expired or was forced.
        flags: words, see the module.
        polled: when it was last polled, Unix time in s; the file's mtime.
    """

    __slots__ = ("asked", "flags", "job", "mass", "polled", "progress", "run", "since", "state", "target", "why")

    def __init__(self, mass: str, target: int, run: str, state: str, asked: float, since: float) -> None:
        self.mass = mass
        self.target = target
        self.run = run
        self.state = state
        self.asked = asked
        self.since = since
        self.progress = ""
        self.job = ""
        self.why = ""
        self.flags = ""
        self.polled = asked

    def become(self, state: str, now: float, why: str = "") -> "State":
        """Return this backup in another state."""
        other = State(self.mass, self.target, self.run, state, self.asked, now)
        other.progress, other.job, other.flags, other.polled = self.progress, self.job, self.flags, self.polled
        other.why = why or self.why
        return other


def place(state_dir: str, mass: str) -> str:
    """Return the directory of a core filer's states: named by a digest, never by what somebody sent."""
    return f"{state_dir}/{_digest(mass.encode('utf-8', 'surrogatepass'))}"


def file(state_dir: str, mass: str, target: int, suffix: str = SUFFIX) -> str:
    """Return the path of a state file, or of what lies beside it."""
    return f"{place(state_dir, mass)}/{target:d}{suffix}"


def read(path: str, mass: str, target: int) -> State | None:
    """Return the state of a key, None where there is none yet.

    Raises:
        BadStateError: there is something, and it is not this key's state.
        UnavailableError: it cannot be read now.
    """
    try:
        fd = posix.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        # ELOOP: a symbolic link; ENXIO: a socket. Neither is ours.
        if error.errno in (40, 6):
            raise BadStateError(f"cannot use {path}: it is no plain file") from None
        raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
    try:
        status = posix.fstat(fd)
        content = posix.read(fd, LIMIT_BYTES + 1)
    except OSError as error:
        if error.errno in (21, 11):  # EISDIR, EAGAIN: a directory, a named pipe
            raise BadStateError(f"cannot use {path}: it is no plain file") from None
        raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
    finally:
        posix.close(fd)
    state = parse(content, path)
    if (state.mass, state.target) != (mass, target):
        raise BadStateError(f"cannot use {path}: it is the state of another core filer or target time")
    state.polled = status.st_mtime
    return state


def parse(content: bytes, path: str = "the state") -> State:
    """Return the state that a file holds.

    Raises:
        BadStateError: it holds none.
    """
    body, _, last = content.rpartition(b"end ")
    if not content.startswith(b"infocluster poll ") or len(content) > LIMIT_BYTES:
        raise BadStateError(f"cannot use {path}: it is not a state file")
    if not content.startswith(MARK.encode("ascii") + b"\n"):
        raise BadStateError(f"cannot use {path}: another version of infocluster wrote it")
    if last != _digest(body).encode("ascii") + b"\n":
        raise BadStateError(f"cannot use {path}: it is torn or was changed")
    try:
        lines = body.decode("utf-8").split("\n")
        pairs = [line.partition(" ") for line in lines[1:-1]]
        if tuple(name for name, _, _ in pairs) != _NAMES or lines[-1]:
            raise ValueError
        mass, target, run, state, asked, since, progress, job, why, flags = (value for _, _, value in pairs)
        if state not in STATES:
            raise ValueError
        found = State(mass, int(target), run, state, float(asked), float(since))
    except ValueError:
        raise BadStateError(f"cannot use {path}: it is not a state file") from None
    found.progress, found.job, found.why, found.flags = progress, job, why, flags
    return found


def content(state: State) -> bytes:
    """Return what the file of a state holds."""
    lines = [MARK]
    for name in _NAMES:
        value = getattr(state, name)
        lines.append(f"{name} {value:.3f}" if type(value) is float else f"{name} {value}")
    body = ("\n".join(lines) + "\n").encode("utf-8", "replace")
    return body + b"end " + _digest(body).encode("ascii") + b"\n"


def clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return what somebody else said as one line of a state: nothing in it ends a line or steers a terminal."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return text.encode("utf-8", "replace").decode("utf-8").strip()[:limit]


def create(path: str, state: State, limit: int) -> bool:
    """Put the first state of a key in place, durable; return False where another process was first.

    Args:
        path: its file.
        state: what it shall hold.
        limit: how many states its directory may hold before.

    Raises:
        UnavailableError: it cannot be written, or there are too many.
    """
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/{files.temporary_name(name)}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    try:
        try:
            fd = posix.open(temporary, flags, MODE)
        except FileNotFoundError:
            _make(directory)
            fd = posix.open(temporary, flags, MODE)
        try:
            try:
                if sum(name.endswith(SUFFIX) for name in posix.listdir(directory)) >= limit:
                    raise UnavailableError(f"cannot take one more state into {directory}: there are {limit}")
                files.write_all(fd, content(state))
                posix.fsync(fd)
            finally:
                posix.close(fd)
            posix.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            posix.unlink(temporary)
        files.sync_directory(directory)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {reason(error)}") from error
    return True


def replace(path: str, state: State) -> None:
    """Put the next state of a key in place, durable.

    Raises:
        UnavailableError: it cannot be written; the state before it still stands.
    """
    try:
        files.replace(path, content(state), MODE)
        posix.utime(path, (state.polled, state.polled))
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {reason(error)}") from error


def touch(path: str) -> None:
    """Note that a key was polled now; where that cannot be noted, nobody needs to know."""
    try:
        posix.utime(path)
    except OSError:
        return


def leave(path: str, word: str) -> None:
    """Leave a word of the backup itself beside its state, durable: ``done`` or ``failed``.

    Raises:
        UnavailableError: it cannot be written.
    """
    try:
        files.replace(path, word.encode("ascii") + b"\n", 0o640)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {reason(error)}") from error


def targets(state_dir: str, mass: str, suffix: str = SUFFIX) -> list[int]:
    """Return the target times of a core filer that there are files for, oldest first.

    Raises:
        UnavailableError: the directory cannot be read.
    """
    directory = place(state_dir, mass)
    try:
        names = posix.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnavailableError(f"cannot read {directory}: {reason(error)}") from error
    stems = (name[: -len(suffix)] for name in names if name.endswith(suffix) and not files.is_temporary(name))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def _make(directory: str) -> None:
    """Make the directory of a core filer, and the state directory: no more, what is above has to be there."""
    state_dir = directory.rpartition("/")[0]
    for path in (state_dir, directory):
        try:
            posix.mkdir(path, 0o755)
        except FileExistsError:
            continue
        files.sync_directory(path.rpartition("/")[0])


def _digest(text: bytes) -> str:
    try:
        from _blake2 import blake2b  # what hashlib would give, without its 5 ms
    except ImportError:  # another Python
        from hashlib import blake2b
    return str(blake2b(text, digest_size=8).hexdigest())
