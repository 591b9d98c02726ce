# SPDX-License-Identifier: Apache-2.0
"""Module directories: order, faults with file and line, and the others still loaded."""

from pathlib import Path

import pytest

from infocluster.aggregate import modules
from infocluster.aggregate.base import Aggregator
from infocluster.aggregate.calls import Clock

IMPORT = "from infocluster.aggregate.base import Aggregator, Collector, Module\n"


def put(directory: Path, name: str, text: str) -> Path:
    directory.mkdir(exist_ok=True, mode=0o755)
    path = directory / name
    path.write_text(IMPORT + text)
    path.chmod(0o644)
    return path


def load(directory: Path, *required: str) -> tuple[list[str], list[str]]:
    loaded = modules.load([str(directory)], required, Aggregator, Clock(0.3))
    return [found.__name__ for found in loaded.classes], loaded.faults


def test_classes_come_behind_what_they_depend_on_and_others_are_not_run(tmp_path: Path) -> None:
    put(tmp_path / "m", "a.py", "class Top(Aggregator):\n    DEPENDS = ['Left', 'Right']\n")
    put(tmp_path / "m", "b.py", "class Left(Aggregator):\n    DEPENDS = ('Base',)\nclass Base(Aggregator): pass\n")
    put(
        tmp_path / "m",
        "c.py",
        "class Right(Base): DEPENDS = ['Base']\nclass Base2: pass\n".replace("Base)", "Aggregator)"),
    )
    put(tmp_path / "m", "d.py", "raise SystemExit('run')\nclass Unwanted(Aggregator): pass\n")
    assert load(tmp_path / "m", "Top", "Base") == (["Base", "Left", "Right", "Top"], [])
    assert load(tmp_path / "m", "FileProcessor", "Counters", "NodeHealth") == (
        ["FileProcessor", "Counters", "NodeHealth"],
        [],
    )


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("class Top(Aggregator):\n    DEPENDS: list[str] = ['Lib']\n", ["Lib", "Top"]),
        ("class Top(Aggregator):\n    DEPENDS: list[str]\n", ["Top"]),
        ("class P(Aggregator): DEPENDS = ['Lib']\nclass Q(P): pass\nclass Top(Q): pass\n", ["Lib", "Top"]),
        ("class P(Aggregator): DEPENDS = ['Lib']\nclass Top(P): DEPENDS = ()\n", ["Top"]),
        ("class P(Aggregator): pass\nclass M(Module): DEPENDS = 'Lib'\nclass Top(P, M): pass\n", ["Lib", "Top"]),
        (
            "from infocluster.aggregate.builtin import counters\n"
            "class Counters(counters.Counters): DEPENDS = ['Lib']\nclass Top(Counters): pass\n",
            ["Lib", "Top"],
        ),
    ],
)
def test_what_a_class_depends_on_is_its_own_word_or_its_base_s(tmp_path: Path, text: str, order: list[str]) -> None:
    put(tmp_path / "m", "a.py", text)
    put(tmp_path / "m", "lib.py", "class Lib(Module): pass\n")
    assert load(tmp_path / "m", "Top") == (order, [])


@pytest.mark.parametrize(
    ("text", "asked", "said"),
    [
        ("class A(Aggregator):\n    DEPENDS = ['Nowhere']\n", "A", "a.py:2: cannot load 'Nowhere': no module file"),
        ("", "Nowhere", "the settings: aggregate: cannot load 'Nowhere'"),
        ("class NoModule: pass\n", "NoModule", "cannot load 'NoModule': no module file"),
        (
            "class A(Aggregator): DEPENDS = ['B']\nclass B(Aggregator): DEPENDS = ['C']\n"
            "class C(Aggregator): DEPENDS = ['A']\n",
            "A",
            "a.py:2: cannot load A: it depends on itself, A -> B -> C -> A",
        ),
        ("class A(Aggregator): pass\n\n\n1 / 0\n", "A", "a.py:5: cannot load it: ZeroDivisionError"),
        ("import nothing_of_this_name\nclass A(Aggregator): pass\n", "A", "a.py:2: cannot load it: ModuleNotFound"),
        ("class A(Aggregator): pass\nraise SystemExit\n", "A", "a.py:3: cannot load it: it wants to leave"),
        ("class A(Aggregator): pass\n\nwhile True: pass\n", "A", "a.py:4: cannot load it: not done after 0.3 s"),
        (
            "class A(Aggregator): DEPENDS = None\n",
            "A",
            "a.py:2: cannot load 'DEPENDS, which is no plain list of names'",
        ),
        ("class A(Aggregator:\n", "A", "a.py:2: cannot load it"),
        (
            f"class A(Aggregator): pass\nx = {'-' * 200000}1\n",
            "A",
            "a.py:1: cannot load it: something in it is too deep",
        ),
        ("class A(Module): pass\n", "A", "a.py:2: cannot load A: it is no subclass of Aggregator"),
        ("class A(Collector): pass\n", "A", "a.py:2: cannot load A: it is no subclass of Aggregator"),
        ("class A(Aggregator): pass\nclass Twice(Aggregator): pass\n", "Twice", "it is defined twice, in"),
    ],
)
def test_fault_names_file_and_line_and_others_are_loaded(tmp_path: Path, text: str, asked: str, said: str) -> None:
    put(tmp_path / "m", "a.py", text)
    put(tmp_path / "m", "good.py", "class Good(Aggregator): pass\nclass Twice(Aggregator): pass\n")
    classes, faults = load(tmp_path / "m", asked, "Good", "Counters")
    assert classes == ["Good", "Counters"]
    assert any(said in fault for fault in faults), faults


def test_own_class_takes_the_place_of_a_built_in_one(tmp_path: Path) -> None:
    put(tmp_path / "m", "a.py", "class Counters(Aggregator): mine = True\n")
    loaded = modules.load([str(tmp_path / "m")], ["Counters"], Aggregator, Clock(1))
    assert not loaded.faults and vars(loaded.classes[0])["mine"]


def test_what_depends_on_a_class_that_fails_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "m", "a.py", "class A(Aggregator): pass\n1 / 0\n")
    put(tmp_path / "m", "b.py", "class B(Aggregator): DEPENDS = ['A']\n")
    classes, faults = load(tmp_path / "m", "B")
    assert not classes and any("b.py:2: cannot load B: A, which it needs" in fault for fault in faults)


@pytest.mark.parametrize("what", ["directory", "file"])
@pytest.mark.parametrize("mode", [0o002, 0o020])
def test_what_others_may_write_is_not_run(tmp_path: Path, what: str, mode: int) -> None:
    path = put(tmp_path / "m", "a.py", "class A(Aggregator): pass\n")
    target = path if what == "file" else path.parent
    target.chmod(target.stat().st_mode | mode)
    classes, faults = load(tmp_path / "m", "A", "Counters")
    assert classes == ["Counters"] and any("chmod go-w" in fault for fault in faults)
