# SPDX-License-Identifier: Apache-2.0
"""Reports: how many a second go through the queue and the controller, what a request takes, and memory over time.

Usage: reports.py TREE   (an installation)

The measures: reports a second through controller -once, beside a loop that reads the same files and commits each with
SQLite; report.cgi and request.cgi under Apache beside the floor; the controller's memory over 200,000 reports to all
built-in aggregators, published as they come (promise: what it grows by in the second half is less than 10 MB; more
ends the run with status 1).
"""

import os
import posix
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aggregate.house import House, report
from apache import USER
from bench import measure, served
from infocluster import config
from infocluster.aggregate import messages_pb2, signing, wire
from infocluster.apps import nodes
from infocluster.cron import command, progress

REPORTS = 5000
MANY = int(os.environ.get("BENCH_REPORTS", "200000"))
PART = 20000
ROUNDS = 100
NODES = 50
GROWTH_MB = 10
# One report of so many is a file, and one the health of a node.
RARE = 20
KEY = b"a key of sixteen bytes and more"
FLOOR = served.FLOOR
CONF = '[aggregate]\naggregators = ["Counters"]\n'


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    throughput()
    latency(tree)
    live(tree)
    memory()


def filled(site: House, first: int, count: int) -> None:
    """Put so many reports of counters into a server's queue."""
    queue = site.queue()
    for number in range(first, first + count):
        node = f"node{number % NODES}"
        data = messages_pb2.Counters()
        for name in ("sent", "received", "errors"):
            data.counters.add(name=name, value=number, time=1795384800 + number)
        queue.add(wire.content(report("Counters", data.SerializeToString(), f"m{number}", node)))
        site.now += 0.0001


def mixed(site: House, first: int, count: int) -> None:
    """Put reports for each of the built-in aggregators into a server's queue."""
    filled(site, first, count - 2 * (count // RARE))
    queue = site.queue()
    for number in range(first, first + count // RARE):
        node = f"node{number % NODES}"
        health = messages_pb2.Health(load_1=number % 7, processors=4)
        health.queues.add(name="spool", waiting=number)
        for kind, data in (("FileOutput", files(number)), ("Health", health)):
            queue.add(wire.content(report(kind, data.SerializeToString(), f"{kind}{number}", node)))
            site.now += 0.0001


def files(number: int) -> Any:
    """Return a file of a few names, each time another one."""
    data = messages_pb2.Files()
    data.files.add(name=f"result{number % 10}.txt", data=str(number).encode() * 100)
    return data


def throughput() -> None:
    with tempfile.TemporaryDirectory() as top:
        site = House(Path(top), CONF)
        filled(site, 0, REPORTS)
        began = time.perf_counter()
        with site.controller() as control:
            while control.take():
                pass
            seconds = time.perf_counter() - began
            assert control.store.counts() == {"taken": REPORTS}
        began = time.perf_counter()
        database = sqlite3.connect(f"{top}/plain.sqlite", isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE taken (id TEXT PRIMARY KEY, data BLOB)")
        queue = site.queue()
        for name in list(queue)[:1000]:
            message = wire.parse(Path(queue.path, name).read_bytes())
            database.execute("INSERT INTO taken VALUES (?, ?)", (message.id, message.data))
        plain = (time.perf_counter() - began) / 1000
        print(f"queue and controller: {REPORTS / seconds:.0f} reports a second")
        print(f"a commit each, without aggregators: {1 / plain:.0f}; ratio {plain * REPORTS / seconds:.1f}")


def latency(tree: Path) -> None:
    with served.laid_out("floor.cgi") as site:
        for directory in ("tree/nodes", "etc/secrets/nodes"):
            (site / directory).mkdir(parents=True)
        conf = site / "etc/infocluster.toml"
        conf.write_text("")
        (site / "etc/secrets/nodes/node1").write_bytes(KEY)
        config.compile_settings(str(conf))
        from infocluster.aggregate import answers

        (site / "tree/nodes/updates.json").write_text('{"format": "infocluster updates 1"}')
        (site / "tree/nodes" / answers.answer_name({"type": "FileList"})).write_text('{"files": []}' * 100)
        subprocess.run(["chown", "-R", USER, str(site / "gather")], check=True)
        with served.serving(tree, site) as server:
            runs = {
                FLOOR: lambda: measure.fetch(server.port, "/bench/floor.cgi"),
                "request.cgi, published": lambda: measure.fetch(server.port, "/cgi-bin/request.cgi?type=FileList"),
                "report.cgi, durable": lambda: hand_in(server.port),
            }
            measure.in_turn(runs, 5)
            times = measure.in_turn(runs, ROUNDS)
    served.print_one_client(times, ROUNDS)


def live(tree: Path) -> None:
    """Measure what an answer of the controller itself takes, by its socket."""
    with served.laid_out("floor.cgi") as site:
        for directory in ("www/world", "dev", "state"):
            (site / directory).mkdir(parents=True)
        conf = site / "etc/infocluster.toml"
        conf.write_text(
            f'[site]\nproduction_dir = "{site}/www"\ndevelopment_dirs = ["{site}/dev"]\nstate_dir = "{site}/state"\n'
            f'[gather]\ngather_dir = "{site}/gather"\n[aggregate]\nsocket = "{site}/socket"\n'
        )
        config.compile_settings(str(conf))
        environment = {"PATH": os.defpath, "INFOCLUSTER_CONF": str(conf)}
        command = [str(tree / "batch/controller"), "-serve"]
        with (
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as controller,
            served.serving(tree, site) as server,
        ):
            try:
                while not (site / "socket").exists():
                    assert controller.poll() is None
                    time.sleep(0.05)
                (site / "socket").chmod(0o666)
                address = "/cgi-bin/request.cgi?type=FileList"
                runs = {
                    FLOOR: lambda: measure.fetch(server.port, "/bench/floor.cgi"),
                    "request.cgi, live": lambda: measure.fetch(server.port, address),
                }
                measure.in_turn(runs, 5)
                times = measure.in_turn(runs, ROUNDS)
            finally:
                controller.kill()
    served.print_one_client(times, ROUNDS)


def hand_in(port: int) -> None:
    import http.client

    message = report("Number", b"1" * 500, f"m{time.time_ns()}")
    body, date = wire.content(message), int(time.time())
    path = "/cgi-bin/report.cgi"
    headers = {
        "X-Seer-Node": "node1",
        "X-Seer-Id": message.id,
        "X-Seer-Date": str(date),
        "X-Seer-Signature": signing.sign(KEY, "POST", path, "node1", message.id, date, body),
    }
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, body, headers)
    reply = connection.getresponse()
    assert reply.status == 200, reply.read()
    reply.read()
    connection.close()


def memory() -> None:
    with tempfile.TemporaryDirectory() as top:
        site = House(Path(top), "")
        (site.root / "var/www/world").mkdir(parents=True)
        seen = []
        with site.controller() as control:
            rounds = nodes.Rounds(command.Run("controller", site.settings, {}, progress.bar), control)
            for first in range(0, MANY, PART):
                mixed(site, first, PART)
                while control.take():
                    control.update()
                    rounds.publish(site.now, True)
                for directory in os.scandir(site.queue().path):  # as the owner sweeps
                    shutil.rmtree(directory.path)
                control.tidy()
                seen.append(resident_mb())
            assert control.store.counts()["taken"] == MANY
    print(f"memory of the controller after each {PART} of {MANY} reports, MB: {' '.join(f'{mb:.0f}' for mb in seen)}")
    growth = seen[-1] - seen[len(seen) // 2]
    print(f"growth over the second half {growth:.1f} MB (less than {GROWTH_MB})")
    if growth >= GROWTH_MB:
        raise SystemExit(1)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * posix.sysconf("SC_PAGESIZE") / 1e6


if __name__ == "__main__":
    main()
