# SPDX-License-Identifier: Apache-2.0
"""Counts for ever, for each month, week and day, in an application's database.

Shape: table ``counts``: ``period, kind, name, n``, such as ``2026-11-22, browser, Firefox, 512``. A period is
    ``always``, ``2026-11`` (month), ``2026-W47`` (week, ISO 8601) or ``2026-11-22`` (day), all UTC.
    Table ``unpublished``: the periods whose counts changed since they were last published.

A count of a day is added to its week, month and to always in the same transaction, so the four agree.

Source: ISO 8601 weeks (datetime.date.isocalendar).
"""

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

ALWAYS = "always"
OTHER = "Other"
NAMES_LIMIT = 2000
"""Names a kind may have in a period; what visitors make up beyond that is counted as `OTHER`."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS counts (
    period TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (period, kind, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unpublished (period TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Table:
    """One kind in one period: the most frequent names, and what the rest comes to.

    Attributes:
        rows: (name, count), most first.
        rest_names: how many names are summed up.
        rest: their count.
        total: all counts.
    """

    rows: list[tuple[str, int]]
    rest_names: int
    rest: int
    total: int


def add(db: sqlite3.Connection, counts: Mapping[tuple[str, str, str], int]) -> None:
    """Add counts, inside a transaction.

    Args:
        db: the database.
        counts: (day, kind, name) to how many.
    """
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for (day, kind, name), n in counts.items():
        for period in periods(day):
            wanted = sums.setdefault((period, kind), {})
            wanted[name] = wanted.get(name, 0) + n
    for (period, kind), wanted in sums.items():
        _add_names(db, period, kind, wanted)
    db.executemany("INSERT OR IGNORE INTO unpublished VALUES (?)", {(period,) for period, _ in sums})


def periods(day: str) -> tuple[str, str, str, str]:
    """Return the periods that a day counts for: itself, its week, its month, always."""
    year, week, _ = date.fromisoformat(day).isocalendar()
    return day, f"{year}-W{week:02d}", day[:7], ALWAYS


def days_of(period: str) -> tuple[str, str]:
    """Return the first and the last day of a period; of `ALWAYS`, the first and last there can be."""
    if period == ALWAYS:
        return "0001-01-01", "9999-12-31"
    if "W" in period:
        first = date.fromisocalendar(int(period[:4]), int(period[6:]), 1)
        return first.isoformat(), (first + timedelta(days=6)).isoformat()
    if len(period) == len("2026-11"):
        return period + "-01", period + "-31"
    return period, period


def kind_of(period: str) -> str:
    """Return ``always``, ``week``, ``month`` or ``day``."""
    if period == ALWAYS:
        return ALWAYS
    if "W" in period:
        return "week"
    return "month" if len(period) == len("2026-11") else "day"


def table(db: sqlite3.Connection, period: str, kind: str, top: int) -> Table:
    """Return the most frequent names of a kind in a period; of equal counts, in the order of names."""
    rows = db.execute(
        "SELECT name, n FROM counts WHERE period = ? AND kind = ? ORDER BY name = ?, n DESC, name",
        (period, kind, OTHER),
    ).fetchall()
    total = sum(n for _, n in rows)
    # One row that stands for a single name would only hide it.
    shown = rows if len(rows) <= top + 1 else rows[:top]
    return Table(shown, len(rows) - len(shown), total - sum(n for _, n in shown), total)


def total(db: sqlite3.Connection, period: str, kind: str, name: str) -> int:
    """Return one count, 0 where there is none."""
    row = db.execute(
        "SELECT n FROM counts WHERE period = ? AND kind = ? AND name = ?", (period, kind, name)
    ).fetchone()
    return int(row[0]) if row else 0


def by_day(db: sqlite3.Connection, period: str, kind: str) -> dict[str, dict[str, int]]:
    """Return a kind's counts of each day in a period: day to name to count."""
    result: dict[str, dict[str, int]] = {}
    for day, name, n in db.execute(
        "SELECT period, name, n FROM counts WHERE kind = ? AND period BETWEEN ? AND ? AND length(period) = 10 "
        "AND period NOT LIKE '%W%' ORDER BY period",
        (kind, *days_of(period)),
    ):
        result.setdefault(day, {})[name] = n
    return result


def all_periods(db: sqlite3.Connection) -> list[str]:
    """Return every period that has counts, in order."""
    return [period for (period,) in db.execute("SELECT DISTINCT period FROM counts ORDER BY period")]


def unpublished(db: sqlite3.Connection) -> list[str]:
    """Return the periods whose counts changed since `published`."""
    return [period for (period,) in db.execute("SELECT period FROM unpublished ORDER BY period")]


def published(db: sqlite3.Connection, done: Iterable[str]) -> None:
    """Remember, inside a transaction, that these periods are published as they stand."""
    db.executemany("DELETE FROM unpublished WHERE period = ?", [(period,) for period in done])


def _add_names(db: sqlite3.Connection, period: str, kind: str, wanted: dict[str, int]) -> None:
    (known,) = db.execute(
        "SELECT count(*) FROM counts WHERE period = ? AND kind = ? AND name != ?", (period, kind, OTHER)
    ).fetchone()
    if known + len(wanted) > NAMES_LIMIT:
        old = {
            name for (name,) in db.execute("SELECT name FROM counts WHERE period = ? AND kind = ?", (period, kind))
        }
        new = sorted(set(wanted) - old - {OTHER}, key=lambda name: (-wanted[name], name))
        for name in new[max(0, NAMES_LIMIT - known) :]:
            wanted[OTHER] = wanted.get(OTHER, 0) + wanted.pop(name)
    db.executemany(
        "INSERT INTO counts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
        [(period, kind, name, n) for name, n in wanted.items()],
    )
