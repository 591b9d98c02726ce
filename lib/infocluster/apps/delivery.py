# SPDX-License-Identifier: Apache-2.0
"""Delivery: batch/wwwpush and batch/ftppush, from their arguments to a push and what is told of it.

A push completes what publishes left undone in its paths before it reads them, and its skeletons may ask for letters;
as rooms of one floor do not know each other, they are brought together here.
"""

import gc
import json
import math
import os
import sys
import time
from functools import partial

from infocluster.cron.command import Run
from infocluster.errors import InfoclusterError, RefusedError, UsageError
from infocluster.locks import pathlocks
from infocluster.names import shown
from infocluster.publish import place
from infocluster.push import run as pushing
from infocluster.push.plan import Request
from infocluster.push.record import Record

# The name a program is called by picks its family of servers.
KINDS = {"wwwpush": "web", "ftppush": "ftp"}
# Lines of a letter that a skeleton asks for.
LETTER_LINES = 1000
# What takes the place of an ordinary push; two of these do not go together.
INSTEAD = ("status", "verify", "relay", "serve", "via")
# What goes with each of them.
WITH = {
    "status": {"json"},
    "verify": {"all", "on", "json", "path", "timeout"},
    "relay": set[str](),
    "serve": {"all"},
    "via": {"path"},
}


def push(run: Run) -> str:
    """Do what the arguments ask for, and return the summary.

    Raises:
        UsageError: the arguments do not go together.
        InfoclusterError: as `pushing.push`.
    """
    # There are no rings of objects in a listing; to look for them, again and again, is a tenth of a run.
    gc.disable()
    kind = KINDS.get(run.program)
    if kind is None:
        raise UsageError(f"cannot push as {shown(run.program)}: expected to be called {' or '.join(KINDS)}")
    given_paths = run.arguments["path"]
    paths = given_paths if isinstance(given_paths, list) else []
    asked = [name for name in INSTEAD if run.arguments[name] not in (None, False)]
    for name in asked:
        given = {other for other, value in run.arguments.items() if value} - WITH[name] - {name}
        if given:
            words = ", ".join("a path" if other == "path" else f"-{other}" for other in sorted(given))
            raise UsageError(f"cannot push: -{name} does not go with {words}")
    if asked == ["status"]:
        return _status(run, kind)
    if asked == ["verify"]:
        return _verify(run, kind, paths)
    if asked == ["relay"]:
        return _relay(run)
    if asked == ["via"]:
        return _via(run, paths)
    everything = bool(run.arguments["all"])
    if asked == ["serve"]:
        from infocluster.push import serve

        paths = serve.read_paths(sys.stdin.buffer, os.environ, everything)
    if run.arguments["retry"] and (paths or everything or run.arguments["quick"]):
        raise UsageError("cannot push: -retry sends what servers lack; name no path, and neither -all nor -quick")
    return _push(run, kind, paths, everything)


def _push(run: Run, kind: str, paths: list[str], everything: bool) -> str:
    arguments = run.arguments
    request = Request(
        run.program,
        kind,
        paths,
        everything=everything,
        show=bool(arguments["show"]),
        timeout_s=_seconds(arguments["timeout"]),
        atomic=bool(arguments["atomic"]),
        on=str(arguments["on"] or ""),
        retry=bool(arguments["retry"]),
        quick=bool(arguments["quick"]),
        keep=bool(arguments["keep"]),
    )
    # With -json the record alone is on the standard output; with -quiet, nothing.
    say = _aside if arguments["json"] else _nothing if arguments["quiet"] else run.say
    finish = partial(place.finish, conf=run.settings, say=say)
    record = pushing.push(request, run.settings, finish, say, run.fault, run.progress)
    if record["notify"] and not request.show:
        _notify(run, record)
    if arguments["json"]:
        run.say(json.dumps(record))
    return "" if arguments["json"] or arguments["quiet"] else _summary(record)


def _notify(run: Run, record: Record) -> None:
    """Send the letters that skeletons ask for; one that cannot leave now waits."""
    from infocluster import letters

    site, mail = run.settings["site"], run.settings["mail"]
    try:
        for notice in record["notify"]:
            what = f"{record['program']} {pathlocks.listed(record['paths'])}"
            lines = [f"{record['user']}: {what}, to {notice['servers']}", ""]
            for change in record["changes"]:
                for verb in ("install", "update", "remove"):
                    lines += [f"{change['servers']}: {verb} {path}" for path in change[verb]]
            text = "\n".join(lines[:LETTER_LINES]) + "\n"
            letter = letters.compose(mail["from"], notice["to"], f"{site['name']}: {what}"[:200], text)
            letters.queue(site["state_dir"], letter)
        for line in letters.deliver(site["state_dir"], mail).waiting:
            _aside(f"{run.program}: the letter waits: {line}")
    except InfoclusterError as error:
        run.fault(str(error))


def _status(run: Run, kind: str) -> str:
    from infocluster.push import servers, status

    state_dir, every = run.settings["site"]["state_dir"], servers.of_kind(run.settings, kind)
    if run.arguments["json"]:
        run.say(json.dumps(status.record(state_dir, kind, every, run.fault)))
        return ""
    for line in status.status(state_dir, kind, every, time.time(), run.fault):
        run.say(line)
    return ""


def _verify(run: Run, kind: str, paths: list[str]) -> str:
    from infocluster.push import verify

    everything, on = bool(run.arguments["all"]), str(run.arguments["on"] or "")
    timeout_s = _seconds(run.arguments["timeout"])
    request = Request(run.program, kind, paths, everything=everything, on=on, timeout_s=timeout_s)
    say = _aside if run.arguments["json"] else run.say
    found = verify.all_servers(request, run.settings, say, run.fault)
    if run.arguments["json"]:
        run.say(json.dumps(verify.as_record(found)))
        return ""
    drifted = sum(not one.is_same for one in found)
    return f"{len(found)} servers compared by content, {drifted} of them drifted"


def _relay(run: Run) -> str:
    from infocluster.push import relay

    # It takes from the master what a developer has no say in, such as where the servers have their trees.
    if "SUDO_UID" in os.environ:
        raise RefusedError("cannot relay: a relay is started by ssh as the file owner, and not through sudo")
    sys.exit(relay.serve(sys.stdin.buffer, sys.stdout.buffer, run.settings))


def _via(run: Run, paths: list[str]) -> str:
    from infocluster.push import serve

    sys.exit(serve.ask(str(run.arguments["via"]), paths, run.settings, run.say, run.fault))


def _summary(record: Record) -> str:
    done = sum(server["ok"] for server in record["servers"])
    verb = "compared" if record["show"] else "pushed"
    servers = len(record["servers"])
    if not servers:
        return "no server lacks anything"
    count = f"{done} of {servers}" if done < servers else str(servers)
    what = pathlocks.listed(record["paths"])
    return f"{verb} {what} on {count} {'server' if servers == 1 else 'servers'} in {record['duration_s']:.2f} s"


def _seconds(text: object) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(str(text))
    except ValueError:
        seconds = -1.0
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"cannot wait {shown(str(text))}: expected a number of seconds")
    return seconds


def _aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _nothing(_line: str) -> None:
    return
