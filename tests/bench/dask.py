# SPDX-License-Identifier: Apache-2.0
"""Dask: survey-nightly over millions of gathered records on two Dask workers, beside the same night on two processes.

Usage: dask.py TREE [RECORDS]   (an installation; 5,000,000 records by default)

Scheduler and workers run on this machine, one thread each, and are started before anything is measured; the first
night finds workers that have imported nothing of ours yet. Whole nights take turns: what is compared are medians.

The promise: the night on the cluster takes at most 1.5 times the local one's time, and publishes the same numbers.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

# This file is called as a package is; what else is here is imported by its place.
sys.path[:] = [
    path for path in sys.path if os.path.abspath(path or ".") != os.path.dirname(os.path.abspath(__file__))
]

import dask_cluster  # noqa: E402 - see above
from bench.night import lay_out, make_records, night  # noqa: E402

WORKERS = 2
ROUNDS = 3
MOST = 1.5


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    records = int(sys.argv[2]) if len(sys.argv) > 2 else 5_000_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        site = Path(top) / "site"
        segments, tables = make_records(site, records)
        for table in tables:
            table.unlink()
        size = sum(file.stat().st_size for file in segments)
        print(f"{records} records in {len(segments)} files, {size / 1e6:.0f} MB, {os.cpu_count()} cores")
        environment = lay_out(site)
        library = {"PYTHONPATH": f"{tree}/lib"}
        with dask_cluster.started(Path(top) / "dask", WORKERS, variables=library) as cluster:
            settings = {
                "local": f"[gather]\nprocesses = {WORKERS}\n",
                "dask": f'[gather]\nengine = "dask"\nscheduler = "{cluster.address}"\n',
            }
            times: dict[str, list[float]] = {name: [] for name in settings}
            counted: dict[str, bytes] = {}
            for number in range(ROUNDS + 1):
                for name, text in settings.items():
                    (site / "etc/infocluster.toml").write_text(text)
                    taken = night(tree, environment, clean=site)
                    counted[name] = (site / "var/www/world/survey/index.json").read_bytes()
                    if number == 0:
                        print(f"first {name:5} {taken:7.2f} s  (cold: not counted below)")
                    else:
                        times[name].append(taken)
            local, dask = (statistics.median(times[name]) for name in ("local", "dask"))
            if counted["local"] != counted["dask"]:
                sys.exit("dask: the two nights published different numbers")
        print(f"local, {WORKERS} processes {local:7.2f} s  {records / local:.0f} records/s")
        print(f"dask, {WORKERS} workers    {dask:7.2f} s  {dask / local:.2f} times the local night (at most {MOST})")


if __name__ == "__main__":
    main()
