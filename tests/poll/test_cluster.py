# SPDX-License-Identifier: Apache-2.0
"""A simulated cluster, the installed poll.cgi, a real Apache, every backend: one release each, and never early."""

import http.server
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from apache import Apache, apache

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
USER = "www-data"
KINDS = ("command", "marker", "url", "systemd", "snapshots", "callback")
TAKES_S = 1.0
CONF = """
[poll]
follow_s = 0.2
poll_s = 1
[mail]
to = []
[[core_filers]]
name = "cf-command"
backend = "command"
start = ["{backup}", "start", "command", "{work}"]
status = ["{backup}", "status", "command", "{work}"]
[[core_filers]]
name = "cf-marker"
backend = "marker"
start = ["{backup}", "start", "marker", "{work}"]
marker = "{work}/%m_%t"
marker_text = "complete %t"
[[core_filers]]
name = "cf-url"
backend = "url"
start_url = "http://127.0.0.1:{port}/start?of=%m"
job_pointer = "/job/uuid"
status_url = "http://127.0.0.1:{port}/jobs/%j"
state_pointer = "/jobs/0/state"
complete_words = ["success"]
[[core_filers]]
name = "cf-systemd"
backend = "systemd"
unit = "backup@%m-%t.service"
systemctl = "{work}/systemctl"
[[core_filers]]
name = "cf-snapshots"
backend = "snapshots"
start = ["{backup}", "start", "snapshots", "{work}"]
status = ["{backup}", "status", "snapshots", "{work}"]
list_pointer = "/archives"
time_pointer = "/start"
[[core_filers]]
name = "cf-callback"
backend = "callback"
start = ["{backup}", "start", "callback", "{work}"]
secret = "callback"
"""


class Backups(http.server.BaseHTTPRequestHandler):
    """An interface that starts backups and says how they stand; its log is of the same form as backup.py's."""

    jobs: ClassVar[dict[str, tuple[str, float]]] = {}
    log: Path

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = f"{asked['coreFiler']}/{asked['targetTime']}"
        begun = time.time()
        with self.log.open("a") as log:
            log.write(f"start {key} {begun}\n")
        self.jobs[asked["run"]] = (key, begun)
        self.reply({"job": {"uuid": asked["run"]}})

    def do_GET(self) -> None:
        key, begun = self.jobs[self.path.rpartition("/")[2]]
        is_done = time.time() >= begun + TAKES_S
        if is_done:
            with self.log.open("a") as log:
                log.write(f"done {key} {begun + TAKES_S}\n")
        self.reply({"jobs": [{"state": "success" if is_done else "running"}]})

    def reply(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def backups(log: Path) -> Iterator[int]:
    Backups.log = log
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backups) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def site(top: Path) -> Iterator[Apache]:
    """An installation, its Apache, and the interface of the backend url."""
    prefix, tree, gather, work = top / "infocluster", top / "www", top / "gather", top / "work"
    for directory in (tree, gather, work):
        directory.mkdir()
    shutil.chown(work, USER, USER)
    backup = work / "backup.py"
    shutil.copy(HERE / "backup.py", backup)
    (work / "systemctl").symlink_to("backup.py")
    with backups(work / "log-url") as port:
        (prefix / "etc").mkdir(parents=True)
        (prefix / "etc/infocluster.toml").write_text(CONF.format(backup=backup, work=work, port=port))
        command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(prefix), "--extras", ""]
        environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}
        subprocess.run(command, env=environment, capture_output=True, check=True)
        secret = prefix / "etc/secrets/callback"
        secret.write_text("a key of the callback\n")
        for path in (secret, secret.parent):
            shutil.chown(path, "root", USER)
        secret.chmod(0o640)
        with apache(prefix, tree, gather, top / "run") as server:
            (work / "address").write_text(f"{server.url}/cgi-bin/poll.cgi")
            yield server


def until_it_says(log: Path, word: str) -> None:
    end = time.monotonic() + 60
    while not log.exists() or f"{word} " not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.root
@pytest.mark.slow
def test_cluster_is_released_once_for_each_target_time_and_never_early(open_dir: Path) -> None:
    now = int(time.time())
    keys = [(f"cf-{kind}", str(now + 300 * number)) for kind in KINDS for number in range(2)]
    account, errors = pwd.getpwnam(USER), ""
    with site(open_dir) as server:
        address = f"{server.url}/cgi-bin/poll.cgi"
        watch = [str(open_dir / "infocluster/batch/backup-watch"), "-follow"]
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "SERVER_GATHER": str(open_dir / "gather")}
        cluster = [sys.executable, str(HERE / "cluster.py"), address, "0.6", *(word for key in keys for word in key)]
        log = open_dir / "work/log"
        with subprocess.Popen(cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as polling:
            # Each is ended, and begun again, when the first backup was started, and when the first one was done.
            for word in ("start", "done", ""):
                with subprocess.Popen(
                    watch,
                    env=environment,
                    user=account.pw_uid,
                    group=account.pw_gid,
                    extra_groups=[],
                    stderr=subprocess.PIPE,
                ) as following:
                    try:
                        if word:
                            until_it_says(log, word)
                            os.kill(server.pid, signal.SIGHUP)
                        else:
                            said, faults = polling.communicate(timeout=200)
                    finally:
                        following.terminate()
                        errors += following.communicate(timeout=30)[1].decode()
        page = urllib.request.urlopen(address).read().decode()
    assert polling.returncode == 0 and not faults, (faults, errors, page)
    assert "Traceback" not in errors
    # Polls under Apache started some themselves; this is where those would have written what went wrong.
    assert (open_dir / "gather/poll/backup-watch.log").read_text() == ""
    released: dict[str, float] = {}
    for line in said.splitlines():
        told = json.loads(line)
        released[told["key"]] = min(told["time"], released.get(told["key"], told["time"]))
    lines = [
        line.split() for name in ("log", "log-url") for line in (open_dir / "work" / name).read_text().splitlines()
    ]
    starts = Counter(key for word, key, _ in lines if word == "start")
    ended: dict[str, float] = {}
    for word, key, when in lines:
        if word == "done":
            ended.setdefault(key, float(when))
    wanted = {f"{mass}/{target}" for mass, target in keys}
    assert starts == dict.fromkeys(wanted, 1)
    assert released.keys() == wanted == ended.keys(), (errors, page)
    assert not {key for key in wanted if released[key] < ended[key]}
    assert page.count("<td>released</td>") == len(wanted)
