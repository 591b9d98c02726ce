# SPDX-License-Identifier: Apache-2.0
"""A real sshd and a real rsync daemon on loopback, with several servers behind them: for the tests of pushes.

Each server is a name in an ssh configuration that leads to the one sshd, and a directory of its own.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin")
KEYGEN = shutil.which("ssh-keygen")
RSYNC = shutil.which("rsync")
READY_S = 10


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when somebody listens on a port, whom this process is to be."""
    end = time.monotonic() + READY_S
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, "the daemon ended"
        assert time.monotonic() < end, "the daemon does not listen"


@dataclass
class Cluster:
    """An sshd with keys of its own; what runs on the servers has another home and path than we."""

    root: Path
    port: int = 0
    names: tuple[str, ...] = ()
    daemon: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    # Short, because the addresses of sockets in it are.
    state: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="push")), repr=False)

    @property
    def config_file(self) -> Path:
        return self.root / "ssh_config"

    def tree(self, name: str) -> Path:
        """Return the destination directory of a server."""
        return self.root / "servers" / name / "www"

    def build(self, *names: str, path: str = "/usr/local/bin:/usr/bin:/bin") -> None:
        for key in ("host_key", "user_key", "other_key"):
            subprocess.run([KEYGEN, "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", self.root / key], check=True)
        shutil.copy(self.root / "user_key.pub", self.root / "authorized_keys")
        self.port = free_port()
        self.names = names
        for name in names:
            self.tree(name).mkdir(parents=True)
        (self.root / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.root}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.root}/authorized_keys\nStrictModes no\nUsePAM no\nPrintMotd no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\nMaxSessions 100\n"
            f"PermitUserEnvironment no\nPermitRootLogin prohibit-password\nUseDNS no\n"
            f"SetEnv PATH={path} HOME={self.root}\n"
        )
        key = (self.root / "host_key.pub").read_text().split()
        (self.root / "known_hosts").write_text(f"test {key[0]} {key[1]}\n")
        self.configure()

    def configure(self, key: str = "user_key", port: int = 0) -> None:
        """Write how the servers are reached."""
        self.config_file.write_text(
            f"Host {' '.join(self.names)}\nHostName 127.0.0.1\nPort {port or self.port}\nUser {getpass.getuser()}\n"
            f"HostKeyAlias test\nUserKnownHostsFile {self.root}/known_hosts\nStrictHostKeyChecking yes\n"
            f"IdentityFile {self.root}/{key}\nIdentitiesOnly yes\nKexAlgorithms curve25519-sha256\n"
        )

    def start(self) -> None:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.daemon = subprocess.Popen(
            [SSHD, "-D", "-f", self.root / "sshd_config", "-E", self.root / "sshd.log"],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self.port, self.daemon)

    def stop(self) -> None:
        """End the daemon and its sessions, and the connections that are kept open."""
        for control in self.sockets():
            subprocess.run(
                ["ssh", "-F", self.config_file, f"-oControlPath={control}", "-Oexit", self.names[0]],
                capture_output=True,
            )
        if self.daemon is not None:
            end_with_children(self.daemon)
        shutil.rmtree(self.state, ignore_errors=True)

    def sockets(self) -> list[Path]:
        """Return the sockets of kept connections."""
        return sorted((self.state / "ssh").glob("*")) if (self.state / "ssh").is_dir() else []

    def settings(self, **push: object) -> dict[str, object]:
        """Return settings as `config.load` has them, as far as a transport reads them."""
        return {
            "site": {"state_dir": str(self.state)},
            "push": {
                "ssh": shutil.which("ssh"),
                "ssh_config": str(self.config_file),
                "ssh_keep_s": 60.0,
                "connect_timeout_s": 5.0,
                "rsync": RSYNC,
            }
            | push,
        }


def descendants(pid: int) -> list[int]:
    """Return a process's children and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def end_with_children(daemon: subprocess.Popen[bytes]) -> None:
    """Kill a daemon and what it started, and reap it."""
    for pid in [*descendants(daemon.pid), daemon.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    daemon.wait()


@contextmanager
def cluster(root: Path, *names: str, path: str = "/usr/local/bin:/usr/bin:/bin") -> Iterator[Cluster]:
    """Yield running servers; their directories are below a root."""
    result = Cluster(root)
    result.build(*names, path=path)
    result.start()
    try:
        yield result
    finally:
        result.stop()


@contextmanager
def rsync_daemon(root: Path, text: str) -> Iterator[int]:
    """Yield the port of a running rsync daemon with these modules; it takes root to keep to their directories."""
    port = free_port()
    (root / "rsyncd.conf").write_text(
        f"address = 127.0.0.1\nport = {port}\nlog file = {root}/rsyncd.log\nuse chroot = yes\nreverse lookup = no\n"
        f"uid = 0\ngid = 0\nlock file = {root}/rsyncd.lock\n{text}"
    )
    daemon = subprocess.Popen(
        [RSYNC, "--daemon", "--no-detach", f"--config={root}/rsyncd.conf"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port, daemon)
        yield port
    finally:
        end_with_children(daemon)
