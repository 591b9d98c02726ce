# SPDX-License-Identifier: Apache-2.0
"""The survey's pages: picture and table agree, every period can be reached, nothing of a visitor runs."""

import copy
import re
from collections.abc import Callable
from datetime import date, timedelta
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from infocluster.apps import survey_pages
from infocluster.errors import InfoclusterError

ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&\x1b\x00\u202e\udc80"
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """A page as a browser reads it: its elements, links, tables; a tag that is not closed is an error."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self.text = content.decode("utf-8")
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def links(self) -> list[str]:
        return [str(attributes["href"]) for tag, attributes in self.tags if tag == "a"]

    def pictures(self) -> list[ElementTree.Element]:
        return [ElementTree.fromstring(found) for found in re.findall(r"<svg xmlns.*?</svg>\n", self.text)]


def values() -> dict[str, Any]:
    days = [date(2024, 1, 1) + timedelta(days=n) for n in range(1057)]
    weeks = sorted({"{}-W{:02}".format(*day.isocalendar()) for day in days})
    months = sorted({day.isoformat()[:7] for day in days})
    return {
        "site": {"name": "Example & Sons", "url": "https://www.example.org/"},
        "made": "2026-11-22 23:10 UTC",
        "period": {"kind": "month", "name": "2026-10", "title": "October 2026"},
        "visits": 7000,
        "bots": 1200,
        "tables": [
            {
                "id": "browser",
                "title": "Browsers",
                "rows": [["(unknown)", 2000], ["Chrome", 1512], ["Firefox", 1000], ["Lynx", 7]],
                "rest": [34, 1281],
                "total": 5800,
            },
            {"id": "os", "title": "Systems", "rows": [["Debian", 5800]], "rest": None, "total": 5800},
            {"id": "bot", "title": "Bots", "rows": [], "rest": None, "total": 0},
        ],
        "days": [["2026-10-01", 5000, 1000], ["2026-10-03", 800, 200]],
        "periods": {
            "day": [[str(day), f"day-{day}.html"] for day in reversed(days)],
            "week": [[week, f"week-{week}.html"] for week in weeks],
            "month": [[month, f"month-{month}.html"] for month in months],
            "always": [["always", "index.html"]],
        },
        "files": [["survey.json", "the same numbers as JSON"], ["survey.csv", "as CSV"]],
        "address": "/survey/",
    }


def of(kind: str, name: str) -> Page:
    return Page(survey_pages.page(values() | {"period": {"kind": kind, "name": name, "title": name}}))


def leaves(given: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(given, dict):
        return [found for key, item in given.items() for found in leaves(item, (*place, key))]
    if isinstance(given, list):
        return [found for key, item in enumerate(given[:2]) for found in leaves(item, (*place, key))]
    # Names of periods and days are dates that tables.py made; those of tables, sites and files may be anything.
    fixed = (place[0] in ("periods", "days") and place[-1] == 0) or place in (("period", "kind"), ("period", "name"))
    return [place] if isinstance(given, str) and not fixed else []


def test_picture_and_table_tell_the_same_numbers() -> None:
    page = Page(survey_pages.page(values()))
    by_day, browsers, systems, bots = page.pictures()
    drawn = [
        [name.text, *str(count.text).split(" · ")]
        for name, count in zip(
            browsers.iterfind(f".//{SVG}text[@class='chart-name']"),
            browsers.iterfind(f".//{SVG}text[@class='chart-count']"),
            strict=True,
        )
    ]
    assert drawn == [
        ["(unknown)", "2,000", "34.5 %"],
        ["Chrome", "1,512", "26.1 %"],
        ["Firefox", "1,000", "17.2 %"],
        ["Lynx", "7", "0.1 %"],
        ["34 more", "1,281", "22.1 %"],
    ]
    start = page.rows.index(drawn[0])
    assert page.rows[start : start + 6] == [*drawn, ["All", "5,800", "100.0 %"]]
    assert ["2026-10-03", "800", "200", "1,000"] in page.rows
    titles = [found.text for found in by_day.iter(f"{SVG}title")]
    assert "2026-10-03: People 800, Bots 200" in titles
    assert systems.findtext(f"{SVG}desc") == "Debian: 5,800"
    assert bots.findtext(f"{SVG}desc") == "Nothing was counted."


def test_top_browser_is_a_known_one() -> None:
    assert re.search(r"<dt>top browser</dt><dd[^>]*>Chrome</dd>", Page(survey_pages.page(values())).text)


@pytest.mark.parametrize("make", [survey_pages.page, survey_pages.summary])
def test_hostile_text_in_any_value_stays_text(make: Callable[[Any], bytes]) -> None:
    usual = Page(make(values()))
    seen = 0
    for place in leaves(values()):
        given = copy.deepcopy(values())
        inside = given
        for key in place[:-1]:
            inside = inside[key]
        if place[-1] == "id":
            continue
        inside[place[-1]] = ATTACK
        page = Page(make(given))
        assert [tag for tag, _ in page.tags if tag in ("script", "img")] == []
        assert len(page.tags) in (len(usual.tags), len(usual.tags) - 2)
        assert not any(name.startswith("on") or name == "style" for _, found in page.tags for name in found)
        assert not set("\x1b\x00\u202e\udc80") & set(page.text)
        seen += "alert(1)" in page.text
    assert seen >= 8


@pytest.mark.parametrize("make", [survey_pages.page, survey_pages.summary])
def test_pages_load_nothing_and_are_the_same_each_time(make: Callable[[Any], bytes]) -> None:
    content = make(values())
    page = Page(content)
    assert content == make(values())
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert [found.get("lang") for tag, found in page.tags if tag == "html"] == ["en"]


def test_every_day_of_years_is_reached_from_the_first_page_and_no_page_lists_all() -> None:
    start = of("always", "always").links()
    assert len(start) < 150
    assert {f"month-{name}.html" for name, _ in values()["periods"]["month"]} <= set(start)
    reached = set(start)
    for name, _ in values()["periods"]["month"]:
        reached |= set(of("month", name).links())
    for kind in ("day", "week", "month", "always"):
        assert {address for _, address in values()["periods"][kind]} <= reached


@pytest.mark.parametrize(
    ("kind", "name", "before", "after"),
    [
        ("day", "2026-10-31", "day-2026-10-30.html", "day-2026-11-01.html"),
        ("week", "2026-W01", "week-2025-W52.html", "week-2026-W02.html"),
        ("month", "2026-01", "month-2025-12.html", "month-2026-02.html"),
    ],
)
def test_a_period_links_to_its_neighbours_and_marks_itself(kind: str, name: str, before: str, after: str) -> None:
    page = of(kind, name)
    steps = {found.get("rel"): found["href"] for tag, found in page.tags if tag == "a" and found.get("rel")}
    assert steps == {"prev": before, "next": after}
    here = {found["href"] for tag, found in page.tags if found.get("aria-current") == "page"}
    assert here == {f"{kind}-{name}.html"}


def test_a_single_day_has_no_picture_by_day() -> None:
    page = Page(survey_pages.page(values() | {"days": [["2026-10-01", 5000, 1000]]}))
    assert "Visits by day" not in page.words


def test_the_first_night_of_an_empty_site_has_a_page() -> None:
    empty = values() | {
        "visits": 0,
        "bots": 0,
        "days": [],
        "periods": {"day": [], "week": [], "month": [], "always": []},
    }
    empty["tables"] = [{"id": "browser", "title": "Browsers", "rows": [], "rest": None, "total": 0}]
    empty["period"] = {"kind": "always", "name": "always", "title": "All visits"}
    assert "Nothing was counted." in Page(survey_pages.page(empty)).words
    assert "Nothing was counted." in Page(survey_pages.summary(empty)).words


def test_summary_is_short_and_leads_to_the_whole() -> None:
    given = values()
    given["tables"][0]["rows"] = [[f"name {n}", 100 - n] for n in range(12)]
    given["tables"][0]["rest"] = [3, 6]
    given["tables"][0]["total"] = 5800
    page = Page(survey_pages.summary(given))
    browsers, systems = page.pictures()
    names = [found.text for found in browsers.iterfind(f".//{SVG}text[@class='chart-name']")]
    assert names == ["name 0", "name 1", "name 2", "name 3", "name 4", "10 more"]
    rest = sum(100 - n for n in range(5, 12)) + 6
    assert f"10 more: {rest}" in str(browsers.findtext(f"{SVG}desc"))
    assert systems.findtext(f"{SVG}desc") == "Debian: 5,800"
    assert "/survey/" in page.links()
    assert "Thank you" in page.words


@pytest.mark.parametrize("missing", ["site", "made", "files"])
def test_a_missing_value_is_an_error(missing: str) -> None:
    given = values()
    del given[missing]
    with pytest.raises(InfoclusterError, match=missing):
        survey_pages.page(given)
