# SPDX-License-Identifier: Apache-2.0
"""A body of type multipart/form-data: texts and files, read once from end to end; owns python-multipart.

The library takes what it is given and asks nothing back. So what is asked here is asked on our side: a body over its
limit is refused before a byte is read; parts, their texts and their heads are counted; a body that ends before its
closing boundary is an error; so is a part that is encoded or holds parts itself; texts are UTF-8, whatever they call
themselves, since that is what the page asked for.

Source: RFC 7578; RFC 2046 5.1; HTML Living Standard, "multipart/form-data encoding algorithm" (names and filenames).
"""

from infocluster.web.request import Request
from infocluster.web.response import HttpError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Sink(Protocol):
        """Where a file's bytes go."""

        def write(self, chunk: bytes) -> None:
            """Take the next bytes."""

        def close(self) -> None:
            """The file is whole."""

    Begin = Callable[[str, str], Sink]

MULTIPART_TYPE = "multipart/form-data"
BOUNDARY_LIMIT = 70
HEAD_FIELDS = 8
HEAD_BYTES = 4096
_BOUNDARY = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'()+_,-./:=? ")
_PLAIN = ("", "7bit", "8bit", "binary")


def read(request: Request, limit_bytes: int, text_bytes: int, parts: int, begin: "Begin") -> "list[tuple[str, str]]":
    """Return the texts of a body, in order; what is a file goes where `begin` says.

    Args:
        request: its type is multipart/form-data.
        limit_bytes: the most that the body may have.
        text_bytes: the most that all names and texts together may have.
        parts: the most parts there may be.
        begin: called with a file's field and what the visitor calls it; returns what takes its bytes. Not called for
            the empty part that browsers send where no file was chosen.

    Raises:
        HttpError: 400 the body is not whole or not in its form; 411, 413, 415; and what `begin` and its sink raise.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, MultipartState

    taken = _Body(text_bytes, parts, begin)
    chunks = request.chunks(limit_bytes)
    try:
        _quiet()
        parser = MultipartParser(
            boundary(request.variable("CONTENT_TYPE")),
            {
                "on_part_begin": taken.on_part_begin,
                "on_header_field": taken.on_header_field,
                "on_header_value": taken.on_header_value,
                "on_header_end": taken.on_header_end,
                "on_headers_finished": taken.on_headers_finished,
                "on_part_data": taken.on_part_data,
                "on_part_end": taken.on_part_end,
            },
            max_header_count=HEAD_FIELDS,
            max_header_size=HEAD_BYTES,
        )
        for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise HttpError(400, "The form is not in the form that browsers send.") from None
    if parser.state != MultipartState.END:
        raise HttpError(400, "The form ended before all of it arrived.")
    return taken.texts


def boundary(content_type: str) -> bytes:
    """Return what stands between the parts.

    Raises:
        HttpError: 400: the type names none, or one that RFC 2046 does not allow.
    """
    for word in _parameters(content_type)[1:]:
        name, _, value = word.partition("=")
        if name.strip().lower() == "boundary":
            found = _unquoted(value.strip())
            if 0 < len(found) <= BOUNDARY_LIMIT and _BOUNDARY.issuperset(found) and found[-1] != " ":
                return found.encode("ascii")
    raise HttpError(400, "The form does not say what stands between its parts.")


def disposition(text: str) -> "dict[str, str]":
    """Return the parameters of a Content-Disposition of type form-data; ``{}`` for another type.

    Browsers write a quote as ``%22`` and ends of lines as ``%0D`` and ``%0A``; older ones a quote as ``\\"``.
    """
    kind, *words = _parameters(text)
    if kind.strip().lower() != "form-data":
        return {}
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().lower()
        if equals and name in ("name", "filename") and name not in found:
            value = _unquoted(value.strip())
            found[name] = value.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
    return found


def _parameters(text: str) -> list[str]:
    """Split at semicolons that stand in no quotes."""
    words, word, is_quoted, is_escaped = [], "", False, False
    for character in text:
        if character == ";" and not is_quoted:
            words.append(word)
            word = ""
            continue
        if character == '"' and not is_escaped:
            is_quoted = not is_quoted
        is_escaped = character == "\\" and is_quoted and not is_escaped
        word += character
    return [*words, word]


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1].replace('\\"', '"')
    return value


def _quiet() -> None:
    """Let the library's warnings about bad input go nowhere: what a visitor sends is no news for the error log."""
    import logging

    logger = logging.getLogger("python_multipart")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


class _Body:
    """What was read of one body so far; the parser calls this."""

    def __init__(self, text_bytes: int, parts: int, begin: "Begin") -> None:
        self.texts: list[tuple[str, str]] = []
        self._left_bytes = text_bytes
        self._left_parts = parts
        self._begin = begin
        self._field = b""
        self._value = b""
        self._head: dict[bytes, bytes] = {}
        self._name = ""
        self._filename: str | None = None
        self._text: list[bytes] = []
        self._sink: Sink | None = None

    def on_part_begin(self) -> None:
        self._left_parts -= 1
        if self._left_parts < 0:
            raise HttpError(413, "The form has too many parts.")
        self._head = {}
        self._text = []
        self._sink = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        name = self._field.lower()
        if name in self._head:
            raise HttpError(400, "A part of the form has a field of its head twice.")
        self._head[name] = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        told = disposition(self._head.get(b"content-disposition", b"").decode("utf-8", "replace"))
        encoding = self._head.get(b"content-transfer-encoding", b"").strip().lower().decode("utf-8", "replace")
        media_type = self._head.get(b"content-type", b"").strip().lower()
        if "name" not in told or encoding not in _PLAIN or media_type.startswith(b"multipart/"):
            raise HttpError(400, "A part of the form is not in the form that browsers send.")
        self._name = told["name"]
        self._filename = told.get("filename")
        self._spend(len(self._name) + len(self._filename or ""))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if start == end:
            return
        if self._filename is None:
            self._spend(end - start)
            self._text.append(data[start:end])
            return
        if self._sink is None:
            self._sink = self._begin(self._name, self._filename)
        self._sink.write(data[start:end])

    def on_part_end(self) -> None:
        if self._filename is None:
            self.texts.append((self._name, b"".join(self._text).decode("utf-8", "replace")))
        elif self._sink is not None:
            self._sink.close()
        elif self._filename:
            # A file that was chosen and is empty is a file.
            self._begin(self._name, self._filename).close()

    def _spend(self, size: int) -> None:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise HttpError(413, "The texts of the form are too long.")
