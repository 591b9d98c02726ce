# SPDX-License-Identifier: Apache-2.0
"""Start-up: a survey hit under Apache and mod_cgid, beside the least a Python CGI can do and a Perl twin.

Usage: startup.py TREE   (an installation)

The promise: the median of a hit to the end of the message, fsync on, is at most 1.25 times the floor's, and a Perl
twin (CGI.pm, flock, fsync) takes at least 1.8 times as long as a hit.
"""

import statistics
import sys
import threading
import time
from pathlib import Path

from bench import measure, served

ROUNDS = 200
CLIENTS = 8
SECONDS = 6.0
PATHS = {
    served.FLOOR: "/bench/floor.cgi",
    "survey.cgi: flock, append, fsync, page": "/cgi-bin/survey.cgi",
    "Perl twin: CGI.pm, flock, fsync, page": "/bench/twin.cgi",
}


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    with served.laid_out("floor.cgi", "twin.cgi") as site:
        (site / "tree/survey").mkdir()
        (site / "tree/survey/summary.html").write_bytes(b"<p>summary</p>" * 300)
        with served.serving(tree, site) as server:
            one_client(server.port)
            many_clients(server.port)


def one_client(port: int) -> None:
    runs = {name: (lambda path=path: measure.fetch(port, path)) for name, path in PATHS.items()}
    measure.in_turn(runs, 5)
    times = measure.in_turn(runs, ROUNDS)
    floor, hit, twin = times.values()
    served.print_one_client(times, ROUNDS)
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
