# SPDX-License-Identifier: Apache-2.0
"""Advance the backups of one core filer: start, ask, expire, release where the settings say so, forget.

One process at a time does so for a core filer: it holds ``STATE_DIR/<digest>/lock``. After letting go of it, it looks
once more for what is new, since a poll that found the lock held started nobody.

What has to be known outside is told before it becomes true: the operator's letter is queued before the state that it
tells of is written, so a kill in between sends it twice and never drops it.

Source: flock(2).
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infocluster import files
from infocluster.errors import InfoclusterError, UnavailableError, reason
from infocluster.locks import lockfile
from infocluster.poll import agent, kick, state
from infocluster.poll.backends import base
from infocluster.poll.state import BadStateError, State

TEMPORARY_AGE_S = 3600


@dataclass(frozen=True, slots=True)
class Watch:
    """What a round needs.

    Attributes:
        state_dir: where the states are.
        poll: the settings ``[poll]``.
        now: the clock, Unix time in s.
        say: told of each step.
        fault: told of each thing that did not work.
        write: told subject, text and key of a letter to the operator, before what it tells of is written.
    """

    state_dir: str
    poll: dict[str, Any]
    now: Callable[[], float]
    say: Callable[[str], None]
    fault: Callable[[str], None]
    write: Callable[[str, str, str], None]


def advance(watch: Watch, filer: dict[str, Any], is_urgent: bool = False) -> None:
    """Do one round for a core filer, or leave it to the process that is at it.

    Args:
        watch: what a round needs.
        filer: the core filer's settings.
        is_urgent: whether only what a poll brought is looked at: new states, and what a backup said of itself.

    Raises:
        ConfigError: its backend lacks a setting.
        UnavailableError: the state directory cannot be used.
    """
    mass = filer["name"]
    directory = state.place(watch.state_dir, mass)
    if not os.path.isdir(directory):
        return
    backend = base.made(filer, watch.poll, watch.state_dir)
    tried: set[int] = set()
    while True:
        lock = f"{directory}/{kick.LOCK}"
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise UnavailableError(f"cannot open the lock {lock}: {reason(error)}") from error
        if not lockfile.take(fd, timeout_s=0):
            os.close(fd)
            return
        try:
            said = set(state.targets(watch.state_dir, mass, state.DONE_SUFFIX))
            while targets := [target for target in state.targets(watch.state_dir, mass) if target not in tried]:
                for target in targets:
                    tried.add(target)
                    _one(watch, filer, backend, target, is_urgent and target not in said)
            _tidy(directory, watch.now())
        finally:
            lockfile.let_go(fd)
        # RACE: a poll that came after our last look, and found the lock held, has started nobody.
        tried -= set(state.targets(watch.state_dir, mass, state.DONE_SUFFIX)) - said
        if set(state.targets(watch.state_dir, mass)) <= tried:
            return


def _one(watch: Watch, filer: dict[str, Any], backend: base.Base, target: int, is_new_only: bool) -> None:
    path = state.file(watch.state_dir, filer["name"], target)
    try:
        found = state.read(path, filer["name"], target)
        if found and not (is_new_only and found.state not in ("new", "starting")):
            _advance(watch, filer, backend, path, found)
    except BadStateError as error:
        _set_aside(watch, filer["name"], target, path, error)
    except Exception as error:  # whatever is wrong with one target time, the others are looked at
        watch.fault(f"{filer['name']} {target}: {told(error)}")


def _advance(watch: Watch, filer: dict[str, Any], backend: base.Base, path: str, found: State) -> None:
    now = watch.now()
    if found.state in agent.DONE:
        if agent.is_old(found, now, watch.poll):
            _forget(watch, path, found)
        return
    if found.state == "running":
        _ask(watch, filer, backend, path, found)
        return
    late = agent.overdue(found, now, filer)
    if late is not found:
        _put(watch, path, late)
    elif found.state in agent.LOST:
        if agent.is_old(found, now, watch.poll):
            _forget(watch, path, found)
    elif found.state == "new":
        _start(watch, backend, path, found)
    else:
        # We hold the lock, so whoever wrote this is gone.
        seen = backend.confirm(found)
        if seen is None:
            lost = "whoever started it was stopped, and nothing says whether it was started"
            _put(watch, path, found.become("failed", now, lost))
        else:
            running = found.become("running", now)
            _put(watch, path, running)
            _take(watch, path, running, seen)


def _ask(watch: Watch, filer: dict[str, Any], backend: base.Base, path: str, found: State) -> None:
    """Ask how a running backup stands; only one that is not done by now can be late."""
    try:
        seen = backend.status(found)
    except Exception as error:  # whatever it is: what cannot be asked is late some day
        watch.fault(f"{found.mass} {found.target}: {told(error)}")
        seen = base.Seen("running", found.progress)
    late = agent.overdue(found, watch.now(), filer)
    if seen.state == "running" and late is not found:
        _put(watch, path, late)
    else:
        _take(watch, path, found, seen)


def _start(watch: Watch, backend: base.Base, path: str, found: State) -> None:
    job = backend.prepare(found)
    starting = found.become("starting", watch.now())
    starting.job = job
    _put(watch, path, starting)
    try:
        job = backend.start(starting)
    except Exception as error:  # whatever it is: nobody knows what was started
        _put(watch, path, starting.become("failed", watch.now(), told(error)))
        return
    running = starting.become("running", watch.now())
    running.job = job
    _put(watch, path, running)
    _take(watch, path, running, backend.status(running))


def _take(watch: Watch, path: str, found: State, seen: base.Seen) -> None:
    """Write what a backend says of a running backup, where that is news."""
    words = state.clean(seen.words)
    if seen.state == "running":
        if found.progress != words:
            found.progress = words
            _put(watch, path, found, is_news=False)
    elif seen.state == "complete":
        _put(watch, path, found.become("complete", watch.now()))
    else:
        _put(watch, path, found.become("failed", watch.now(), words or "its backend says so"))


def _put(watch: Watch, path: str, found: State, is_news: bool = True) -> None:
    """Write a state, and tell of it; the operator is told first where he has to know."""
    found.why = state.clean(found.why)
    if is_news and (found.state in agent.LOST or "forced" in found.flags):
        text = agent.text(found).replace(agent.RELEASE, "let the core filer go on (on_failure = release)")
        try:
            watch.write(f"Backup of {found.mass}: {_called(found)}", text, f"{found.run}{_called(found)}")
        except InfoclusterError as error:
            # Nothing goes on without a backup before the operator's letter is on its way.
            if "forced" in found.flags:
                raise
            watch.fault(f"{found.mass} {found.target}: {error}")
    with suppress(OSError):  # a poll since we read it is not to be forgotten
        found.polled = max(found.polled, os.stat(path).st_mtime)
    state.replace(path, found)
    if is_news:
        tell = watch.fault if found.state in agent.LOST or "forced" in found.flags else watch.say
        tell(f"{found.mass} {found.target} {_called(found)}{': ' * bool(found.why)}{found.why}")


def _called(found: State) -> str:
    return "released-although-not-complete" if "forced" in found.flags else found.state


def _set_aside(watch: Watch, mass: str, target: int, path: str, error: BadStateError) -> None:
    """Put a failed state where something unreadable is, and keep that beside it."""
    kept = f"{path[: -len(state.SUFFIX)]}.unreadable-{os.urandom(4).hex()}"
    now = watch.now()
    failed = State(mass, target, os.urandom(8).hex(), "failed", now, now)
    failed.why = f"what was kept of its state could not be used; it is now called {os.path.basename(kept)}"
    failed.flags = "held"
    try:
        # Kept by a second name: at no moment is there none, or the next poll would start the backup again.
        os.link(path, kept, follow_symlinks=False)
    except OSError as failure:
        watch.fault(f"{error}; cannot keep it as {kept}: {reason(failure)}; remove it by hand")
        return
    watch.fault(str(error))
    _put(watch, path, failed)


def _forget(watch: Watch, path: str, found: State) -> None:
    stem = path[: -len(state.SUFFIX)]
    directory, _, name = stem.rpartition("/")
    beside = [other for other in os.listdir(directory) if other.startswith((name + state.DONE_SUFFIX, f"{name}.unr"))]
    for other in [*(f"{directory}/{other}" for other in beside), path]:
        try:
            os.unlink(other)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UnavailableError(f"cannot remove {other}: {reason(error)}") from error
    watch.say(f"{found.mass} {found.target} forgotten")


def _tidy(directory: str, now: float) -> None:
    """Remove what writes that were killed left behind."""
    for entry in os.scandir(directory):
        try:
            if files.is_temporary(entry.name) and now - entry.stat(follow_symlinks=False).st_mtime > TEMPORARY_AGE_S:
                os.unlink(entry.path)
        except FileNotFoundError:
            continue


def told(error: Exception) -> str:
    """Return what went wrong, in words; what is no error of ours with its name, a backend may be anybody's."""
    return str(error) if isinstance(error, InfoclusterError) else f"{type(error).__name__}: {error}"


def clock() -> float:
    """Return the time now, Unix time in s."""
    return time.time()
