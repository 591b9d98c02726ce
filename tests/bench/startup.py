# SPDX-License-Identifier: Apache-2.0
"""Start-up: a survey hit under Apache and mod_cgid, beside the least a Python CGI can do and a Perl twin.

Usage: startup.py TREE   (an installation)

The promise: the median of a hit to the end of the message, fsync on, is at most 1.25 times the floor's, and a Perl
twin (CGI.pm, flock, fsync) takes at least 1.8 times as long as a hit.
"""

import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from apache import apache
from bench import measure

ROUNDS = 200
CLIENTS = 8
SECONDS = 6.0
PATHS = {
    "floor: Python -IS, a header, _exit": "/bench/floor.cgi",
    "survey.cgi: flock, append, fsync, page": "/cgi-bin/survey.cgi",
    "Perl twin: CGI.pm, flock, fsync, page": "/bench/twin.cgi",
}


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as top:
        site = Path(top)
        site.chmod(0o755)
        for directory in ("tree/survey", "gather", "programs"):
            (site / directory).mkdir(parents=True)
        (site / "tree/survey/summary.html").write_bytes(b"<p>summary</p>" * 300)
        for name in ("floor.cgi", "twin.cgi"):
            shutil.copy(here / name, site / "programs" / name)
        programs = site / "programs"
        extra = f'ScriptAlias /bench/ "{programs}/"\n<Directory "{programs}">\nRequire all granted\n</Directory>'
        with apache(tree, site / "tree", site / "gather", site / "run", extra) as server:
            one_client(server.port)
            many_clients(server.port)


def one_client(port: int) -> None:
    runs = {name: (lambda path=path: measure.fetch(port, path)) for name, path in PATHS.items()}
    measure.in_turn(runs, 5)
    times = measure.in_turn(runs, ROUNDS)
    floor, hit, twin = times.values()
    print(f"one client, {ROUNDS} rounds in turn, to the end of the message; ratio to the floor")
    print(measure.HEAD)
    for name, seconds in times.items():
        print(measure.row(name, seconds, floor))
    print(f"hit / floor {statistics.median(hit) / statistics.median(floor):.2f} (at most 1.25)")
    print(f"Perl twin / hit {statistics.median(twin) / statistics.median(hit):.2f} (at least 1.8)")


def many_clients(port: int) -> None:
    print(f"{CLIENTS} clients at once, each program alone in turn")
    print(measure.HEAD)
    seen: dict[str, list[float]] = {name: [] for name in PATHS}
    for _ in range(2):
        for name, path in PATHS.items():
            seen[name] += under_load(port, path, SECONDS / 2)
    floor = next(iter(seen.values()))
    for name, seconds in seen.items():
        print(measure.row(name, seconds, floor))


def under_load(port: int, path: str, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds

    def client() -> None:
        while (began := time.perf_counter()) < end:
            measure.fetch(port, path)
            times.append(time.perf_counter() - began)

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return times


if __name__ == "__main__":
    main()
