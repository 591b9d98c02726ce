# SPDX-License-Identifier: Apache-2.0
"""What a person may answer: the kinds of fields, and a sentence for each answer that is not as it has to be.

A hit loads this module.

Source: HTML Living Standard, 4.10.5.1 (states of input elements); RFC 5321 4.5.3.1 (sizes of addresses).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Field = dict[str, Any]

KINDS = ("text", "email", "number", "date", "choice", "checkbox", "file")
TRAP = {"token": "form_token", "name": "leave_empty"}
"""Fields of our own: the token of a visit, and the one that only machines fill."""
UNREADABLE = "\ufffd"
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def checked(fields: "list[Field]", sent: "dict[str, list[str]]") -> "tuple[dict[str, Any], dict[str, str]]":
    """Return the answers to keep, and a sentence for each field whose answer cannot be kept.

    Args:
        fields: those of the form; files are not looked at here.
        sent: what was typed, by name; of names that are no fields nothing is kept.

    Returns:
        ``{"email": "ann@example.org", "topics": ["Jobs"], "consent": True}`` and ``{"email": "Please ..."}``. A field
        that was left empty has "" (a list that is empty, where it may repeat; False for a checkbox).
    """
    answers: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for field in fields:
        name, kind = field["name"], field["kind"]
        if kind == "file":
            continue
        values = [value for value in map(_tidy, sent.get(name, ())) if value]
        fault = ""
        if not values:
            fault = _MISSING.get(kind, "Please fill this in.") if field["required"] else ""
        elif len(values) > field["repeats"]:
            fault = "One answer is enough here." if field["repeats"] == 1 else f"At most {field['repeats']} here."
        for value in values:
            fault = fault or _fault(field, value)
        if fault:
            faults[name] = fault
        if kind == "checkbox":
            answers[name] = bool(values)
        else:
            answers[name] = values if field["repeats"] > 1 else "".join(values[:1])
    return answers, faults


_MISSING = {
    "checkbox": "Please tick this, it is needed.",
    "choice": "Please choose.",
    "email": "Please give an address.",
}


def _tidy(value: str) -> str:
    """Return a text as it is kept: ends of lines as one character, no blanks round it."""
    if "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    return value.strip()


def _fault(field: "Field", value: str) -> str:  # noqa: PLR0911 - a sentence each
    """Return what is wrong with one answer, or ""."""
    kind = field["kind"]
    if UNREADABLE in value:
        return "Some characters could not be read. Please type this again."
    if not value.isprintable():
        fault = _steering(value, kind == "text" and field["rows"] > 1)
        if fault:
            return fault
    if kind in ("text", "email") and len(value) > field["length"]:
        return f"This is too long: {len(value)} characters, and {field['length']} are taken."
    if kind == "choice" and value not in field["choices"]:
        return "Please choose one of these."
    if kind == "checkbox" and value != "yes":
        return "Please tick this or leave it."
    if kind == "email" and not is_address(value):
        return "This is no e-mail address. Please write it as in ann@example.org."
    if kind == "number":
        return _number_fault(field, value)
    if kind == "date":
        return _date_fault(field, value)
    if field["pattern"] and not _matches(field["pattern"], value):
        return (
            f"This is not in the form it has to have{': ' if field['help'] else ''}{field['help']}".rstrip(".") + "."
        )
    return ""


def _steering(value: str, may_have_lines: bool) -> str:
    for character in value:
        code = ord(character)
        if character in "\n\t":
            if not may_have_lines:
                return "This has to be in one line."
        elif code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000:
            return "There are characters in it that cannot be seen. Please type this again."
    return ""


def is_address(text: str) -> bool:
    """Tell whether a text can be an e-mail address: ``LOCAL@DOMAIN``, the domain of two labels or more."""
    local, at, domain = text.rpartition("@")
    labels = domain.split(".")
    return (
        bool(at and local)
        and len(local) <= 64
        and len(domain) <= 253
        and len(labels) > 1
        and all(0 < len(label) <= 63 and label[0] != "-" and label[-1] != "-" for label in labels)
        and all(label.replace("-", "").isalnum() for label in labels)
        and not labels[-1].isdigit()
        and all(c.isalnum() or c in "!#$%&'*+-/=?^_`{|}~." for c in local)
        and local[0] != "."
        and local[-1] != "."
        and ".." not in local
    )


def is_number(text: str) -> bool:
    """Tell whether a text is a number as a field takes it: digits, at most one point, a sign before them."""
    bare = text.lstrip("+-")
    digits = bare.replace(".", "", 1)
    return digits.isascii() and digits.isdigit() and len(text) <= 40 and len(text) - len(bare) < 2


def has_month(text: str) -> bool:
    """Tell whether a text is written as a day is, ``YYYY-MM-DD``, in a month that there is."""
    year, month, day = text[:4], text[5:7], text[8:]
    is_written_so = len(text) == 10 and text[4] == text[7] == "-" and (year + month + day).isascii()
    return is_written_so and (year + month + day).isdigit() and year > "0000" and "01" <= month <= "12"


def _number_fault(field: "Field", value: str) -> str:
    if not is_number(value):
        return "This has to be a number, such as 12 or 0.5."
    return _bound_fault(field, float(value))


def _date_fault(field: "Field", value: str) -> str:
    if not has_month(value):
        return "This has to be a day, such as 2026-11-22."
    year, month, day = value[:4], value[5:7], value[8:]
    y = int(year)
    is_leap = y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)
    last = 28 if month == "02" and not is_leap else _DAYS[int(month) - 1]
    if not 1 <= int(day) <= last:
        return "There is no such day."
    return _bound_fault(field, value)


def _bound_fault(field: "Field", value: "float | str") -> str:
    if field["least"] != "" and value < field["least"]:
        return f"This has to be {field['least']} or more."
    if field["most"] != "" and value > field["most"]:
        return f"This has to be {field['most']} or less."
    return ""


def _matches(pattern: str, value: str) -> bool:
    import re

    return re.fullmatch(pattern, value) is not None
