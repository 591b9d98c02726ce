# SPDX-License-Identifier: Apache-2.0
"""What is to be done on a server after its files have changed: the special and cmdspecial of its skeleton.

All commands of one push go to a server together, as one script for its shell on standard input. Each runs in a shell
of its own; names of files reach it in its environment, quoted, never as a part of its text. The commands
themselves are the administrator's: they come from the skeleton file, and whoever may write that may run them.

Source: rdist(1) for FILE, REMFILE, BASEFILE and FILES; sh(1).
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infocluster import processes
from infocluster.errors import InfoclusterError
from infocluster.names import printable
from infocluster.processes import Outcome
from infocluster.push.order import Order
from infocluster.push.servers import Server
from infocluster.push.skeleton import Skeleton
from infocluster.trees import Action

SHELL = ("/bin/sh", "-s")
_MARK = "infocluster-special"


@dataclass(frozen=True, slots=True)
class Command:
    """One command for the shell of a server, with the variables it gets."""

    text: str
    environment: Mapping[str, str] = field(default_factory=dict)


def commands(skeleton: Skeleton, changes: Sequence[Action], production_dir: str, destination: str) -> list[Command]:
    """Return what is to be run on a server to which something was done.

    As with rdist, a ``special`` runs for each file and link that was sent, then each ``cmdspecial`` once. Unlike
    there, one that has a list runs only where something of that list was sent or removed.

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
        result.append(Command(special.text, {"FILES": ":".join(files)}))
    return result


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
