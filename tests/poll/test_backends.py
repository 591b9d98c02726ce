# SPDX-License-Identifier: Apache-2.0
"""Backends: what each takes for complete, and that every doubt is none. They run whole in test_cluster."""

import http.server
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from infocluster import settings
from infocluster.errors import ConfigError, InfoclusterError, UnavailableError
from infocluster.poll.backends import base, snapshots, systemd
from infocluster.poll.backends.base import FailedError, Seen
from infocluster.poll.state import State

NOW = time.time()


def backend(tmp_path: Path, kind: str, lines: str) -> base.Base:
    file = tmp_path / "infocluster.toml"
    poll = "[poll]\nask_timeout_s = 1\nstart_timeout_s = 1\n"
    file.write_text(f'{poll}[[core_filers]]\nname = "cf/one"\nbackend = "{kind}"\n{lines}\n')
    read = settings.read(str(file))
    return base.made(read["core_filers"][0], read["poll"], str(tmp_path))


def run(job: str = "", asked: float = NOW - 10) -> State:
    made = State("cf/one", int(NOW), "5f0c2a9be7d14c33", "running", asked, asked)
    made.job = job
    return made


def test_what_stands_for_the_run_is_filled_in_once() -> None:
    made = run("%m%t")
    assert base.filled("a%%m %m|%t|%r|%j%x%", made) == f"a%m cf/one|{int(NOW)}|5f0c2a9be7d14c33|%m%t%x%"
    assert base.pointed({"a": [{"x/y~": 5}]}, "/a/0/x~1y~0") == 5
    assert base.pointed({"a": []}, "/a/0") is base.pointed("text", "/0") is base.pointed({"a": 1}, "/a/b") is None


def test_marker_counts_when_it_is_of_this_run_old_enough_and_says_so(tmp_path: Path) -> None:
    lines = f'marker = "{tmp_path}/%m-done"\nmarker_age_s = 5\nmarker_text = "done %t"'
    one, file = backend(tmp_path, "marker", lines), tmp_path / "cf_one-done"
    assert one.status(run()).state == "running"
    file.write_text(f"head\n done {int(NOW)}\r\n")
    assert one.status(run()).words == "its marker was touched a moment ago"
    os.utime(file, (NOW - 6, NOW - 6))
    assert one.status(run()) == Seen("complete")
    assert one.status(run(asked=NOW - 5)).words == "its marker is of an earlier backup"
    file.write_text("done 17\n")
    os.utime(file, (NOW - 6, NOW - 6))
    assert one.status(run()).state == "running"
    file.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(file)
        with pytest.raises(UnavailableError, match="no plain file"):
            one.status(run())
        file.rename(tmp_path / make.__name__)


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        ('[{"time": "{after}"}, {"time": "2001-01-01T00:00:00Z"}]', "complete"),
        ('[{"time": "{before}"}]', "running"),
        ('[{"time": "{ahead}"}, {"time": "{before}"}]', "running"),
        ('[{"time": "{ahead}"}, {"time": "{after}"}]', "complete"),
        ('[{"time": "{after}", "more": "' + "x" * 100_000 + '"}]', "complete"),
        ('[{"time": "{after}", "more": "' + "x" * snapshots.LIST_LIMIT_BYTES + '"}]', ""),
        ('[{"time": 99999999999}, {"time": null}, {}, 7, {"time": "2999"}]', "running"),
        ("[]", "running"),
        ("{}", ""),
        ("no JSON", ""),
        ("[" * 60_000, ""),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("ahead_s", [-300, 300])
def test_snapshot_counts_when_it_was_begun_since_the_first_poll_and_is_not_of_the_future(
    tmp_path: Path, printed: str, state: str, ahead_s: int
) -> None:
    made = State("cf/one", int(NOW) + ahead_s, "5f0c2a9be7d14c33", "running", NOW - 10, NOW - 10)
    for name, shift in (("{after}", -9), ("{before}", -11), ("{ahead}", 86400)):
        # As restic prints it: nanoseconds and an offset.
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.123456789+00:00", time.gmtime(NOW + shift))
        printed = printed.replace(name, stamp)
    (tmp_path / "list").write_text(printed)
    one = backend(tmp_path, "snapshots", f'status = ["/bin/cat", "{tmp_path}/list"]')
    if state:
        assert one.status(made).state == state
    else:
        with pytest.raises(UnavailableError, match="cannot read the list of snapshots: "):
            one.status(made)


@pytest.mark.parametrize(
    ("shown", "job", "state"),
    [
        ("inactive dead success new", "old", "complete"),
        ("active exited success new", "old", "complete"),
        ("active exited success new", "-", "complete"),
        ("active exited success old", "old", "running"),  # the run before ours
        ("inactive dead success ", "old", "running"),  # systemd has forgotten it: it says success of nothing
        ("activating start success new", "old", "running"),
        ("active running success new", "old", "running"),
        ("failed failed exit-code new", "old", "failed"),
        ("inactive dead timeout new", "old", "failed"),
        ("", "old", "running"),
    ],
)
def test_unit_counts_when_a_later_run_of_it_ended_well(tmp_path: Path, shown: str, job: str, state: str) -> None:
    names = ("ActiveState", "SubState", "Result", "InvocationID")
    (tmp_path / "shown").write_text(
        "".join(f"{n}={v}\n" for n, v in zip(names, shown.split(" "), strict=False)) + "LoadState=loaded\n"
    )
    program = tmp_path / "systemctl"
    program.write_text(
        f'#!/bin/sh\nfor last; do :; done\ntest "$last" = "b@cf-one.service" && cat {tmp_path}/shown\n'
    )
    program.chmod(0o755)
    one = backend(tmp_path, "systemd", f'unit = "b@%m.service"\nsystemctl = "{program}"')
    assert one.status(run(job)).state == state
    seen = one.confirm(run(job))
    assert (seen is None) == (shown.endswith((" old", " ")) or not shown)


def test_unit_name_is_escaped_as_systemd_does() -> None:
    assert systemd.escaped("cf/one two-.ä") == r"cf-one\x20two\x2d.\xc3\xa4"
    assert systemd.escaped(".x") == r"\x2ex"


class Interface(http.server.BaseHTTPRequestHandler):
    """Answers what the test says."""

    reply: tuple[int, bytes] = (200, b"{}")
    seen: dict[str, Any]

    def do_GET(self) -> None:
        length = int(self.headers["Content-Length"] or 0)
        type(self).seen = {**self.headers, "path": self.path, "body": self.rfile.read(length)}
        self.send_response(self.reply[0])
        self.end_headers()
        try:
            self.wfile.write(self.reply[1])
        except OSError:
            return

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Interface) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


URL = """
start_url = "http://127.0.0.1:{port}/start?of=%m"
status_url = "http://127.0.0.1:{port}/jobs/%j"
job_pointer = "/job/id"
state_pointer = "/0/state"
progress_pointer = "/0/share"
failed_words = ["torn"]
"""


def test_interface_starts_and_tells(tmp_path: Path, port: int) -> None:
    one = backend(tmp_path, "url", URL.format(port=port))
    Interface.reply = 202, b'{"job": {"id": "a/b"}}'
    assert one.start(run()) == "a/b"
    assert Interface.seen["path"] == "/start?of=cf%2Fone"
    assert json.loads(Interface.seen["body"])["run"] == Interface.seen["Idempotency-Key"] == run().run
    for document, expected in (
        ([{"state": "complete"}], Seen("complete")),
        ([{"state": "going", "share": 0.5}], Seen("running", "0.5")),
        ([{"state": "COMPLETE"}], Seen("running", "COMPLETE")),
        ([{"state": "torn"}], Seen("failed", "its state is 'torn'")),
    ):
        Interface.reply = 200, json.dumps(document).encode()
        assert one.status(run("a/b")) == expected
    assert Interface.seen["path"] == "/jobs/a%2Fb"
    assert one.confirm(run()) is None


@pytest.mark.parametrize(
    "reply",
    [
        (500, b'[{"state": "complete"}]'),
        (302, b'[{"state": "complete"}]'),
        (200, b"no JSON"),
        (200, b'{"state": "complete"}'),
        (200, b'[{"state": ["complete"]}]'),
        (200, b'[{"state": "complete"}]' + b" " * 70_000),
    ],
)
def test_interface_in_doubt_is_asked_again_and_a_start_in_doubt_has_failed(
    tmp_path: Path, port: int, reply: tuple[int, bytes]
) -> None:
    one = backend(tmp_path, "url", URL.format(port=port))
    Interface.reply = reply
    with pytest.raises(UnavailableError):
        one.status(run("j"))
    with pytest.raises((FailedError, UnavailableError)):
        one.start(run())


def test_interface_that_is_down_or_slow_is_told(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Interface) as silent:
        # It listens and never answers.
        one = backend(tmp_path, "url", URL.format(port=silent.server_port))
        with pytest.raises(UnavailableError, match="not done after 1 s"):
            one.status(run())
    with pytest.raises(UnavailableError, match="refused"):
        one.status(run())


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX: ", b'HTTP/1.1 200 OK\r\n\r\n[{"state": "complete"}]'])
def test_interface_that_never_comes_to_an_end_is_left(tmp_path: Path, begin: bytes) -> None:
    """A byte now and then is no silence: the time is that of the whole reply, wherever it has come to."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connected = server.accept()[0]
            with connected, suppress(OSError):
                connected.sendall(begin)
                connected.settimeout(0.1)
                while True:
                    with suppress(TimeoutError):
                        if not connected.recv(4096):
                            return  # it was left
                    connected.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        one = backend(tmp_path, "url", URL.format(port=server.getsockname()[1]))
        with pytest.raises(UnavailableError, match="not done after 1 s"):
            one.status(run())
        thread.join()


@pytest.mark.parametrize("address", ["http://h:99999/", "http://[::1/", "http://a b/", "ftp://h/", "http:///x"])
def test_address_that_is_none_is_told(tmp_path: Path, address: str) -> None:
    one = backend(tmp_path, "url", f'start_url = "{address}"\nstatus_url = "{address}"')
    with pytest.raises(ConfigError, match="cannot ask "):
        one.status(run())


@pytest.mark.parametrize(
    ("kind", "lines"), [("command", ""), ("marker", ""), ("url", ""), ("callback", ""), ("nil", ""), ("base", "")]
)
def test_backend_that_lacks_a_setting_is_told(tmp_path: Path, kind: str, lines: str) -> None:
    with pytest.raises(ConfigError):
        backend(tmp_path, kind, lines)


def test_new_backend_is_a_class_in_a_file() -> None:
    names = {path.stem for path in Path(base.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert names == {"command", "marker", "url", "systemd", "snapshots", "callback"}
    for name in names:
        with pytest.raises(InfoclusterError):  # each is found by its name, and lacks its settings
            base.made(dict.fromkeys((*base.Base.needs, "start", "status", "marker", "secret", "unit", "start_url",
                                     "status_url"), "") | {"backend": name, "name": "cf"}, {}, "/")  # fmt: skip
