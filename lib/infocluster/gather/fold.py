# SPDX-License-Identifier: Apache-2.0
"""Fold gathered parts into a result: what a job makes of their `slices`, merged, on every core or a cluster.

Source: multiprocessing and concurrent.futures documentation.
"""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic

from infocluster.errors import UnavailableError
from infocluster.gather import slices
from infocluster.gather.collect import Part
from infocluster.gather.slices import Job, Partial, R


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


def _partials(job: Job[R], parts: list[Part], settings: Mapping[str, Any]) -> "Generator[Partial[R]]":
    if settings["engine"] == "dask" and parts:
        from infocluster.gather import cluster

        yield from cluster.partials(job, parts, settings)
        return
    processes = settings["processes"] or os.cpu_count() or 1
    total = sum(part.end - part.start for part in parts)
    if processes == 1 or total <= slices.SLICE_BYTES:
        for part in parts:
            yield slices.fold(job, part)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    cut = list(slices.cut(parts, slices.SLICE_BYTES))
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
    return slices.fold(_worker_job[0], part)
