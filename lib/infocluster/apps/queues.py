# SPDX-License-Identifier: Apache-2.0
"""What the program queue does: directory queues from the command line.

Shape: ``ASIDE/failures/DDDDDDDD.SSSSSSSSMMMMMR`` counts how often an element was tried without success, in decimal.
    It is written before an element is read, so that one that cannot be read, or takes its consumer down with it, is
    set aside too.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from infocluster import files, processes
from infocluster.cron.command import Run
from infocluster.errors import BadInputError, InfoclusterError, UnavailableError, UsageError, reason
from infocluster.names import shown
from infocluster.queue import normal, simple, ssm
from infocluster.queue.normal import Normal
from infocluster.queue.simple import Simple

Queue = Simple | Normal

FAILURES = 3
TIMEOUT_S = 3600.0
# How often the lock of an element that is worked on is made new, and how often at least while it ages.
TOUCH_S = 60.0
TOUCHES = 3


class Options(NamedTuple):
    """The options with their values read."""

    move: bool
    is_ssm: bool
    base64: bool
    split: bool
    limit_bytes: int
    umask: int | None
    granularity_s: int
    json: bool
    field: str
    failures: int
    aside: str
    timeout_s: float
    temporary_age_s: float
    lock_age_s: float


def work(run: Run) -> str:
    """Do what the first argument says, and return the summary.

    Raises:
        UsageError: there is no such action, or it lacks its arguments.
        UnavailableError: there is no such queue, or it cannot be used.
    """
    action = str(run.arguments["action"])
    rest = run.arguments["argument"]
    given = [str(word) for word in rest] if isinstance(rest, list) else []
    options = _options(run)
    if action == "ssm-check":
        return _ssm_check(run, options, given)
    actions: dict[str, Callable[[Run, Options, str, list[str]], str]] = {
        "add": _add,
        "list": _list,
        "count": _count,
        "get": _get,
        "consume": _consume,
        "purge": _purge,
    }
    if action not in actions:
        raise UsageError(f"cannot {action}: expected one of {', '.join([*actions, 'ssm-check'])}")
    if not given or not given[0]:
        raise UsageError(f"cannot {action}: name the queue's directory")
    if given[1:] and action in ("list", "count", "purge"):
        raise UsageError(f"cannot {action}: one directory at a time, and {shown(given[1])} is one word too many")
    path = given[0].rstrip("/") or "/"
    if action != "add" and not os.path.isdir(path):
        raise UnavailableError(f"cannot {action}: {path} is no directory")
    return actions[action](run, options, path, given[1:])


def _options(run: Run) -> Options:
    def number(name: str, default: float) -> float:
        """Return an option's value; one whose default is whole is whole."""
        text = run.arguments[name]
        try:
            value = default if text is None else type(default)(str(text))
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise UsageError(f"cannot use -{name} {shown(str(text))}: expected {kind}")
        return value

    text = run.arguments["umask"]
    try:
        umask = None if text is None else int(str(text), 8)
    except ValueError:
        umask = -1
    if umask is not None and not 0 <= umask <= 0o777:
        raise UsageError(f"cannot use -umask {shown(str(text))}: expected an octal mode such as 007")
    return Options(
        bool(run.arguments["move"]),
        bool(run.arguments["ssm"]),
        bool(run.arguments["base64"]),
        bool(run.arguments["split"]),
        int(number("limit", ssm.LIMIT_BYTES)),
        umask,
        int(number("granularity", simple.GRANULARITY_S)),
        bool(run.arguments["json"]),
        str(run.arguments["field"] or "body"),
        int(number("failures", FAILURES)),
        str(run.arguments["aside"] or ""),
        number("timeout", TIMEOUT_S),
        number("temporary-age", simple.TEMPORARY_AGE_S),
        number("lock-age", simple.LOCK_AGE_S),
    )


def _opened(path: str, options: Options) -> Queue:
    if normal.is_normal(path):
        return Normal(path, normal.SSM_SCHEMA, options.umask)
    return Simple(path, options.umask, options.granularity_s, durable=True)


def _add(run: Run, options: Options, path: str, given: list[str]) -> str:
    queue = _opened(path, options)
    if isinstance(queue, Normal):
        raise UsageError(f"cannot add to {path}: it is a normal queue, whose elements have fields")
    changes = options.is_ssm or options.base64 or options.split
    if options.move and (changes or not given):
        raise UsageError("cannot use -move: it takes files as they are")
    for file in given or ["-"]:
        try:
            if options.move:
                run.say(queue.add_path(file))
                continue
            contents = _contents(file, options)
            if options.is_ssm and (found := _faults(contents, options)):
                raise BadInputError(f"cannot add {file}: {found}")
            for content in contents:
                run.say(queue.add(content))
        except InfoclusterError as error:
            if len(given) <= 1:
                raise
            run.fault(str(error))
    return ""


def _contents(file: str, options: Options) -> list[bytes]:
    try:
        content = sys.stdin.buffer.read() if file == "-" else files.read(file)
    except OSError as error:
        raise UnavailableError(f"cannot read {file}: {reason(error)}") from error
    limit_bytes = ssm.before_encoding(options.limit_bytes) if options.base64 else options.limit_bytes
    contents = ssm.split(content, limit_bytes) if options.split else [content]
    return [ssm.encoded(part) for part in contents] if options.base64 else contents


def _faults(contents: list[bytes], options: Options) -> str:
    """Return why SSM2 would not carry these contents; "" where it would."""
    found = [fault for content in contents for fault in ssm.faults(content, options.limit_bytes)]
    return "; ".join(dict.fromkeys(found))


def _ssm_check(run: Run, options: Options, given: list[str]) -> str:
    bad = 0
    for file in given or ["-"]:
        try:
            contents = _contents(file, options)
            found = _faults(contents, options)
        except BadInputError as error:  # it cannot be split
            found = str(error)
        bad += bool(found)
        run.say(f"{file}: {found or 'ok' + f', in {len(contents)} messages' * options.split}")
    if bad:
        raise BadInputError(f"cannot send {bad} of {len(given) or 1} through SSM2")
    return ""


def _list(run: Run, options: Options, path: str, given: list[str]) -> str:
    queue = _opened(path, options)
    listed = [(name, os.path.lexists(f"{path}/{name}{queue.lock_suffix}")) for name in queue]
    if options.json:
        run.say(json.dumps([{"name": name, "locked": is_locked} for name, is_locked in listed]))
    else:
        for name, is_locked in listed:
            run.say(f"{name} locked" if is_locked else name)
    return ""


def _count(run: Run, options: Options, path: str, given: list[str]) -> str:
    run.say(str(_opened(path, options).count()))
    return ""


def _get(run: Run, options: Options, path: str, given: list[str]) -> str:
    if not given:
        raise UsageError("cannot get: an element's name is missing; see queue list")
    queue = _opened(path, options)
    for name in given:
        if not simple.is_name(name):
            raise UsageError(f"cannot get {shown(name)}: no name of an element")
        try:
            if not queue.lock(name):
                run.fault(f"cannot get {name}: it is locked, or there is no such element")
                continue
            try:
                content, _ = _content(queue, name, options)
            finally:
                queue.unlock(name)
        except InfoclusterError as error:
            run.fault(str(error))
            continue
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(content or b"")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UnavailableError(f"cannot write to the standard output: {reason(error)}") from error
    return ""


def _content(queue: Queue, name: str, options: Options) -> tuple[bytes | None, dict[str, str]]:
    """Return what an element holds, None where our lock on it has ended, and what its other fields are."""
    if isinstance(queue, Simple):
        return queue.get(name), {}
    fields = queue.get(name)
    if fields is None:
        return None, {}
    if options.field not in fields:
        raise BadInputError(f"cannot read {queue.path}/{name}: it has no field {options.field}")
    others = {f"QUEUE_{field.upper()}": str(value) for field, value in fields.items() if field != options.field}
    return str(fields[options.field]).encode("utf-8"), others


def _purge(run: Run, options: Options, path: str, given: list[str]) -> str:
    temporaries, locks, emptied = _opened(path, options).purge(options.temporary_age_s, options.lock_age_s)
    return f"{temporaries} unfinished, {locks} old locks and {emptied} empty directories removed"


def _consume(run: Run, options: Options, path: str, command: list[str]) -> str:
    if not command:
        raise UsageError("cannot consume: the command is missing; write it behind --")
    if shutil.which(command[0]) is None:
        raise UsageError(f"cannot consume: there is no program {command[0]}")
    queue = _opened(path, options)
    # Beside the queue, also where that is named as ".".
    aside = _Aside(os.path.abspath(options.aside or os.path.abspath(path) + ".failed"), isinstance(queue, Normal))
    if f"{os.path.realpath(aside.path)}/".startswith(f"{os.path.realpath(path)}/"):
        raise UsageError(f"cannot consume: {aside.path} is in the queue itself; name another place with -aside")
    try:
        queue.purge(options.temporary_age_s, options.lock_age_s)
    except UnavailableError as error:
        run.fault(str(error))
    done = failed = 0
    for name in queue.locked(run.fault):
        why = _tried(queue, name, command, options, aside)
        try:
            if why is None:
                done += queue.remove(name)
                aside.forget(name)
                continue
            failed += 1
            run.fault(f"{name}: {why}")
            if options.failures and aside.tries(name) >= options.failures:
                if aside.take(queue, name):
                    run.fault(f"{name}: set aside in {aside.path}")
            else:
                queue.unlock(name)
        except UnavailableError as error:
            run.fault(f"{name}: {error}")
            queue.unlock(name)
    return f"{done} consumed, {failed} failed"


def _tried(queue: Queue, name: str, command: list[str], options: Options, aside: "_Aside") -> str | None:
    """Run the command for an element; return why that failed, or None."""
    try:
        if options.failures:
            aside.note(name)
        content, others = _content(queue, name, options)
        if content is None:
            aside.forget(name, by=1)
            return "somebody else has it now"
        for variable, value in others.items():
            if "\0" in value:
                raise BadInputError(f"cannot hand on {variable}: it holds a NUL")
        timeout_s = options.timeout_s or float("inf")
        touched = time.monotonic()
        touch_s = min(TOUCH_S, options.lock_age_s / TOUCHES) if options.lock_age_s else TOUCH_S
        lost = False

        def is_lost() -> bool:
            nonlocal touched, lost
            if time.monotonic() - touched >= touch_s:
                touched = time.monotonic()
                lost = not queue.touch(name)
            return lost

        environment = {**os.environ, **others, "QUEUE_ELEMENT": name}
        outcome = processes.run(command, timeout_s, content, environment, is_stopped=is_lost, is_shown=True)
        said = outcome.errors.decode("utf-8", "replace").strip().splitlines()
        why = None
        if outcome.status:
            why = f"signal {-outcome.status}" if outcome.status < 0 else f"exit status {outcome.status}"
            why += f": {said.pop()}" if said else ""
        if said:
            with suppress(OSError):
                print(*said, sep="\n", file=sys.stderr, flush=True)
        return why
    except InfoclusterError as error:
        return str(error)
    except BaseException:
        # Asked to end: that is not the element's fault.
        aside.forget(name, by=1)
        queue.unlock(name)
        raise


class _Aside:
    """Where elements go whose command failed too often, and the count of that."""

    def __init__(self, path: str, is_normal: bool) -> None:
        self.path = path
        self.is_normal = is_normal

    def tries(self, name: str) -> int:
        try:
            return int(files.read(self._file(name)))
        except (FileNotFoundError, ValueError):
            return 0
        except OSError as error:
            raise UnavailableError(f"cannot read {self._file(name)}: {reason(error)}") from error

    def note(self, name: str) -> None:
        self._write(name, self.tries(name) + 1)

    def forget(self, name: str, by: int = 0) -> None:
        """Forget the tries of an element, or the last few."""
        left = self.tries(name) - by if by else 0
        if left > 0:
            self._write(name, left)
            return
        try:
            os.unlink(self._file(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise UnavailableError(f"cannot remove {self._file(name)}: {reason(error)}") from error

    def take(self, queue: Queue, name: str) -> bool:
        directory = name.partition("/")[0]
        try:
            for below in (normal.TEMPORARY, normal.OBSOLETE, directory) if self.is_normal else (directory,):
                files.make_directories(f"{self.path}/{below}")
        except OSError as error:
            raise UnavailableError(f"cannot make {self.path}/{directory}: {reason(error)}") from error
        is_taken = queue.take_out(name, f"{self.path}/{name}")
        self.forget(name)
        return is_taken

    def _write(self, name: str, tries: int) -> None:
        try:
            files.make_directories(f"{self.path}/failures")
            files.replace(self._file(name), b"%d\n" % tries, durable=False)
        except OSError as error:
            raise UnavailableError(f"cannot write {self._file(name)}: {reason(error)}") from error

    def _file(self, name: str) -> str:
        return f"{self.path}/failures/{name.replace('/', '.')}"
