# SPDX-License-Identifier: Apache-2.0
"""What runbatch does for runbatch.cgi, as the file owner: one program of batch/, one at a time, within its limit.

The web server's user can neither end nor wait for what runs as the file owner, and is itself ended by the web server
once a visitor has gone. So limit and lock are held on this side of sudo:

1. the words that follow have to be an entry of [runbatch] programs; the command is built from that entry;
2. the lock is taken or the run refused; its file says who runs what since when, for whoever comes next;
3. the program starts as cron would start it: a clean environment, no input, both outputs into one pipe;
4. what it says is passed on as it comes; a reader who has gone, or reads no more, is nothing to it;
5. at the limit it is asked to end, so that it can tidy up, and ``GRACE_S`` later killed with all that it started,
   also what has left its session;
6. the lock is let go of, and the last line says how the program ended; so does our own exit status.

Shape: the lock file, ``STATE_DIR/locks/runbatch.lock``, is a line such as
    ``survey-nightly, since 2026-11-23 08:20:11 UTC, for ann from 192.0.2.7``
"""

import os
import posix
import pwd
import select
import signal
import time

from infocluster import config, files, processes
from infocluster.apps import accounts, runbatch
from infocluster.config import Settings
from infocluster.cron.command import DIRECTORY_MODE, Run
from infocluster.errors import ConfigError, InfoclusterError, RefusedError, UnavailableError, reason
from infocluster.locks import lockfile
from infocluster.names import printable, shown

# Seconds a program has to tidy up after it was asked to end.
GRACE_S = 5.0
OVER_STATUS = 124
PATH = "/usr/local/bin:/usr/bin:/bin"
# What a pipe that may be written to takes at least, see pipe(7), PIPE_BUF.
PIECE_BYTES = 4096
WHO_LIMIT = 100


class _FailedError(InfoclusterError):
    """The program did not end with 0: its exit status is ours."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.exit_status = status


def work(run: Run) -> str:
    """Run what the arguments name and return how it ended.

    Raises:
        RefusedError: it is no entry, this is another machine, or this is not the file owner.
        ConfigError: the entry names no program.
        UnavailableError: another one runs.
        InfoclusterError: it did not end well; its exit status is ours, 128 + n for signal n, 124 at the limit.
    """
    conf = run.settings["runbatch"]
    called = run.arguments["argument"]
    words = [str(run.arguments["program"]), *(called if isinstance(called, list) else [])]
    entry = " ".join(words)
    if entry not in conf["programs"] or words != entry.split(" "):
        raise RefusedError(f"cannot run {shown(entry)}: runbatch.programs does not name it")
    if not runbatch.is_here(conf["run_on"]):
        raise RefusedError(f"cannot run {entry}: runbatch.run_on does not name this host")
    owner = accounts.file_owner(run.settings["site"])
    if os.geteuid() != owner.uid:
        raise RefusedError(f"cannot run {entry}: this is for the file owner, {owner.name}")
    words[0] = f"{config.ROOT}/batch/{words[0]}"
    if not os.path.isfile(words[0]) or not os.access(words[0], os.X_OK):
        raise ConfigError(f"cannot run {entry}: {words[0]} is missing or no program")
    started = f"{entry}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC, for {_asker()}"
    with _Alone(run.settings, started):
        run.say(runbatch.STARTED + started)
        began = time.monotonic()
        processes.adopt()
        with processes.Followed(words, *_place()) as program:
            is_over = _pass_on(program, began + conf["time_limit_s"])
        took = f"after {time.monotonic() - began:.1f} s"
    status = program.status
    if is_over:
        raise _FailedError(f"{entry}: ended {took}: the limit is {conf['time_limit_s']:g} s", OVER_STATUS)
    if status is None or status < 0:
        name = signal.Signals(-status).name if status else "a signal"
        raise _FailedError(f"{entry}: killed by {name} {took}", 128 - (status or 0))
    if status:
        raise _FailedError(f"{entry}: exit status {status} {took}", status)
    return f"{entry}: exit status 0 {took}"


def _asker() -> str:
    """Return who asked, as the web server knows him, or who called us."""
    told = os.environ.get("REMOTE_USER") or os.environ.get("SUDO_USER") or accounts.by_number(os.getuid()).name
    where = os.environ.get("REMOTE_ADDR")
    return printable(told[:WHO_LIMIT] + (f" from {where[:WHO_LIMIT]}" if where else ""))


def _place() -> tuple[dict[str, str], str]:
    """Return environment and directory of a program, as cron gives them."""
    try:
        entry = pwd.getpwuid(os.geteuid())
        name, home = entry.pw_name, entry.pw_dir
    except KeyError:
        name, home = str(os.geteuid()), "/"
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": home, "SHELL": "/bin/sh", "LOGNAME": name, "USER": name}
    if "INFOCLUSTER_CONF" in os.environ:
        environment["INFOCLUSTER_CONF"] = os.environ["INFOCLUSTER_CONF"]
    return environment, home if os.access(home, os.X_OK) and os.path.isdir(home) else "/"


class _Alone:
    """The lock, with a line in it that says who has it."""

    def __init__(self, settings: Settings, line: str) -> None:
        self._file = settings["site"]["state_dir"] + "/locks/runbatch.lock"
        self._line = line
        self._fd = -1

    def __enter__(self) -> None:
        try:
            files.make_directories(os.path.dirname(self._file), DIRECTORY_MODE)
            self._fd = posix.open(
                self._file, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o640
            )
            if not lockfile.take(self._fd, timeout_s=0):
                other = posix.read(self._fd, PIECE_BYTES).decode("utf-8", "replace").strip()
                posix.close(self._fd)
                raise UnavailableError(f"cannot run {self._line.partition(',')[0]}: there runs {other or 'another'}")
            posix.ftruncate(self._fd, 0)
            files.write_all(self._fd, self._line.encode("utf-8", "replace") + b"\n")
        except OSError as error:
            raise UnavailableError(f"cannot lock {self._file}: {reason(error)}") from error

    def __exit__(self, *_: object) -> None:
        lockfile.let_go(self._fd)


def _pass_on(program: processes.Followed, end: float) -> bool:
    """Pass on what it says until it has ended; return whether it had to be ended at the limit."""
    reader = _Reader()
    while (left_s := end - time.monotonic()) > 0:
        chunk = program.heard(left_s)
        if chunk == b"":
            return False
        reader.tell(chunk or b"", end)
    program.ask_to_end()
    end = time.monotonic() + GRACE_S
    while program.status is None and (left_s := end - time.monotonic()) > 0:
        reader.tell(program.heard(left_s) or b"", end)
    program.kill()
    while chunk := program.heard(0):
        reader.tell(chunk, time.monotonic())
    return True


class _Reader:
    """Whoever reads our standard output, for as long as he does."""

    def __init__(self) -> None:
        self._is_there = True
        self._look = select.poll()
        self._look.register(1, select.POLLOUT)

    def tell(self, content: bytes, end: float) -> None:
        """Write, but wait no longer than to the end for somebody to read it."""
        for begin in range(0, len(content), PIECE_BYTES):
            ready = self._is_there and self._look.poll(max(0.0, end - time.monotonic()) * 1000)
            if not ready:
                return
            try:
                files.write_all(1, content[begin : begin + PIECE_BYTES])
            except OSError:
                self._is_there = False
