# SPDX-License-Identifier: Apache-2.0
"""Findings as plain text: what a terminal mailer shows."""

from infocluster.report import plain
from infocluster.report.findings import Finding, Table

EXPECTED = """\
Night: 2 findings

What went wrong
===============
- survey: cannot read web3: no such directory, although the settings name it
  as one of the servers

Survey
======
survey, 2026-11-22 03:15 UTC

12 visits.

Browsers
  browser         visits   share
  --------------  ------  ------
  Firefox              7  58.33%
  日本語ブラウザ   1,005   1.5 %

https://www.example.org/a/very/long/address/that/is/longer/than/a/line/of/this/letter/

Other
=====
other, 1970-01-01 00:00 UTC
"""


def test_a_report_reads_well_in_a_terminal() -> None:
    rows: list[list[plain.Cell]] = [["Firefox", 7, "58.33%"], ["日本語ブラウザ", "1,005", "1.5 %"]]
    survey = Finding(
        job="survey",
        time=1795317300,
        title="Survey",
        lines=["12 visits."],
        tables=[Table(title="Browsers", head=["browser", "visits", "share"], rows=rows)],
        faults=["cannot read web3: no such directory, although the settings name it as one of the servers"],
        links=["https://www.example.org/a/very/long/address/that/is/longer/than/a/line/of/this/letter/"],
    )
    assert plain.report("Night: 2 findings", [survey, Finding(job="other", time=0, title="Other")]) == EXPECTED


def test_the_widest_text_is_cut_and_no_number_is() -> None:
    table = Table(head=["name", "agent", "n"], rows=[["a" * 20, "b" * 200, 10**12], ["c", "日" * 90, 2.0]])
    lines = plain.aligned(table)
    assert {plain.columns(line) for line in lines if line.endswith(("0", "-", "2"))} == {plain.WIDTH}
    assert lines[2].startswith("  " + "a" * 20 + "  bbb") and lines[2].endswith("b…  1000000000000")
    assert "日…" in lines[3] and lines[3].endswith(" 2")


def test_many_columns_are_wide_rather_than_unreadable() -> None:
    lines = plain.aligned(Table(head=["x" * 30] * 20, rows=[["y"] * 20]))
    assert all(len(part) >= plain.COLUMN_LEAST for part in lines[1].split())


def test_a_table_without_rows_or_columns_is_no_error() -> None:
    assert plain.aligned(Table(head=["a", "b"], rows=[])) == ["  a  b", "  -  -"]
    assert plain.aligned(Table(title="t", head=[], rows=[]))[0] == "t"


def test_nothing_steers_the_terminal_that_shows_it() -> None:
    one = Finding(
        job="job",
        time=0,
        title="a\x1b[2Jb",
        lines=["c\nd\x9be\u202ef"],
        tables=[Table(title="g\x07", head=["h\r"], rows=[["i\x00\tj"]])],
        faults=["k\x1b]0;l"],
    )
    text = plain.report("m\x1bn", [one])
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert "\u202e" not in text and "c\\x0ad" in text
