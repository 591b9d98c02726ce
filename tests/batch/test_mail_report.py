# SPDX-License-Identifier: Apache-2.0
"""mail-report as a real process, before a real mail server."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

import mailserver
from conftest import ROOT, Site
from infocluster.report import findings

FINDING = {
    "title": "Browser survey",
    "lines": ["12 visits."],
    "tables": [{"title": "Browsers", "head": ["browser", "visits"], "rows": [["<script>alert(1)</script>", "7"]]}],
    "faults": ["cannot read web3: gone"],
    "links": ["https://www.example.org/survey/?a=1&b=2"],
}


@pytest.fixture
def server() -> Iterator[mailserver.MailServer]:
    with mailserver.running() as running:
        yield running


def configure(site: Site, port: int, more: str = "") -> None:
    site.configure(
        '[site]\nname = "Example"\nurl = "https://www.example.org/"\n[mail]\nsmtp_host = "127.0.0.1"\n'
        f'smtp_port = {port}\ntimeout_s = 20\nfrom = "Web <www@example.org>"\nto = ["anna@example.org"]\n{more}'
    )


def waiting(site: Site) -> tuple[int, int]:
    """Return how many findings and letters wait."""
    return len(list(site.state.glob("findings/*.json"))), len(list(site.state.glob("letters/*.eml")))


def body(letter: EmailMessage, kind: str) -> str:
    part = letter.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def test_what_was_found_is_one_letter_of_text_and_html_and_is_forgotten(
    site: Site, server: mailserver.MailServer
) -> None:
    configure(site, server.port)
    findings.leave(str(site.state), "survey-nightly", FINDING, 1795317300)
    findings.leave(str(site.state), "forms-nightly", {"title": "Forms", "lines": ["Nobody wrote."]}, 1795317200)
    done = site.batch("mail-report")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("mail-report: 2 findings, 1 letter sent\n")
    ((recipients, letter),) = server.taken
    assert recipients == ["anna@example.org"]
    assert re.fullmatch(r"Example, \d{4}-\d\d-\d\d: 2 findings, 1 fault", letter["Subject"])
    text, html = body(letter, "plain"), body(letter, "html")
    assert text.index("cannot read web3: gone") < text.index("Forms") < text.index("Browser survey")
    assert "  <script>alert(1)</script>       7\n" in text
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert 'href="https://www.example.org/survey/?a=1&amp;b=2"' in html
    assert not re.search(r"<(link|style|script|img)\b", html)
    assert waiting(site) == (0, 0)


def test_where_nothing_was_found_nothing_is_sent(site: Site, server: mailserver.MailServer) -> None:
    configure(site, server.port)
    done = site.batch("mail-report")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "mail-report: nothing new was found, no letter was sent\n"
    assert server.taken == []


def test_show_prints_the_text_and_changes_nothing(site: Site, server: mailserver.MailServer) -> None:
    configure(site, server.port)
    path = Path(findings.leave(str(site.state), "survey-nightly", FINDING))
    before = path.read_bytes()
    done = site.batch("mail-report", "-show")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nBrowser survey\n==============\n" in done.stdout
    assert done.stdout.endswith("mail-report: 1 finding to report, 0 letters waiting; nothing was sent\n")
    assert (path.read_bytes(), waiting(site), server.taken) == (before, (1, 0), [])
    assert os.listdir(site.state / "findings") == [path.name]


def test_a_mail_server_that_is_down_keeps_the_letter_for_the_next_run(
    site: Site, server: mailserver.MailServer
) -> None:
    findings.leave(str(site.state), "survey-nightly", FINDING)
    with mailserver.refusing_port() as port:
        configure(site, port)
        for _ in range(2):
            done = site.batch("mail-report")
            assert done.returncode == 75
            # Cron mails what is on standard error, and throws the rest away.
            why, last = done.stderr.splitlines()
            assert why.endswith(f"cannot reach the mail server 127.0.0.1 port {port}: Connection refused")
            assert last == "mail-report: cannot deliver 1 letter: kept for the next run"
            assert waiting(site) == (0, 1)
    configure(site, server.port)
    done = site.batch("mail-report")
    assert (done.returncode, len(server.taken), waiting(site)) == (0, 1, (0, 0))
    assert done.stdout.endswith("mail-report: nothing new was found, 1 letter sent\n")


def test_a_run_killed_between_queueing_and_sending_sends_later_under_one_message_id(
    site: Site, server: mailserver.MailServer
) -> None:
    configure(site, server.port)
    findings.leave(str(site.state), "survey-nightly", FINDING)
    started = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        assert started.wait(30)
        running[0].kill()

    server.before_mail = kill
    program = [sys.executable, str(ROOT / "batch/mail-report")]
    with subprocess.Popen(program, env=site.environment(), stdin=subprocess.DEVNULL) as process:
        running.append(process)
        started.set()
        assert process.wait(30) == -signal.SIGKILL
    assert server.taken == [] and waiting(site) == (0, 1)
    (kept,) = (path.read_bytes() for path in site.state.glob("letters/*.eml"))
    server.before_mail = lambda: None
    assert site.batch("mail-report").returncode == 0
    assert len(server.ids) == 1 and f"\nMessage-ID: {server.ids[0]}\r\n".encode() in kept
    assert site.batch("mail-report").returncode == 0
    assert len(server.taken) == 1 and waiting(site) == (0, 0)


def test_each_finding_is_in_one_letter_wherever_a_run_is_killed(
    tmp_path: Path, server: mailserver.MailServer
) -> None:
    driver = str(Path(__file__).with_name("crash_report.py"))
    done = subprocess.run(
        [sys.executable, driver, str(tmp_path), str(server.port)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    killed = int(done.stdout.split()[-1])
    # Two findings read, list and letter written and renamed, two removed, one handed over, sent, removed: at least.
    assert killed >= 12
    letters_of: dict[str, set[str]] = defaultdict(set)
    for _, letter in server.taken:
        for title in re.findall(r"^finding-\d+-[abc]$", body(letter, "plain"), re.MULTILINE):
            letters_of[title].add(letter["Message-ID"])
    assert set(letters_of) == {f"finding-{step}-{name}" for step in range(killed + 1) for name in "abc"}
    assert all(len(ids) == 1 for ids in letters_of.values())
    # What was taken and could not be removed any more goes out again, under its own Message-ID; nothing else does.
    assert len(server.ids) - len(set(server.ids)) <= 2


def test_a_torn_finding_is_a_fault_and_the_others_are_sent(site: Site, server: mailserver.MailServer) -> None:
    configure(site, server.port)
    findings.leave(str(site.state), "survey-nightly", FINDING)
    (site.state / "findings/torn.json").write_text('{"title":')
    done = site.batch("mail-report")
    assert done.returncode == 1
    assert re.fullmatch(r"mail-report: cannot use \S+/findings/torn\.json as a finding: .+\n", done.stderr)
    assert len(server.taken) == 1 and waiting(site) == (1, 0)


def test_a_letter_that_nobody_takes_is_set_aside_and_is_a_fault(site: Site, server: mailserver.MailServer) -> None:
    configure(site, server.port)
    server.recipient_replies = {"anna@example.org": "550 no such user"}
    findings.leave(str(site.state), "survey-nightly", FINDING)
    done = site.batch("mail-report")
    assert done.returncode == 1
    assert "anna@example.org is refused: 550 no such user" in done.stderr
    assert len(list(site.state.glob("letters/refused/*.eml"))) == 1 and waiting(site) == (0, 0)


def test_a_sendmail_program_serves_as_well(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f"#!/bin/sh\ncat >{tmp_path}/taken\n")
    program.chmod(0o755)
    configure(site, 25, f'transport = "sendmail"\nsendmail = "{program}"\n')
    findings.leave(str(site.state), "survey-nightly", FINDING)
    assert site.batch("mail-report").returncode == 0
    assert b"\nSubject: Example, " in (tmp_path / "taken").read_bytes()
    assert waiting(site) == (0, 0)


def test_an_address_that_is_none_stops_the_report_and_loses_nothing(site: Site) -> None:
    configure(site, 25)
    site.conf_file.write_text(site.conf_file.read_text().replace('"anna@example.org"', '"anna..ben@example.org"'))
    findings.leave(str(site.state), "survey-nightly", FINDING)
    done = site.batch("mail-report")
    assert done.returncode == 78
    assert done.stderr.startswith("mail-report: cannot write to or from 'anna..ben@example.org'")
    assert waiting(site) == (1, 0)
