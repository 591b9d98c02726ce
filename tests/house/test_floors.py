# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the source: a module imports from floors below its own, and from its own room."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infocluster.apps import installation

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "lib/infocluster"

FLOORS = (
    {
        "errors",
        "names",
        "config",
        "settings",
        "files",
        "databases",
        "markup",
        "processes",
        "secrets",
        "start",
        "trees",
    },
    {"locks"},
    {"queue", "letters", "pages", "charts"},
    {"gather", "publish", "push", "poll", "aggregate", "report"},
    {"web", "cron"},
    {"apps"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What is imported in one module alone, so that another library can take its place there.
OWNERS = {
    "fcntl": {"locks/lockfile.py"},
    "filelock": {"locks/lockfile.py"},
    "subprocess": {"processes.py"},
    "jinja2": {"pages.py"},
    "pygal": {"charts.py"},
    "distributed": {"gather/cluster.py"},
}

# Built into some interpreters, a small file of their own in others.
NEARLY_FREE = {"fcntl", "_json", "math"}


def modules() -> list[Path]:
    return sorted(path for path in LIBRARY.rglob("*.py") if not path.name.endswith("_pb2.py"))


def room_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def our_imports(path: Path) -> Iterator[str]:
    """Yield the rooms that a module imports from, also inside functions and for the type checker."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            is_house = node.module == "infocluster"
            names = [f"infocluster.{alias.name}" for alias in node.names] if is_house else [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "infocluster" and len(parts) > 1 and parts[1] in FLOOR:
                yield parts[1]


def test_every_module_has_a_floor() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    assert rooms <= set(FLOOR)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_module_imports_from_floors_below(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not list(our_imports(path))
        return
    for other in our_imports(path):
        is_ground = FLOOR[room] == FLOOR[other] == 0
        assert other == room or FLOOR[other] < FLOOR[room] or is_ground, f"{room} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Inside functions neither: what a function imports its module needs too."""
    names = {str(path.relative_to(LIBRARY.parent).with_suffix("")).replace("/", "."): path for path in modules()}
    left = {name: set(installation.imports(str(path))) & names.keys() - {name} for name, path in names.items()}
    # Who imports nothing that is left is in no circle.
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_library_is_imported_by_its_owner_alone() -> None:
    for path in modules():
        relative = str(path.relative_to(LIBRARY))
        for name in installation.imports(str(path)):
            library = name.partition(".")[0]
            assert relative in OWNERS.get(library, {relative}), f"{relative} imports {library}"


def test_hit_loads_no_library_at_its_start() -> None:
    """In a fresh interpreter, what a door of cgi-bin imports is ours or built in."""
    handlers = {"infocluster.web.cgi"}
    for door in sorted((ROOT / "cgi-bin").iterdir()):
        handlers |= {name.partition(":")[0] for name in installation.handlers(str(door))}
    assert len(handlers) > 1
    for handler in sorted(handlers):
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT / 'lib')!r}); before = set(sys.modules); import {handler}; "
            "print('\\n'.join(set(sys.modules) - before - set(sys.builtin_module_names)))"
        )
        done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True)
        foreign = {name for name in done.stdout.split() if name.partition(".")[0] != "infocluster"} - NEARLY_FREE
        assert not foreign, f"{handler} loads {sorted(foreign)}"


def test_rooms_docstring_tells_a_life_and_holds_no_code() -> None:
    for path in LIBRARY.glob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        assert len(tree.body) == 1, f"{path} holds code"
        assert ast.get_docstring(tree), f"{path} says nothing"
