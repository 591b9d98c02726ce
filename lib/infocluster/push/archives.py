# SPDX-License-Identifier: Apache-2.0
"""What a server has nothing of, as archives: read once for all servers, unpacked aside, put in place as a whole.

1. Files, links and directories that are new on a server are dealt out into shipments, each of one tree and of paths
   that follow each other, and these into pieces.
2. A piece is packed by tar, here in memory: the servers that are served at once want the same ones in turn.
3. A server unpacks a shipment, piece by piece, in a directory of its own beside the rest, where nobody else may look.
   When it is there as a whole, each of its files gets its name by link(2): it appears whole, or not at all.

For an rsync a new file is a question, an answer and a rename; for tar it is a file. What fails is left to rsync,
which finds out where it stands, and tells why.

Source: tar(1), cp(1) of GNU; pax Interchange Format, IEEE Std 1003.1.
"""

import os
import shlex
import threading
from collections.abc import Iterator

from infocluster import files, processes
from infocluster.errors import UnavailableError
from infocluster.processes import EndedError
from infocluster.push import comparison, ssh
from infocluster.push.order import Order
from infocluster.push.servers import Server
from infocluster.trees import Action, Listing, above

# From so many new files, links and directories on, they go as archives.
MANY = 100

# What a shipment may have: so much is sent again where a connection breaks, or lies there beside its place.
SHIPMENT_COUNT = 50_000
SHIPMENT_BYTES = 1 << 28
# What a piece may have; it is in memory.
PIECE_COUNT = 2000
PIECE_BYTES = 1 << 23
# So many pieces are kept for servers that are behind the first one; who is further behind packs its own.
KEPT = 4
# Seconds to read a piece from the disk, and to put a shipment in place once it is there.
PACK_S = 120.0
PLACE_S = 300.0

# What tar has beside the content of a file, in bytes, with its time to the nanosecond.
_HEADERS_BYTES = 4096

_PACKING = threading.Lock()


def unpacking(tree: str) -> list[str]:
    """Return the commands of a POSIX shell that read archives in a row, and put in place what is in them.

    They unpack in a directory of the tree with the shell's number at the end of its name, and remove those of shells
    that were killed.

    Args:
        tree: the tree that the archives are of.
    """
    aside = f"./{tree}/{files.temporary_name('push')}"
    return [
        "umask 077",
        f"for old in {shlex.quote(f'./{tree}/{files.TEMPORARY}push.')}*; "
        'do test ! -d "$old" || kill -0 "${old##*.}" 2>/dev/null || rm -rf "$old"; done',
        f"aside={shlex.quote(aside)}.$$",
        """trap 'rm -rf "$aside"' 0""",
        "trap 'exit 1' 1 2 13 15",
        'mkdir "$aside" && tar --extract --ignore-zeros --preserve-permissions --no-same-owner '
        '--warning=no-timestamp --directory="$aside" && umask 0 && cp --recursive --no-dereference '
        '--preserve=links --link --force --no-target-directory "$aside" .',
    ]


def packed(listing: Listing, paths: tuple[str, ...]) -> bytes | None:
    """Return an archive of files, links and directories, packed once for all who ask for the same soon.

    Args:
        listing: what they are of.
        paths: their tree paths.

    Returns:
        None where one of them is gone or cannot be read.
    """
    kept = comparison.items(listing).archives
    with _PACKING:
        if paths not in kept:
            while len(kept) >= KEPT:
                del kept[next(iter(kept))]
            kept[paths] = _packed(listing, paths)
        return kept[paths]


def put(server: Server, listing: Listing, order: Order, wanted: list[Action]) -> tuple[list[Action], list[Action]]:
    """Put in place what a server lacks, as far as that goes well.

    Args:
        server: one that is reached by ssh.
        listing: what is pushed.
        order: as a transport gets it.
        wanted: what is to be put in place, in the order of paths.

    Returns:
        What is in place now, and what may be, as it was begun and did not end well.

    Raises:
        UnreachableError: the connection broke.
        UnavailableError: the server refused us, the time is over, or the push was stopped.
    """
    # What becomes a directory is none yet, so that nothing can be put in it.
    becoming = {action.path for action in wanted if action.verb == "update" and action.is_directory}
    new = [
        action
        for action in wanted
        if action.verb == "install"
        and action.size <= PIECE_BYTES
        and not (becoming and not becoming.isdisjoint(above(action.path)))
    ]
    # Names of one file would become files of their own where they are in different pieces.
    if len(new) < MANY or listing.has_links or not _is_open(listing):
        return [], []
    done: list[Action] = []
    for shipment in _dealt(new, SHIPMENT_COUNT, SHIPMENT_BYTES):
        if not _is_sent(server, listing, order, shipment):
            return done, shipment
        done += shipment
    return done, []


def _is_sent(server: Server, listing: Listing, order: Order, shipment: list[Action]) -> bool:
    """Send a shipment, and tell whether all of it is in place. Raises as `put`."""
    tree = shipment[0].path.partition("/")[0]
    commands = [*comparison.preamble(server.destination), *_tree(listing, tree), *unpacking(tree)]
    with ssh.conversation(server, order.settings, "sh -c " + shlex.quote("; ".join(commands))) as talk:
        try:
            for piece in _dealt(shipment, PIECE_COUNT, PIECE_BYTES):
                archive = packed(listing, tuple(action.path for action in piece))
                if archive is None:
                    return False
                ssh.tell(talk, order, archive)
        except EndedError:
            return False
        talk.hang_up()
        return ssh.status(talk, order, PLACE_S) == 0


def _dealt(actions: list[Action], count: int, size_bytes: int) -> Iterator[list[Action]]:
    """Yield actions in their order, so many and with so many bytes at once, each time of one tree."""
    part: list[Action] = []
    size, tree = 0, ""
    for action in actions:
        if part and (len(part) >= count or size + action.size > size_bytes or not action.path.startswith(tree)):
            yield part
            part, size = [], 0
        if not part:
            tree = action.path.partition("/")[0] + "/"
        part.append(action)
        size += action.size
    if part:
        yield part


def _tree(listing: Listing, tree: str) -> list[str]:
    """Return the command that makes a tree where it is missing, with its mode."""
    quoted = shlex.quote("./" + tree)
    mode = listing.top.directories[tree].mode & 0o777 | 0o700
    return [f"test -d {quoted} || mkdir -m {mode:o} {quoted}"]


def _is_open(listing: Listing) -> bool:
    """Tell whether all directories have the mode that they have on a server, where their owner may change them."""
    waiting = [listing.top]
    while waiting:
        directory = waiting.pop()
        if directory.mode & 0o700 != 0o700:
            return False
        waiting += directory.directories.values()
    return True


def _packed(listing: Listing, paths: tuple[str, ...]) -> bytes | None:
    words = ["tar", "--create", "--format=posix", "--pax-option=delete=atime,delete=ctime", "--mode=ug-s,o-t"]
    words += ["--directory", listing.source, "--no-recursion", "--null", "--verbatim-files-from", "--files-from=-"]
    content = b"".join(os.fsencode(f"./{path}") + b"\0" for path in paths)
    limit_bytes = PIECE_BYTES + _HEADERS_BYTES * (len(paths) + 10)
    try:
        outcome = processes.run(words, PACK_S, content, output_limit_bytes=limit_bytes)
    except UnavailableError:
        return None
    return outcome.output if outcome.status == 0 and len(outcome.output) < limit_bytes else None
