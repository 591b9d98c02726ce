# SPDX-License-Identifier: Apache-2.0
"""Letters: what they look like, and that each is kept until a mail server or a sendmail program has taken it."""

import email
import email.policy
import os
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

import mailserver
from infocluster import letters
from infocluster.errors import BadInputError, ConfigError, UnavailableError
from infocluster.locks import lockfile

ANNA, BEN = "anna@example.org", "ben@example.org"


@pytest.fixture
def server() -> Iterator[mailserver.MailServer]:
    with mailserver.running() as running:
        yield running


def settings(port: int = 25, **other: Any) -> dict[str, Any]:
    return {"transport": "smtp", "smtp_host": "127.0.0.1", "smtp_port": port, "timeout_s": 5, **other}


def letter(text: str = "text", time_s: float = 1795317300, **other: Any) -> EmailMessage:
    return letters.compose("Web <www@example.org>", [ANNA, BEN], "Night", text, time_s=time_s, **other)


def read(content: bytes) -> EmailMessage:
    found = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def said(part: EmailMessage) -> str:
    return str(part.get_content()).replace("\r\n", "\n")


def test_a_letter_is_text_and_html_in_one_with_what_goes_with_it() -> None:
    text = "Grüße\n.\nFrom here\n" + "long " * 400 + "\n"
    picture = letters.Attachment('a "b" ü.svg', "image/svg+xml", b"\xff<svg/>\n")
    content = letter(text, html="<p>Grüße</p>", attachments=[picture], key="abc").as_bytes()
    content.decode("ascii")
    assert max(map(len, content.split(b"\r\n"))) <= 998 and b"\n" not in content.replace(b"\r\n", b"")
    found = read(content)
    fields = ("From", "To", "Date", "Message-ID", "Auto-Submitted", "Subject")
    assert [str(found[name]) for name in fields] == [
        "Web <www@example.org>", f"{ANNA}, {BEN}", "Sun, 22 Nov 2026 03:15:00 +0000", "<abc@example.org>",
        "auto-generated", "Night",
    ]  # fmt: skip
    body = found.get_body(("plain",))
    assert body is not None and said(body) == text
    assert [part.get_content_type() for part in found.walk()] == [
        "multipart/mixed", "multipart/alternative", "text/plain", "text/html", "image/svg+xml",
    ]  # fmt: skip
    (attached,) = found.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == (picture.name, picture.content)


def test_no_text_can_add_a_header() -> None:
    subject = "one\r\nBcc: evil@example.org\r\n\r\nbody\x00\x1b\u2028end " + "ü" * 300
    found = read(letters.compose(ANNA, [BEN], subject, "text").as_bytes())
    assert found["Bcc"] is None
    assert found["Subject"] == "one Bcc: evil@example.org body end " + "ü" * 300


@pytest.mark.parametrize(
    "address",
    ["", "a@b\nBcc: c@d", "a@b, c@d", "a b", "-oQ/tmp@b", "-f", "<>", "list: a@b;", "a@", "@b", "ü@b", "a@b>"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected one address"):
        letters.compose(address, [ANNA], "s", "t")
    with pytest.raises(ConfigError, match="expected one address"):
        letters.compose(ANNA, [BEN, address], "s", "t")


def test_letters_sort_by_their_date_and_the_same_letter_replaces_itself(tmp_path: Path) -> None:
    late, early = letter(time_s=2e9), letter(time_s=1e9)
    files = [letters.queue(str(tmp_path), one) for one in (late, early, late)]
    assert letters.waiting(str(tmp_path)) == [os.path.basename(files[1]), os.path.basename(files[0])]
    assert os.stat(files[0]).st_mode & 0o777 == 0o640


def test_delivered_letters_go_out_oldest_first_to_every_recipient_and_are_gone(
    tmp_path: Path, server: mailserver.MailServer
) -> None:
    second = letters.queue(str(tmp_path), letter("two\n", 2e9))
    first = letters.queue(str(tmp_path), letter(".one\n", 1e9))
    done = letters.deliver(str(tmp_path), settings(server.port))
    assert [line.split(":")[0] for line in done.sent] == [os.path.basename(first), os.path.basename(second)]
    assert not done.waiting and not done.refused and not done.partly
    assert [recipients for recipients, _ in server.taken] == [[ANNA, BEN]] * 2
    assert [said(taken) for _, taken in server.taken] == [".one\n", "two\n"]
    assert letters.waiting(str(tmp_path)) == []


def test_a_mail_server_that_is_down_keeps_every_letter_under_its_message_id(
    tmp_path: Path, server: mailserver.MailServer
) -> None:
    written = [letter(time_s=1e9), letter(time_s=2e9)]
    for one in written:
        letters.queue(str(tmp_path), one)
    with mailserver.refusing_port() as port:
        down = letters.deliver(str(tmp_path), settings(port))
    assert [line.partition(": ")[2] for line in down.waiting] == [
        f"cannot reach the mail server 127.0.0.1 port {port}: Connection refused"
    ] * 2
    assert len(letters.deliver(str(tmp_path), settings(server.port)).sent) == 2
    assert server.ids == [one["Message-ID"] for one in written]


def test_a_letter_that_all_recipients_refuse_for_good_is_set_aside(
    tmp_path: Path, server: mailserver.MailServer
) -> None:
    server.recipient_replies = {ANNA: "550 no such user", BEN: "553 not here"}
    name = os.path.basename(letters.queue(str(tmp_path), letter(time_s=1e9)))
    other = letters.compose(ANNA, ["carl@example.org"], "s", "t", time_s=2e9)
    letters.queue(str(tmp_path), other)
    done = letters.deliver(str(tmp_path), settings(server.port))
    assert done.refused == [f"{name}: {ANNA} is refused: 550 no such user; {BEN} is refused: 553 not here"]
    assert len(done.sent) == 1 and server.ids == [other["Message-ID"]]
    assert os.listdir(tmp_path / "letters/refused") == [name]
    assert letters.waiting(str(tmp_path)) == []


@pytest.mark.parametrize("replies", [{ANNA: "450 later", BEN: "550 never"}, {ANNA: "450 later", BEN: "451 later"}])
def test_a_letter_that_one_recipient_may_take_later_waits(
    tmp_path: Path, server: mailserver.MailServer, replies: dict[str, str]
) -> None:
    server.recipient_replies = replies
    name = os.path.basename(letters.queue(str(tmp_path), letter()))
    done = letters.deliver(str(tmp_path), settings(server.port))
    assert len(done.waiting) == 1 and f"{ANNA} is refused: 450 later" in done.waiting[0]
    assert letters.waiting(str(tmp_path)) == [name]


def test_a_letter_that_some_recipients_take_is_sent_and_the_others_are_reported(
    tmp_path: Path, server: mailserver.MailServer
) -> None:
    server.recipient_replies = {BEN: "550 no such user"}
    name = os.path.basename(letters.queue(str(tmp_path), letter()))
    done = letters.deliver(str(tmp_path), settings(server.port))
    assert len(done.sent) == 1 and done.partly == [f"{name}: {BEN} is refused: 550 no such user"]
    assert [recipients for recipients, _ in server.taken] == [[ANNA]]
    assert letters.waiting(str(tmp_path)) == []


@pytest.mark.parametrize(("reply", "is_kept"), [("451 full", True), ("554 no", False)])
def test_a_letter_refused_as_a_whole_waits_or_is_set_aside_by_the_code(
    tmp_path: Path, server: mailserver.MailServer, reply: str, is_kept: bool
) -> None:
    server.data_reply = reply
    letters.queue(str(tmp_path), letter())
    done = letters.deliver(str(tmp_path), settings(server.port))
    assert (len(done.waiting), len(done.refused)) == ((1, 0) if is_kept else (0, 1))
    assert reply in (done.waiting + done.refused)[0]
    assert len(letters.waiting(str(tmp_path))) == is_kept


def test_a_file_that_is_no_letter_is_set_aside_and_stops_no_other(
    tmp_path: Path, server: mailserver.MailServer
) -> None:
    letters.queue(str(tmp_path), letter())
    (tmp_path / "letters/0.eml").write_bytes(b"\xff\x00torn")
    (tmp_path / "letters/1.eml").write_bytes(letter().as_bytes().replace(b"anna@", "ännä@".encode()))
    done = letters.deliver(str(tmp_path), settings(server.port))
    assert [line.split(":")[0] for line in done.refused] == ["0.eml", "1.eml"]
    assert len(done.sent) == 1


def test_two_deliverers_at_once_send_each_letter_once(tmp_path: Path, server: mailserver.MailServer) -> None:
    written = [letter(time_s=1e9 + n) for n in range(6)]
    for one in written:
        letters.queue(str(tmp_path), one)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(letters.__file__).parents[1])!r})\n"
        "from infocluster import letters; sys.stdin.readline()\n"
        f"letters.deliver({str(tmp_path)!r}, {settings(server.port)!r})"
    )
    deliverers = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) for _ in range(3)]
    for deliverer in deliverers:
        assert deliverer.stdin is not None
        deliverer.stdin.write("\n")
        deliverer.stdin.flush()
    for deliverer in deliverers:
        deliverer.communicate(timeout=30)
        assert deliverer.returncode == 0
    assert server.ids == [one["Message-ID"] for one in written]


def test_a_deliverer_waits_no_longer_than_the_time_limit_for_another(tmp_path: Path) -> None:
    letters.queue(str(tmp_path), letter())
    with lockfile.hold(str(tmp_path / "letters")), pytest.raises(UnavailableError, match="held by pid"):
        letters.deliver(str(tmp_path), settings(timeout_s=0.05))


def sendmail(tmp_path: Path, status: int) -> str:
    program = tmp_path / "sendmail"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/arguments\ncat >{tmp_path}/taken\n'
        f"echo mail queue is full >&2\nexit {status}\n"
    )
    program.chmod(0o755)
    return str(program)


def test_a_sendmail_program_gets_the_letter_and_its_recipients(tmp_path: Path) -> None:
    letters.queue(str(tmp_path), letter("one\n.\ntwo\n"))
    done = letters.deliver(str(tmp_path), settings(transport="sendmail", sendmail=sendmail(tmp_path, 0)))
    assert len(done.sent) == 1
    assert (tmp_path / "arguments").read_text().split("\n") == ["-i", "-f", "www@example.org", "--", ANNA, BEN, ""]
    content = (tmp_path / "taken").read_bytes()
    assert b"\r" not in content and read(content).get_content() == "one\n.\ntwo\n"
    assert letters.waiting(str(tmp_path)) == []


@pytest.mark.parametrize("status", [75, 1])
def test_a_sendmail_program_that_fails_leaves_the_letter(tmp_path: Path, status: int) -> None:
    name = os.path.basename(letters.queue(str(tmp_path), letter()))
    program = sendmail(tmp_path, status)
    done = letters.deliver(str(tmp_path), settings(transport="sendmail", sendmail=program))
    assert done.waiting == [f"{name}: cannot send it through {program}: exit status {status}: mail queue is full"]
    assert letters.waiting(str(tmp_path)) == [name]


def test_a_letter_is_adopted_in_one_step_and_anything_else_is_not(tmp_path: Path) -> None:
    written = letter()
    (tmp_path / "mine.eml").write_bytes(written.as_bytes())
    assert letters.adopt(str(tmp_path), str(tmp_path / "mine.eml")) == letters.queue(str(tmp_path), written)
    assert not (tmp_path / "mine.eml").exists()
    (tmp_path / "torn.eml").write_bytes(written.as_bytes()[:20])
    with pytest.raises(BadInputError):
        letters.adopt(str(tmp_path), str(tmp_path / "torn.eml"))
    assert (tmp_path / "torn.eml").exists()
