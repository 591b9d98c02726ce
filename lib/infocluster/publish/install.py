# SPDX-License-Identifier: Apache-2.0
"""An install: a part of the production tree made the copy of the same part of a development tree.

1. `check`: every path is valid, is there, and is not left alone by a rule, or the run is refused.
2. The path locks are taken, in common with pushes and batch jobs; what a publish left unfinished is completed.
3. The developer's part is done (`prepare`), where it has not been: with sudo it comes before the locks. The tree is
   looked at (`development`).
4. What differs is found, in size, time, permissions or the text of a link; nothing is changed yet. A bad line in any
   .wwwinstrc that has a say, also in the other development trees, ends the run here.
5. What will be replaced or removed is kept (`undo`), what will be held is noted (`origin`).
6. What is new or changed is put in place, then what development no longer has is removed, unless a rule of any
   development tree protects it, or another development tree installed it. A directory stays that holds such a thing.
   Where something could not be read or put in place, nothing is removed.
7. Directories get the times that they have in development, as files did; nobody is told of that. The record is
   completed, the locks are let go of.

Killed anywhere, every file is old or new, and the same run again does the rest.

Source: documentation of wwwinst; rsync(1) for what ``-a --delete`` is expected to do.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from infocluster import files, names, trees
from infocluster.config import Settings
from infocluster.errors import ConfigError, RefusedError, UnavailableError, UsageError, reason
from infocluster.locks import pathlocks
from infocluster.publish import development, origin, place, prepare, undo
from infocluster.publish.development import Quiet, Tree

# The programs in the order of [site] development_dirs.
PROGRAMS = ("wwwdinst", "wwwuinst")
# A longer one is cut in a temporary name, so that those of two files may look alike.
NAME_LIMIT = 40

Progress = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]


class Told(NamedTuple):
    """One thing that was done, or left undone: ``verb`` is install, update, remove or skip.

    ``is_fault`` tells that it should have been done; ``reason`` why it was not.
    """

    verb: str
    path: str
    is_directory: bool = False
    reason: str = ""
    is_fault: bool = False

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.verb} {self.path}{'/' if self.is_directory else ''}{why}"


Tell = Callable[[Told], None]


class Request(NamedTuple):
    """What an install was asked for.

    Attributes:
        program: the name it was called by, one of PROGRAMS.
        paths: tree paths in their one form, none below another.
        user: who asks, by name.
        uid: the same by number.
        part: how much of the developer's part is to be done.
        delete: whether the paths are to be removed instead.
        show: whether to change nothing and only tell what would be done.
        without: paths to leave alone, with the reasons.
    """

    program: str
    paths: Sequence[str]
    user: str
    uid: int
    part: prepare.Part
    delete: bool = False
    show: bool = False
    without: Mapping[str, str] = {}


def forest(program: str, conf: Settings) -> list[Tree]:
    """Return the development trees, that of a program first.

    Raises:
        ConfigError: the settings name no tree for it.
        UsageError: the program is none that installs.
    """
    if program not in PROGRAMS:
        expected = " or ".join(PROGRAMS)
        raise UsageError(f"cannot install as {names.shown(program)}: expected to be called {expected}")
    roots = conf["site"]["development_dirs"]
    if PROGRAMS.index(program) >= len(roots):
        raise ConfigError(f"cannot install as {program}: site.development_dirs names no development tree for it")
    programs = [*PROGRAMS, *roots][: len(roots)]
    found = [Tree(name, root, conf["install"]["ignore"]) for name, root in zip(programs, roots, strict=True)]
    return sorted(found, key=lambda tree: tree.program != program)


def check(paths: Iterable[str], tree: Tree, production_dir: str, delete: bool) -> None:
    """Refuse paths that cannot be installed, or removed.

    Args:
        paths: tree paths in their one form.
        tree: the development tree.
        production_dir: the production tree.
        delete: whether they are to be removed from production.

    Raises:
        UsageError: a whole tree is to be removed.
        RefusedError: a path is nowhere, leads through a symbolic link or is left alone by a rule.
        InfoclusterError: a rule is not in its form, or cannot be read.
        UnavailableError: a tree cannot be read.
    """
    for path in paths:
        shown = names.printable(path)
        if any(files.is_temporary(part) for part in path.split("/")):
            raise RefusedError(f"cannot install {shown}: it is a write that was not finished")
        there = tree.status(path)
        found = tree.protecting(path, there is not None and stat.S_ISDIR(there.st_mode))
        if found is not None:
            part, why = found
            raise RefusedError(f"cannot install {shown}: {names.printable(part)} is {why}")
        if (there is None or delete) and development.status(production_dir, path) is None:
            if delete:
                raise RefusedError(f"cannot remove {shown}: {production_dir} does not have it")
            raise RefusedError(f"cannot install {shown}: neither {tree.root} nor {production_dir} has it")
        if "/" not in path:
            _check_tree(path, tree, there, delete)


def _check_tree(path: str, tree: Tree, there: os.stat_result | None, delete: bool) -> None:
    """Refuse what would empty a tree: a slip of the finger, an empty mount point."""
    shown = names.printable(path)
    if delete:
        raise UsageError(f"cannot remove {shown}: it is a whole tree")
    if there is None or not stat.S_ISDIR(there.st_mode):
        raise RefusedError(f"cannot install {shown}: {tree.root} has no tree of that name")
    try:
        is_empty = not os.listdir(f"{tree.root}/{path}")
    except OSError as error:
        raise UnavailableError(f"cannot read {tree.root}/{shown}: {reason(error)}") from error
    if is_empty:
        raise RefusedError(f"cannot install {shown}: the tree is empty in {tree.root}")


def install(
    request: Request, conf: Settings, tell: Tell, say: Callable[[str], None], progress: Progress
) -> undo.Record:
    """Make parts of the production tree the copy of a development tree, and return the record of it.

    Args:
        request: what is asked for.
        conf: the settings.
        tell: gets each thing that was done, or left undone, at once.
        say: gets a line for whom is being waited for, and for what was found unfinished.
        progress: shows how far it is.

    Returns:
        The record (see `undo`) with how many things were installed, updated, removed and skipped.

    Raises:
        UsageError, RefusedError: as `check`. Nothing was changed.
        BadInputError: a .wwwinstrc is not in its form. Nothing was changed.
        UnavailableError: the locks were not free in time, the disk is full.
    """
    started, began = time.time(), time.monotonic()
    around = forest(request.program, conf)
    production_dir = conf["site"]["production_dir"]
    what = "delete" if request.delete else "install"
    record = undo.record(request.program, request.user, request.uid, started, what, request.paths)
    counted = _Counted(tell)
    with _held(request.paths, request.show, conf, say):
        check(request.paths, around[0], production_dir, request.delete)
        listing = _offered(request, around[0], conf)
        origins = origin.Origins(conf["site"]["state_dir"], request.program, request.paths)
        keep = _Keep(around, origins)
        aged: set[str] = set()
        plan = _planned(listing, production_dir, keep, aged)
        for path, why in listing.left:
            counted.tell(Told("skip", path, False, why, why != trees.SPECIAL))
        kept = _kept(plan, request)
        changes = undo.changes_of(plan, listing, production_dir)
        if changes and conf["install"]["undo_count"] and not undo.can_keep(changes, conf):
            say("this install cannot be undone: to keep what it replaces takes more than install.undo_mb")
        if request.show:
            counted.actions(plan, kept)
        else:
            _work(request, record, plan, changes, listing, origins, keep, kept, counted, conf, progress)
            _date(listing, production_dir, aged | _touched(plan))
    record |= counted.numbers | {"state": undo.FAULTS if counted.faults else undo.DONE}
    return record | {"duration_s": round(time.monotonic() - began, 3)}


def _work(
    request: Request,
    record: undo.Record,
    plan: list[trees.Action],
    changes: list[undo.Change],
    listing: trees.Listing,
    origins: origin.Origins,
    keep: "_Keep",
    kept: dict[str, str],
    counted: "_Counted",
    conf: Settings,
    progress: Progress,
) -> None:
    """Do what was planned, under the locks."""
    began = time.monotonic()
    production_dir = conf["site"]["production_dir"]
    for path in request.paths:
        clear(production_dir, path)
    offer = origins.offered(listing, {action.path for action in plan if action.verb == "fail"})
    origins.note(offer)
    if not changes and all(action.verb in ("keep", "fail") for action in plan):
        counted.actions(plan, kept)
    else:
        if changes:
            undo.keep(record, changes, conf)
        with progress("installing", len(plan), "changes") as advance:
            reduced, removes = _reduced(listing, plan, kept), _is_read(listing)
            for action in trees.mirror(reduced, production_dir, durable=True, keep=keep, removes=removes):
                counted.action(action, kept)
                advance(1)
    if not counted.failed:
        origins.settle(offer)
    if changes:
        ended = {"state": undo.FAULTS if counted.faults else undo.DONE} | counted.numbers
        undo.settle(record | ended | {"duration_s": round(time.monotonic() - began, 3)}, changes, conf)


def put_back(
    of: undo.Record, request: Request, conf: Settings, tell: Tell, say: Callable[[str], None], progress: Progress
) -> undo.Record:
    """Undo an install, and return the record of that.

    Args:
        of: the record of the install, see `undo.last`.
        request: by whom it is undone, and whether it is.
        conf: the settings.
        tell: gets each thing that was put back, or left as it is, at once.
        say: gets a line for whom is being waited for.
        progress: shows how far it is.

    Returns:
        The record (see `undo`); its ``paths`` are those of the install.

    Raises:
        BadInputError: what is kept, or a .wwwinstrc, is not in its form. Nothing was changed.
        UnavailableError: it is not kept any more; the locks were not free in time; the disk is full.
    """
    started, began = time.time(), time.monotonic()
    state_dir = conf["site"]["state_dir"]
    record = undo.record(request.program, request.user, request.uid, started, "undo", of["paths"])
    record["undoes"] = of["id"]
    counted = _Counted(tell)
    restored: list[str] = []
    with _held(of["paths"], request.show, conf, say), progress("putting back", None, "changes") as advance:
        if not request.show:
            for path in of["paths"]:
                clear(conf["site"]["production_dir"], path)
            _write(of | {"state": undo.BEGUN}, conf)
        origins = origin.Origins(state_dir, request.program, of["paths"])
        keep = _Keep(forest(request.program, conf), origins)
        for action in undo.put_back(of, conf, request.show, keep.spared, keep):
            # Nothing of it was to stay.
            counted.action(action, {action.path: action.reason})
            if action.verb == "install":
                restored.append(action.path)
            advance(1)
        record |= counted.numbers | {"state": undo.FAULTS if counted.faults else undo.DONE}
        record["duration_s"] = round(time.monotonic() - began, 3)
        if not request.show:
            origins.add(restored)
            _write(record, conf)
            if counted.failed:
                _write(of, conf)
            else:
                undo.forget(of, conf)
    return record


def _write(record: undo.Record, conf: Settings) -> None:
    try:
        undo.write(record, conf["site"]["state_dir"], conf["install"]["log_count"])
    except OSError as error:
        raise UnavailableError(f"cannot write the record of this undo: {reason(error)}") from error


@contextlib.contextmanager
def _held(paths: Sequence[str], show: bool, conf: Settings, say: Callable[[str], None]) -> Iterator[None]:
    if show:
        yield
        return
    timeout_s, state_dir = conf["install"]["lock_timeout_s"], conf["site"]["state_dir"]
    with pathlocks.hold(paths, timeout_s, directory=state_dir + "/pathlocks", say=say):
        place.finish(paths, conf, say)
        yield


def _offered(request: Request, tree: Tree, conf: Settings) -> trees.Listing:
    """Return what is to stand in production."""
    if not request.delete:
        return prepare.ready(tree, request.paths, request.without, request.part, conf)[0].listing
    listing = trees.Listing(tree.root)
    for path in request.paths:
        *above, name = path.split("/")
        found = listing.top
        for part in above:
            found = found.directories.setdefault(part, trees.Directory(trees.ABSENT, False))
        found.absent.add(name)
    return listing


def _planned(listing: trees.Listing, production_dir: str, keep: "_Keep", aged: set[str]) -> list[trees.Action]:
    """Return what there is to do; what cannot be read is taken out of the listing before anything is changed.

    Args:
        listing: what development has.
        production_dir: the production tree.
        keep: see `trees.mirror`.
        aged: gets the directories that have another time than in development.
    """
    plan = list(trees.mirror(listing, production_dir, show=True, keep=keep, aged=aged.add))
    _drop_unreadable(listing, plan)
    if _is_read(listing):
        return plan
    return list(trees.mirror(listing, production_dir, show=True, keep=keep, removes=False))


def _is_read(listing: trees.Listing) -> bool:
    """Tell whether all that development has could be read; else what is gone there may stand in what could not."""
    return not any(isinstance(why, trees.Unread) for _, why in listing.left)


def _drop_unreadable(listing: trees.Listing, plan: Iterable[trees.Action]) -> None:
    with contextlib.closing(trees.Way(listing.source)) as way:
        for action in plan:
            found = development.entry(listing, action.path) if action.verb in ("install", "update") else None
            if found is None or not stat.S_ISREG(found[0]) or action.is_directory:
                continue
            directory, _, name = action.path.rpartition("/")
            try:
                here = way.open(directory)
                os.close(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here))
            except (OSError, RefusedError) as error:
                why = trees.Unread(reason(error) if isinstance(error, OSError) else str(error))
                development.drop(listing, action.path, why)


def _touched(plan: Iterable[trees.Action]) -> set[str]:
    """Return the directories that get another time by what is done."""
    done = [action for action in plan if action.verb in ("install", "update", "remove")]
    made = {action.path for action in done if action.is_directory and action.verb != "remove"}
    return made | {action.path.rpartition("/")[0] for action in done}


def _date(listing: trees.Listing, production_dir: str, directories: Iterable[str]) -> None:
    """Give directories that are listed whole their times; it is tried: one may be another user's."""
    with contextlib.closing(trees.Way(production_dir)) as way:
        for path in sorted(directories):
            found = development.node(listing, path)
            if found is not None and found.whole:
                with contextlib.suppress(OSError, RefusedError):
                    fd = way.open(path)
                    os.utime(fd, ns=(os.fstat(fd).st_atime_ns, found.mtime_ns))


def _reduced(listing: trees.Listing, plan: Iterable[trees.Action], kept: Mapping[str, str]) -> trees.Listing:
    """Return what of a listing is planned, so that the rest of the tree is not compared a second time."""
    found = trees.Listing(listing.source)
    for action in plan:
        *above, name = action.path.split("/")
        old, new = listing.top, found.top
        for part in above:
            if part not in old.directories:
                # It goes with what is above it, or makes way for what is put there.
                if part not in old.entries and (action.verb != "keep" or action.path in kept):
                    new.absent.add(part)
                break
            old = old.directories[part]
            if part not in new.directories:
                new.directories[part] = trees.Directory(old.mode, False)
            new = new.directories[part]
            if new is old:
                break
        else:
            if name in old.directories:
                # Made, or given other permissions: it is compared whole.
                new.directories[name] = old.directories[name]
            elif name in old.entries:
                new.entries[name] = old.entries[name]
            elif action.verb != "keep" or action.path in kept:
                new.absent.add(name)
    return found


class _Keep:
    """Why something that would be removed is to stay; asked twice for each, it answers alike."""

    def __init__(self, around: Sequence[Tree], origins: origin.Origins) -> None:
        self.around = around
        self.origins = origins
        self.decided: dict[str, str | None] = {}

    def __call__(self, directory: str, name: str, mode: int) -> str | None:
        path = trees.join(directory, name)
        if path not in self.decided:
            self.decided[path] = None if files.is_temporary(name) else self._why(directory, name, path, mode)
        return self.decided[path]

    def spared(self, path: str, is_directory: bool) -> str | None:
        """Return why a rule of any tree has a path left alone, or something above it, or None."""
        found = filter(None, (tree.protecting(path, is_directory) for tree in self.around))
        return next((why for _, why in found), None)

    def _why(self, directory: str, name: str, path: str, mode: int) -> str | None:
        is_directory = stat.S_ISDIR(mode)
        for tree in self.around:
            why = tree.spared(directory, name, is_directory)
            if why is not None:
                return why
        holders = self.origins.holders(directory, name)
        if not holders and not self.origins.is_known(directory, name):
            holders = [tree.program for tree in self.around[1:] if _has(tree, path, is_directory)]
        if not holders:
            return None
        told = f"installed by {' and '.join(holders)}"
        return _Others(told) if is_directory else Quiet(told)


class _Others(trees.Emptied):
    """A directory of another development tree: it stays, and what in it is ours goes."""

    __slots__ = ()


def _has(tree: Tree, path: str, is_directory: bool) -> bool:
    try:
        found = tree.status(path)
    except RefusedError:
        return False
    return found is not None and stat.S_ISDIR(found.st_mode) == is_directory


def _kept(plan: list[trees.Action], request: Request) -> dict[str, str]:
    """Return what stays and is told of, with the reasons: what was named, and directories that lose something."""
    touched: set[str] = set()
    for action in plan:
        if action.verb == "remove" and not files.is_temporary(action.path.rpartition("/")[2]):
            above = action.path.rpartition("/")[0]
            while above and above not in touched:
                touched.add(above)
                above = above.rpartition("/")[0]
    named = set(request.paths)
    return {
        action.path: action.reason
        for action in plan
        if action.verb == "keep"
        and (
            action.path in named
            or action.reason == trees.NOT_ALL
            or (action.is_directory and action.path in touched and not _is_quiet(action))
        )
    }


def _is_quiet(action: trees.Action) -> bool:
    return isinstance(action.reason, Quiet | _Others)


class _Counted:
    """What has been told so far, in numbers."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.numbers = {"install": 0, "update": 0, "remove": 0, "skip": 0}
        self.faults = 0
        # Whether something could not be put in place or removed: what is held is settled by the run that can.
        self.failed = False

    def tell(self, told: Told) -> None:
        self.numbers[told.verb] += 1
        self.faults += told.is_fault
        self._tell(told)

    def actions(self, actions: Iterable[trees.Action], kept: Mapping[str, str]) -> None:
        for action in actions:
            self.action(action, kept)

    def action(self, action: trees.Action, kept: Mapping[str, str]) -> None:
        """Tell what `trees.mirror` did; ``kept`` has the reasons of what stays and is told of."""
        if any(files.is_temporary(part) for part in action.path.split("/")):
            return
        if action.verb == "fail":
            self.failed = True
            self.tell(Told("skip", action.path, action.is_directory, action.reason, True))
        elif action.verb != "keep":
            self.tell(Told(action.verb, action.path, action.is_directory))
        elif action.path in kept:
            # What was named and stays is a fault; that a directory stays with what it holds is none.
            is_fault = not action.is_directory or _is_quiet(action)
            self.tell(Told("skip", action.path, action.is_directory, action.reason, is_fault))
        elif action.reason == trees.NOT_ALL:
            self.failed = True
            self.tell(Told("skip", action.path, action.is_directory, action.reason, True))


def clear(production_dir: str, path: str) -> None:
    """Remove what a run that was killed left of one path in the directory above it.

    What lies below the path is cleared when the tree is compared; beside it, others may be writing under names of
    their own. A name of over 40 characters is cut in a temporary one, and waits for an install of its directory.

    Args:
        production_dir: the production tree.
        path: a tree path whose lock the caller holds.

    Raises:
        UnavailableError: it cannot be removed.
    """
    directory, _, name = path.rpartition("/")
    if len(name) > NAME_LIMIT:
        return
    left = re.compile(re.escape(files.TEMPORARY + name) + r"\.[0-9a-f]{12}").fullmatch
    try:
        fd = trees.open_directory(production_dir, directory)
    except (OSError, RefusedError):
        return
    try:
        for found in filter(left, os.listdir(fd)):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.stat(found, dir_fd=fd, follow_symlinks=False).st_mode):
                    import shutil

                    shutil.rmtree(found, dir_fd=fd)
                else:
                    os.unlink(found, dir_fd=fd)
    except OSError as error:
        place = names.printable(f"{production_dir}/{directory}")
        raise UnavailableError(f"cannot clear what a killed run left in {place}: {reason(error)}") from error
    finally:
        os.close(fd)
