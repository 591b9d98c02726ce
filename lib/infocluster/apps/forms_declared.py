# SPDX-License-Identifier: Apache-2.0
"""Declarations of forms: what may stand in ``etc/forms/NAME.toml``, and the pages that are made of it.

The table below is the only list of keys. A fault is told as ``FILE:LINE: KEY: expected WHAT``.

Shape: a form, as hits and nights have it, is a dictionary: the keys of the declaration, defaults filled in, and
    ``name``; ``has_files``; ``page``, the form's own page in two halves between which a token goes; ``thanks_page``;
    ``sources``, path, bytes and mtime in ns of each template of the form's own.
    ``{"name": "signup", "title": "...", "limits": {"body_kb": 48, ...}, "answers": {"store": "segment", ...},
    "fields": [{"name": "email", "label": "E-mail address", "kind": "email", "required": True, ...}], ...}``

Source: TOML v1.0.0; HTML Living Standard, 4.10 Forms.
"""

import os
import re
import tomllib
import warnings
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from infocluster import files, names, pages
from infocluster.apps.forms_check import KINDS, TRAP
from infocluster.config import Settings
from infocluster.errors import ConfigError, reason
from infocluster.settings import BOOLEAN, NAME, TEXT, Kind, toml
from infocluster.web.uploads import TYPES

Form = dict[str, Any]

FIELDS_LIMIT = 100
FEW = 6
# What people decide of its answers is gathered under its name, too: see forms_moderation.
NAME_ROOM = names.NAME_LIMIT - len("decisions-")
UPLOAD_KB_MOST = 1 << 20
TOKEN_PLACE = "token-of-this-visit-goes-here"  # noqa: S105 - where a token is put, no token
# What a record of gather-query has beside the answers, and what form.cgi itself sends.
RESERVED = frozenset({"id", "time", "server", "host", "app", "segment", *TRAP.values()})


class Key(NamedTuple):
    """One key of a declaration; default None: it has to be there."""

    name: str
    kind: Kind
    default: Any


def _whole(least: int, most: int) -> Kind:
    return Kind(
        f"a whole number from {least} to {most}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def _one_of(*words: str) -> Kind:
    return Kind("one of " + ", ".join(f'"{word}"' for word in words), lambda value: value in words)


def _list_of(kind: Kind, words: str) -> Kind:
    return Kind(
        f"a list of {words}",
        lambda value: (
            isinstance(value, list) and all(kind.fits(item) for item in value) and len(set(value)) == len(value)
        ),
    )


def _fits_name(value: Any) -> bool:
    return NAME.fits(value) and re.fullmatch(r"[a-z][a-z0-9_]*", value) is not None and value not in RESERVED


def _fits_bound(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value).isoformat() == value
        except ValueError:
            return value == ""
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0


def _fits_address(value: Any) -> bool:
    # It loads all of email, which a hit of a compiled form has no use for.
    from infocluster import letters

    if not TEXT.fits(value):
        return False
    try:
        letters.address(value)
    except ConfigError:
        return False
    return True


def _fits_template(value: Any) -> bool:
    is_file = NAME.fits(value) and value.endswith(".html") and not pages.is_ours(value)
    return value == "" or is_file


TEMPLATE = Kind("the name of a file NAME.html beside the declaration, and none of ours", _fits_template)
FIELD_NAME = Kind(f"a name of a-z 0-9 _ led by a letter, and none of {', '.join(sorted(RESERVED))}", _fits_name)
SENTENCE = Kind("a text in one line, not empty", lambda value: TEXT.fits(value) and value.strip() != "")
CHOICE = Kind("", lambda value: SENTENCE.fits(value) and value == value.strip())
BOUND = Kind('a number, or a day such as "2026-11-22"', _fits_bound)

TOP = (
    Key("title", SENTENCE, None),
    Key("intro", TEXT, ""),
    Key("thanks", SENTENCE, "Thank you."),
    Key("button", SENTENCE, "Send"),
)
LIMITS = (
    Key("body_kb", _whole(1, 1024), 48),
    Key("upload_kb", _whole(1, UPLOAD_KB_MOST), 1024),
    Key("per_hour", _whole(0, 1000000), 30),
    Key("fill_s", _whole(0, 60), 2),
    Key("open_hours", _whole(1, 720), 24),
)
ANSWERS = (
    Key("store", _one_of("segment", "entries", "queue"), "segment"),
    Key("publish", BOOLEAN, False),
    Key("moderate", BOOLEAN, True),
    Key("mail", _one_of("night", "soon", "never"), "never"),
    Key("to", _list_of(Kind("", _fits_address), "addresses, each as in www@example.org"), []),
    Key("retention_days", _whole(1, 36500), 365),
)
TEMPLATES = tuple(Key(name, TEMPLATE, "") for name in ("page", "thanks", "published", "mail"))
FIELD = (
    Key("name", FIELD_NAME, None),
    Key("label", SENTENCE, None),
    Key("kind", _one_of(*KINDS), "text"),
    Key("help", TEXT, ""),
    Key("required", BOOLEAN, False),
    Key("length", _whole(1, 100000), 200),
    Key("pattern", TEXT, ""),
    Key("choices", _list_of(CHOICE, "texts, each once, no blanks round them"), []),
    Key("repeats", _whole(1, 50), 1),
    Key("rows", _whole(1, 50), 1),
    Key("least", BOUND, ""),
    Key("most", BOUND, ""),
    Key("types", _list_of(_one_of(*TYPES), "types, each one of " + ", ".join(TYPES)), []),
    Key("published", BOOLEAN, False),
    Key("autocomplete", TEXT, ""),
)
SECTIONS = {"limits": LIMITS, "answers": ANSWERS, "templates": TEMPLATES}
OURS = {"page": "form.html", "thanks": "form_thanks.html", "published": "form_published.html", "mail": "mail.html"}
# Keys that only some kinds of fields have.
ONLY = {
    "pattern": {"text"},
    "rows": {"text"},
    "length": {"text", "email"},
    "choices": {"choice"},
    "least": {"number", "date"},
    "most": {"number", "date"},
    "types": {"file"},
    "autocomplete": {"text", "email", "number", "date"},
}


def read(file: str, settings: Settings) -> Form:
    """Return a form: its declaration checked, with its pages rendered.

    Raises:
        ConfigError: ``FILE:LINE: KEY: expected WHAT``.
    """
    return parsed(text_of(file), file, settings)


def text_of(file: str) -> str:
    """Return the text of a declaration.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return files.read(file).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the form {file}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the form {file}: not UTF-8 at byte {error.start}") from error


def parsed(text: str, file: str, settings: Settings, is_gone: bool = False) -> Form:
    """Return a form of the text of its declaration, as `read`.

    Args:
        text: what the declaration says.
        file: where it is, or was.
        settings: all settings.
        is_gone: whether it is there no more: the form's own templates may be gone too, and ours are taken.

    Raises:
        ConfigError: ``FILE:LINE: KEY: expected WHAT``.
    """
    try:
        written = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"cannot read the form {file}: {error}") from error
    if is_gone:
        written.pop("templates", None)
    form = _Checked(file, text).form(written)
    form["name"] = os.path.splitext(os.path.basename(file))[0]
    if len(form["name"]) > NAME_ROOM:
        raise ConfigError(
            f"cannot use the form {file}: its name is too long: expected at most {NAME_ROOM} characters"
        )
    form["has_files"] = any(field["kind"] == "file" for field in form["fields"])
    form["sources"] = _sources(form, settings)
    empty = page(form, settings, TOKEN_PLACE)
    if form["templates"]["page"]:
        _check_page(empty, form, f"{settings['forms']['forms_dir']}/{form['templates']['page']}")
    before, found, after = empty.partition(TOKEN_PLACE)
    if not found or TOKEN_PLACE in after:
        raise ConfigError(f"cannot use the form {file}: {names.shown(TOKEN_PLACE)} may not stand in it")
    form["page"] = (before.encode(), after.encode())
    form["thanks_page"] = filled(form, "thanks", {**site_values(settings), "form": form}, settings).encode()
    return form


def filled(form: Form, which: str, values: dict[str, Any], settings: Settings) -> str:
    """Return a page of a form, made of its own template where it has one, else of ours.

    Args:
        form: the form.
        which: ``page``, ``thanks``, ``published`` or ``mail``.
        values: what that template names.
        settings: all settings.

    Raises:
        ConfigError: ``FILE:LINE: REASON``: its own template is not as it has to be.
    """
    own = form["templates"][which]
    if own:
        return pages.fill_own(own, values, settings["forms"]["forms_dir"])
    return pages.fill(OURS[which], values)


def _sources(form: Form, settings: Settings) -> list[tuple[str, int, int]]:
    """Check the form's own templates, and return what they are made of."""
    found: dict[str, os.stat_result] = {}
    for name in form["templates"].values():
        if name:
            for path in pages.check_own(name, settings["forms"]["forms_dir"]):
                found[path] = os.stat(path)
    return [(path, status.st_size, status.st_mtime_ns) for path, status in found.items()]


def _check_page(text: str, form: Form, template: str) -> None:
    """Raise ConfigError where a page of somebody's own cannot be answered."""
    from infocluster import markup

    sent, forms = markup.sent(text)
    wanted = [*TRAP.values(), *(field["name"] for field in form["fields"])]
    if missing := [name for name in wanted if name not in sent]:
        raise ConfigError(f"{template}: expected an input called {missing[0]}")
    posted = [one for one in forms if (one.get("method") or "").lower() == "post"]
    if len(posted) != 1:
        raise ConfigError(f'{template}: expected one <form method="post">')
    if form["has_files"] and posted[0].get("enctype") != "multipart/form-data":
        raise ConfigError(f'{template}: expected enctype="multipart/form-data", since files are sent')
    if text.count(TOKEN_PLACE) != 1:
        raise ConfigError(f"{template}: expected the value token once, as that of the input {TRAP['token']}")


def page(
    form: Form,
    settings: Settings,
    token: str,
    kept: dict[str, list[str]] | None = None,
    faults: dict[str, str] | None = None,
) -> str:
    """Return a form's page.

    Args:
        form: the form.
        settings: all settings.
        token: what goes back with the answers.
        kept: what was typed, by field.
        faults: a sentence by field, or for the whole under "".
    """
    kept, faults = kept or {}, faults or {}
    labels = {field["name"]: field["label"] for field in form["fields"]}
    listed = [{"name": name, "label": labels.get(name, ""), "text": text} for name, text in faults.items()]
    count = len(listed)
    values = {
        **site_values(settings),
        "form": form,
        "fields": [
            _shown(field, kept.get(field["name"], []), faults.get(field["name"], "")) for field in form["fields"]
        ],
        "trap": TRAP,
        "token": token,
        "faults": listed,
        "what": f"Nothing was sent yet: please look at {'this' if count == 1 else f'these {count} things'}",
    }
    return filled(form, "page", values, settings)


def site_values(settings: Settings) -> dict[str, Any]:
    """Return what base.html names, for every page of a form."""
    site = settings["site"]
    return {
        "site": {"name": site["name"], "url": site["url"]},
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _shown(field: dict[str, Any], kept: list[str], fault: str) -> dict[str, Any]:
    kind, repeats = field["kind"], field["repeats"]
    widget = kind
    if kind == "choice":
        widget = "checks" if repeats > 1 else "radio" if len(field["choices"]) <= FEW else "select"
    elif kind == "text" and field["rows"] > 1:
        widget = "textarea"
    places = (kept + [""] * repeats)[:repeats]
    accept = ",".join(field["types"])
    return {**field, "widget": widget, "kept": kept, "fault": fault, "places": places, "accept": accept}


class _Checked:
    """One file being checked: its name and text, so that a fault is told with its line."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.splitlines()

    def form(self, written: dict[str, Any]) -> Form:
        known = [key.name for key in TOP] + [*SECTIONS, "fields"]
        for name in written:
            if name not in known:
                raise self.fault("", name, f"unknown; expected one of {', '.join(known)}")
        form = self.keys(
            "", TOP, {name: value for name, value in written.items() if name not in (*SECTIONS, "fields")}
        )
        for section, keys in SECTIONS.items():
            form[section] = self.keys(section, keys, written.get(section, {}))
        fields = written.get("fields", [])
        if not isinstance(fields, list) or not 1 <= len(fields) <= FIELDS_LIMIT:
            raise self.fault("fields", None, f"expected [[fields]], once for each of 1 to {FIELDS_LIMIT} fields")
        form["fields"] = [self.keys("fields", FIELD, field, place) for place, field in enumerate(fields)]
        self.together(form, fields)
        return form

    def keys(self, section: str, keys: tuple[Key, ...], written: Any, place: int = 0) -> dict[str, Any]:
        if not isinstance(written, dict):
            raise self.fault("", section, f"expected a section [{section}]", place)
        known = {key.name: key for key in keys}
        for name in written:
            if name not in known:
                raise self.fault(section, name, f"unknown; expected one of {', '.join(known)}", place)
        result = {}
        for name, key in known.items():
            value = written.get(name, key.default)
            if value is None:
                raise self.fault(section, name, "has to be set", place)
            if not key.kind.fits(value):
                raise self.fault(section, name, f"{self.said(value)}: expected {key.kind.expected}", place)
            result[name] = value
        return result

    def together(self, form: Form, written: list[dict[str, Any]]) -> None:
        """Check what each key alone does not tell."""
        answers, seen = form["answers"], set()
        if answers["mail"] != "never" and not answers["to"]:
            raise self.fault("answers", "to", "[]: expected an address, since the answers are mailed")
        if answers["publish"] and not any(field["published"] for field in form["fields"]):
            raise self.fault("answers", "publish", "true: expected a field with published = true")
        self.templates(form)
        for place, field in enumerate(form["fields"]):
            kind = field["kind"]

            def wrong(name: str, what: str, place: int = place) -> ConfigError:
                return self.fault("fields", name, what, place)

            for name, kinds in ONLY.items():
                if name in written[place] and kind not in kinds:
                    raise wrong(name, f'a field of kind "{kind}" has none')
            if field["name"] in seen:
                raise wrong("name", f'"{field["name"]}": there are two fields of this name')
            seen.add(field["name"])
            if kind == "choice" and len(field["choices"]) < 2:
                raise wrong("choices", "expected two or more, since the kind is choice")
            if kind == "file" and not field["types"]:
                raise wrong("types", f"expected one or more of {', '.join(TYPES)}")
            if kind == "checkbox" and field["repeats"] != 1:
                raise wrong("repeats", "a checkbox has one answer; several are a choice with repeats")
            if kind == "choice" and field["repeats"] > len(field["choices"]):
                raise wrong(
                    "repeats", f"{field['repeats']}: expected at most {len(field['choices'])}, as many as choices"
                )
            if field["rows"] > 1 and (field["repeats"] > 1 or field["pattern"]):
                raise wrong("rows", "a field of several rows has one answer and no pattern")
            self.bounds(field, wrong)
            body_bytes = form["limits"]["body_kb"] * 1024
            if kind in ONLY["length"] and field["length"] > body_bytes:
                raise wrong("length", f"{field['length']}: expected at most {body_bytes}, as limits.body_kb has it")
            self.pattern(field["pattern"], wrong)

    def templates(self, form: Form) -> None:
        """Check that the form's own templates are there."""
        for key, name in form["templates"].items():
            if name and not os.path.isfile(f"{os.path.dirname(self.file)}/{name}"):
                raise self.fault("templates", key, f'"{name}": there is no such file beside the declaration')

    @staticmethod
    def bounds(field: dict[str, Any], wrong: Any) -> None:
        """Check that the bounds of a field are of its kind, and in order."""
        expected: tuple[type, ...] = (str,) if field["kind"] == "date" else (int, float)
        for name in ("least", "most"):
            if field[name] != "" and not isinstance(field[name], expected):
                raise wrong(name, f"expected {'a day' if field['kind'] == 'date' else 'a number'}, as the kind is")
        if "" not in (field["least"], field["most"]) and field["least"] > field["most"]:
            raise wrong("most", "expected no less than least")

    @staticmethod
    def pattern(pattern: str, wrong: Any) -> None:
        """Check that a pattern is one; what Python warns of, such as "[[", browsers read otherwise."""
        try:
            with warnings.catch_warnings(action="error"):
                re.compile(pattern)
        except (re.error, Warning) as error:
            raise wrong("pattern", f"expected a regular expression: {error}") from None

    @staticmethod
    def said(value: Any) -> str:
        return names.shown(toml(value) if not isinstance(value, dict) else "a section", 80)

    def fault(self, section: str, name: str | None, what: str, place: int = 0) -> ConfigError:
        subject = ".".join(word for word in (section, name) if word)
        return ConfigError(f"{self.file}:{self.line(section, name, place)}: {subject}: {what}")

    def line(self, section: str, name: str | None, place: int) -> int:
        """Return the line that a fault is about, or its section's, or 1: found by eye, as a person would."""
        found, inside, seen = 1, section == "", 0 if section == "" else -1
        for number, line in enumerate(self.lines, 1):
            words = line.split("#")[0].strip()
            if words.startswith("["):
                inside = words.strip("[] ") in (section, name if section == "" else section)
                seen += inside
                if inside and (seen <= place or section == ""):
                    found = number
                    if section == "":
                        return number
            elif inside and seen == place and name is not None and words.split("=")[0].strip().strip("\"'") == name:
                return number
        return found
