# SPDX-License-Identifier: Apache-2.0
"""Push: wwwpush beside the loop everyone writes, 20,000 small files, 8 servers, ssh on loopback.

Usage: push.py TREE   (an installation)

The promise: naming 10 changed files at least 20 times faster than ``for h in servers; rsync -a --delete tree h:`` and
8 times faster than the same rsyncs in parallel; everything with nothing changed no slower than those parallel rsyncs
over a shared connection; -quick at least 5 times faster than that; a named push costs the same in a tree of 2,000 as
of 200,000 files; a first full push no slower than parallel rsyncs. Where rdist is installed, which names files and
compares trees in its own way, its times stand beside these.
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sshd

SERVERS = tuple(f"web{number}" for number in range(1, 9))
FILES = 20_000
ROUNDS = 5
RDIST = shutil.which("rdist")


class Site:
    """A production tree, its servers, and two ways to push to them."""

    def __init__(self, tree: Path, cluster: sshd.Cluster, top: Path, files: int) -> None:
        self.program = str(tree / "batch/wwwpush")
        self.cluster = cluster
        self.top = top
        self.world = top / "var/www/world"
        self.files: list[Path] = []
        draw = random.Random(1)
        for number in range(files):
            file = self.world / f"{number // 1000:03d}" / f"{number // 20 % 50:02d}" / f"page{number}.html"
            if number % 20 == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(draw.randbytes(draw.randrange(1000, 3000)))
            self.files.append(file)
        (top / "etc").mkdir(exist_ok=True)
        conf = top / "etc/infocluster.toml"
        conf.write_text(
            f'[push]\nssh_config = "{cluster.config_file}"\n'
            f'[[servers]]\nname = "web[1-8]"\ntransport = "ssh"\ndestination = "{cluster.root}/servers/%h/www"\n'
        )
        self.environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "INFOCLUSTER_CONF": str(conf)}
        subprocess.run([str(tree / "batch/check-site"), "-compile"], env=self.environment, check=False)

    def wwwpush(self, *arguments: str) -> None:
        done = subprocess.run(
            [self.program, *arguments], env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"wwwpush {arguments} ended with {done.returncode}: {done.stdout}{done.stderr}")

    def rsync(self, server: str, control: str = "none") -> None:
        ssh = f"ssh -F {self.cluster.config_file} -o ControlPath={control}"
        command = [
            "rsync",
            "-a",
            "--delete",
            "-e",
            ssh,
            f"{self.world}/",
            f"{server}:{self.cluster.tree(server)}/world/",
        ]
        subprocess.run(command, check=True)

    def rsync_in_turn(self) -> None:
        for server in SERVERS:
            self.rsync(server)

    def rsync_in_parallel(self, shared: bool = False) -> None:
        control = str(self.top / "cm-%n") if shared else "none"
        with ThreadPoolExecutor(len(SERVERS)) as pool:
            list(pool.map(lambda server: self.rsync(server, control), SERVERS))

    def rdist(self, paths: list[str]) -> None:
        distfile, ssh = self.top / "distfile", self.top / "rdist-ssh"
        ssh.write_text(f'#!/bin/sh\nexec ssh -F {self.cluster.config_file} -o ControlPath=none "$@"\n')
        ssh.chmod(0o755)
        entries = [
            f"{self.top}/var/www/{path} -> {server}\n"
            f"    install -oremove,nochkowner,nochkgroup {self.cluster.tree(server)}/{path} ;\n"
            for server in SERVERS
            for path in paths
        ]
        distfile.write_text("".join(entries))
        done = subprocess.run(
            [str(RDIST), "-f", str(distfile), "-P", str(ssh)], capture_output=True, text=True, check=False
        )
        # Its exit status tells half of it.
        said = done.stdout + done.stderr
        if done.returncode or "ERROR" in said or not all(f"updating of {name} finished" in said for name in SERVERS):
            raise SystemExit(f"rdist ended with {done.returncode}: {said}")

    def share_connections(self) -> None:
        for server in SERVERS:
            control = str(self.top / "cm-%n")
            base = ["ssh", "-F", str(self.cluster.config_file), "-o", f"ControlPath={control}"]
            options = ["-o", "ControlMaster=yes", "-o", "ControlPersist=600", "-fN", server]
            subprocess.run([*base, *options], check=True, stdin=subprocess.DEVNULL)

    def leave_connections(self) -> None:
        for server in SERVERS:
            base = ["ssh", "-F", str(self.cluster.config_file), "-o", f"ControlPath={self.top}/cm-%n"]
            subprocess.run([*base, "-O", "exit", server], check=False, capture_output=True)

    def change(self, count: int, round_number: int) -> list[str]:
        changed = random.Random(round_number).sample(self.files, count)
        for file in changed:
            file.write_bytes(b"changed %d\n" % round_number * 50)
        return [str(file.relative_to(self.top / "var/www")) for file in changed]

    def empty_servers(self) -> None:
        for server in SERVERS:
            shutil.rmtree(self.cluster.tree(server) / "world", ignore_errors=True)

    def assert_equal(self) -> None:
        for server in SERVERS:
            command = ["diff", "-rq", str(self.world), str(self.cluster.tree(server) / "world")]
            subprocess.run(command, check=True)


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compared(
    site: Site, ways: dict[str, Callable[[list[str]], object]], changes: int, rounds: int = ROUNDS
) -> list[float]:
    """Run each way once a round, each after as many new changes, and return the medians in s."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for place, (name, way) in enumerate(ways.items()):
            paths = site.change(changes, number * 100 + place)
            times[name].append(timed(lambda way=way, paths=paths: way(paths)))
    return [statistics.median(seconds) for seconds in times.values()]


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    # A memory disk: one disk for eight servers would be all that is measured.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top, sshd.cluster(_made(top), *SERVERS) as cluster:
        site = Site(tree, cluster, Path(top), FILES)
        print(f"{FILES} files, {len(SERVERS)} servers, {os.cpu_count()} cores, ssh on loopback")
        first_push(site)
        site.share_connections()
        named(site)
        unchanged(site)
        site.leave_connections()
        site.assert_equal()
        flat(tree, cluster, Path(top))


def _made(top: str) -> Path:
    below = Path(top) / "cluster"
    below.mkdir()
    return below


def first_push(site: Site) -> None:
    ours, theirs = [], []
    for _ in range(2):
        site.empty_servers()
        theirs.append(timed(site.rsync_in_parallel))
        site.empty_servers()
        ours.append(timed(lambda: site.wwwpush("-all")))
        site.assert_equal()
    ratio = min(ours) / min(theirs)
    print(
        f"first push: wwwpush {min(ours):.2f} s, parallel rsyncs {min(theirs):.2f} s, ratio {ratio:.2f} (at most 1)"
    )


def named(site: Site) -> None:
    ways = {
        "wwwpush": lambda paths: site.wwwpush(*paths),
        "loop": lambda _paths: site.rsync_in_turn(),
        "parallel": lambda _paths: site.rsync_in_parallel(),
    }
    push, turn, parallel, *rdist = compared(site, ways | ({"rdist": site.rdist} if RDIST else {}), 10)
    print(f"10 changed files named: wwwpush {push:.3f} s, loop {turn:.2f} s, parallel rsyncs {parallel:.2f} s")
    print(f"  {turn / push:.1f} times as fast as the loop (at least 20)")
    print(f"  {parallel / push:.1f} times as fast as parallel rsyncs (at least 8)")
    beside_rdist(push, rdist)


def unchanged(site: Site) -> None:
    site.wwwpush("-all")
    ways = {
        "wwwpush": lambda _paths: site.wwwpush("-all"),
        "quick": lambda _paths: site.wwwpush("-quick", "-all"),
        "shared": lambda _paths: site.rsync_in_parallel(shared=True),
    }
    by_rdist = {"rdist": lambda _paths: site.rdist(["world"])} if RDIST else {}
    push, quick, shared, *rdist = compared(site, ways | by_rdist, 0)
    print(f"everything, nothing changed: wwwpush {push:.2f} s, parallel rsyncs, shared connections {shared:.2f} s")
    print(f"  ratio {push / shared:.2f} (at most 1)")
    print(f"  -quick {quick:.2f} s: {shared / quick:.1f} times as fast as the rsyncs (at least 5),")
    print(f"  {push / quick:.1f} times as fast as the full push")
    beside_rdist(push, rdist)


def beside_rdist(push_s: float, rdist_s: list[float]) -> None:
    for seconds in rdist_s:
        print(f"  {seconds / push_s:.1f} times as fast as rdist, {seconds:.2f} s")
    if not rdist_s:
        print("  no ratio to rdist, which is not installed")


def flat(tree: Path, cluster: sshd.Cluster, top: Path) -> None:
    seconds = {}
    for files in (2_000, 200_000):
        below = top / f"flat{files}"
        below.mkdir()
        site = Site(tree, cluster, below, files)
        # Not all of the files: eight times 200,000 are more than a memory disk holds.
        for directory in {file.parent.relative_to(site.world) for file in site.files}:
            for server in SERVERS:
                (cluster.tree(server) / "world" / directory).mkdir(parents=True, exist_ok=True)
        (seconds[files],) = compared(site, {"wwwpush": lambda paths, site=site: site.wwwpush(*paths)}, 10)
        shutil.rmtree(below)
    ratio = seconds[200_000] / seconds[2_000]
    print(f"10 files named in a tree of 2,000 files {seconds[2000]:.3f} s, of 200,000 {seconds[200000]:.3f} s")
    print(f"  ratio {ratio:.2f} (flat)")


if __name__ == "__main__":
    main()
