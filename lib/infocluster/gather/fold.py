# SPDX-License-Identifier: Apache-2.0
"""Fold gathered parts into a result: map a block of records, merge the partial results, on every core.

A job is an object with three functions:

* ``empty() -> R``
* ``map(segment, block) -> (R, bad)``: a block is whole lines; `bad` counts those that are no records;
* ``merge(R, R) -> R``, which may change and return its first argument.

Memory is bounded by block and result, not by the files: a worker reads a megabyte at a time.

Source: multiprocessing and concurrent.futures documentation.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from infocluster.errors import reason
from infocluster.gather.collect import Part

BLOCK_BYTES = 1 << 20
SLICE_BYTES = 32 << 20
"""Bytes one worker is given at a time; less than this in all is done without workers."""

R = TypeVar("R")


class Job(Protocol[R]):
    """What is done with the records."""

    def empty(self) -> R:
        """Return the result of no records."""

    def map(self, segment: str, block: bytes) -> tuple[R, int]:
        """Return the result of a block of whole lines, and how many lines were no records."""

    def merge(self, one: R, other: R) -> R:
        """Return the result of both."""


@dataclass(frozen=True, slots=True)
class Folded(Generic[R]):
    """What came of it.

    Attributes:
        result: of all parts that could be read to their end.
        parts: those parts.
        bad: path to how many of its lines were no records.
        failed: path to the reason why it could not be read; nothing of it is in the result.
    """

    result: R
    parts: list[Part]
    bad: dict[str, int]
    failed: dict[str, str]


def run(
    job: Job[R], parts: list[Part], processes: int = 0, advance: Callable[[int], None] | None = None
) -> Folded[R]:
    """Fold parts into one result.

    Args:
        job: what is done with the records.
        parts: what is read.
        processes: how many work at once; 0 means one a core.
        advance: called with the bytes that were read since it was called last.
    """
    result, bad, failed = job.empty(), dict[str, int](), dict[str, str]()
    for path, size, partial, bad_lines, fault in _partials(job, parts, processes or os.cpu_count() or 1):
        result = job.merge(result, partial)
        if bad_lines:
            bad[path] = bad.get(path, 0) + bad_lines
        if fault:
            failed[path] = fault
        if advance:
            advance(size)
    if failed:
        # Some of a failed file may be in the result: fold the others again, without it.
        rest = run(job, [part for part in parts if part.path not in failed], processes)
        return Folded(rest.result, rest.parts, rest.bad, failed | rest.failed)
    return Folded(result, parts, bad, failed)


Partial = tuple[str, int, R, int, str]


def _partials(job: Job[R], parts: list[Part], processes: int) -> "Iterator[Partial[R]]":
    total = sum(part.end - part.start for part in parts)
    if processes == 1 or total <= SLICE_BYTES:
        for part in parts:
            yield _fold_slice(job, part)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    slices = list(_slices(parts))
    # Forked, so that the workers have the job and all it loaded without a copy.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(processes, len(slices)), fork, _begin_worker, (job,)) as pool:
        yield from pool.map(_fold_for_parent, slices)


_worker_job: "list[Job[Any]]" = []


def _begin_worker(job: "Job[Any]") -> None:
    _worker_job[:] = [job]


def _fold_for_parent(part: Part) -> "Partial[Any]":
    return _fold_slice(_worker_job[0], part)


def _fold_slice(job: Job[R], part: Part) -> "Partial[R]":
    """Fold one slice, whose ends are ends of lines."""
    result, bad = job.empty(), 0
    try:
        for block in _blocks(part):
            partial, bad_lines = job.map(part.segment, block)
            result, bad = job.merge(result, partial), bad + bad_lines
    except OSError as error:
        return part.path, part.end - part.start, job.empty(), 0, reason(error)
    return part.path, part.end - part.start, result, bad, ""


def _slices(parts: Iterable[Part]) -> Iterator[Part]:
    """Cut large parts at ends of lines."""
    for part in parts:
        start = part.start
        with open(part.path, "rb") as file:
            while part.end - start > SLICE_BYTES:
                file.seek(start + SLICE_BYTES)
                file.readline()
                end = min(file.tell(), part.end)
                yield _cut(part, start, end)
                start = end
        if start < part.end:
            yield _cut(part, start, part.end)


def _cut(part: Part, start: int, end: int) -> Part:
    return Part(part.path, part.server, part.host, part.app, part.segment, part.first_id, start, end)


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
