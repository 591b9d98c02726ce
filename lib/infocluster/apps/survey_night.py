# SPDX-License-Identifier: Apache-2.0
"""The browser survey, the night's side: read every server's visits, count, publish, tell.

The life of a night:

1. look at ``<gather_dir>/*/<host>/survey`` for what is new since the last one;
2. fold it into counts by day: people by browser, version family and operating system, bots apart;
3. commit counts and positions in one transaction;
4. publish the pages whose counts changed, and the read marks, into the production tree;
5. leave a finding for mail-report.

What was counted and not yet published (a night that was killed in between) is published by the next one. The JSON of
all visits carries a digest of what the pages were made from; where it is not that of the database as the night finds
it (pages removed, restored from a backup, another name of the site, other templates), all are made again.
"""

import csv
import hashlib
import io
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import pairwise
from operator import attrgetter
from typing import Any

import msgspec

import infocluster
from infocluster import files, pages
from infocluster.apps import agents, survey_pages
from infocluster.apps.agents import Class
from infocluster.apps.survey import SUMMARY
from infocluster.config import Settings
from infocluster.cron.command import Run
from infocluster.gather import collect, cursor, fold, marks, slices
from infocluster.publish import place
from infocluster.push import servers
from infocluster.report import findings, tables

VISITS = "visits"
PEOPLE = "people"
BOTS = "bots"
KINDS = {"browser": "Browsers", "version": "Versions", "os": "Operating systems", "bot": "Bots"}


class Visit(msgspec.Struct, gc=False):
    """What the survey reads of a record."""

    id: str
    time: float
    agent: str


@dataclass(slots=True)
class Tally:
    """Visits by day and class of agent, and the agents that were told apart for the first time."""

    visits: Counter[tuple[str, Class]] = field(default_factory=Counter)
    learned: dict[str, Class] = field(default_factory=dict)


class VisitCount:
    """The fold's job: visits by day and class of agent.

    Args:
        known: what agents are that were told apart before.
    """

    packages: tuple[str, ...] = agents.PACKAGES

    def __init__(self, known: dict[str, Class]) -> None:
        self.known = known

    def empty(self) -> Tally:
        """Return the count of no visits."""
        return Tally()

    def map(self, segment: str, block: bytes) -> tuple[Tally, int]:
        """Count a block of whole lines; a line that is no visit is counted as bad."""
        day, bad = collect.day_of(segment), 0
        try:
            visits = _decoder.decode_lines(block)
        except (msgspec.DecodeError, UnicodeDecodeError):
            visits, bad = _one_by_one(block)
        tally = Tally()
        for agent, n in Counter(map(attrgetter("agent"), visits)).items():
            what = self.known.get(agent)
            if what is None:
                what = tally.learned[agent] = agents.classify(agent)
                if len(self.known) < agents.REMEMBERED:
                    self.known[agent] = what
            tally.visits[day, what] += n
        return tally, bad

    def merge(self, one: Tally, other: Tally) -> Tally:
        """Add the other count to the one."""
        one.visits.update(other.visits)
        if len(one.learned) < agents.REMEMBERED:
            one.learned |= other.learned
        return one


_decoder = msgspec.json.Decoder(Visit)


def _one_by_one(block: bytes) -> tuple[list[Visit], int]:
    visits, bad = [], 0
    for line in block.removesuffix(b"\n").split(b"\n"):
        try:
            visits.append(_decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            bad += 1
    return visits, bad


def work(run: Run) -> str:
    """Count what is new, publish what changed, and say what was done."""
    settings = run.settings
    survey, gather = settings["survey"], settings["gather"]
    app, host = survey["app"], gather["host"]
    database = f"{settings['site']['state_dir']}/{app}.sqlite"
    expected = tuple(server.name for server in servers.of_kind(settings, "web")) if settings["servers"] else ()
    source = collect.Source(gather["gather_dir"], app, host, expected)
    queue = collect.Source(gather["gather_dir"], app, host, (), "queue", is_copy=bool(gather["pull_from"]))
    with cursor.opened(database, tables.SCHEMA + agents.SCHEMA) as position:
        before = position.positions(app, host)
        found = collect.look(source, before)
        # Both stores, whichever is in use: a change from one to the other loses nothing.
        queued = collect.look(queue, before)
        found.parts += queued.parts
        found.faults += [fault for fault in queued.faults if fault not in found.faults]
        for fault in found.faults:
            run.fault(fault)
        size = sum(part.end - part.start for part in found.parts)
        known = agents.known(position.db)
        if gather["engine"] == "local" and size > slices.SLICE_BYTES and not known:
            agents.classify("load the rules once, before the workers are forked")
        with run.progress("reading", size, "bytes") as advance:
            folded = fold.run(VisitCount(known), found.parts, gather, advance)
        counts = folded.result.visits
        for path, why in folded.failed.items():
            run.fault(f"cannot read {path}: {why}")
        for path, lines in folded.bad.items():
            run.fault(
                f"cannot count {lines} line{'s' * (lines > 1)} of {path}: torn by a crash, or no record of ours"
            )
        all_visits = _values(position, settings, tables.ALWAYS, tables.all_periods(position.db))
        is_current = _published(settings) == _state(all_visits)
        with position.transaction() as db:
            tables.add(db, _by_kind(counts))
            agents.remember(db, folded.result.learned)
            for part in folded.parts:
                position.advance(part.position())
        reached_now = position.positions(app, host)
        removed = collect.consume(queue, queued.seen & reached_now.keys(), run.fault)
        found.seen |= queued.seen - removed
        with position.transaction():
            position.forget(app, host, collect.gone(queued, reached_now))
        seen = [reached_now[key] for key in sorted(found.seen) if key in reached_now]
        written = _publish(position, settings, is_current, marks.document(app, seen, time.time()), run)
        visits = sum(counts.values())
        bots = sum(n for (_, kind), n in counts.items() if kind.is_bot)
        summary = (
            f"{visits} visit{'s' * (visits != 1)} in {len(folded.parts)} file{'s' * (len(folded.parts) != 1)}, "
            f"{bots} of bots; {written} page{'s' * (written != 1)} published"
        )
        if visits or written or run.faults:
            _tell(position, settings, summary, run.faults)
    return summary


def _by_kind(counts: Counter[tuple[str, Class]]) -> Counter[tuple[str, str, str]]:
    result: Counter[tuple[str, str, str]] = Counter()
    for (day, what), n in counts.items():
        result[day, VISITS, BOTS if what.is_bot else PEOPLE] += n
        if what.is_bot:
            result[day, "bot", what.browser] += n
        else:
            result[day, "browser", what.browser] += n
            result[day, "version", what.version] += n
            result[day, "os", what.system] += n
    return result


def _publish(position: cursor.Cursor, settings: Settings, is_current: bool, marks_text: bytes, run: Run) -> int:
    """Publish the periods that changed, or all, and the marks; return how many pages were written.

    Args:
        position: the database, with what this night counted.
        settings: the settings.
        is_current: whether what is published is what the database said before this night.
        marks_text: the read marks.
        run: this run.
    """
    every = tables.all_periods(position.db)
    changed = tables.unpublished(position.db) if is_current else every
    app = settings["survey"]["app"]
    if changed:
        contents: dict[str, bytes] = {}
        for period in _to_render(every, changed):
            values = _values(position, settings, period, every)
            contents |= _period_files(values, _page_name(period))
            if period == tables.ALWAYS:
                contents[SUMMARY] = survey_pages.summary(values)
        place.publish(settings["survey"]["directory"], contents, settings, say=run.say)
        with position.transaction() as db:
            tables.published(db, changed)
    place.publish(settings["gather"]["marks"], {f"{app}.json": marks_text}, settings, say=run.say)
    return len(changed)


def _to_render(every: list[str], changed: list[str]) -> list[str]:
    """Return the periods whose page changes: theirs, and the neighbours that link to one of them."""
    wanted = set(changed)
    for kind in ("day", "week", "month"):
        line = [period for period in every if tables.kind_of(period) == kind]
        for before, after in pairwise(line):
            if after in changed:
                wanted.add(before)
            if before in changed:
                wanted.add(after)
    return sorted(wanted)


def _state(values: dict[str, Any]) -> str:
    """Return a digest of what all pages rest on: every visit changes the numbers of all visits."""
    rests_on = [values | {"made": ""}, pages.digest(), infocluster.__version__]
    return hashlib.sha256(json.dumps(rests_on).encode()).hexdigest()[:16]


def _published(settings: Settings) -> str:
    """Return the state that what is published was made from, "" where it does not say."""
    directory = f"{settings['site']['production_dir']}/{settings['survey']['directory']}"
    try:
        return str(json.loads(files.read(f"{directory}/{_page_name(tables.ALWAYS)}.json"))["state"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _page_name(period: str) -> str:
    return "index" if period == tables.ALWAYS else f"{tables.kind_of(period)}-{period}"


def _values(position: cursor.Cursor, settings: Settings, period: str, every: list[str]) -> dict[str, Any]:
    """Return the numbers of a period, in the shape that `survey_pages` describes."""
    survey, site, db = settings["survey"], settings["site"], position.db
    shown = []
    for kind, title in KINDS.items():
        table = tables.table(db, period, kind, survey["top"])
        rest = [table.rest_names, table.rest] if table.rest_names else None
        rows = [list(row) for row in table.rows]
        shown.append({"id": kind, "title": title, "rows": rows, "rest": rest, "total": table.total})
    name = _page_name(period)
    days = tables.by_day(db, period, VISITS)
    bots = tables.total(db, period, VISITS, BOTS)
    return {
        "site": {"name": site["name"], "url": site["url"]},
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "period": {"kind": tables.kind_of(period), "name": period, "title": _title(period)},
        "visits": tables.total(db, period, VISITS, PEOPLE) + bots,
        "bots": bots,
        "tables": shown,
        "days": [[day, n.get(PEOPLE, 0), n.get(BOTS, 0)] for day, n in days.items()],
        "periods": _links(every),
        "files": [[f"{name}.json", "the same numbers as JSON"], [f"{name}.csv", "as CSV"]],
        "address": _address(settings),
    }


def _address(settings: Settings) -> str:
    """Return where visitors find the pages, on the site that serves their tree."""
    below = settings["survey"]["directory"].partition("/")[2]
    return f"/{below}/" if below else "/"


def _links(every: list[str]) -> dict[str, list[list[str]]]:
    result: dict[str, list[list[str]]] = {"always": [], "month": [], "week": [], "day": []}
    for period in every:
        result[tables.kind_of(period)].append([period, f"{_page_name(period)}.html"])
    return result


def _title(period: str) -> str:
    kind = tables.kind_of(period)
    if kind == tables.ALWAYS:
        return "All visits"
    if kind == "week":
        return f"Week {int(period[6:])} of {period[:4]}"
    if kind == "month":
        return date.fromisoformat(period + "-01").strftime("%B %Y")
    return period


def _period_files(values: dict[str, Any], name: str) -> dict[str, bytes]:
    numbers = {key: values[key] for key in ("period", "visits", "bots", "tables", "days")}
    if values["period"]["name"] == tables.ALWAYS:
        numbers["state"] = _state(values)
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["period", "kind", "name", "count"])
    period = values["period"]["name"]
    rows.writerow([period, VISITS, PEOPLE, values["visits"] - values["bots"]])
    rows.writerow([period, VISITS, BOTS, values["bots"]])
    for table in values["tables"]:
        for row_name, n in table["rows"]:
            rows.writerow([period, table["id"], _formula_free(row_name), n])
        if table["rest"]:
            rows.writerow([period, table["id"], f"{table['rest'][0]} more", table["rest"][1]])
    return {
        f"{name}.html": survey_pages.page(values),
        f"{name}.json": json.dumps(numbers, indent=1, ensure_ascii=False).encode("utf-8") + b"\n",
        f"{name}.csv": text.getvalue().encode("utf-8"),
    }


def _formula_free(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def _tell(position: cursor.Cursor, settings: Settings, summary: str, faults: list[str]) -> None:
    db, survey, site = position.db, settings["survey"], settings["site"]
    day_rows = [
        [day, str(n.get(PEOPLE, 0)), str(n.get(BOTS, 0))]
        for day, n in tables.by_day(db, tables.ALWAYS, VISITS).items()
    ][-7:]
    top = tables.table(db, tables.ALWAYS, "browser", survey["top"])
    browser_rows = [[name, str(n)] for name, n in top.rows]
    if top.rest_names:
        browser_rows.append([f"{top.rest_names:,} more", str(top.rest)])
    findings.leave(
        site["state_dir"],
        "survey-nightly",
        {
            "title": "Browser survey",
            "lines": [summary],
            "tables": [
                {"title": "Visits by day", "head": ["day", "people", "bots"], "rows": day_rows},
                {
                    "title": "Browsers, all visits",
                    "head": ["browser", "visits"],
                    "rows": browser_rows,
                },
            ],
            "faults": faults,
            "links": [site["url"].rstrip("/") + _address(settings)],
        },
    )
