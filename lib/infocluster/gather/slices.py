# SPDX-License-Identifier: Apache-2.0
"""Slices of files, and what a fold's job makes of each: the same on every engine.

A job is an object with three functions:

* ``empty() -> R``
* ``map(segment, block) -> (R, bad)``: a block is whole lines; `bad` counts those that are no records;
* ``merge(R, R) -> R``, which may change and return its first argument.

and ``packages``, the names of distributions whose version tells in the result. With ``engine = "dask"`` the job
travels to other hosts (see `cluster`): it and its result can be pickled, and its class is in a module of ours.

Memory is bounded by block and result, not by the files: a worker reads a megabyte at a time.
"""

import errno
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Protocol, TypeVar

from infocluster.errors import reason
from infocluster.gather.collect import Part

BLOCK_BYTES = 1 << 20
SLICE_BYTES = 32 << 20
"""Bytes one worker is given at a time; less than this in all is done without workers."""

R = TypeVar("R")
Partial = tuple[str, int, R, int, str]
"""What came of a slice: path, bytes, result, how many lines were no records, and why it could not be read or ""."""


class Job(Protocol[R]):
    """What is done with the records.

    Attributes:
        packages: names of distributions whose version tells in the result.
    """

    packages: tuple[str, ...]

    def empty(self) -> R:
        """Return the result of no records."""

    def map(self, segment: str, block: bytes) -> tuple[R, int]:
        """Return the result of a block of whole lines, and how many lines were no records."""

    def merge(self, one: R, other: R) -> R:
        """Return the result of both."""


def fold(job: Job[R], part: Part) -> "Partial[R]":
    """Fold one slice, whose ends are ends of lines.

    Returns:
        path, bytes, result, how many lines were no records, and why it could not be read or "".
    """
    result, bad = job.empty(), 0
    try:
        for block in _blocks(part):
            partial, bad_lines = job.map(part.segment, block)
            result, bad = job.merge(result, partial), bad + bad_lines
    except OSError as error:
        return part.path, part.end - part.start, job.empty(), 0, reason(error)
    return part.path, part.end - part.start, result, bad, ""


def cut(parts: Iterable[Part], slice_bytes: int) -> Iterator[Part]:
    """Cut large parts at ends of lines; one that cannot be opened stays whole, for whoever reads it to tell."""
    for part in parts:
        try:
            places = _places(part, slice_bytes)
        except OSError:
            places = [part.start, part.end]
        for start, end in pairwise(places):
            yield replace(part, start=start, end=end, tail="")


def _places(part: Part, slice_bytes: int) -> list[int]:
    places = [part.start]
    if part.end - part.start > slice_bytes:
        with open(part.path, "rb") as file:
            while part.end - places[-1] > slice_bytes:
                file.seek(places[-1] + slice_bytes)
                file.readline()
                places.append(min(file.tell(), part.end))
    if places[-1] < part.end or len(places) == 1:
        places.append(part.end)
    return places


def _blocks(part: Part) -> Iterator[bytes]:
    with open(part.path, "rb") as file:
        file.seek(part.start)
        left = part.end - part.start
        while left:
            block = file.read(min(BLOCK_BYTES, left))
            if not block:
                raise OSError(errno.EIO, "it became shorter while it was read")
            left -= len(block)
            if left and not block.endswith(b"\n"):
                rest = file.readline(left)
                block += rest
                left -= len(rest)
            yield block
