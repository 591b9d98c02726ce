# SPDX-License-Identifier: Apache-2.0
"""A real Dask scheduler and real workers on loopback, each a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT

START_S = 60.0
# Ends with whoever started it: a test that is killed leaves no worker that waits for ever.
WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Cluster:
    """A scheduler that runs; made by `started`.

    Attributes:
        address: where it is.
        top: a directory for what its processes write.
    """

    def __init__(self, top: Path, scheme: str = "tcp", variables: dict[str, str] | None = None) -> None:
        top.mkdir(parents=True, exist_ok=True)
        self.top = top
        self.variables = variables or {}
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        told = top / "scheduler.json"
        self.scheduler = self._process(
            "scheduler", ["--host", f"{scheme}://127.0.0.1", "--port", "0", "--scheduler-file", str(told)]
        )
        self._wait("scheduler", self.scheduler, lambda: told.exists() and told.read_text().endswith("}"))
        self.address: str = json.loads(told.read_text())["address"]

    def worker(
        self, name: str, *, directory: Path | None = None, path: str = "", **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker of one thread and wait until the scheduler has it.

        Args:
            name: what it is called.
            directory: where it runs.
            path: its PYTHONPATH; by default the checkout's library and tests.
            variables: its environment, beside the usual.
        """
        process = self._process(
            name,
            [self.address, "--name", name, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"]
            + ["--preload", "gather.victim"] * bool({"VICTIM_FIFO", "BYSTANDER_FIFO"} & set(variables)),
            directory,
            variables | ({"PYTHONPATH": path} if path else {}),
            "worker",
        )
        self.workers[name] = process
        self._wait(name, process, lambda: "Registered to" in (self.top / f"{name}.log").read_text())
        return process

    def _process(
        self,
        name: str,
        options: list[str],
        directory: Path | None = None,
        variables: dict[str, str] | None = None,
        program: str = "scheduler",
    ) -> subprocess.Popen[bytes]:
        own = self.top / f"{name}.d"
        own.mkdir()
        environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "HOME": str(self.top),
            "PYTHONPATH": f"{ROOT}/lib:{ROOT}/tests",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DASK_TEMPORARY_DIRECTORY": str(own),
            **self.variables,
            **(variables or {}),
        }
        with (self.top / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*WITH_US, sys.executable, "-m", f"distributed.cli.dask_{program}", "--no-dashboard", *options],
                env=environment,
                cwd=directory or own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(self, name: str, process: subprocess.Popen[bytes], is_there) -> None:  # type: ignore[no-untyped-def]
        end = time.monotonic() + START_S
        while not is_there():
            log = self.top / f"{name}.log"
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.02)

    def end(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            if process.poll() is None:
                process.kill()
            process.wait()


class Killed:
    """A process that is killed as soon as a victim (see gather.victim) has read what it is to read; two fifos."""

    def __init__(self, top: Path) -> None:
        self.victim = {"VICTIM_FIFO": str(top / "victim.fifo")}
        self.bystander = {"BYSTANDER_FIFO": str(top / "bystander.fifo")}
        for fifo in (top / "victim.fifo", top / "bystander.fifo"):
            os.mkfifo(fifo)
        self._fifos = (top / "victim.fifo", top / "bystander.fifo")

    @contextmanager
    def soon(self, process: subprocess.Popen[bytes], has_bystander: bool = False) -> Iterator[None]:
        """Kill the process in mid-run, and let the bystander go on; at the end it was killed."""
        victim, bystander = self._fifos

        def kill() -> None:
            victim.read_text()
            process.kill()
            process.wait()
            if has_bystander:
                bystander.write_text("")

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        yield
        killer.join(START_S)
        assert process.returncode == -signal.SIGKILL


@contextmanager
def started(
    top: Path, workers: int = 2, scheme: str = "tcp", variables: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """Start a scheduler and workers, and kill what is left of them at the end."""
    cluster = Cluster(top, scheme, variables)
    try:
        for number in range(workers):
            cluster.worker(f"worker{number + 1}")
        yield cluster
    finally:
        cluster.end()
