# SPDX-License-Identifier: Apache-2.0
"""What a push is asked for, and whether it may be: paths in their one form, none below another.

A path is refused that is none, that leads nowhere or through a link, or that names a whole tree without being asked
for everything: an empty mount point or a slip of the finger must not empty the servers.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from infocluster import files, names, trees
from infocluster.errors import RefusedError, UnavailableError, UsageError, reason
from infocluster.locks import pathlocks

Say = Callable[[str], None]


class Request(NamedTuple):
    """What a push was asked for.

    Attributes:
        program: what it was asked by, such as ``wwwpush``.
        kind: the family of servers, as [[servers]] kind has it.
        paths: tree paths.
        everything: whether a whole tree may be named; without paths, every tree is.
        show: whether to change nothing and only find out what would be done.
        timeout_s: seconds to wait for the path locks; None waits as long as it takes.
        atomic: whether each pushed directory has to switch over in one step.
        on: the servers, as a node set; "" for all of the family.
        retry: whether each server gets what it lacks, and nothing else.
        quick: whether each server gets what changed here since it last had everything.
        keep: whether generated distfiles are kept.
    """

    program: str
    kind: str
    paths: Sequence[str]
    everything: bool = False
    show: bool = False
    timeout_s: float | None = None
    atomic: bool = False
    on: str = ""
    retry: bool = False
    quick: bool = False
    keep: bool = False


def checked(request: Request, production_dir: str, told: Say) -> list[str]:
    """Return the paths of a push in their one form, none below another.

    Args:
        request: what is asked for.
        production_dir: the production tree.
        told: gets a line for each tree that a push of everything leaves out.

    Raises:
        UsageError: no path, one that is none, or a whole tree without being asked for everything.
        RefusedError: a path leads through a symbolic link, or its tree is one, is not there, or is empty.
        UnavailableError: the production tree cannot be read, or has no tree with anything in it.
    """
    paths = [names.tree_path(path) for path in request.paths]
    for path in paths:
        if "/" not in path and not request.everything:
            raise UsageError(f"cannot push {names.printable(path)}: it is a whole tree; give -all to push it so")
    if request.everything and not paths:
        paths = list(_trees(production_dir, told))
        if not paths:
            raise UnavailableError(f"cannot push: {production_dir} has no tree with anything in it")
    if not paths:
        raise UsageError("cannot push: expected a path such as world/sample, or -all")
    check(paths, request, production_dir)
    return trees.outermost(paths)


def check(paths: Sequence[str], request: Request, production_dir: str) -> None:
    """Make sure that paths can be pushed as things are now: their trees stand, and no link is on the way to them.

    Args:
        paths: the paths of the request in their one form, or all trees where it names none.
        request: what is asked for; an empty tree that it names is emptied on the servers, no other.
        production_dir: the production tree.

    Raises:
        RefusedError: a path leads through a symbolic link, or its tree is one, is not there, or is empty.
        UnavailableError: the production tree cannot be read.
    """
    named = {names.tree_path(path) for path in request.paths}
    for path in paths:
        tree = path.partition("/")[0]
        if why := obstacle(production_dir, tree, tree in named):
            raise RefusedError(f"cannot push {names.printable(path)}: {why}")
        # What is gone or cannot be read on the way is told by whoever reads the paths.
        with suppress(OSError):
            os.close(trees.open_directory(production_dir, path.rpartition("/")[0]))


def _trees(production_dir: str, told: Say) -> Iterator[str]:
    """Yield the trees: the directories of the production tree, but for hidden ones and a file system's own."""
    try:
        listed = sorted(os.listdir(production_dir))
    except OSError as error:
        raise UnavailableError(f"cannot read {production_dir}: {reason(error)}") from error
    for name in listed:
        if name.startswith(".") or name == "lost+found" or not os.path.isdir(f"{production_dir}/{name}"):
            continue
        shown = names.printable(name)
        try:
            names.tree_path(name)
            why = obstacle(production_dir, name)
        except (UsageError, UnavailableError) as error:
            told(str(error))
            continue
        if why:
            told(f"cannot push {shown}: {why}")
        else:
            yield name


def obstacle(production_dir: str, tree: str, may_be_empty: bool = False) -> str | None:
    """Return why a tree cannot be pushed, or None.

    Args:
        production_dir: the production tree.
        tree: its name.
        may_be_empty: whether it is pushed though it is empty; mostly that is a file system that is not mounted.

    Raises:
        UnavailableError: it cannot be read.
    """
    path, shown = f"{production_dir}/{tree}", names.shown(tree)
    if os.path.islink(path):
        return f"a tree is a directory, and {shown} is a symbolic link"
    try:
        with os.scandir(path) as listed:
            if may_be_empty or any(not files.is_temporary(item.name) for item in listed):
                return None
    except (FileNotFoundError, NotADirectoryError):
        return f"{production_dir} has no tree {shown}"
    except OSError as error:
        raise UnavailableError(f"cannot read {names.printable(path)}: {reason(error)}") from error
    return f"the tree {shown} is empty here; to empty it on the servers, name it beside -all"


def tell_gone(listings: Iterable[trees.Listing], say: Say) -> None:
    """Say which of the named paths nothing is at: the servers lose them, or somebody has mistyped one."""
    if paths := sorted({path for listing in listings for path in _gone(listing.top, "")}):
        say(f"not in the production tree: {pathlocks.listed(paths)}; servers that have it lose it")


def _gone(node: trees.Directory, path: str) -> Iterator[str]:
    yield from (trees.join(path, name) for name in node.absent)
    for name, below in node.directories.items():
        if not below.whole:
            yield from _gone(below, trees.join(path, name))


def common(some: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the tree paths that are at or below a path of both, none below another."""
    found = [one for one in some for other in others if f"{one}/".startswith(f"{other}/")]
    found += [other for other in others for one in some if f"{other}/".startswith(f"{one}/")]
    return trees.outermost(found)
