# SPDX-License-Identifier: Apache-2.0
"""A storage cluster, as a polling agent sees one: three nodes that ask every ten seconds, scaled down, with faults.

Usage: cluster.py ADDRESS SECONDS CORE_FILER TARGET_TIME [CORE_FILER TARGET_TIME]...

Every node asks for every core filer and target time, whatever the others have heard. Some answers are dropped before
they are read, some questions are asked twice, a node restarts now and then and has forgotten what it heard. A server
that is just restarting is asked again later. A node asks on for a while after it was released. The time of every
first release is printed as JSON, a line each: ``{"key": "cf/1795384800", "node": 1, "time": 1795384812.5}``.

What must not be is written to standard error, a line each, and makes the exit status 1: a status that is not 200, an
answer without the phrase after one with it, a node that was never released.
"""

import http.client
import json
import random
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable

NODES = 3
PHRASE = "RELEASE Core Filer SYNC"
AFTER = 6
LIMIT_S = 120.0


class FaultError(Exception):
    """What must not be."""


def ask(address: str, mass: str, target: str, is_dropped: bool) -> str | None:
    """Ask once and return the answer, None where there was none, or it was dropped."""
    parts = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request("GET", f"{parts.path}?{urllib.parse.urlencode({'mass': mass, 'targetTime': target})}")
        if is_dropped:
            return None
        reply = connection.getresponse()
        text = reply.read().decode()
    except (ConnectionError, http.client.HTTPException):  # the server is restarting
        return None
    finally:
        connection.close()
    if reply.status == 503 and "(Incident " not in text:  # the server's own, while it restarts; ours has a number
        return None
    if reply.status != 200:
        raise FaultError(f"answered {reply.status}: {text}")
    return text


def node(number: int, address: str, every_s: float, mass: str, target: str, say: Callable[[str], None]) -> None:
    chance = random.Random(f"{number} {mass} {target}")
    was_released = is_told = False
    after = 0
    end = time.monotonic() + LIMIT_S
    while after < AFTER:
        if time.monotonic() > end:
            raise FaultError(f"not released {AFTER} times in {LIMIT_S:g} s")
        time.sleep(every_s * chance.uniform(0.5, 1.5))
        is_dropped = chance.random() < 0.2
        answers = [ask(address, mass, target, is_dropped)]
        if chance.random() < 0.2:
            answers.append(ask(address, mass, target, False))
        if chance.random() < 0.1:  # a restart: it remembers nothing
            time.sleep(every_s)
            is_told = False
        for answer in answers:
            if answer is None:
                continue
            if PHRASE in answer:
                if not is_told:
                    say(json.dumps({"key": f"{mass}/{target}", "node": number, "time": time.time()}))
                was_released = is_told = True
            elif was_released:
                raise FaultError(f"released, and then not: {answer}")
        after += is_told


def main() -> int:
    address, every_s = sys.argv[1], float(sys.argv[2])
    lock = threading.Lock()
    faults: list[str] = []

    def say(line: str) -> None:
        with lock:
            print(line, flush=True)

    def whole(number: int, mass: str, target: str) -> None:
        try:
            node(number, address, every_s, mass, target, say)
        except Exception as error:  # of a thread nobody hears
            faults.append(f"{mass} {target}, node {number}: {type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=whole, args=(number, mass, target))
        for mass, target in zip(sys.argv[3::2], sys.argv[4::2], strict=True)
        for number in range(NODES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
