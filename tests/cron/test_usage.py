# SPDX-License-Identifier: Apache-2.0
"""A program's arguments, read by the usage in its docstring."""

import pytest

from infocluster.cron import usage
from infocluster.errors import UsageError

MANUAL = """wwwpush - a program.

Usage: wwwpush [-show] [-time-limit S]
               [-json] PATH...

[-no] this is prose, not usage
"""
NOTHING = {"show": False, "time-limit": None, "json": False}


def test_a_usage_goes_on_over_indented_lines_and_ends_at_the_empty_one() -> None:
    assert usage.of(MANUAL).line == "wwwpush [-show] [-time-limit S] [-json] PATH..."


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a"], {"path": ["a"]}),
        (["-show", "a", "b"], {"show": True, "path": ["a", "b"]}),
        (["a", "--show", "b", "-json"], {"show": True, "json": True, "path": ["a", "b"]}),
        (["-time-limit", "5", "a"], {"time-limit": "5", "path": ["a"]}),
        (["--time-limit=-5", "a"], {"time-limit": "-5", "path": ["a"]}),
        (["-time-limit=", "a"], {"time-limit": "", "path": ["a"]}),
        (["-time-limit", "-", "-"], {"time-limit": "-", "path": ["-"]}),
        (["--", "-show", "--"], {"path": ["-show", "--"]}),
        (["-time-limit=a=b", ""], {"time-limit": "a=b", "path": [""]}),
    ],
)
def test_arguments_are_found_by_name(arguments: list[str], expected: dict[str, object]) -> None:
    assert usage.parse(usage.of(MANUAL), arguments) == NOTHING | expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PATH is missing"),
        (["-sho", "a"], "cannot use '-sho': there is no such option"),
        (["-show=1", "a"], "-show takes no value"),
        (["a", "-time-limit"], "its value is missing"),
        (["-time-limit", "-show", "a"], "its value is missing"),
        (["---show", "a"], "there is no such option"),
        (["-\x1b[31m", "a"], r"cannot use '-\x1b[31m'"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        usage.parse(usage.of(MANUAL), arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("names", "arguments", "expected"),
    [
        ("FROM [TO]", ["a"], {"from": "a", "to": None}),
        ("FROM [TO]", ["a", "b"], {"from": "a", "to": "b"}),
        ("VERB [NAME...]", ["a"], {"verb": "a", "name": []}),
        ("VERB [NAME...]", ["a", "b", "c"], {"verb": "a", "name": ["b", "c"]}),
        ("FROM... TO", ["a", "b", "c"], {"from": ["a", "b"], "to": "c"}),
        ("[FIRST] LAST", ["a"], {"first": None, "last": "a"}),
        ("", [], {}),
    ],
)
def test_names_share_out_what_is_no_option(names: str, arguments: list[str], expected: dict[str, object]) -> None:
    assert usage.parse(usage.of(f"Usage: program {names}\n"), arguments) == expected


@pytest.mark.parametrize(("names", "arguments"), [("FROM [TO]", ["a", "b", "c"]), ("", ["a"]), ("A B", ["a"])])
def test_too_many_or_too_few_are_refused(names: str, arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        usage.parse(usage.of(f"Usage: program {names}\n"), arguments)


@pytest.mark.parametrize("words", ["[-a|-b]", "path", "-force", "A... B...", "[-x X] X", "[-a X]...", "[-show"])
def test_a_usage_in_another_form_is_the_fault_of_the_program(words: str) -> None:
    with pytest.raises(ValueError, match="cannot read the usage"):
        usage.of(f"Usage: program {words}\n")


def test_help_is_asked_for_before_the_end_of_options_only() -> None:
    assert usage.asked(["-x", "--help"]) == "help"
    assert usage.asked(["-version"]) == "version"
    assert usage.asked(["--", "-help"]) is None
