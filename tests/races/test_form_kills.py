# SPDX-License-Identifier: Apache-2.0
"""Eight people at once under Apache, while nights, sweeps and kills run: every 303 is one answer, none twice."""

import csv
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import mailserver
from apache import USER, apache
from cgi_bin import form_site
from cgi_bin.form_site import GUESTBOOK
from infocluster.apps import forms_results
from infocluster.gather import drop
from races import visitors

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


@pytest.fixture
def mail() -> Iterator[mailserver.MailServer]:
    with mailserver.running() as running:
        yield running


@pytest.mark.slow
@pytest.mark.root
def test_every_303_is_one_answer_whatever_is_killed_when(top: Path, mail: mailserver.MailServer) -> None:
    prefix = form_site.installed(top)
    (prefix / "etc/forms/guestbook.toml").write_text(GUESTBOOK.replace("moderate = true", "moderate = false"))
    with (prefix / "etc/infocluster.toml").open("a") as file:
        file.write(f'[mail]\nsmtp_host = "127.0.0.1"\nsmtp_port = {mail.port}\n')
    subprocess.run([prefix / "batch/check-site", "-compile"], check=True, capture_output=True)
    gather = top / "gather/web1/www"
    acknowledged: set[str] = set()
    # Yesterday's answers, so that there is something to sweep.
    for number in range(50):
        old = {"id": f"{number:032x}", "time": time.time() - 86400, "name": "Ann", "picture": []}
        old["entry"] = f"entry {old['id']}"
        acknowledged.add(drop.append("form-guestbook", old, {**SETTINGS}, str(gather)))
    (yesterday,) = (gather / "form-guestbook").iterdir()
    subprocess.run(["chown", "-R", f"{USER}:", gather], check=True)
    environment = {"PATH": os.defpath, "SERVER_GATHER": str(gather)}
    chance = random.Random(8)
    clients = ProcessPoolExecutor(CLIENTS, multiprocessing.get_context("spawn"))
    with apache(prefix, top / "tree", gather, top / "run") as server, clients:
        people = [clients.submit(visitors.person, number, server.port, SECONDS) for number in range(CLIENTS)]
        nights = 0
        while not all(one.done() for one in people):
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
        errors = server.errors()
    statuses = [status for one in people for status in one.result()[0]]
    acknowledged.update(*(one.result()[1] for one in people))
    done = subprocess.run(
        [prefix / "batch/forms-nightly"], env=environment, capture_output=True, text=True, check=False
    )
    subprocess.run([prefix / "batch/gather-sweep", "-marks", f"{top}/www/gather/marks"], env=environment, check=True)
    assert done.returncode == 0 or "torn" in done.stderr or "no record of ours" in done.stderr, done.stderr
    listed = [json.loads(path.read_text()) for path in (top / "state/forms/guestbook").glob("*.json")]
    kept = sorted(answer["id"] for day in listed for answer in day["answers"])
    assert len(kept) == len(set(kept))
    assert acknowledged <= set(kept)
    assert ids_of(path.read_bytes() for path in (top / "state/forms/guestbook").glob("*.csv")) == kept
    # A letter may come twice where a night was killed while it was sent; it is the same one.
    letters = {str(letter["Message-ID"]): letter for _, letter in mail.taken}
    tables = [next(letter.iter_attachments()) for letter in letters.values()]
    assert ids_of(table.get_payload(decode=True) for table in tables) == kept
    shown = re.findall(r"entry ([0-9a-f]{32})", (top / "www/world/forms/guestbook/index.html").read_text())
    assert len(shown) == len(set(shown)) == min(len(kept), forms_results.PAGE_ANSWERS) and set(shown) <= set(kept)
    assert statuses.count(303) > 20 and nights > 2
    # Apache says 500 of a program that was killed; our own 500 would be in its log.
    assert "Traceback" not in errors and "incident" not in errors
    assert not yesterday.exists()
    print(
        f"{len(statuses)} posts, {statuses.count(303)} taken, {len(kept)} kept, {nights} nights and sweeps that ended"
    )


def ids_of(tables: Iterable[bytes]) -> list[str]:
    """Return the ids of all rows, in order."""
    texts = [io.StringIO(table.decode("utf-8-sig")) for table in tables]
    return sorted(row["id"] for text in texts for row in csv.DictReader(text))


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
