# SPDX-License-Identifier: Apache-2.0
"""The browser survey, the night's side: read every server's visits, count, publish, tell.

The life of a night:

1. look at ``<gather_dir>/*/<host>/survey`` for what is new since the last one;
2. fold it into counts by day: people by browser, version family and operating system, bots apart;
3. commit counts and positions in one transaction;
4. publish the pages whose counts changed, and the read marks, into the production tree;
5. leave a finding for mail-report.

What was counted and not yet published (a night that was killed in between) is published by the next one.

Source: ua-parser's uap-core for what a User-Agent says; its devices named Spider are bots, and so is an agent that
calls itself a bot, crawler or spider.
"""

import csv
import io
import json
import time
from collections import Counter
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from infocluster import names
from infocluster.apps import survey_pages
from infocluster.apps.survey import SUMMARY
from infocluster.config import Settings
from infocluster.cron.command import Run
from infocluster.gather import collect, cursor, fold, marks
from infocluster.publish import place
from infocluster.report import findings, tables

VISITS = "visits"
PEOPLE = "people"
BOTS = "bots"
KINDS = {"browser": "Browsers", "version": "Versions", "os": "Operating systems", "bot": "Bots"}
NO_AGENT = "(none sent)"
UNKNOWN = "(unknown)"
NAME_LIMIT = 60
_BOT_WORDS = ("bot", "crawl", "spider")


class Visit(msgspec.Struct, gc=False):
    """What the survey reads of a record."""

    id: str
    time: float
    agent: str


class Class(NamedTuple):
    """What an agent is taken for."""

    is_bot: bool
    browser: str
    version: str
    system: str


Counts = Counter[tuple[str, Class]]


class VisitCount:
    """The fold's job: visits by day and class of agent."""

    def empty(self) -> Counts:
        """Return the count of no visits."""
        return Counter()

    def map(self, segment: str, block: bytes) -> tuple[Counts, int]:
        """Count a block of whole lines; a line that is no visit is counted as bad."""
        day, bad = segment.removesuffix(".jsonl"), 0
        try:
            visits = _decoder.decode_lines(block)
        except (msgspec.DecodeError, UnicodeDecodeError):
            visits, bad = _one_by_one(block)
        result: Counts = Counter()
        for agent, n in Counter(map(attrgetter("agent"), visits)).items():
            result[day, classify(agent)] += n
        return result, bad

    def merge(self, one: Counts, other: Counts) -> Counts:
        """Add the other count to the one."""
        one.update(other)
        return one


_decoder = msgspec.json.Decoder(Visit)


def _one_by_one(block: bytes) -> tuple[list[Visit], int]:
    visits, bad = [], 0
    for line in block.splitlines():
        try:
            visits.append(_decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            bad += 1
    return visits, bad


@lru_cache(maxsize=20000)
def classify(agent: str) -> Class:
    """Tell what an agent is: bot or not, browser, browser with major version, operating system."""
    import ua_parser

    if not agent.strip():
        return Class(False, NO_AGENT, NO_AGENT, NO_AGENT)
    found = ua_parser.parse(agent)
    family = found.user_agent.family if found.user_agent else UNKNOWN
    version = f"{family} {found.user_agent.major}" if found.user_agent and found.user_agent.major else family
    system = UNKNOWN
    if found.os:
        system = f"{found.os.family} {found.os.major}" if found.os.major else found.os.family
    spider = found.device is not None and found.device.family == "Spider"
    small = agent.lower()
    is_bot = spider or any(word in small for word in _BOT_WORDS)
    return Class(is_bot, _label(family), _label(version), _label(system))


def _label(text: str) -> str:
    """Return a name as pages and tables can bear it: what a visitor made up is cut and cleaned."""
    return names.printable(text)[:NAME_LIMIT].strip() or UNKNOWN


def work(run: Run) -> str:
    """Count what is new, publish what changed, and say what was done."""
    settings = run.settings
    survey, gather = settings["survey"], settings["gather"]
    app, host = survey["app"], gather["host"]
    database = f"{settings['site']['state_dir']}/{app}.sqlite"
    servers = tuple(server["name"] for server in settings["servers"] if server["kind"] == "web")
    with cursor.opened(database, tables.SCHEMA) as position:
        found = collect.look(gather["gather_dir"], app, host, position.positions(app, host), servers)
        for fault in found.faults:
            run.fault(fault)
        size = sum(part.end - part.start for part in found.parts)
        if size > fold.SLICE_BYTES:
            classify("load what tells agents apart once, before the workers are forked")
        with run.progress("reading", size, "bytes") as advance:
            folded = fold.run(VisitCount(), found.parts, gather["processes"], advance)
        counts = folded.result
        for path, why in folded.failed.items():
            run.fault(f"cannot read {path}: {why}")
        for path, lines in folded.bad.items():
            run.fault(
                f"cannot count {lines} line{'s' * (lines > 1)} of {path}: torn by a crash, or no record of ours"
            )
        behind = [part.position() for part in folded.parts]
        with position.transaction() as db:
            tables.add(db, _by_kind(counts))
            for reached in behind:
                position.advance(reached)
        reached_now = position.positions(app, host)
        seen = [reached_now[key] for key in sorted(found.seen) if key in reached_now]
        written = _publish(position, settings, marks.document(app, seen, time.time()), run)
        visits = sum(counts.values())
        bots = sum(n for (_, kind), n in counts.items() if kind.is_bot)
        summary = (
            f"{visits} visit{'s' * (visits != 1)} in {len(folded.parts)} file{'s' * (len(folded.parts) != 1)}, "
            f"{bots} of bots; {written} page{'s' * (written != 1)} published"
        )
        if visits or run.faults:
            _tell(position, settings, summary, run.faults)
    return summary


def _by_kind(counts: Counts) -> Counter[tuple[str, str, str]]:
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


def _publish(position: cursor.Cursor, settings: Settings, marks_text: bytes, run: Run) -> int:
    """Publish the periods that changed and the marks; return how many pages were written."""
    changed = tables.unpublished(position.db)
    app = settings["survey"]["app"]
    if changed:
        every = tables.all_periods(position.db)
        files: dict[str, bytes] = {}
        for period in _to_render(every, changed):
            values = _values(position, settings, period, every)
            files |= _period_files(values, _page_name(period))
            if period == tables.ALWAYS:
                files[SUMMARY] = survey_pages.summary(values)
        place.publish(settings["survey"]["directory"], files, settings, say=run.say)
        with position.transaction() as db:
            tables.published(db, changed)
    place.publish(settings["gather"]["marks"], {f"{app}.json": marks_text}, settings, say=run.say)
    return len(changed)


def _to_render(every: list[str], changed: list[str]) -> list[str]:
    """Return the periods whose page changes: theirs, and the neighbours that link to one that is new."""
    wanted = set(changed)
    for kind in ("day", "week", "month"):
        line = [period for period in every if tables.kind_of(period) == kind]
        for before, after in pairwise(line):
            if after in changed:
                wanted.add(before)
    return sorted(wanted)


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
        "address": f"/{survey['directory'].partition('/')[2]}/",
    }


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
                    "rows": [[name, str(n)] for name, n in top.rows],
                },
            ],
            "faults": faults,
            "links": [site["url"].rstrip("/") + "/" + survey["directory"].partition("/")[2] + "/"],
        },
    )
