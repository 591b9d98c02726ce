# SPDX-License-Identifier: Apache-2.0
"""Eight people at once under Apache, while nights, sweeps and kills run: every 303 is one answer, none twice."""

import http.client
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from apache import USER, apache
from cgi_bin import form_site
from cgi_bin.form_site import BODIES
from infocluster.apps import forms_token
from infocluster.gather import drop

SECONDS = 20.0
CLIENTS = 8
SETTINGS = {"durable": False, "lock_timeout_s": 10, "limit_bytes": 65536}


@pytest.fixture
def top() -> Iterator[Path]:
    # Not tmp_path: pytest lets nobody else into its directories.
    path = Path(tempfile.mkdtemp(prefix="infocluster-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def send(port: int, kind: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/cgi-bin/form.cgi/guestbook", body, {"Content-Type": kind})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.root
def test_every_303_is_one_answer_whatever_is_killed_when(top: Path) -> None:
    prefix = form_site.installed(top)
    gather = top / "gather/web1/www"
    acknowledged: set[str] = set()
    statuses: list[int] = []
    # Yesterday's answers, so that there is something to sweep.
    for number in range(50):
        old = {"id": f"{number:032x}", "time": time.time() - 86400, "name": "Ann", "entry": "x", "picture": []}
        acknowledged.add(drop.append("form-guestbook", old, {**SETTINGS}, str(gather)))
    (yesterday,) = (gather / "form-guestbook").iterdir()
    subprocess.run(["chown", "-R", f"{USER}:", gather], check=True)
    environment = {"PATH": os.defpath, "SERVER_GATHER": str(gather)}
    chance = random.Random(8)
    with apache(prefix, top / "tree", gather, top / "run") as server:
        end = time.monotonic() + SECONDS

        def person(number: int) -> None:
            mine = random.Random(number)
            while time.monotonic() < end:
                token = forms_token.issue("guestbook", time.time() - 30, form_site.SECRET)
                fields = {"form_token": token, "name": f"person {number}", "entry": "x" * mine.randrange(1, 900)}
                kind, body = "application/x-www-form-urlencoded", urlencode(fields).encode()
                if mine.random() < 0.3:
                    variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token)
                    kind = variables["CONTENT_TYPE"]
                for _ in range(2 if mine.random() < 0.2 else 1):
                    status = send(server.port, kind, body)
                    statuses.append(status)
                    if status == 303:
                        acknowledged.add(forms_token.record_id(token))

        people = [threading.Thread(target=person, args=(number,)) for number in range(CLIENTS)]
        for one in people:
            one.start()
        nights = 0
        while time.monotonic() < end:
            # A night and a sweep, each killed half of the time, and every so often one of the CGI processes.
            for program, arguments in (
                ("forms-nightly", []),
                ("gather-sweep", ["-marks", f"{top}/www/gather/marks"]),
            ):
                with subprocess.Popen(
                    [prefix / "batch" / program, *arguments], env=environment, stdout=-3, stderr=-3
                ) as process:
                    try:
                        process.wait(chance.choice([0.05, 0.3, 0.6, 30]))
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                nights += process.returncode == 0
            kill_a_hit(prefix)
        for one in people:
            one.join()
        errors = server.errors()
    done = subprocess.run(
        [prefix / "batch/forms-nightly"], env=environment, capture_output=True, text=True, check=False
    )
    subprocess.run([prefix / "batch/gather-sweep", "-marks", f"{top}/www/gather/marks"], env=environment, check=True)
    assert done.returncode == 0 or "torn" in done.stderr or "no record of ours" in done.stderr, done.stderr
    db = sqlite3.connect(top / "state/forms/guestbook/answers.sqlite")
    kept = [one for (one,) in db.execute("SELECT id FROM answers")]
    db.close()
    assert len(kept) == len(set(kept))
    assert acknowledged <= set(kept)
    assert statuses.count(303) > 20 and nights > 2
    # Apache says 500 of a program that was killed; our own 500 would be in its log.
    assert "Traceback" not in errors and "incident" not in errors
    assert not yesterday.exists()
    print(
        f"{len(statuses)} posts, {statuses.count(303)} taken, {len(kept)} kept, {nights} nights and sweeps that ended"
    )


def kill_a_hit(prefix: Path) -> None:
    """Kill one process that runs form.cgi of this tree, wherever it is."""
    program = f"{prefix}/cgi-bin/form.cgi".encode()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            if program in (directory / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(directory.name), signal.SIGKILL)
                return
        except OSError:
            continue
