# SPDX-License-Identifier: Apache-2.0
"""Polls: poll.cgi under Apache and mod_cgid, beside the least a Python CGI can do and the cluster vendor's way.

Usage: poll.py TREE   (an installation)

The promise: the median of a poll to the end of the message is at most 1.2 times the floor's, and a program that does
what the vendor's sample does, in Python 3 (`sample.cgi`), takes at least 4 times as long.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from apache import USER
from bench import measure, served, startup
from infocluster import config
from infocluster.poll import state
from infocluster.poll.state import State

ROUNDS = 200
SECONDS = 4.0
TURNS = 4
NAME = "cf-bench"
NOW = int(time.time())
FLOOR = served.FLOOR
SAMPLE = "the vendor's way: cgi.FieldStorage, a file"
RUNNING = "poll.cgi, running"
RELEASED = "poll.cgi, released"
ASKED = f"mass={NAME}&targetTime="
PATHS = {
    FLOOR: "/bench/floor.cgi",
    RUNNING: f"/cgi-bin/poll.cgi?{ASKED}{NOW}",
    RELEASED: f"/cgi-bin/poll.cgi?{ASKED}{NOW + 300}",
    SAMPLE: f"/bench/sample.cgi?{ASKED}{NOW}",
}
CONF = f'[[core_filers]]\nname = "{NAME}"\nbackend = "marker"\nmarker = "/nowhere/marker"\n'


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    with served.laid_out("floor.cgi", "sample.cgi") as site:
        for directory in ("gather/poll", "gather/sample"):
            (site / directory).mkdir()
        conf = site / "etc/infocluster.toml"
        conf.write_text(CONF)
        config.compile_settings(str(conf))
        for target, name in ((NOW, "running"), (NOW + 300, "released")):
            path = Path(state.file(str(site / "gather/poll"), NAME, target))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(state.content(State(NAME, target, "5f0c2a9be7d14c33", name, float(NOW), float(NOW))))
        subprocess.run(["chown", "-R", USER, str(site / "gather")], check=True)
        with served.serving(tree, site) as server:
            one_client(server.port)
            many_clients(server.port)


def one_client(port: int) -> None:
    runs = {name: (lambda path=path: measure.fetch(port, path)) for name, path in PATHS.items()}
    measure.in_turn(runs, 5)
    times = measure.in_turn(runs, ROUNDS)
    served.print_one_client(times, ROUNDS)
    poll = statistics.median(times[RUNNING])
    print(f"poll / floor {poll / statistics.median(times[FLOOR]):.2f} (at most 1.2)")
    print(f"the vendor's way / poll {statistics.median(times[SAMPLE]) / poll:.2f} (at least 4)")


def many_clients(port: int) -> None:
    print(f"{startup.CLIENTS} clients at once, each program alone in turn")
    print(measure.HEAD)
    seen: dict[str, list[float]] = {name: [] for name in PATHS if name != SAMPLE}
    for _ in range(TURNS):
        for name, times in seen.items():
            times += startup.under_load(port, PATHS[name], SECONDS / TURNS)
    for name, seconds in seen.items():
        print(measure.row(name, seconds, seen[FLOOR]))
    for name, seconds in seen.items():
        print(f"{name}: {len(seconds) / SECONDS:.0f} a second")


if __name__ == "__main__":
    main()
