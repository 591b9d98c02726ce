# SPDX-License-Identifier: Apache-2.0
"""``.wwwinstrc``: what an install must leave alone in one directory.

The file lies in a directory of a development tree and speaks of that directory's own entries, not of what is below
them; a directory that is listed is left alone whole. What is listed is neither installed nor updated nor removed.

Shape: text, one entry a line. Blanks round an entry count for nothing; empty lines and lines whose first
    character is ``#`` are comments. An entry is one name, in which ``*`` stands for any characters, ``?`` for
    one, ``[abc]``, ``[a-z]`` for one of them and ``[!abc]`` for one that is none of them; so ``[*]`` is a star
    and ``[#]`` a number sign. Capitals differ from small letters, a leading dot is a character like any other,
    and there is no other way to quote: a backslash is a backslash. An entry that ends in ``/`` speaks of
    directories only::

        # written by batch/survey-nightly
        summary.html
        *.svg
        archive/

A byte order mark at the beginning counts for nothing. A file with a bad line counts for nothing at all: the run stops
before anything is changed.

Source: documentation of the gather directories and of wwwinst; fnmatch(3), glob(7).
"""

import fnmatch
import os
import re
import stat

from infocluster import trees
from infocluster.errors import BadInputError, RefusedError, UnavailableError, reason
from infocluster.names import printable, shown

NAME = ".wwwinstrc"
LIMIT_BYTES = 1 << 20
# Some editors begin a text in UTF-8 with it.
MARK = "\ufeff"


class Rule:
    """One line of a .wwwinstrc: where it stands, what it says, and the test it makes."""

    __slots__ = ("_matches", "directories_only", "line", "text")

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.text = text
        self.directories_only = text.endswith("/")
        self._matches = re.compile(fnmatch.translate(text.rstrip("/"))).match

    def protects(self, name: str, is_directory: bool) -> bool:
        """Tell whether this line speaks of a directory entry."""
        return (is_directory or not self.directories_only) and self._matches(name) is not None


class Rules:
    """A .wwwinstrc that was read; one that is not there protects nothing.

    Attributes:
        file: its path, for messages.
        rules: its lines in their order.
    """

    __slots__ = ("file", "rules")

    def __init__(self, file: str, rules: tuple[Rule, ...] = ()) -> None:
        self.file = file
        self.rules = rules

    def protects(self, name: str, is_directory: bool) -> bool:
        """Tell whether an install leaves this entry of the directory alone."""
        return self.rule(name, is_directory) is not None

    def rule(self, name: str, is_directory: bool) -> Rule | None:
        """Return the first line that speaks of this entry, or None."""
        for rule in self.rules:
            if rule.protects(name, is_directory):
                return rule
        return None


def parse(text: str, file: str) -> Rules:
    """Return the rules in the text of a .wwwinstrc.

    Args:
        text: its content.
        file: its path, for messages.

    Raises:
        BadInputError: ``FILE:LINE: 'TEXT': expected WHAT`` for the first bad line.
    """
    rules = []
    # Not splitlines(): it would take a form feed or U+2028 for the end of a line.
    for number, line in enumerate(text.removeprefix(MARK).split("\n"), 1):
        entry = line.removesuffix("\r").strip(" \t")
        if not entry or entry.startswith("#"):
            continue
        expected = _wrong(entry)
        if expected:
            raise BadInputError(f"{printable(file)}:{number}: {shown(entry)}: expected {expected}")
        rules.append(Rule(number, entry))
    return Rules(file, tuple(rules))


def read(root: str, path: str, directory_fd: int | None = None) -> Rules:
    """Return the rules that hold in a directory of a development tree; without a .wwwinstrc there are none.

    A .wwwinstrc that is a symbolic link is refused: the run that reads it may read more than the developer who
    made it, and would show lines of what it leads to.

    Args:
        root: the development tree's root.
        path: the directory's tree path, or "" for the root.
        directory_fd: a descriptor of that directory where the caller has one.

    Raises:
        BadInputError: a bad line. Bytes that are not UTF-8 do not make a line bad.
        RefusedError: it is a link, or no plain file.
        UnavailableError: it is there and cannot be read.
    """
    file = "/".join(part for part in (root, path, NAME) if part)
    try:
        here = trees.open_directory(root, path) if directory_fd is None else directory_fd
    except OSError as error:
        raise UnavailableError(f"cannot read {printable(file)}: {reason(error)}") from error
    try:
        return _read(here, file)
    finally:
        if directory_fd is None:
            os.close(here)


def entry_for(name: str) -> str:
    """Return the line that protects exactly this name."""
    quoted = "".join(f"[{character}]" if character in "*?[" else character for character in name)
    if quoted[:1] in ("#", " ", MARK):
        quoted = f"[{quoted[0]}]{quoted[1:]}"
    if quoted.endswith(" "):
        quoted = quoted[:-1] + "[ ]"
    return quoted


def _read(directory_fd: int, file: str) -> Rules:
    try:
        fd = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return Rules(file)
    except OSError as error:
        if stat.S_ISLNK(os.stat(NAME, dir_fd=directory_fd, follow_symlinks=False).st_mode):
            raise RefusedError(f"cannot read {printable(file)}: it is a symbolic link") from None
        raise UnavailableError(f"cannot read {printable(file)}: {reason(error)}") from error
    with open(fd, "rb") as stream:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"cannot read {printable(file)}: it is not a plain file")
        if status.st_size > LIMIT_BYTES:
            raise RefusedError(f"cannot read {printable(file)}: it is over {LIMIT_BYTES} bytes")
        # As os.fsdecode does for file names, so that a name that is not UTF-8 can be listed too.
        return parse(stream.read(LIMIT_BYTES).decode("utf-8", "surrogateescape"), file)


def _wrong(entry: str) -> str | None:
    """Return what was expected instead of an entry, or None where it is one."""
    name = entry.removesuffix("/")
    if "/" in name:
        return "one name of this directory (a rule for a directory below stands in that directory's own file)"
    if name in ("", ".", ".."):
        return "a name"
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in name):
        return "no control characters"
    return _wrong_set(name)


def _wrong_set(name: str) -> str | None:
    place = name.find("[")
    while place >= 0:
        first = place + 2 if name[place + 1 : place + 2] == "!" else place + 1
        # A "]" that comes first is one of the set.
        end = name.find("]", first + 1)
        if end < 0:
            return "a ']' for every '['; write [[] for the character"
        place = name.find("[", end)
    return None
