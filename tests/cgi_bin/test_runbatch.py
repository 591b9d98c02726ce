# SPDX-License-Identifier: Apache-2.0
"""runbatch.cgi under a real Apache and a real sudo: what runs, for whom, how long, and what is seen of it."""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from apache import Apache, apache
from conftest import ROOT, Reply, parse_reply
from infocluster import processes

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("runbatch")]

# Accounts that every Debian has.
OWNER, SERVER = "backup", "www-data"
URL = "/cgi-bin/runbatch.cgi"
FORM = "application/x-www-form-urlencoded"
ANN = "Basic " + base64.b64encode(b"ann:secret").decode()

# In a namespace of its own, so that the machine's own sudoers are as they were.
WITH_SUDOERS = """
mount --make-rprivate / && mount --bind "$1" /etc/sudoers && mount -t tmpfs none /etc/sudoers.d && shift && exec "$@"
"""

# Seconds that no other process of this machine sleeps.
LONG = f"3600.{os.getpid()}"

PROGRAMS = {
    # It says something, waits to be told to go on, and says the rest.
    "talk": 'echo "one $*"; echo two >&2; read word <{top}/go; echo "three $word"; exit 3',
    "who": "id -un; pwd; env | sort; wc -c",
    "hostile": "printf '<script>alert(1)</script>\\033[2J\\000\\377\\r\\nStatus: 500\\r\\n\\r\\n'",
    # Whatever is asked of it, it stays; and so does what it started, in its session and outside of it.
    "stay": "trap '' TERM HUP INT; sleep {long}1 & setsid sleep {long}2 & (setsid sleep {long}3 &); echo on;"
    " sleep {long}4; sleep {long}4",
    "endless": "exec yes {long}",
    "silent": "read word <{top}/go; touch {top}/done",
    "daemon": "sleep {long}5 & echo $!",
    "not-listed": "touch {top}/done",
}
LISTED = ["talk", "talk -a b", "who", "hostile", "stay", "endless", "silent", "daemon", "gone"]


@dataclass
class Host:
    """A development host: an installation with programs of its own, and the samples of etc/ put to use."""

    top: Path
    port: int = 0
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def prefix(self) -> Path:
        return self.top / "infocluster"

    def configure(self, **changes: object) -> None:
        settings: dict[str, object] = {"programs": LISTED, "hosts": ["127.0.0.0/8"], "users": ["ann"]}
        lines = [f"{name} = {value!r}" for name, value in (settings | {"time_limit_s": 60} | changes).items()]
        conf = self.prefix / "etc/infocluster.toml"
        conf.write_text("\n".join(["[site]", f'file_owner = "{OWNER}"', "[runbatch]", *lines, ""]).replace("'", '"'))

    def under(self) -> tuple[str, ...]:
        return ("unshare", "-m", "sh", "-c", WITH_SUDOERS, "sh", str(self.top / "sudoers"))

    def go(self, word: str = "on") -> None:
        """Let a program that waits go on."""
        (self.top / "go").write_text(word + "\n")

    def begin(self, program: str, **fields: str) -> http.client.HTTPResponse:
        """Send the form, as a browser or curl does, and return the answer once it has begun."""
        return self.ask("POST", URL, f"program={quote_plus(program)}", **fields)

    def ask(self, method: str, path: str, body: str | None = None, **fields: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.connections.append(connection)
        sent = {"Authorization": ANN, "Content-Type": FORM}
        sent |= {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request(method, path, body, {name: value for name, value in sent.items() if value})
        return connection.getresponse()

    def hang_up(self) -> None:
        """Close every connection."""
        while self.connections:
            connection = self.connections.pop()
            if connection.sock:
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def run(self, program: str, **fields: str) -> tuple[int, list[str]]:
        reply = self.begin(program, **fields)
        return reply.status, reply.read().decode("utf-8", "replace").splitlines()

    def cgi(self, method: str = "GET", body: bytes = b"", **variables: str) -> Reply:
        """Run the program as the web server's user does, without a web server."""
        environment = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": URL,
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_USER": "ann",
            "CONTENT_TYPE": FORM,
            "CONTENT_LENGTH": str(len(body)),
        }
        as_server = ("setpriv", "--reuid", SERVER, "--regid", SERVER, "--init-groups", "--")
        done = subprocess.run(
            [*self.under(), *as_server, str(self.prefix / "cgi-bin/runbatch.cgi")],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment, **variables},
            input=body,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return parse_reply(done.stdout, done.stderr.decode("utf-8", "replace"), done.returncode)


def installed(top: Path) -> Host:
    host = Host(top)
    command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(host.prefix), "--extras", ""]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    for name, text in PROGRAMS.items():
        program = host.prefix / "batch" / name
        program.write_text("#!/bin/sh\n" + text.format(top=top, long=LONG) + "\n")
        program.chmod(0o755)
    for directory in ("var/www", "var/state"):
        (host.prefix / directory).mkdir(parents=True, exist_ok=True)
        shutil.chown(host.prefix / directory, OWNER, OWNER)
    (top / "tree").mkdir()
    (top / "gather").mkdir()
    users = host.prefix / "etc/secrets/runbatch.users"
    # As etc/apache.runbatch.conf says that one is made.
    password = subprocess.run(
        ["openssl", "passwd", "-6", "secret"], capture_output=True, text=True, check=True
    ).stdout
    users.write_text(f"ann:{password}")
    for path, mode in ((users.parent, 0o750), (users, 0o640)):
        shutil.chown(path, "root", SERVER)
        path.chmod(mode)
    text = (host.prefix / "etc/sudoers.runbatch").read_text()
    assert text.count(f"{host.prefix}/batch/runbatch -- ") == 3 and "(wwwowner)" in text
    lines = [f"    {host.prefix}/batch/runbatch -- {entry}" for entry in LISTED]
    text = re.sub(
        r"(?m)^Cmnd_Alias.*(?:\n    .*)+", "Cmnd_Alias INFOCLUSTER_RUNBATCH = \\\\\n" + ", \\\\\n".join(lines), text
    )
    (top / "sudoers").write_text(text.replace("wwwowner", OWNER))
    (top / "sudoers").chmod(0o440)
    return host


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Host, Apache]]:
    # Not below pytest's directories, which are closed to other users.
    top = Path(tempfile.mkdtemp(prefix="infocluster-test-"))
    top.chmod(0o755)
    try:
        host = installed(top)
        include = f'Include "{host.prefix}/etc/apache.runbatch.conf"'
        with apache(host.prefix, top / "tree", top / "gather", top / "run", include, under=host.under()) as server:
            host.port = server.port
            yield host, server
    finally:
        shutil.rmtree(top)


@pytest.fixture
def host(served: tuple[Host, Apache]) -> Iterator[Host]:
    this, _ = served
    os.mkfifo(this.top / "go", 0o600)
    shutil.chown(this.top / "go", OWNER)
    this.top.chmod(0o777)
    this.configure()
    yield this
    this.hang_up()
    (this.top / "go").unlink()
    (this.top / "done").unlink(missing_ok=True)


def running(text: str) -> list[int]:
    """Return the processes whose command line is this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().rstrip(b"\0").replace(b"\0", b" ") == text.encode():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_output_is_seen_while_the_program_runs_both_streams_in_order_and_its_end(host: Host) -> None:
    reply = host.begin("talk -a b", Origin=f"http://127.0.0.1:{host.port}")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert reply.headers.get_all("X-Content-Type-Options") == ["nosniff"]
    assert reply.headers["Content-Length"] is None and reply.headers["Cache-Control"] == "no-store"
    began = reply.readline().decode()
    assert re.fullmatch(r"runbatch: started talk -a b, since \d{4}-.* UTC, for ann from 127\.0\.0\.1\n", began)
    assert [reply.readline(), reply.readline()] == [b"one -a b\n", b"two\n"]
    # It waits for this, so what was read until now came before its end.
    host.go("indeed")
    assert reply.readline() == b"three indeed\n"
    assert re.fullmatch(r"runbatch: talk -a b: exit status 3 after \d+\.\d s\n", reply.read().decode())


def test_program_runs_as_the_file_owner_as_cron_would_run_it(host: Host) -> None:
    status, lines = host.run("who")
    assert status == 200 and lines[1] == OWNER and lines[-2] == "0"
    variables = dict(line.split("=", 1) for line in lines[3:-2])
    assert variables.keys() == {"HOME", "LANG", "LOGNAME", "PATH", "PWD", "SHELL", "USER"}
    assert (variables["USER"], lines[2]) == (OWNER, os.path.expanduser("~" + OWNER))
    assert lines[-1].startswith("runbatch: who: exit status 0 after ")


def test_what_a_program_says_is_text_whatever_it_says(host: Host) -> None:
    reply = host.begin("hostile")
    content = reply.read()
    assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/plain")
    assert b"<script>alert(1)</script>\x1b[2J\0\xff\r\nStatus: 500\r\n\r\n" in content


def test_one_runs_at_a_time_and_the_next_is_told_who_runs_what(host: Host) -> None:
    first = host.begin("talk")
    status, lines = host.run("who")
    assert status == 503
    assert re.fullmatch(
        r"runbatch: cannot run who: there runs talk, since .* UTC, for ann from 127\.0\.0\.1", "\n".join(lines)
    )
    host.go()
    assert first.read().decode().splitlines()[-1].startswith("runbatch: talk: exit status 3")
    assert host.run("who")[0] == 200


def test_limit_ends_the_program_with_all_that_it_started(host: Host) -> None:
    host.configure(time_limit_s=1)
    with within(30):
        status, lines = host.run("stay")
    assert (status, lines[1]) == (200, "on")
    assert re.fullmatch(r"runbatch: stay: ended after [6-9]\.\d s: the limit is 1 s", lines[-1])
    left = {text: running(text) for text in (f"sleep {LONG}{number}" for number in range(1, 5))}
    assert not any(left.values()), left
    assert host.run("who")[0] == 200


def test_limit_holds_where_nobody_reads_on(host: Host) -> None:
    host.configure(time_limit_s=1)
    with within(30):
        as_owner = ["setpriv", "--reuid", OWNER, "--regid", OWNER, "--init-groups", "--"]
        command = [*as_owner, str(host.prefix / "batch/runbatch"), "endless"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}) as process:
            assert process.stdout and process.stderr
            assert process.stdout.readline().startswith(b"runbatch: started endless, ")
            assert process.wait() == 124
            assert b"the limit is 1 s" in process.stderr.read()
            assert process.stdout.readline() == f"{LONG}\n".encode()
    assert not running(f"yes {LONG}")


def test_visitor_who_goes_leaves_a_program_that_runs_to_its_end_and_the_lock_with_it(
    served: tuple[Host, Apache], host: Host
) -> None:
    reply = host.begin("talk")
    assert reply.readline().startswith(b"runbatch: started talk")
    reply.close()
    host.hang_up()
    reader = host.begin("silent")
    assert reader.status == 503 and b"there runs talk" in reader.read()
    host.go()
    end = time.monotonic() + 30
    while (reply := host.begin("silent")).status == 503:
        reply.read()
        assert time.monotonic() < end
    # The program that Apache started for this one is killed, as Apache does once nobody reads it.
    (cgi,) = [pid for pid in processes.descendants(served[1].pid) if b"runbatch.cgi" in command_line(pid)]
    os.kill(cgi, signal.SIGKILL)
    reply.read()
    assert host.run("who")[0] == 503
    host.go()
    while not (host.top / "done").exists() or host.run("who")[0] != 200:
        assert time.monotonic() < end


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_what_a_program_leaves_running_is_not_waited_for(host: Host) -> None:
    with within(20):
        status, lines = host.run("daemon")
    assert status == 200 and lines[-1].startswith("runbatch: daemon: exit status 0")
    os.kill(int(lines[1]), signal.SIGKILL)


@pytest.mark.parametrize(
    ("program", "fields", "status"),
    [
        ("not-listed", {}, 403),
        ("talk -a  b", {}, 403),
        ("talk ", {}, 403),
        ("talk;touch {top}/done", {}, 403),
        ("../batch/who", {}, 403),
        ("--help", {}, 403),
        ("", {}, 403),
        ("who&program=talk", {}, 403),
        ("who", {"Origin": "http://elsewhere.example"}, 403),
        ("who", {"Origin": "null"}, 403),
        ("who", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("who", {"Content_Type": "text/plain"}, 415),
        ("who", {"Authorization": ""}, 401),
        ("who", {"Authorization": "Basic " + base64.b64encode(b"ann:8").decode()}, 401),
        ("who", {"Authorization": "", "Remote_User": "ann"}, 401),
    ],
)
def test_what_is_not_allowed_is_refused(host: Host, program: str, fields: dict[str, str], status: int) -> None:
    body = "program=" + (program if "&" in program else quote_plus(program.format(top=host.top)))
    reply = host.ask("POST", URL, body, **fields)
    assert reply.status == status, reply.read()
    assert not (host.top / "done").exists()


@pytest.mark.parametrize(
    ("changes", "variables", "status"),
    [
        ({}, {}, 200),
        ({"programs": []}, {}, 404),
        ({"run_on": ["other.example.edu"]}, {}, 404),
        ({"run_on": [os.uname().nodename.partition(".")[0]]}, {}, 200),
        ({"hosts": []}, {}, 403),
        ({"users": []}, {}, 403),
        ({}, {"REMOTE_ADDR": "192.0.2.7"}, 403),
        ({}, {"REMOTE_ADDR": "127.0.0.1, 192.0.2.7"}, 403),
        ({}, {"REMOTE_ADDR": ""}, 403),
        ({}, {"REMOTE_USER": "bob"}, 403),
        ({}, {"REMOTE_USER": "ANN"}, 403),
        ({}, {"REMOTE_USER": ""}, 403),
        ({"users": [""]}, {"REMOTE_USER": ""}, 403),
        ({}, {"HTTP_REMOTE_USER": "ann", "REMOTE_USER": ""}, 403),
        ({}, {"REQUEST_METHOD": "PUT"}, 405),
    ],
)
def test_who_may_and_where(host: Host, changes: dict[str, object], variables: dict[str, str], status: int) -> None:
    host.configure(**changes)
    assert host.cgi(**variables).status == status
    if status != 200:
        assert host.cgi(**{"REQUEST_METHOD": "POST", "body": b"program=not-listed", **variables}).status == status


def test_page_has_a_button_for_each_program_and_needs_no_script(host: Host) -> None:
    host.configure(programs=["who", "talk <b>&"])
    page = host.cgi().body.decode()
    assert re.findall(r'<button type="submit" name="program" value="([^"]*)">', page) == [
        "who",
        "talk &lt;b&gt;&amp;",
    ]
    assert "<script" not in page and '<form method="post"' in page and "width=device-width" in page


def test_what_sudo_or_batch_refuses_is_told_with_its_status_and_logged(host: Host) -> None:
    host.configure(programs=["not-listed", "gone"])
    refused = host.cgi("POST", b"program=not-listed")
    lines = refused.body.decode().splitlines()
    assert refused.status == 500 and lines[0].startswith("sudo: "), lines
    assert lines[-1] == "runbatch.cgi: not-listed was not run: /usr/bin/sudo ended with status 1"
    assert lines[-1] in refused.errors and "ann from 127.0.0.1 asks for not-listed" in refused.errors
    gone = host.cgi("POST", b"program=gone")
    assert gone.status == 500 and b"/batch/gone is missing or no program" in gone.body
    assert gone.body.splitlines()[-1].endswith(b"ended with status 78")
    host.configure(sudo=str(host.top / "none"))
    assert host.cgi("POST", b"program=who").status == 503


def test_web_servers_user_can_run_nothing_but_what_both_lists_have(host: Host) -> None:
    as_server = [*host.under(), "setpriv", "--reuid", SERVER, "--regid", SERVER, "--init-groups", "--"]
    runbatch = str(host.prefix / "batch/runbatch")
    for command in (
        [str(host.prefix / "batch/not-listed")],
        [runbatch, "--", "not-listed"],
        [runbatch, "--", "who", "-x"],
        [runbatch, "who"],
        ["INFOCLUSTER_CONF=/dev/null", runbatch, "--", "who"],
        ["PYTHONPATH=/tmp", runbatch, "--", "who"],
    ):
        done = subprocess.run([*as_server, "sudo", "-n", "-u", OWNER, *command], capture_output=True, check=False)
        assert done.returncode == 1 and b"sudo: " in done.stderr, (command, done.stderr)
    # What sudo takes for the same is not: it compares arguments with blanks between.
    done = subprocess.run(
        [*as_server, "sudo", "-n", "-u", OWNER, "--", runbatch, "--", "talk -a", "b"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 77, done.stderr
    host.configure(programs=["talk"])
    done = subprocess.run(
        [*as_server, "sudo", "-n", "-u", OWNER, "--", runbatch, "--", "who"], capture_output=True, check=False
    )
    assert done.returncode == 77 and b"runbatch.programs does not name it" in done.stderr


def test_check_site_says_what_cannot_be_run_and_by_whom(host: Host) -> None:
    def told(**changes: object) -> tuple[str, list[str]]:
        host.configure(**changes)
        command = [*host.under(), str(host.prefix / "batch/check-site"), "-json", "-web"]
        done = subprocess.run(command, capture_output=True, env={"PATH": "/usr/sbin:/usr/bin:/bin"}, check=False)
        answer = json.loads(done.stdout)
        faults = [fault["fault"] for fault in answer["faults"] if fault["check"] == "runbatch"]
        return answer["checks"]["runbatch"], faults

    assert told(programs=["who", "talk -a b"]) == ("ok", [])
    assert told(programs=[]) == ("not checked: nothing may be run", [])
    assert told(run_on=["other"])[0] == "not checked: runbatch.run_on does not name this host"
    state, (users, missing, forbidden) = told(programs=["who", "gone", "not-listed"], users=[])
    assert state == "3 faults" and users == "runbatch.users is empty: no user may run anything"
    assert missing.startswith("runbatch.programs has gone, and ")
    assert forbidden == f"sudo does not let {SERVER} run not-listed as {OWNER}"
    assert told(sudo="/none")[1][-1] == "/none is missing or no program"


@contextmanager
def another(host: Host, name: str, include: str, define: str) -> Iterator[None]:
    """Ask another server of the same host for a while."""
    top, port = host.top, host.port
    with apache(host.prefix, top / "tree", top / "gather", top / name, include, define, host.under()) as server:
        host.port = server.port
        try:
            yield
        finally:
            host.hang_up()
            host.port = port


@pytest.mark.parametrize("define", ["", "WSGI"])
def test_production_sample_refuses_it_in_both_modes(host: Host, define: str) -> None:
    # The worst case: whoever comes is somebody already.
    with another(host, f"production{define}", "SetEnv REMOTE_USER ann", define):
        for path in ("", "/", "/x", "/../runbatch.cgi", "%00", "%2f"):
            for method, body in (("GET", None), ("POST", "program=who"), ("HEAD", None)):
                reply = host.ask(method, URL + path, body)
                assert reply.status in (403, 404) and b"runbatch: started" not in reply.read(), (method, path)
        for path in ("/cgi-bin//runbatch.cgi", "/cgi-bin/%72unbatch.cgi", "/cgi-bin/cgi-bin/runbatch.cgi"):
            assert host.ask("POST", path, "program=who").status in (403, 404), path
        assert host.ask("GET", "/cgi-bin/survey.cgi").status == 200


def test_output_is_streamed_under_wsgi_too(host: Host) -> None:
    with another(host, "wsgi", f'Include "{host.prefix}/etc/apache.runbatch.conf"', "WSGI"):
        reply = host.begin("talk")
        assert reply.readline().startswith(b"runbatch: started talk, ") and reply.readline() == b"one \n"
        assert host.run("who")[0] == 503
        host.go()
        assert reply.read().decode().splitlines()[-1].startswith("runbatch: talk: exit status 3")
