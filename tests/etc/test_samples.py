# SPDX-License-Identifier: Apache-2.0
"""The samples of etc/ do what they say: read by the programs they are for, run by a real Apache."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apache import Apache, apache
from infocluster.apps import checks_host

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("samples")

PROBE = """#!/bin/sh
printf 'Content-Type: text/plain\\n\\n'
id -un
env | sort
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Apache]:
    # Not below pytest's directories: the server's own user comes in there by no door.
    top = Path(tempfile.mkdtemp(prefix="infocluster-"))
    top.chmod(0o755)
    tree = top / "www/world"
    gather = top / "gather"
    prefix = top / "infocluster"
    command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(prefix), "--extras", ""]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}
    try:
        subprocess.run(command, env=environment, capture_output=True, check=True)
        (prefix / "cgi-bin/probe.cgi").write_text(PROBE)
        (prefix / "cgi-bin/probe.cgi").chmod(0o755)
        (tree / "sample").mkdir(parents=True)
        gather.mkdir()
        (tree / "index.html").write_text("<p>home</p>")
        (tree / "sample/.wwwinstrc").write_text("*.html\n")
        (tree / "sample/page.sh").write_text(PROBE)
        (tree / "sample/page.sh").chmod(0o755)
        (top / "www/marks.json").write_text("{}")
        (tree / "inside").symlink_to("index.html")
        (tree / "outside").symlink_to("/etc/passwd")
        os.chown(tree / "outside", 65534, 65534, follow_symlinks=False)
        with apache(prefix, tree, gather, top / "run") as running:
            yield running
    finally:
        shutil.rmtree(top)


def ask(
    server: Apache, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, {"User-Agent": "test"})
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()


@pytest.mark.root
def test_page_is_served_with_the_headers_of_the_house(server: Apache) -> None:
    status, fields, body = ask(server, "/")
    assert (status, body) == (200, b"<p>home</p>")
    assert fields["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in fields["content-security-policy"]
    assert fields["server"] == "Apache"


@pytest.mark.root
def test_program_runs_as_the_servers_user_with_its_gather_directory(server: Apache) -> None:
    status, fields, body = ask(server, "/cgi-bin/probe.cgi")
    lines = body.decode().splitlines()
    assert status == 200 and lines[0] == "www-data"
    variables = dict(line.split("=", 1) for line in lines[1:] if "=" in line)
    assert variables["SERVER_GATHER"] == str(server.run_dir.parent / "gather")
    assert variables["DOCUMENT_ROOT"] == str(server.run_dir.parent / "www/world")
    assert fields["x-content-type-options"] == "nosniff"


@pytest.mark.root
def test_survey_takes_a_visit(server: Apache) -> None:
    status, fields, _ = ask(server, "/cgi-bin/survey.cgi")
    assert status == 200 and fields["content-type"].startswith("text/html")
    [segment] = (server.run_dir.parent / "gather/survey").iterdir()
    assert b'"agent":"test"' in segment.read_bytes()
    # Once, not once by us and once by the server.
    assert fields["x-content-type-options"] == "nosniff"


@pytest.mark.root
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/none", 404),
        ("/sample/.wwwinstrc", 403),
        ("/sample/", 404),
        ("/inside", 200),
        ("/outside", 403),
        ("/../marks.json", 400),
        ("/%2e%2e/marks.json", 400),
        ("/cgi-bin/", 403),
        ("/cgi-bin/../lib/infocluster/files.py", 404),
        ("/cgi-bin/%2e%2e/etc/infocluster.toml", 404),
    ],
)
def test_what_is_no_page_is_not_given(server: Apache, path: str, status: int) -> None:
    assert ask(server, path)[0] == status


@pytest.mark.root
def test_script_among_the_pages_is_a_page(server: Apache) -> None:
    status, _, body = ask(server, "/sample/page.sh")
    assert status == 200 and body == PROBE.encode()


@pytest.mark.root
@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "TRACE", "OPTIONS"])
def test_page_takes_get_and_head_only(server: Apache, method: str) -> None:
    assert ask(server, "/", method)[0] == 405


@pytest.mark.root
def test_body_over_the_limit_is_refused(server: Apache) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/cgi-bin/probe.cgi")
    connection.putheader("Content-Length", str(16777217))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("mode", [(), ("-D", "WSGI")])
def test_apache_reads_the_samples_with_what_differs_on_its_command_line(
    tmp_path: Path, mode: tuple[str, ...]
) -> None:
    program = shutil.which("apache2", path="/usr/sbin:/usr/bin")
    assert program, "apache2 is not installed: .ci/packages installs it"
    defines = [f"Define {name} {value}" for name, value in
               (("PREFIX", ROOT), ("TREE", tmp_path), ("RUN_DIR", tmp_path), ("LOG_DIR", tmp_path))]  # fmt: skip
    command = [program, "-t", *mode, "-f", f"{ROOT}/etc/apache.conf"]
    for define in defines:
        command += ["-C", define]
    for more in ([], ["-C", "Define ADDRESS 127.0.0.1:"], ["-c", f"Include {ROOT}/etc/apache.runbatch.conf"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "Syntax OK\n"), done.stderr


@pytest.mark.parametrize("sample", ["sudoers", "sudoers.runbatch"])
def test_sudo_reads_the_sample(sample: str) -> None:
    visudo = shutil.which("visudo", path="/usr/sbin:/usr/bin")
    assert visudo, "visudo is not installed: .ci/packages installs it"
    done = subprocess.run([visudo, "-cf", str(ROOT / "etc" / sample)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_timetable_and_sudoers_name_programs_of_the_house() -> None:
    known = set(os.listdir(ROOT / "batch"))
    entries = list(checks_host.cron_entries((ROOT / "etc/crontab").read_text(), None))
    assert len(entries) >= 5
    for entry in entries:
        assert entry.user in {"wwwowner", "www-data", "root"}
        named = re.findall(r"/opt/infocluster/batch/(\S+)", entry.command)
        assert len(named) == 1 and set(named) <= known, entry
    assert set(re.findall(r"/opt/infocluster/batch/([\w-]+)", (ROOT / "etc/sudoers").read_text())) <= known


def test_every_entry_of_the_timetable_is_told_in_a_sentence() -> None:
    lines = (ROOT / "etc/crontab").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[\d*]", line):
            assert re.match(r"# On .* (at \d+:\d\d|hour|minute).*\.$", lines[number - 1]), line


@pytest.mark.root
def test_strange_visits_are_answered_and_the_next_one_is_served(server: Apache) -> None:
    gather = server.run_dir.parent / "gather/survey"

    def raw(head: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            with contextlib.suppress(OSError):  # the server may hang up before it has read ten megabytes
                connection.sendall(b"GET /cgi-bin/survey.cgi HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
            return connection.recv(4096)

    before = sum(path.read_bytes().count(b"\n") for path in gather.iterdir()) if gather.exists() else 0
    assert raw(b"User-Agent: " + b"x" * 10_000_000)[:12] == b"HTTP/1.1 400"
    assert raw(b"User-Agent: a\x00b")[:12] == b"HTTP/1.1 400"
    assert raw(b'User-Agent: \xff\xfe \x80"\\')[:12] == b"HTTP/1.1 200"
    assert raw(b"User-Agent:")[:12] == b"HTTP/1.1 200"
    after = [line for path in gather.iterdir() for line in path.read_bytes().split(b"\n") if line]
    assert len(after) == before + 2
    assert [json.loads(line)["agent"] for line in after[-2:]] == ['\ufffd\ufffd \ufffd"\\', ""]


@pytest.mark.root
def test_other_methods_are_refused_and_nothing_is_noted(server: Apache) -> None:
    status, fields, body = ask(server, "/cgi-bin/survey.cgi", "POST", b"a=1")
    assert (status, fields["allow"]) == (405, "GET, HEAD")
    assert b"Traceback" not in body
    assert ask(server, "/cgi-bin/survey.cgi", "DELETE")[0] == 405
    status, fields, body = ask(server, "/cgi-bin/survey.cgi", "HEAD")
    assert (status, body) == (200, b"")


@pytest.mark.root
def test_gather_directory_that_is_gone_is_503_until_it_is_back(server: Apache) -> None:
    gather = server.run_dir.parent / "gather"
    gather.rename(gather.with_name("away"))
    try:
        status, fields, body = ask(server, "/cgi-bin/survey.cgi")
        assert (status, fields["retry-after"]) == (503, "60")
        assert b"Traceback" not in body and b"/gather" not in body
        assert "No such file or directory" in server.errors()
    finally:
        gather.with_name("away").rename(gather)
    assert ask(server, "/cgi-bin/survey.cgi")[0] == 200
