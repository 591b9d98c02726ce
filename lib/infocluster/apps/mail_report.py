# SPDX-License-Identifier: Apache-2.0
"""The mail report: what the nightly jobs found, in one letter.

The life of a report:

1. read the findings that wait;
2. write one letter of them to ``STATE_DIR/findings/letter.eml``, durable; ``letter.names`` beside it, written before,
   is the JSON list of the findings it holds;
3. forget those findings;
4. hand the letter over to the letters that wait, in one rename;
5. deliver every letter that waits.

A run that was killed is finished by the next one: where there is a ``letter.eml``, steps 3 and 4 are still to do;
where there is none, nothing was forgotten. So each finding is in one letter, whatever is killed when.
"""

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from infocluster import files, letters, pages
from infocluster.cron.command import Run
from infocluster.errors import BadInputError, UnavailableError, reason
from infocluster.report import findings, plain
from infocluster.report.findings import Finding

LETTER = "letter.eml"
NAMES = "letter.names"


def work(run: Run) -> str:
    """Write a letter of what was found, deliver what waits, and say what became of it.

    Raises:
        UnavailableError: a letter could not be delivered; it waits for the next run.
    """
    state_dir = run.settings["site"]["state_dir"]
    if run.arguments["show"]:
        return _show(run, state_dir)
    _finish(state_dir)
    waiting = findings.waiting(state_dir)
    for fault in waiting.faults:
        run.fault(fault)
    if waiting.found:
        _write(state_dir, run.settings, waiting.found, time.time())
        _finish(state_dir)
    reported = f"{_counted(len(waiting.found), 'finding')}, " if waiting.found else "nothing new was found, "
    done = letters.deliver(state_dir, run.settings["mail"])
    for line in done.sent:
        run.say(line)
    for fault in (*done.waiting, *done.refused, *done.partly):
        run.fault(fault)
    if done.waiting:
        raise UnavailableError(f"cannot deliver {_counted(len(done.waiting), 'letter')}: kept for the next run")
    return reported + (f"{_counted(len(done.sent), 'letter')} sent" if done.sent else "no letter was sent")


def subject(site: str, found: Mapping[str, Finding], time_s: float) -> str:
    """Return what the letter is about, such as ``infocluster, 2026-11-22: 3 findings, 1 fault``."""
    faults = sum(len(one.faults) for one in found.values())
    about = f"{site}, {plain.moment(time_s)[:10]}: {_counted(len(found), 'finding')}"
    return f"{about}, {_counted(faults, 'fault')}" if faults else about


def _show(run: Run, state_dir: str) -> str:
    """Say what the letter would be, and change nothing."""
    waiting = findings.waiting(state_dir)
    for fault in waiting.faults:
        run.fault(fault)
    written = _written(state_dir) or []
    found = {name: one for name, one in waiting.found.items() if name not in written}
    kept = len(letters.waiting(state_dir)) + bool(written)
    if found:
        site = run.settings["site"]
        for line in plain.report(subject(site["name"], found, time.time()), list(found.values())).splitlines():
            run.say(line)
    return f"{_counted(len(found), 'finding')} to report, {_counted(kept, 'letter')} waiting; nothing was sent"


def _write(state_dir: str, settings: Mapping[str, Any], found: Mapping[str, Finding], time_s: float) -> None:
    """Write the letter of these findings, durable, and beside it which they are."""
    mail, site = settings["mail"], settings["site"]
    about = subject(site["name"], found, time_s)
    letter = letters.compose(
        mail["from"],
        mail["to"],
        about,
        plain.report(about, list(found.values())),
        pages.fill("mail.html", _values(about, site, found)),
        time_s=time_s,
        key=hashlib.sha256("/".join(found).encode("utf-8", "surrogateescape")).hexdigest()[:32],
    )
    directory = findings.directory(state_dir)
    try:
        files.replace(f"{directory}/{NAMES}", msgspec.json.encode(list(found)), findings.FILE_MODE)
        files.replace(f"{directory}/{LETTER}", letter.as_bytes(), letters.FILE_MODE)
    except OSError as error:
        raise UnavailableError(f"cannot write {directory}/{LETTER}: {reason(error)}") from error


def _finish(state_dir: str) -> None:
    """Forget the findings that a written letter holds, and hand it over; where there is none, do nothing."""
    written = _written(state_dir)
    if written is not None:
        findings.forget(state_dir, written)
        letters.adopt(state_dir, f"{findings.directory(state_dir)}/{LETTER}")


def _written(state_dir: str) -> list[str] | None:
    """Return which findings a letter holds that was written and not handed over; None where there is none."""
    directory = findings.directory(state_dir)
    try:
        files.read(f"{directory}/{LETTER}")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(f"cannot read {directory}/{LETTER}: {reason(error)}") from error
    try:
        return msgspec.json.decode(files.read(f"{directory}/{NAMES}"), type=list[str])
    except (OSError, msgspec.DecodeError) as error:
        said = reason(error) if isinstance(error, OSError) else error
        raise BadInputError(f"cannot tell what {directory}/{LETTER} reports: {NAMES} beside it: {said}") from error


def _values(about: str, site: Mapping[str, Any], found: Mapping[str, Finding]) -> dict[str, Any]:
    """Return what mail.html shows: texts, and for each column whether it holds numbers."""
    return {
        "subject": about,
        "site": site["name"],
        "url": site["url"],
        "faults": [{"job": one.job, "text": fault} for one in found.values() for fault in one.faults],
        "findings": [
            {
                "title": one.title,
                "job": one.job,
                "time": plain.moment(one.time),
                "lines": one.lines,
                "links": one.links,
                "tables": [
                    {
                        "title": table.title,
                        "head": table.head,
                        "rows": [[plain.cell(value) for value in row] for row in table.rows],
                        "numeric": plain.numeric(table),
                        "link": {},
                    }
                    for table in one.tables
                ],
            }
            for one in found.values()
        ],
    }


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
