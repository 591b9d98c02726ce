# SPDX-License-Identifier: Apache-2.0
"""Findings as plain text: aligned tables and short lines, readable in any terminal mailer.

Shape: a finding begins with its title, underlined; a table is indented, numbers stand right, as in
    ``  browser  visits``
    ``  -------  ------``
    ``  Firefox      12``

Source: Unicode Standard Annex 11 for the columns that a character takes.
"""

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from infocluster import names
from infocluster.report.findings import Cell, Finding, Table

WIDTH = 76
COLUMN_LEAST = 8
_GAP = "  "
_NUMBER = re.compile(r"[-+]?\d[\d.,]*\s?%?")


def moment(time_s: float) -> str:
    """Return a time as ``2026-11-22 03:15 UTC``."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def cell(value: Cell) -> str:
    """Return a cell's text: a fraction with two places at most, and nothing that could steer a terminal."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else _clean(str(value))


def is_number(value: Cell) -> bool:
    """Tell whether a cell reads as a number, with or without a percent sign."""
    return isinstance(value, int | float) or _NUMBER.fullmatch(value) is not None


def numeric(table: Table) -> list[bool]:
    """Tell for each column of a table whether it holds numbers alone."""
    return [bool(table.rows) and all(is_number(row[at]) for row in table.rows) for at in range(len(table.head))]


def report(heading: str, found: Sequence[Finding]) -> str:
    """Return findings as one text: what went wrong first, then each finding in turn."""
    lines = [*_wrapped(heading), ""]
    faults = [f"{one.job}: {fault}" for one in found for fault in one.faults]
    if faults:
        lines += [*_title("What went wrong"), *(line for fault in faults for line in _wrapped(fault, "- ")), ""]
    for one in found:
        lines += [*_title(one.title), f"{one.job}, {moment(one.time)}", ""]
        for sentence in one.lines:
            lines += _wrapped(sentence)
        lines += [""] * bool(one.lines)
        for table in one.tables:
            lines += [*aligned(table), ""]
        # An address is never broken: a mailer makes a link of it only while it is whole.
        lines += [*one.links, *[""] * bool(one.links)]
    return "\n".join(lines).rstrip() + "\n"


def aligned(table: Table) -> list[str]:
    """Return a table in lines of at most `WIDTH` columns; the widest texts are cut where it would be wider."""
    head = [cell(text) for text in table.head]
    rows = [[cell(value) for value in row] for row in table.rows]
    right = numeric(table)
    widths = [max(map(columns, column)) for column in zip(head, *rows, strict=True)]
    while sum(widths) + len(_GAP) * len(widths) > WIDTH:
        most = max((width, at) for at, width in enumerate(widths))
        if most[0] <= COLUMN_LEAST:
            break
        widths[most[1]] -= 1
    lines = [*_wrapped(table.title)] if table.title else []
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [_fitted(text, width, side) for text, width, side in zip(row, widths, right, strict=True)]
        lines.append((_GAP + _GAP.join(cells)).rstrip())
    return lines


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _fitted(text: str, width: int, is_right: bool) -> str:
    if columns(text) > width:
        while columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    fill = " " * (width - columns(text))
    return fill + text if is_right else text + fill


def _title(text: str) -> list[str]:
    lines = _wrapped(text)
    return [*lines, "=" * max(map(columns, lines))]


def _clean(text: str) -> str:
    """Return a text with control characters as escapes, and without turns of the writing direction."""
    return names.visible(names.printable(text))


def _wrapped(text: str, mark: str = "") -> list[str]:
    after = " " * len(mark)
    return textwrap.wrap(
        _clean(text),
        WIDTH,
        initial_indent=mark,
        subsequent_indent=after,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [mark]
