# SPDX-License-Identifier: Apache-2.0
"""A few small files to a server over ssh, in one conversation: half of what an rsync needs to begin at all.

1. The server is asked what it has at the paths, in the items of `comparison`.
2. Where files and links are missing or differ, and nothing else does, an archive of them is sent down the same
   connection and put in place as a whole (`archives`), over what has these names.

All else is left to rsync: what is gone here, directories that are missing there, something of another kind in a
place, a server that cannot be reached, or does not answer as expected. So is what failed here halfway: rsync finds
out where it stands, and tells why.

Source: find(1) of GNU findutils.
"""

import shlex
import time

from infocluster.errors import UnavailableError
from infocluster.processes import Conversation
from infocluster.push import archives, comparison, ssh
from infocluster.push.comparison import Difference
from infocluster.push.order import Order
from infocluster.push.servers import Server
from infocluster.trees import Listing

# So many files and links are few, and so many bytes in them little.
FEW_COUNT = 100
SMALL_BYTES = 1 << 20

# A command that is longer than this is not given to a kernel.
COMMAND_LIMIT_BYTES = 100_000

# Seconds until a server that is connected has told what it has.
ANSWER_S = 20.0

_ANSWER_END = b"\0" + comparison.END


def send(server: Server, listing: Listing, order: Order) -> tuple[Difference | None, bool]:
    """Return what a server lacks of a listing, and whether that is done now.

    Args:
        server: one that is reached by ssh.
        listing: what is pushed.
        order: as a transport gets it; nothing is done where it is only to be shown.

    Returns:
        What was found, None where the server cannot tell or there is too much of it; and True if the server
        lacks nothing of it any more.

    Raises:
        UnreachableError: the server could not be reached.
        UnavailableError: it refused us, its destination is not there, the time is over, or the push was stopped.
    """
    if listing.count > FEW_COUNT or listing.size_bytes > SMALL_BYTES:
        return None, False
    command = "sh -c " + shlex.quote(_script(listing, order.paths, server.destination))
    if len(command) > COMMAND_LIMIT_BYTES:
        return None, False
    with ssh.conversation(server, order.settings, command) as talk:
        answer = _answer(talk, server, order)
        found = comparison.difference(listing, answer) if answer else None
        if found is None or order.show or not _is_plain(found):
            return found, False
        if not found.put:
            return found, True
        archive = archives.packed(listing, tuple(action.path for action in found.put))
        if archive is None:
            return found, False
        talk.tell(b"\n" + archive, is_last=True)
        return found, ssh.status(talk, order, ANSWER_S) == 0


def _script(listing: Listing, paths: list[str], destination: str) -> str:
    """Return what a POSIX shell on the server runs; in one line, as not every login shell takes more."""
    return "; ".join(
        [
            *comparison.preamble(destination),
            *comparison.told(listing, paths),
            f"printf '{comparison.END.decode()}\\n'",
            "read -r go || exit 0",
            *archives.unpacking(paths[0].partition("/")[0]),
        ]
    )


def _answer(talk: Conversation, server: Server, order: Order) -> bytes:
    """Return the items that the server tells, b"" where it tells something else."""
    end = time.monotonic() + order.settings["push"]["connect_timeout_s"] + ANSWER_S
    answer = bytearray()
    while not answer.endswith(_ANSWER_END):
        try:
            line = ssh.heard(talk, order)
        except UnavailableError:
            status = talk.end(0 if order.stopped.is_set() else ANSWER_S)
            if status == comparison.NO_DESTINATION:
                raise comparison.no_destination(server) from None
            if status == ssh.NOT_REACHED:
                raise ssh.not_reached(server, talk.errors.encode()) from None
            if order.stopped.is_set() or time.monotonic() > order.end:
                raise
            return b""
        if line is not None:
            answer += (b"\n" if answer else b"") + line
        elif time.monotonic() > end:
            return b""
    return bytes(answer)


def _is_plain(found: Difference) -> bool:
    """Tell whether nothing but files and links is to be put, and little of that."""
    return not found.removals and not any(action.is_directory for action in found.put)
