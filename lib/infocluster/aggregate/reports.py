# SPDX-License-Identifier: Apache-2.0
"""The read side of reports: what is new in every server's queue, in the order of time, and what of it may be swept.

The queues belong to the servers' user: they are listed and read, without a lock and without a change. A report can
come into a directory of a queue later than one with a later name, so what was read is remembered by name, in the
`store`, and not as a place up to which everything was.

Shape: the marks of a queue, ``<marks>/<app>.queue`` in the production tree, say which of its directories were read to
    the last element; the owner drops such a directory when it holds exactly these elements::

        {"format": "infocluster queue marks 1", "app": "reports", "made": 1795384800, "directories":
         [{"server": "web1", "directory": "6b0f4e00", "elements": 12, "digest": "5f0c2a9be7d14c33"}]}

    ``digest`` is of the elements' names in order, so that one server's mark fits no other server's directory.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from infocluster import names
from infocluster.errors import BadInputError, reason

FORMAT = "infocluster queue marks 1"
# Seconds behind a directory's last possible addition until it is over.
OVER_S = 300
_HEXADECIMAL = frozenset("0123456789abcdef")
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Element(NamedTuple):
    """A report in a server's queue."""

    server: str
    directory: str
    name: str
    path: str

    @property
    def time(self) -> float:
        """When it came, Unix seconds."""
        return int(self.name[:8], 16) + int(self.name[8:13], 16) / 1e6


class Queues:
    """The queues of all servers, looked at again and again by one process.

    Args:
        gather_dir: where the servers' gather directories are seen.
        host: the HOST part of the path.
        app: the queue's name.
    """

    def __init__(self, gather_dir: str, host: str, app: str) -> None:
        self.gather_dir = gather_dir
        self.host = host
        self.app = names.name(app, "an application's name")
        self.faults: list[str] = []
        # (server, directory) to its mtime in ns, where all of it was read then.
        self._done: dict[tuple[str, str], int] = {}

    def new(self, seen: Callable[[str, str], set[str]], limit: int, now: float) -> list[Element]:
        """Return reports that were not read yet, the oldest first, about so many.

        Args:
            seen: tells which elements of a server's directory were read.
            limit: after how many no further directory is looked at.
            now: Unix time, s.

        Returns:
            Elements; `faults` says what could not be looked at.
        """
        self.faults = []
        found: list[Element] = []
        places = sorted(self._directories())
        there = {(server, directory) for directory, server, _ in places}
        self._done = {place: changed for place, changed in self._done.items() if place in there}
        for directory, server, top in places:
            if len(found) >= limit:
                break
            path = f"{top}/{directory}"
            try:
                # The time first: what is added while we list makes it another.
                changed = os.stat(path).st_mtime_ns
                if self._done.get((server, directory)) == changed:
                    continue
                listed = [name for name in os.listdir(path) if is_element(name)]
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    self.faults.append(f"cannot read {path}: {reason(error)}")
                continue
            before = seen(server, directory)
            fresh = [Element(server, directory, name, f"{path}/{name}") for name in listed if name not in before]
            found += fresh
            # A file system's clock may be coarse: only what was quiet for a while counts as read.
            if not fresh and now - changed / 1e9 > 2:
                self._done[server, directory] = changed
        found.sort(key=lambda element: element.name)
        return found

    def present(self) -> set[tuple[str, str]]:
        """Return the directories there are, as (server, directory)."""
        return {(server, directory) for directory, server, _ in self._directories()}

    def servers(self) -> list[tuple[str, str]]:
        """Return each server and its queue's path, whether there is a queue or not."""
        try:
            listed = sorted(entry for entry in os.listdir(self.gather_dir) if names.is_name(entry))
        except OSError as error:
            self.faults.append(f"cannot read {self.gather_dir}: {reason(error)}")
            return []
        return [(server, f"{self.gather_dir}/{server}/{self.host}/{self.app}") for server in listed]

    def _directories(self) -> Iterable[tuple[str, str, str]]:
        for server, top in self.servers():
            try:
                for directory in os.listdir(top):
                    if len(directory) == 8 and _HEXADECIMAL.issuperset(directory):
                        yield directory, server, top
            except (FileNotFoundError, NotADirectoryError):
                continue  # no report came to this server yet, or it is none
            except OSError as error:
                self.faults.append(f"cannot read {top}: {reason(error)}")


def is_element(name: str) -> bool:
    """Tell whether a name in a directory of a queue is an element's."""
    return len(name) == 14 and _HEXADECIMAL.issuperset(name)


def read(element: Element, limit_bytes: int) -> bytes | None:
    """Return a report's bytes, None where it is gone, b"" where it is no plain file or too large.

    Raises:
        OSError: it cannot be read now.
    """
    try:
        fd = os.open(element.path, _FLAGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            return b""
        raise
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            return b""
        return file.read(limit_bytes)


def digest(elements: Iterable[str]) -> str:
    """Return what elements are told apart by, as the marks have it."""
    return hashlib.sha256("\n".join(sorted(elements)).encode("ascii")).hexdigest()[:16]


def marks(app: str, read_whole: Iterable[tuple[str, str, set[str]]], now: float) -> bytes:
    """Return the marks of a queue.

    Args:
        app: the queue.
        read_whole: (server, directory, elements that were read).
        now: Unix time, s. What may still grow is left out.
    """
    listed = [
        {"server": server, "directory": directory, "elements": len(elements), "digest": digest(elements)}
        for server, directory, elements in sorted(read_whole)
        if elements and is_over(directory, now)
    ]
    document = {"format": FORMAT, "app": app, "made": int(now), "directories": listed}
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def is_over(directory: str, now: float) -> bool:
    """Tell whether nothing is added to a directory of this name any more."""
    return int(directory, 16) + OVER_S < now


def sweep(
    queue: str,
    document: bytes,
    source: str,
    now: float,
    keep_s: float,
    fault: Callable[[str], None],
    is_left: Callable[[str], bool] = lambda _: False,
) -> int:
    """Drop, as their owner, the elements that the controller has read; return how many.

    Args:
        queue: this server's queue.
        document: the marks.
        source: what a message calls them.
        now: Unix time, s.
        keep_s: seconds that a report stays after it came.
        fault: told what could not be dropped.
        is_left: tells of an element, as ``DDDDDDDD/SSSSSSSSMMMMMR``, whether it stays, and its directory with it.

    Raises:
        BadInputError: the document is none of ours.
    """
    try:
        content: Any = json.loads(document)
        if content["format"] != FORMAT:
            raise ValueError("another format")
        marked = {(str(one["directory"]), int(one["elements"]), str(one["digest"])) for one in content["directories"]}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"cannot read the marks in {source}: {error}") from error
    dropped = 0
    for directory in sorted({name for name, _, _ in marked}):
        if len(directory) != 8 or not _HEXADECIMAL.issuperset(directory) or not is_over(directory, now - keep_s):
            continue
        path = f"{queue}/{directory}"
        try:
            elements = sorted(name for name in os.listdir(path) if is_element(name))
            is_read = (directory, len(elements), digest(elements)) in marked
            if not is_read or any(is_left(f"{directory}/{name}") for name in elements):
                continue
            for name in elements:
                os.unlink(f"{path}/{name}")
                dropped += 1
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            fault(f"cannot drop {path}: {reason(error)}")
    return dropped
