# SPDX-License-Identifier: Apache-2.0
"""What the house's own source has to look like: programs, docstrings, settings that are used, no foreign places."""

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from infocluster import errors, settings
from infocluster.apps import installation

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "lib/infocluster"
LINES, CODE_LINES = 60, 12
SPDX = "# SPDX-License-Identifier: Apache-2.0"
OUR_ERRORS = {name for name in vars(errors) if name.endswith("Error")}


def programs() -> list[Path]:
    return sorted(
        path for directory in ("cgi-bin", "batch") for path in (ROOT / directory).iterdir() if path.is_file()
    )


def modules() -> list[Path]:
    return sorted(path for path in LIBRARY.rglob("*.py") if not path.name.endswith("_pb2.py"))


def own_files() -> Iterator[Path]:
    for name in ("cgi-bin", "batch", "lib", "etc", "tests", "doc", ".ci"):
        for path in sorted((ROOT / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".png", ".gz", ".pyc"):
                yield path
    yield from (path for path in ROOT.iterdir() if path.is_file())


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.name)
def test_program_is_a_door(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env python3"
    assert lines[1] == SPDX
    assert len(lines) <= LINES
    assert os.stat(path).st_mode & 0o777 == 0o755
    tree = ast.parse(text)
    manual = ast.get_docstring(tree)
    assert manual
    after = text.index(installation.BOOTSTRAP)
    behind = text[after + len(installation.BOOTSTRAP) :]
    assert len([line for line in text[after:].splitlines() if line.strip()]) <= CODE_LINES
    # An import or two of ours, and one call; nothing else stands behind the bootstrap.
    *imports, call = ast.parse(behind).body
    assert all(isinstance(node, ast.ImportFrom) and (node.module or "").startswith("infocluster") for node in imports)
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    for named in ("Usage", "Exit status"):
        assert re.search(rf"^{named}:", manual, re.M), f"no {named} in the manual"


def test_program_that_goes_by_two_names_is_one_file() -> None:
    for directory in ("cgi-bin", "batch"):
        for path in (ROOT / directory).iterdir():
            if path.is_symlink():
                assert "/" not in os.readlink(path) and path.exists(), path


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.name)
def test_program_names_a_function_that_is_there(path: Path) -> None:
    for handler in installation.handlers(str(path)):
        module, _, function = handler.partition(":")
        source = ROOT / "lib" / (module.replace(".", "/") + ".py")
        found = [node.name for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert function in found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_module_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(SPDX + "\n")
    tree = ast.parse(text)
    manual = ast.get_docstring(tree)
    assert manual
    # The first line is a whole sentence, or is led on by the lines below it.
    assert manual.splitlines()[0].strip()
    missing = [where for where, node in _public(tree, "") if not ast.get_docstring(node)]
    assert not missing, f"no docstring: {missing}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_error_that_a_function_raises_is_in_its_docstring(path: Path) -> None:
    for where, node in _public(ast.parse(path.read_text()), ""):
        if isinstance(node, ast.ClassDef):
            continue
        raised = {name for name in _raised(node) if name in OUR_ERRORS}
        told = ast.get_docstring(node) or ""
        # A member of the family may be told by the family's name.
        untold = {name for name in raised if name not in told and "InfoclusterError" not in told}
        assert not untold, f"{where} raises {untold}"


def _public(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{node.name}.")


def _raised(node: ast.AST, caught: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the errors that a function raises itself and does not catch itself."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
        if not caught & {node.exc.func.id, "InfoclusterError", "Exception"}:
            yield node.exc.func.id
    elif isinstance(node, ast.Try):
        types = [name for handler in node.handlers if handler.type for name in ast.walk(handler.type)]
        inside = caught | {name.id for name in types if isinstance(name, ast.Name)}
        for child in node.body:
            yield from _raised(child, inside)
        for child in [*node.handlers, *node.orelse, *node.finalbody]:
            yield from _raised(child, caught)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _raised(child, caught)


def test_every_setting_is_used() -> None:
    source = "".join(path.read_text() for path in modules() if path.name != "settings.py")
    unused = [
        f"{setting.section}.{setting.name}"
        for setting in settings.TABLE
        if not re.search(rf"""["']{setting.name}["']""", source)
    ]
    assert not unused


def test_sample_settings_are_the_table() -> None:
    assert (ROOT / "etc/infocluster.toml").read_text() == settings.sample(), "type: make sample"


def test_no_file_names_a_place_of_ours() -> None:
    # In two halves, so that this file is not one of them.
    places = ["/wo|rk/", "/ro|ot/", "/ho|me/", "pypi.|org", "python|hosted", "deb.|debian", "npm|js"]
    words = (re.escape(word.replace("|", "")) for word in places)
    place = re.compile("|".join(rf"(?<![\w.$}}/]){word}" for word in words))
    found = [f"{path}: {match[0]}" for path in own_files() if (match := place.search(_text(path)))]
    assert not found


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def test_no_broad_except_without_a_reason() -> None:
    for path in modules():
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}: bare except"
                if isinstance(node.type, ast.Name) and node.type.id == "Exception":
                    assert "#" in lines[node.lineno - 1], f"{path}:{node.lineno}: why so broad?"


def test_comments_are_sentences_not_leftovers() -> None:
    leftover = re.compile(r"#\s*(TODO|FIXME|XXX|HACK)\b")
    for path in [*modules(), *programs()]:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            assert token.type != tokenize.COMMENT or not leftover.match(token.string), f"{path}:{token.start[0]}"
