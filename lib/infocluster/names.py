# SPDX-License-Identifier: Apache-2.0
"""The only place where text from outside becomes a path.

Two kinds of text are let through:

* a *name*, one component of our own making: letters, digits, ``.``, ``_`` and ``-``, not led by a ``.`` or ``-``;
* a *tree path* such as ``world/sample/a page.html``: what people call their files below a tree, so nearly
  any character, but no component that walks (``..``), hides the end of a line or steers a terminal.
"""

from infocluster.errors import UsageError

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
NAME_LIMIT = 64
COMPONENT_LIMIT_BYTES = 255


def is_name(text: str, limit: int = NAME_LIMIT) -> bool:
    """Tell whether a text is a plain name, at most `limit` characters, that may stand as one component of a path."""
    return 0 < len(text) <= limit and text[0] not in ".-" and _LETTERS.issuperset(text)


def name(text: str, what: str = "name") -> str:
    """Return the text if it is a plain name.

    Args:
        text: 1 to 64 of ``A-Z a-z 0-9 . _ -``, not led by ``.`` or ``-``.
        what: what the text is meant to be, for the message.

    Raises:
        UsageError: it is anything else.
    """
    if not is_name(text):
        raise UsageError(f"cannot use {shown(text)} as {what}: expected 1 to {NAME_LIMIT} of A-Z a-z 0-9 . _ -")
    return text


def tree_path(text: str) -> str:
    """Return a path relative to the root of the trees in its one normal form: no slash at either end or doubled.

    Args:
        text: such as ``world/sample`` or ``world/sample/``.

    Raises:
        UsageError: empty, absolute, with ``.`` or ``..``, with control characters, with a component over
            255 bytes, or led by ``-`` (a program would take it for an option).
    """
    if not text.strip("/"):
        raise UsageError(f"cannot use {shown(text)} as a path: it names no file or directory")
    if text.startswith("/"):
        raise UsageError(f"cannot use {shown(text)} as a path: give it relative to the trees, such as world/sample")
    if text.startswith("-"):
        raise UsageError(f"cannot use {shown(text)} as a path: a tree's name does not begin with '-'")
    parts = [part for part in text.split("/") if part]
    for part in parts:
        if part in (".", ".."):
            raise UsageError(f"cannot use {shown(text)} as a path: '{part}' is not allowed in it")
        if any(_steers(character) for character in part):
            raise UsageError(f"cannot use {shown(text)} as a path: it holds control characters")
        if len(part.encode("utf-8", "surrogateescape")) > COMPONENT_LIMIT_BYTES:
            raise UsageError(
                f"cannot use {shown(text)} as a path: a name in it is over {COMPONENT_LIMIT_BYTES} bytes"
            )
    return "/".join(parts)


def is_component(text: str) -> bool:
    """Tell whether a text, of characters that UTF-8 has, may be one component of a tree path, and is not hidden."""
    try:
        text.encode("utf-8")
        return "/" not in text and not text.startswith(".") and tree_path(text) == text
    except (UsageError, UnicodeEncodeError):
        return False


def shown(text: str, limit: int = 120) -> str:
    """Return a text quoted for a message: nothing in it can end a line or steer a terminal."""
    if len(text) > limit:
        text = text[:limit] + "..."
    return "'" + "".join(f"\\x{ord(c):02x}" if _steers(c) else c for c in text) + "'"


def printable(text: str) -> str:
    """Return a path as it may be printed: control characters and bytes that are not UTF-8 as escapes."""
    return "".join(f"\\x{ord(c) & 0xFF:02x}" if _steers(c) else c for c in text)


def visible(text: str) -> str:
    """Return a text for a page or a picture: without what steers (controls, line ends, turns of writing direction)
    and without what XML 1.0 and UTF-8 cannot carry (lone surrogates, non-characters).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if not (_steers(c) or _turns(c) or _is_uncarried(c)))


def _turns(character: str) -> bool:
    # Unicode UAX #9: embeddings, overrides and isolates reach beyond the text they stand in.
    return "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"


def _is_uncarried(character: str) -> bool:
    return "\ud800" <= character <= "\udfff" or ord(character) & 0xFFFE == 0xFFFE


def _steers(character: str) -> bool:
    code = ord(character)
    # C0, DEL, C1; the line and paragraph separators; and undecoded bytes count in shown() alone.
    return code < 0x20 or 0x7F <= code <= 0x9F or code in (0x2028, 0x2029)
