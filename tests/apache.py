# SPDX-License-Identifier: Apache-2.0
"""A real Apache, with etc/apache.conf and its own user, for tests and benchmarks."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "www-data"
START_TIMEOUT_S = 20.0


@dataclass
class Apache:
    """A running server."""

    port: int
    run_dir: Path
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def errors(self) -> str:
        return (self.run_dir / "error.log").read_text(errors="replace")


@contextmanager
def apache(
    prefix: Path,
    tree: Path,
    gather: Path,
    run_dir: Path,
    extra: str = "",
    define: str = "",
    under: tuple[str, ...] = (),
) -> Iterator[Apache]:
    """Run Apache over an installed tree, as root started and as www-data at work.

    Args:
        prefix: the installation, with etc/apache.conf.
        tree: the document root.
        gather: the gather directory, given to the server's user.
        run_dir: a directory of the server's own, made here; its logs lie in it.
        extra: further configuration.
        define: what is defined beside what differs from host to host, such as WSGI.
        under: a command that becomes Apache at its end, such as one that makes a namespace.
    """
    program = shutil.which("apache2", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert program, "apache2 is not installed: .ci/packages installs it"
    assert os.getuid() == 0, "Apache changes to its own user: this needs root"
    run_dir.mkdir(parents=True, exist_ok=True)
    shutil.chown(gather, USER, USER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    defines = {
        "PREFIX": prefix,
        "TREE": tree,
        "SERVER_GATHER": gather,
        "PORT": port,
        "ADDRESS": "127.0.0.1:",
        "RUN_DIR": run_dir,
        "LOG_DIR": run_dir,
    }
    conf = run_dir / "apache.conf"
    lines = [f'Define {name} "{value}"' for name, value in defines.items()]
    conf.write_text("\n".join([*lines, f'Include "{prefix}/etc/apache.conf"', extra, ""]))
    with (run_dir / "start.log").open("wb") as log:
        process = subprocess.Popen(
            [*under, program, "-D", "FOREGROUND", *(["-D", define] if define else []), "-f", str(conf)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        )
    try:
        _wait_until_it_answers(process, port, run_dir)
        yield Apache(port, run_dir, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, run_dir: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                log = (run_dir / "start.log").read_text(errors="replace")
                raise AssertionError(f"Apache did not start: {log}") from None
            time.sleep(0.02)
