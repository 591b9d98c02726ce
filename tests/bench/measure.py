# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks measure: alternatives in turn, many times, and ratios of what was seen in one run.

Machines drift; so alternatives take turns within one run, and what is compared are medians of the same turns.
"""

import socket
import statistics
import time
from collections.abc import Callable, Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share (0 to 1) of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def in_turn(alternatives: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run each alternative once a round and return its times, in s."""
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return times


def fetch(port: int, path: str, host: str = "127.0.0.1") -> bytes:
    """Send one GET on a new connection and return the reply, read to the end of the message, not of the connection.

    A server may keep the connection of a CGI reply open for tens of ms after its last byte; clients do not wait.
    """
    with socket.create_connection((host, port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\n\r\n".encode("ascii"))
        text = b""
        while b"\r\n\r\n" not in text:
            chunk = connection.recv(65536)
            if not chunk:
                raise ConnectionError(f"no reply to {path}: {text[:200]!r}")
            text += chunk
        head, _, body = text.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"{path}: {head[:200]!r}")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = fields.get(b"content-length")
        while len(body) < int(length) if length else not body.endswith(b"0\r\n\r\n"):  # else: chunked
            chunk = connection.recv(65536)
            if not chunk:
                raise ConnectionError(f"{path}: reply cut short")
            body += chunk
        return body


def row(name: str, times_s: Sequence[float], base_s: Sequence[float] | None = None) -> str:
    """Return a line of a table: median, 99th percentile and, beside a base, the ratio of medians."""
    median = statistics.median(times_s)
    ratio = f"{median / statistics.median(base_s):8.2f}" if base_s else " " * 8
    return f"{name:44} {median * 1e3:9.2f} {percentile(times_s, 0.99) * 1e3:9.2f} {ratio}"


HEAD = f"{'':44} {'median ms':>9} {'p99 ms':>9} {'ratio':>8}"
