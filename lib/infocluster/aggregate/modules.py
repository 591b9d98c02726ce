# SPDX-License-Identifier: Apache-2.0
"""Module directories become classes: found in the source, put in the order of what they depend on, imported.

A module file is a ``.py`` file in one of the directories, not led by ``.`` or ``_``. It is read first and run only
when one of its classes is wanted: a class is known by its name and by having a base (itself, or through other classes
of module files) called Module, Aggregator or Collector, and ``DEPENDS`` is a plain list of names, its own or that of
the first base that has one.

A class in one of the directories takes the place of a built-in one of its name; in two files of theirs it is a fault.

What is wrong with one class, or with one file, is told with file and line, and leaves out that class and those that
depend on it; the others are loaded.
"""

import ast
import importlib.util
import os
import stat
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from infocluster import names
from infocluster.aggregate.base import Module
from infocluster.aggregate.calls import CallError, Clock
from infocluster.errors import reason

BUILTIN_DIR = os.path.dirname(os.path.abspath(__file__)) + "/builtin"
ROOTS = frozenset({"Module", "Aggregator", "Collector"})


class Found(NamedTuple):
    """A class as its source tells it: the file and line it begins at, the names of its bases and of what it needs.

    `depends` is None where the class itself says nothing of it.
    """

    name: str
    file: str
    line: int
    bases: tuple[str, ...]
    depends: tuple[str, ...] | None


class Loaded(NamedTuple):
    """What was loaded: classes in the order of what they depend on, and a sentence for each fault."""

    classes: list[type[Module]]
    faults: list[str]


def load(directories: Sequence[str], required: Iterable[str], kind: type[Module], calls: Clock) -> Loaded:
    """Load the classes of these names, and what they depend on.

    Args:
        directories: where module files are, beside the house's own.
        required: names of classes.
        kind: what each of these has to be a subclass of; what they depend on may be any module.
        calls: by which each file is run, for so long at most.

    Returns:
        The classes, each behind those it depends on, and what is wrong with others.
    """
    faults: list[str] = []
    index: dict[str, list[Found]] = {}
    for directory in directories:
        for found in _looked(directory, faults, os.geteuid()):
            index.setdefault(found.name, []).append(found)
    # A site's own class takes the place of a built-in one of its name, which may be its base.
    builtin = _looked(BUILTIN_DIR, faults, os.geteuid())
    for found in [one for one in builtin if one.name not in index]:
        index.setdefault(found.name, []).append(found)
    usable = _modules(index, {found.name for found in builtin})
    asked = list(required)
    order: list[Found] = []
    states: dict[str, bool] = {}
    for name in asked:
        _visit(name, "the settings: aggregate", usable, order, states, [], faults)
    classes: list[type[Module]] = []
    files: dict[str, Any] = {}
    bad: set[str] = set()
    for found in order:
        missing = [name for name in found.depends or () if name in bad]
        if missing:
            faults.append(
                f"{found.file}:{found.line}: cannot load {found.name}: {missing[0]}, which it needs, is not"
            )
            bad.add(found.name)
            continue
        if found.file not in files:
            files[found.file] = _imported(found.file, calls, faults)
        made = getattr(files[found.file], found.name, None)
        wanted = kind if found.name in asked else Module
        if not (isinstance(made, type) and issubclass(made, wanted)):
            if files[found.file] is not None:
                faults.append(
                    f"{found.file}:{found.line}: cannot load {found.name}: it is no subclass of {wanted.__name__}"
                )
            bad.add(found.name)
            continue
        classes.append(made)
    return Loaded(classes, faults)


def _visit(
    name: str,
    asker: str,
    usable: dict[str, list[Found]],
    order: list[Found],
    states: dict[str, bool],
    path: list[Found],
    faults: list[str],
) -> bool:
    """Put a class behind those it depends on; return whether it can be loaded."""
    if name in states and name not in [found.name for found in path]:
        return states[name]
    candidates = usable.get(name, [])
    if len(candidates) != 1:
        if candidates:
            where = " and ".join(f"{found.file}:{found.line}" for found in candidates)
            faults.append(f"{asker}: cannot load {names.shown(name)}: it is defined twice, in {where}")
        else:
            faults.append(f"{asker}: cannot load {names.shown(name)}: no module file defines such a class")
        states[name] = False
        return False
    found = candidates[0]
    if found in path:
        ring = [one.name for one in [*path[path.index(found) :], found]]
        faults.append(f"{found.file}:{found.line}: cannot load {name}: it depends on itself, {' -> '.join(ring)}")
        states[name] = False
        return False
    states[name] = True
    for other in found.depends or ():
        if not _visit(other, f"{found.file}:{found.line}", usable, order, states, [*path, found], faults):
            states[name] = False
    if states[name]:
        order.append(found)
    return states[name]


def faults(directories: Sequence[str], uid: int) -> list[str]:
    """Return what keeps a user's programs from loading module files, as far as is seen without running them.

    Args:
        directories: where module files are.
        uid: whose programs load them.
    """
    found: list[str] = []
    for directory in directories:
        _looked(directory, found, uid)
    return found


def _looked(directory: str, faults: list[str], uid: int) -> list[Found]:
    result: list[Found] = []
    try:
        why = "" if directory == BUILTIN_DIR else unsafe(directory, uid)
        if why:
            faults.append(f"cannot load modules from {directory}: {why}")
            return []
        listed = sorted(os.listdir(directory))
    except OSError as error:
        faults.append(f"cannot load modules from {directory}: {reason(error)}")
        return []
    for name in listed:
        path = f"{directory}/{name}"
        if not name.endswith(".py") or name[0] in "._":
            continue
        try:
            why = "" if directory == BUILTIN_DIR else unsafe(path, uid)
            if why:
                faults.append(f"cannot load {path}: {why}")
                continue
            with open(path, "rb") as file:
                tree = ast.parse(file.read(), path)
        except SyntaxError as error:
            faults.append(f"{path}:{error.lineno or 1}: cannot load it: {error.msg}")
            continue
        except (MemoryError, RecursionError):  # what the parser says where its stack ends
            faults.append(f"{path}:1: cannot load it: something in it is too deep")
            continue
        except (OSError, ValueError) as error:
            faults.append(f"{path}:1: cannot load it: {reason(error) if isinstance(error, OSError) else error}")
            continue
        result += [_found(node, path) for node in tree.body if isinstance(node, ast.ClassDef)]
    return result


def unsafe(path: str, uid: int) -> str:
    """Return why a user is not to run the code below a path, "" where there is no reason.

    Raises:
        OSError: it cannot be looked at.
    """
    status = os.stat(path)
    if stat.S_IMODE(status.st_mode) & 0o022:
        return f"others than its owner may write it; chmod go-w {path}"
    if status.st_uid not in (0, uid):
        return "it belongs to another user"
    return ""


def _found(node: ast.ClassDef, path: str) -> Found:
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    depends: tuple[str, ...] | None = None
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            targets, given = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, given = [statement.target], statement.value
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == "DEPENDS" for target in targets):
            try:
                value = ast.literal_eval(given)
                depends = (value,) if isinstance(value, str) else tuple(map(str, value))
            except (ValueError, TypeError):
                depends = ("DEPENDS, which is no plain list of names",)
    return Found(node.name, path, node.lineno, tuple(bases), depends)


def _modules(index: dict[str, list[Found]], builtin: set[str]) -> dict[str, list[Found]]:
    """Return the classes that are modules, by themselves or through others, with what they depend on."""
    roots = ROOTS | builtin
    while True:
        more = {
            name
            for name, founds in index.items()
            if name not in roots and any(not roots.isdisjoint(found.bases) for found in founds)
        }
        if not more:
            break
        roots |= more
    return {
        name: [found._replace(depends=_inherited(found, index, frozenset())) for found in founds]
        for name, founds in index.items()
        if name in roots - ROOTS
    }


def _inherited(found: Found, index: dict[str, list[Found]], below: frozenset[str]) -> tuple[str, ...] | None:
    """Return what a class depends on: what it says itself, or else the first of its bases that says something."""
    if found.depends is not None or found.name in below:
        return found.depends
    for name in found.bases:
        others = index.get(name, [])
        for other in [one for one in others if one.file == found.file] or others:
            depends = _inherited(other, index, below | {found.name})
            if depends is not None:
                return depends
    return None


def _imported(path: str, calls: Clock, faults: list[str]) -> Any:
    """Return a module file's module, or None where it cannot be imported."""
    name = "infocluster_modules." + path.strip("/").replace("/", "_").removesuffix(".py")
    if path.startswith(BUILTIN_DIR + "/"):
        name = "infocluster.aggregate.builtin." + os.path.basename(path).removesuffix(".py")
        if name in sys.modules:
            return sys.modules[name]
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError("no loader for it")
        module = importlib.util.module_from_spec(spec)
        # Its compiled copy would be written into a directory that is not ours.
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        sys.modules[name] = module
        try:
            calls.call(spec.loader.exec_module, module)
        finally:
            sys.dont_write_bytecode = before
        return module
    except (CallError, ImportError) as error:
        sys.modules.pop(name, None)
        faults.append(f"{place(error.__context__ or error, path)}: cannot load it: {error}")
        return None


def place(error: BaseException, path: str) -> str:
    """Return the file and line of an error: the deepest line of this file in its traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}:{lines[-1] if lines else 1}"
