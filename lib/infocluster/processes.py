# SPDX-License-Identifier: Apache-2.0
"""Other programs: started without a shell, with a time limit, and with an end to what they may say.

This module owns `subprocess`. A program is an argument list whose first item is its path or name; text from
outside never becomes an option (`operand` puts it behind ``--`` or before a ``./``).
"""

import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple

from infocluster.errors import UnavailableError, reason

OUTPUT_LIMIT_BYTES = 1 << 20

# How often a program that runs is looked at: whether it is still wanted, whether it has ended.
LOOK_S = 0.1
CHUNK_BYTES = 1 << 16
# Seconds to wait for the rest of what a program that has ended says.
ERRORS_S = 1.0
# Seconds to wait for what was killed, and between two looks at it.
KILL_S = 5.0
KILL_PAUSE_S = 0.01
_SUBREAPER = 36


class Outcome(NamedTuple):
    """How a program ended: its exit status (negative: the signal that killed it) and what it said."""

    status: int
    output: bytes
    errors: bytes


def run(
    arguments: Sequence[str],
    timeout_s: float,
    content: bytes = b"",
    environment: Mapping[str, str] | None = None,
    directory: str | None = None,
    is_stopped: Callable[[], bool] | None = None,
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES,
    is_shown: bool = False,
) -> Outcome:
    """Run a program to its end and return how it ended.

    It leads a process group of its own, which is killed when the time is over, so that nothing of it stays. What it
    left running when it ended may have its outputs open still: those are listened to for a second more.

    Args:
        arguments: the program and its arguments; no shell reads them.
        timeout_s: seconds until it is killed.
        content: what it reads on standard input.
        environment: its whole environment; by default ours.
        directory: where it starts; by default here.
        is_stopped: asked ten times a second; the program is killed once this is true.
        output_limit_bytes: how much of each of its two outputs is returned.
        is_shown: whether its standard output is ours, all of it; none of that is returned.

    Raises:
        UnavailableError: it cannot be started, did not end in time, or was stopped.
    """
    program = arguments[0]
    end = time.monotonic() + timeout_s
    process = _started(
        arguments,
        stdin=subprocess.PIPE,
        stdout=None if is_shown else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=directory,
    )
    with process:
        try:
            output, errors = _said(process, content, end, is_stopped, output_limit_bytes)
        except subprocess.TimeoutExpired:
            why = f"not done after {timeout_s:g} s" if time.monotonic() >= end else "it was stopped"
            # What it says now is not waited for: whoever has its outputs from it may be in no hurry to close them.
            kill_group(process.pid)
            raise UnavailableError(f"cannot run {program}: {why}") from None
        except BaseException:
            kill_group(process.pid)
            raise
    return Outcome(process.returncode, output, errors)


def _started(arguments: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a program as the leader of a session of its own. Raises UnavailableError: it cannot be."""
    try:
        return subprocess.Popen(list(arguments), start_new_session=True, **streams)
    except OSError as error:
        raise UnavailableError(f"cannot run {arguments[0]}: {reason(error)}") from error


def _said(
    process: subprocess.Popen[bytes],
    content: bytes,
    end: float,
    is_stopped: Callable[[], bool] | None,
    limit_bytes: int,
) -> tuple[bytes, bytes]:
    """Return what a program says to its end, the first bytes of it. Raises TimeoutExpired: no longer waited for."""
    if process.stdin is None or process.stderr is None:
        raise ValueError("its streams are not ours")
    untold = memoryview(content)
    output, errors = bytearray(), bytearray()
    ended_s = float("inf")
    with selectors.DefaultSelector() as select:
        if process.stdout is not None:
            select.register(process.stdout, selectors.EVENT_READ, output)
        select.register(process.stderr, selectors.EVENT_READ, errors)
        os.set_blocking(process.stdin.fileno(), False)
        select.register(process.stdin, selectors.EVENT_WRITE)
        while select.get_map() or process.poll() is None:
            now = time.monotonic()
            if process.poll() is not None:
                ended_s = min(ended_s, now)
                if now - ended_s > ERRORS_S:
                    break
            left_s = end - now
            if left_s <= 0 or (is_stopped is not None and is_stopped()):
                raise subprocess.TimeoutExpired(process.args, left_s)
            if not select.get_map():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(left_s, LOOK_S))
                continue
            for key, _ in select.select(min(left_s, LOOK_S)):
                if key.fileobj is process.stdin:
                    untold = _told(process.stdin, untold)
                    if not untold:
                        select.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, CHUNK_BYTES)
                if not chunk:
                    select.unregister(key.fileobj)
                # What is over the limit is read all the same: a program that nobody reads does not end.
                key.data.extend(chunk[: limit_bytes - len(key.data)])
    return bytes(output), bytes(errors)


def _told(stream: IO[bytes], content: memoryview) -> memoryview:
    """Write what a program takes now and return the rest, nothing where it reads no more."""
    try:
        return content[os.write(stream.fileno(), content[:CHUNK_BYTES]) :]
    except BlockingIOError:
        return content
    except BrokenPipeError:
        return content[:0]


class EndedError(UnavailableError):
    """Somebody who is talked to has said all that he will."""


class Peer:
    """Whom a conversation is with: a program, or a session that stands for one.

    Attributes:
        input: the descriptor that it reads the other end of.
        output: that of what it says.
        errors: that of its standard error.
    """

    __slots__ = ("errors", "input", "output")

    def __init__(self, input_fd: int, output_fd: int, errors_fd: int) -> None:
        self.input = input_fd
        self.output = output_fd
        self.errors = errors_fd

    def wait(self, timeout_s: float) -> int | None:
        """Return its exit status as `Outcome` has it, None when it has not ended in time."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it, and all that it started, now."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of it when it has ended."""


class _Program(Peer):
    """A program of this host, the leader of a process group."""

    __slots__ = ("_process",)

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = _started(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        # The descriptors are ours from now on, not the stream objects'.
        copies = [os.dup(stream.fileno()) for stream in streams if stream]
        for stream in streams:
            if stream:
                stream.close()
        super().__init__(*copies)

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        kill_group(self._process.pid)
        self._process.wait()


class Conversation:
    """A program that is talked to while it runs: what it reads and what it says goes line by line.

    Nothing here waits longer than it is told to: what the program does not read yet is kept until it does. Use it as
    a context manager: at the end of the block it is over, or killed.

    Args:
        whom: the program and its arguments, which no shell reads; or a peer that runs already.
        limit_bytes: what a line may have.

    Raises:
        UnavailableError: it cannot be started.
    """

    def __init__(self, whom: Sequence[str] | Peer, limit_bytes: int) -> None:
        self._peer = whom if isinstance(whom, Peer) else _Program(whom)
        self._limit_bytes = limit_bytes
        self._untold = memoryview(b"")
        self._unheard = bytearray()
        self._searched = 0
        self._was_last = False
        self._errors = bytearray()
        self._status: int | None = None
        self._is_telling = True
        self._select = selectors.DefaultSelector()
        os.set_blocking(self._peer.input, False)
        self._select.register(self._peer.output, selectors.EVENT_READ, self._unheard)
        self._select.register(self._peer.errors, selectors.EVENT_READ, self._errors)

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self.end(0)
        for fd in (self._peer.output, self._peer.errors):
            os.close(fd)
        self._select.close()
        self._peer.close()

    @property
    def errors(self) -> str:
        """What it said on its standard error so far."""
        return self._errors.decode("utf-8", "replace").strip()

    def tell(self, content: bytes, is_last: bool = False) -> None:
        """Give it something to read; it is sent while `heard` waits. The end of its input follows what is last."""
        if not self._is_telling:
            return
        self._was_last = is_last
        if content and not self._untold:
            self._select.register(self._peer.input, selectors.EVENT_WRITE)
        # What is large is told alone, and not copied.
        self._untold = memoryview(bytes(self._untold) + content if self._untold else content)

    def is_told(self, timeout_s: float) -> bool:
        """Wait until it has read what it was told, or reads no more, and say whether that is so.

        Raises:
            EndedError: it closed its output.
        """
        end = time.monotonic() + timeout_s
        while self._untold:
            if self._peer.output not in self._select.get_map():
                self._hear_errors()
                raise EndedError("it ended")
            ready = self._select.select(max(0.0, end - time.monotonic()))
            for key, _ in ready:
                self._move(key)
            if not ready and time.monotonic() >= end:
                break
        return not self._untold

    def hang_up(self) -> None:
        """Let it read the end of its input; what it has not read by now it never will."""
        if self._is_telling:
            self._is_telling = False
            if self._untold:
                self._untold = memoryview(b"")
                self._select.unregister(self._peer.input)
            os.close(self._peer.input)

    def heard(self, timeout_s: float) -> bytes | None:
        """Return the next line that it says, without its end, or None where there is none in time.

        Args:
            timeout_s: seconds to wait; 0 takes what is there.

        Raises:
            EndedError: there will be none: it closed its output.
            UnavailableError: the line is over its limit.
        """
        end = time.monotonic() + timeout_s
        while True:
            found = self._unheard.find(b"\n", self._searched)
            if found >= 0:
                line = bytes(self._unheard[:found])
                del self._unheard[: found + 1]
                self._searched = 0
                return line
            self._searched = len(self._unheard)
            if self._searched > self._limit_bytes:
                raise UnavailableError(f"it said a line of over {self._limit_bytes} bytes")
            if self._peer.output not in self._select.get_map():
                self._hear_errors()
                raise EndedError("it ended")
            ready = self._select.select(max(0.0, end - time.monotonic()))
            for key, _ in ready:
                self._move(key)
            if not ready and time.monotonic() >= end:
                return None

    def end(self, timeout_s: float) -> int:
        """Wait for its end so long, then kill it, and return its exit status as `Outcome` has it."""
        self.hang_up()
        if self._status is None:
            self._status = self._peer.wait(timeout_s)
        if self._status is None:
            self._peer.kill()
            self._status = -signal.SIGKILL
        return self._status

    def _hear_errors(self) -> None:
        """Read its standard error to the end; something that it left running may have that open still."""
        self.hang_up()
        while self._select.get_map() and (ready := self._select.select(ERRORS_S)):
            for key, _ in ready:
                self._move(key)

    def _move(self, key: selectors.SelectorKey) -> None:
        """Move what can be moved now between the program and us."""
        if key.fd == self._peer.input:
            try:
                self._untold = self._untold[os.write(key.fd, self._untold[:CHUNK_BYTES]) :]
            except BlockingIOError:
                return
            except OSError:  # it does not read any more; its output tells why
                self.hang_up()
                return
            if not self._untold:
                self._select.unregister(key.fd)
                if self._was_last:
                    self.hang_up()
            return
        chunk = os.read(key.fd, CHUNK_BYTES)
        if not chunk:
            self._select.unregister(key.fd)
        elif key.data is self._unheard or len(self._errors) < OUTPUT_LIMIT_BYTES:
            key.data.extend(chunk)


class Followed:
    """A program while it runs: what it says on both its outputs, in one, as it says it.

    It leads a session of its own and reads nothing. Used as a context manager, it is killed at the end of the block
    unless it has ended; without, it runs on when nobody listens any more.

    Attributes:
        status: its exit status as `Outcome` has it, None while it runs.

    Args:
        arguments: the program and its arguments; no shell reads them.
        environment: its whole environment.
        directory: where it starts.

    Raises:
        UnavailableError: it cannot be started.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: str = "/") -> None:
        self.status: int | None = None
        self._ended_s = 0.0
        self._process = _started(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=environment,
            cwd=directory,
        )
        self._output = self._process.stdout
        self._look = select.poll()
        if self._output is not None:
            self._look.register(self._output, select.POLLIN)

    def __enter__(self) -> "Followed":
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            self.kill()
        self.leave()

    def heard(self, timeout_s: float) -> bytes | None:
        """Return what it says next, b"" once it has ended and said all, or None where it is silent for so long.

        What it left running may have its output open still: that is listened to for a second more.
        """
        end = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if self.status is None:
                self.status = self._process.poll()
                self._ended_s = now
            left_s = max(0.0, min(end - now, LOOK_S))
            if self._output is None:
                if self.status is not None:
                    return b""
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(left_s)
            elif self.status is not None and now - self._ended_s > ERRORS_S:
                self.leave()
            elif self._look.poll(left_s * 1000):
                chunk = os.read(self._output.fileno(), CHUNK_BYTES)
                if chunk:
                    return chunk
                self.leave()
            if now >= end:
                return None

    def leave(self) -> None:
        """Listen no more."""
        if self._output is not None:
            self._output.close()
            self._output = None

    def ask_to_end(self) -> None:
        """Send it, and what it started in its group, the signal that programs tidy up at."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it now, with its group and, after `adopt`, with everything that this process and it started."""
        kill_group(self._process.pid)
        with suppress(subprocess.TimeoutExpired):
            self.status = self._process.wait(KILL_S)
        end = time.monotonic() + KILL_S
        # Whoever is killed leaves us his children, so this comes to an end with the last of them.
        while (left := descendants(os.getpid())) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(KILL_PAUSE_S)


def adopt() -> None:
    """Become the parent of what our children leave behind, so that it can be found; where there is no prctl(2), not.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did, as far as their parents live.

    Source: proc_pid_task(5), children.
    """
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    return found


def kill_group(leader: int) -> None:
    """Kill a process and all it started that stayed in its group; one that is gone already is no error."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
