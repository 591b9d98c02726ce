# SPDX-License-Identifier: Apache-2.0
"""A push for somebody on another host: a forced command that takes a list of paths, and its client.

1. On the batch host the key of whoever may push stands in the file owner's ``authorized_keys`` with a command of its
   own, so that it opens nothing else::

    restrict,command="SUDO_USER=jane /opt/infocluster/batch/wwwpush -serve" ssh-ed25519 AAAA... jane@compute1

   ``wwwpush -serve -all`` there allows whole trees too. SUDO_USER is who others are told that they wait for, and who
   stands in the record; without it that is the file owner.
2. ``wwwpush -via HOST PATH...`` on the other host writes the paths to ssh and prints what comes back.
3. `read_paths` takes the list and nothing else. Whatever is not in order is refused before anything is done, and
   logged with the address it came from.
4. The paths are pushed as ``wwwpush PATH...`` would; its lines and its exit status are those of the client.

Shape: what the server reads is UTF-8, one tree path a line, each line with its end, such as
    ``world/sample\\nworld/index.html\\n``; at most 1000 lines and 1 MiB. The command that ssh was asked to run is
    ``wwwpush`` or none.

Source: sshd(8), AUTHORIZED_KEYS FILE FORMAT; ssh(1), ENVIRONMENT and EXIT STATUS.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from infocluster import names, processes
from infocluster.config import Settings
from infocluster.errors import InfoclusterError, RefusedError, UnavailableError, UsageError
from infocluster.push import ssh
from infocluster.push.servers import Server

WORD = "wwwpush"
PATHS_LIMIT = 1000
LIST_LIMIT_BYTES = 1 << 20
LINE_LIMIT_BYTES = 1 << 20
# What ssh exits with when it is ssh that failed.
SSH_FAILED = 255

Say = Callable[[str], None]


def _to_syslog(line: str) -> None:
    import syslog

    syslog.openlog(WORD, syslog.LOG_PID, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_WARNING, line)
    syslog.closelog()


def read_paths(
    stream: BinaryIO, environment: Mapping[str, str], everything: bool = False, log: Say = _to_syslog
) -> list[str]:
    """Return the paths that a client asks to be pushed, each in its one form.

    Args:
        stream: where the client writes; read to its end, or to the limit.
        environment: as sshd sets it: SSH_ORIGINAL_COMMAND, SSH_CONNECTION.
        everything: whether whole trees may be named.
        log: gets a line for what is refused, with the peer; by default the system's log, facility auth.

    Raises:
        RefusedError: it is anything but a list of paths, or names a whole tree.
    """
    try:
        return _paths(stream, environment, everything)
    except RefusedError as error:
        log(f"refused from {_peer(environment)}: {error}")
        raise


def ask(host: str, paths: Sequence[str], settings: Settings, say: Say, fault: Say) -> int:
    """Have paths pushed by another host, and return the exit status of its wwwpush.

    Args:
        host: its name, as ssh's configuration has it.
        paths: tree paths.
        settings: for the way ssh is called.
        say: gets each line of its standard output when it comes.
        fault: gets the lines of its standard error, without the name of the program before them.

    Raises:
        UsageError: the host is no plain name, or there is no path, or one that is none.
        UnavailableError: it cannot be reached, or the connection broke; what it does then is not known.
    """
    server = Server(names.name(host, "the host to push by"), "", "ssh", "")
    asked = [names.tree_path(path) for path in paths]
    if not asked:
        raise UsageError("cannot push: expected a path such as world/sample")
    # Whoever calls this need not be the owner of a state directory here.
    once = {**settings, "push": {**settings["push"], "ssh_keep_s": 0}}
    words = [*ssh.arguments(server, once), server.name, WORD]
    with processes.Conversation(words, LINE_LIMIT_BYTES) as talk:
        talk.tell("".join(path + "\n" for path in asked).encode("utf-8", "surrogateescape"), is_last=True)
        try:
            while True:
                line = talk.heard(60)
                if line is not None:
                    say(line.decode("utf-8", "replace"))
        except UnavailableError:
            # It has said all that it will.
            status = talk.end(60)
        errors = talk.errors.splitlines()
    if status < 0 or status == SSH_FAILED:
        why = names.printable(errors[-1]) if errors else "the connection broke"
        raise UnavailableError(f"cannot push by {host}: {why}")
    for each in errors:
        fault(each.removeprefix(WORD + ": "))
    return status


def _paths(stream: BinaryIO, environment: Mapping[str, str], everything: bool) -> list[str]:
    command = environment.get("SSH_ORIGINAL_COMMAND", "")
    if command not in ("", WORD):
        raise RefusedError(f"cannot run {names.shown(command)}: this key is for lists of paths alone")
    content = stream.read(LIST_LIMIT_BYTES + 1)
    if len(content) > LIST_LIMIT_BYTES:
        raise RefusedError(f"cannot push the list: it has over {LIST_LIMIT_BYTES} bytes")
    if not content.endswith(b"\n"):
        raise RefusedError("cannot push the list: it is empty, or its last line has no end")
    lines = content[:-1].split(b"\n")
    if len(lines) > PATHS_LIMIT:
        raise RefusedError(f"cannot push the list: it has over {PATHS_LIMIT} lines")
    paths = []
    for number, line in enumerate(lines, 1):
        try:
            path = names.tree_path(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise RefusedError(f"cannot push the list: line {number} is not UTF-8") from None
        except InfoclusterError as error:
            raise RefusedError(f"cannot push the list: line {number}: {error}") from None
        if "/" not in path and not everything:
            raise RefusedError(f"cannot push {names.shown(path)}: it is a whole tree, and this key is for parts")
        paths.append(path)
    return paths


def _peer(environment: Mapping[str, str]) -> str:
    address, _, rest = environment.get("SSH_CONNECTION", "").partition(" ")
    port = rest.partition(" ")[0]
    return names.printable(f"{address} port {port}"[:100]) if address else "a caller without ssh"
