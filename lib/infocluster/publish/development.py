# SPDX-License-Identifier: Apache-2.0
"""A development tree as an install sees it: what it offers for some paths, and what is left alone in it and why.

Left alone, which means neither installed nor updated nor removed, is in every directory

* what the directory's own .wwwinstrc lists (`instrc`);
* .wwwinstrc and .wwwinstmk themselves;
* what belongs to RCS: the directory ``RCS`` and every name that ends in ``,v``;
* what [install] ignore lists: other version control, editors' backups.

A file of which RCS keeps versions (``NAME,v`` beside it or in ``RCS/``) and which its owner may write is locked:
somebody is at work on it. It is left alone as well, but told as a fault.

Everything is read by directory descriptors, never through a symbolic link. Nothing is changed here.

Source: documentation of wwwinst; ci(1), co(1), rcsfile(5).
"""

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from infocluster import names, trees
from infocluster.errors import RefusedError, UnavailableError, UsageError, reason
from infocluster.publish import instrc

MAKEFILE = ".wwwinstmk"
VERSIONS = ",v"
VERSIONS_DIRECTORY = "RCS"
LOCKED = "locked under RCS: its owner may write it; check it in, or out without a lock"
HOUSE = re.escape(instrc.NAME), re.escape(MAKEFILE), f".*{VERSIONS}", VERSIONS_DIRECTORY


class Quiet(str):
    """A reason to leave something alone that is as it has to be: nobody is told of it."""

    __slots__ = ()


class Tree:
    """A development tree, with the rules of its directories as far as they were asked for.

    Attributes:
        program: the program that installs from it, such as ``wwwdinst``.
        root: its directory.
        aside: matches a name that is left alone in every directory.
    """

    __slots__ = ("_rules", "aside", "program", "root")

    def __init__(self, program: str, root: str, ignore: Iterable[str]) -> None:
        self.program = program
        self.root = root
        patterns = (*HOUSE, *(fnmatch.translate(pattern) for pattern in ignore))
        self.aside = re.compile("(?s:" + "|".join(f"(?:{pattern})" for pattern in patterns) + r")\Z").match
        self._rules: dict[str, instrc.Rules] = {}

    def rules(self, directory: str, is_there: bool = False, fd: int | None = None) -> instrc.Rules:
        """Return the rules of a directory; one that this tree does not hold has none.

        Args:
            directory: its tree path.
            is_there: whether it was seen to be there, so that its absence is a fault.
            fd: a descriptor of it where the caller has one.

        Raises:
            UnavailableError: it is not there any more.
            InfoclusterError: as `instrc.read`.
        """
        found = self._rules.get(directory)
        if found is None:
            found = instrc.read(self.root, directory, fd) if fd is not None else self._read(directory, is_there)
            self._rules[directory] = found
        return found

    def forget(self) -> None:
        """Read all rules anew from now on."""
        self._rules.clear()

    def spared(self, directory: str, name: str, is_directory: bool) -> Quiet | None:
        """Return why a directory's entry is left alone, or None.

        Raises:
            InfoclusterError: as `instrc.read`.
        """
        if self.aside(name) is not None:
            return Quiet("left alone in every directory")
        rules = self.rules(directory)
        rule = rules.rule(name, is_directory) if rules.rules else None
        return None if rule is None else Quiet(f"protected by {names.printable(rules.file)}:{rule.line}: {rule.text}")

    def protecting(self, path: str, is_directory: bool) -> tuple[str, Quiet] | None:
        """Return the part of a path that is left alone, from the tree down to the path itself, and why.

        Raises:
            InfoclusterError: as `instrc.read`.
        """
        here = ""
        for name in path.split("/"):
            below = trees.join(here, name)
            why = self.spared(here, name, is_directory or below != path)
            if why is not None:
                return below, why
            here = below
        return None

    def status(self, path: str) -> os.stat_result | None:
        """Return what a path of this tree is, None where it is nothing.

        Raises:
            RefusedError: it leads through a symbolic link.
            UnavailableError: it cannot be looked at.
        """
        return status(self.root, path)

    def _read(self, directory: str, is_there: bool) -> instrc.Rules:
        try:
            fd = trees.open_directory(self.root, directory)
        except (FileNotFoundError, NotADirectoryError, RefusedError):
            if is_there:
                place = names.printable(f"{self.root}/{directory}")
                raise UnavailableError(f"cannot read {place}: it was moved meanwhile") from None
            # What is a link here is no directory of this tree.
            return instrc.Rules(f"{self.root}/{trees.join(directory, instrc.NAME)}")
        except OSError as error:
            place = names.printable(f"{self.root}/{directory}")
            raise UnavailableError(f"cannot read the rules of {place}: {reason(error)}") from error
        try:
            return instrc.read(self.root, directory, fd)
        finally:
            os.close(fd)


class Look:
    """What a development tree offers for some paths.

    Attributes:
        listing: what is to stand in production; what is left alone is in its ``left``, with the reasons.
        makefiles: directories with a .wwwinstmk, each before those below it.
        controlled: paths of files that RCS keeps versions of.
    """

    __slots__ = ("controlled", "listing", "makefiles")

    def __init__(self, listing: trees.Listing, makefiles: list[str], controlled: set[str]) -> None:
        self.listing = listing
        self.makefiles = makefiles
        self.controlled = controlled


def look(tree: Tree, paths: Sequence[str], without: Mapping[str, str]) -> Look:
    """Return what a development tree offers.

    Args:
        tree: the tree.
        paths: tree paths, none below another.
        without: paths to leave alone besides, with the reasons.

    Raises:
        BadInputError: a .wwwinstrc is not in its form.
        RefusedError: a path leads through a symbolic link, or a .wwwinstrc is one.
        UnavailableError: the tree cannot be read.
    """
    makefiles: set[str] = set()
    versions: list[tuple[str, str]] = []
    aside, spared = tree.aside, tree.spared
    here: str | None = None
    has_rules = False

    def leave(directory: str, name: str, mode: int) -> str | None:
        nonlocal here, has_rules
        if directory != here:
            here, has_rules = directory, bool(tree.rules(directory, is_there=True).rules)
        if aside(name):
            if name == MAKEFILE:
                makefiles.add(directory)
            elif name.endswith(VERSIONS) or name == VERSIONS_DIRECTORY:
                versions.append((directory, name))
            return Quiet("left alone in every directory")
        why = spared(directory, name, stat.S_ISDIR(mode)) if has_rules else None
        return why or (without.get(trees.join(directory, name)) if without else None)

    def narrow(directory: str, fd: int) -> Callable[[str], object]:
        return _every if without or tree.rules(directory, fd=fd).rules else aside

    tree.forget()
    listing = trees.scan(tree.root, paths, leave, narrow)
    for path in paths:
        _beside(tree, listing, path, makefiles, versions)
    controlled = set(_controlled(tree, versions))
    for path in sorted(controlled):
        _leave_locked(listing, path)
    listing.left = [(path, why) for path, why in listing.left if not isinstance(why, Quiet)]
    return Look(listing, sorted(makefiles), controlled)


def _every(_name: str) -> bool:
    return True


def node(listing: trees.Listing, path: str) -> trees.Directory | None:
    """Return a directory of a listing, None where it has none of that path."""
    found: trees.Directory | None = listing.top
    for name in path.split("/") if path else ():
        found = found.directories.get(name) if found is not None else None
    return found


def entry(listing: trees.Listing, path: str) -> trees.Entry | None:
    """Return the file or link that a listing has under a path, or None."""
    directory, _, name = path.rpartition("/")
    found = node(listing, directory)
    return None if found is None else found.entries.get(name)


def drop(listing: trees.Listing, path: str, why: str) -> None:
    """Leave alone a file or link that is in a listing."""
    directory, _, name = path.rpartition("/")
    found = node(listing, directory)
    if found is not None and name in found.entries:
        listing.size_bytes -= found.entries.pop(name)[1]
        listing.count -= 1
        found.left.add(name)
        listing.left.append((path, why))


def directories(listing: trees.Listing) -> Iterator[tuple[str, trees.Directory]]:
    """Yield every directory of a listing, each before those below it."""
    ahead = [("", listing.top)]
    while ahead:
        path, found = ahead.pop()
        yield path, found
        ahead += [(trees.join(path, name), below) for name, below in found.directories.items()]


def status(root: str, path: str) -> os.stat_result | None:
    """Return what a path below a root is, None where it is nothing.

    Raises:
        RefusedError: it leads through a symbolic link.
        UnavailableError: it cannot be looked at.
    """
    directory, _, name = path.rpartition("/")
    try:
        fd = trees.open_directory(root, directory)
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnavailableError(f"cannot look at {names.printable(f'{root}/{path}')}: {reason(error)}") from error


def checked(paths: Sequence[str]) -> list[str]:
    """Return paths in their one form, none below another.

    Raises:
        UsageError: one is none, or there is none.
    """
    if not paths:
        raise UsageError("cannot go on: expected a path such as world/sample")
    return trees.outermost(names.tree_path(path) for path in paths)


def _beside(
    tree: Tree, listing: trees.Listing, path: str, makefiles: set[str], versions: list[tuple[str, str]]
) -> None:
    """Find the makefile and the versions that stand beside a named file, whose directory is not listed whole."""
    directory, _, name = path.rpartition("/")
    above = node(listing, directory)
    # What is gone from development may be what the makefile makes.
    if above is None or name in above.directories:
        return
    try:
        fd = trees.open_directory(tree.root, directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UnavailableError(f"cannot read {names.printable(directory)}: {reason(error)}") from error
    try:
        if _is_there(fd, MAKEFILE):
            makefiles.add(directory)
        if _is_there(fd, name + VERSIONS):
            versions.append((directory, name + VERSIONS))
        if _is_there(fd, VERSIONS_DIRECTORY):
            versions.append((directory, VERSIONS_DIRECTORY))
    finally:
        os.close(fd)


def _is_there(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _controlled(tree: Tree, versions: Iterable[tuple[str, str]]) -> Iterator[str]:
    for directory, name in versions:
        if name != VERSIONS_DIRECTORY:
            yield trees.join(directory, name.removesuffix(VERSIONS))
            continue
        try:
            fd = trees.open_directory(tree.root, trees.join(directory, name))
        except (OSError, RefusedError):  # a file or a link of that name keeps no versions
            continue
        try:
            listed = os.listdir(fd)
        finally:
            os.close(fd)
        for inner in listed:
            # rcsfile(5): RCS also keeps versions there under the bare name.
            yield trees.join(directory, inner.removesuffix(VERSIONS))


def _leave_locked(listing: trees.Listing, path: str) -> None:
    found = entry(listing, path)
    if found is not None and stat.S_ISREG(found[0]) and found[0] & stat.S_IWUSR:
        drop(listing, path, LOCKED)
