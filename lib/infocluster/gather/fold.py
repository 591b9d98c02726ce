# SPDX-License-Identifier: Apache-2.0
"""Fold gathered parts into a result: map a block of records, merge partial results, on every core or a cluster.

A job is an object with three functions:

* ``empty() -> R``
* ``map(segment, block) -> (R, bad)``: a block is whole lines; `bad` counts those that are no records;
* ``merge(R, R) -> R``, which may change and return its first argument.

and ``packages``, the names of distributions whose version tells in the result. With ``engine = "dask"`` the job
travels to other hosts (see `cluster`): it and its result can be pickled, and its class is in a module of ours.

Memory is bounded by block and result, not by the files: a worker reads a megabyte at a time.

Source: multiprocessing and concurrent.futures documentation.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar

from infocluster.errors import UnavailableError, reason
from infocluster.gather.collect import Part

BLOCK_BYTES = 1 << 20
SLICE_BYTES = 32 << 20
"""Bytes one worker is given at a time; less than this in all is done without workers."""

R = TypeVar("R")


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
    job: Job[R], parts: list[Part], settings: Mapping[str, Any], advance: Callable[[int], None] | None = None
) -> Folded[R]:
    """Fold parts into one result, the same with either engine.

    Args:
        job: what is done with the records.
        parts: what is read.
        settings: the section ``[gather]``: ``engine``, ``"local"`` or ``"dask"``; ``processes`` for the one, 0 means
            one a core; ``scheduler`` and ``scheduler_timeout_s`` for the other.
        advance: called with the bytes that were read since it was called last.

    Raises:
        ConfigError: the cluster is not what it has to be.
        UnavailableError: the cluster or a process of ours was lost.
    """
    result, bad, failed = job.empty(), dict[str, int](), dict[str, str]()
    with closing(_partials(job, parts, settings)) as partials:
        for path, size, partial, bad_lines, fault in partials:
            result = job.merge(result, partial)
            if bad_lines:
                bad[path] = bad.get(path, 0) + bad_lines
            if fault:
                failed[path] = fault
            if advance:
                advance(size)
    if failed:
        # Some of a failed file may be in the result: fold the others again, without it.
        rest = run(job, [part for part in parts if part.path not in failed], settings)
        return Folded(rest.result, rest.parts, rest.bad, failed | rest.failed)
    return Folded(result, parts, bad, failed)


Partial = tuple[str, int, R, int, str]


def _partials(job: Job[R], parts: list[Part], settings: Mapping[str, Any]) -> "Generator[Partial[R]]":
    if settings["engine"] == "dask" and parts:
        from infocluster.gather import cluster

        yield from cluster.partials(job, parts, settings)
        return
    processes = settings["processes"] or os.cpu_count() or 1
    total = sum(part.end - part.start for part in parts)
    if processes == 1 or total <= SLICE_BYTES:
        for part in parts:
            yield fold_slice(job, part)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    cut = list(slices(parts, SLICE_BYTES))
    # Forked, so that the workers have the job and all it loaded without a copy.
    fork = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(min(processes, len(cut)), fork, _begin_worker, (job,)) as pool:
            yield from pool.map(_fold_for_parent, cut)
    except BrokenProcessPool:
        raise UnavailableError("cannot fold: a process of this run was killed") from None


_worker_job: "list[Job[Any]]" = []


def _begin_worker(job: "Job[Any]") -> None:
    _worker_job[:] = [job]


def _fold_for_parent(part: Part) -> "Partial[Any]":
    return fold_slice(_worker_job[0], part)


def fold_slice(job: Job[R], part: Part) -> "Partial[R]":
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


def slices(parts: Iterable[Part], slice_bytes: int) -> Iterator[Part]:
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
