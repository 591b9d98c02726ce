# SPDX-License-Identifier: Apache-2.0
"""moderate.cgi as a process: the link in a letter decides nothing by itself, a press does, and the last counts."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

import mailserver
from cgi_bin import form_site
from cgi_bin.form_site import GUESTBOOK, declare, post, token
from conftest import Reply, Site
from infocluster.apps import forms_moderation

OURS = {"HTTP_HOST": "www.example.org", "HTTP_ORIGIN": "https://www.example.org"}


@pytest.fixture
def server() -> Iterator[mailserver.MailServer]:
    with mailserver.running() as running:
        yield running


@pytest.fixture
def book(site: Site, server: mailserver.MailServer) -> Site:
    site.configure(
        '[site]\nname = "Example"\nurl = "https://www.example.org/"\n'
        f'[mail]\nsmtp_host = "127.0.0.1"\nsmtp_port = {server.port}\n'
    )
    declare(site)
    return site


def night(site: Site, *arguments: str) -> str:
    done = site.batch("forms-nightly", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def links(server: mailserver.MailServer) -> dict[str, str]:
    """Return the links of all letters by the answer they are for."""
    found = {}
    for _, letter in server.taken:
        plain, html = letter.get_body(("plain",)), letter.get_body(("html",))
        assert plain and html
        told = re.findall(r"https://\S+moderate\.cgi/\S+", plain.get_content())
        assert told and told == re.findall(r'href="(https://[^"]+moderate\.cgi[^"]+)"', html.get_content())
        found |= {urlsplit(link).query.partition(".")[0]: link for link in told}
    return found


def visit(site: Site, link: str, method: str = "GET", said: str = "", server: str = "web1", **told: str) -> Reply:
    parts = urlsplit(link)
    variables = {"PATH_INFO": parts.path.partition("moderate.cgi")[2], "QUERY_STRING": parts.query, **told}
    if method == "POST":
        body = urlencode({"state": said}).encode()
        kind = {"CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": str(len(body))}
        return site.cgi("moderate.cgi", "POST", body, server, **{**kind, **OURS, **variables})
    return site.cgi("moderate.cgi", method, b"", server, **variables)


def decided(site: Site, server: str = "web1") -> list[Path]:
    return sorted((site.gather(server) / "decisions-guestbook").glob("*"))


def published(site: Site) -> str:
    return (site.production / "world/forms/guestbook/index.html").read_text()


def sent(site: Site, server: mailserver.MailServer, entry: str) -> str:
    """Send an answer, let the night mail it, and return its link."""
    known = set(links(server)) if server.taken else set()
    body = urlencode({"form_token": token(), "name": "Ann", "entry": entry}).encode()
    assert post(site, body).status == 303
    night(site)
    ((_, link),) = [item for item in links(server).items() if item[0] not in known]
    return link


def test_link_changes_nothing_until_a_button_is_pressed_and_the_last_word_counts(
    book: Site, server: mailserver.MailServer
) -> None:
    link, other = sent(book, server, "Good <b>morning"), sent(book, server, "to be kept away")
    # Whatever looks through letters follows links.
    for method in ("GET", "HEAD"):
        seen = visit(book, link, method)
        assert (seen.status, seen.fields["Cache-Control"]) == (200, "no-store")
    page = visit(book, link).body.decode()
    assert page.count("<button") == 2 and "Guest &lt;b&gt;book" in page and "<script" not in page
    assert not decided(book) and "1 answer" not in night(book)
    assert "Good" not in published(book)

    taken = visit(book, link, "POST", "shown")
    assert taken.status == 200 and b"Noted: it is published" in taken.body
    assert b"Noted: it is not published" in visit(book, other, "POST", "hidden").body
    night(book)
    assert "Good &lt;b&gt;morning" in published(book) and "kept away" not in published(book)
    told = (book.production / "gather/marks/decisions-guestbook.json").read_text()
    assert json.loads(told)["marks"][0]["offset"] == decided(book)[0].stat().st_size

    # Words that come by two servers and by the command: the time says which one was last, not the order of reading.
    visit(book, link, "POST", "shown", server="web2")
    visit(book, link, "POST", "hidden", server="web1")
    night(book)
    assert "Good" not in published(book)
    visit(book, link, "POST", "shown", server="web1")
    night(book, "-hide", urlsplit(link).query[:10])
    night(book)
    assert "Good" not in published(book)
    visit(book, link, "POST", "shown", server="web3")
    night(book)
    assert "Good" in published(book)


def test_what_is_no_link_of_ours_decides_nothing(book: Site, server: mailserver.MailServer) -> None:
    link = sent(book, server, "Hello")
    answer_id, stamp, signature = urlsplit(link).query.split(".")
    declare(book, "other")
    declare(book, "open", GUESTBOOK.replace("moderate = true", "moderate = false"))
    base = link.partition("?")[0]
    wrong = {
        f"{base}?{answer_id}.{stamp}.{signature[:-1]}{'1' if signature[-1] == '0' else '0'}": 403,
        f"{base}?{answer_id}.{int(stamp, 16) + 1:x}.{signature}": 403,
        f"{base}?{'0' * 32}.{stamp}.{signature}": 403,
        f"{base}?{answer_id}.{stamp}": 403,
        f"{base}?": 403,
        f"{base}?{answer_id}.zz.\u00e4": 403,
        link.replace("/guestbook?", "/other?"): 403,
        link.replace("/guestbook?", "/open?"): 404,
        link.replace("/guestbook?", "/nosuch?"): 404,
        link.replace("/guestbook?", "/../etc?"): 404,
    }
    past = time.time() - (forms_moderation.OPEN_DAYS + 1) * 86400
    settings = {"site": {"url": "https://www.example.org/", "cgi_url": "/cgi-bin/"}}
    wrong[forms_moderation.link("guestbook", answer_id, past, settings, form_site.SECRET)] = 403
    for one, status in wrong.items():
        assert visit(book, one).status == status, one
        assert visit(book, one, "POST", "shown").status == status, one
    foreign = {"HTTP_ORIGIN": "https://elsewhere.example"}
    assert visit(book, link, "POST", "shown", **foreign).status == 403
    assert visit(book, link, "POST", "shown", HTTP_ORIGIN="", HTTP_SEC_FETCH_SITE="cross-site").status == 403
    assert visit(book, link, "POST", "perhaps").status == 422
    assert visit(book, link, "POST", "shown", CONTENT_TYPE="text/plain").status == 415
    assert visit(book, link, "POST", "shown", CONTENT_LENGTH="5000").status == 413
    assert visit(book, link, "DELETE").status == 405
    assert not decided(book)
    # What somebody else wrote into the gather directory is told, and decides nothing either.
    assert visit(book, link, "POST", "hidden").status == 200
    (segment,) = decided(book)
    right = {"id": "0" * 24, "time": 1.0, "answer": answer_id, "state": "shown"}
    lines = [b"[]", b"\xff", *(json.dumps({**right, **bad}).encode() for bad in (
        {"answer": "../x"}, {"state": "new"}, {"state": ["shown"]}, {"time": "now"}, {"id": 1}))]  # fmt: skip
    with segment.open("ab") as file:
        file.write(b"\n".join([*lines, json.dumps(right).encode(), b'{"torn":']))
    done = book.batch("forms-nightly")
    assert done.returncode == 1 and f"cannot use {len(lines)} lines of {segment}" in done.stderr
    assert "Hello" not in published(book)


def test_answer_that_is_erased_stays_so_whatever_is_decided_of_it(book: Site, server: mailserver.MailServer) -> None:
    link = sent(book, server, "Hello")
    visit(book, link, "POST", "shown")
    night(book, "-erase", "name=Ann")
    night(book)
    assert visit(book, link, "POST", "shown").status == 200
    night(book)
    assert "Hello" not in published(book)


def test_letter_without_a_secret_has_no_links_and_says_why(book: Site, server: mailserver.MailServer) -> None:
    body = urlencode({"form_token": token(), "name": "Ann", "entry": "Hello"}).encode()
    assert post(book, body).status == 303
    secret = book.root / "etc/secrets/forms"
    secret.unlink()
    done = book.batch("forms-nightly")
    assert done.returncode == 1 and f"has no links to decide by: cannot read {secret}" in done.stderr
    ((_, letter),) = server.taken
    plain = letter.get_body(("plain",))
    assert plain and "moderate.cgi" not in plain.get_content() and "forms-nightly -publish ID" in plain.get_content()
    assert f"{secret} is missing" in book.batch("check-site").stderr
