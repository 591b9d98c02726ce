# SPDX-License-Identifier: Apache-2.0
"""Twenty thousand reports of fifty nodes to two web servers, through report.cgi's own handler: good ones and others.

Usage: feed.py ROOT SEED COUNT PARTS

ROOT has etc/infocluster.toml and var/gather. So many parts are handed in, each when a line comes to the standard
input. What has to come of it is printed as one JSON object: how many were sent
of each kind, the sum of the values of all valid ones, and what was answered.
"""

import io
import json
import posix
import random
import sys
import time
from collections import Counter
from pathlib import Path

from infocluster.aggregate import signing, wire
from infocluster.apps import report
from infocluster.errors import InfoclusterError
from infocluster.queue.simple import Simple
from infocluster.web.request import Request

NODES = 50
KEY = b"a key of sixteen bytes "


def hand_in(root: Path, server: str, node: str, message_id: str, body: bytes, key: bytes, date: int) -> int:
    """Return the status of what report.cgi's handler answers."""
    path = "/cgi-bin/report.cgi"
    variables = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": path,
        "CONTENT_LENGTH": str(len(body)),
        "REMOTE_ADDR": "192.0.2.1",
        "SERVER_GATHER": str(root / "var/gather" / server / "www"),
        "HTTP_X_SEER_NODE": node,
        "HTTP_X_SEER_ID": message_id,
        "HTTP_X_SEER_DATE": str(date),
        "HTTP_X_SEER_SIGNATURE": signing.sign(key, "POST", path, node, message_id, date, body),
    }
    try:
        request = Request(
            {name.encode(): value.encode() for name, value in variables.items()}, None, io.BytesIO(body).read
        )
        return report.answer(request).status
    except InfoclusterError as error:
        return error.http_status


def main() -> None:
    root, chance, count = Path(sys.argv[1]), random.Random(sys.argv[2]), int(sys.argv[3])
    part_size = -(-count // int(sys.argv[4]))
    posix.environ[b"INFOCLUSTER_CONF"] = str(root / "etc/infocluster.toml").encode()
    sent: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    total = 0
    orders = []
    for number in range(count):
        kind = chance.choices(
            ("good", "twice", "elsewhere", "signature", "malformed", "unknown", "clock", "raw"),
            (76, 4, 4, 4, 4, 3, 3, 2),
        )[0]
        orders.append((f"node{chance.randrange(NODES)}", kind, number))
    # Not in the order that they were made in.
    for place in range(0, count, 40):
        part = orders[place : place + 40]
        chance.shuffle(part)
        orders[place : place + 40] = part
    for place, (node, kind, number) in enumerate(orders):
        if place % part_size == 0:
            sys.stdin.readline()
        now = int(time.time())
        server = chance.choice(("web1", "web2"))
        key = KEY + node.encode()
        value = number % 997
        message = wire.Message("REPORT", f"m{number}", node, "Number", str(value).encode(), {"period": "60"})
        body = wire.content(message)
        sent[kind] += 1
        if kind == "raw":  # a program of the server that writes to the queue by itself, badly
            Simple(str(root / "var/gather" / server / "www/reports")).add(b"SEER/1.0 REPORT\nId: x\n" + body[:9])
            continue
        if kind == "signature":
            key += b"x"
        elif kind == "malformed":
            body = body.replace(b"Type:", b"Tipe:")
        elif kind == "unknown":
            node = f"ghost{number % 7}"
        elif kind == "clock":
            now -= 10000
        else:
            total += value
        answered[f"{kind} {hand_in(root, server, node, message.id, body, key, now)}"] += 1
        if kind == "twice":
            answered[f"twice {hand_in(root, server, node, message.id, body, key, now)}"] += 1
        elif kind == "elsewhere":
            other = "web2" if server == "web1" else "web1"
            answered[f"elsewhere {hand_in(root, other, node, message.id, body, key, now)}"] += 1
    print(json.dumps({"sent": sent, "answered": answered, "total": total}))


if __name__ == "__main__":
    main()
