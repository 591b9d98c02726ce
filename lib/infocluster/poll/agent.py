# SPDX-License-Identifier: Apache-2.0
"""What a poll is answered, and what a state turns into: no clock, no disk, no backend in here.

The phrase of `RELEASE` lets a storage cluster go on writing to a core filer, so it stands in an answer exactly when
the backup is complete, or was released by the settings; `without_phrase` takes it out of everything else.

A hit loads this module.

Source: Avere operations guide, "Implementing a URL Polling Agent".
"""

import time

from infocluster.poll.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RELEASE = "RELEASE Core Filer SYNC"
DONE = frozenset({"complete", "released"})
OPEN = frozenset({"new", "starting", "running"})
LOST = frozenset({"failed", "expired"})
UNREADABLE = (
    "The backup failed: what was kept of its state cannot be used, so nothing says whether it is complete. "
    "The operator of this server finds the file's name in the error log and in a letter of backup-watch.\n"
)


def asked(mass: str, target: int, run: str, now: float) -> State:
    """Return the state of a key that is asked for the first time."""
    return State(mass, target, run, "new", now, now)


def answer(state: State, now: float) -> tuple[State, str]:
    """Return what a state is after a poll, the same object where nothing changed, and the answer."""
    if state.state == "complete":
        state = state.become("released", now)
    return state, text(state)


def text(state: State) -> str:
    """Return what a person understands and the cluster looks into for the phrase."""
    what = f"The backup of {state.mass} for the target time {moment(state.target)}"
    since = moment(state.since)
    if state.state in DONE:
        # Whatever else is said here, the phrase is in it once.
        said = f"{what} is complete."
        if "forced" in state.flags:
            said = f"{what} is not complete ({state.why}); the settings of this server say to go on nonetheless."
        return f"{without_phrase(said)}\nIt is time to {RELEASE}\n"
    if state.state == "running":
        said = f"{what} has been running since {since}: {state.progress or 'no progress is told'}."
    elif state.state == "failed":
        said = f"{what} failed at {since}: {state.why}."
    elif state.state == "expired":
        said = f"{what} expired at {since}: {state.why}."
    else:
        said = f"{what} has been starting since {since}."
    return without_phrase(said) + "\n"


def overdue(state: State, now: float, filer: "dict[str, Any]") -> State:
    """Return what a state is by the clock alone, the same object where that changes nothing.

    Args:
        state: not ``complete`` or ``released``.
        now: Unix time, s.
        filer: the core filer's settings: ``limit_s``, ``on_failure``, ``hold_s``.
    """
    if state.state in OPEN and now > max(state.asked, state.target) + filer["limit_s"]:
        return state.become("expired", now, f"it was not complete after {filer['limit_s']:g} s")
    may_go = filer["on_failure"] == "release" and "held" not in state.flags
    if state.state in LOST and may_go and now >= state.asked + filer["hold_s"]:
        other = state.become("released", now)
        other.flags = "forced"
        return other
    return state


def is_old(state: State, now: float, poll: "dict[str, Any]") -> bool:
    """Tell whether a state may be forgotten: its target time has for days been too old to be taken as a new one."""
    kept_s = poll["age_s"] + poll["keep_days"] * 86400
    return bool(now > max(state.target, state.since) + kept_s)


def moment(seconds: float) -> str:
    """Return a time as people read it; one that no calendar holds as a number."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f}"


def without_phrase(said: str) -> str:
    """Return a text without the phrase: what a backend said, or a name, must not release anything."""
    return said.replace(RELEASE, RELEASE.lower())
