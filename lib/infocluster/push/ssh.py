# SPDX-License-Identifier: Apache-2.0
"""How a server is reached by ssh: one connection a host, kept open and shared by all that goes there.

1. The first program that goes to a server opens the connection and leaves it open behind itself (ControlPersist).
2. Each later one, of this push or the next, goes through its socket in STATE_DIR/ssh and saves the handshake, which
   costs more than all else that a push of a few files does.
3. Nothing is used for ``[push] ssh_keep_s``: the connection ends itself. A socket that a killed one left behind is
   found to be dead by ssh, which removes it and opens the next.

The socket is called by a hash of all that decides where it leads: an address of a socket has some hundred bytes, and
ssh needs a few of them until it is bound. Where STATE_DIR is too long for that, or STATE_DIR/ssh is another user's,
sockets are in a directory of the user's own below /run/user or /tmp. Host keys are checked as ssh's own configuration
says; nothing is asked.

Source: ssh(1), ssh_config(5), unix(7).
"""

import os
import shlex
import stat
import time
from _blake2 import blake2b  # by way of hashlib it comes with OpenSSL, which takes longer to load than all of this
from collections.abc import Sequence

from infocluster import files, names, processes
from infocluster.config import Settings
from infocluster.errors import ConfigError, UnavailableError, reason
from infocluster.processes import Conversation, EndedError, Outcome
from infocluster.push.order import Order, UnreachableError
from infocluster.push.servers import Server

NOT_REACHED = 255
ANSWER_LIMIT_BYTES = 1 << 30
# How often the wish to stop is looked at in a conversation.
LOOK_S = 0.1

# An address has 108 bytes with its end; ssh binds it under a name that is 17 bytes longer.
_ADDRESS_LIMIT_BYTES = 90
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+")

# What ssh says when the server is there and does not want us, or is not who it should be: no use to try again.
_REFUSALS = ("Permission denied (", "Host key verification failed", "Too many authentication failures")


def arguments(server: Server, settings: Settings) -> list[str]:
    """Return the words that reach a server, but for its name: the program, its options and ``--``.

    Raises:
        ConfigError: the server's user is no plain name.
        UnavailableError: there is no directory that only we may use for the socket.
    """
    push = settings["push"]
    words = [push["ssh"]]
    if push["ssh_config"]:
        words += ["-F", push["ssh_config"]]
    seconds = max(1, round(push["connect_timeout_s"]))
    # A shared connection whose network is gone has to be found out while somebody waits for it.
    words += [
        "-oBatchMode=yes",
        f"-oConnectTimeout={seconds}",
        f"-oServerAliveInterval={seconds}",
        "-oServerAliveCountMax=3",
    ]
    if push["ssh_keep_s"]:
        words += [
            "-oControlMaster=auto",
            f"-oControlPath={_socket_file(server, settings)}",
            f"-oControlPersist={max(1, round(push['ssh_keep_s']))}",
        ]
    else:
        words += ["-oControlMaster=no", "-oControlPath=none"]
    if server.user:
        words += ["-l", user(server)]
    if server.port:
        words += ["-p", str(server.port)]
    return [*words, "--"]


def user(server: Server) -> str:
    """Return who to be on a server, "" for the default.

    Raises:
        ConfigError: it is no plain name, so that it could be read as something else.
    """
    if server.user and not names.is_name(server.user):
        raise ConfigError(f"cannot push to {server.name} as {names.shown(server.user)}: not a plain user name")
    return server.user


def run(
    server: Server,
    words: Sequence[str],
    order: Order,
    content: bytes = b"",
    output_limit_bytes: int = ANSWER_LIMIT_BYTES,
) -> Outcome:
    """Run a program on a server and return how it ended.

    Args:
        server: where.
        words: the program and its arguments; each reaches it as it is, whatever is in it.
        order: its settings, its time limit and its wish to stop are kept to.
        content: what it reads on standard input.
        output_limit_bytes: how much of what it says is returned.

    Raises:
        UnreachableError: the server could not be reached, or the connection broke.
        UnavailableError: it refused us; or the program did not end in time, or was stopped.
        ConfigError: as `arguments`.
    """
    command = " ".join(shlex.quote(word) for word in words)
    left_s = max(order.end - time.monotonic(), 0)
    outcome = processes.run(
        [*arguments(server, order.settings), server.name, command],
        left_s,
        content,
        is_stopped=order.stopped.is_set,
        output_limit_bytes=output_limit_bytes,
    )
    if outcome.status == NOT_REACHED:
        raise not_reached(server, outcome.errors)
    return outcome


def conversation(server: Server, settings: Settings, command: str) -> Conversation:
    """Return the conversation with a command that the login shell on a server runs.

    It goes through a connection that is open without any program here; what comes of that one may have broken, see
    `mux`, and is worth to be asked again by other means.

    Raises:
        UnavailableError: ssh cannot be started.
        ConfigError: as `arguments`.
    """
    if settings["push"]["ssh_keep_s"]:
        from infocluster.push import mux

        session = mux.session(_socket_file(server, settings), command)
        if session is not None:
            return Conversation(session, ANSWER_LIMIT_BYTES)
    return Conversation([*arguments(server, settings), server.name, command], ANSWER_LIMIT_BYTES)


def heard(talk: Conversation, order: Order) -> bytes | None:
    """Return the next line of a conversation, None where there is none for a moment.

    Raises:
        EndedError: there will be none.
        UnavailableError: the time is over, or the push was stopped.
    """
    _go_on(order)
    return talk.heard(LOOK_S)


def tell(talk: Conversation, order: Order, content: bytes) -> None:
    """Give the other side of a conversation something to read, and wait until it has. Raises as `heard`."""
    talk.tell(content)
    while not talk.is_told(LOOK_S):
        _go_on(order)


def _go_on(order: Order) -> None:
    if order.stopped.is_set():
        raise UnavailableError("the push was stopped")
    if time.monotonic() > order.end:
        raise UnavailableError("not done after the time for a server")


def status(talk: Conversation, order: Order, left_s: float) -> int:
    """Wait for the end of a conversation and return how it ended.

    Args:
        talk: the conversation.
        order: its time limit and its wish to stop are kept to.
        left_s: seconds for the other side to end once it has said all.

    Raises:
        UnavailableError: the time is over, or the push was stopped.
    """
    while True:
        try:
            heard(talk, order)
        except EndedError:
            return talk.end(left_s)


def forget(server: Server, settings: Settings) -> None:
    """Let go of a kept connection that seems to be dead: what still uses it may end, what comes opens a new one."""
    if settings["push"]["ssh_keep_s"] and os.path.exists(_socket_file(server, settings)):
        processes.run([*arguments(server, settings)[:-1], "-Ostop", "--", server.name], 5)


def not_reached(server: Server, errors: bytes) -> UnavailableError:
    """Return the error for what ssh said on its way to a server: one to try again, or a refusal."""
    lines = [line.strip() for line in errors.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    refusals = [line for line in lines if any(words in line for words in _REFUSALS)]
    if refusals:
        return UnavailableError(f"cannot use {server.name}: {names.printable(refusals[-1])}")
    own = [line for line in lines if not line.startswith("rsync")]
    return UnreachableError(
        f"cannot reach {server.name}: {names.printable(own[-1]) if own else 'the connection broke'}"
    )


def _socket_file(server: Server, settings: Settings) -> str:
    push = settings["push"]
    identity = [push["ssh"], push["ssh_config"], server.user, str(server.port), server.name]
    if push["ssh_config"]:
        try:
            # Another version of it may lead elsewhere.
            identity.append(str(os.stat(push["ssh_config"]).st_mtime_ns))
        except OSError as error:
            raise ConfigError(f"cannot read {push['ssh_config']}: {reason(error)}") from error
    name = blake2b("\0".join(identity).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    file = f"{settings['site']['state_dir']}/ssh/{name}"
    if len(os.fsencode(file)) > _ADDRESS_LIMIT_BYTES or not _PLAIN.issuperset(file) or _is_anothers(file):
        run_dir = f"/run/user/{os.geteuid()}"
        parent = run_dir if os.path.isdir(run_dir) else "/tmp"  # noqa: S108 - a directory that is checked to be ours
        file = f"{parent}/infocluster-ssh-{os.geteuid()}/{name}"
    _own_directory(os.path.dirname(file))
    return file


def _is_anothers(file: str) -> bool:
    """Tell whether a file's directory is another user's, who pushes by the same group as we."""
    try:
        return os.lstat(os.path.dirname(file)).st_uid != os.geteuid()
    except OSError:
        return False


def _own_directory(directory: str) -> None:
    """Make sure that a directory is there and that only we may use it: who owns its sockets is us on the servers."""
    try:
        try:
            status = os.lstat(directory)
        except FileNotFoundError:
            files.make_directories(directory, 0o700)
            status = os.lstat(directory)
    except OSError as error:
        raise UnavailableError(f"cannot make {directory}: {reason(error)}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UnavailableError(f"cannot use {directory}: it is not a directory of ours")
    if status.st_mode & 0o077:
        raise UnavailableError(f"cannot use {directory}: others may enter it (mode {status.st_mode & 0o7777:04o})")
