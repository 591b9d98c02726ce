# SPDX-License-Identifier: Apache-2.0
"""Fold on a Dask cluster: the same job, given to workers on other hosts; owns `distributed`.

The life of a fold here:

1. connect to the scheduler; every worker has our version of Python and of distributed, or nothing begins;
2. cut the parts into tasks, so many bytes each; small files go together;
3. on a worker, a task first holds this host's fingerprint against its own (infocluster's source, the packages that
   the job's result rests on), and the end of each part against what this host sees at that place;
4. what a task returns is merged here as it comes, each once: a worker that is killed has its tasks done by another,
   and the result of those that nobody had fetched yet, too.

What a worker cannot read is read here: if that works, the cluster does not see the gather directories as this host
does, and the fold fails as a whole. Nothing is kept on the cluster when it has ended, whichever way.

The scheduler runs whatever it is sent, for whoever reaches its port: see doc/folding.md for ``tls://``.

Source: Dask.distributed documentation, "Client", "Resilience", "Limitations", "TLS/SSL".
"""

import hashlib
import logging
import os
import pickle
import queue
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import infocluster
from infocluster import files
from infocluster.errors import ConfigError, UnavailableError, reason
from infocluster.gather import collect, slices
from infocluster.gather.collect import Part
from infocluster.gather.slices import Job, Partial, R

if TYPE_CHECKING:
    from distributed import Client, Future

Fingerprint = dict[str, str]

TASKS_A_THREAD = 4
"""Tasks that each thread of the cluster gets, or more: so the last ends soon after the others."""
PARTS_A_TASK = 500
"""Files of one task: an element of a queue is small."""
LOOK_S = 1.0
"""Seconds without a result until the scheduler is asked how it stands."""
CLOSE_S = 5.0
"""Seconds to take leave of the scheduler."""
_MINE = "infocluster"
_QUIET = "distributed"


def partials(job: Job[R], parts: list[Part], settings: Mapping[str, Any]) -> Iterator[Partial[R]]:
    """Yield what comes of the parts, slice by slice, in the order in which they are done.

    Args:
        job: what is done with the records.
        parts: what is read.
        settings: the section ``[gather]``: ``scheduler``, ``scheduler_timeout_s``.

    Raises:
        ConfigError: distributed is not installed, or a worker differs from this host.
        UnavailableError: no scheduler, no worker, one of them lost for good, or files that workers cannot read.
    """
    total = sum(part.end - part.start for part in parts)
    with _connected(settings) as client:
        threads = _looked_at(client, settings)
        slice_bytes = min(slices.SLICE_BYTES, max(slices.BLOCK_BYTES, total // (threads * TASKS_A_THREAD)))
        tasks: dict[Future, list[Part]] = {}
        expected, work = fingerprint(job.packages), _on_worker()
        # A task and no scattered value: where the worker that has it is killed, it is made once more.
        run = uuid.uuid4().hex
        given = client.submit(_as_it_is(), pickle.dumps(job), key=f"{_MINE}-job-{run}")
        for task in _tasks(slices.cut(parts, slice_bytes), slice_bytes):
            ends = []
            for part in task:
                try:
                    ends.append((part, collect.tail(part)))
                except OSError as error:
                    yield part.path, part.end - part.start, job.empty(), 0, reason(error)
            if ends:
                # A name that the job's task has not: so Dask hands these out as workers become free.
                key = f"{_MINE}-fold-{run}-{len(tasks)}"
                future = client.submit(work, expected, job.packages, run, given, pickle.dumps(ends), key=key)
                tasks[future] = [part for part, _ in ends]
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        for future in tasks:
            future.add_done_callback(done.put)
        watch = _Watch(client, settings)
        while tasks:
            try:
                future = done.get(timeout=LOOK_S)
            except queue.Empty:
                watch.look()
                continue
            worker, fault, folded = watch.result(future)
            if fault:
                raise ConfigError(f"cannot fold on the cluster at {settings['scheduler']}: worker {worker} {fault}")
            result, read = pickle.loads(folded)  # noqa: S301 - of our own worker, which runs our own code
            by_place = {(part.path, part.start): part for part in tasks.pop(future)}
            for path, start, size, bad, why in read:
                if why:
                    _check_it_cannot_be_read(job, by_place[path, start], worker, why, settings)
                yield path, size, result, bad, why
                result = job.empty()
            future.release()


def faults(settings: Mapping[str, Any], packages: Iterable[str]) -> list[str]:
    """Return what is wrong with the cluster, a sentence each: for check-site.

    Args:
        settings: the section ``[gather]``: ``scheduler``, ``scheduler_timeout_s``, ``gather_dir``.
        packages: distributions that jobs rest on.

    Raises:
        ConfigError: distributed is not installed, or a worker has another version of Python or of distributed.
        UnavailableError: no scheduler, or no worker.
    """
    packages, directory = tuple(packages), pickle.dumps(settings["gather_dir"])
    expected = fingerprint(packages)
    try:
        listed = sorted(os.listdir(settings["gather_dir"]))
    except OSError as error:
        raise UnavailableError(f"cannot read {settings['gather_dir']}: {reason(error)}") from error
    with _connected(settings) as client:
        _looked_at(client, settings)
        told = client.run(_on_worker(), expected, packages, "", b"", directory, on_error="return")
    found = []
    for address, answer in sorted(told.items()):
        if isinstance(answer, BaseException):
            found.append(f"worker {address} cannot be asked: {answer}")
            continue
        _, fault, there = answer
        if fault:
            found.append(f"worker {address} {fault}")
        elif (names := pickle.loads(there)) != listed:  # noqa: S301 - as above
            found.append(f"worker {address} does not see {settings['gather_dir']} as this host does: {names}")
    return found


@cache
def fingerprint(packages: tuple[str, ...]) -> Fingerprint:
    """Return what a result rests on: infocluster's own source, and the versions of packages.

    Args:
        packages: names of distributions; one that is not there has the version "none".
    """
    found = hashlib.sha256()
    (top,) = infocluster.__path__
    for directory, below, names in sorted(os.walk(top)):
        # What an installation compiles is made from the rest.
        below[:] = [name for name in below if name not in ("__pycache__", "compiled")]
        for name in sorted(names):
            if name.endswith(".py"):
                path = f"{directory}/{name}"
                found.update(f"\n{os.path.relpath(path, top)}\n".encode() + files.read(path))
    result = {"infocluster": f"{infocluster.__version__} ({found.hexdigest()[:12]})"}
    for name in packages:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            result[name] = "none"
    return result


def folded(run: str, job: bytes, task: bytes) -> bytes:
    """Return, on a worker, the pickled result of a task and what was read: (path, start, bytes, bad lines, fault)."""
    the_job = _job(run, job)
    result = the_job.empty()
    read = []
    for part, tail in pickle.loads(task):  # noqa: S301 - of the batch host
        partial, bad, why = the_job.empty(), 0, ""
        try:
            if collect.tail(part) != tail:
                why = "it is not what the batch host sees there"
        except OSError as error:
            why = reason(error)
        if not why:
            _, _, partial, bad, why = slices.fold(the_job, part)
        result = the_job.merge(result, partial)
        read.append((part.path, part.start, part.end - part.start, bad, why))
    return pickle.dumps((result, read))


def seen(directory: bytes) -> bytes:
    """Return, on a worker, the pickled list of what is in a directory, or why it cannot be read."""
    try:
        return pickle.dumps(sorted(os.listdir(pickle.loads(directory))))  # noqa: S301 - of the batch host
    except OSError as error:
        return pickle.dumps(reason(error))


_jobs: dict[str, Job[Any]] = {}


def _job(run: str, pickled: bytes) -> Job[Any]:
    """Return the job, one object for all tasks of a run in this process: what it learned of one serves the next."""
    job = _jobs.get(run)
    if job is None:
        _jobs.clear()
        job = _jobs[run] = pickle.loads(pickled)  # noqa: S301 - of the batch host
    return job


def _on_worker() -> "Callable[..., tuple[str, str, bytes]]":
    """Return what a worker runs: sent as it is, since what is installed there may be none of ours, or another."""

    def work(
        expected: Fingerprint, packages: tuple[str, ...], run: str, job: bytes, task: bytes
    ) -> tuple[str, str, bytes]:
        """Return the worker's address, what is wrong with it, and what came of the task, or what it sees."""
        from distributed import get_worker

        try:
            address = get_worker().address
        except ValueError:  # asked by `faults`, which knows whom it asked
            address = ""
        try:
            from infocluster.gather import cluster  # noqa: PLW0406 - there, not here

            has = cluster.fingerprint(packages)
        except Exception as error:  # whatever another version of ours makes of it
            return address, f"cannot use its infocluster: {error}", b""
        for name, version in expected.items():
            if has.get(name) != version:
                return address, f"has {name} {has.get(name)}, and this host has {version}", b""
        return address, "", cluster.folded(run, job, task) if run else cluster.seen(task)

    return work


def _as_it_is() -> Callable[[bytes], bytes]:
    """Return a task that hands its argument on; sent as `_on_worker` is."""
    return lambda content: content


def _tasks(cut: Iterable[Part], limit_bytes: int) -> Iterator[list[Part]]:
    """Yield slices, several where they are small."""
    task: list[Part] = []
    left = limit_bytes
    for part in cut:
        size = part.end - part.start
        if task and (size > left or len(task) == PARTS_A_TASK):
            yield task
            task, left = [], limit_bytes
        task.append(part)
        left -= size
    if task:
        yield task


def _check_it_cannot_be_read(job: Job[Any], part: Part, worker: str, why: str, settings: Mapping[str, Any]) -> None:
    """Return where a part that a worker could not read cannot be read here either.

    Raises:
        UnavailableError: here it can be read.
    """
    if not slices.fold(job, part)[-1]:
        raise UnavailableError(
            f"cannot fold on the cluster at {settings['scheduler']}: worker {worker} cannot read {part.path}: {why}; "
            f"this host can: every worker has to see {settings['gather_dir']} as this host does"
        )


@contextmanager
def _connected(settings: Mapping[str, Any]) -> "Iterator[Client]":
    try:
        import distributed
    except ImportError:
        raise ConfigError(
            'cannot fold on a cluster: the package distributed is not installed (extra "dask")'
        ) from None
    # What goes wrong is told once, by us.
    for name in (
        "tornado",
        "asyncio",
        *(name for name in logging.root.manager.loggerDict if name.startswith(_QUIET)),
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    address, timeout_s = settings["scheduler"], settings["scheduler_timeout_s"]
    try:
        # Looked at first: a client that fails over it takes ten seconds to be gone.
        has_certificates = distributed.Security().get_connection_args("client").get("ssl_context") is not None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the certificates that Dask's settings name: {error}") from error
    if address.startswith("tls://") and not has_certificates:
        raise ConfigError(
            f"cannot reach the scheduler at {address}: Dask's settings name no distributed.comm.tls.ca-file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions are compared by us
            client = distributed.Client(address, timeout=timeout_s, set_as_default=False, name=_MINE)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise UnavailableError(f"cannot reach the scheduler at {address}: {str(error) or 'no answer'}") from error
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError, RuntimeError):
            client.close(timeout=CLOSE_S)


def _looked_at(client: "Client", settings: Mapping[str, Any]) -> int:
    """Wait for a worker, see that all understand what they are sent, and return how many threads they have.

    Raises:
        ConfigError: a worker has another version of Python or of distributed.
        UnavailableError: there is none, or the scheduler does not answer.
    """
    address, timeout_s = settings["scheduler"], settings["scheduler_timeout_s"]
    try:
        client.wait_for_workers(1, timeout=timeout_s)
        versions = client.get_versions()
        threads = sum(client.nthreads().values())
    except TimeoutError:
        raise UnavailableError(f"cannot fold on the cluster at {address}: no worker in {timeout_s:g} s") from None
    except (OSError, RuntimeError) as error:
        raise UnavailableError(f"cannot fold on the cluster at {address}: {error}") from error
    ours = _spoken(versions["client"])
    for worker, told in sorted(versions["workers"].items()):
        if (theirs := _spoken(told)) != ours:
            raise ConfigError(
                f"cannot fold on the cluster at {address}: worker {worker} has {theirs}, and this host has {ours}"
            )
    return max(1, int(threads))


def _spoken(versions: dict[str, Any]) -> str:
    packages = versions["packages"]
    python = ".".join(packages["python"].split(".")[:2])
    return f"Python {python}, distributed {packages['distributed']}"


class _Watch:
    """Waits for results, and notices when there will be none."""

    def __init__(self, client: "Client", settings: Mapping[str, Any]) -> None:
        self.client = client
        self.settings = settings
        self._seen_s = time.monotonic()

    def result(self, future: "Future") -> tuple[str, str, bytes]:
        """Return what a task came to; what an exception in the job was is raised here.

        Raises:
            UnavailableError: the scheduler is lost, or workers died over this task again and again.
        """
        from distributed import KilledWorker

        while True:
            try:
                result: tuple[str, str, bytes] = future.result(timeout=LOOK_S)
            except KilledWorker as error:
                raise self._lost(
                    "workers died over the same task, one after the other; is its memory enough?"
                ) from error
            except (CancelledError, TimeoutError, OSError, RuntimeError) as error:
                if future.status == "error":
                    raise
                if future.status == "cancelled":
                    raise self._lost("the scheduler was lost") from error
                # Its worker died with the result: another makes it again.
                self.look()
            else:
                self._seen_s = time.monotonic()
                return result

    def look(self) -> None:
        """Go on where the scheduler answers and has workers, or had some a moment ago.

        Raises:
            UnavailableError: otherwise.
        """
        if self.client.status != "running":
            raise self._lost("the scheduler was lost")
        timeout_s = self.settings["scheduler_timeout_s"]
        try:
            workers = self.client.sync(self.client.scheduler.ncores, callback_timeout=timeout_s)
        except (CancelledError, TimeoutError, OSError, RuntimeError) as error:
            raise self._lost("the scheduler does not answer") from error
        if workers:
            self._seen_s = time.monotonic()
        elif time.monotonic() - self._seen_s > timeout_s:
            raise self._lost(f"no worker is left, for {timeout_s:g} s")

    def _lost(self, why: str) -> UnavailableError:
        return UnavailableError(f"cannot fold on the cluster at {self.settings['scheduler']}: {why}")
