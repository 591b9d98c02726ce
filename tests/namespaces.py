# SPDX-License-Identifier: Apache-2.0
"""Several hosts in one machine: each a set of namespaces with its own network, name, processes, mounts and sshd.

1. `cluster` makes a hub (a bridge in a network namespace of its own, with no way out) and for each host a network
   namespace on it, with an address of 198.51.100.0/24 (RFC 5737) that nobody outside can reach or be reached from.
2. A host's first process has its own mounts, host name and process numbers. DIR/here is the host's own directory: the
   same path everywhere, another content on each. /etc/hosts, /etc/passwd and /etc/shadow are its own too: root is the
   one user, with a home of its own.
3. Every host but the master runs an sshd with its own host key. The master and the push hosts have the key that opens
   them, and know every host by its key; strict checking is on.
4. Whatever happens, the end of the block takes all of it down. The first process of each host ends with the process
   that made it; what a killed run left of names and files is removed by the next `cluster`.

Shape: of a host's directory, ``here/www`` the production tree, ``here/state``, ``here/etc``, ``here/home``,
    ``here/bin/wwwpush`` (the program of this checkout with the host's own settings).

Needs root, iproute2, util-linux and openssh-server. A test that uses it is marked ``root`` and
``xdist_group("namespaces")``.

Source: ip-netns(8), unshare(1), nsenter(1), pid_namespaces(7), sshd_config(5), tc-tbf(8).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "198.51.100"
START_S = 20.0
RUN_S = 60.0

# The first process of a host: reaps what others leave, and ends with whoever holds the other end of its input.
FIRST = """
import os, select, signal
wake, woken = os.pipe()
os.set_blocking(woken, False)
signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)
print("up", flush=True)
while 0 not in select.select([0, wake], [], [])[0]:
    os.read(wake, 512)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""

BOOT = """
set -e
hostname "$1"
mount --bind "$2" "$3"
mount --bind "$3/www" "$3/www"
mount -t tmpfs -o size=1m tmpfs /run
mkdir -m 755 /run/sshd
test "$4" = no || /usr/sbin/sshd -f "$3/etc/sshd_config" -E "$3/sshd.log"
exec "$5" -I -S -c "$6"
"""

SSHD = """
Port 22
ListenAddress {address}
HostKey {here}/etc/host_key
PidFile {here}/sshd.pid
AuthorizedKeysFile {here}/etc/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
AllowUsers root
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 200
LoginGraceTime 20
ClientAliveInterval 1
ClientAliveCountMax 3
KexAlgorithms curve25519-sha256
"""

SSH = """
Host *
    IdentityFile {here}/home/.ssh/key
    IdentitiesOnly yes
    UserKnownHostsFile {here}/home/.ssh/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    KexAlgorithms curve25519-sha256
"""

WWWPUSH = """#!/bin/sh
INFOCLUSTER_CONF={here}/etc/infocluster.toml PYTHONDONTWRITEBYTECODE=1 exec {python} {program} "$@"
"""


def command(*words: str, content: str = "") -> str:
    """Run a program of this machine to its end and return what it said."""
    done = subprocess.run(words, input=content, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
    return done.stdout


@dataclass
class Host:
    """One host.

    Attributes:
        name: its host name.
        address: in the cluster's network.
        namespace: of its network, as `ip netns` has it.
        port_name: of the hub's end of its link.
        own_dir: its own directory, seen from outside; what is mounted on the host is not seen there.
        here: the same as the host has it.
        has_sshd: whether others can log in.
    """

    name: str
    address: str
    namespace: str
    hub: str
    port_name: str
    own_dir: Path
    here: Path
    has_sshd: bool
    is_slow: bool = False
    first: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def www(self) -> Path:
        """The production tree as the host has it now, mounts included; to be looked at from outside."""
        return Path(f"/proc/{self.pid}/root{self.here}/www")

    @property
    def pid(self) -> int:
        """The host's first process, as this machine counts."""
        assert self.first is not None, f"{self.name} is off"
        return _child_of(self.first.pid)

    @property
    def settings_file(self) -> Path:
        return self.own_dir / "etc/infocluster.toml"

    def on(self) -> None:
        """Switch the host on, and return when others can log in."""
        (self.own_dir / "sshd.pid").unlink(missing_ok=True)
        unshare = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        boot = ("sh", "-c", BOOT, "sh", self.name, str(self.own_dir), str(self.here))
        self.first = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.namespace,
                *unshare,
                *boot,
                "yes" if self.has_sshd else "no",
                sys.executable,
                FIRST,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.first.stdout is not None
        said = self.first.stdout.readline()
        assert said == b"up\n", f"{self.name} did not start: {said!r}"
        if self.has_sshd:
            # Written when it listens.
            until(lambda: (self.own_dir / "sshd.pid").exists(), f"sshd of {self.name} listens")

    def off(self) -> None:
        """Kill everything that runs on the host, at once."""
        if self.first is None:
            return
        with suppress(ProcessLookupError, AssertionError):
            os.kill(self.pid, signal.SIGKILL)
        self.first.kill()
        for process in (self.first, *self.started):
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            process.wait(START_S)
        self.first = None
        self.started.clear()

    def words(self, words: Sequence[object]) -> list[str]:
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--net", "--pid", "--"]
        return [*enter, *(str(word) for word in words)]

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.defpath + ":/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": f"{self.here}/home",
            "INFOCLUSTER_CONF": f"{self.here}/etc/infocluster.toml",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(
        self, words: Sequence[object], content: str = "", timeout_s: float = RUN_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host to its end."""
        return subprocess.run(
            self.words(words),
            env=self.environment(),
            input=content,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, words: Sequence[object]) -> subprocess.Popen[str]:
        """Start a program on the host; it ends with the host at the latest."""
        process = subprocess.Popen(
            self.words(words),
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def signal(self, process: subprocess.Popen[str], number: int) -> None:
        """Send a signal to a program that `start` started: to itself, not to what stands before it."""
        os.kill(_child_of(process.pid), number)

    def checked(self, *words: object) -> str:
        """Run a program on the host that has to do its work."""
        done = self.run(words)
        assert done.returncode == 0, f"{self.name}: {words}: {done.stderr.strip()}"
        return done.stdout

    def link(self, is_up: bool) -> None:
        """Plug the host's cable in or out."""
        command("ip", "-n", self.namespace, "link", "set", "eth0", "up" if is_up else "down")

    def slow_down(self, kbit_s: int | None) -> None:
        """Let only so much reach the host; None lifts that."""
        tc = ("tc", "-n", self.hub, "qdisc")
        if kbit_s is not None:
            limits = ("tbf", "rate", f"{kbit_s}kbit", "burst", "16kb", "latency", "200ms")
            command(*tc, "replace", "dev", self.port_name, "root", *limits)
        elif self.is_slow:
            command(*tc, "del", "dev", self.port_name, "root")
        self.is_slow = kbit_s is not None

    def signal_sshd(self, number: int) -> None:
        """Stop (SIGSTOP: it hangs), continue or kill the host's sshd; those of open connections are others."""
        self.checked("kill", f"-{number}", (self.own_dir / "sshd.pid").read_text().strip())

    def small_disk(self, size_bytes: int) -> None:
        """Mount an empty file system of this size on the production tree."""
        self.checked("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "tmpfs", f"{self.here}/www")

    def own_disk(self) -> None:
        """Take the small disk away again: what was there before is there."""
        # Lazily: what just failed there may be on its way out.
        self.checked("umount", "--lazy", f"{self.here}/www")

    def read_only(self, is_so: bool) -> None:
        """Make the production tree read-only, or writable again."""
        self.checked("mount", "-o", f"remount,{'ro' if is_so else 'rw'},bind", f"{self.here}/www")


@dataclass
class Cluster:
    """Hosts on one hub.

    Attributes:
        directory: what they share: programs and files of the run. Each has its own DIRECTORY/here.
        master: where pushes start.
        push_hosts: those that push on.
        servers: those that are pushed to.
    """

    directory: Path
    master: Host
    push_hosts: list[Host]
    servers: list[Host]

    @property
    def hosts(self) -> list[Host]:
        return [self.master, *self.push_hosts, *self.servers]

    @property
    def here(self) -> Path:
        return self.directory / "here"

    @property
    def wwwpush(self) -> str:
        """The program with the settings of the host it runs on."""
        return f"{self.here}/bin/wwwpush"


@contextmanager
def cluster(master: str, push_hosts: Sequence[str], servers: Sequence[str]) -> Iterator[Cluster]:
    """Bring up hosts with these names, and take all of them down at the end whatever happens."""
    sweep()
    mark = _mark(os.getpid())
    assert mark is not None
    with ExitStack() as stack:
        # A short path: sockets of ssh are below it, and their names have at most 107 bytes.
        directory = Path(tempfile.mkdtemp(prefix=f"{mark}-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(_remove_namespaces, mark)
        directory.chmod(0o755)
        names = [master, *push_hosts, *servers]
        assert len(set(names)) == len(names)
        hub = f"{mark}-hub"
        (directory / "here").mkdir()
        hosts = [
            Host(
                name,
                f"{NETWORK}.{number}",
                f"{mark}-{name}",
                hub,
                f"port{number}",
                directory / "hosts" / name,
                directory / "here",
                name != master,
            )
            for number, name in enumerate(names, 1)
        ]
        _lay_cables(hub, hosts)
        _furnish(directory, hosts, [master, *push_hosts])
        for host in hosts:
            stack.callback(host.off)
            host.on()
        ends = 1 + len(push_hosts)
        yield Cluster(directory, hosts[0], hosts[1:ends], hosts[ends:])


def sweep() -> None:
    """Remove what runs that were killed left behind; what a live one has is left alone."""
    places = (Path("/run/netns"), Path("/etc/netns"), Path(tempfile.gettempdir()))
    found = {
        match[0] for place in places if place.is_dir() for name in os.listdir(place) if (match := _MARK.match(name))
    }
    for mark in found:
        if mark != _mark(int(mark.split("-")[1])):
            _remove_namespaces(mark)
            for left in Path(tempfile.gettempdir()).glob(f"{mark}-*"):
                shutil.rmtree(left, ignore_errors=True)


def until(holds, what: str, timeout_s: float = START_S) -> None:
    """Return as soon as something holds, and fail when it does not in time."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.005)


_MARK = re.compile(r"icluster-\d+-\d+(?=-)")


def _mark(pid: int) -> str | None:
    """Return what stands before every name of a process's cluster: a process, by number and time of its start."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): the second field, in parentheses, may hold anything; the start is the 22nd.
    return f"icluster-{pid}-{status.rpartition(')')[2].split()[19]}"


def _child_of(pid: int) -> int:
    children: list[str] = []

    def found() -> bool:
        children[:] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return bool(children)

    until(found, f"process {pid} has a child")
    return int(children[0])


def _lay_cables(hub: str, hosts: Sequence[Host]) -> None:
    command(
        "ip", "-batch", "-", content="".join(f"netns add {name}\n" for name in (hub, *(h.namespace for h in hosts)))
    )
    lines = ["link add br0 type bridge", "link set br0 up", "link set lo up"]
    for host in hosts:
        lines += [
            f"link add {host.port_name} type veth peer name eth0 netns {host.namespace}",
            f"link set {host.port_name} master br0 up",
        ]
    command("ip", "-n", hub, "-batch", "-", content="\n".join(lines) + "\n")
    for host in hosts:
        lines = ["link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"]
        command("ip", "-n", host.namespace, "-batch", "-", content="\n".join(lines) + "\n")


def _furnish(directory: Path, hosts: Sequence[Host], with_key: Sequence[str]) -> None:
    """Write every host's files: keys, settings of ssh and sshd, names, users, its wwwpush."""
    here = directory / "here"
    key = directory / "key"
    _make_key(key)
    users = _users(here)
    addresses = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts)
    known = ""
    for host in hosts:
        for name in ("www", "state", "etc", "bin", "home/.ssh"):
            (host.own_dir / name).mkdir(parents=True)
        _make_key(host.own_dir / "etc/host_key")
        public = " ".join((host.own_dir / "etc/host_key.pub").read_text().split()[:2])
        known += f"{host.name},{host.address} {public}\n"
        (host.own_dir / "etc/sshd_config").write_text(SSHD.format(address=host.address, here=here))
        (host.own_dir / "etc/authorized_keys").write_text((directory / "key.pub").read_text())
        program = host.own_dir / "bin/wwwpush"
        program.write_text(WWWPUSH.format(here=here, python=sys.executable, program=ROOT / "batch/wwwpush"))
        program.chmod(0o755)
        bound = Path("/etc/netns") / host.namespace
        bound.mkdir(parents=True)
        (bound / "hosts").write_text(addresses)
        for file, content in users.items():
            (bound / file).write_text(content)
    for host in hosts:
        if host.name in with_key:
            shutil.copy(key, host.own_dir / "home/.ssh/key")
            (host.own_dir / "home/.ssh/known_hosts").write_text(known)
            (host.own_dir / "home/.ssh/config").write_text(SSH.format(here=here))


def _make_key(file: Path) -> None:
    command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file))


def _users(here: Path) -> dict[str, str]:
    """Return passwd and shadow of a host: root with a home of its own and a plain shell, and who sshd falls to."""
    return {
        "passwd": f"root:x:0:0:root:{here}/home:/bin/sh\n"
        "sshd:x:64998:65534::/run/sshd:/usr/sbin/nologin\n"
        "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
        "shadow": "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
    }


def _remove_namespaces(mark: str) -> None:
    listed = Path("/run/netns")
    for name in sorted(os.listdir(listed)) if listed.is_dir() else ():
        if name.startswith(mark + "-"):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    bound = Path("/etc/netns")
    for left in bound.glob(f"{mark}-*") if bound.is_dir() else ():
        shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):
        bound.rmdir()
