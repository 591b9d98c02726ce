# SPDX-License-Identifier: Apache-2.0
"""What a web server did not take: counts by reason, and the ghosts, names that no key is known for.

Shape: ``$SERVER_GATHER/<app>.refused``, replaced whole under ``<app>.refused.lock``, a mark and one refusal a line::

        infocluster refused 1
        count signature 12
        ghost node77 3 192.0.2.9 1795384800

    a reason and how often; a ghost's name, how often it came, from where and when last (Unix seconds). At most
    `GHOSTS_LIMIT` ghosts are listed: what anybody may send must not fill a disk. Not made durable: it is read by
    people, and no report depends on it.

A hit loads this module when it does not take a report.
"""

from infocluster import files, names
from infocluster.locks import lockfile

MARK = "infocluster refused 1"
GHOSTS_LIMIT = 200
LOCK_TIMEOUT_S = 5.0
_MODE = 0o644


class Refused:
    """What was refused.

    Attributes:
        counts: reason to how often.
        ghosts: name to (how often, address, Unix time of the last).
    """

    __slots__ = ("counts", "ghosts")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.ghosts: dict[str, tuple[int, str, int]] = {}


def note(path: str, reason: str, ghost: str = "", address: str = "", now: int = 0) -> None:
    """Count a refusal.

    Args:
        path: the file, ``$SERVER_GATHER/<app>.refused``.
        reason: one word.
        ghost: the name of a node that there is no key for, "" for another reason.
        address: where it came from.
        now: Unix time, s.

    Raises:
        UnavailableError: the lock cannot be had.
        OSError: it cannot be written.
    """
    with lockfile.hold(path + ".lock", timeout_s=LOCK_TIMEOUT_S):
        found = read(path)
        found.counts[reason] = found.counts.get(reason, 0) + 1
        if names.is_name(ghost) and (ghost in found.ghosts or len(found.ghosts) < GHOSTS_LIMIT):
            where = "".join(character for character in address if character in "0123456789abcdefABCDEF.:")[:64] or "-"
            found.ghosts[ghost] = (found.ghosts.get(ghost, (0, "", 0))[0] + 1, where, now)
        lines = [MARK, *(f"count {word} {n}" for word, n in sorted(found.counts.items()))]
        lines += [f"ghost {name} {n} {where} {last}" for name, (n, where, last) in sorted(found.ghosts.items())]
        files.replace(path, "\n".join([*lines, ""]).encode("ascii", "replace"), _MODE, durable=False)


def read(path: str) -> Refused:
    """Return what was refused; nothing where there is no such file, and of a line that is none of ours.

    Raises:
        OSError: it cannot be read.
    """
    found = Refused()
    try:
        text = files.read(path).decode("ascii", "replace")
    except FileNotFoundError:
        return found
    for line in text.split("\n")[1:]:
        words = line.split(" ")
        if words[0] == "count" and len(words) == 3 and words[2].isdigit():
            found.counts[words[1]] = int(words[2])
        elif words[0] == "ghost" and len(words) == 5 and words[2].isdigit() and words[4].isdigit():
            found.ghosts[words[1]] = (int(words[2]), words[3], int(words[4]))
    return found
