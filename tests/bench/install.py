# SPDX-License-Identifier: Apache-2.0
"""Install: wwwdinst against local rsync on the same tree of 20,000 files, and its growth to 200,000.

Usage: install.py TREE   (an installation)

The promises: with nothing changed within 2 times of ``rsync -a --delete --dry-run``; with 1 % changed no slower than
``rsync -a --delete --fsync``; cost grows linearly.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import HEAD, in_turn, row

FILES, MANY, IN_DIRECTORY = 20_000, 200_000, 50
ROUNDS = 7


class Site:
    """A development tree with files of some kB, production, and a twin of production for rsync."""

    def __init__(self, tree: Path, top: Path, files: int) -> None:
        self.tree, self.top, self.files = tree, top, files
        self.development, self.production, self.twin = top / "var/wwwdev", top / "var/www", top / "var/twin"
        for directory in ("etc", "var/wwwudev", "var/state", "var/www", "var/twin"):
            (top / directory).mkdir(parents=True)
        self.conf = top / "etc/infocluster.toml"
        self.conf.write_text("")
        self.environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "INFOCLUSTER_CONF": str(self.conf)}
        compiling = [str(tree / "batch/check-site"), "-compile"]
        subprocess.run(compiling, env=self.environment, stdout=subprocess.DEVNULL, check=False)
        for number in range(files):
            file = self.file(number)
            if number % IN_DIRECTORY == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.parent.chmod(0o775)
            file.write_text(f"{number}\n" * (50 + number % 400))
            file.chmod(0o664)
        for directory in (self.development / "world", *(self.development / "world").iterdir()):
            directory.chmod(0o775)
        for target in (self.production, self.twin):
            subprocess.run(["rsync", "-a", f"{self.development}/", f"{target}/"], check=True)

    def file(self, number: int) -> Path:
        directory = number // IN_DIRECTORY
        return self.development / f"world/s{directory // 40}/d{directory % 40}/page{number % IN_DIRECTORY}.html"

    def change(self, turn: int) -> None:
        """Write 1 % of the files anew, other ones each time."""
        for number in range(turn % 100, self.files, 100):
            self.file(number).write_text(f"{turn} {number}\n" * 200)

    def install(self) -> str:
        program = [str(self.tree / "batch/wwwdinst"), "world"]
        done = subprocess.run(program, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    def rsync(self, option: str) -> None:
        command = ["rsync", "-a", "--delete", option, f"{self.development}/", f"{self.twin}/"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_changes(site: Site, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"rsync": [], "wwwdinst": []}
    for turn in range(rounds):
        site.change(turn)
        # What the change itself left to write is nobody's cost; who goes first takes turns.
        os.sync()
        jobs = [("rsync", lambda: site.rsync("--fsync")), ("wwwdinst", site.install)]
        for name, work in jobs if turn % 2 else reversed(jobs):
            times[name].append(timed(work))
    return times


def main() -> None:
    tree = Path(sys.argv[1])
    # Beside the installation: /tmp is often in memory, where nothing waits for a disk.
    top = Path(tempfile.mkdtemp(prefix="bench-install-", dir=tree.parent))
    try:
        site = Site(tree, top / "few", FILES)
        assert site.install().endswith("nothing to do")
        print(f"{FILES} files\n{HEAD}")
        dry = in_turn({"rsync": lambda: site.rsync("--dry-run"), "wwwdinst": site.install}, ROUNDS)
        print(row("rsync -a --delete --dry-run, nothing changed", dry["rsync"]))
        print(row("wwwdinst, nothing changed (at most 2)", dry["wwwdinst"], dry["rsync"]))
        few = with_changes(site, ROUNDS)
        print(row("rsync -a --delete --fsync, 1 % changed", few["rsync"]))
        print(row("wwwdinst, 1 % changed (at most 1)", few["wwwdinst"], few["rsync"]))
        many_site = Site(tree, top / "many", MANY)
        assert many_site.install().endswith("nothing to do")
        nothing = [timed(many_site.install) for _ in range(3)]
        changed = with_changes(many_site, 2)
        print(f"{MANY} files: {MANY // FILES} times as many")
        print(row("wwwdinst, nothing changed (some 10)", nothing, dry["wwwdinst"]))
        print(row("wwwdinst, 1 % changed (some 10)", changed["wwwdinst"], few["wwwdinst"]))
        ratio = statistics.median(changed["wwwdinst"]) / statistics.median(changed["rsync"])
        print(f"beside rsync -a --delete --fsync, 1 % changed: {ratio:.2f} times")
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
