# SPDX-License-Identifier: Apache-2.0
"""A reply is a valid one, and nothing in it was put there by a visitor."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster.web import response
from infocluster.web.response import Response, error_page


@given(st.text())
def test_escape_is_the_library_s(text: str) -> None:
    assert response.escaped(text) == html.escape(text)


def test_reply_has_its_length_and_head_has_no_body() -> None:
    reply = Response("é".encode(), response.TEXT)
    assert reply.message().endswith(b"Content-Length: 2\r\nX-Content-Type-Options: nosniff\r\n\r\n\xc3\xa9")
    assert reply.message(is_head=True) == reply.message()[:-2]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x=1", "a\nb"])
def test_line_end_in_a_field_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="line end"):
        Response(b"", fields=(("Location", value),)).message()


def test_error_page_escapes_its_sentence() -> None:
    assert b"<script>" not in error_page(400, "<script>").body
