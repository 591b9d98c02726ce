# SPDX-License-Identifier: Apache-2.0
"""Pictures: true numbers, well-formed, nothing that runs or paints by itself."""

import re
from datetime import date, timedelta
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infocluster import charts
from infocluster.errors import BadInputError

NS = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\"'&]]><!--\x00\x1b[31m\u202e\udc80\ufffe{{ 7*7 }}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(root: ElementTree.Element, kind: str) -> list[str]:
    return [found.text or "" for found in root.iter(f"{NS}text") if found.get("class") == kind]


def assert_static(svg: str) -> ElementTree.Element:
    root = parsed(svg)
    allowed = {"svg", "title", "desc", "g", "rect", "circle", "line", "path", "text"}
    assert {part.tag.removeprefix(NS) for part in root.iter()} <= allowed
    for part in root.iter():
        for name, value in part.items():
            assert not name.startswith("on")
            assert name not in ("style", "href", "src")
            assert "url(" not in value
            assert "http" not in value
    return root


def widths(root: ElementTree.Element) -> list[float]:
    found = [part for part in root.iter(f"{NS}rect") if part.get("class") == "chart-bar"]
    return [float(part.attrib["width"].rstrip("%")) for part in found]


def test_bars_show_each_name_with_its_count_and_share() -> None:
    root = assert_static(charts.bars("Browsers", [("Chrome", 1500), ("Lynx", 300)], ("3 more", 200), total=2000))
    assert texts(root, "chart-name") == ["Chrome", "Lynx", "3 more"]
    assert texts(root, "chart-count") == ["1,500 · 75.0 %", "300 · 15.0 %", "200 · 10.0 %"]
    assert widths(root) == [100, 20, 13.333]
    assert root.findtext(f"{NS}desc") == "Chrome: 1,500; Lynx: 300; 3 more: 200"


def test_picture_is_an_image_with_name_and_description() -> None:
    for svg in (charts.bars("Bots & co", [("a", 1)]), charts.days("Bots & co", [("a", [("2026-11-22", 1)])])):
        root = assert_static(svg)
        ids = {part.get("id"): part.text for part in root.iter() if part.get("id")}
        assert root.get("role") == "img"
        assert ids[root.get("aria-labelledby")] == "Bots & co"
        assert ids[root.get("aria-describedby")]
        assert root.get("width") == "100%"


def test_ids_of_different_pictures_differ() -> None:
    rows = [("a", 1)]
    pictures = [
        charts.bars("t", rows),
        charts.bars("t", rows, key="other"),
        charts.bars("t", [("a", 2)]),
        charts.bars("t", rows, ("1 more", 1)),
        charts.days("t", [("a", [("2026-11-22", 1)])]),
        charts.days("t", [("a", [("2026-11-22", 1)])], key="other"),
    ]
    ids = [found for svg in pictures for found in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids)) == 2 * len(pictures)


def test_hostile_text_stays_text() -> None:
    rows = [(HOSTILE, 2), ("</text><text>", 1)]
    root = assert_static(charts.bars(HOSTILE, rows, (HOSTILE, 1), 4))
    clean = "<script>alert(1)</script>\"'&]]><!--[31m{{ 7*7 }}"
    assert root.findtext(f"{NS}title") == clean
    assert root.findtext(f"{NS}g/{NS}title") == f"{clean}: 2 · 50.0 %"
    assert texts(root, "chart-name")[1] == "</text><text>"
    root = assert_static(charts.days(HOSTILE, [(HOSTILE, [("2026-11-22", 1)]), ("b", [("2026-11-23", 1)])]))
    assert f"2026-11-22: {clean} 1, b 0" in [found.text for found in root.iter(f"{NS}title")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=80), st.integers(0, 10**9)), max_size=30), st.text(max_size=80))
def test_any_names_and_counts_make_a_well_formed_picture(rows: list[tuple[str, int]], title: str) -> None:
    svg = charts.bars(title, rows)
    root = assert_static(svg)
    assert texts(root, "chart-count") == [f"{n:,}" for _, n in rows]
    assert all(0 <= width <= 100 for width in widths(root))
    assert svg == charts.bars(title, rows)
    assert svg.isascii()


@pytest.mark.parametrize("name", ["W" * 200, "漢字" * 50, "e\u0301" * 200])
def test_a_long_name_is_cut_for_a_phone_and_whole_in_the_title(name: str) -> None:
    root = parsed(charts.bars("t", [(name, 10**9)], total=10**9))
    (shown,) = texts(root, "chart-name")
    assert shown.endswith("…")
    assert len(shown) < len(name) / 2
    assert name in (root.findtext(f"{NS}g/{NS}title") or "")


def test_the_smallest_count_is_seen_and_none_is_not() -> None:
    root = parsed(charts.bars("t", [("much", 10**9), ("one", 1), ("none", 0)]))
    dots = [[part.get("class") for part in row.iter(f"{NS}circle")] for row in root.iter(f"{NS}g")]
    assert dots == [["chart-bar"], ["chart-bar"], []]


def columns(root: ElementTree.Element) -> list[list[tuple[int, int]]]:
    """Return each day's pieces as top and height, in thousandths of the plot's height."""
    groups = [part for part in root.iter(f"{NS}g") if part.get("class") == "chart-day"]
    return [
        [(int(part.attrib["y"]), int(part.attrib["height"])) for part in group.iter(f"{NS}rect")] for group in groups
    ]


def test_days_stack_series_in_proportion_and_fill_gaps_with_none() -> None:
    people = [("2026-11-20", 300), ("2026-11-22", 100)]
    bots = [("2026-11-20", 100)]
    root = assert_static(charts.days("Visits", [("People", people), ("Bots", bots)]))
    assert texts(root, "chart-axis") == ["People", "Bots", "100", "200", "300", "400", "20 Nov", "21", "22"]
    assert columns(root) == [[(250, 750), (0, 250)], [], [(750, 250)]]
    told = root.findtext(f"{NS}desc")
    assert told == (
        "3 days, 2026-11-20 to 2026-11-22. People: 400, the most on 2026-11-20 (300). "
        "Bots: 100, the most on 2026-11-20 (100)."
    )


def test_hundreds_of_days_are_one_outline_a_series_and_stay_small() -> None:
    line = [(date(2025, 10, 20) + timedelta(days=n)).isoformat() for n in range(400)]
    svg = charts.days("Visits", [("People", [(day, 200) for day in line]), ("Bots", [(day, 50) for day in line])])
    root = assert_static(svg)
    paths = [part.attrib["d"] for part in root.iter(f"{NS}path")]
    # The top of the grid is 300; people end at two thirds of its height, bots upon them.
    assert [set(re.findall(r"V(\d+)", path)) for path in paths] == [{"333", "1000"}, {"167", "333"}]
    assert [path.count("h10") for path in paths] == [400, 400]
    assert len(svg) < 20_000
    assert texts(root, "chart-axis")[-4:] == ["Nov 2025", "Mar 2026", "Jul 2026", "Nov 2026"]


@pytest.mark.parametrize("span", [1, 2, 7, 8, 31, 62, 63, 365, 400, 1500, 4000])
def test_dates_below_never_crowd(span: int) -> None:
    line = [(date(2020, 3, 5) + timedelta(days=n)).isoformat() for n in range(span)]
    root = assert_static(charts.days("Visits", [("People", [(day, 10**9) for day in line])]))
    dates = [part for part in root.iter(f"{NS}text") if part.get("class") == "chart-axis" and part.get("x") != "0"]
    assert 1 <= len(dates) <= 7
    # 330 pixels are what a phone leaves; a letter is 6 wide.
    room = 330
    ends = 0.0
    for part in dates:
        at, wide = float(part.attrib["x"].rstrip("%")) * room / 100, 6 * len(part.text or "")
        left = at - wide if part.get("text-anchor") == "end" else at - wide / 2
        assert left >= ends
        ends = left + wide
        assert ends <= room


@pytest.mark.parametrize(
    ("highest", "marks"),
    [
        (0, ["1"]),
        (1, ["1"]),
        (4, ["1", "2", "3", "4"]),
        (9, ["5", "10"]),
        (5800, ["2,000", "4,000", "6,000"]),
        (45_000, ["20k", "40k", "60k"]),
        (10**9, ["500M", "1B"]),
    ],
)
def test_grid_has_round_numbers_that_reach_the_highest(highest: int, marks: list[str]) -> None:
    root = parsed(charts.days("Visits", [("People", [("2026-11-22", highest)])]))
    assert texts(root, "chart-axis")[:-1] == marks


def test_nothing_counted_is_said() -> None:
    for svg in (charts.bars("Browsers", []), charts.days("Visits", [("People", [])])):
        assert texts(assert_static(svg), "chart-axis") == ["Nothing was counted."]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["1970-01-01", "1970-01-02"], "3 days, 2026-11-20 to 2026-11-22. People: 15, the most on 2026-11-20 (5)."),
        (["2099-01-01"], "3 days, 2026-11-20 to 2026-11-22. People: 15, the most on 2026-11-20 (5)."),
        (["2015-12-11", "2015-12-12"], "4000 days, 2015-12-11 to 2026-11-22."),
        (["2015-12-10", "2015-12-09", "2015-12-08"], "3 days, 2026-11-20 to 2026-11-22."),
    ],
)
def test_days_too_far_apart_are_drawn_as_far_as_most_of_them_go(more: list[str], told: str) -> None:
    line = [(day, 5) for day in ["2026-11-20", "2026-11-21", "2026-11-22", *more]]
    root = assert_static(charts.days("Visits", [("People", line)]))
    assert str(root.findtext(f"{NS}desc")).startswith(told)


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(BadInputError, match="a count is -1"):
        charts.bars("t", [("a", -1)])
    with pytest.raises(BadInputError, match=r"'22\.11\.2026' is no day"):
        charts.days("t", [("a", [("22.11.2026", 1)])])


def test_course_goes_from_the_lowest_to_the_highest_and_tells_its_ends() -> None:
    svg = charts.course("node1: hits", [(1795384800.0, 10.0), (1795384830.0, 30.0), (1795384860.0, 20.0)])
    assert 'd="M0 1000L0 1000L500 0L1000 500L1000 1000z"' in svg
    assert "3 values" in svg and "from 10 to 20" in svg and ">30</text>" in svg
    assert charts.course("one", [(1.0, 1.0)]) != charts.course("one", [(1.0, 1.0), (1.0, 1.0)])
    with pytest.raises(BadInputError):
        charts.course("bad", [(1.0, float("nan")), (2.0, 1.0)])
