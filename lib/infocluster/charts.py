# SPDX-License-Identifier: Apache-2.0
"""Numbers become a static picture: an ``<svg>`` element to stand in a page, made with `xml.etree`.

Three pictures: `bars` (names and their counts), `days` (counts by day, one or more series on top of each other) and
`course` (a number over time).

What a picture is:

* It has no script, style, link or colour of its own. Its parts have classes (``chart-bar``, ``chart-series-2``, ...)
  that the page's stylesheet paints, so it follows light and dark under any Content-Security-Policy. Without a
  stylesheet it is drawn in the colour of the text around it.
* Across it measures in percent and down in pixels, without a viewBox round the whole: on a phone the bars get
  shorter and the letters stay as large as they are. Only the plot of `days`, which holds no text, has one.
* It is one image with a title and a description that tells the numbers; parts have titles that a pointer shows.
* Same input, same bytes.

A chart library would own this module. pygal puts a script, its own stylesheet and today's date into each
picture; leather writes colours and font sizes at each element. Both scale a picture's letters with its width, to
half their size on a phone. What is left to draw without them are rectangles.

Source: SVG 1.1; WAI-ARIA Graphics Module 1.0; SVG Accessibility API Mappings 1.0.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from xml.etree.ElementTree import Element, SubElement, tostring

from infocluster import names
from infocluster.errors import BadInputError

SVG = "http://www.w3.org/2000/svg"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAYS_LIMIT = 4000
"""Days from the first to the last that `days` draws at most."""

# Pixels.
_ROW, _ROW_TEXT, _ROW_BAR, _BAR = 36, 14, 21, 8
_COURSE = 80
_LEGEND, _PLOT, _AXIS, _ABOVE = 22, 160, 24, 16
_LETTER, _NARROW = 7, 320
# Percent of the width that the plot of `days` leaves to the counts of its grid.
_GUTTER = 9
# Of the plot's own units: its height, and the width of a day.
_TALL, _WIDE = 1000, 10
_FEWEST_PLACES = 7
_DAYS_APART = 62
_SERIES_COLOURS = 4


def bars(
    title: str,
    rows: Sequence[tuple[str, int]],
    rest: tuple[str, int] | None = None,
    total: int | None = None,
    key: str = "",
) -> str:
    """Return a picture of horizontal bars, each under its name and count.

    A name too long for a phone is cut short; the whole of it is in the row's title.

    Args:
        title: what is counted; names the picture for those who do not see it.
        rows: name and count, in the order they are shown. Counts are 0 or more.
        rest: a last, paler row for what is not shown by name.
        total: of what the shares in percent are; by default no shares are shown.
        key: tells apart two pictures of one page that are alike in everything else.

    Returns:
        An ``<svg>`` element, ASCII.

    Raises:
        BadInputError: a count is negative.
    """
    shown = [(_clean(name), _count(n, title), "") for name, n in rows]
    if rest is not None:
        shown.append((_clean(rest[0]), _count(rest[1], title), " chart-rest"))
    told = "; ".join(f"{name}: {n:,}" for name, n, _ in shown) or "Nothing was counted."
    root = _picture("bars", max(len(shown), 1) * _ROW - 4, title, told, repr((rows, rest, total, key)))
    if not shown:
        _text(root, "0", _ROW_TEXT, "Nothing was counted.", "chart-axis")
    longest = max((n for _, n, _ in shown), default=0)
    for place, (name, n, kind) in enumerate(shown):
        label = f"{n:,}" if not total else f"{n:,} · {100 * n / total:.1f} %"
        top = place * _ROW
        row = SubElement(root, "g", {"class": "chart-row" + kind})
        SubElement(row, "title").text = f"{name}: {label}"
        room = _NARROW // _LETTER - len(label) - 1
        _text(row, "0", top + _ROW_TEXT, _cut(name, room), "chart-name")
        _text(row, "100%", top + _ROW_TEXT, label, "chart-count", "end")
        _bar(row, top + _ROW_BAR, "100%", "chart-track", "0.12")
        if n:
            # Even one of a thousand millions is more than none: a dot as wide as the bar is high shows it.
            _bar(row, top + _ROW_BAR, _percent(n, longest), "chart-bar", "0.75")
    return _ascii(root)


def days(title: str, series: Sequence[tuple[str, Sequence[tuple[str, int]]]], key: str = "") -> str:
    """Return a picture of counts by day: a column a day, the series on top of each other.

    Days between the first and the last that no series names count as 0. Where those two are `DAYS_LIMIT` apart or
    more, only so many days are drawn: the ones that most of the named days are among, or of equals the later ones. So
    the last eleven years are seen, and a day that came from a server with a wrong clock hides no others.

    Args:
        title: what is counted.
        series: name, and day (``2026-11-22``) with its count. The first stands at the bottom.
        key: tells apart two pictures of one page that are alike in everything else.

    Returns:
        An ``<svg>`` element, ASCII.

    Raises:
        BadInputError: a count is negative, or a day is none.
    """
    named = [(_clean(name), {_day(day, title): _count(n, title) for day, n in counts}) for name, counts in series]
    present = sorted({day for _, counts in named for day in counts})
    if not present:
        root = _picture("days", _ROW, title, "Nothing was counted.", repr((series, key)))
        _text(root, "0", _ROW_TEXT, "Nothing was counted.", "chart-axis")
        return _ascii(root)
    drawn = _together(present)
    first, span = drawn[0], (drawn[-1] - drawn[0]).days + 1
    line = [first + timedelta(days=place) for place in range(span)]
    columns = [(name, [counts.get(day, 0) for day in line]) for name, counts in named]
    legend = _legend(columns) if len(columns) > 1 else []
    above = _ABOVE + (_LEGEND * (legend[-1][2] + 1) if legend else 0)
    root = _picture(
        "days", above + _PLOT + _AXIS, title, _told(line, columns, len(present) - len(drawn)), repr((series, key))
    )
    for place, (name, left, row) in enumerate(legend):
        swatch = f"chart-swatch chart-series-{place % _SERIES_COLOURS + 1}"
        _rectangle(root, left, row * _LEGEND + 2, 12, 12, swatch, place)
        _text(root, str(left + 18), row * _LEGEND + 12, name, "chart-axis")
    highest = max(sum(counts[place] for _, counts in columns) for place in range(span))
    step = _step(highest)
    top = step * max(-(-highest // step), 1)
    _grid(root, above, step, top)
    places = max(span, _FEWEST_PLACES)
    before = (places - span) // 2
    plot = SubElement(
        root,
        "svg",
        {
            "x": f"{_GUTTER}%",
            "y": str(above),
            "width": f"{100 - _GUTTER}%",
            "height": str(_PLOT),
            "viewBox": f"{-before * _WIDE} 0 {places * _WIDE} {_TALL}",
            "preserveAspectRatio": "none",
        },
    )
    if span <= _DAYS_APART:
        _columns(plot, line, columns, top)
    else:
        _steps(plot, columns, top)
    for place, label in _dates(line):
        at = _GUTTER + (100 - _GUTTER) * (before + place + 0.5) / places
        # A label near the edge ends a little behind its day, so that all of it is seen on a phone.
        x, anchor = (f"{_short(at)}%", "middle") if at < 88 else (f"{_short(min(at + 4, 100))}%", "end")
        _text(root, x, above + _PLOT + 17, label, "chart-axis", anchor)
    return _ascii(root)


def course(title: str, points: Sequence[tuple[float, float]], key: str = "") -> str:
    """Return a picture of a number over time: a line, with the time at its ends and the lowest and highest value.

    Args:
        title: what was measured.
        points: Unix time in s and value, in the order of time.
        key: tells apart two pictures of one page that are alike in everything else.

    Returns:
        An ``<svg>`` element, ASCII.

    Raises:
        BadInputError: a value is no number.
    """
    if any(value - value != 0 or when - when != 0 for when, value in points):
        raise BadInputError(f"cannot draw {names.shown(title)}: a value is no number")
    if len(points) < 2:
        root = _picture("course", _ROW, title, "There are not yet two values.", repr((points, key)))
        _text(root, "0", _ROW_TEXT, "There are not yet two values.", "chart-axis")
        return _ascii(root)
    first, last = points[0][0], points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    span, range_ = max(last - first, 1.0), (high - low) or 1.0
    ends = f"{_moment(first)} to {_moment(last)}"
    told = f"{len(points)} values, {ends}: from {points[0][1]:,.0f} to {points[-1][1]:,.0f}."
    root = _picture("course", _ABOVE + _COURSE + _AXIS, title, told, repr((points, key)))
    _text(root, "0", _ABOVE - 4, f"{high:,.0f}", "chart-axis")
    for y, kind in ((_ABOVE, "chart-grid"), (_ABOVE + _COURSE, "chart-base")):
        place = {"class": kind, "x2": "100%", "y1": str(y), "y2": str(y)}
        SubElement(root, "line", {**place, "stroke": "currentColor", "stroke-opacity": "0.3"})
    frame = {"y": str(_ABOVE), "width": "100%", "height": str(_COURSE), "preserveAspectRatio": "none"}
    plot = SubElement(root, "svg", {**frame, "viewBox": f"0 0 {_TALL} {_TALL}"})
    places = [
        f"{round((when - first) / span * _TALL)} {_TALL - round((value - low) / range_ * _TALL)}"
        for when, value in points
    ]
    area = f"M0 {_TALL}L{'L'.join(places)}L{_TALL} {_TALL}z"
    SubElement(plot, "path", {"class": "chart-series-1 chart-course", "d": area, "fill-opacity": "0.35"})
    _text(root, "0", _ABOVE + _COURSE + 17, _moment(first), "chart-axis")
    _text(root, "100%", _ABOVE + _COURSE + 17, _moment(last), "chart-axis", "end")
    return _ascii(root)


def _moment(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%d %b %H:%M:%S").lstrip("0")


def _picture(kind: str, height: int, title: str, told: str, content: str) -> Element:
    # The name of an id is made of all that is drawn: two pictures of one page share none.
    mark = hashlib.sha256(f"{kind}\n{title}\n{content}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    root = Element(
        "svg",
        {
            "xmlns": SVG,
            "class": f"chart chart-{kind}",
            "width": "100%",
            "height": str(height),
            "role": "img",
            "aria-labelledby": f"c{mark}-t",
            "aria-describedby": f"c{mark}-d",
            "fill": "currentColor",
            "font-size": "13",
        },
    )
    SubElement(root, "title", {"id": f"c{mark}-t"}).text = _clean(title)
    SubElement(root, "desc", {"id": f"c{mark}-d"}).text = told
    return root


def _text(parent: Element, x: str, y: int, text: str, kind: str, anchor: str = "") -> None:
    place = {"class": kind, "x": x, "y": str(y)}
    SubElement(parent, "text", place | ({"text-anchor": anchor} if anchor else {})).text = text


def _bar(parent: Element, y: int, width: str, kind: str, opacity: str) -> None:
    size = {"y": str(y), "width": width, "height": str(_BAR), "rx": str(_BAR // 2)}
    SubElement(parent, "rect", {"class": kind, **size, "fill-opacity": opacity})
    if kind == "chart-bar":
        SubElement(parent, "circle", {"class": kind, "cx": "4", "cy": str(y + _BAR // 2), "r": str(_BAR // 2)})


def _rectangle(parent: Element, x: int, y: int, width: int, height: int, kind: str, series: int) -> None:
    size = {"x": str(x), "y": str(y), "width": str(width), "height": str(height)}
    SubElement(parent, "rect", {"class": kind, **size, "fill-opacity": _opacity(series)})


def _opacity(series: int) -> str:
    return ("0.75", "0.35", "0.55", "0.2")[series % _SERIES_COLOURS]


def _legend(columns: Sequence[tuple[str, list[int]]]) -> list[tuple[str, int, int]]:
    """Return each series' name, its place across in pixels and its row, wrapped for a phone."""
    result, x, row = [], 0, 0
    for name, _ in columns:
        label = _cut(name, 36)
        width = 18 + _LETTER * _width(label) + 16
        if x and x + width > _NARROW:
            x, row = 0, row + 1
        result.append((label, x, row))
        x += width
    return result


def _grid(root: Element, above: int, step: int, top: int) -> None:
    for n in range(0, top + 1, step):
        y = above + _PLOT - n * _PLOT // top
        place = {"class": "chart-grid" if n else "chart-base", "x2": "100%", "y1": str(y), "y2": str(y)}
        SubElement(root, "line", {**place, "stroke": "currentColor", "stroke-opacity": "0.15" if n else "0.5"})
        if n:
            _text(root, "0", y - 4, _brief(n), "chart-axis")


def _columns(plot: Element, line: list[date], columns: Sequence[tuple[str, list[int]]], top: int) -> None:
    for place, day in enumerate(line):
        group = SubElement(plot, "g", {"class": "chart-day"})
        told = ", ".join(f"{name} {counts[place]:,}" for name, counts in columns)
        SubElement(group, "title").text = f"{day.isoformat()}: {told}"
        below = 0
        for number, (_, counts) in enumerate(columns):
            low, high = _up(below, top), _up(below + counts[place], top)
            below += counts[place]
            if counts[place]:
                kind = f"chart-series-{number % _SERIES_COLOURS + 1}"
                _rectangle(group, place * _WIDE + 1, _TALL - high, _WIDE - 2, max(high - low, 1), kind, number)


def _steps(plot: Element, columns: Sequence[tuple[str, list[int]]], top: int) -> None:
    """Draw each series as one outline with a step a day: hundreds of columns would be finer than pixels."""
    below = [0] * len(columns[0][1])
    for number, (name, counts) in enumerate(columns):
        above = [low + n for low, n in zip(below, counts, strict=True)]
        path = [f"M0 {_TALL - _up(above[0], top)}"]
        path += [f"V{_TALL - _up(n, top)}h{_WIDE}" for n in above]
        path += [f"V{_TALL - _up(n, top)}h-{_WIDE}" for n in reversed(below)]
        kind = f"chart-series-{number % _SERIES_COLOURS + 1}"
        shape = SubElement(plot, "path", {"class": kind, "d": "".join(path) + "z", "fill-opacity": _opacity(number)})
        SubElement(shape, "title").text = f"{name}: {sum(counts):,}"
        below = above


def _up(n: int, top: int) -> int:
    return (n * _TALL * 2 + top) // (top * 2)


def _dates(line: list[date]) -> list[tuple[int, str]]:
    """Return the days that are named below the plot, by their place: at most seven, so that a phone holds them."""
    if len(line) <= _FEWEST_PLACES:
        # The month once, and where it changes: seven whole dates are wider than a phone.
        return [
            (place, _day_label(day) if not place or day.day == 1 else str(day.day)) for place, day in enumerate(line)
        ]
    if len(line) <= _DAYS_APART:
        mondays = [place for place, day in enumerate(line) if day.weekday() == 0]
        return [(place, _day_label(line[place])) for place in mondays[:: -(-len(mondays) // 5)]]
    firsts = [place for place, day in enumerate(line) if day.day == 1]
    if len(firsts) > 36:
        firsts = [place for place in firsts if line[place].month == 1]
        return [(place, str(line[place].year)) for place in firsts[:: -(-len(firsts) // 5)]]
    chosen = firsts[:: -(-len(firsts) // 4)]
    return [(place, f"{MONTHS[line[place].month - 1]} {line[place].year}") for place in chosen]


def _day_label(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]}"


def _together(present: list[date]) -> list[date]:
    """Return the most of these days, which are in order, that are not more than `DAYS_LIMIT` apart."""
    best, start = (0, 0), 0
    for place, day in enumerate(present):
        while (day - present[start]).days >= DAYS_LIMIT:
            start += 1
        best = max(best, (place - start + 1, place))
    count, last = best
    return present[last - count + 1 : last + 1]


def _told(line: list[date], columns: Sequence[tuple[str, list[int]]], left_out: int) -> str:
    if len(line) == 1:
        sums = "; ".join(f"{name}: {counts[0]:,}" for name, counts in columns)
        return f"{line[0].isoformat()}. {sums}."
    parts = [f"{len(line)} days, {line[0].isoformat()} to {line[-1].isoformat()}."]
    for name, counts in columns:
        most = max(counts)
        parts.append(f"{name}: {sum(counts):,}, the most on {line[counts.index(most)].isoformat()} ({most:,}).")
    if left_out:
        parts.append(f"{left_out:,} other day{'s' * (left_out > 1)} are not drawn.")
    return " ".join(parts)


def _step(highest: int) -> int:
    """Return the distance of grid lines: 1, 2 or 5 times a power of ten, so that at most four are drawn."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor * 4 >= highest:
                return step * factor
        step *= 10


def _brief(n: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**4, "k")):
        if n >= size:
            # From 10,000 on by thousands; the steps of the grid leave one decimal at most.
            unit = 1000 if letter == "k" else size
            return f"{n / unit:.1f}".removesuffix(".0") + letter
    return f"{n:,}"


def _percent(n: int, whole: int) -> str:
    return f"{_short(n * 100 / whole)}%"


def _short(number: float) -> str:
    return f"{number:.3f}".rstrip("0").rstrip(".")


def _clean(text: str) -> str:
    return names.visible(text)


def _width(text: str) -> int:
    """Return how many letters wide a text is: East Asian ones count twice, marks above others not at all."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cut(text: str, room: int) -> str:
    if _width(text) <= room:
        return text
    kept = text[:room]
    while _width(kept) > room - 1:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def _count(n: int, title: str) -> int:
    if n < 0:
        raise BadInputError(f"cannot draw {names.shown(title)}: a count is {n}")
    return n


def _day(text: str, title: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadInputError(f"cannot draw {names.shown(title)}: {names.shown(text)} is no day") from None


def _ascii(root: Element) -> str:
    text: bytes = tostring(root, encoding="us-ascii")
    return text.decode("ascii")
