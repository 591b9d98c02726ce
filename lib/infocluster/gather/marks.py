# SPDX-License-Identifier: Apache-2.0
"""Read marks: how far the batch host has read, told to the servers, which alone may drop what was read.

Shape: one file an application, ``<marks>/<app>.json`` in the production tree, pushed with it:

    {"app": "survey", "made": 1795384800, "marks": [{"server": "web1", "host": "www", "app": "survey",
     "segment": "2026-11-21.jsonl", "first_id": "5f0c2a9be7d14c33", "offset": 409600}]}

A server finds its own segments, and elements of its queues, by name and first_id, which no other server's record has.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from infocluster import names
from infocluster.errors import BadInputError, UsageError
from infocluster.gather.cursor import Position


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one segment was read, in bytes."""

    server: str
    host: str
    app: str
    segment: str
    first_id: str
    offset: int


def document(app: str, positions: Iterable[Position], now: float) -> bytes:
    """Return the file of an application's marks."""
    marks = [Mark(p.server, p.host, p.app, p.segment, p.first_id, p.offset) for p in positions]
    content = {"app": app, "made": int(now), "marks": [asdict(mark) for mark in marks]}
    return json.dumps(content, indent=1).encode("ascii") + b"\n"


def parse(text: bytes, source: str) -> tuple[str, list[Mark]]:
    """Return the application and the marks of a file.

    Raises:
        BadInputError: it is no such file; the message names it as `source`.
    """
    try:
        content = json.loads(text)
        return names.name(content["app"], "an application's name"), [_mark(item) for item in content["marks"]]
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise BadInputError(f"cannot read the marks in {source}: {error}") from error


def _mark(item: dict[str, Any]) -> Mark:
    mark = Mark(**item)
    if not isinstance(mark.offset, int):
        raise ValueError(f"an offset that is no number: {mark.offset!r}")
    return mark
