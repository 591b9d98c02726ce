# SPDX-License-Identifier: Apache-2.0
"""What is to be done on a server after its files have changed: the special and cmdspecial of its skeleton.

All commands of one push go to a server together, as one script for its shell on standard input. Each runs in a shell
of its own; names of files reach it in its environment, quoted, never as a part of its text. The commands
themselves are the administrator's: they come from the skeleton file, and whoever may write that may run them.

Source: rdist(1) for FILE, REMFILE, BASEFILE and FILES; sh(1); execve(2) for the size of a variable.
"""

import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from infocluster import processes
from infocluster.errors import InfoclusterError
from infocluster.names import printable
from infocluster.processes import Outcome
from infocluster.push.order import Order
from infocluster.push.servers import Server
from infocluster.push.skeleton import Skeleton
from infocluster.trees import ABSENT, Action, Directory, Listing, join

SHELL = ("/bin/sh", "-s")
# What a variable may have that a program is started with is 128 KiB.
FILES_LIMIT_BYTES = 1 << 16
_MARK = "infocluster-special"


@dataclass(frozen=True, slots=True)
class Command:
    """One command for the shell of a server, with the variables it gets."""

    text: str
    environment: Mapping[str, str] = field(default_factory=dict)


def commands(skeleton: Skeleton, changes: Sequence[Action], production_dir: str, destination: str) -> list[Command]:
    """Return what is to be run on a server to which something was done.

    As with rdist, a ``special`` runs for each file and link that was sent, then each ``cmdspecial`` once, or
    more often where its names are too many for a variable. Unlike there, one that has a list runs only where
    something of that list was sent or removed.

    Args:
        skeleton: the server's.
        changes: what was done there.
        production_dir: where the files are here.
        destination: where they are there.
    """
    sent = [action.path for action in changes if action.verb in ("install", "update") and not action.is_directory]
    touched = [action.path for action in changes if action.verb in ("install", "update", "remove")]
    result = []
    for special in skeleton.specials:
        if special.once:
            continue
        for path in sent:
            if special.files is None or special.files.line(path) is not None:
                remote = f"{destination}/{path}"
                names = {"FILE": f"{production_dir}/{path}", "REMFILE": remote, "BASEFILE": path.rpartition("/")[2]}
                result.append(Command(special.text, names))
    for special in skeleton.specials:
        listed = special.files
        if not special.once or not any(listed is None or listed.line(path) is not None for path in touched):
            continue
        files = [f"{destination}/{path}" for path in sent if listed is None or listed.line(path) is not None]
        result += [Command(special.text, {"FILES": names}) for names in _joined(files)]
    return result


def _joined(files: Iterable[str]) -> list[str]:
    """Return names with colons between them, in as many texts as they need; one text at least."""
    parts: list[list[str]] = [[]]
    size = 0
    for name in files:
        length = len(name.encode("utf-8", "surrogateescape")) + 1
        if parts[-1] and size + length > FILES_LIMIT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += length
    return [":".join(part) for part in parts]


def assumed(listing: Listing, paths: Iterable[str]) -> Iterator[Action]:
    """Yield what an earlier push may have done at and below paths: what is there was sent, what is not was removed.

    Args:
        listing: what a server has now.
        paths: tree paths in it.
    """
    for path in paths:
        above, _, last = path.rpartition("/")
        here, below = listing.directory(above), listing.directory(path)
        if below is not None and below.mode != ABSENT:
            yield from _all(below, path)
        elif here is not None and last in here.entries:
            yield Action("update", path)
        elif here is None or last not in here.left:
            yield Action("remove", path)


def _all(directory: Directory, path: str) -> Iterator[Action]:
    yield Action("update", path, True)
    for name in directory.entries:
        yield Action("update", join(path, name))
    for name, below in directory.directories.items():
        yield from _all(below, join(path, name))


def script(several: Sequence[Command]) -> bytes:
    """Return the script that runs commands one after the other and says on its errors which of them failed."""
    lines = []
    for number, command in enumerate(several):
        names = "".join(f"{name}={shlex.quote(value)} " for name, value in command.environment.items())
        run = f"{names}/bin/sh -c {shlex.quote(command.text)} </dev/null"
        lines.append(f'{run} || echo "{_MARK} {number} $?" >&2\n')
    return "".join(lines).encode("utf-8", "surrogateescape")


def run(server: Server, skeleton: Skeleton, changes: Sequence[Action], order: Order) -> list[str]:
    """Run on a server what its skeleton asks for, and return a line for each command that failed.

    Args:
        server: the server, or this host for the transport ``local``.
        skeleton: its skeleton.
        changes: what was done there.
        order: the push's order; its time limit and wish to stop hold here too.
    """
    several = commands(skeleton, changes, order.settings["site"]["production_dir"], server.destination)
    if not several:
        return []
    if server.transport == "daemon":
        return [f"cannot run {len(several)} commands of {skeleton.file}: an rsync daemon runs none"]
    try:
        outcome = _run(server, script(several), order)
    except InfoclusterError as error:
        return [f"cannot run the commands of {skeleton.file}: {error}"]
    faults = []
    for line in outcome.errors.decode("utf-8", "surrogateescape").splitlines():
        words = line.split(" ")
        if words[0] == _MARK and len(words) == 3 and words[1].isdigit() and int(words[1]) < len(several):
            faults.append(_fault(several[int(words[1])], words[2], outcome))
    if not faults and outcome.status != 0:
        faults.append(f"cannot run the commands of {skeleton.file}: the shell ended with status {outcome.status}")
    return faults


def _run(server: Server, content: bytes, order: Order) -> Outcome:
    if server.transport != "local":
        from infocluster.push import ssh

        return ssh.run(server, SHELL, order, content, processes.OUTPUT_LIMIT_BYTES)
    left_s = max(order.end - time.monotonic(), 0)
    return processes.run(SHELL, left_s, content, is_stopped=order.stopped.is_set)


def _fault(command: Command, status: str, outcome: Outcome) -> str:
    said = [line for line in outcome.errors.decode("utf-8", "replace").splitlines() if not line.startswith(_MARK)]
    last = f" ({printable(said[-1])})" if said else ""
    of = f" for {printable(command.environment['REMFILE'])}" if "REMFILE" in command.environment else ""
    return f"the command {printable(command.text)}{of} ended with status {printable(status)}{last}"
