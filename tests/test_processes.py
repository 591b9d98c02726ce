# SPDX-License-Identifier: Apache-2.0
"""Programs are run to their end, bounded in time and in what is kept of their output."""

import os
import resource
import time
from pathlib import Path

import pytest

from infocluster import processes
from infocluster.errors import UnavailableError


def test_status_and_both_outputs_are_told():
    outcome = processes.run(["sh", "-c", "cat; echo err >&2; exit 3"], 10, b"in\0")
    assert outcome == (3, b"in\0", b"err\n")
    assert processes.run(["sh", "-c", "kill -9 $$"], 10).status == -9


def test_large_input_and_output_pass_each_other():
    content = os.urandom(1 << 20) * 4
    assert processes.run(["cat"], 30, content, output_limit_bytes=1 << 30).output == content


def test_program_that_reads_nothing_or_says_nothing_more_is_waited_for(tmp_path: Path):
    assert processes.run(["true"], 10, b"x" * (1 << 20)).status == 0
    outcome = processes.run(["sh", "-c", f"exec >&- 2>&-; sleep 0.3; touch {tmp_path}/done; exit 4"], 10)
    assert outcome.status == 4
    assert (tmp_path / "done").exists()


def test_endless_output_is_bounded_in_memory_and_time():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnavailableError, match="not done after"):
        processes.run(["yes"], 1.0, output_limit_bytes=1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert processes.run(["head", "-c", "100000", "/dev/zero"], 10, output_limit_bytes=1000).output == bytes(1000)


def test_wish_to_stop_ends_a_program_with_all_that_it_started(tmp_path: Path):
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="stopped"):
        command = f"sleep 100 & echo $! > {tmp_path}/pid; wait"
        processes.run(["sh", "-c", command], 60, is_stopped=(tmp_path / "pid").exists)
    assert time.monotonic() - began < 30
    pid = int((tmp_path / "pid").read_text() or 0)
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it runs still")
