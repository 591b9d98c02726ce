# SPDX-License-Identifier: Apache-2.0
"""form.cgi as a process: a form is shown, taken once, or shown again with its faults; every body has its status."""

import hashlib
import hmac
import html
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from dirq.QueueSimple import QueueSimple
from hypothesis import given
from hypothesis import strategies as st

from cgi_bin import capture, form_site
from cgi_bin.form_site import BODIES, declare, post, records, token, uploads
from conftest import ROOT, Reply, Site
from infocluster import secrets
from infocluster.apps import forms_token

HEAVY = {"os", "re", "json", "tomllib", "typing", "urllib", "urllib.parse", "jinja2", "filelock", "python_multipart",
         "contextlib", "collections", "enum", "logging", "pathlib", "dataclasses", "functools",
         "hashlib", "hmac"}  # fmt: skip


@pytest.fixture
def book(site: Site) -> Site:
    declare(site)
    return site


def good(**changes: str) -> bytes:
    return urlencode({"form_token": token(), "name": "Ann", "entry": "Hello", **changes}).encode()


def compile_forms(site: Site) -> None:
    done = site.batch("check-site", "-compile")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted(BODIES.iterdir()), ids=lambda file: file.stem)
def test_body_of_the_corpus_has_its_status_and_leaves_nothing(book: Site, file: Path) -> None:
    variables, body = form_site.body_of(file, token())
    reply = book.cgi("form.cgi", "POST", body, PATH_INFO="/guestbook", **variables)
    assert reply.status == int(file.name[:3]), reply.body[-1500:]
    assert reply.exit_status == 0
    assert "Traceback" not in reply.errors
    taken = records(book)
    assert len(taken) == (reply.status == 303)
    named = [told["file"] for record in taken for told in record["picture"]]
    assert [path.name for path in uploads(book)] == named
    for record in taken:
        for told, path in zip(record["picture"], uploads(book), strict=True):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"]
            assert told["bytes"] == path.stat().st_size
            assert "/" not in told["name"] and "\\" not in told["name"].replace('\\"', "")


@pytest.mark.parametrize("case", capture.CASES)
@pytest.mark.parametrize("browser", ["chromium", "firefox", "webkitgtk", "curl"])
def test_what_a_browser_sent_is_kept_as_it_was_typed(book: Site, browser: str, case: str) -> None:
    variables, body = form_site.body_of(BODIES / f"303-{browser}-{case}.body", token())
    assert book.cgi("form.cgi", "POST", body, PATH_INFO="/guestbook", **variables).status == 303
    (record,) = records(book)
    typed = {name: capture.FIELDS[name] for name in ("name", "email", "entry")}
    assert {name: record[name] for name in typed} == typed
    _, file_name = capture.CASES[case]
    shown = [(told["name"], told["bytes"], told["type"]) for told in record["picture"]]
    name = (file_name or "").rpartition("\\")[2]
    assert shown == ([(name, len(capture.png()), "image/png")] if file_name else [])


def test_person_gets_the_form_fills_it_and_is_thanked(book: Site) -> None:
    shown = book.cgi("form.cgi", PATH_INFO="/guestbook")
    assert (shown.status, shown.fields["Cache-Control"]) == (200, "no-store")
    page = shown.body.decode()
    assert "Guest &lt;b&gt;book&lt;/b&gt;" in page and "<b>book" not in page
    assert 'enctype="multipart/form-data"' in page and "<script" not in page
    (given,) = re.findall(r'name="form_token" value="([^"]+)"', page)
    soon = post(book, urlencode({"form_token": given, "name": "Ann", "entry": "x"}).encode())
    assert soon.status == 422 and b"very fast" in soon.body and not records(book)
    stamp, nonce, _ = given.split(".")
    earlier = f"{int(stamp, 16) - 60:x}"
    assert forms_token._signature("guestbook", stamp, nonce, form_site.SECRET) == given.split(".")[2]
    older = f"{earlier}.{nonce}.{forms_token._signature('guestbook', earlier, nonce, form_site.SECRET)}"
    taken = post(book, urlencode({"form_token": older, "name": "Ann", "entry": "x\r\ny"}).encode())
    assert (taken.status, taken.body) == (303, b"")
    (record,) = records(book)
    assert record["id"] == hashlib.sha256(older.encode()).hexdigest()[:32]
    assert (record["name"], record["entry"], record["picture"]) == ("Ann", "x\ny", [])
    where, _, query = taken.fields["Location"].partition("?")
    assert where == "/cgi-bin/form.cgi/guestbook"
    thanks = book.cgi("form.cgi", PATH_INFO="/guestbook", QUERY_STRING=query)
    assert thanks.status == 200 and b"Thank you." in thanks.body
    pushed = book.delivered("web1") / "world/forms/guestbook/thanks.html"
    pushed.parent.mkdir(parents=True)
    pushed.write_bytes(b"pushed")
    assert post(book, good()).fields["Location"] == "/forms/guestbook/thanks.html"


def test_bad_answer_shows_the_form_with_faults_and_what_was_typed_all_escaped(book: Site) -> None:
    attack = "\"'><script>alert(1)</script>{{7*7}}"
    reply = post(book, good(name=attack * 4, email=attack, entry="a\tb\r\n</textarea>" + attack))
    assert reply.status == 422 and not records(book)
    page = reply.body.decode()
    assert "<script" not in page and "</textarea><" not in page.replace("</textarea>\n", "")
    text = html.unescape(page)
    assert f'value="{attack * 4}"' in text and "a\tb\n</textarea>" + attack + "</textarea>" in text
    assert "This is too long" in text and "This is no e-mail address" in text
    assert page.count('aria-invalid="true"') == 2 and 'href="#f-email"' in page
    kept = re.search(r'name="form_token" value="([^"]+)"', page)
    assert kept
    corrected = post(book, urlencode({"form_token": kept[1], "name": "Ann", "entry": "x"}).encode())
    assert corrected.status == 303 and len(records(book)) == 1


@pytest.mark.parametrize("store", form_site.STORES)
def test_texts_too_long_for_a_record_are_shown_again_and_leave_no_file(book: Site, store: str) -> None:
    text = form_site.GUESTBOOK.replace("body_kb = 8", "body_kb = 60").replace("length = 2000", "length = 60000")
    declare(book, text=form_site.stored_as(store, text))
    variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token())
    body = body.replace(b"one\r\ntwo", b'"' * 40000)  # each of them is two bytes of JSON
    variables["CONTENT_LENGTH"] = str(len(body))
    reply = book.cgi("form.cgi", "POST", body, PATH_INFO="/guestbook", **variables)
    assert reply.status == 422 and '"' * 40000 in html.unescape(reply.body.decode())
    assert b"all texts together" in reply.body and b"choose the file again" in reply.body
    assert not records(book) and not uploads(book)


@pytest.mark.parametrize("store", form_site.STORES)
def test_double_click_is_one_record_by_id_whichever_servers_it_reaches(book: Site, store: str) -> None:
    declare(book, text=form_site.stored_as(store))
    body = good()
    assert [post(book, body, server=server).status for server in ("web1", "web1", "web2")] == [303] * 3
    ids = {record["id"] for server in ("web1", "web2") for record in records(book, server=server)}
    assert len(ids) == 1 and len(records(book)) == (1 if store == "entries" else 2)


def test_answer_in_a_queue_is_an_element_that_others_can_consume(book: Site) -> None:
    declare(book, text=form_site.stored_as("queue"))
    assert post(book, good()).status == 303
    queue = QueueSimple(str(book.gather() / "form-guestbook"))
    (name,) = queue.names()
    assert queue.lock(name)
    record = json.loads(queue.get(name))
    queue.remove(name)
    assert record["entry"] == "Hello" and len(record["id"]) == 32


def test_entry_a_file_is_written_once(book: Site) -> None:
    declare(book, text=form_site.stored_as("entries"))
    body = good()
    assert [post(book, body).status for _ in range(2)] == [303, 303]
    assert len(records(book)) == 1
    assert [path.suffix for path in (book.gather() / "form-guestbook").iterdir()] == [".json"]


def test_token_of_another_form_an_old_one_and_one_from_the_future_are_not_taken(book: Site) -> None:
    for stale in (token("other"), token(age_s=25 * 3600), token(age_s=-3600)):
        reply = post(book, good(form_token=stale))
        assert reply.status == 422 and stale.encode() not in reply.body
        assert b'value="Ann"' in reply.body
    assert not records(book)


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({"HTTP_ORIGIN": "https://www.example.org", "HTTP_HOST": "www.example.org"}, 303),
        ({"HTTP_ORIGIN": "http://localhost:8080", "HTTP_HOST": "localhost:8080"}, 303),
        ({"HTTP_ORIGIN": "http://localhost", "HTTP_HOST": "inside.example.org"}, 303),
        ({"HTTP_ORIGIN": "https://evil.example", "HTTP_HOST": "www.example.org"}, 403),
        ({"HTTP_ORIGIN": "https://www.example.org.evil.example", "HTTP_HOST": "www.example.org"}, 403),
        ({"HTTP_ORIGIN": "null", "HTTP_HOST": "www.example.org"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "cross-site"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "same-origin"}, 303),
    ],
)
def test_form_is_taken_from_its_own_site_alone(book: Site, variables: dict[str, str], status: int) -> None:
    assert post(book, good(), **variables).status == status
    assert len(records(book)) == (status == 303)


def test_address_has_so_many_answers_an_hour(book: Site) -> None:
    declare(book, text=form_site.GUESTBOOK.replace("per_hour = 0", "per_hour = 2"))

    def status(address: str) -> Reply:
        return post(book, good(), REMOTE_ADDR=address)

    assert [status("192.0.2.7").status for _ in range(3)] == [303, 303, 429]
    assert 0 < int(status("192.0.2.7").fields["Retry-After"]) <= 3600
    assert status("192.0.2.8").status == 303
    assert [status(f"2001:db8::{n}").status for n in range(3)] == [303, 303, 429]
    assert status("2001:db8:0:1::1").status == 303
    (hour,) = (book.gather() / "form-guestbook.rate").iterdir()
    old = hour.with_name("2020010100")
    hour.rename(old)
    assert status("192.0.2.7").status == 303 and not old.exists()


@pytest.mark.parametrize("name", ["", "other", "../infocluster", "guestbook/x", "x" * 300, "guestbook.toml", "%00"])
def test_form_that_is_not_declared_is_404(book: Site, name: str) -> None:
    assert book.cgi("form.cgi", PATH_INFO=f"/{name}").status == 404


def test_declaration_that_is_wrong_is_500_to_the_visitor_and_a_line_to_the_log(book: Site) -> None:
    declare(book, text="title = 7\n")
    reply = book.cgi("form.cgi", PATH_INFO="/guestbook")
    assert reply.status == 500 and b"guestbook" not in reply.body
    assert "guestbook.toml:1: title: '7': expected a text" in reply.errors


def test_head_shows_nothing_and_other_methods_are_refused(book: Site) -> None:
    assert book.cgi("form.cgi", "PUT", PATH_INFO="/guestbook").status == 405


def test_gather_directory_that_is_gone_is_503_and_keeps_no_half(book: Site) -> None:
    reply = post(book, good(), SERVER_GATHER=str(book.root / "nowhere"))
    assert reply.status == 503 and b"nowhere" not in reply.body


def loaded(site: Site, body: bytes | None) -> set[str]:
    """Return the modules that a hit loads."""
    program = (
        "import sys, posix; from infocluster.web import cgi; from infocluster.web.request import Request\n"
        "reply = cgi.answer('infocluster.apps.forms:answer', Request(posix.environ))\n"
        "print(reply.status, *sys.modules)"
    )
    variables = {
        "REQUEST_METHOD": "POST" if body else "GET",
        "PATH_INFO": "/guestbook",
        "SERVER_GATHER": str(site.gather()),
    }
    if body:
        variables |= {"CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": str(len(body))}
    command = [sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'lib')!r})\n{program}"]
    environment = site.environment(**variables)
    done = subprocess.run(command, env=environment, input=body or b"", capture_output=True, check=True)
    status, *modules = done.stdout.decode().split()
    assert status == ("303" if body else "200")
    return set(modules)


def test_short_form_loads_no_library(site: Site) -> None:
    declare(site, text=form_site.GUESTBOOK.replace("per_hour = 0", "per_hour = 9"))
    compile_forms(site)
    site.batch("check-site", "-compile")
    assert loaded(site, None) & HEAVY == set()
    assert loaded(site, good(name="Ann O'Brien", entry="a\nb")) & HEAVY == set()


def test_compiled_form_counts_exactly_while_its_declaration_is_the_same(book: Site) -> None:
    compile_forms(book)
    file = book.root / "etc/forms/guestbook.toml"
    assert file.with_suffix(".toml.compiled").exists()
    declare(book, text=form_site.GUESTBOOK.replace("Your name", "How you are called"))
    assert b"How you are called" in book.cgi("form.cgi", PATH_INFO="/guestbook").body


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_digest_is_the_librarys(key: bytes, content: bytes) -> None:
    assert secrets.hmac(key, content) == hmac.digest(key, content, "sha256")


@given(st.text(max_size=60))
def test_nothing_but_a_token_is_a_token(text: str) -> None:
    assert forms_token.look(text, "guestbook", time.time(), 60, form_site.SECRET) == (forms_token.WRONG, 0.0)
