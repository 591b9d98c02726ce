# SPDX-License-Identifier: Apache-2.0
"""Pages: every value escaped in every template, nothing missing, compiled templates used while they are true."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2 import meta, nodes

from infocluster import pages
from infocluster.errors import ConfigError, InfoclusterError

LIB = Path(pages.__file__).resolve().parent
TEMPLATES = sorted(path.name for path in (LIB / "templates").glob("*.html"))
ATTACK = "\"'><img src=x onerror=alert(1)>{{ 7*7 }}&\x1b\x00\u202e\udc80"


class Hostile(str):
    """A value that answers whatever a template asks of it with the attack, and counts as a number too."""

    def __new__(cls) -> "Hostile":
        return super().__new__(cls, ATTACK)

    def __getattr__(self, name: str) -> "Hostile":
        if name.startswith("__"):
            raise AttributeError(name)
        return Hostile()

    def __getitem__(self, _: Any) -> "Hostile":
        return Hostile()

    def __iter__(self) -> Iterator["Hostile"]:  # type: ignore[override]
        return iter((Hostile(), Hostile()))

    def __add__(self, _: Any) -> "Hostile":
        return Hostile()

    def __int__(self) -> int:
        return 7


def environment() -> jinja2.Environment:
    return pages._environment()


def source(name: str) -> str:
    return (LIB / "templates" / name).read_text(encoding="utf-8")


def values_named(name: str) -> set[str]:
    """Return the names a template and those above it want to be given."""
    tree = environment().parse(source(name))
    found = meta.find_undeclared_variables(tree) - set(environment().globals)
    for above in meta.find_referenced_templates(tree):
        assert above is not None
        found |= values_named(above)
    return found


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "base.html"])
def test_every_template_escapes_every_value(name: str) -> None:
    wanted = values_named(name)
    page = pages.fill(name, {value: Hostile() for value in wanted})
    assert page.count("&lt;img") >= len(wanted) / 2
    assert "<img src=x" not in page
    assert not re.search(r"\son\w+=(?!alert)", re.sub(r'"[^"]*"', '""', page.partition("</style>")[2]))
    assert "49" not in re.findall(r">49<", page)
    assert not any(steering in page for steering in "\x1b\x00\u202e\udc80")
    assert page.encode("utf-8")


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_can_turn_escaping_off(name: str) -> None:
    tree = environment().parse(source(name))
    assert not list(tree.find_all((nodes.MarkSafe, nodes.ScopedEvalContextModifier)))
    assert not [found.name for found in tree.find_all(nodes.Filter) if found.name in ("safe", "xmlattr", "tojson")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_address_goes_through_the_filter(name: str) -> None:
    for attribute, value in re.findall(r'\b(href|src|action|formaction)="([^"]*)"', source(name)):
        assert value.startswith("#") or re.fullmatch(r"\{\{ [^{}|]+ \| address \}\}", value), (attribute, value)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_runs_or_loads_anything(name: str) -> None:
    text = source(name)
    if name == "nodes.html":
        # The one page that follows what comes: by one file of ours beside it, which its policy lets run and ask.
        text = text.replace("<script src=\"{{ 'nodes.js' | address }}\" defer></script>", "", 1)
    assert not re.search(r"<script|<link|<iframe|<object|<embed|<base|javascript:|\son\w+=|@import", text)
    # Mail readers know no stylesheet; a page's policy allows no style attribute.
    assert name == "mail.html" or " style=" not in text


def test_stylesheet_is_the_one_thing_the_pages_policy_lets_paint() -> None:
    page = pages.fill("survey_summary.html", summary_values())
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    mark = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    told = policy[1].replace("&#39;", "'")
    assert told.startswith(f"default-src 'none'; style-src 'sha256-{mark}';")
    assert "unsafe" not in told
    assert "url(" not in style
    assert "@import" not in style


def own(top: Path, text: str, name: str = "own.html") -> str:
    (top / name).write_text(text)
    return str(top)


@pytest.mark.parametrize(
    "text",
    [
        "{{ value }}",
        "{% autoescape false %}{{ value }}{{ value ~ '<' }}{% endautoescape %}",
        "{% set x %}{% autoescape false %}{{ value }}{% endautoescape %}{% endset %}{{ x }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(value) }}{% filter upper %}{{ value }}{% endfilter %}",
        "{{ [value, stylesheet] | join(value) }}{{ '%s' | format(value) }}",
        '{% extends "survey_summary.html" %}{% block main %}{{ value }}{% endblock %}',
    ],
)
def test_own_template_cannot_turn_escaping_off(tmp_path: Path, text: str) -> None:
    page = pages.fill_own("own.html", {"value": Hostile(), **summary_values()}, own(tmp_path, text))
    assert "&lt;img src" in page.lower() and "<img" not in page.lower() and "\x1b" not in page


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a\n{{ value | safe }}", 2, "No filter named 'safe'"),
        ("a\n\n{% if %}", 3, "Expected an expression"),
        ("\n{% extends 'nothing.html' %}", 2, "there is no template nothing.html"),
        ("\n{{ value.__class__.__mro__ }}", 2, "access to attribute '__class__' of"),
        ("\n\n{{ nothing }}", 3, "'nothing' is undefined"),
        ("\n\n{{ value.nothing }}", 3, "'str object' has no attribute 'nothing'"),
        ("\n{{ 1 // 0 }}", 2, "integer division or modulo by zero"),
        ("{% include 'own.html' %}", 1, "maximum recursion"),
        ("\n{% for n in range(1000000) %}{% endfor %}", 2, "Range too big"),
    ],
)
def test_fault_of_an_own_template_is_told_with_file_and_line(tmp_path: Path, text: str, line: int, told: str) -> None:
    directory = own(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        pages.check_own("own.html", directory)
        pages.fill_own("own.html", {"value": "text"}, directory)
    assert str(caught.value).startswith(f"{directory}/own.html:{line}: {told}"), str(caught.value)


def test_fault_in_what_an_own_template_includes_is_told_with_that_file(tmp_path: Path) -> None:
    directory = own(tmp_path, "{% include 'part.html' %}")
    with pytest.raises(ConfigError, match=r"own\.html:1: there is no template part\.html"):
        pages.check_own("own.html", directory)
    own(tmp_path, "\n{{ nothing }}", "part.html")
    assert pages.check_own("own.html", directory) == [f"{directory}/own.html", f"{directory}/part.html"]
    with pytest.raises(ConfigError, match=r"part\.html:2: 'nothing' is undefined"):
        pages.fill_own("own.html", {}, directory)


def test_own_template_stands_in_for_none_of_ours_and_reads_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.html").write_text("secret")
    (tmp_path / "forms").mkdir()
    directory = own(tmp_path / "forms", "other", "base.html")
    own(tmp_path / "forms", '{% extends "survey_summary.html" %}')
    assert "other" not in pages.fill_own("own.html", summary_values(), directory)
    own(tmp_path / "forms", '{% include "../secret.html" %}')
    with pytest.raises(ConfigError):
        pages.fill_own("own.html", {}, directory)


def summary_values() -> dict[str, Any]:
    return {
        "site": {"name": "Example", "url": "/"},
        "made": "2026-11-22 23:10 UTC",
        "period": {"title": "All visits"},
        "visits": 7000,
        "bots": 0,
        "people": 7000,
        "tables": [],
        "full": "/survey/",
    }


@pytest.mark.parametrize("missing", list(summary_values()))
def test_a_missing_value_is_an_error(missing: str) -> None:
    values = summary_values()
    del values[missing]
    with pytest.raises(InfoclusterError, match=f"cannot fill survey_summary.html: '{missing}' is undefined"):
        pages.fill("survey_summary.html", values)


def test_a_missing_template_is_an_error() -> None:
    with pytest.raises(InfoclusterError, match=r"cannot fill nothing\.html"):
        pages.fill("nothing.html", {})


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("day-2026-11-22.html", "day-2026-11-22.html"),
        ("https://www.example.org/a?b=c&d#e", "https://www.example.org/a?b=c&d#e"),
        ("mailto:www-mgmt@example.org", "mailto:www-mgmt@example.org"),
        ("a page.html", "a%20page.html"),
        ('x" onclick="y', "x%22%20onclick=%22y"),
        ("?time=12:30", "?time=12:30"),
        ("javascript:alert(1)", "#"),
        (" JavaScript:alert(1)", "#"),
        ("java\tscript:alert(1)", "#"),
        ("\x01javascript:alert(1)", "#"),
        ("data:text/html,x", "#"),
    ],
)
def test_an_address_runs_nothing(text: str, becomes: str) -> None:
    assert pages.address(text) == becomes


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a copy of the house, to be compiled and changed."""
    leave = shutil.ignore_patterns("__pycache__", "compiled")
    shutil.copytree(LIB, tmp_path / "lib/infocluster", ignore=leave)
    return tmp_path / "lib"


def run(house: Path, code: str) -> str:
    """Run code in a new process that has this house and what we import."""
    begin = f"import sys; sys.path[:0] = {[str(house), *filter(None, sys.path)]!r}\nfrom infocluster import pages\n"
    begin += f"values = {summary_values()!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", begin + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SHOW = 'print(pages.fill("survey_summary.html", values))'


def test_compiled_templates_make_the_same_page_and_are_used(house: Path) -> None:
    before = run(house, SHOW)
    (place,) = run(house, "print(pages.compile_templates())").splitlines()
    assert run(house, SHOW) == before
    for compiled in Path(place).rglob("*.pyc"):
        compiled.unlink()
    for module in Path(place).glob("*.py"):
        module.write_text(module.read_text().replace("Thank you", "Out of the compiled one"))
    assert "Out of the compiled one" in run(house, SHOW)


@pytest.mark.parametrize("changed", ["templates/survey_summary.html", "templates/style.css", "pages.py"])
def test_a_changed_source_counts_more_than_what_was_compiled(house: Path, changed: str) -> None:
    (place,) = run(house, "print(pages.compile_templates())").splitlines()
    path = house / "infocluster" / changed
    status = path.stat()
    text = path.read_text()
    path.write_text(
        text.replace("Thank you", "Many thanks").replace("#f6f7f9", "#f6f7f8").replace("(n):,}", "(n):_d}")
    )
    if changed != "pages.py":
        # What a template holds counts, not when it was written; a module's time is what the interpreter goes by.
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    page = run(house, SHOW)
    assert "Many thanks" in page or "#f6f7f8" in page or "7_000" in page
    (renewed,) = run(house, "print(pages.compile_templates())").splitlines()
    assert renewed != place
    assert os.listdir(os.path.dirname(place)) == [os.path.basename(renewed)]
    assert run(house, SHOW) == page


def test_compiled_templates_hold_when_the_tree_is_copied(house: Path, tmp_path: Path) -> None:
    run(house, "pages.compile_templates()")
    shutil.copytree(house, tmp_path / "moved", copy_function=shutil.copyfile)
    code = SHOW + "\nprint([type(l).__name__ for l in getattr(pages._environment().loader, 'loaders', [])])"
    assert "ModuleLoader" in run(tmp_path / "moved", code)
