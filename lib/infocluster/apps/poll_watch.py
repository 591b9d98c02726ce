# SPDX-License-Identifier: Apache-2.0
"""What backup-watch does: have backups advanced, several core filers at once, and mail what went wrong.

Run by the web server's user, who owns the states; so the letters wait in the state directory, not with the file
owner's.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infocluster import config, letters
from infocluster.apps import accounts, poll, poll_page
from infocluster.apps.locks import columns
from infocluster.cron.command import Run
from infocluster.errors import ConfigError, InfoclusterError, RefusedError, UnavailableError, UsageError, reason
from infocluster.names import shown
from infocluster.poll import kick, state, watch

AT_ONCE = 8
LOG_LIMIT_BYTES = 1 << 20


def work(run: Run) -> str:
    """Do one round, or rounds until a signal comes, and return the summary.

    Raises:
        RefusedError: the states are another user's.
        UsageError: there is no such core filer.
        UnavailableError: no state directory is named, or the states cannot be read.
    """
    filers = _filers(run)
    state_dir = poll.directory(run.settings["poll"], os.environ.get("SERVER_GATHER", ""))
    if run.arguments["status"]:
        rows = poll_page.rows({**run.settings, "core_filers": filers}, state_dir, time.time())
        for line in columns([poll_page.HEAD, *rows]):
            run.say(line)
        return ""
    _check_user(state_dir, filers)
    _shorten(f"{state_dir}/{kick.LOG}")
    while True:
        faults = len(run.faults)
        _round(run, state_dir, filers)
        if not run.arguments["follow"]:
            count = len(filers)
            return f"{count} core filer{'s' * (count != 1)} looked at"
        time.sleep(run.settings["poll"]["follow_s"])
        try:
            # poll.cgi reads them anew too, and what it starts has to be followed.
            run.settings = config.load()
            filers = _filers(run)
        except InfoclusterError as error:
            run.fault(str(error))
        del run.faults[faults:]


def _filers(run: Run) -> "list[dict[str, Any]]":
    """Return the core filers that are asked for."""
    filers: list[dict[str, Any]] = run.settings["core_filers"]
    only = run.arguments["only"]
    if only is not None and only not in [filer["name"] for filer in filers]:
        raise UsageError(f"cannot watch {shown(str(only))}: there is no core filer of this name")
    return [filer for filer in filers if only in (None, filer["name"])]


def _check_user(state_dir: str, filers: "list[dict[str, Any]]") -> None:
    """Go on as who owns the states: what another one wrote, root too, poll.cgi could not read any more."""
    for filer in filers:
        directory = state.place(state_dir, filer["name"])
        try:
            owner = os.stat(directory).st_uid
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UnavailableError(f"cannot watch {directory}: {reason(error)}") from error
        if owner != os.geteuid():
            user = accounts.by_number(owner).name
            raise RefusedError(
                f"cannot watch as {accounts.by_number(os.geteuid()).name}: the states in {directory} are "
                f"{user}'s; run it as that user, or give them to the right one by chown -R"
            )


def _round(run: Run, state_dir: str, filers: "list[dict[str, Any]]") -> None:
    mail = run.settings["mail"]
    is_urgent = run.arguments["only"] is not None

    def write(subject: str, text: str, key: str) -> None:
        if not mail["to"]:
            return
        host = os.uname().nodename
        body = f"{text}\nOn {host}; see status.cgi there, or backup-watch -status.\n"
        letter = letters.compose(mail["from"], mail["to"], subject, body, key=key)
        letters.queue(state_dir, letter)

    of_round = watch.Watch(state_dir, run.settings["poll"], time.time, run.say, run.fault, write)

    def one(filer: "dict[str, Any]") -> None:
        try:
            watch.advance(of_round, filer, is_urgent)
        except Exception as error:  # whatever is wrong with one core filer, the others are looked at
            run.fault(f"{filer['name']}: {watch.told(error)}")

    with ThreadPoolExecutor(min(AT_ONCE, len(filers) or 1)) as pool:
        list(pool.map(one, filers))
    if not is_urgent and mail["to"]:
        _deliver(run, state_dir)


def _deliver(run: Run, state_dir: str) -> None:
    try:
        done = letters.deliver(state_dir, run.settings["mail"])
    except InfoclusterError as error:
        run.fault(str(error))
        return
    for line in [*done.refused, *done.partly]:
        run.fault(line)
    for line in done.waiting:
        run.say(f"a letter waits: {line}")


def _shorten(log: str) -> None:
    """Keep one older log beside the one that starters write to."""
    try:
        if os.stat(log).st_size > LOG_LIMIT_BYTES:
            os.rename(log, log + ".1")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot write {log}: {reason(error)}") from error
