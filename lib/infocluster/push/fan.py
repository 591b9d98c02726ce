# SPDX-License-Identifier: Apache-2.0
"""Fan out: many servers at once, each by itself, those that were not reached tried again.

A server that cannot be reached, hangs or fails costs the others nothing but its place among those that are served at
once; it is tried again after a pause that doubles each time, within its time limit. Its outcome is that of the last
try, with what was done in all of them.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from infocluster import trees
from infocluster.config import Settings
from infocluster.push import transport
from infocluster.push.order import Order, Outcome
from infocluster.push.servers import Server

if TYPE_CHECKING:
    from infocluster.push.skeleton import Skeleton


class Job(NamedTuple):
    """What one server gets: a listing of the production tree, the paths that it is of, and who left out what."""

    server: Server
    listing: trees.Listing
    paths: list[str]
    skeleton: "Skeleton | None" = None


def out(
    jobs: list[Job],
    settings: Settings,
    show: bool = False,
    atomic: bool = False,
    advance: Callable[[int], None] | None = None,
    done: Callable[[Job, Outcome], None] | None = None,
    keep: bool = False,
) -> list[Outcome]:
    """Serve all servers, so many at once, and return how it went, in the order of the jobs.

    Args:
        jobs: one a server.
        settings: all settings; ``[push]`` says how many at once, how long and how often.
        show: whether to change nothing.
        atomic: see `Order`.
        advance: called with 1 when a server is done.
        done: called with each outcome as soon as there is one, one at a time.
        keep: see `Order`.

    Raises:
        BaseException: what interrupts it, such as a signal; each server has by then ended behind what it was at.
    """
    stopped = threading.Event()
    order = Order(settings, [], show, atomic, 0.0, stopped, keep)
    alike: dict[tuple[trees.Action, ...], list[trees.Action]] = {}
    waiting = deque(jobs)
    ended: SimpleQueue[tuple[Job, Outcome]] = SimpleQueue()
    count = min(settings["push"]["parallel"], len(jobs))
    threads = [Thread(target=_serve_all, args=(waiting, order, ended), name=f"server {one}") for one in range(count)]
    outcomes: dict[str, Outcome] = {}
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            job, outcome = ended.get()
            # Most servers get the same: keep it once.
            outcome.changes = alike.setdefault(tuple(outcome.changes), outcome.changes)
            outcomes[outcome.server] = outcome
            if done:
                done(job, outcome)
            if advance:
                advance(1)
    finally:
        waiting.clear()
        if len(outcomes) < len(jobs):
            stopped.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    return [outcomes[job.server.name] for job in jobs]


def _serve_all(waiting: deque[Job], order: Order, ended: "SimpleQueue[tuple[Job, Outcome]]") -> None:
    """Serve one server after another until none waits."""
    while True:
        try:
            job = waiting.popleft()
        except IndexError:
            return
        ended.put((job, _serve(job, order)))


def _serve(job: Job, common: Order) -> Outcome:
    push = common.settings["push"]
    began = time.monotonic()
    order = common._replace(paths=job.paths, skeleton=job.skeleton, end=began + push["server_timeout_s"])
    pause_s = push["retry_pause_s"]
    changes: list[trees.Action] = []
    begun: list[trees.Action] = []
    for tried in range(push["retries"] + 1):
        outcome = transport.send(job.server, job.listing, order)
        changes += outcome.changes
        begun += outcome.begun
        last = tried == push["retries"] or time.monotonic() + pause_s >= order.end
        if not outcome.was_unreachable or last or order.stopped.wait(pause_s):
            break
        pause_s *= 2
    if outcome.was_unreachable and tried:
        outcome.faults.append(f"tried {tried + 1} times")
    if tried:
        # What was begun is in place by now, or is not known to be.
        outcome.changes = list(dict.fromkeys(changes if outcome.faults else [*begun, *changes]))
        outcome.begun = begun if outcome.faults else []
    outcome.duration_s = time.monotonic() - began
    return outcome
