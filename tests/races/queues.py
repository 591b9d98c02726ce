# SPDX-License-Identifier: Apache-2.0
"""Adders and consumers of a queue, as processes of their own that tests start and kill.

Usage: python queues.py add TOP COUNT LABEL [DIGIT NOW]
       python queues.py add-normal TOP COUNT LABEL
       python queues.py consume TOP LIBRARY LOG [PURGES]

LIBRARY is ours, dirq, ours-normal or dirq-normal: a queue is simple, or normal with small directories. An adder
prints the name of each element it has added; its content is a line of its label and number, many times. A consumer
writes each content's first line to its log and ends when the queue stays empty, or purges with each pass.
"""

import os
import sys
import time
from typing import Any

from dirq.queue import Queue
from dirq.QueueSimple import QueueSimple

from infocluster.queue.normal import Normal
from infocluster.queue.simple import Simple

LINES = 40
SCHEMA = {"body": "string"}


def content(label: str, number: int) -> bytes:
    return f"{label} {number}\n".encode() * LINES


def is_whole(text: bytes) -> bool:
    line = text[: text.find(b"\n") + 1]
    return len(line) > 2 and text == line * LINES


def add(top: str, count: int, label: str, digit: int | None = None, now: float | None = None) -> None:
    queue = Simple(top, granularity_s=2, digit=digit, clock=time.time if now is None else lambda: now)
    for number in range(count):
        name = queue.add(content(label, number))
        os.write(1, f"{name} {label} {number}\n".encode())


def add_normal(top: str, count: int, label: str) -> None:
    queue = Normal(top, SCHEMA, elements_limit=50, digit=7)
    for number in range(count):
        name = queue.add({"body": content(label, number).decode()})
        os.write(1, f"{name} {label} {number}\n".encode())


def consume(top: str, library: str, log: str, purges: bool) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    is_normal = library.endswith("-normal")
    for _ in range(3):
        if library.startswith("ours"):
            ours = Normal(top, SCHEMA) if is_normal else Simple(top)
            for place, name in enumerate(ours.locked()):
                _take(out, ours.get(name))
                # What is not removed is not ours any more; it is delivered again.
                if not ours.remove(name):
                    os.write(out, b"lost\n")
                if purges and place % 500 == 0:
                    ours.purge()
        else:
            theirs = Queue(top, schema=SCHEMA) if is_normal else QueueSimple(top)
            try:
                for place, name in enumerate(theirs):
                    if theirs.lock(name):
                        _take(out, theirs.get(name))
                        theirs.remove(name)
                    if purges and place % 500 == 0:
                        theirs.purge()
            except OSError:
                # Its iteration and its purge end where a directory vanishes.
                continue


def _take(out: int, text: "bytes | dict[str, Any] | None") -> None:
    if isinstance(text, dict):
        text = str(text["body"]).encode()
    os.write(out, (text or b"")[: (text or b"").find(b"\n") + 1] if text and is_whole(text) else b"torn\n")


if __name__ == "__main__":
    if sys.argv[1] == "add":
        add(
            sys.argv[2],
            int(sys.argv[3]),
            sys.argv[4],
            *(kind(word) for kind, word in zip((int, float), sys.argv[5:], strict=False)),
        )
    elif sys.argv[1] == "add-normal":
        add_normal(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        consume(sys.argv[2], sys.argv[3], sys.argv[4], len(sys.argv) > 5)
