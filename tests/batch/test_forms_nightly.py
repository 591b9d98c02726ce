# SPDX-License-Identifier: Apache-2.0
"""forms-nightly as a process, fed by form.cgi as a process, mailed to a real server."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest

import mailserver
import steps
from cgi_bin import form_site
from cgi_bin.form_site import BODIES, GUESTBOOK, declare, post, records, stored_as, token
from conftest import ROOT, Site
from infocluster.apps import forms_check

PNG = (BODIES / "303-safari-multipart.body").read_bytes()


@pytest.fixture
def server() -> Iterator[mailserver.MailServer]:
    with mailserver.running() as running:
        yield running


@pytest.fixture
def book(site: Site, server: mailserver.MailServer) -> Site:
    configure(site, server.port)
    declare(site)
    return site


@pytest.fixture(params=form_site.STORES)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stored(book: Site, store: str) -> Site:
    """The same form, its answers in each store in turn."""
    declare(book, text=stored_as(store))
    return book


def configure(site: Site, port: int) -> None:
    site.configure(
        f'[site]\nname = "Example"\n[mail]\nsmtp_host = "127.0.0.1"\nsmtp_port = {port}\nfrom = "www@example.org"\n'
    )


def send(site: Site, server: str = "web1", **fields: str) -> None:
    body = urlencode({"form_token": token(), "name": "Ann", "entry": "Hello", **fields}).encode()
    assert post(site, body, server=server).status == 303


def send_picture(site: Site, server: str = "web1") -> None:
    variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token())
    assert site.cgi("form.cgi", "POST", body, server, PATH_INFO="/guestbook", **variables).status == 303


def night(site: Site, *arguments: str, status: int = 0) -> str:
    done = site.batch("forms-nightly", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def kept(site: Site) -> Path:
    return site.state / "forms/guestbook"


def rows(site: Site) -> list[dict[str, str]]:
    texts = [path.read_text(encoding="utf-8-sig") for path in sorted(kept(site).glob("*.csv"))]
    return [row for text in texts for row in csv.DictReader(io.StringIO(text))]


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def published(site: Site) -> str:
    return (site.production / "world/forms/guestbook/index.html").read_text()


def test_answers_of_all_servers_are_kept_published_when_marked_and_mailed_once(
    stored: Site, store: str, server: mailserver.MailServer
) -> None:
    book = stored
    send(book, "web1", name="Ann <b>", entry="=1+1", email="ann@example.org")
    send_picture(book, "web2")
    told = night(book)
    assert "forms-nightly: 2 new answers to 1 form" in told
    marks = json.loads((book.production / "gather/marks/form-guestbook.json").read_text())
    # Who may, consumes what was read of a queue: nothing is left for its owner to sweep.
    assert {mark["server"] for mark in marks["marks"]} == (set() if store == "queue" else {"web1", "web2"})
    one, two = sorted(rows(book), key=lambda row: row["entry"])
    assert (one["name"], one["entry"], one["email"], one["state"]) == ("Ann <b>", "'=1+1", "ann@example.org", "new")
    listed = [json.loads(path.read_text()) for path in kept(book).glob("*.json")]
    assert {answer["entry"] for day in listed for answer in day["answers"]} == {"=1+1", "one\ntwo"}
    summary = (kept(book) / "summary.html").read_text()
    assert summary.count("<svg") >= 5 and "2 answers are kept" in summary
    ((to, letter),) = server.taken
    assert to == ["www-mgmt@localhost"] and letter["Subject"] == "Example: Guest <b>book</b>: 2 answers"
    plain, html = letter.get_body(("plain",)), letter.get_body(("html",))
    assert plain and html
    assert "Your entry: one\n    two" in plain.get_content().replace("\r\n", "\n")
    assert "Address? ann@example.org" in plain.get_content() and "Your entry: =1+1" in plain.get_content()
    assert re.search(r"<td[^>]*>Ann &lt;b&gt;</td>", html.get_content())
    assert re.search(r"<td[^>]*white-space:pre-line[^>]*>one\r?\ntwo</td>", html.get_content())
    table, picture = letter.iter_attachments()
    assert table.get_filename() == "guestbook.csv" and "'=1+1" in table.get_content()
    assert picture.get_content_type() == "image/png" and picture.get_content() in PNG
    # Nothing is published before a person says so.
    assert "Nothing is here yet." in published(book)
    assert one["id"] in night(book, "-waiting")
    assert "world/forms" in night(book, "-publish", two["id"][:10])
    assert "one\ntwo" in published(book) and "=1+1" not in published(book)
    (image,) = re.findall(r'<img src="([^"]+)"', published(book))
    assert (book.production / "world/forms/guestbook" / image).read_bytes() == picture.get_content()
    night(book, "-hide", two["id"][:10])
    assert "one\ntwo" not in published(book)
    assert not (book.production / "world/forms/guestbook" / image).exists()
    assert "0 new answers" in night(book) and len(server.taken) == 1


def test_plain_letter_has_nothing_that_steers_a_terminal_or_turns_a_line(
    book: Site, server: mailserver.MailServer
) -> None:
    variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token())
    body = re.sub(rb'filename="[^"]*"', b'filename="\x1b[2J.png"', body).replace(b"one\r\n", "o\u202ene\r\n".encode())
    variables["CONTENT_LENGTH"] = str(len(body))
    assert book.cgi("form.cgi", "POST", body, PATH_INFO="/guestbook", **variables).status == 303
    night(book)
    plain = server.taken[0][1].get_body(("plain",))
    assert plain and "Your entry: one\n    two\nA picture: [2J.png (" in plain.get_content().replace("\r\n", "\n")


def test_private_fields_are_not_published(book: Site) -> None:
    declare(book, text=GUESTBOOK.replace("moderate = true", "moderate = false"))
    send(book, email="ann@example.org", entry="<script>alert(1)</script>")
    night(book)
    page = published(book)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "ann@example.org" not in page


def test_double_click_that_reached_two_servers_counts_once(stored: Site) -> None:
    book = stored
    body = urlencode({"form_token": token(), "name": "Ann", "entry": "x"}).encode()
    for server in ("web1", "web1", "web2"):
        assert post(book, body, server=server).status == 303
    assert "1 new answer to" in night(book)
    assert len(rows(book)) == 1


def test_change_of_the_store_loses_nothing_and_counts_nothing_twice(book: Site) -> None:
    stores = (*form_site.STORES, "segment")
    for number, store in enumerate(stores):
        declare(book, text=stored_as(store))
        send(book, entry=f"{store} {number}")
    assert "4 new answers" in night(book)
    assert {row["entry"] for row in rows(book)} == {f"{store} {number}" for number, store in enumerate(stores)}
    assert "0 new answers" in night(book)


@pytest.mark.root
def test_what_was_read_is_swept_by_its_owner_and_its_files_with_it(
    open_dir: Path, store: str, server: mailserver.MailServer
) -> None:
    """The night runs as a user who may only read what is gathered."""
    site = Site(open_dir / "site").build()
    (site.root / "var/wwwdev/gather/marks").mkdir(parents=True)
    site.protect("gather/marks", "*\n")
    site.conf_file.write_text(
        f'[gather]\nkeep_days = 0\n[mail]\nsmtp_host = "127.0.0.1"\nsmtp_port = {server.port}\n'
    )
    declare(site, text=stored_as(store))
    for path in (site.state, site.production, site.root / "var/wwwdev"):
        subprocess.run(["chown", "-R", "61001", str(path)], check=True)

    def night_and_sweep() -> None:
        command, owner = [sys.executable, str(ROOT / "batch/forms-nightly")], {"user": 61001, "group": 61001}
        done = subprocess.run(
            command, env=site.environment(), capture_output=True, text=True, check=False, extra_groups=(), **owner
        )
        assert (done.returncode, done.stderr) == (0, "") and "1 new answer to" in done.stdout
        swept()

    def swept() -> None:
        for upload in form_site.uploads(site):
            os.utime(upload, (0, 0))
        done = site.batch("gather-sweep", SERVER_GATHER=str(site.gather()))
        assert (done.returncode, done.stderr) == (0, "")

    def left() -> tuple[int, int]:
        return len(records(site)), len(form_site.uploads(site))

    send_picture(site)
    night_and_sweep()
    # A segment stays until its day is over, and with it what its records name.
    assert left() == ((1, 1) if store == "segment" else (0, 0))
    send_picture(site)
    swept()
    assert left() == ((2, 2) if store == "segment" else (1, 1))  # the batch host has not read it
    night_and_sweep()
    if store == "segment":
        (segment,) = (site.gather() / "form-guestbook").iterdir()
        yesterday = segment.with_name(time.strftime("%Y-%m-%d.jsonl", time.gmtime(time.time() - 86400)))
        marks = site.production / "gather/marks/form-guestbook.json"
        marks.write_text(marks.read_text().replace(segment.name, yesterday.name))
        segment.rename(yesterday)
        swept()
    assert left() == (0, 0)


def test_line_that_is_no_record_is_counted_and_told_and_hides_nothing(book: Site) -> None:
    send(book)
    (segment,) = (book.gather() / "form-guestbook").glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"id":"../x","time":1}\n[]\n\xff\n{"id":"' + b"a" * 32 + b'","time":"now"}\n{"torn":')
    told = night(book, status=1)
    assert "cannot use 4 lines" in told and len(rows(book)) == 1


def test_record_that_names_files_as_form_cgi_never_does_is_told_and_reaches_nothing(
    book: Site, server: mailserver.MailServer
) -> None:
    """As the web server's user could write it: the file owner opens, sends, publishes and removes what it names."""
    declare(book, text=GUESTBOOK.replace("moderate = true", "moderate = false"))
    send(book)
    victim, secret = book.production / "world/victim.html", book.root / "etc/secrets/forms"
    victim.write_text("precious")
    ours, other = "picture-0-00000000.png", "f" * 32
    bad: list[dict[str, object]] = [
        *({"file": os.path.relpath(target, kept(book) / "files")} for target in (victim, secret)),
        *({"file": name} for name in (str(secret), "{id}-/../" + ours, "thanks.html", f"{other}-{ours}", "{id}", 7)),
        {"type": "text/html", "file": "{id}-picture-0-00000000.html"},
        {"type": "application/pdf"},
        *({key: None} for key in ("name", "type", "bytes", "sha256")),
    ]
    lines = []
    for number, (changes, when) in enumerate([(one, when) for one in bad for when in (time.time(), 1e9)]):
        name = f"{number:032x}"
        told = {"name": "x", "type": "image/png", "bytes": 8, "sha256": "0" * 64, "file": f"{{id}}-{ours}", **changes}
        told["file"] = str(told["file"]).replace("{id}", name) if told["file"] != 7 else 7
        lines.append({"id": name, "time": when, "name": "Ann", "entry": "x", "picture": [told]})
    lines.append({**lines[0], "picture": [7]})
    (segment,) = (book.gather() / "form-guestbook").glob("*.jsonl")
    with segment.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert f"cannot use {len(lines)} lines" in night(book, status=1)
    assert victim.read_text() == "precious" and len(rows(book)) == 1
    ((_, letter),) = server.taken
    assert [part.get_filename() for part in letter.iter_attachments()] == ["guestbook.csv"]
    assert sorted(path.name for path in (book.production / "world/forms/guestbook").iterdir()) == [
        "index.html",
        "thanks.html",
    ]
    assert "Thank you." in (book.production / "world/forms/guestbook/thanks.html").read_text()


def test_upload_that_is_not_what_was_sent_is_told_and_not_kept(stored: Site) -> None:
    book = stored
    send_picture(book)
    (upload,) = form_site.uploads(book)
    upload.write_bytes(b"\x89PNG\r\n\x1a\nsomething else")
    assert "is not what was sent" in night(book, status=1)
    assert os.listdir(kept(book) / "files") == [] and len(rows(book)) == 1


def test_upload_that_comes_after_its_answer_is_copied_and_shown_then(book: Site, store: str) -> None:
    """As with gather-pull, when it was killed between the two."""
    declare(book, text=stored_as(store, GUESTBOOK.replace("moderate = true", "moderate = false")))
    send_picture(book)
    (upload,) = form_site.uploads(book)
    later = upload.rename(book.root / "later")
    assert "cannot copy" in night(book, status=1) and "<img" not in published(book)
    later.rename(upload)
    night(book)
    assert os.listdir(kept(book) / "files") == [upload.name] and "<img" in published(book)
    assert "0 new answers" in night(book)


def test_files_of_any_size_and_number_cost_the_night_no_memory_and_outlive_a_lower_limit(book: Site) -> None:
    count, mb = 12, 1 << 20
    declare(book, text=GUESTBOOK.replace("moderate = true", "moderate = false").replace('"night"', '"never"'))
    send(book)

    def most_kb() -> int:
        command = [sys.executable, str(ROOT / "batch/forms-nightly")]
        process = subprocess.Popen(command, env=book.environment(), stdout=-3)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_maxrss

    before_kb = most_kb()
    (segment,) = (book.gather() / "form-guestbook").glob("*.jsonl")
    top = book.gather() / "form-guestbook.files"
    top.mkdir()
    for number in range(count):
        name = f"{number:032x}-picture-0-00000000.png"
        (top / name).write_bytes(bytes([number]) * 4 * mb)
        digest = hashlib.sha256(bytes([number]) * 4 * mb).hexdigest()
        told = {"name": "x", "type": "image/png", "bytes": 4 * mb, "sha256": digest, "file": name}
        record = {"id": f"{number:032x}", "time": time.time(), "name": "Ann", "entry": "x", "picture": [told]}
        with segment.open("a") as file:
            file.write(json.dumps(record) + "\n")
    assert most_kb() - before_kb < count * 4 * 1024 / 2
    assert published(book).count("<img ") == count
    for path in top.iterdir():
        assert (book.production / "world/forms/guestbook" / path.name).read_bytes() == path.read_bytes()


def test_mail_server_that_is_down_gets_the_letter_later_and_once(book: Site, server: mailserver.MailServer) -> None:
    send(book)
    with mailserver.refusing_port() as port:
        configure(book, port)
        assert "cannot reach the mail server" in night(book, status=1)
    configure(book, server.port)
    night(book)
    night(book)
    assert len(server.taken) == 1


def test_what_is_erased_is_gone_everywhere_and_what_remains_is_said(
    stored: Site, store: str, server: mailserver.MailServer
) -> None:
    book = stored
    variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token())
    body = body.replace(b"one\r\ntwo", b"of ann").replace(b'"email"\r\n\r\n', b'"email"\r\n\r\nann@example.org')
    variables["CONTENT_LENGTH"] = str(len(body))
    for name in ("web1", "web3"):  # a double click, over two servers
        assert book.cgi("form.cgi", "POST", body, name, PATH_INFO="/guestbook", **variables).status == 303
    send_picture(book)
    with mailserver.refusing_port() as port:
        configure(book, port)
        night(book, status=1)
        for answer in rows(book):
            night(book, "-publish", answer["id"])
        send(book, "web2", email="ANN@example.org", entry="of ann, not read yet")
        told = night(book, "-erase", "email=Ann@example.org")
    assert "2 answers erased on this host; to be pushed: world/forms" in told
    for name in ("web1", "web3"):
        (upload,) = {path.name for path in form_site.uploads(book, server=name)} - set(
            os.listdir(kept(book) / "files")
        )
        assert f"{name}: form-guestbook.files/{upload} stays until gather-sweep drops it" in told
    for name in book.servers:
        left = [path for path in (book.gather(name) / "form-guestbook").rglob("*") if b"of ann" in content(path)]
        assert bool(left) == (store != "queue")
        for path in left:
            assert f"{name}: form-guestbook/{path.name} holds it until gather-sweep drops it" in told
    found = [path for top in (book.state, book.production) for path in top.rglob("*") if path.is_file()]
    assert len(found) > 4
    for path in found:
        assert b"of ann" not in path.read_bytes(), path
    configure(book, server.port)
    night(book)
    ((_, letter),) = server.taken
    assert "1 answer" in letter["Subject"]
    assert len(rows(book)) == 1


def test_answers_outlive_their_field_and_their_form_and_are_erased_and_forgotten_all_the_same(book: Site) -> None:
    declare(book, "other", GUESTBOOK.replace("[answers]", "[answers]\nretention_days = 9"))
    for name in ("guestbook", "other"):
        body = urlencode({"form_token": token(name), "name": "Ann", "entry": "of ann", "email": "ann@example.org"})
        assert post(book, body.encode(), name=name).status == 303
    night(book)
    (old,) = (book.state / "forms/other").glob("*.csv")
    file = declare(book, text=GUESTBOOK.replace('name = "email"', 'name = "address"'))
    file.with_name("other.toml").unlink()
    record = {**records(book, "other")[0], "id": "0" * 32, "time": time.time() - 10 * 86400}
    (book.gather("web2") / "form-other").mkdir()
    (book.gather("web2") / "form-other/2026-11-22.jsonl").write_text(json.dumps(record) + "\n")
    assert "form other: 1 answer older than 9 days removed" in night(book)
    file.write_text("title = 7\n")  # so that only what it said before is left
    told = night(book, "-erase", "email=ann@example.org", status=1)
    assert "guestbook.toml:1: title" in told and "2 answers erased" in told and not old.exists()
    for path in (book.state / "forms").rglob("*"):
        assert b"of ann" not in content(path), path


def test_what_is_not_fetched_yet_is_said_where_something_is_erased(book: Site) -> None:
    text = book.conf_file.read_text().replace("[mail]", '[gather]\npull_from = "/srv/%h"\n[mail]')
    book.conf_file.write_text(text)
    assert "only what gather-pull has fetched is looked at" in night(book, "-erase", "email=a@b.de")


def test_what_is_older_than_the_retention_goes_with_its_files(stored: Site, store: str) -> None:
    book = stored
    text = stored_as(store, GUESTBOOK.replace("moderate = true", "moderate = false"))
    declare(book, text=text)
    send_picture(book)
    (record,) = records(book)
    (gathered,) = (path for path in (book.gather() / "form-guestbook").rglob("*") if path.is_file())
    gathered.write_text(json.dumps({**record, "time": time.time() - 2 * 86400}) + "\n")
    send(book)
    assert "2 new answers" in night(book)
    page = book.production / "world/forms/guestbook"
    (upload,) = os.listdir(kept(book) / "files")
    assert (page / upload).exists() and len(list(kept(book).glob("*.csv"))) == 2
    declare(book, text=text.replace("[answers]", "[answers]\nretention_days = 1"))
    assert "1 answer older than 1 days removed" in night(book)
    for _ in range(2):
        assert [row["entry"] for row in rows(book)] == ["Hello"] and len(list(kept(book).glob("*.csv"))) == 1
        assert os.listdir(kept(book) / "files") == [] and not (page / upload).exists()
        for path in (*kept(book).iterdir(), page / "index.html"):
            assert b"one\\ntwo" not in content(path), path
        assert "0 new answers" in night(book)


def test_render_publishes_the_thanks_and_compiles_where_it_may(book: Site) -> None:
    compiled = book.root / "etc/forms/guestbook.toml.compiled"
    # What is in the way keeps root, too, from writing it.
    compiled.mkdir()
    declare(book, "broken", "title = 1\n")
    told = night(book, "-render", status=1)
    assert "broken.toml:1: title" in told and "1 form rendered" in told
    assert "hits are slow until who may write there runs check-site -compile: guestbook" in told
    assert "Thank you." in (book.production / "world/forms/guestbook/thanks.html").read_text()
    compiled.rmdir()
    assert "slow" not in night(book, "-render", "guestbook") and compiled.is_file()


def test_declaration_that_is_wrong_never_stops_the_others(book: Site) -> None:
    declare(book, "broken", "title = 1\n")
    send(book)
    told = night(book, status=1)
    assert "broken.toml:1: title" in told and len(rows(book)) == 1


def test_database_that_is_damaged_never_stops_the_other_forms(book: Site) -> None:
    declare(book, "other")
    send(book)
    night(book)
    with closing(sqlite3.connect(kept(book) / "answers.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE answers SET record = '{'")
    send(book)
    body = urlencode({"form_token": token("other"), "name": "Ann", "entry": "x"}).encode()
    assert post(book, body, name="other").status == 303
    told = night(book, status=1)
    assert "form guestbook: JSONDecodeError" in told and list((book.state / "forms/other").glob("*.csv"))


def test_every_kind_once_and_often_and_what_it_was_before_goes_through_all_results(
    book: Site, server: mailserver.MailServer
) -> None:
    """Each form was declared otherwise when its answers came: field by field, every kind was every other one."""
    told = {"name": "a.png", "type": "image/png", "bytes": 8, "sha256": "0" * 64, "file": "{id}-f-0-00000000.png"}
    some: dict[str, list[object]] = {
        "text": ["lots"],
        "number": ["-3", "4"],
        "date": ["2026-01-02"],
        "choice": ["one", "two"],
        "file": [told],
    }
    every: list[object] = [
        True,
        False,
        "",
        [],
        *some.values(),
        *(each[0] for kind, each in some.items() if kind != "file"),
    ]
    keys = {"choice": 'choices = ["one", "two", "three"]', "file": 'types = ["image/png"]'}
    head = 'title = "T"\n[answers]\npublish = true\nmoderate = false\nmail = "night"\nto = ["www@localhost"]\n'
    kinds = [(kind, often) for kind in forms_check.KINDS for often in (1, 3) if (kind, often) != ("checkbox", 3)]
    for place, (kind, often) in enumerate(kinds):
        fields = f'[[fields]]\nname = "f"\nlabel = "F"\npublished = true\nkind = "{kind}"\nrepeats = {often}\n'
        declare(book, f"{kind}{often}", head + fields + keys.get(kind, ""))
        top = book.gather() / f"form-{kind}{often}"
        top.mkdir()
        with (top / "2026-11-22.jsonl").open("w") as file:
            for number, value in enumerate(every):
                answer_id = f"{place:016x}{number:016x}"
                line = json.dumps({"id": answer_id, "time": time.time(), "f": value})
                file.write(line.replace("{id}", answer_id) + "\n")
    send(book)
    said = night(book, status=1)  # no file is on its server
    assert f"{len(kinds) * len(every) + 1} new answers to {len(kinds) + 1} forms" in said
    assert set(re.findall(r"form (\w+): (cannot copy|\w+)", said)) == {(f"{k}{n}", "cannot copy") for k, n in kinds}
    assert len(server.taken) == len(kinds) + 1
    for kind, often in kinds:
        assert (book.production / f"world/forms/{kind}{often}/index.html").exists()
        summary = (book.state / f"forms/{kind}{often}/summary.html").read_text()
        counted = re.findall(r"<title>([^<:]+): ([\d,]+)", summary)
        assert {"number": ("-3", "2"), "date": ("2026-01", "2"), "choice": ("one", "2")}.get(
            kind, counted[-1]
        ) in counted


@pytest.mark.parametrize(
    "arguments",
    [("-publish", "x"), ("-publish", "0" * 32), ("-erase", "email"), ("-erase", "emial=a@b.de"), ("nosuch",)],
)
def test_what_is_not_there_is_told(book: Site, arguments: tuple[str, ...]) -> None:
    declare(book, "other")
    done = book.batch("forms-nightly", *arguments)
    assert done.returncode == 64 and done.stderr.count("forms-nightly: cannot ") == 1


def test_only_forms_that_are_mailed_soon_are_done_soon(book: Site, server: mailserver.MailServer) -> None:
    send(book)
    assert "0 new answers to 0 forms" in night(book, "-soon")
    declare(book, text=GUESTBOOK.replace('mail = "night"', 'mail = "soon"'))
    night(book, "-soon")
    assert len(server.taken) == 1


@pytest.mark.slow
def test_erasing_that_is_killed_anywhere_leaves_nothing_behind_when_it_is_done_again(book: Site) -> None:
    declare(book, text=GUESTBOOK.replace("moderate = true", "moderate = false").replace('"night"', '"never"'))
    send_picture(book)
    night(book)
    before = book.root / "before"
    tops = (book.state, book.production)
    for top in tops:
        shutil.copytree(top, before / top.name)
    asked = [str(ROOT / "batch/forms-nightly"), "-erase", "entry=one\ntwo"]
    done, count = steps.run(-1, asked, book.environment())
    assert b"1 answer erased" in done.stdout and count > 10, done.stderr
    for n in range(count):
        for top in tops:
            shutil.rmtree(top)
            shutil.copytree(before / top.name, top)
        assert steps.run(n, asked, book.environment())[1] == -signal.SIGKILL
        night(book, *asked[1:])
        assert os.listdir(kept(book) / "files") == [], n
        for path in (path for top in tops for path in top.rglob("*") if path.is_file()):
            assert b"one\\ntwo" not in content(path) and path.suffix != ".png", (n, path)


@pytest.mark.slow
def test_night_that_is_killed_anywhere_is_finished_by_the_next(
    book: Site, store: str, server: mailserver.MailServer
) -> None:
    """Kill nights at growing times, while answers come; at the end each is kept, published and mailed once."""
    declare(book, text=stored_as(store, GUESTBOOK.replace("moderate = true", "moderate = false")))
    sent = 0
    for turn in range(25):
        send_picture(book, f"web{turn % 3 + 1}")
        sent += 1
        command = [sys.executable, str(ROOT / "batch/forms-nightly")]
        with subprocess.Popen(command, env=book.environment(), stdout=-3, stderr=-3) as process:
            try:
                process.wait(0.1 + 0.04 * turn)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    night(book)
    assert len(rows(book)) == sent
    assert published(book).count("<img ") == sent
    ids: list[str] = []
    letters = {str(letter["Message-ID"]): letter for _, letter in server.taken}
    for letter in letters.values():
        table = next(letter.iter_attachments())
        ids += [row["id"] for row in csv.DictReader(io.StringIO(table.get_payload(decode=True).decode("utf-8-sig")))]
    assert sorted(ids) == sorted(row["id"] for row in rows(book))
