# SPDX-License-Identifier: Apache-2.0
"""HTML that somebody wrote: where in a template a value may stand, and what the form of a page sends.

Escaping makes a value safe as text and between the quotes of an attribute. It does not where a value names an element
or an attribute, stands in an attribute without quotes, or in one that is run or painted; an address has to be one
that runs nothing, which the filter ``address`` sees to.

Source: HTML Living Standard, 13.1.2 (elements and attributes), 13.2.5 (tokenization); OWASP, "Cross Site Scripting
Prevention".
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

_PIECE = re.compile(r"\{#.*?#\}|\{%.*?%\}|\{\{(.*?)\}\}", re.DOTALL)
_VALUE, _ADDRESS, _STYLE = "\ue000", "\ue001", "\ue002"
_ADDRESSES = frozenset(
    {"href", "src", "action", "formaction", "poster", "data", "cite", "background", "ping", "srcset", "xlink:href"}
)
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
# A name, a text, or something in brackets: a filter behind anything longer is of its last part alone.
_IS_ADDRESS = re.compile(r"([\w.\[\]]+|'[^']*'|\([^()]*\))(\s*\|\s*\w+(\([^()]*\))?)*\s*\|\s*address")
_TAG_OF_A_VALUE = re.compile(r"</?\s*[\ue000-\ue002]")
# One of two words of the template's own.
_IS_CHOICE = re.compile(r"(['\"])[\w -]*\1 if [^'\"]+ else (['\"])[\w -]*\2")


def misplaced(template: str) -> Iterator[tuple[int, str]]:
    """Yield line and reason for each value of a template that stands where escaping does not help.

    Args:
        template: its text, with jinja's own marks in it; two branches of one ``if`` that open the same element are
            looked at as if both were there.
    """

    def marked(found: re.Match[str]) -> str:
        # As many lines as before, so that what follows keeps its number.
        lines = "\n" * found[0].count("\n")
        if found[1] is None:
            return " " + lines
        expression = found[1].strip("-+ \n\t")
        if _IS_CHOICE.fullmatch(expression):
            return "word" + lines
        mark = _ADDRESS if _IS_ADDRESS.fullmatch(expression) else _VALUE
        return (_STYLE if expression == "stylesheet" else mark) + lines

    text = _PIECE.sub(marked, template)
    if found := _TAG_OF_A_VALUE.search(text):
        yield text.count("\n", 0, found.start()) + 1, "a value may not name an element"
    looked = _Looked()
    looked.feed(text)
    looked.close()
    yield from looked.found


class _Looked(HTMLParser):
    """Looks where marks of values stand in a template's HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[int, str]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Look at an element's attributes."""
        line = self.getpos()[0]
        if _marks(_QUOTED.sub("", self.get_starttag_text() or "")):
            self.found.append((line, f"a value in the tag <{tag}> has to stand between the quotes of an attribute"))
        for name, value in attributes:
            if value and (name.startswith("on") or name in ("style", "srcdoc")) and _marks(value):
                self.found.append((line, f"a value may not stand in the attribute {name}"))
            elif value and name in _ADDRESSES and _VALUE in value and value[0] != "#":
                self.found.append((line, f"a value in the attribute {name} has to go through the filter address"))

    def handle_data(self, data: str) -> None:
        """Look at what a browser does not read as text."""
        allowed = {_STYLE} if self.cdata_elem == "style" else set()
        if self.cdata_elem in ("script", "style") and _marks(data) - allowed:
            self.found.append((self.getpos()[0], f"a value may not stand in <{self.cdata_elem}>"))


def _marks(text: str) -> set[str]:
    return {_VALUE, _ADDRESS, _STYLE} & set(text)


def sent(page: str) -> tuple[list[str], list[dict[str, str | None]]]:
    """Return what a page's forms send: the names of inputs, and the attributes of each form."""
    found = _Inputs()
    found.feed(page)
    found.close()
    return found.names, found.forms


class _Inputs(HTMLParser):
    """Finds forms and inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.forms: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note a form, or the name of an input."""
        if tag == "form":
            self.forms.append(dict(attributes))
        elif tag in ("input", "select", "textarea"):
            self.names += [value for name, value in attributes if name == "name" and value]
