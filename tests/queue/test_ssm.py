# SPDX-License-Identifier: Apache-2.0
"""What SSM2 carries, and what is made of the rest."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster.errors import BadInputError
from infocluster.queue import ssm


def test_printable_text_in_lines_is_carried() -> None:
    assert ssm.faults(b"APEL-summary-job-message: v0.3\nSite: a\tb ~\n%%\n") == []
    assert ssm.faults(b"x" * 1000, 1000) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"one\ntwo\xc3\xbc\n", "line 2 holds bytes that are no printable ASCII (0xbc 0xc3)"),
        (b"\xef\xbb\xbfone\n", "line 1 holds"),
        (b"a\0b\n", "0x00"),
        (b"a\r\n", "0x0d"),
        (b"a\x0cb\x1c\x7f\x0b\n", "0x0b 0x0c 0x1c and more"),
        (b"Content-Type: application/pkcs7-mime\n", "taken for encrypted"),
        (b"x" * 1001, "1001 bytes, and 1000 are allowed"),
    ],
)
def test_what_is_not_carried_is_told(content: bytes, words: str) -> None:
    found = ssm.faults(content, 1000)
    assert len(found) == 1 and words in found[0]


@given(st.binary(min_size=1))
def test_every_content_is_carried_in_base64(content: bytes) -> None:
    assert ssm.faults(ssm.encoded(content)) == []
    assert base64.b64decode(ssm.encoded(content)) == content


@given(st.lists(st.text("abc: \n", min_size=1, max_size=30).filter(str.strip), min_size=1), st.integers(60, 200))
def test_parts_of_a_message_hold_its_records_once_each_under_its_first_line(texts: list[str], limit: int) -> None:
    records = [text.strip("\n").encode() for text in texts]
    content = b"head: v1\n" + b"".join(record + b"\n%%\n" for record in records)
    parts = ssm.split(content, limit)
    assert all(part.startswith(b"head: v1\n") and len(part) <= limit for part in parts)
    found = [record for part in parts for record in part.partition(b"\n")[2].split(b"\n%%\n") if record]
    assert found == records


@given(st.integers(77, 1000))
def test_what_is_within_the_limit_before_it_is_encoded_is_so_afterwards(limit: int) -> None:
    assert limit - 77 < len(ssm.encoded(b"x" * ssm.before_encoding(limit))) <= limit


def test_record_that_is_too_large_cannot_be_split() -> None:
    with pytest.raises(BadInputError, match="200 bytes, and 100"):
        ssm.split(b"head\n" + b"x" * 200, 100)
    for content in (b"x" * 200, b"x" * 200 + b"\n%%\n"):
        with pytest.raises(BadInputError, match="no record behind the first line"):
            ssm.split(content, 100)
