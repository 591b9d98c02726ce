# SPDX-License-Identifier: Apache-2.0
"""What is made of a form's answers: tables for people and programs, a summary with pictures, pages, letters.

Shape: ``2026-11-22.csv`` and ``2026-11-22.json`` hold the answers of one day (UTC): ``id``, ``time``, ``state`` and
    a column a field; several answers of one field are joined by ``"; "`` in CSV and are a list in JSON, files are
    told by their names in ``files/``. No cell of the CSV is a formula to a spreadsheet: one that could be has a ``'``
    before it.

Source: RFC 4180 (CSV); OWASP, "CSV Injection"; RFC 8259.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from itertools import chain
from typing import Any

from infocluster import charts, files, letters, pages
from infocluster.apps import forms, forms_book, forms_check, forms_declared, forms_moderation
from infocluster.apps.forms_book import Answer
from infocluster.config import Settings
from infocluster.report import plain
from infocluster.report.findings import Finding, Table

Form = dict[str, Any]

ATTACHED_BYTES = 8 << 20
"""The most that goes with one letter; what is more is named in it and stays in the files directory."""
LETTER_ANSWERS = 200
"""Answers that a letter shows one by one; all are in its CSV."""
PAGE_ANSWERS = 500
INDEX = "index.html"
DECIDE = "Publish it, or not"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def moment(time_s: float) -> str:
    """Return a time as people and programs read it: ``2026-11-22 23:10:05``, UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def text_of(value: Any) -> str:
    """Return one field's answer as one text."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return "; ".join(item["file"] if isinstance(item, dict) else str(item) for item in value)
    return str(value)


def _texts(value: Any) -> list[str]:
    """Return the texts of one field's answer, however many: files and ticks are none."""
    return [text for text in (value if isinstance(value, list) else [value]) if text and isinstance(text, str)]


def table(form: Form, answers: Sequence[Answer]) -> bytes:
    """Return answers as CSV in UTF-8, with its mark, without which a spreadsheet takes it for something else."""
    out = io.StringIO(newline="")
    rows = csv.writer(out)
    rows.writerow(["id", "time", "state", *[field["name"] for field in form["fields"]]])
    for answer in answers:
        cells = [_cell(field, answer.record.get(field["name"], "")) for field in form["fields"]]
        rows.writerow([answer.id, moment(answer.time), answer.state, *cells])
    return out.getvalue().encode("utf-8-sig", "replace")


def _cell(field: dict[str, Any], value: Any) -> str:
    text = text_of(value)
    is_number = field["kind"] == "number" and forms_check.is_number(text)
    return "'" + text if text.startswith(_FORMULA) and not is_number else text


def document(form: Form, answers: Sequence[Answer]) -> bytes:
    """Return answers as JSON."""
    listed = [
        {
            "id": answer.id,
            "time": moment(answer.time),
            "state": answer.state,
            **{field["name"]: answer.record.get(field["name"], "") for field in form["fields"]},
        }
        for answer in answers
    ]
    text = json.dumps({"form": form["name"], "answers": listed}, ensure_ascii=False, indent=1)
    return text.encode("utf-8", "replace") + b"\n"


def summary(form: Form, answers: Sequence[Answer], settings: Settings) -> bytes:
    """Return the page that shows what all answers come to, a picture a field."""
    by_day = Counter(answer.day for answer in answers)
    shown = []
    if by_day:
        picture = charts.days("Answers by day", [("Answers", sorted(by_day.items()))])
        shown.append({"title": "Answers by day", "picture": pages.picture(picture)})
    for field in form["fields"]:
        rows = _counts(field, [answer.record.get(field["name"], "") for answer in answers])
        # Several numbers or days of one answer may count in one row: that is no share of the answers.
        has_shares = field["repeats"] == 1 or field["kind"] not in ("number", "date")
        drawn = charts.bars(field["label"], rows, total=len(answers) * has_shares or None, key=field["name"])
        shown.append({"title": field["label"], "picture": pages.picture(drawn)})
    return pages.fill(
        "form_summary.html",
        {**forms_declared.site_values(settings), "form": form, "count": len(answers), "cards": shown},
    ).encode()


def _counts(field: dict[str, Any], values: list[Any]) -> list[tuple[str, int]]:
    """Return what is counted of a field: choices by name, numbers and days in steps, texts by presence.

    An answer from before the field's kind was changed is passed over where it is no number, or no day.
    """
    kind, texts = field["kind"], [text for value in values for text in _texts(value)]
    if kind == "choice":
        chosen = Counter(texts)
        return [(choice, chosen[choice]) for choice in field["choices"]]
    if kind == "number":
        numbers = [float(text) for text in texts if forms_check.is_number(text)]
        if numbers:
            return _steps(numbers)
    if kind == "date":
        months = Counter(text[:7] for text in texts if forms_check.has_month(text))
        if months:
            return sorted(months.items())[-12:]
    answered = sum(bool(value) for value in values)
    yes, no = ("ticked", "not ticked") if kind == "checkbox" else ("answered", "left empty")
    return [(yes, answered), (no, len(values) - answered)]


def _steps(numbers: list[float]) -> list[tuple[str, int]]:
    found = Counter(numbers)
    if len(found) <= 10:
        return [(f"{number:g}", n) for number, n in sorted(found.items())]
    low, high = min(numbers), max(numbers)
    width = (high - low) / 10
    steps = Counter(min(9, int((number - low) / width)) for number in numbers)
    return [(f"{low + n * width:g} to {low + (n + 1) * width:g}", steps[n]) for n in range(10)]


class Published(Mapping[str, bytes]):
    """Contents by name: pages, behind the files that one of them shows; each of these is read when asked for."""

    def __init__(self, made: Mapping[str, bytes], files_dir: str, shown: Sequence[str]) -> None:
        self._made = made
        self._files = {name: f"{files_dir}/{name}" for name in shown}

    def __getitem__(self, name: str) -> bytes:
        return files.read(self._files[name]) if name in self._files else self._made[name]

    def __iter__(self) -> Iterator[str]:
        return chain(self._files, self._made)

    def __len__(self) -> int:
        return len(self._files) + len(self._made)


def published(form: Form, answers: Sequence[Answer], settings: Settings, files_dir: str) -> Published:
    """Return what is published: the page of what may be shown, newest first, behind the files it shows."""
    shown: list[str] = []

    def linked(told: dict[str, Any]) -> bool:
        # One that is not there never came from its server; that was reported then.
        if is_there := os.path.isfile(f"{files_dir}/{told['file']}"):
            shown.append(told["file"])
        return is_there

    made = {forms.THANKS: form["thanks_page"]}
    if form["answers"]["publish"]:
        made[INDEX] = published_page(form, answers, settings, linked).encode()
    return Published(made, files_dir, shown)


def published_page(
    form: Form, answers: Sequence[Answer], settings: Settings, linked: Callable[[dict[str, Any]], bool]
) -> str:
    """Return the page of what may be shown, newest first.

    Args:
        form: the form.
        answers: what may be shown.
        settings: all settings.
        linked: told of each file that an answer shows; False where it is not there.

    Shape: what the template gets of an answer: ``{"time": "2026-11-22 23:10", "fields": {"entry": {"label": "Your
        entry", "text": "...", "files": []}}, "parts": [...]}``: its published fields by name, and in ``parts`` those
        that were answered, in their order; a file is ``{"file": "....png", "is_image": True}``.

    Raises:
        ConfigError: the form's own template is not as it has to be.
    """
    shown = []
    for answer in sorted(answers, key=lambda one: (one.time, one.id), reverse=True)[:PAGE_ANSWERS]:
        fields: dict[str, dict[str, Any]] = {}
        for field in form["fields"]:
            if field["published"]:
                value = answer.record.get(field["name"], "")
                is_file = field["kind"] == "file"
                kept = [told for told in forms_book.files_in(value, answer.id) if linked(told)] if is_file else []
                fields[field["name"]] = {
                    "label": field["label"],
                    "text": "" if is_file else text_of(value),
                    "files": [{"file": one["file"], "is_image": one["type"].startswith("image/")} for one in kept],
                }
        parts = [part for part in fields.values() if part["text"] or part["files"]]
        shown.append({"time": moment(answer.time)[:16], "fields": fields, "parts": parts})
    return forms_declared.filled(
        form, "published", {**forms_declared.site_values(settings), "form": form, "answers": shown}, settings
    )


def letter(
    form: Form,
    key: str,
    answers: Sequence[Answer],
    settings: Settings,
    files_dir: str,
    decide: Mapping[str, str],
) -> EmailMessage:
    """Return the letter that brings answers to whoever the form names; the same answers make the same letter.

    Args:
        form: the form.
        key: the letter's.
        answers: what it brings.
        settings: all settings.
        files_dir: where the files are that came with them.
        decide: by an answer's id, where a person decides of it.

    Raises:
        ConfigError: an address is none.
    """
    site, time_s = settings["site"], max(answer.time for answer in answers)
    attached, left = _attached(form, answers, files_dir)
    lines = [f"{len(answers)} answer{'s' * (len(answers) != 1)} to the form {form['name']}."]
    if len(answers) > LETTER_ANSWERS:
        lines.append(f"The first {LETTER_ANSWERS} follow; all are in the table that is attached.")
    if left:
        lines.append(f"Not attached, since they are too large together: {', '.join(left)}. They are in {files_dir}.")
    if forms_moderation.is_moderated(form):
        way = "by the link with it, or " if decide else ""
        lines.append(f"None of them is published before you say so: {way}forms-nightly -publish ID.")
    tables = [
        Table(
            title=f"{moment(answer.time)}, {answer.id}",
            head=["field", "answer"],
            rows=[
                [field["label"], _shown(answer.record.get(field["name"], ""))]
                for field in form["fields"]
                if answer.record.get(field["name"])
            ],
        )
        for answer in answers[:LETTER_ANSWERS]
    ]
    finding = Finding(job="forms-nightly", time=time_s, title=form["title"], lines=lines, tables=tables)
    about = f"{site['name']}: {form['title']}: {len(answers)} answer{'s' * (len(answers) != 1)}"
    html = letter_page(form, answers, about, finding, settings, decide)
    text = _text(about, answers, finding, decide)
    return letters.compose(
        settings["mail"]["from"], form["answers"]["to"], about, text, html, attached, time_s=time_s, key=key
    )


def letter_page(
    form: Form,
    answers: Sequence[Answer],
    about: str,
    finding: Finding,
    settings: Settings,
    decide: Mapping[str, str],
) -> str:
    """Return the letter for a reader of HTML.

    Shape: what the template gets beside that of all letters (mail.html): ``form``, ``lines``, and ``answers``, each
        ``{"id": "...", "time": "2026-11-22 23:10:05", "decide": "https://...", "parts": [{"name": "entry", "label":
        "...", "text": "..."}]}``; ``decide`` is "" where nobody is asked.

    Raises:
        ConfigError: the form's own template is not as it has to be.
    """
    site = settings["site"]
    told = {
        "title": form["title"],
        "job": "forms-nightly",
        "time": moment(finding.time),
        "lines": finding.lines,
        "links": [],
        "tables": [
            {
                "title": one.title,
                "head": one.head,
                "rows": one.rows,
                "numeric": [False, False],
                "link": {"text": DECIDE, "address": decide[answer.id]} if answer.id in decide else {},
            }
            for answer, one in zip(answers, finding.tables, strict=False)
        ],
    }
    listed = [
        {
            "id": answer.id,
            "time": moment(answer.time),
            "decide": decide.get(answer.id, ""),
            "parts": [
                {"name": field["name"], "label": field["label"], "text": _shown(answer.record[field["name"]])}
                for field in form["fields"]
                if answer.record.get(field["name"])
            ],
        }
        for answer in answers[:LETTER_ANSWERS]
    ]
    values = {"subject": about, "site": site["name"], "url": site["url"], "faults": [], "findings": [told]}
    own = {"form": form, "lines": finding.lines, "answers": listed}
    return forms_declared.filled(form, "mail", values | own, settings)


def _text(about: str, answers: Sequence[Answer], finding: Finding, decide: Mapping[str, str]) -> str:
    """Return the letter for a plain reader: whole texts, not cut to a column's width."""
    lines = [about, "=" * plain.columns(about), "", *finding.lines]
    for answer, one in zip(answers, finding.tables, strict=False):
        lines += ["", one.title, "-" * plain.columns(one.title)]
        for label, value in one.rows:
            first, *more = str(value).split("\n")
            end = "" if str(label).endswith((".", ":", "?", "!")) else ":"
            lines += [f"{label}{end} {first}", *["    " + line for line in more]]
        if answer.id in decide:
            lines.append(f"{DECIDE}: {decide[answer.id]}")
    return pages.visible("\n".join(lines)) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(
            f"{item['name']} ({item['type']}, {item['bytes']:,} bytes)" if isinstance(item, dict) else item
            for item in value
        )
    return text_of(value)


def _attached(form: Form, answers: Sequence[Answer], files_dir: str) -> tuple[list[letters.Attachment], list[str]]:
    attached = [letters.Attachment(f"{form['name']}.csv", "text/csv", table(form, answers))]
    left, room = [], ATTACHED_BYTES - len(attached[0].content)
    for answer in answers:
        for told in forms_book.sent_files(answer.record):
            if told["bytes"] > room:
                left.append(told["file"])
                continue
            try:
                content = files.read(f"{files_dir}/{told['file']}")
            except FileNotFoundError:
                left.append(told["file"])
                continue
            room -= len(content)
            attached.append(letters.Attachment(told["file"], told["type"], content))
    return attached, left
