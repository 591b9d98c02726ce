# SPDX-License-Identifier: Apache-2.0
"""SEER/1.0 messages: what is read, what is refused, and nothing else ever raised."""

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infocluster.aggregate import signing, wire
from infocluster.aggregate.wire import BadMessageError, Message

HEAD = b"SEER/1.0 REPORT\nId: a-1\nSrc: node1\nType: FileOutput\nContent-Length: 3\n\nabc"
NAMES = st.text("abcXYZ019._", min_size=1, max_size=20).map(lambda text: "n" + text)
VALUES = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=50)


def test_message_is_read_in_either_line_end() -> None:
    for text in (HEAD, HEAD.replace(b"\n", b"\r\n")):
        message = wire.parse(text)
        found = (message.kind, message.id, message.src, message.node, message.type, message.data)
        assert found == ("REPORT", "a-1", "node1", "node1", "FileOutput", b"abc")
    other = wire.parse(HEAD.replace(b"Type:", b"Filename: a b.txt\nPeriod: 60\ntype:"))
    assert (other.filename, other.number("period"), other.nothing) == ("a b.txt", 60, "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"SEER/1.0", b"SEER/1.1", "does not begin"),
        (b"REPORT", b"report", "no kind"),
        (b"Id: a-1\n", b"", "Id is missing"),
        (b"a-1", b"../a", "Id is missing or is no name"),
        (b"node1", b"", "Src is missing"),
        (b"Src:", b"Id:", "stands twice"),
        (b"Src:", b"iD:", "stands twice"),
        (b"Content-Length: 3\n", b"", "Content-Length is missing"),
        (b": 3", b": 4", "3 bytes of body where it says 4"),
        (b": 3", b": 2", "3 bytes of body"),
        (b": 3", b": -3", "no number"),
        (b": 3", b": \xd9\xa3", "no number"),
        (b": 3", b": 99999999999999999", "no number"),
        (b": 3", b": 99999999", "are allowed"),
        (b"Src: node1", b"Src: node1\rX: y", "control"),
        (b"Src: node1", b"Src node1", "no header"),
        (b"Src: node1", b" Src: node1", "no header"),
        (b"Src: node1", b"Src: node\xff", "not UTF-8"),
        (b"Src: node1", b"Src: node1\nX: " + b"y" * 1024, "over 1024"),
        (b"Src: node1", b"\n".join([b"Src: node1", *(b"X-%d: y" % n for n in range(40))]), "over 32"),
        (b"Src: node1", b"Src: node1\nDst: a\nDAttrib: b", "both"),
        (b"Src: node1", b"Src: node1\nDst: a/b", "Dst is no name"),
        (b"Src: node1", b"Src: node1\nDate: soon", "Date is no number"),
        (b"\n\n", b"\n", "no blank line"),
        (b"\n\nabc", b"\n" + b"a" * 9000, "no blank line within"),
    ],
)
def test_what_is_not_to_the_letter_is_refused(old: bytes, new: bytes, said: str) -> None:
    assert old in HEAD
    with pytest.raises(BadMessageError, match=said):
        wire.parse(HEAD.replace(old, new, 1))


@given(NAMES, NAMES, NAMES, st.binary(max_size=200), st.dictionaries(st.sampled_from(["filename", "x-y"]), VALUES))
def test_what_is_written_is_read_again(
    message_id: str, src: str, kind: str, data: bytes, fields: dict[str, str]
) -> None:
    made = Message("REPORT", message_id, src, kind, data, fields)
    found = wire.parse(wire.content(made))
    assert (found.id, found.src, found.type, found.data, found.fields) == (message_id, src, kind, data, fields)


@settings(max_examples=1000)
@given(st.data())
def test_any_bytes_are_a_message_or_an_error_of_ours(data: st.DataObject) -> None:
    text = bytearray(HEAD)
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, len(text)))
        text[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        found = wire.parse(bytes(text))
    except BadMessageError:
        return
    assert wire.parse(wire.content(found)).data == found.data


def test_what_cannot_travel_is_not_written() -> None:
    with pytest.raises(BadMessageError):
        wire.content(Message("REPORT", "a", "b", "c", fields={"filename": "a\nId: other"}))


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_signature_is_hmac_sha256(key: bytes, body: bytes) -> None:
    text = b"POST\n/x\nnode1\nm1\n5\n" + hashlib.sha256(body).hexdigest().encode()
    assert signing.sign(key, "POST", "/x", "node1", "m1", 5, body) == hmac.digest(key, text, "sha256").hex()
