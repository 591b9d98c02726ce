# SPDX-License-Identifier: Apache-2.0
"""Templates of a form's own, tried with answers that look like any: before a night publishes or mails anything.

Source: Jinja documentation, "Sandbox".
"""

from typing import Any

from infocluster.apps import forms_declared, forms_results
from infocluster.apps.forms_book import NEW, Answer
from infocluster.config import Settings
from infocluster.report.findings import Finding, Table
from infocluster.web.uploads import TYPES

Form = dict[str, Any]

TIME_S = 1795384800.0
LINK = "https://www.example.org/cgi-bin/moderate.cgi/form?0.0.0"
_ID = "0" * 32
_TEXT = 'Text with <b>, & and "quotes"'
_SAMPLES: dict[str, Any] = {
    "email": "ann@example.org",
    "number": "7",
    "date": "2026-11-22",
    "checkbox": True,
}


def check(form: Form, settings: Settings) -> None:
    """Make every page that has a template of the form's own, of no answer, an empty and a full one.

    Raises:
        ConfigError: ``FILE:LINE: REASON``.
    """
    own = form["templates"]
    if own["page"]:
        typed = {field["name"]: [str(value) for value in _listed(_sample(field))] for field in form["fields"]}
        faults = {field["name"]: "Please correct this." for field in form["fields"]} | {"": "Please look at this."}
        forms_declared.page(form, settings, "a token", typed, faults)
    full = _answer(form, {field["name"]: _sample(field) for field in form["fields"]})
    empty = _answer(form, {field["name"]: _empty(field) for field in form["fields"]})
    for answers in ([], [empty], [empty, full]):
        if own["published"]:
            forms_results.published_page(form, answers, settings, lambda _: True)
        if own["mail"] and answers:
            tables = [Table(title="a table", head=["field", "answer"], rows=[["Entry", _TEXT]])]
            finding = Finding(
                job="forms-nightly", time=TIME_S, title=form["title"], lines=["2 answers."], faults=[], tables=tables
            )
            forms_results.letter_page(form, answers, "a subject", finding, settings, {full.id: LINK})


def _answer(form: Form, answers: dict[str, Any]) -> Answer:
    record = {"id": _ID, "time": TIME_S, **answers}
    return Answer(record["id"], TIME_S, "2026-11-22", "web1", "2026-11-22.jsonl", record, NEW, "")


def _sample(field: dict[str, Any]) -> Any:
    """Return what a person could answer."""
    if field["kind"] == "file":
        kinds = [
            {"name": "x", "type": kind, "bytes": 1, "sha256": "0" * 64, "file": f"{_ID}-x{TYPES[kind]}"}
            for kind in field["types"]
        ]
        return kinds[: field["repeats"]]
    value = field["choices"][0] if field["kind"] == "choice" else _SAMPLES.get(field["kind"], _TEXT)
    return [value] * min(2, field["repeats"]) if field["repeats"] > 1 else value


def _empty(field: dict[str, Any]) -> Any:
    if field["kind"] == "checkbox":
        return False
    return [] if field["kind"] == "file" or field["repeats"] > 1 else ""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
