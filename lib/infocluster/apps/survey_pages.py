# SPDX-License-Identifier: Apache-2.0
"""The browser survey's pages: the numbers of a period, as a page to publish and as what survey.cgi shows.

Shape: the values of both are one dictionary, made by `survey_night`:
    ``{"site": {"name": "Example", "url": "https://www.example.org/"}, "made": "2026-11-22 23:10 UTC",
    "period": {"kind": "week", "name": "2026-W47", "title": "Week 47 of 2026"}, "visits": 7000, "bots": 1200,
    "tables": [{"id": "browser", "title": "Browsers", "rows": [["Chrome", 512]], "rest": [34, 120], "total": 632}],
    "days": [["2026-11-22", 5800, 1200]], "periods": {"day": [["2026-11-22", "day-2026-11-22.html"]], "week": [],
    "month": [], "always": [["always", "index.html"]]}, "files": [["week-2026-W47.csv", "the same numbers as CSV"]],
    "address": "/survey/"}``
    ``kind`` is ``always``, ``month``, ``week`` or ``day``; ``visits`` are of people and bots; a table's ``rest`` is
    how many names are not shown and their count, or None; a day has the visits of people, and of bots;
    ``address`` (for `summary` alone; by default the site's) is where visitors find the published pages.

Source: ISO 8601 weeks (datetime.date.fromisocalendar).
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from infocluster import charts, pages

Values = Mapping[str, Any]
Link = dict[str, Any]

SUMMARY_ROWS = 5
_SUMMARY_TABLES = ("browser", "os")
_LEADERS = {"browser": "top browser", "os": "top system"}
_BOTS = "bot"


def page(values: Values) -> bytes:
    """Return the page of a period.

    Raises:
        InfoclusterError: a value is missing.
    """
    by_day = ""
    if len(values["days"]) > 1:
        people = [(day, n) for day, n, _ in values["days"]]
        bots = [(day, n) for day, _, n in values["days"]]
        by_day = pages.picture(charts.days("Visits by day", [("People", people), ("Bots", bots)]))
    filled = {
        **values,
        "people": values["visits"] - values["bots"],
        "tables": [_drawn(table) for table in values["tables"]],
        "leaders": _leaders(values["tables"]),
        "by_day": by_day,
        "steps": _steps(values),
        "groups": _groups(values),
    }
    return pages.fill("survey.html", filled).encode("utf-8")


def summary(values: Values) -> bytes:
    """Return what survey.cgi shows every visitor: the numbers of the last night, short.

    Raises:
        InfoclusterError: a value is missing.
    """
    filled = {
        **values,
        "people": values["visits"] - values["bots"],
        "tables": [_drawn(_short(table)) for table in values["tables"] if table["id"] in _SUMMARY_TABLES],
        "full": values.get("address") or values["site"]["url"],
    }
    return pages.fill("survey_summary.html", filled).encode("utf-8")


def _leaders(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the most frequent browser and system; a name in brackets, such as (unknown), is none."""
    result = []
    for table in tables:
        known = [name for name, n in table["rows"] if n and not name.startswith("(")]
        if known and table["id"] in _LEADERS:
            result.append({"text": _LEADERS[table["id"]], "name": known[0]})
    return result


def _drawn(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with its picture: rows, rest and shares are the same in both."""
    rest_name = f"{table['rest'][0]:,} more" if table["rest"] else ""
    rest = (rest_name, table["rest"][1]) if table["rest"] else None
    rows = [(name, n) for name, n in table["rows"]]
    svg = charts.bars(table["title"], rows, rest, table["total"], key=table["id"])
    return {**table, "picture": pages.picture(svg), "rest_name": rest_name, "apart": table["id"] == _BOTS}


def _short(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of the first few rows; the others join the rest."""
    names, n = table["rest"] or (0, 0)
    others = table["rows"][SUMMARY_ROWS:]
    names, n = names + len(others), n + sum(count for _, count in others)
    return {**table, "rows": table["rows"][:SUMMARY_ROWS], "rest": [names, n] if names else None}


def _steps(values: Values) -> list[Link]:
    """Return the links to all visits, to the period before and after this one, and to what it is part of."""
    period = values["period"]
    links = [_link(link, "All visits", period) for link in values["periods"]["always"]]
    if period["kind"] == "always":
        return links
    month = _month(values)
    if period["kind"] != "month":
        links += [_link(link, _month_title(month), period) for link in values["periods"]["month"] if link[0] == month]
    line = sorted(values["periods"][period["kind"]])
    earlier = [link for link in line if link[0] < period["name"]]
    later = [link for link in line if link[0] > period["name"]]
    if earlier:
        links.append(_link(earlier[-1], "← " + _title(period["kind"], earlier[-1][0]), period, "prev"))
    links += [_link(link, period["title"], period) for link in line if link[0] == period["name"]]
    if later:
        links.append(_link(later[0], _title(period["kind"], later[0][0]) + " →", period, "next"))
    return links


def _groups(values: Values) -> list[dict[str, Any]]:
    """Return the links to other periods: all months, the weeks of the year shown, the days of the month shown.

    After years there are thousands of days; every one is two steps away, by way of its month.
    """
    period, periods, month = values["period"], values["periods"], _month(values)
    year = month[:4]
    by_year: dict[str, list[Sequence[str]]] = {}
    for link in sorted(periods["month"]):
        by_year.setdefault(link[0][:4], []).append(link)
    months: list[dict[str, Any]] = [
        {"title": of, "links": [_link(link, charts.MONTHS[int(link[0][5:]) - 1], period) for link in links]}
        for of, links in reversed(by_year.items())
    ]
    weeks = [link for link in sorted(periods["week"]) if link[0][:4] == year]
    days = [link for link in sorted(periods["day"]) if link[0][:7] == month]
    groups: list[dict[str, Any]] = [
        {"title": "Months", "parts": months},
        {
            "title": f"Weeks of {year}",
            "parts": [{"title": "", "links": [_link(link, str(int(link[0][6:])), period) for link in weeks]}],
        },
        {
            "title": f"Days of {_month_title(month)}",
            "parts": [{"title": "", "links": [_link(link, str(int(link[0][8:])), period) for link in days]}],
        },
    ]
    return [group for group in groups if any(part["links"] for part in group["parts"])]


def _month(values: Values) -> str:
    """Return the month that a period belongs to; a week to its Thursday's, as ISO 8601 does with years."""
    kind, name = values["period"]["kind"], values["period"]["name"]
    if kind == "always":
        return str(max((link[0] for link in values["periods"]["month"]), default=values["made"][:7]))
    if kind == "week":
        return date.fromisocalendar(int(name[:4]), int(name[6:]), 4).isoformat()[:7]
    return str(name[:7])


def _link(link: Sequence[str], text: str, period: Mapping[str, str], rel: str = "") -> Link:
    return {"address": link[1], "text": text, "here": link[0] == period["name"], "rel": rel}


def _title(kind: str, name: str) -> str:
    if kind == "week":
        return f"Week {int(name[6:])}"
    return _month_title(name) if kind == "month" else name


def _month_title(month: str) -> str:
    return f"{charts.MONTHS[int(month[5:7]) - 1]} {month[:4]}"
