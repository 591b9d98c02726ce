# SPDX-License-Identifier: Apache-2.0
"""A storage cluster, as a polling agent sees one: three nodes that ask every ten seconds, scaled down, with faults.

Usage: cluster.py ADDRESS SECONDS CORE_FILER TARGET_TIME [CORE_FILER TARGET_TIME]...

Every node asks for every core filer and target time, whatever the others have heard. Some answers are dropped before
they are read, some questions are asked twice at once, a node restarts now and then and has forgotten what it heard. A
node asks on for a while after it was released. The time and text of every first release is printed as JSON, a line
each: ``{"key": "cf/1795384800", "node": 1, "time": 1795384812.5}``; other answers are counted.
"""

import http.client
import json
import random
import sys
import threading
import time
import urllib.parse

NODES = 3
PHRASE = "RELEASE Core Filer SYNC"
AFTER = 6
LIMIT_S = 120.0


def ask(address: str, mass: str, target: str, is_dropped: bool) -> str | None:
    """Ask once and return the answer, None where it was dropped."""
    parts = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request("GET", f"{parts.path}?{urllib.parse.urlencode({'mass': mass, 'targetTime': target})}")
        if is_dropped:
            return None
        reply = connection.getresponse()
        text = reply.read().decode()
        if reply.status != 200:
            raise SystemExit(f"{mass} {target}: {reply.status} {text}")
        return text
    finally:
        connection.close()


def node(number: int, address: str, every_s: float, mass: str, target: str, lock: threading.Lock) -> None:
    chance = random.Random(f"{number} {mass} {target}")
    told = after = 0
    end = time.monotonic() + LIMIT_S
    while after < AFTER and time.monotonic() < end:
        time.sleep(every_s * chance.uniform(0.5, 1.5))
        is_dropped = chance.random() < 0.2
        answers = [ask(address, mass, target, is_dropped)]
        if chance.random() < 0.2:
            answers.append(ask(address, mass, target, False))
        if chance.random() < 0.1:  # a restart: it remembers nothing
            time.sleep(every_s)
            told = 0
        released = [PHRASE in answer for answer in answers if answer is not None]
        if told and not all(released):
            raise SystemExit(f"{mass} {target}: released, and then not: {answers}")
        if any(released):
            if not told:
                with lock:
                    print(json.dumps({"key": f"{mass}/{target}", "node": number, "time": time.time()}), flush=True)
            told = 1
        after += told


def main() -> None:
    address, every_s = sys.argv[1], float(sys.argv[2])
    lock = threading.Lock()
    threads = []
    for mass, target in zip(sys.argv[3::2], sys.argv[4::2], strict=True):
        for number in range(NODES):
            threads.append(threading.Thread(target=node, args=(number, address, every_s, mass, target, lock)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
