# SPDX-License-Identifier: Apache-2.0
"""What gather-pull does: on the batch host, fetch what the servers gathered, where there is no NFS.

1. Every server's gather directory is copied to GATHER_DIR/SERVER by rsync over ssh, several at once. Segments only
   grow, so only what is new of them travels; what is there is compared by its checksum when more is added to it.
2. What came with records is fetched once more behind them: each record in the copy has its files.
3. Directory queues are left: they are consumed where they are.
4. Nothing is removed because a server has it no more. What the night has read goes from the copy a day after the
   server may have dropped it, by the same marks and the same rule (`gather.sweep`).

Nothing is ever written on a server: the key that this runs with may be held to reading there.

Source: rsync(1), --append-verify; rrsync(1).
"""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

from infocluster import files, names, processes
from infocluster.cron.command import Run
from infocluster.errors import BadInputError, ConfigError, InfoclusterError, reason
from infocluster.gather import marks, sweep
from infocluster.push import rsync, servers, ssh
from infocluster.push.servers import Server

SILENCE_S = 60
# Locks, what is not whole yet, and directory queues: a copy of a consumed element would be one more element.
_LEFT = ("--exclude=*.lock", "--exclude=.*", f"--exclude=/*/*/{'[0-9a-f]' * 8}/")
_COPY = ("--recursive", "--times", "--append-verify", "--chmod=D0750,F0640", "--perms", "--stats", "--no-h")
_ONLY_FILES = ("--include=/*/", "--include=/*/*.files/***", "--exclude=*")
_RECEIVED = re.compile(r"^Total bytes received: (\d+)$", re.MULTILINE)


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
    fetched = received = 0
    with ThreadPoolExecutor(max(1, min(conf["push"]["parallel"], len(sources))), "pull") as pool:
        for waiting in [pool.submit(_pull, run, server) for server in sources]:
            try:
                received += waiting.result()
                fetched += 1
            except InfoclusterError as error:
                run.fault(str(error))
    _sweep(run, [server.name for server in sources], time.time())
    return f"{fetched} of {len(sources)} servers, {received} bytes"


def _pull(run: Run, server: Server) -> int:
    """Fetch from one server and return how many bytes came. Raises InfoclusterError: not all of it did."""
    directory = f"{run.settings['gather']['gather_dir']}/{names.name(server.name, 'a server')}"
    try:
        files.make_directories(directory)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {reason(error)}") from error
    return _fetched(run, server, directory, ()) + _fetched(run, server, directory, _ONLY_FILES)


def _fetched(run: Run, server: Server, directory: str, rules: tuple[str, ...]) -> int:
    conf = run.settings
    push, source = conf["push"], conf["gather"]["pull_from"].replace("%h", server.name).rstrip("/")
    words = [push["rsync"], *_COPY, *_LEFT, *rules, f"--timeout={SILENCE_S}"]
    words += [rsync.remote_shell(server, conf), "--", f"{server.name}:{source}/", directory + "/"]
    outcome = processes.run(words, push["server_timeout_s"], environment=rsync.environment())
    if outcome.status == ssh.NOT_REACHED:
        raise ssh.not_reached(server, outcome.errors)
    if outcome.status:
        said = [line for line in outcome.errors.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
        why = names.printable(said[0]) if said else f"rsync ended with status {outcome.status}"
        raise BadInputError(f"cannot fetch all of {server.name}: {why}")
    found = _RECEIVED.search(outcome.output.decode("ascii", "replace"))
    return int(found[1]) if found else 0


def _sweep(run: Run, fetched: list[str], now: float) -> None:
    """Drop from the copies what was read, a day later than its server does."""
    conf, gather = run.settings, run.settings["gather"]
    marks_dir = f"{conf['site']['production_dir']}/{gather['marks']}"
    try:
        documents = sorted(name for name in os.listdir(marks_dir) if name.endswith(".json"))
    except FileNotFoundError:
        return
    for name in documents:
        try:
            app, read = marks.parse(files.read(f"{marks_dir}/{name}"), f"{marks_dir}/{name}")
        except BadInputError as error:
            run.fault(str(error))
            continue
        for server in fetched:
            directory = f"{gather['gather_dir']}/{server}/{gather['host']}"
            mine = [mark for mark in read if mark.server == server]
            wait_s = gather["lock_timeout_s"]
            sweep.sweep(directory, app, mine, gather["keep_days"] + 1, now, wait_s, run.say, run.fault)
