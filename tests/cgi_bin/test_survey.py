# SPDX-License-Identifier: Apache-2.0
"""survey.cgi as a process: a visit is one record and an answer, or a sentence and no record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Reply, Site

HEAVY = {"os", "re", "json", "tomllib", "typing", "urllib", "urllib.parse", "jinja2", "filelock", "python_multipart",
         "contextlib", "collections", "enum", "logging", "pathlib", "dataclasses", "functools"}  # fmt: skip


def records(site: Site, server: str = "web1") -> list[dict[str, object]]:
    lines = [line for path in sorted(site.gather(server).glob("survey/*")) for line in path.read_bytes().split(b"\n")]
    return [json.loads(line) for line in lines if line]


def assert_page_for_visitors(reply: Reply) -> None:
    """No traceback, no path, a valid reply, and the program exits 0."""
    assert reply.exit_status == 0
    assert int(reply.fields["Content-Length"]) == len(reply.body)
    for secret in (b"Traceback", b"/", b".py"):
        assert secret not in reply.body.replace(b"</", b"<").replace(b"text/html", b"")


def test_visit_is_noted_and_the_published_summary_shown(site: Site) -> None:
    summary = site.delivered("web1") / "world/survey/summary.html"
    summary.parent.mkdir(parents=True)
    summary.write_bytes(b"<p>as of last night</p>")
    reply = site.cgi("survey.cgi", HTTP_USER_AGENT="Mozilla/5.0 (X11; Linux)")
    assert (reply.status, reply.body) == (200, b"<p>as of last night</p>")
    assert reply.fields["Content-Type"] == "text/html; charset=utf-8"
    (record,) = records(site)
    assert record["agent"] == "Mozilla/5.0 (X11; Linux)"
    assert not records(site, "web2")


@pytest.mark.parametrize("door", sorted(path.name for path in (ROOT / "cgi-bin").iterdir()))
def test_manual_is_for_a_person_at_a_shell_and_not_for_visitors(site: Site, door: str) -> None:
    program = [sys.executable, "-IS", str(ROOT / "cgi-bin" / door), "--help"]
    shown = subprocess.run(program, env={}, capture_output=True, check=True)
    assert shown.stdout.decode().startswith(f"{door} - ") and b"\nExit status: " in shown.stdout
    visitor = site.environment(GATEWAY_INTERFACE="CGI/1.1", REQUEST_METHOD="GET")
    asked = subprocess.run(program, env=visitor, capture_output=True, check=True)
    assert b"Content-Type: " in asked.stdout and b"Exit status: " not in asked.stdout


def test_before_the_first_night_the_visitor_is_told_so(site: Site) -> None:
    reply = site.cgi("survey.cgi", HTTP_USER_AGENT="x")
    assert reply.status == 200
    assert b"first night" in reply.body
    assert len(records(site)) == 1


def test_head_answers_as_get_does_and_notes_nothing(site: Site) -> None:
    length = site.cgi("survey.cgi").fields["Content-Length"]
    environment = site.environment(REQUEST_METHOD="HEAD", SERVER_GATHER=str(site.gather("web1")))
    program = [sys.executable, "-IS", str(ROOT / "cgi-bin/survey.cgi")]
    output = subprocess.run(program, env=environment, capture_output=True, check=True).stdout
    assert output.endswith(b"\r\n\r\n")
    assert f"Content-Length: {length}\r\n".encode() in output
    assert len(records(site)) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "get", "<script>"])
def test_other_methods_are_refused(site: Site, method: str) -> None:
    reply = site.cgi("survey.cgi", method, b"agent=x", CONTENT_LENGTH="7")
    assert (reply.status, reply.fields["Allow"]) == (405, "GET, HEAD")
    assert_page_for_visitors(reply)
    assert not records(site)


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("", ""),
        ("x" * 9000, "x" * 512),
        ('"\\\x01\x1b[31m\t', '"\\\x01\x1b[31m\t'),
        (os.fsdecode(b"\xff\xfe\xed\xa0\x80ok"), "\ufffd\ufffd\ufffd\ufffd\ufffdok"),
        ("é" * 300, "é" * 256),
        ("x" + "é" * 300, "x" + "é" * 255 + "\ufffd"),
    ],
)
def test_strange_agents_are_noted_whole_or_cut(site: Site, agent: str, expected: str) -> None:
    assert site.cgi("survey.cgi", HTTP_USER_AGENT=agent).status == 200
    (record,) = records(site)
    assert record["agent"] == expected


def test_missing_agent_is_noted_as_none(site: Site) -> None:
    assert site.cgi("survey.cgi").status == 200
    assert records(site)[0]["agent"] == ""


@pytest.mark.parametrize("gather", ["", "relative", "/proc/none", "/dev/null", "{file}"])
def test_unusable_gather_directory_is_503_and_said_in_the_log(site: Site, gather: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reply = site.cgi("survey.cgi", SERVER_GATHER=gather.format(file=tmp_path / "file"))
    assert reply.status == 503
    assert int(reply.fields["Retry-After"]) > 0
    assert_page_for_visitors(reply)
    assert "cannot" in reply.errors
    incident = reply.errors.split("incident ")[1].split(":")[0]
    assert incident.encode() in reply.body


@pytest.mark.root
def test_read_only_gather_directory_is_503(site: Site) -> None:
    gather = str(site.gather("web1"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", gather], check=True)
    try:
        assert site.cgi("survey.cgi").status == 503
    finally:
        subprocess.run(["umount", gather], check=True)


@pytest.mark.root
def test_full_disk_is_503_and_what_was_noted_stays(site: Site) -> None:
    gather = site.gather("web1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(gather)], check=True)
    try:
        answered = 0
        while (reply := site.cgi("survey.cgi", HTTP_USER_AGENT="x" * 512)).status == 200:
            answered += 1
        assert reply.status == 503
        assert "No space left" in reply.errors
        assert 0 < answered == len(records(site))
    finally:
        subprocess.run(["umount", str(gather)], check=True)


def test_wrong_settings_are_500_with_an_incident_and_the_line_in_the_log(site: Site) -> None:
    site.conf_file.write_text("[survey]\ntpo = 3\n")
    reply = site.cgi("survey.cgi")
    assert reply.status == 500
    assert_page_for_visitors(reply)
    assert "infocluster.toml:2: survey.tpo: unknown setting" in reply.errors


def test_fault_of_ours_is_500_with_the_traceback_in_the_log_alone(site: Site) -> None:
    summary = site.delivered("web1") / "world/survey/summary.html"
    summary.mkdir(parents=True)  # reading a directory is an error nobody expects
    reply = site.cgi("survey.cgi")
    assert reply.status == 500
    assert_page_for_visitors(reply)
    assert "Traceback" in reply.errors
    assert "IsADirectoryError" in reply.errors
    assert all(line.startswith("survey.cgi: incident ") for line in reply.errors.splitlines())


def test_a_hit_loads_no_heavy_module(site: Site) -> None:
    """What a hit imports is its run time (doc/design.md): with compiled settings, only modules of ours and C."""
    from infocluster import config

    config.compile_settings(str(site.conf_file))
    code = (
        "import sys, posix; sys.path.insert(0, sys.argv[1])\n"
        "leave = posix._exit\n"
        "def left(status):\n"
        "    posix.write(2, '\\n'.join(sorted(sys.modules)).encode()); leave(status)\n"
        "posix._exit = left\n"
        "from infocluster.web import cgi; cgi.run('infocluster.apps.survey:answer')\n"
    )
    environment = site.environment(REQUEST_METHOD="GET", SERVER_GATHER=str(site.gather("web1")))
    program = [sys.executable, "-IS", "-c", code, str(ROOT / "lib")]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Status: 200")
    loaded = set(done.stderr.split("\n"))
    bare = subprocess.run(
        [sys.executable, "-IS", "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    ours = {name for name in loaded if name.startswith("infocluster")}
    assert len(records(site)) == 1
    assert not loaded & HEAVY
    assert loaded - set(bare.stdout.split()) - ours <= {"_json", "fcntl"}
    assert len(ours) <= 15, sorted(ours)
