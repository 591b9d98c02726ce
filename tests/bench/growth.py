# SPDX-License-Identifier: Apache-2.0
"""Growth: the plan and schedule of a push to 1,000 servers, the network replaced by a delay.

The promise: it ends within 1.2 times the ideal of its fan-out, below 200 MB.
"""

import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from infocluster import settings as known
from infocluster import trees
from infocluster.cron import progress
from infocluster.push import run, transport
from infocluster.push.order import Order
from infocluster.push.plan import Request
from infocluster.push.servers import Server

SERVERS, PARALLEL, DELAY_S, FILES = 1000, 50, 0.2, 2000


def delayed(server: Server, listing: trees.Listing, order: Order) -> Iterator[trees.Action]:
    time.sleep(DELAY_S)
    for number in range(FILES // 10):
        yield trees.Action("update", f"world/{number // 100}/{number}.html", False, 1000)


def main() -> None:
    transport.TRANSPORTS["ssh"] = delayed
    with tempfile.TemporaryDirectory() as top:
        for number in range(FILES):
            file = Path(top, f"var/www/world/{number // 100}/{number}.html")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("x")
        Path(top, "etc").mkdir()
        conf = Path(top, "etc/infocluster.toml")
        conf.write_text(
            f'[push]\nparallel = {PARALLEL}\n[[servers]]\nname = "web[1-{SERVERS}].example.edu"\n'
            'transport = "ssh"\ndestination = "/srv/www"\n'
        )
        settings = known.read(str(conf))
        said: list[str] = []
        began = time.perf_counter()
        request = Request("wwwpush", "web", [], everything=True)
        run.push(request, settings, lambda paths: None, said.append, said.append, progress.bar)
        took = time.perf_counter() - began
    ideal = math.ceil(SERVERS / PARALLEL) * DELAY_S
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{SERVERS} servers, {PARALLEL} at once, {DELAY_S} s each; {os.cpu_count()} cores: {said[-1][:60]}")
    print(f"{took:.2f} s, ideal {ideal:.2f} s: {took / ideal:.2f} times (at most 1.2)")
    print(f"peak {peak_mb:.0f} MB (below 200)")


if __name__ == "__main__":
    main()
