# SPDX-License-Identifier: Apache-2.0
"""Progress: a bar at a terminal, nothing elsewhere."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infocluster.cron import progress

CODE = f"""
import sys
sys.path.insert(0, {str(Path(progress.__file__).parents[2])!r})
from infocluster.cron import progress
with progress.bar("reading", 8, sys.argv[1]) as advance:
    for _ in range(8):
        advance(1)
    print("said")
print("rich" in sys.modules)
"""


def started(unit: str, errors: int) -> "subprocess.Popen[bytes]":
    environment = {"TERM": "xterm", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, unit], stdout=subprocess.PIPE, stderr=errors, env=environment
    )


def test_nothing_is_shown_or_loaded_without_a_terminal() -> None:
    with started("records", subprocess.PIPE) as process:
        assert process.communicate(timeout=30) == (b"said\nFalse\n", b"")


@pytest.mark.parametrize(
    ("unit", "shown"), [("records", rb"8/8 records \S+ records/s "), ("bytes", rb"8/8 bytes \S+ \S+/s ")]
)
def test_a_bar_is_shown_on_a_terminal_and_the_output_is_left_alone(unit: str, shown: bytes) -> None:
    ours, theirs = pty.openpty()
    with started(unit, theirs) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # the other end is closed
            os.close(ours)
        assert process.communicate(timeout=30)[0] == b"said\nTrue\n"
    plain = re.sub(rb"\x1b\[[^A-Za-z]*[A-Za-z]", b"", seen)
    assert b"reading" in plain
    assert re.search(shown, plain)
