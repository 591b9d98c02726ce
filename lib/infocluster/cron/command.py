# SPDX-License-Identifier: Apache-2.0
"""The gateway round every program of batch/: from its arguments to its exit status.

The life of a run:

1. help, the version and wrong arguments are answered from the program's own docstring, see `usage`;
2. the settings are read and, for a program that runs alone, ``STATE_DIR/locks/PROGRAM.lock`` is taken;
3. the handler is imported and called with a `Run`;
4. what it returns is printed as ``PROGRAM: SUMMARY``, what it raises as ``PROGRAM: MESSAGE``.

Exit status: 0; 1 some items failed, each was reported; 64 usage; 70 a fault of ours, with traceback; 75 another
run is under way; otherwise what the error says; 128 + n ended by signal n, after all that was open was closed.

Where the reader of standard output has gone, the work goes on: half a push is worse than an unread line.

Source: sysexits(3), signal(7), sudo(8) and cron(8) for what a program may find closed or ignored.
"""

import _signal
import os
import sys

from infocluster import __version__, names
from infocluster.cron import usage
from infocluster.errors import EX_OK, EX_SOFTWARE, EX_SOME_FAILED, InfoclusterError, UsageError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import NoReturn, TextIO

    from infocluster.config import Settings

    Progress = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]

SIGNALS = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM)
DIRECTORY_MODE = 0o750


class _EndedError(BaseException):
    """A signal asked this run to end. Not an `Exception`: nothing round an item of a batch catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Run:
    """One run, as its handler sees it.

    Attributes:
        program: the name it was called by.
        settings: what `config.load` returned.
        arguments: by name in small letters, see `usage`.
        progress: ``with run.progress("reading", total, "bytes") as advance: advance(n)``; shows a bar on a terminal
            and nothing elsewhere. It may be passed on to a room below.
        faults: the lines that `fault` was called with.
    """

    __slots__ = ("arguments", "faults", "program", "progress", "settings")

    def __init__(self, program: str, settings: "Settings", arguments: usage.Values, progress: "Progress") -> None:
        self.program = program
        self.settings = settings
        self.arguments = arguments
        self.progress = progress
        self.faults: list[str] = []

    def say(self, line: str) -> None:
        """Print one line, at once. What could steer a terminal is printed as an escape."""
        error = _put(sys.stdout, _shown(line) + "\n")
        if error and not isinstance(error, BrokenPipeError):
            self.fault(f"cannot write to the standard output: {reason(error)}")

    def fault(self, line: str) -> None:
        """Report one item that failed, to standard error; the run goes on and its exit status becomes 1."""
        self.faults.append(line)
        _put(sys.stderr, f"{self.program}: {_shown(line)}\n")


def run(handler: str, alone: bool = True, looks: "tuple[str, ...]" = (), keeps: bool = True) -> "NoReturn":
    """Run a program to its end, and leave.

    Args:
        handler: ``"module:function"``; the function takes a `Run` and returns the summary in one line, or "".
        alone: whether there may be one run of this program at a time. The lock is the file owner's; a program
            that another user runs takes its own.
        looks: options, by name in small letters, with which it changes nothing and runs beside another one.
        keeps: whether it keeps anything in the state directory, which is then made where it is missing. What root
            makes there is not the file owner's.

    Returns:
        Never.
    """
    _open_standard_streams()
    program = os.path.basename(sys.argv[0])
    status = EX_SOFTWARE
    try:
        status = _told(program) if usage.asked(sys.argv[1:]) else _ended(program, handler, alone, looks, keeps)
    except InfoclusterError as error:
        _put(sys.stderr, f"{program}: {_shown(str(error))}\n")
        status = error.exit_status
    except _EndedError as error:
        status = 128 + error.number
    except KeyboardInterrupt:
        status = 128 + _signal.SIGINT
    except Exception as error:  # the last door: cron's mail gets the whole of it
        if isinstance(error, BrokenPipeError) and _is_unread(1):
            status = 128 + _signal.SIGPIPE
        else:
            import traceback

            _put(sys.stderr, f"{program}: {traceback.format_exc()}")
    for stream in (sys.stdout, sys.stderr):  # what the handler printed by itself
        _put(stream, "")
    sys.exit(status)


def _told(program: str) -> int:
    """Print what was asked for instead of a run."""
    if usage.asked(sys.argv[1:]) == "help":
        _put(sys.stdout, _manual().strip() + "\n")
    else:
        _put(sys.stdout, f"{program} (infocluster) {__version__}\n")
    return EX_OK


def _ended(program: str, handler: str, alone: bool, looks: "tuple[str, ...]", keeps: bool) -> int:
    """Do the work and return the exit status."""
    declared = usage.of(_manual())
    try:
        arguments = usage.parse(declared, sys.argv[1:])
    except UsageError as error:
        takes = declared.line.partition(" ")[2]
        _put(sys.stderr, f"{program}: {_shown(str(error))}\nUsage: {program} {takes}".rstrip() + "\n")
        return error.exit_status
    _on_signals(_ender())
    from infocluster import config

    settings = config.load()
    alone = alone and not any(arguments[name] for name in looks)
    lock = _locked(program, settings["site"]["state_dir"], alone) if keeps else None
    try:
        from infocluster.cron import progress

        module_name, _, function_name = handler.partition(":")
        __import__(module_name)
        this = Run(program, settings, arguments, progress.bar)
        summary: str = getattr(sys.modules[module_name], function_name)(this)
        if summary:
            this.say(f"{program}: {summary}")
        return EX_SOME_FAILED if this.faults else EX_OK
    finally:
        if lock:
            lock.release()
        _on_signals(_signal.SIG_DFL)


def _manual() -> str:
    manual = sys.modules["__main__"].__doc__
    if not manual:
        raise ValueError("cannot read the usage: the program has no docstring (python -OO drops it)")
    return manual


def _locked(program: str, state_dir: str, alone: bool) -> "filelock.BaseFileLock | None":  # type: ignore[name-defined] # noqa: F821
    """Make the state directory where it is missing, and take the program's lock if it wants one.

    Raises:
        RefusedError: root would leave files in the file owner's state directory.
        UnavailableError: the lock is held, or cannot be made.
    """
    from infocluster import files
    from infocluster.errors import RefusedError, UnavailableError
    from infocluster.locks import lockfile

    locks_dir = state_dir + "/locks"
    try:
        # What is missing above belongs to others too: the mode for the owner alone begins here.
        files.make_directories(os.path.dirname(state_dir))
        files.make_directories(state_dir, DIRECTORY_MODE)
        if alone and os.geteuid() == 0 and (owner := os.stat(state_dir).st_uid):
            # What root leaves there, its owner could not read, nor go on with.
            raise RefusedError(
                f"cannot run as root: {state_dir} is another's; type: sudo -u '#{owner}' {sys.argv[0]}"
            )
        if alone:
            files.make_directories(locks_dir, DIRECTORY_MODE)
    except OSError as error:
        if alone:
            raise UnavailableError(f"cannot make {locks_dir}: {reason(error)}") from error
    return lockfile.alone(f"{locks_dir}/{names.name(program, 'the name of a program')}.lock") if alone else None


def _ender() -> "Callable[[int, object], None]":
    """Return a signal handler that raises, so that whatever is open is closed on the way out."""
    started = os.getpid()
    ended = False

    def end(number: int, _frame: object) -> None:
        nonlocal ended
        if os.getpid() != started:  # a child that was forked has nothing to tidy up
            _signal.signal(number, _signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not ended:  # a second one does not disturb the tidying
            ended = True
            raise _EndedError(number)

    return end


def _on_signals(action: "Callable[[int, object], None] | int") -> None:
    for number in SIGNALS:
        # What is ignored from the start stays so: nohup(1), a shell's background job.
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, action)


def _open_standard_streams() -> None:
    """Fill the descriptors 0 to 2 where they are closed, or the first file that is opened would be written to."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8"))  # noqa: SIM115 (open to the end)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _shown(line: str) -> str:
    return line if line.isprintable() else "\t".join(names.printable(part) for part in line.split("\t"))


def _put(stream: "TextIO", text: str) -> OSError | None:
    """Print a text at once; where that fails, return why and send what is still to come nowhere."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None


def _is_unread(fd: int) -> bool:
    """Tell whether a descriptor is a pipe whose reader has gone."""
    import select

    look = select.poll()
    look.register(fd, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0))
