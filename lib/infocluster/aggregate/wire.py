# SPDX-License-Identifier: Apache-2.0
"""SEER/1.0 messages: parsed strictly, within bounds, and written.

Shape: a first line, header lines, a blank line, a body of the stated length. Lines end in LF, or all in CRLF; names
    of headers count without regard to case, each stands once. Type, Id and Src have to be there, and Content-Length::

        SEER/1.0 REPORT
        Id: 644a1f0c2e9b31-7
        Src: node1
        Type: FileOutput
        Date: 1795384800
        Content-Length: 12

        (12 bytes)

    ``Id`` and ``Src`` together are unique. ``Date`` is when it was made (Unix seconds), ``Period`` for how many
    seconds its sender may be silent after it. ``Dst`` names one receiver, ``DAttrib`` what receivers have announced.
    Other headers are kept: ``Filename: a.txt`` is ``message.filename``.

A hit loads this module: no `re`.

Source: SEER messaging documentation; RFC 9110 5.1 for names of headers.
"""

from infocluster import names
from infocluster.errors import BadInputError

VERSION = b"SEER/1.0"
KINDS = frozenset({"REPORT", "GET", "GATHER", "REQUEST", "UPDATE", "PUT"})
HEAD_LIMIT_BYTES = 8192
LINE_LIMIT_BYTES = 1024
LINES_LIMIT = 32
BODY_LIMIT_BYTES = 1 << 24
# 2^53: what every reader of JSON can count to.
_MOST = 9007199254740991
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_OWN = ("id", "src", "dst", "dattrib", "type", "content-length")


class BadMessageError(BadInputError):
    """Bytes that are no message of this protocol."""


class Message:
    """One message.

    Attributes:
        kind: one of `KINDS`.
        id: unique together with `src`.
        src: the node that sent it.
        type: what its body is, such as ``FileOutput``.
        data: the body.
        dst: the one receiver, or "".
        dattrib: the attribute its receivers have, or "".
        fields: the other headers, names in small letters. Each is an attribute too: ``message.filename``, "" where
            the message has no such header.
        came: when a web server took it, Unix seconds; 0.0 where none did. Does not travel.
    """

    __slots__ = ("came", "data", "dattrib", "dst", "fields", "id", "kind", "src", "type")

    def __init__(
        self,
        kind: str,
        message_id: str,
        src: str,
        message_type: str,
        data: bytes = b"",
        fields: "dict[str, str] | None" = None,
        dst: str = "",
        dattrib: str = "",
    ) -> None:
        self.kind = kind
        self.id = message_id
        self.src = src
        self.type = message_type
        self.data = data
        self.fields = fields or {}
        self.dst = dst
        self.dattrib = dattrib
        self.came = 0.0

    def __getattr__(self, name: str) -> str:
        if name.startswith("_") or name in Message.__slots__:
            raise AttributeError(name)
        return self.fields.get(name.replace("_", "-"), "")

    @property
    def node(self) -> str:
        """The node that sent it."""
        return self.src

    def number(self, name: str, default: int = 0) -> int:
        """Return a header that is a whole number, or the default where there is none."""
        text = self.fields.get(name, "")
        return int(text) if text else default


def parse(text: bytes, limit_bytes: int = BODY_LIMIT_BYTES) -> Message:
    """Return the message that these bytes are, all of them.

    Args:
        text: the message, no byte more.
        limit_bytes: what the body may have.

    Raises:
        BadMessageError: it is none: the sentence says which rule it breaks.
    """
    if not text.startswith(VERSION + b" "):
        raise BadMessageError("cannot read a message: it does not begin with SEER/1.0")
    lines, place = _head(text)
    kind = lines[0][len(VERSION) + 1 :].decode("ascii", "replace")
    if kind not in KINDS:
        raise BadMessageError(f"cannot read a message: {names.shown(kind, 40)} is no kind of message")
    fields = _fields(lines[1:])
    for name in ("id", "src", "type"):
        if not names.is_name(fields.get(name, "")):
            raise BadMessageError(f"cannot read a message: its {name.title()} is missing or is no name")
    for name in ("dst", "dattrib"):
        if fields.get(name) and not names.is_name(fields[name]):
            raise BadMessageError(f"cannot read a message: its {name.title()} is no name")
    if fields.get("dst") and fields.get("dattrib"):
        raise BadMessageError("cannot read a message: it has both Dst and DAttrib")
    for name in ("content-length", "date", "period"):
        if name in fields and not _is_number(fields[name]):
            raise BadMessageError(f"cannot read a message: its {name.title()} is no number")
    if "content-length" not in fields:
        raise BadMessageError("cannot read a message: its Content-Length is missing")
    length = int(fields["content-length"])
    if length > limit_bytes:
        raise BadMessageError(f"cannot read a message: a body of {length} bytes, and {limit_bytes} are allowed")
    if len(text) - place != length:
        raise BadMessageError(f"cannot read a message: {len(text) - place} bytes of body where it says {length}")
    others = {name: value for name, value in fields.items() if name not in _OWN}
    dst, dattrib = fields.get("dst", ""), fields.get("dattrib", "")
    return Message(kind, fields["id"], fields["src"], fields["type"], text[place:], others, dst, dattrib)


def content(message: Message) -> bytes:
    """Return a message as it travels.

    Raises:
        BadMessageError: something in it cannot travel.
    """
    pairs = [("Id", message.id), ("Src", message.src), ("Dst", message.dst), ("DAttrib", message.dattrib)]
    pairs += [("Type", message.type), *((name.title(), value) for name, value in message.fields.items())]
    head = [f"SEER/1.0 {message.kind}", *(f"{name}: {value}" for name, value in pairs if value)]
    text = "\n".join([*head, f"Content-Length: {len(message.data)}", "", ""])
    made = text.encode("utf-8", "replace") + message.data
    # Whoever reads it is as strict as this.
    parse(made)
    return made


def _head(text: bytes) -> "tuple[list[bytes], int]":
    """Return the lines before the blank one, and where the body begins."""
    head = text[:HEAD_LIMIT_BYTES]
    first = head.find(b"\n")
    end = b"\r\n" if first > 0 and head[first - 1 : first] == b"\r" else b"\n"
    stop = head.find(end + end)
    if stop < 0:
        raise BadMessageError(f"cannot read a message: no blank line within {HEAD_LIMIT_BYTES} bytes")
    lines = head[:stop].split(end)
    if len(lines) > LINES_LIMIT:
        raise BadMessageError(f"cannot read a message: over {LINES_LIMIT} header lines")
    return lines, stop + 2 * len(end)


def _fields(lines: "list[bytes]") -> "dict[str, str]":
    fields: dict[str, str] = {}
    for line in lines:
        if len(line) > LINE_LIMIT_BYTES:
            raise BadMessageError(f"cannot read a message: a header of over {LINE_LIMIT_BYTES} bytes")
        name, colon, value = line.partition(b":")
        word = name.decode("ascii", "replace").lower()
        if not colon or not word or not _TOKEN.issuperset(word) or word[0] == "-":
            raise BadMessageError("cannot read a message: a line of its head is no header")
        if word in fields:
            raise BadMessageError(f"cannot read a message: its {word.title()} stands twice")
        try:
            told = value.decode("utf-8").strip(" ")
        except UnicodeDecodeError:
            raise BadMessageError(f"cannot read a message: its {word.title()} is not UTF-8") from None
        if not told.isprintable():
            raise BadMessageError(f"cannot read a message: its {word.title()} holds control characters")
        fields[word] = told
    return fields


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _MOST
