# SPDX-License-Identifier: Apache-2.0
"""A program of ours under `killer.py`: killed before one of its steps, or its steps counted."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from conftest import ROOT


def run(
    n: int, program: Sequence[str], environment: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[bytes], int]:
    """Run a program, killed before its step n, and return what it said, and -9 or, where n < 0, its steps."""
    read, write = os.pipe()
    command = [sys.executable, str(ROOT / "tests/killer.py"), str(n), str(write), *program]
    done = subprocess.run(command, env=environment, capture_output=True, pass_fds=[write], timeout=60, check=False)
    os.close(write)
    with open(read, "rb") as said:
        words = said.read().split()
    return done, int(words[0]) if words else done.returncode
