# SPDX-License-Identifier: Apache-2.0
"""Append: 8 processes x 5,000 records into one segment while readers run, beside a bare O_APPEND + flock loop."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from infocluster.gather import collect

LIB = str(Path(__file__).resolve().parents[2] / "lib")
PROCESSES, RECORDS = 8, 5000
OURS = """
import sys
from infocluster.gather import drop
settings = {"durable": sys.argv[2] == "durable", "lock_timeout_s": 60, "limit_bytes": 65536}
for n in range(int(sys.argv[3])):
    drop.append("survey", {"agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0)"}, settings, sys.argv[1])
"""
BARE = """
import fcntl, os, sys
line = b'{"id":"0123456789abcdef01234567","time":1795384800.25,"agent":"Mozilla/5.0 (X11; Linux)"}\\n'
os.makedirs(sys.argv[1] + "/bare", exist_ok=True)
for n in range(int(sys.argv[3])):
    lock = os.open(sys.argv[1] + "/bare.lock", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    fd = os.open(sys.argv[1] + "/bare/segment", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line)
    os.close(lock)
    if sys.argv[2] == "durable": os.fsync(fd)
    os.close(fd)
"""


def flat_out(code: str, directory: str, durable: str, records: int, reader: bool = False) -> float:
    """Run the writers to their end and return records/s, their start-up left out by a run without records."""
    began = time.perf_counter()
    writers = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", code, directory, durable, str(records)], env={"PYTHONPATH": LIB}
        )
        for _ in range(PROCESSES)
    ]
    while any(writer.poll() is None for writer in writers):
        if reader:
            for _, _, _, record in collect.read(
                collect.Source(os.path.dirname(os.path.dirname(directory)), "survey", "www"), {}
            ):
                json.loads(record)
        else:
            time.sleep(0.002)
    assert all(writer.wait() == 0 for writer in writers)
    return time.perf_counter() - began


def main() -> None:
    print(f"append: {PROCESSES} processes x {RECORDS} records into one segment")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        directory = f"{top}/web1/www"
        os.makedirs(directory)
        flat_out(OURS, directory, "durable", RECORDS, reader=True)
        records = [json.loads(record) for _, _, _, record in collect.read(collect.Source(top, "survey", "www"), {})]
        assert len(records) == len({r["id"] for r in records}) == PROCESSES * RECORDS
        print(f"with a reader running, durable: {len(records)} records, all whole, none lost, none torn")
        for durable in ("no fsync", "durable"):
            total = PROCESSES * RECORDS
            ours, bare = (
                total / (flat_out(code, directory, durable, RECORDS) - flat_out(code, directory, durable, 0))
                for code in (OURS, BARE)
            )
            print(
                f"{durable:10} ours {ours:9.0f} records/s   bare loop {bare:9.0f} records/s   ratio {ours / bare:.2f}"
            )


if __name__ == "__main__":
    main()
