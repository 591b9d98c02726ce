# SPDX-License-Identifier: Apache-2.0
"""What SSM2 carries unchanged, and what can be done about the rest.

SSM2 reads a message as ASCII, signs it as text and sends it: it fails on bytes over 127 and leaves that element
locked, cuts a message at a NUL, turns other controls into ends of lines, and takes a text that names S/MIME's own
type for an encrypted one. Blanks and ends of lines at the very end do not arrive. A broker takes 1 MB, signature
included.

Source: SSM2 documentation ("this limits messages to ASCII"); RFC 8551 3.5; RFC 4648 4.
"""

import base64

from infocluster.errors import BadInputError

# 1 MB less what a signature and its certificates take.
LIMIT_BYTES = 1_000_000 - 16_384
# What stands between two records of a message.
SEPARATOR = b"%%"

_CARRIED = frozenset(b"\t\n" + bytes(range(0x20, 0x7F)))
_TAKEN_FOR_ENCRYPTED = b"application/pkcs7-mime"
_LONGEST_CONTENT = 3
# A line of base64 with its end, and what it holds.
_LINE_BYTES, _HELD_BYTES = 77, 57


def faults(content: bytes, limit_bytes: int = LIMIT_BYTES) -> list[str]:
    """Return why SSM2 would not carry a content as it is: a sentence each, none where it would.

    Args:
        content: what would be added to its outgoing directory.
        limit_bytes: what a message may have.
    """
    found = []
    if not content.strip():
        found.append("it is empty: SSM2 rejects it")
    strange = sorted(set(content) - _CARRIED)
    if strange:
        place = next(place for place, byte in enumerate(content) if byte not in _CARRIED)
        line = content.count(b"\n", 0, place) + 1
        shown = " ".join(f"0x{byte:02x}" for byte in strange[:_LONGEST_CONTENT])
        more = " and more" if len(strange) > _LONGEST_CONTENT else ""
        found.append(f"line {line} holds bytes that are no printable ASCII ({shown}{more}): -base64 encodes it")
    if _TAKEN_FOR_ENCRYPTED in content:
        found.append(
            f"it holds {_TAKEN_FOR_ENCRYPTED.decode()!r} and would be taken for encrypted: -base64 encodes it"
        )
    if len(content) > limit_bytes:
        found.append(f"it has {len(content)} bytes, and {limit_bytes} are allowed: -split makes several of it")
    return found


def encoded(content: bytes) -> bytes:
    """Return a content in base64, in lines of 76 characters."""
    return base64.encodebytes(content)


def before_encoding(limit_bytes: int) -> int:
    """Return how many bytes a content may have so that it is within a limit in base64."""
    return limit_bytes // _LINE_BYTES * _HELD_BYTES


def split(content: bytes, limit_bytes: int = LIMIT_BYTES) -> list[bytes]:
    """Return a message of many records as several, each within the limit and each with the first line, which says
    what it is.

    Args:
        content: a first line, and records with a line ``%%`` between them, as APEL's messages are.
        limit_bytes: what a message may have.

    Raises:
        BadInputError: a single record is too large, or there is no line between records.
    """
    if len(content) <= limit_bytes:
        return [content]
    head, _, body = content.partition(b"\n")
    records = [record.strip(b"\n") for record in (b"\n" + body + b"\n").split(b"\n" + SEPARATOR + b"\n")]
    messages: list[bytes] = []
    message = b""
    for record in filter(None, records):
        block = record + b"\n" + SEPARATOR + b"\n"
        if len(head) + 1 + len(block) > limit_bytes:
            raise BadInputError(
                f"cannot split the message: a record of it has {len(record)} bytes, and {limit_bytes} are allowed"
            )
        if message and len(message) + len(block) > limit_bytes:
            messages.append(message)
            message = b""
        message = (message or head + b"\n") + block
    if not message:
        raise BadInputError(
            f"cannot split the message: its {len(content)} bytes hold no record behind the first line"
        )
    return [*messages, message]
