# SPDX-License-Identifier: Apache-2.0
"""What backup-watch does: have backups advanced, several core filers at once, and mail what went wrong.

Run by the web server's user, who owns the states; so the letters wait in the state directory, not with the file
owner's.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from infocluster import letters
from infocluster.apps import poll, poll_page
from infocluster.cron.command import Run
from infocluster.errors import ConfigError, InfoclusterError, UsageError, reason
from infocluster.names import shown
from infocluster.poll import kick, watch

AT_ONCE = 8
LOG_LIMIT_BYTES = 1 << 20


def work(run: Run) -> str:
    """Do one round, or rounds until a signal comes, and return the summary.

    Raises:
        ConfigError: no state directory is named, or a name is there twice.
        UsageError: there is no such core filer.
        UnavailableError: the states cannot be read.
    """
    settings = run.settings
    filers = settings["core_filers"]
    twice = {filer["name"] for filer in filers if [other["name"] for other in filers].count(filer["name"]) > 1}
    if twice:
        raise ConfigError(f"cannot watch: core_filers.name {shown(min(twice))} is there twice")
    state_dir = poll.directory(settings["poll"], os.environ.get("SERVER_GATHER", ""))
    if run.arguments["status"]:
        for row in poll_page.rows(settings, state_dir, time.time()):
            run.say("  ".join(cell for cell in row if cell))
        return ""
    only = run.arguments["only"]
    if only is not None:
        filers = [filer for filer in filers if filer["name"] == only]
        if not filers:
            raise UsageError(f"cannot watch {shown(str(only))}: there is no core filer of this name")
    _shorten(f"{state_dir}/{kick.LOG}")
    while True:
        faults = len(run.faults)
        _round(run, state_dir, filers, only is not None)
        if not run.arguments["follow"]:
            count = len(filers)
            return f"{count} core filer{'s' * (count != 1)} looked at"
        del run.faults[faults:]
        time.sleep(settings["poll"]["follow_s"])


def _round(run: Run, state_dir: str, filers: "list[dict[str, object]]", is_urgent: bool) -> None:
    mail = run.settings["mail"]

    def write(subject: str, text: str, key: str) -> None:
        if not mail["to"]:
            return
        host = os.uname().nodename
        body = f"{text}\nOn {host}; see status.cgi there, or backup-watch -status.\n"
        letter = letters.compose(mail["from"], mail["to"], subject, body, key=key)
        letters.queue(state_dir, letter)

    of_round = watch.Watch(state_dir, run.settings["poll"], time.time, run.say, run.fault, write)

    def one(filer: "dict[str, object]") -> None:
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
