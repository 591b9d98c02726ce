# SPDX-License-Identifier: Apache-2.0
"""Other programs: started without a shell, with a time limit, and with an end to what they may say.

This module owns `subprocess`. A program is an argument list whose first item is its path or name; text from
outside never becomes an option (`operand` puts it behind ``--`` or before a ``./``).
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infocluster.errors import UnavailableError, reason

OUTPUT_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: its exit status (negative: the signal that killed it) and what it said."""

    status: int
    output: bytes
    errors: bytes


def run(
    arguments: Sequence[str],
    timeout_s: float,
    content: bytes = b"",
    environment: Mapping[str, str] | None = None,
    directory: str | None = None,
) -> Outcome:
    """Run a program to its end and return how it ended.

    It leads a process group of its own, which is killed when the time is over, so that nothing of it stays.

    Args:
        arguments: the program and its arguments; no shell reads them.
        timeout_s: seconds until it is killed.
        content: what it reads on standard input.
        environment: its whole environment; by default ours.
        directory: where it starts; by default here.

    Raises:
        UnavailableError: it cannot be started, or did not end in time.
    """
    program = arguments[0]
    try:
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
    except OSError as error:
        raise UnavailableError(f"cannot run {program}: {reason(error)}") from error
    with process:
        try:
            output, errors = process.communicate(content, timeout_s)
        except subprocess.TimeoutExpired:
            kill_group(process.pid)
            process.communicate()
            raise UnavailableError(f"cannot run {program}: not done after {timeout_s:g} s") from None
        except BaseException:
            kill_group(process.pid)
            raise
    return Outcome(process.returncode, output[:OUTPUT_LIMIT_BYTES], errors[:OUTPUT_LIMIT_BYTES])


def kill_group(leader: int) -> None:
    """Kill a process and all it started that stayed in its group; one that is gone already is no error."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
