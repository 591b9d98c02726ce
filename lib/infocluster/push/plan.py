# SPDX-License-Identifier: Apache-2.0
"""What a push is asked for, and whether it may be: paths in their one form, none below another.

A path is refused that is none, that leads nowhere, or that names a whole tree without being asked for everything: an
empty mount point or a slip of the finger must not empty the servers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from infocluster import files, names, trees
from infocluster.errors import RefusedError, UnavailableError, UsageError, reason

Say = Callable[[str], None]


class Request(NamedTuple):
    """What a push was asked for.

    Attributes:
        program: what it was asked by, such as ``wwwpush``.
        kind: the family of servers, as [[servers]] kind has it.
        paths: tree paths.
        everything: whether a whole tree may be named; without paths, every tree is.
        show: whether to change nothing and only find out what would be done.
        timeout_s: seconds to wait for the path locks.
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
        RefusedError: its tree is not there, or is empty.
        UnavailableError: the production tree cannot be read, or has no tree with anything in it.
    """
    paths = [names.tree_path(path) for path in request.paths]
    for path in paths:
        tree = path.partition("/")[0]
        if path == tree and not request.everything:
            raise UsageError(f"cannot push {names.printable(path)}: it is a whole tree; give -all to push it so")
        is_there, has_content = _tree(production_dir, tree)
        if not is_there:
            raise RefusedError(
                f"cannot push {names.printable(path)}: {production_dir} has no tree {names.shown(tree)}"
            )
        # An empty mount point would empty the servers.
        if path != tree and not has_content:
            raise RefusedError(f"cannot push {names.printable(path)}: the tree {names.shown(tree)} is empty here")
    if request.everything and not paths:
        paths = list(_trees(production_dir, told))
        if not paths:
            raise UnavailableError(f"cannot push: {production_dir} has no tree with anything in it")
    if not paths:
        raise UsageError("cannot push: expected a path such as world/sample, or -all")
    return trees.outermost(paths)


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
        if os.path.islink(f"{production_dir}/{name}"):
            told(f"cannot push {shown}: a tree is a directory, and this is a symbolic link")
            continue
        try:
            names.tree_path(name)
            has_content = _tree(production_dir, name)[1]
        except (UsageError, UnavailableError) as error:
            told(str(error))
            continue
        if has_content:
            yield name
        else:
            told(f"cannot push {shown}: it is empty here; to empty it on the servers, name it beside -all")


def _tree(production_dir: str, tree: str) -> tuple[bool, bool]:
    """Tell whether a tree is there, and whether it has anything in it; a link passes, to be refused later."""
    path = f"{production_dir}/{tree}"
    try:
        with os.scandir(path) as listed:
            return True, any(not files.is_temporary(item.name) for item in listed)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.islink(path), os.path.islink(path)
    except OSError as error:
        raise UnavailableError(f"cannot read {names.printable(path)}: {reason(error)}") from error


def common(some: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the tree paths that are at or below a path of both, none below another."""
    found = [one for one in some for other in others if f"{one}/".startswith(f"{other}/")]
    found += [other for other in others for one in some if f"{other}/".startswith(f"{one}/")]
    return trees.outermost(found)
