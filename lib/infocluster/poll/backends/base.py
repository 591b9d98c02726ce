# SPDX-License-Identifier: Apache-2.0
"""What every backend is: four questions about one run, and how commands are asked them.

A command is an argument list that no shell reads. In each argument ``%m`` stands for the core filer's name, ``%t``
for the target time, ``%r`` for the run's id, ``%j`` for the job, ``%%`` for ``%``. The same stand in its environment
as CORE_FILER, TARGET_TIME, RUN_ID and JOB, beside PATH, LANG and TZ; with a secret set also DONE_TOKEN and
FAILED_TOKEN. Nothing else is in it: HOME and what opens a repository, a command has to be given itself.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infocluster import processes, secrets
from infocluster.errors import ConfigError, InfoclusterError
from infocluster.poll import tokens
from infocluster.poll.state import State, clean

OUTPUT_LIMIT_BYTES = 1 << 16
PASSED = ("PATH", "LANG", "TZ")


@dataclass(frozen=True, slots=True)
class Seen:
    """How a backup stands, as its backend says: ``running``, ``complete`` or ``failed``; and in words."""

    state: str
    words: str = ""


class FailedError(InfoclusterError):
    """The backup could not be started, and will not be: the message says why."""


class Base:
    """A backend that starts nothing by itself; the others build on it.

    Args:
        filer: the settings of the core filer, a section ``[[core_filers]]``.
        poll: the settings ``[poll]``: ``start_timeout_s``, ``ask_timeout_s``.
        state_dir: where the states are.

    Raises:
        ConfigError: a setting that it needs is missing.
    """

    needs: tuple[str, ...] = ()

    def __init__(self, filer: dict[str, Any], poll: dict[str, Any], state_dir: str) -> None:
        self.filer = filer
        self.poll = poll
        self.state_dir = state_dir
        for name in self.needs:
            if not filer[name]:
                raise ConfigError(
                    f"cannot use the backend {filer['backend']} for {filer['name']}: core_filers.{name} is not set"
                )

    def prepare(self, state: State) -> str:
        """Return what has to be known before the start, to be kept as the job.

        Raises:
            InfoclusterError: not now; it is tried again.
        """
        if self.filer["secret"]:
            secrets.read(self.filer["secret"])
        return state.job

    def start(self, state: State) -> str:
        """Start the backup, and return what it is called.

        Raises:
            InfoclusterError: it was not started, or nobody knows: it will not be tried again.
        """
        command = self.filer["start"]
        if not command:
            return state.job
        outcome = self.ran(command, state, self.poll["start_timeout_s"])
        if outcome.status != 0:
            raise FailedError(f"its start ended with {ended(outcome)}")
        return clean(outcome.output.decode("utf-8", "replace").partition("\n")[0]) or state.job

    def status(self, state: State) -> Seen:
        """Return how it stands.

        Raises:
            InfoclusterError: it cannot be asked now; it is asked again.
        """
        raise NotImplementedError

    def confirm(self, state: State) -> Seen | None:
        """Return how it stands after a start that was broken off, None where nobody can know.

        Raises:
            InfoclusterError: it cannot be asked now; it is asked again.
        """
        seen = self.status(state)
        # What is complete was started; where nothing is started by us, nothing was lost.
        return seen if seen.state == "complete" or not self.filer["start"] else None

    def ran(
        self, command: list[str], state: State, timeout_s: float, limit_bytes: int = OUTPUT_LIMIT_BYTES
    ) -> processes.Outcome:
        """Run a command to its end, and return the first bytes of what it says.

        Raises:
            UnavailableError: it cannot be run, or is not done in time.
        """
        environment = {name: os.environ[name] for name in PASSED if name in os.environ}
        environment.setdefault("PATH", os.defpath)
        environment |= {"CORE_FILER": state.mass, "TARGET_TIME": str(state.target)}
        environment |= {"RUN_ID": state.run, "JOB": state.job}
        if self.filer["secret"]:
            secret = secrets.read(self.filer["secret"])
            for word in ("done", "failed"):
                made = tokens.token(word, state.mass, state.target, secret)
                environment[f"{word.upper()}_TOKEN"] = made.decode("ascii")
        arguments = [filled(word, state) for word in command]
        return processes.run(
            arguments, timeout_s, environment=environment, directory="/", output_limit_bytes=limit_bytes
        )


def made(filer: dict[str, Any], poll: dict[str, Any], state_dir: str) -> Base:
    """Return the backend that a core filer's settings name.

    Raises:
        ConfigError: there is none of that name, it cannot be loaded, or it lacks a setting.
    """
    name = f"{__package__}.{filer['backend']}"
    try:
        module = importlib.import_module(name)
        found: type[Base] = module.Backend
    except Exception as error:  # anybody's module at its start: whatever it raises is its fault
        is_none = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "there is none" if is_none else f"{type(error).__name__}: {error}"
        raise ConfigError(f"cannot use the backend {filer['backend']} for {filer['name']}: {why}") from error
    return found(filer, poll, state_dir)


def filled(text: str, state: State, quoted: Callable[[str], str] = str) -> str:
    """Return a setting with what stands for the run in place of ``%m %t %r %j``.

    Args:
        text: the setting.
        state: the run.
        quoted: what makes a value fit where it stands.
    """
    values = {"m": state.mass, "t": str(state.target), "r": state.run, "j": state.job}
    head, *rest = text.split("%")
    parts = [head]
    skip = False
    for part in rest:
        if skip:
            parts.append(part)
            skip = False
        elif not part:
            parts.append("%")
            skip = True
        elif part[0] in values:
            parts.append(quoted(values[part[0]]) + part[1:])
        else:
            parts.append("%" + part)
    return "".join(parts)


def ended(outcome: processes.Outcome) -> str:
    """Return how a program ended, in words, with the last line it said."""
    said = (outcome.errors or outcome.output).decode("utf-8", "replace").strip().rpartition("\n")[2]
    how = f"exit status {outcome.status}" if outcome.status >= 0 else f"signal {-outcome.status}"
    return f"{how}: {clean(said)}" if said else how


def last_line(output: bytes) -> str:
    """Return the last line of what a program said."""
    return clean(output.decode("utf-8", "replace").strip().rpartition("\n")[2])


def pointed(document: Any, pointer: str) -> Any:
    """Return what a JSON pointer points to, None where that is nothing.

    Source: RFC 6901.
    """
    if pointer == "":
        return document
    for part in pointer.lstrip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isascii() and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document
