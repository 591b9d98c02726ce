# SPDX-License-Identifier: Apache-2.0
"""Declarations of forms: each wrong one is told with its file, line and what was expected; the samples are right."""

import re
from pathlib import Path
from typing import Any

import pytest

from infocluster import names, settings
from infocluster.apps import forms_check, forms_compiled, forms_declared, forms_moderation
from infocluster.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
WRONG_DAYS = ("2023-02-29", "1900-02-29", "2024-13-01", "2024-1-1", "2024-04-31", "0000-01-01", "\u0662\u06602024-1",
              "2024-04-0\u0661", "20240101--")  # fmt: skip
HEAD = 'title = "T"\n[answers]\nretention_days = 9\n[[fields]]\nname = "one"\nlabel = "One"\n'


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return settings.read(str(ROOT / "etc/infocluster.toml"))


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("", 1, "title: has to be set"),
        ('title = ""\n', 1, "title: '\"\"': expected a text in one line, not empty"),
        ('title = "T"\n', 1, "fields: expected [[fields]]"),
        ('title = "T"\nnonsense = 1\n', 2, "nonsense: unknown; expected one of title, intro"),
        ('title = "T"\n[answer]\n', 2, "answer: unknown; expected one of"),
        ('title = "T"\n\n[limits]\nper_hour = -1\n', 4, "limits.per_hour: '-1': expected a whole number from 0"),
        ('title = "T"\n[limits]\nper_hour = true\n', 3, "limits.per_hour: 'true': expected a whole number"),
        ('title = "T"\nlimits = 3\n', 2, "limits: expected a section [limits]"),
        (HEAD + 'kind = "colour"\n', 7, 'fields.kind: \'"colour"\': expected one of "text"'),
        (HEAD + '[[fields]]\nname = "one"\nlabel = "x"\n', 8, 'fields.name: "one": there are two fields'),
        (HEAD + '[[fields]]\nname = "time"\nlabel = "x"\n', 8, "fields.name: '\"time\"': expected a name of a-z"),
        (HEAD + '[[fields]]\nname = "../x"\nlabel = "x"\n', 8, "fields.name"),
        (HEAD + '[[fields]]\nlabel = "x"\n', 7, "fields.name: has to be set"),
        (HEAD + 'kind = "choice"\nchoices = ["a"]\n', 8, "fields.choices: expected two or more"),
        (HEAD + 'choices = ["a", "b"]\n', 7, 'fields.choices: a field of kind "text" has none'),
        (HEAD + 'kind = "file"\n', 4, "fields.types: expected one or more of image/png"),
        (
            HEAD + 'kind = "file"\ntypes = ["text/html"]\n',
            8,
            "fields.types: '[\"text/html\"]': expected a list of types",
        ),
        (HEAD + 'pattern = "["\n', 7, "fields.pattern: expected a regular expression"),
        (HEAD + 'pattern = "[a&&b]"\n', 7, "fields.pattern: expected a regular expression: Possible set inters"),
        (HEAD + "length = 50000\n", 7, "fields.length: 50000: expected at most 49152, as limits.body_kb has it"),
        (HEAD + 'kind = "date"\nleast = 3\n', 8, "fields.least: expected a day, as the kind is"),
        (HEAD + 'kind = "number"\nleast = 3\nmost = 1\n', 9, "fields.most: expected no less than least"),
        (
            HEAD + 'kind = "date"\nmost = "2026-13-01"\n',
            8,
            "fields.most: '\"2026-13-01\"': expected a number, or a day",
        ),
        (HEAD.replace("retention", 'mail = "night"\nretention'), 2, "answers.to: []: expected an address"),
        *[
            (
                HEAD.replace("retention", f'to = ["a@b.de", "{to}"]\nretention'),
                3,
                f'answers.to: \'["a@b.de", "{to}"]\': expected a list of addresses, each as in',
            )
            for to in ("not an address, at all", "a@b.de, c@d.de", "-x@b.de")
        ],
        (
            HEAD + 'kind = "choice"\nchoices = ["A ", "B"]\n',
            8,
            'fields.choices: \'["A ", "B"]\': expected a list of texts',
        ),
        (HEAD.replace("retention", "publish = true\nretention"), 3, "answers.publish: true: expected a field with"),
        (HEAD.replace("_days = 9", "_days = 0"), 3, "answers.retention_days: '0': expected a whole number from 1"),
    ],
)
def test_wrong_declaration_is_told_with_its_line(
    tmp_path: Path, known: dict[str, Any], text: str, line: int, told: str
) -> None:
    file = tmp_path / "form.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        forms_declared.read(str(file), known)
    assert str(caught.value).startswith(f"{file}:{line}: {told}"), str(caught.value)


def test_what_is_no_toml_is_told_with_its_file(tmp_path: Path, known: dict[str, Any]) -> None:
    file = tmp_path / "form.toml"
    for content, told in ((b"title = \n", "line 1"), (b"\xff", "not UTF-8 at byte 0")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"form.toml: .*{told}"):
            forms_declared.read(str(file), known)


def test_name_that_is_too_long_to_gather_under_is_told(tmp_path: Path, known: dict[str, Any]) -> None:
    room = names.NAME_LIMIT - len(forms_moderation.app_of(""))
    file = tmp_path / f"{'n' * (room + 1)}.toml"
    file.write_text('title = "x"\n[[fields]]\nname = "a"\nlabel = "A"\n')
    with pytest.raises(ConfigError, match=f"{file}: its name is too long: expected at most {room} "):
        forms_declared.read(str(file), known)
    file = file.rename(tmp_path / f"{'n' * room}.toml")
    assert forms_declared.read(str(file), known)["title"] == "x"


def test_samples_are_right_and_make_pages(known: dict[str, Any]) -> None:
    found = forms_compiled.all_names(known)
    assert found == ["feedback", "guestbook", "signup"]
    for name in found:
        form = forms_declared.read(forms_compiled.file_of(name, known), known)
        page = b"".join(form["page"]).decode()
        for field in form["fields"]:
            assert f'name="{field["name"]}"' in page


def test_bound_of_nought_is_in_the_page(tmp_path: Path, known: dict[str, Any]) -> None:
    file = tmp_path / "form.toml"
    for bound, told in (("least", "min"), ("most", "max")):
        file.write_text(f'{HEAD}kind = "number"\n{bound} = 0\n')
        page = b"".join(forms_declared.read(str(file), known)["page"]).decode()
        assert re.findall(r' (?:min|max)="[^"]*"', page) == [f' {told}="0"']


def field(**changes: Any) -> dict[str, Any]:
    declared = {key.name: key.default for key in forms_declared.FIELD}
    return declared | {"name": "f", "label": "F"} | changes


@pytest.mark.parametrize(
    ("declared", "values", "answer", "told"),
    [
        ({"required": True}, [], "", "Please fill this in."),
        ({"required": True}, [" \r\n\t"], "", "Please fill this in."),
        ({}, ["  a b  "], "a b", ""),
        ({"rows": 2}, ["a\r\nb\rc"], "a\nb\nc", ""),
        ({"length": 3}, ["abcd"], None, "too long"),
        ({"length": 3}, ["\U0001f642" * 3], "\U0001f642" * 3, ""),
        ({"pattern": "[a-z]+"}, ["abc"], "abc", ""),
        ({"pattern": "[a-z]+"}, ["abc1"], None, "not in the form"),
        ({"repeats": 2}, ["a", "", "b"], ["a", "b"], ""),
        ({"repeats": 2}, ["a", "b", "c"], None, "At most 2"),
        ({"kind": "choice", "choices": ["a", "b"]}, ["c"], None, "choose one"),
        ({"kind": "choice", "choices": ["a", "b"], "repeats": 2}, ["b", "a"], ["b", "a"], ""),
        ({"kind": "checkbox"}, ["yes"], True, ""),
        ({"kind": "checkbox"}, [], False, ""),
        ({"kind": "checkbox"}, ["on"], None, "tick this or leave"),
        ({"kind": "checkbox", "required": True}, [], False, "needed"),
        ({"kind": "number"}, ["-1.5"], "-1.5", ""),
        *[({"kind": "number"}, [wrong], None, "number") for wrong in ("x", "1e9", "nan", "--1", "1.2.3", "\u0663")],
        ({"kind": "number", "least": 1, "most": 5}, ["0"], None, "1 or more"),
        ({"kind": "number", "least": 1, "most": 5}, ["5.1"], None, "5 or less"),
        ({"kind": "date"}, ["2024-02-29"], "2024-02-29", ""),
        *[({"kind": "date"}, [wrong], None, "day") for wrong in WRONG_DAYS],
        ({"kind": "date", "least": "2026-01-01"}, ["2025-12-31"], None, "2026-01-01 or more"),
    ],
)  # fmt: skip
def test_answer_is_kept_or_told_wrong(declared: dict[str, Any], values: list[str], answer: Any, told: str) -> None:
    answers, faults = forms_check.checked([field(**declared)], {"f": values})
    assert told in faults.get("f", "") and bool(told) == bool(faults)
    if answer is not None:
        assert answers == {"f": answer}


@pytest.mark.parametrize(
    "text", ["a@b.de", "Ann.O'Brien+x@sub.example.org", "é@münchen.de", "a@" + "b." * 120 + "de"]
)
def test_address_is_taken(text: str) -> None:
    assert forms_check.is_address(text)


@pytest.mark.parametrize(
    "text",
    ["a", "@b.de", "a@", "a@b", "a b@c.de", "a@b..de", "a@-b.de", "a@b.de,c@d.de", "a@b@c.de", "<a@b.de>", ".a@b.de",
     "a..b@c.de", "a@1.2.3.4", "x" * 65 + "@b.de", "a@b.de\nBcc: c@d.de", "a@" + "b." * 130 + "de"],
)  # fmt: skip
def test_what_is_no_address_is_not(text: str) -> None:
    assert not forms_check.is_address(text)
