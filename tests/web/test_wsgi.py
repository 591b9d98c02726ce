# SPDX-License-Identifier: Apache-2.0
"""The same doors under gunicorn and mod_wsgi: each answers as its program does."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

import sshd
from apache import apache
from cgi_bin import form_site
from cgi_bin.form_site import BODIES, declare, records, token
from conftest import ROOT, Site


@contextmanager
def gunicorn(site: Site, workers: int = 2) -> Iterator[int]:
    """Run gunicorn while the context is open, and give its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        listener.set_inheritable(True)
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--workers", str(workers),
                   "--no-control-socket", "--log-level", "warning", "infocluster.web.wsgi:application"]  # fmt: skip
        environment = site.environment(
            PYTHONPATH=str(ROOT / "lib"),
            SERVER_GATHER=str(site.gather()),
            DOCUMENT_ROOT=str(site.delivered("web1") / "world"),
        )
        process = subprocess.Popen(
            command, env=environment, pass_fds=[listener.fileno()], cwd=site.root, stderr=subprocess.PIPE
        )
        port = listener.getsockname()[1]
    try:
        end = time.monotonic() + 20
        while ask(port, "GET", "/")[0] != 404:
            assert time.monotonic() < end and process.poll() is None
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)


def ask(port: int, method: str, path: str, body: bytes = b"", **fields: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(
            method, path, body or None, {name.replace("_", "-"): value for name, value in fields.items()}
        )
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()


@pytest.fixture
def book(site: Site) -> Site:
    declare(site)
    return site


def post(port: int, path: str, fields: dict[str, str], **told: str) -> tuple[int, dict[str, str]]:
    form = "application/x-www-form-urlencoded"
    return ask(port, "POST", path, urlencode(fields).encode(), Content_Type=form, **told)[:2]


def assert_every_door_answers(port: int) -> None:
    """Ask as visitors do; a form without and one with a file are sent."""
    form = "/cgi-bin/form.cgi/guestbook"
    assert ask(port, "GET", "/cgi-bin/survey.cgi", User_Agent="x")[0] == 200
    assert ask(port, "DELETE", "/cgi-bin/survey.cgi")[0] == 405
    status, fields, body = ask(port, "HEAD", form)
    assert (status, body, fields["cache-control"]) == (200, b"", "no-store")
    assert len(ask(port, "GET", form)[2]) == int(fields["content-length"])
    assert ask(port, "GET", "/cgi-bin/form.cgi/other")[0] == 404
    assert ask(port, "GET", "/cgi-bin/moderate.cgi/guestbook?x")[0] == 403
    assert ask(port, "GET", "/cgi-bin/../etc/infocluster.toml")[0] == 404
    sent = {"form_token": token(), "name": "Ann", "entry": "Hello"}
    status, fields = post(port, form, sent, Origin=f"http://127.0.0.1:{port}")
    assert (status, fields["location"]) == (303, f"{form}?thanks")
    assert post(port, form, sent, Origin="null")[0] == 403
    variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token())
    assert ask(port, "POST", form, body, Content_Type=variables["CONTENT_TYPE"])[0] == 303
    assert ask(port, "POST", form, body + b"x" * 20000, Content_Type=variables["CONTENT_TYPE"])[0] == 413


def test_every_door_answers_under_gunicorn_as_its_program_does(book: Site) -> None:
    with gunicorn(book) as port:
        assert_every_door_answers(port)
    assert len(records(book)) == 2
    assert len(list(book.gather().glob("survey/*.jsonl"))) == 1
    (upload,) = form_site.uploads(book)
    assert os.stat(upload).st_size == records(book)[1]["picture"][0]["bytes"]


@pytest.fixture
def top() -> Iterator[Path]:
    # Not tmp_path: pytest lets nobody else into its directories.
    path = Path(tempfile.mkdtemp(prefix="infocluster-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.root
def test_every_door_answers_under_mod_wsgi_also_when_its_processes_are_killed(top: Path) -> None:
    prefix, gather = form_site.installed(top), top / "gather/web1/www"
    with apache(prefix, top / "tree", gather, top / "run", define="WSGI") as server:
        assert_every_door_answers(server.port)
        staying = [pid for pid in sshd.descendants(server.pid) if b"wsgi:infocluster" in command_line(pid)]
        assert len(staying) == 4
        for pid in staying:
            os.kill(pid, signal.SIGKILL)
        sent = {"form_token": token(), "name": "Bob", "entry": "Again"}
        end = time.monotonic() + 20
        while (status := post(server.port, "/cgi-bin/form.cgi/guestbook", sent)[0]) != 303:
            assert status in (500, 503) and time.monotonic() < end
        assert "Traceback" not in server.errors()
    found = [line for file in gather.glob("form-guestbook/*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(json.loads(line)["name"] for line in found) == ["Ann", "Ann", "Bob"]
    assert len(list(gather.glob("survey/*.jsonl"))) == 1


def test_changed_settings_take_effect_at_the_next_request_and_wrong_ones_are_500(book: Site) -> None:
    with gunicorn(book) as port:
        assert ask(port, "GET", "/cgi-bin/form.cgi/guestbook")[0] == 200
        book.configure(f'[forms]\nforms_dir = "{book.root}/elsewhere"\n')
        assert ask(port, "GET", "/cgi-bin/form.cgi/guestbook")[0] == 404
        book.conf_file.write_text("[forms]\nforms_dir = 7\n")
        assert ask(port, "GET", "/cgi-bin/form.cgi/guestbook")[0] == 500
