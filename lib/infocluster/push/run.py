# SPDX-License-Identifier: Apache-2.0
"""One push: from the paths that were named to a result for every server.

Source: documentation of wwwpush; rdist(1); ClusterShell's node sets.
"""

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from infocluster import config, names, trees
from infocluster.config import Settings
from infocluster.errors import InfoclusterError, reason
from infocluster.locks import pathlocks, slots, tickets
from infocluster.push import fan, ledger, manifest, nodes, plan, record, servers
from infocluster.push.fan import Job
from infocluster.push.order import Order, Outcome
from infocluster.push.plan import Request, Say
from infocluster.push.record import Record
from infocluster.push.servers import Server

# What only some pushes need is loaded by those: naming a few files has to be quick.
if TYPE_CHECKING:
    from infocluster.push.skeleton import Skeleton, Special

# A server, the paths of a push, and of these the ones at and below which commands of its skeleton are due still.
Owed = list[tuple[Server, Sequence[str], Sequence[str]]]
Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


class Kind(NamedTuple):
    """Servers with one skeleton, and what a push is for them.

    Attributes:
        skeleton: what it says; None where these servers have none.
        servers: who has it.
        paths: the paths of the push that it does not leave out.
        listing: what is at them.
    """

    skeleton: "Skeleton | None"
    servers: list[Server]
    paths: list[str]
    listing: trees.Listing


def push(
    request: Request,
    conf: Settings,
    finish: Callable[[Sequence[str]], object],
    say: Say,
    fault: Say,
    progress: Progress,
) -> Record:
    """Bring paths of the production tree to every server of a kind, and return the record of it.

    Args:
        request: what is asked for.
        conf: the settings.
        finish: called with the paths when they are locked; completes what publishes left undone in them.
        say: gets a line for whom is being waited for, and for servers that have everything.
        fault: gets a line for what is left out, and for servers that failed.
        progress: shows how many servers are done.

    Returns:
        The record (see `record`), with all changes; what is kept of it in STATE_DIR/pushes has the first 1000.

    Raises:
        UsageError: no path, one that is none, or a whole tree without being asked for everything.
        RefusedError: a path leads through a symbolic link, or its tree is one, is not there, or is empty.
        ConfigError: no server of this kind, one whose destination is the production tree, a skeleton that cannot be
            read.
        UnavailableError: the locks were not free in time; the production tree cannot be read.
    """
    every = servers.of_kind(conf, request.kind)
    targets = servers.chosen(every, request.on, conf) if request.on else every
    skeletons = {name: _skeleton(name, conf) for name in {server.skeleton for server in targets}}
    started, began = time.time(), time.monotonic()
    faults: list[str] = []

    def told(line: str) -> None:
        faults.append(line)
        fault(line)

    state_dir, production_dir = conf["site"]["state_dir"], conf["site"]["production_dir"]
    if request.retry:
        lacking = ledger.lacking(state_dir, every, told)
        request, targets = _lacked(request, targets, lacking, production_dir, told)
    told_before = len(faults)
    paths = plan.checked(request, production_dir, told) if targets else []
    # A tree that had to be left out was told.
    is_all = request.everything and not request.paths and len(faults) == told_before
    with _held(paths, request, conf, say):
        waited_s = time.monotonic() - began
        held_from = time.time()
        if not request.show:
            finish(paths)
        # Again: they may have been waited for.
        plan.check(paths, request, production_dir)
        # Only now: the pushes that were waited for have noted what failed.
        lacking = ledger.lacking(state_dir, every, told) if request.retry or request.quick else {}
        kinds = list(_kinds(targets, skeletons, paths, conf, say, fault))
        plan.tell_gone((kind.listing for kind in kinds), say)
        jobs = [job for kind in kinds for job in _jobs(kind, request, lacking, conf, told)]
        with _slot(request, conf, say), progress("pushing", len(jobs), "servers") as advance:
            if not request.show:
                # Until it is done: this push may be killed.
                commanded = {server.name for kind in kinds if _specials(kind) for server in kind.servers}
                due = ledger.due(state_dir, every, told) if commanded else {}
                ledger.failed(state_dir, [(job.server, job.paths) for job in jobs], every, told, commanded=commanded)
            outcomes = _sent([job for job in jobs if job.paths], request, conf, advance, say, told)
            outcomes += [Outcome(job.server.name) for job in jobs if not job.paths]
            if not request.show:
                owed = _run_specials(kinds, jobs, outcomes, due, conf)
                _remember(kinds, jobs, outcomes, owed, every, request.quick, is_all, conf, told)
        held_until = time.time()
    for line, is_fault in record.result_lines(outcomes, request.show):
        (fault if is_fault else say)(line)
    left = {path: why for kind in kinds for path, why in kind.listing.left if not _is_excepted(why)}
    result: Record = {
        "format": record.FORMAT,
        "program": request.program,
        "kind": request.kind,
        "user": tickets.user(),
        "pid": os.getpid(),
        "started": round(started, 3),
        "waited_s": round(waited_s, 3),
        "held": [held_from, held_until],
        "duration_s": round(time.monotonic() - began, 3),
        "paths": paths,
        "show": request.show,
        "ok": not (faults or left or any(outcome.faults for outcome in outcomes)),
        "faults": faults[: record.CHANGES_LIMIT],
        "left": [{"path": path, "reason": why} for path, why in left.items()],
        "servers": [record.of_server(outcome) for outcome in outcomes],
        "notify": _notices(kinds, outcomes),
    }
    if not request.show and outcomes:
        try:
            kept = result | {"changes": record.changes(outcomes, record.CHANGES_LIMIT)}
            record.keep(kept, state_dir + "/pushes")
        except OSError as error:
            told(f"cannot write the record of this push: {reason(error)}")
            result["ok"] = False
    return result | {"changes": record.changes(outcomes)}


def _skeleton(name: str, conf: Settings) -> "Skeleton | None":
    if not name:
        return None
    from infocluster.push.skeleton import Skeleton, located

    return Skeleton.read(located(name), conf)


def _is_excepted(why: str) -> bool:
    """Tell whether a reason is a skeleton's (its `LeftOut`), and so no fault."""
    return type(why) is not str


def _lacked(
    request: Request, targets: list[Server], lacking: dict[str, list[str]], production_dir: str, told: Say
) -> tuple[Request, list[Server]]:
    """Return the request and the servers of a push of what servers lack."""
    behind = [server for server in targets if lacking.get(server.name)]
    paths = {path for server in behind for path in lacking[server.name]}
    if ledger.ALL in paths:
        return request._replace(paths=[], everything=True), behind
    for tree in sorted({path.partition("/")[0] for path in paths}):
        if why := plan.obstacle(production_dir, tree):
            out = {path for path in paths if f"{path}/".startswith(f"{tree}/")}
            paths -= out
            for path in sorted(out):
                told(f"cannot push {names.printable(path)}: {why}")
    behind = [server for server in behind if not paths.isdisjoint(lacking[server.name])]
    return request._replace(paths=ledger.standing(production_dir, paths), everything=True), behind


@contextmanager
def _held(paths: list[str], request: Request, conf: Settings, say: Say) -> Iterator[None]:
    if request.show or not paths:
        yield
        return
    with pathlocks.hold(paths, request.timeout_s, directory=conf["site"]["state_dir"] + "/pathlocks", say=say):
        yield


def _kinds(
    targets: list[Server],
    skeletons: "dict[str, Skeleton | None]",
    paths: list[str],
    conf: Settings,
    say: Say,
    told: Say,
) -> Iterator[Kind]:
    """Read the tree once for each kind of server, without what its skeleton leaves out or nobody else may read."""
    seen: set[str] = set()
    for name, skeleton in skeletons.items():
        alike = [server for server in targets if server.skeleton == name]
        out = dict(skeleton.left_out(paths)) if skeleton else {}
        for path, excepted in out.items():
            say(f"{nodes.folded(server.name for server in alike)}: {names.printable(path)} is not sent: {excepted}")
        mine = [path for path in paths if path not in out]
        if not alike or not mine:
            continue
        listing = trees.scan(conf["site"]["production_dir"], mine, _leave(skeleton))
        if skeleton:
            skeleton.guard(listing)
            listing.leave = skeleton.leave
        for path, why in listing.left:
            if not _is_excepted(why) and path not in seen:
                seen.add(path)
                told(f"cannot push {names.printable(path)}: {why}; the servers keep what they have")
        yield Kind(skeleton, alike, mine, listing)


def _leave(skeleton: "Skeleton | None") -> trees.Leave:
    """Return what tells why something is not sent: the skeleton excepts it, or others may not read it."""

    def leave(directory: str, name: str, mode: int) -> str | None:
        if skeleton is None and mode & 0o170004 == stat.S_IFREG | 0o4:
            return None
        excepted = skeleton.leave(directory, name, mode) if skeleton else None
        # The permissions of a link mean nothing.
        kind, needed = stat.S_IFMT(mode), 0o5 if stat.S_ISDIR(mode) else 0o4
        if excepted or kind == stat.S_IFLNK or mode & needed == needed:
            return excepted
        return f"others may not read it (mode {mode & 0o7777:04o})"

    return leave


def _leave_to_none(skeletons: "set[Skeleton | None]") -> trees.Leave:
    """Return what tells why no kind of server gets something."""
    every = [_leave(skeleton) for skeleton in skeletons]

    def leave(directory: str, name: str, mode: int) -> str | None:
        whys = [one(directory, name, mode) for one in every]
        return whys[0] if all(whys) else None

    return leave


def _jobs(kind: Kind, request: Request, lacking: dict[str, list[str]], conf: Settings, told: Say) -> Iterator[Job]:
    """Yield what each server of a kind gets: everything, what changed since it had that, or what it lacks."""
    if request.quick:
        for share in manifest.plan(conf["site"]["state_dir"], kind.servers, kind.listing, kind.paths, lacking, told):
            for server in share.servers:
                yield Job(server, share.listing, share.paths, kind.skeleton)
        return
    for server in kind.servers:
        wanted = kind.paths
        lacks = lacking.get(server.name, [])
        if request.retry and ledger.ALL not in lacks:
            standing = ledger.standing(conf["site"]["production_dir"], lacks)
            wanted = plan.common(kind.paths, standing)
        listing = kind.listing if wanted == kind.paths else manifest.part(kind.listing, wanted)
        yield Job(server, listing, wanted, kind.skeleton)


@contextmanager
def _slot(request: Request, conf: Settings, say: Say) -> Iterator[None]:
    if request.show:
        yield
        return
    with slots.hold(_slot_count(conf), directory=conf["site"]["state_dir"] + "/slots", say=say):
        yield


def _slot_count(conf: Settings) -> Callable[[], int]:
    """Return what tells how many slots there are now: the settings may change while pushes wait."""
    file = config.settings_file()

    def count() -> int:
        from infocluster import settings

        return int(settings.read(file)["push"]["slots"])

    first = [int(conf["push"]["slots"])]
    return lambda: first.pop() if first else count()


def _sent(
    jobs: list[Job], request: Request, conf: Settings, advance: Callable[[int], None], say: Say, told: Say
) -> list[Outcome]:
    """Serve all servers, directly or over the push hosts."""
    if not jobs:
        return []
    if conf["push_hosts"] and not request.show:
        from infocluster.push import shares

        listing, paths = jobs[0].listing, jobs[0].paths
        if any(job.listing is not listing for job in jobs):
            paths = trees.outermost(path for job in jobs for path in job.paths)
            leave = _leave_to_none({job.skeleton for job in jobs})
            listing = trees.scan(conf["site"]["production_dir"], paths, leave)
            listing.leave = leave
        return shares.fan_out(
            jobs, listing, paths, conf, request.atomic, advance, say=say, fault=told, keep=request.keep
        )
    return fan.out(jobs, conf, request.show, request.atomic, advance, keep=request.keep)


def _specials(kind: Kind) -> "list[Special]":
    return kind.skeleton.specials if kind.skeleton else []


def _run_specials(
    kinds: list[Kind], jobs: list[Job], outcomes: list[Outcome], due: dict[str, list[str]], conf: Settings
) -> Owed:
    """Run what skeletons ask for on each server to which something was done; what fails there is its fault.

    Returns:
        What is due now: of an earlier push where this one failed, and what failed itself.
    """
    skeletons = {server.name: kind.skeleton for kind in kinds if _specials(kind) for server in kind.servers}
    wanted = [job for job in jobs if skeletons.get(job.server.name)]
    if not wanted:
        return []
    from concurrent.futures import ThreadPoolExecutor

    from infocluster.push import specials

    by_name = {outcome.server: outcome for outcome in outcomes}

    def run(job: Job) -> tuple[Server, list[str], list[str]]:
        name = job.server.name
        skeleton, outcome = skeletons[name], by_name[name]
        earlier = [*plan.common(job.paths, due.get(name, ())), *(action.path for action in outcome.begun)]
        done, still = list(outcome.changes), earlier
        if not outcome.faults:
            known = {action.path for action in done}
            done += [action for action in specials.assumed(job.listing, earlier) if action.path not in known]
            still = []
        end = time.monotonic() + conf["push"]["server_timeout_s"]
        order = Order(conf, job.paths, False, False, end, threading.Event())
        faults = specials.run(job.server, skeleton, done, order) if skeleton else []
        outcome.faults += faults
        return job.server, job.paths, [*still, *(action.path for action in done if faults)]

    with ThreadPoolExecutor(min(conf["push"]["parallel"], len(wanted)), "special") as pool:
        return list(pool.map(run, wanted))


def _remember(
    kinds: list[Kind],
    jobs: list[Job],
    outcomes: list[Outcome],
    owed: Owed,
    every: list[Server],
    is_quick: bool,
    is_all: bool,
    conf: Settings,
    told: Say,
) -> None:
    """Keep what each server has now, and cross out what it does not lack any more."""
    state_dir = conf["site"]["state_dir"]
    complete = {outcome.server for outcome in outcomes if not outcome.faults}
    has: list[tuple[Server, Sequence[str]]] = []
    try:
        for kind in kinds:
            mine = complete.intersection(server.name for server in kind.servers)
            alike: dict[tuple[str, ...], list[Job]] = {}
            for job in jobs:
                if job.server.name in mine:
                    # What a quick push did not send, a server had already.
                    alike.setdefault(tuple(kind.paths if is_quick else job.paths), []).append(job)
            for paths, these in alike.items():
                is_whole = list(paths) == kind.paths
                listing, got = kind.listing if is_whole else these[0].listing, [job.server for job in these]
                if paths:
                    manifest.remember(state_dir, got, listing, paths, every, told)
                has += [(server, (ledger.ALL,) if is_all and is_whole else paths) for server in got]
        ledger.has(state_dir, has, every, told, owed=owed)
    except InfoclusterError as error:
        told(str(error))


def _notices(kinds: list[Kind], outcomes: list[Outcome]) -> list[Record]:
    """Return whom skeletons want to be told by letter that something was done, and on which servers."""
    changed = {outcome.server for outcome in outcomes if outcome.changes}
    result = []
    for kind in kinds:
        alike = [server.name for server in kind.servers if server.name in changed]
        if kind.skeleton and kind.skeleton.notify and alike:
            result.append({"to": kind.skeleton.notify, "servers": nodes.folded(alike)})
    return result
