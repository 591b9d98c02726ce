# SPDX-License-Identifier: Apache-2.0
"""What gather-pull does: on the batch host, fetch what the servers gathered, where there is no NFS.

1. Every server's gather directory is copied to GATHER_DIR/SERVER by rsync over ssh, several servers at once, in three
   steps. Segments come first: they only grow, and only what is new of them travels; what is there is compared by its
   checksum.
2. Everything else follows, each file whole when it is seen: entries, elements of directory queues, states.
3. What came with records comes last: each record in the copy has its files, or gets them by the next run.
4. Nothing is removed because a server has it no more, but for states of polls, which are no records. What the jobs
   have read goes from the copy a day after the server may drop it, by the same marks and the same rules
   (`gather.sweep`, `aggregate.reports`); an element of a queue not before the server has dropped it: it would come
   once more.

Nothing is ever written on a server: the key that this runs with may be held to reading there.

Source: rsync(1), --append-verify, "FILTER RULES"; rrsync(1).
"""

import glob
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from infocluster import files, names, processes
from infocluster.aggregate import reports
from infocluster.cron.command import Run
from infocluster.errors import BadInputError, ConfigError, InfoclusterError, UnavailableError, reason
from infocluster.gather import marks, sweep
from infocluster.push import rsync, servers, ssh
from infocluster.push.servers import Server
from infocluster.queue import simple

SILENCE_S = 60
DAY_S = 86400.0
VANISHED = 24
_COPY = ("--recursive", "--times", "--chmod=D0750,F0640", "--perms", "--stats", "--no-h")
# Locks, what is not whole yet, and what nobody reads here.
_LEFT = ("--exclude=*.lock", "--exclude=.*", "--exclude=/*/*.rate/")
_SEGMENTS = ("--append-verify", *_LEFT, "--include=/*/", "--include=/*/*/", "--include=/*/*/*.jsonl", "--exclude=*")
_DIRECTORY, _ELEMENT = "/*/*/" + "[0-9a-f]" * 8 + "/", "[0-9a-f]" * 14
_WHOLE = (
    "--delete", "--filter=R /*/poll/***", "--filter=P *", *_LEFT, "--exclude=/*/*.files/", "--exclude=/*/*/*.jsonl",
    f"--include={_DIRECTORY}{_ELEMENT}", f"--exclude={_DIRECTORY}*",
)  # fmt: skip
_CAME_WITH = (*_LEFT, "--include=/*/", "--include=/*/*.files/***", "--exclude=*")
_LISTED = (
    "--list-only", "--include=/*/", "--include=/*/*/", f"--include={_DIRECTORY}", f"--include={_DIRECTORY}{_ELEMENT}",
    "--exclude=*",
)  # fmt: skip
_LISTED_BYTES = 1 << 28
_TEMPORARY = ".pull"
_RECEIVED = re.compile(r"^Total bytes received: (\d+)$", re.MULTILINE)


class Pulled(NamedTuple):
    """What came of one server.

    Attributes:
        received: bytes that came.
        elements: what its directory queues hold still, such as ``www/reports/6b0365e0/6b0365e03d090b``.
    """

    received: int
    elements: frozenset[str]


def work(run: Run) -> str:
    """Fetch from every server, and return the summary.

    Raises:
        ConfigError: nothing says where the servers have it, or a server cannot be named.
        UnavailableError: the directory of the copies cannot be made.
    """
    conf = run.settings
    if not conf["gather"]["pull_from"]:
        raise ConfigError("cannot pull: [gather] pull_from names no directory on the servers")
    user = conf["gather"]["pull_user"]
    every = servers.of_kind(conf, "web")
    sources = [server._replace(user=user or server.user) for server in every if server.transport != "local"]
    found: dict[str, Pulled | None] = {}
    with ThreadPoolExecutor(max(1, min(conf["push"]["parallel"], len(sources))), "pull") as pool:
        for server, waiting in [(server, pool.submit(_pull, run, server)) for server in sources]:
            found[server.name] = None
            try:
                found[server.name] = waiting.result()
            except InfoclusterError as error:
                run.fault(str(error))
    _sweep(run, found, time.time())
    done = [one for one in found.values() if one]
    return f"{len(done)} of {len(sources)} servers, {sum(one.received for one in done)} bytes"


def _pull(run: Run, server: Server) -> Pulled:
    """Fetch from one server. Raises InfoclusterError: not all of it came."""
    directory = f"{run.settings['gather']['gather_dir']}/{names.name(server.name, 'a server')}"
    try:
        # What a run that was killed had not finished.
        shutil.rmtree(f"{directory}/{_TEMPORARY}", ignore_errors=True)
        files.make_directories(f"{directory}/{_TEMPORARY}")
    except OSError as error:
        raise UnavailableError(f"cannot make {directory}: {reason(error)}") from error
    target = (*_COPY, f"--temp-dir={directory}/{_TEMPORARY}")
    received = 0
    for rules in (_SEGMENTS, _WHOLE, _CAME_WITH):
        said = _RECEIVED.search(_asked(run, server, (*target, *rules), directory))
        received += int(said[1]) if said else 0
    has_queues = any(True for _ in glob.iglob(glob.escape(directory) + _DIRECTORY))
    listed = _asked(run, server, ("--recursive", *_LISTED), "") if has_queues else ""
    return Pulled(
        received, frozenset(line.split(None, 4)[-1] for line in listed.splitlines() if line.startswith("-"))
    )


def _asked(run: Run, server: Server, words: tuple[str, ...], directory: str) -> str:
    """Run rsync between a server and a directory of the copies, or none, and return what it said."""
    conf = run.settings
    push, source = conf["push"], conf["gather"]["pull_from"].replace("%h", server.name).rstrip("/")
    command = [push["rsync"], *words, f"--timeout={SILENCE_S}", rsync.remote_shell(server, conf), "--"]
    command += [f"{server.name}:{source}/", *([directory + "/"] if directory else [])]
    outcome = processes.run(
        command, push["server_timeout_s"], environment=rsync.environment(), output_limit_bytes=_LISTED_BYTES
    )
    if outcome.status == ssh.NOT_REACHED:
        raise ssh.not_reached(server, outcome.errors)
    # What vanished meanwhile was swept, or consumed by somebody there.
    if outcome.status not in (0, VANISHED):
        said = [line for line in outcome.errors.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
        why = names.printable(said[0]) if said else f"rsync ended with status {outcome.status}"
        raise BadInputError(f"cannot fetch all of {server.name}: {why}")
    return outcome.output.decode("ascii", "replace")


def _sweep(run: Run, found: dict[str, Pulled | None], now: float) -> None:
    """Drop from the copies what was read, a day later than its server does."""
    conf, gather = run.settings, run.settings["gather"]
    marks_dir = f"{conf['site']['production_dir']}/{gather['marks']}"
    try:
        documents = sorted(name for name in os.listdir(marks_dir) if name.endswith((".json", ".queue")))
    except FileNotFoundError:
        return
    for name in documents:
        path = f"{marks_dir}/{name}"
        try:
            if name.endswith(".json"):
                _sweep_records(run, found, path, now)
            else:
                _sweep_reports(run, found, path, now)
        except BadInputError as error:
            run.fault(str(error))


def _sweep_records(run: Run, found: dict[str, Pulled | None], path: str, now: float) -> None:
    gather = run.settings["gather"]
    app, read = marks.parse(files.read(path), path)
    for server, pulled in found.items():
        directory = f"{gather['gather_dir']}/{server}/{gather['host']}"
        is_left = _is_left(pulled, f"{gather['host']}/{app}")
        mine = [mark for mark in read if mark.server == server and not is_left(mark.segment)]
        wait_s = gather["lock_timeout_s"]
        sweep.sweep(directory, app, mine, gather["keep_days"] + 1, now, wait_s, run.say, run.fault)


def _sweep_reports(run: Run, found: dict[str, Pulled | None], path: str, now: float) -> None:
    gather = run.settings["gather"]
    app = os.path.basename(path).removesuffix(".queue")
    for server, pulled in found.items():
        queue = f"{gather['gather_dir']}/{server}/{gather['host']}/{app}"
        keep_s = run.settings["aggregate"]["clock_s"] + DAY_S
        is_left = _is_left(pulled, f"{gather['host']}/{app}")
        reports.sweep(queue, files.read(path), path, now, keep_s, run.fault, is_left)


def _is_left(pulled: Pulled | None, app: str) -> Callable[[str], bool]:
    """Return what tells whether an element stays in the copy: while its server has it, or cannot be asked."""
    return lambda name: simple.is_name(name) and (pulled is None or f"{app}/{name}" in pulled.elements)
