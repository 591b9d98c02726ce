# SPDX-License-Identifier: Apache-2.0
"""What a visitor sent is read as the library reads it, within limits, or answered with what is wrong."""

import os
from functools import partial
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster.web.request import Request, pairs
from infocluster.web.response import HttpError

FORM = b"application/x-www-form-urlencoded"
QUERY = st.text(st.sampled_from("ab=&+%0123456789afAF;zé \n\t")).map(lambda text: text.encode("ascii", "ignore"))


def post(body: bytes, **variables: bytes) -> Request:
    """Make a request whose body is waiting in a pipe."""
    read_end, write_end = os.pipe()
    os.write(write_end, body)
    os.close(write_end)
    send = partial(os.read, read_end)
    known = {b"REQUEST_METHOD": b"POST", b"CONTENT_TYPE": FORM, b"CONTENT_LENGTH": str(len(body)).encode()}
    return Request(known | {name.encode(): value for name, value in variables.items()}, {}, send)


@given(QUERY)
def test_fields_are_those_of_the_library(query: bytes) -> None:
    assert pairs(query) == parse_qsl(query.decode("ascii"), keep_blank_values=True)


@given(st.lists(st.tuples(st.text(), st.text())))
def test_fields_come_back_as_a_browser_encoded_them(fields: list[tuple[str, str]]) -> None:
    from urllib.parse import urlencode

    fields = [(n.encode("utf-8", "replace").decode(), v.encode("utf-8", "replace").decode()) for n, v in fields]
    assert pairs(urlencode(fields).encode()) == fields


def test_form_is_read() -> None:
    request = post(b"name=Ann+O%27Brien&empty=&name=2", CONTENT_TYPE=FORM + b"; charset=UTF-8")
    assert request.form(100) == [("name", "Ann O'Brien"), ("empty", ""), ("name", "2")]


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({"CONTENT_LENGTH": b""}, 411),
        ({"CONTENT_LENGTH": b"-1"}, 400),
        ({"CONTENT_LENGTH": b"1e3"}, 400),
        ({"CONTENT_LENGTH": "\u0663".encode()}, 400),
        ({"CONTENT_LENGTH": b"101"}, 413),
        ({"CONTENT_LENGTH": b"9" * 5000}, 413),
        ({"CONTENT_LENGTH": b"50"}, 400),
        ({"CONTENT_TYPE": b"text/plain"}, 415),
        ({"CONTENT_TYPE": b""}, 415),
    ],
)
def test_wrong_body_is_answered_with_what_is_wrong(variables: dict[str, bytes], status: int) -> None:
    with pytest.raises(HttpError) as caught:
        post(b"a=1", **variables).form(100)
    assert caught.value.http_status == status


def test_other_method_is_told_which_there_are() -> None:
    with pytest.raises(HttpError) as caught:
        post(b"").allow("GET", "HEAD")
    assert (caught.value.http_status, caught.value.fields) == (405, (("Allow", "GET, HEAD"),))
