# SPDX-License-Identifier: Apache-2.0
"""The same doors under gunicorn: each answers as its program does."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import pytest

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


def test_every_door_answers_under_gunicorn_as_its_program_does(book: Site) -> None:
    with gunicorn(book) as port:
        assert ask(port, "GET", "/cgi-bin/survey.cgi", User_Agent="x")[0] == 200
        assert ask(port, "DELETE", "/cgi-bin/survey.cgi")[:1] == (405,)
        status, fields, body = ask(port, "HEAD", "/cgi-bin/form.cgi/guestbook")
        assert (status, body, fields["cache-control"]) == (200, b"", "no-store")
        page = ask(port, "GET", "/cgi-bin/form.cgi/guestbook")[2]
        assert len(page) == int(fields["content-length"])
        assert ask(port, "GET", "/cgi-bin/form.cgi/other")[0] == 404
        assert ask(port, "GET", "/cgi-bin/../etc/infocluster.toml")[0] == 404
        sent = urlencode({"form_token": token(), "name": "Ann", "entry": "Hello"}).encode()
        told = {"Content_Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{port}"}
        status, fields, _ = ask(port, "POST", "/cgi-bin/form.cgi/guestbook", sent, **told)
        assert (status, fields["location"]) == (303, "/cgi-bin/form.cgi/guestbook?thanks")
        assert (
            ask(port, "POST", "/cgi-bin/form.cgi/guestbook", sent, Content_Type=told["Content_Type"], Origin="null")[
                0
            ]
            == 403
        )
        variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token())
        assert (
            ask(port, "POST", "/cgi-bin/form.cgi/guestbook", body, Content_Type=variables["CONTENT_TYPE"])[0] == 303
        )
    assert len(records(book)) == 2
    assert len(list(book.gather().glob("survey/*.jsonl"))) == 1
    (upload,) = form_site.uploads(book)
    assert os.stat(upload).st_size == records(book)[1]["picture"][0]["bytes"]


def test_changed_settings_take_effect_at_the_next_request_and_wrong_ones_are_500(book: Site) -> None:
    with gunicorn(book) as port:
        assert ask(port, "GET", "/cgi-bin/form.cgi/guestbook")[0] == 200
        book.configure(f'[forms]\nforms_dir = "{book.root}/elsewhere"\n')
        assert ask(port, "GET", "/cgi-bin/form.cgi/guestbook")[0] == 404
        book.conf_file.write_text("[forms]\nforms_dir = 7\n")
        assert ask(port, "GET", "/cgi-bin/form.cgi/guestbook")[0] == 500
