# SPDX-License-Identifier: Apache-2.0
"""What is done in the development tree before an install: permissions are repaired, and .wwwinstmk is made.

`ready` looks at the tree (`development`), and as often as a repair or make changed what there is to see, again:

1. Permissions: every file is to be readable by everyone and writable by its group, every directory readable and
   searchable by everyone and writable by its group. It is tried: what belongs to somebody else stays as it is, and so
   does what has several names, one of which may be elsewhere. A file of RCS is made readable only.
2. In each directory that has a .wwwinstmk, ``make -f .wwwinstmk`` is run, once, there, before anything is copied; two
   runs in one directory take turns, by a lock on the .wwwinstmk. A directory in which it fails is left alone.

Both are the developer's: they happen as whoever called the program. The file owner, or root, repairs only what is
his own, and makes only what he alone may write: a makefile says what is done as whoever runs it.

Source: documentation of wwwinst; make(1); chmod(2).
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from infocluster import names, trees
from infocluster.config import Settings
from infocluster.errors import InfoclusterError, RefusedError, UnavailableError, reason
from infocluster.locks import lockfile
from infocluster.publish import development

FILE_BITS = 0o464
VERSIONED_BITS = 0o444
DIRECTORY_BITS = 0o575
# A makefile that makes a directory with a makefile, and so on.
ROUNDS = 10
SAID_LIMIT = 200
# Where make keeps a makefile that it reads from its standard input.
_COPIED = re.compile(r"(?:/\w+)+/Gm\w{6}\b")
# What a make that called us would hand to ours.
_FROM_MAKE = frozenset({"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEFILES", "MAKEOVERRIDES"})


class Part(NamedTuple):
    """How much of the developer's part is to be done.

    Attributes:
        make: whether to repair and make at all, or whether that has been done.
        show: whether to change nothing: make only says what it would do, and permissions are repaired in the
            listing alone.
        uid: whose files a repair would reach.
        is_guarded: whether this runs as somebody whom developers must not command.
    """

    make: bool
    show: bool
    uid: int
    is_guarded: bool


def ready(
    tree: development.Tree, paths: Sequence[str], without: Mapping[str, str], part: Part, conf: Settings
) -> tuple[development.Look, dict[str, str]]:
    """Do the developer's part; return what the tree offers then, and what is left alone besides, with the reasons.

    Args:
        tree: the development tree.
        paths: tree paths, none below another.
        without: paths to leave alone, with the reasons.
        part: how much is to be done.
        conf: the settings.

    Raises:
        InfoclusterError: as `development.look`.
    """
    left, made = dict(without), set[str]()
    look = development.look(tree, paths, left)
    for _ in range(ROUNDS):
        again = (part.make or part.show) and _repair(tree, look, part)
        for directory in [directory for directory in look.makefiles if directory not in made]:
            made.add(directory)
            if not part.make or any(_is_below(directory, path) for path in left):
                continue
            again = True
            why = _make(tree, directory, part, conf)
            if why is not None:
                left[directory] = why
        if not again:
            break
        look = development.look(tree, paths, left)
    return look, left


def _is_below(path: str, other: str) -> bool:
    return path == other or path.startswith(other + "/")


def _repair(tree: development.Tree, look: development.Look, part: Part) -> bool:
    """Give files and directories the permissions they need; tell whether the tree has to be looked at again."""
    again = False
    for path, _ in look.listing.left:
        # What could not be read may be readable now.
        if not part.show and path not in look.controlled:
            again = _repaired(tree.root, path, 0, FILE_BITS, part) or again
    for directory, found in development.directories(look.listing):
        lacking = [name for name, entry in found.entries.items() if entry[0] & FILE_BITS != FILE_BITS]
        wrong = [
            name for name, below in found.directories.items() if below.whole and _lacks(below.mode, DIRECTORY_BITS)
        ]
        for name in lacking:
            path, entry = trees.join(directory, name), found.entries[name]
            bits = VERSIONED_BITS if path in look.controlled else FILE_BITS
            if _lacks(entry[0], bits) and _repaired(tree.root, path, entry[0], bits, part):
                found.entries[name] = (entry[0] | bits, *entry[1:])
        for name in wrong:
            below = found.directories[name]
            if _repaired(tree.root, trees.join(directory, name), below.mode, DIRECTORY_BITS, part):
                below.mode |= DIRECTORY_BITS
    return again


def _lacks(mode: int, bits: int) -> bool:
    return mode & bits != bits and not stat.S_ISLNK(mode)


def _repaired(root: str, path: str, mode: int, bits: int, part: Part) -> bool:
    """Add permissions to something that is still what it was, and tell whether that was, or would be, done.

    Args:
        root: the development tree.
        path: its tree path.
        mode: its type as it was seen; 0 for any.
        bits: the permissions, for a file; a directory gets its own.
        part: who does it.
    """
    directory, _, name = path.rpartition("/")
    fd = -1
    try:
        here = trees.open_directory(root, directory)
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
        status = os.fstat(fd)
        is_directory = stat.S_ISDIR(status.st_mode)
        bits = DIRECTORY_BITS if is_directory else bits
        if (mode and stat.S_IFMT(mode) != stat.S_IFMT(status.st_mode)) or not _lacks(status.st_mode, bits):
            return False
        if not is_directory and (not stat.S_ISREG(status.st_mode) or status.st_nlink > 1):
            return False
        if part.uid not in (0, status.st_uid):
            return False
        if not part.show:
            # O_PATH is the one way to hold a file that its owner may not read; fchmod(2) does not take it.
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(status.st_mode) | bits)
        return True
    except (OSError, RefusedError):  # it is tried, no more
        return False
    finally:
        if fd >= 0:
            os.close(fd)


def _make(tree: development.Tree, directory: str, part: Part, conf: Settings) -> str | None:
    """Run make in one directory; return why that directory is to be left alone, or None."""
    # A tree without makefiles starts no program.
    from infocluster import processes

    install = conf["install"]
    try:
        here = trees.open_directory(tree.root, directory)
        try:
            with _makefile(here, part, install["lock_timeout_s"]) as content:
                command = [install["make"], "-f", "-" if part.is_guarded else development.MAKEFILE]
                outcome = processes.run(
                    [*command, "-n"] if part.show else command,
                    install["make_timeout_s"],
                    content.read() if part.is_guarded else b"",
                    {name: value for name, value in os.environ.items() if name not in _FROM_MAKE},
                    f"/proc/self/fd/{here}",
                )
        finally:
            os.close(here)
    except OSError as error:
        return f"cannot read its {development.MAKEFILE}: {reason(error)}"
    except InfoclusterError as error:
        return str(error)
    if outcome.status == 0:
        return None
    said = (outcome.errors or outcome.output).decode("utf-8", "replace").strip()
    last = _COPIED.sub(development.MAKEFILE, said.rpartition("\n")[2])[:SAID_LIMIT]
    return f"make failed: {names.printable(last) or f'exit status {outcome.status}'}"


@contextmanager
def _makefile(directory_fd: int, part: Part, timeout_s: float) -> Iterator[BinaryIO]:
    """Open a makefile, and hold its lock while it is open."""
    fd = os.open(
        development.MAKEFILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd
    )
    with open(fd, "rb") as content:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"its {development.MAKEFILE} is not a plain file")
        if part.is_guarded and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            raise RefusedError(
                f"others than the file owner may write its {development.MAKEFILE}, so he does not run it: "
                f"call the program as the developer"
            )
        if not lockfile.take(fd, timeout_s=timeout_s):
            raise UnavailableError(f"another make is at work there after {timeout_s:g} s")
        yield content
