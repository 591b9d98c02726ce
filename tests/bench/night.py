# SPDX-License-Identifier: Apache-2.0
"""Night: survey-nightly over millions of gathered records, beside a json.loads loop and mawk over the same as TSV.

Usage: night.py TREE [RECORDS]   (an installation; 5,000,000 records by default)

The promise: at least 5 times the rate of a single-process json.loads counting loop, within 4 times of mawk's time,
less than 300 MB in all processes, and a second night with 1 % new data costs at most 3 % of the first plus start-up
(a night with one new record a file).
"""

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from demo.play import published_agents

FILES = 16
LOOP = """
import json, sys
counts = {}
for name in sys.argv[1:]:
    with open(name, "rb") as lines:
        for line in lines:
            agent = json.loads(line)["agent"]
            counts[agent] = counts.get(agent, 0) + 1
print(sum(counts.values()))
"""


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    records = int(sys.argv[2]) if len(sys.argv) > 2 else 5_000_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        site = Path(top)
        segments, tables = make_records(site, records)
        size = sum(file.stat().st_size for file in segments)
        print(f"{records} records in {len(segments)} files, {size / 1e6:.0f} MB, {os.cpu_count()} cores")
        environment = lay_out(site)
        peak_mb = night_watched(tree, environment)  # once to warm the page cache
        first = night(tree, environment, clean=site)
        idle = statistics.median(night(tree, environment) for _ in range(5))
        loop = timed([sys.executable, "-S", "-c", LOOP, *map(str, segments)])
        mawk = timed(["mawk", "-F", "\t", "{n[$3]++} END{for (a in n) s += n[a]; print s}", *map(str, tables)])
        start_up = statistics.median(night_with(tree, environment, segments, FILES) for _ in range(5))
        second = statistics.median(night_with(tree, environment, segments, records // 100) for _ in range(5))
        print(f"first night           {first:7.2f} s  {records / first:.0f} records/s")
        print(f"its processes         {peak_mb:7.0f} MB together at their peak (less than 300)")
        print(f"json.loads loop       {loop:7.2f} s  first night is {loop / first:.1f} times as fast (at least 5)")
        print(f"mawk, the same as TSV {mawk:7.2f} s  first night takes {first / mawk:.2f} times as long (at most 4)")
        print(f"night, nothing new    {idle:7.2f} s")
        print(f"night, 1 new a file   {start_up:7.2f} s  (start-up: what every night with news loads and renders)")
        share = (second - start_up) / first
        print(f"night, 1 % new        {second:7.2f} s  {share:.1%} of the first beside start-up (at most 3 %)")


def make_records(site: Path, records: int) -> tuple[list[Path], list[Path]]:
    agents = published_agents()
    quoted = [json.dumps(agent, ensure_ascii=False) for agent in agents]
    draw = random.Random(1)
    segments, tables = [], []
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for server in range(4):
        directory = site / f"var/gather/web{server}/www/survey"
        directory.mkdir(parents=True)
        for day in range(FILES // 4):
            began = today - timedelta(days=day + 1)
            segment = directory / f"{began:%Y-%m-%d}.jsonl"
            table = site / f"{server}-{day}.tsv"
            with segment.open("w") as lines, table.open("w") as rows:
                for number in range(records // FILES):
                    which = draw.randrange(len(agents))
                    when = f"{began.timestamp() + number * 0.2:.6f}"
                    record_id = f"{draw.getrandbits(96):024x}"
                    lines.write(f'{{"id":"{record_id}","time":{when},"agent":{quoted[which]}}}\n')
                    rows.write(f"{record_id}\t{when}\t{agents[which]}\n")
            segments.append(segment)
            tables.append(table)
    return segments, tables


def night_with(tree: Path, environment: dict[str, str], segments: list[Path], records: int) -> float:
    """Add records to the files and return the time of a night."""
    for segment in segments:
        with segment.open("rb") as lines:
            text = [lines.readline() for _ in range(records // len(segments))]
        with segment.open("ab") as lines:
            lines.writelines(text)
    return night(tree, environment)


def lay_out(site: Path) -> dict[str, str]:
    for directory in ("etc", "var/www/world", "var/wwwdev/world/survey", "var/wwwudev"):
        (site / directory).mkdir(parents=True)
    (site / "var/wwwdev/world/survey/.wwwinstrc").write_text("*.html\n*.json\n*.csv\n")
    (site / "etc/infocluster.toml").write_text("")
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "INFOCLUSTER_CONF": str(site / "etc/infocluster.toml")}


def night(tree: Path, environment: dict[str, str], clean: Path | None = None) -> float:
    """Run the night and return its time; from the beginning where a site to clean is given."""
    if clean:
        subprocess.run(["rm", "-rf", f"{clean}/var/state", f"{clean}/var/www/world/survey"], check=True)
    return timed([str(tree / "batch/survey-nightly")], environment)


def night_watched(tree: Path, environment: dict[str, str]) -> float:
    """Run the night and return the most memory in MB that it and its workers had together, what they share once."""
    peak_kb = 0
    with subprocess.Popen(
        [str(tree / "batch/survey-nightly")], env=environment, stdout=subprocess.DEVNULL
    ) as running:
        while running.poll() is None:
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            peak_kb = max(peak_kb, sum(proportional_kb(pid) for pid in (running.pid, *children)))
            time.sleep(0.02)
    assert running.returncode == 0
    return peak_kb / 1024


def proportional_kb(pid: int | str) -> int:
    """Return a process' proportional set size; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def timed(command: list[str], environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
