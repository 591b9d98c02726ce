# SPDX-License-Identifier: Apache-2.0
"""The record of every install: who installed what when, and what it replaced, so that it can be put back.

Shape: ``STATE_DIR/install/log/ID.json``, one JSON object; ID is the UTC time of the start and the process::

        {"format": "infocluster install 1", "id": "20251122T190411.250000Z-4711", "program": "wwwdinst",
         "user": "jane", "uid": 1001, "started": 1763838251.25, "duration_s": 0.42, "what": "install",
         "paths": ["world/sample"], "state": "done", "undoes": "",
         "install": 3, "update": 1, "remove": 0, "skip": 0}

    ``what`` is ``install``, ``delete`` or ``undo`` (``undoes`` then has the ID of the install that was undone);
    ``state`` is ``begun`` until the end, and again while it is undone, then ``done``, or ``faults`` where something
    was skipped that should not have been, and ``undone`` when it was. A run that had nothing to do leaves none.

    ``STATE_DIR/install/undo/ID.BYTES/`` is there as long as it can be undone. BYTES counts what it holds:
    ``changes.json`` says what there was and what came; ``kept/`` has the content of each file that was replaced or
    removed, as a hard link where production is on the same file system, else as a copy, and called by the number of
    its change, from 0. In one directory, because to make and remove one for each of production's takes longer than
    the install itself; an undo gives them their tree paths, below ``tree/``::

        [["update", "world/sample/index.html", [33204, 812, 1763838251250000000, ""], [33204, 907, 1763..., ""]],
         ["install", "world/sample/new", null, [40960, 0, 0, "http://host/x"]]]

    old and new are null, or type and permissions (inode(7)), size in bytes and mtime in ns of a file, text of a link.

Both are bounded: [install] undo_count and undo_mb, log_count; the oldest goes first. What an install replaced is kept
before anything is replaced, so that one that was killed can be undone as well. An undo puts back only what still is
as that install left it, and leaves alone what an install would: what a rule protects by then, and, where it would
remove it, what another development tree holds.

Source: link(2), inode(7), rename(2).
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from infocluster import files, names, trees
from infocluster.config import Settings
from infocluster.errors import BadInputError, RefusedError, UnavailableError, reason
from infocluster.locks import pathlocks
from infocluster.publish import origin

FORMAT = "infocluster install 1"
BEGUN, DONE, FAULTS, UNDONE = "begun", "done", "faults", "undone"
RECORD_MODE = 0o660
CHANGED = "changed since that install"
MB = 1 << 20
# A hard link may be refused for these; a copy serves as well.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP})
_KIND_AND_PERMISSIONS = 0o170777
_FIELDS = frozenset({"id", "program", "user", "uid", "started", "what", "state"})

Record = dict[str, Any]


class Change(NamedTuple):
    """One thing that an install changed: what it was and what it became, None for nothing."""

    verb: str
    path: str
    old: trees.Entry | None
    new: trees.Entry | None


def record(program: str, user: str, uid: int, started: float, what: str, paths: Sequence[str]) -> Record:
    """Return the record of a run that begins.

    Args:
        program: the name it was called by.
        user: who asked for it, by name.
        uid: the same by number.
        started: Unix time.
        what: ``install``, ``delete`` or ``undo``.
        paths: tree paths.
    """
    start = datetime.fromtimestamp(started, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return {
        "format": FORMAT,
        "id": f"{start}-{os.getpid()}",
        "program": program,
        "user": user,
        "uid": uid,
        "started": round(started, 3),
        "duration_s": 0.0,
        "what": what,
        "paths": list(paths),
        "state": BEGUN,
        "undoes": "",
    }


def can_keep(changes: Sequence[Change], conf: Settings) -> bool:
    """Tell whether [install] undo_count and undo_mb let what an install is about to replace be kept."""
    install = conf["install"]
    return bool(install["undo_count"] > 0 and _size(changes) <= install["undo_mb"] * MB)


def keep(record: Record, changes: Sequence[Change], conf: Settings) -> None:
    """Keep what an install is about to replace, as far as it can be kept, and its record.

    Args:
        record: what `record` returned.
        changes: what is about to be changed; ``old`` as it is in production now.
        conf: the settings.

    Raises:
        UnavailableError: it cannot be kept; nothing was changed.
    """
    install, state_dir = conf["install"], conf["site"]["state_dir"]
    size, can_undo = _size(changes), can_keep(changes, conf)
    place = f"{_undo_dir(state_dir)}/{record['id']}.{size}"
    try:
        if can_undo:
            origin.make_directory(_undo_dir(state_dir))
            _make_room(_undo_dir(state_dir), install["undo_count"] - 1, install["undo_mb"] * MB - size)
            _make_shared(f"{place}/kept")
            _save(changes, conf["site"]["production_dir"], f"{place}/kept")
            # Durable, and with it what was linked and made before.
            _write_changes(place, changes)
        # Last: an install that is on record and not kept has changed something.
        write(record, state_dir, install["log_count"])
    except OSError as error:
        if can_undo:
            _remove(place)
        raise UnavailableError(f"cannot keep what is replaced in {place}: {reason(error)}") from error


def settle(record: Record, changes: Sequence[Change], conf: Settings) -> None:
    """Write the record of a run that has ended, and what it really left in production.

    Raises:
        UnavailableError: it cannot be written.
    """
    state_dir = conf["site"]["state_dir"]
    place = _place(state_dir, record["id"])
    try:
        if place is not None and (made := [*_now(changes, conf["site"]["production_dir"])]) != changes:
            _write_changes(place, made)
        write(record, state_dir, conf["install"]["log_count"])
    except OSError as error:
        raise UnavailableError(f"cannot write the record of this install: {reason(error)}") from error


def write(record: Record, state_dir: str, kept: int) -> None:
    """Write a record, and remove the oldest beyond those that are kept.

    Raises:
        OSError: as open(2).
    """
    log_dir = _log_dir(state_dir)
    origin.make_directory(log_dir)
    files.replace(f"{log_dir}/{record['id']}.json", json.dumps(record).encode() + b"\n", RECORD_MODE)
    for name in _listed(log_dir)[:-kept]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{log_dir}/{name}")


def log(state_dir: str, fault: Callable[[str], object], paths: Sequence[str] = ()) -> list[Record]:
    """Return the records, the oldest first.

    Args:
        state_dir: STATE_DIR.
        fault: gets a line for each that is not in its form.
        paths: only those that are about one of these, or something above or below it.

    Raises:
        UnavailableError: they cannot be read.
    """
    every = []
    for name in _listed(_log_dir(state_dir)):
        try:
            found = _read_record(f"{_log_dir(state_dir)}/{name}")
        except BadInputError as error:
            fault(str(error))
            continue
        if found is not None and (not paths or pathlocks.conflicts(found["paths"], paths)):
            every.append(found)
    return every


def last(state_dir: str, program: str, uid: int, paths: Sequence[str]) -> Record:
    """Return the record of the install that an undo is about: the newest that can be undone.

    Args:
        state_dir: STATE_DIR.
        program: whose installs are looked at.
        uid: whose own, where no paths are given.
        paths: of anybody, one that changed something at or below one of these.

    Raises:
        RefusedError: there is none, or the newest is not kept: to undo an older one would undo the wrong one.
        UnavailableError, BadInputError: a record, or what is kept, cannot be read.
    """
    whose = f"of {pathlocks.listed(paths)}" if paths else "of yours"
    for name in reversed(_listed(_log_dir(state_dir))):
        found = _read_record(f"{_log_dir(state_dir)}/{name}")
        if found is None or found["program"] != program or found["what"] == "undo" or found["state"] == UNDONE:
            continue
        if not (pathlocks.conflicts(found["paths"], paths) if paths else found["uid"] == uid):
            continue
        place = _place(state_dir, found["id"])
        if place is None:
            raise RefusedError(f"cannot undo {found['id']}, the last install {whose}: it is not kept")
        if not paths or _is_about(_read_changes(place), paths):
            return found
    raise RefusedError(f"cannot undo: no install {whose} by {program} is kept")


def put_back(
    of: Record, conf: Settings, show: bool, spared: Callable[[str, bool], str | None], keep: trees.Leave
) -> Iterator[trees.Action]:
    """Put back what an install replaced, and remove what it put in place, where that still is as it left it.

    The caller holds the path locks of the install.

    Args:
        of: its record.
        conf: the settings.
        show: whether to change nothing and only tell what would be done.
        spared: called with a path and whether it is a directory; returns why it is left alone by now, or None.
        keep: the same for what would be removed, see `trees.Leave`.

    Raises:
        UnavailableError: it is not kept any more, or cannot be put back.
        BadInputError: what is kept is not in its form.
    """
    place = _place(conf["site"]["state_dir"], of["id"])
    if place is None:
        raise UnavailableError(f"cannot undo {of['id']}: it is not kept any more")
    production_dir = conf["site"]["production_dir"]
    todo: list[Change] = []
    changes = _read_changes(place)
    for change, now in _with_now(changes, production_dir):
        # What makes way for another kind of thing is gone before that stands.
        is_between = now is None and of["state"] == BEGUN
        if is_between or _is_as(now, change.new, change):
            is_directory = any(entry is not None and _is_directory(entry) for entry in (change.old, change.new))
            why = spared(change.path, is_directory)
            if why is None:
                todo.append(change)
            else:
                yield trees.Action("keep", change.path, is_directory, 0, why)
        elif not _is_as(now, change.old, change):
            yield trees.Action("fail", change.path, False, 0, CHANGED)
    removable = {change.path for change in todo}

    def others(directory: str, name: str, mode: int) -> str | None:
        if any(map(files.is_temporary, directory.split("/"))):
            return None
        return keep(directory, name, mode) if trees.join(directory, name) in removable else CHANGED

    source = place if show else _spread(changes, place)
    listing = _listing(todo, [*_unfinished(changes, of["paths"], production_dir)], source)
    yield from trees.mirror(listing, production_dir, show=show, durable=True, keep=others)
    for change in todo:
        if change.old is not None and _is_mode(change):
            if not show:
                _chmod(production_dir, change.path, stat.S_IMODE(change.old[0]))
            yield trees.Action("update", change.path, True)


def forget(of: Record, conf: Settings) -> None:
    """Note that an install was undone, and drop what was kept of it.

    Raises:
        UnavailableError: it cannot be written.
    """
    state_dir = conf["site"]["state_dir"]
    place = _place(state_dir, of["id"])
    try:
        write(of | {"state": UNDONE}, state_dir, conf["install"]["log_count"])
        if place is not None:
            _remove(place, ignore_errors=False)
    except OSError as error:
        raise UnavailableError(f"cannot note that {of['id']} was undone: {reason(error)}") from error


def changes_of(actions: Iterable[trees.Action], listing: trees.Listing, production_dir: str) -> list[Change]:
    """Return what actions that are planned will change.

    Args:
        actions: what `trees.mirror` would do.
        listing: what it would do it from.
        production_dir: the production tree, as it is before.
    """
    found: list[Change] = []
    for action in actions:
        is_temporary = any(files.is_temporary(part) for part in action.path.split("/"))
        if action.verb in ("install", "update", "remove") and not is_temporary:
            new = None if action.verb == "remove" else _wanted(listing, action)
            found.append(Change(action.verb, action.path, None, new))
    return [
        Change(change.verb, change.path, now, change.new)
        for change, now in _with_now(found, production_dir)
        if now is not None or change.new is not None
    ]


def _wanted(listing: trees.Listing, action: trees.Action) -> trees.Entry:
    found = listing.top
    *above, name = action.path.split("/")
    for part in above:
        found = found.directories[part]
    if action.is_directory:
        return (stat.S_IFDIR | found.directories[name].mode & 0o777 | 0o700, 0, 0, "")
    return found.entries[name]


def _undo_dir(state_dir: str) -> str:
    return f"{state_dir}/install/undo"


def _log_dir(state_dir: str) -> str:
    return f"{state_dir}/install/log"


def _listed(directory: str) -> list[str]:
    """Return the names in a directory, the oldest first, without those of unfinished writes."""
    try:
        return sorted(name for name in os.listdir(directory) if not files.is_temporary(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnavailableError(f"cannot read {directory}: {reason(error)}") from error


def _read_record(file: str) -> Record | None:
    """Return a record, None where it went meanwhile."""
    try:
        shape = json.loads(files.read(file))
        if shape["format"] != FORMAT or not isinstance(shape["paths"], list) or not shape.keys() >= _FIELDS:
            raise ValueError
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(f"cannot read {file}: {reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"cannot read {file}: it is no record of an install") from error
    found: Record = shape
    return found


def _is_about(changes: Iterable[Change], paths: Sequence[str]) -> bool:
    """Tell whether something was changed at or below one of some paths."""
    return any(
        change.old != change.new and (change.path == path or change.path.startswith(path + "/"))
        for change in changes
        for path in paths
    )


def _place(state_dir: str, number: str) -> str | None:
    for name in _listed(_undo_dir(state_dir)):
        if name.rpartition(".")[0] == number and os.path.exists(f"{_undo_dir(state_dir)}/{name}/changes.json"):
            return f"{_undo_dir(state_dir)}/{name}"
    return None


def _make_room(undo_dir: str, count: int, size: int) -> None:
    """Drop the oldest until a number and a size are kept to."""
    kept = _listed(undo_dir)
    total = sum(_bytes(name) for name in kept)
    while kept and (len(kept) > count or total > size):
        total -= _bytes(kept[0])
        _remove(f"{undo_dir}/{kept.pop(0)}")


def _remove(place: str, ignore_errors: bool = True) -> None:
    # Rarely needed, and not loaded in a moment: it knows how to pack.
    import shutil

    shutil.rmtree(place, ignore_errors)


def _make_shared(path: str) -> None:
    """Make a directory in which the group of the state directory may put and remove things, and those above it."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_shared(path.rpartition("/")[0])
        os.mkdir(path, 0o700)
    os.chmod(path, origin.DIRECTORY_MODE)


def _bytes(name: str) -> int:
    number = name.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _is_replaced(change: Change) -> bool:
    """Tell whether the content of a file goes: permissions alone are told by the record."""
    if change.old is None or not stat.S_ISREG(change.old[0]):
        return False
    return change.new is None or not stat.S_ISREG(change.new[0]) or change.old[1:3] != change.new[1:3]


def _save(changes: Sequence[Change], production_dir: str, kept: str) -> None:
    """Keep what is replaced; what had other permissions only needs no more than the list of changes."""
    with contextlib.closing(trees.Way(production_dir)) as way:
        for number, change in enumerate(changes):
            if not _is_replaced(change):
                continue
            directory, _, name = change.path.rpartition("/")
            fd = way.open(directory)
            try:
                os.link(name, f"{kept}/{number}", src_dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                _copy(fd, name, f"{kept}/{number}")


def _spread(changes: Iterable[Change], place: str) -> str:
    """Give what is kept its tree paths, as far as an undo that was killed did not, and return the directory of that.

    Raises:
        UnavailableError: it cannot be done.
    """
    tree = f"{place}/tree"
    try:
        _make_shared(tree)
        for number, change in enumerate(changes):
            if change.old is None or _is_directory(change.old):
                continue
            target = f"{tree}/{change.path}"
            # Of a link, too, which is put back from the list of changes.
            _make_shared(target.rpartition("/")[0])
            if _is_replaced(change):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{place}/kept/{number}", target)
    except OSError as error:
        raise UnavailableError(f"cannot use what is kept in {place}: {reason(error)}") from error
    return tree


def _opened(way: trees.Way, directory: str, production_dir: str) -> int:
    """Return a descriptor of a directory of production, -1 where it is none."""
    try:
        return way.open(directory)
    except (FileNotFoundError, NotADirectoryError, RefusedError):
        return -1
    except OSError as error:
        place = names.printable(f"{production_dir}/{directory}")
        raise UnavailableError(f"cannot open {place}: {reason(error)}") from error


def _copy(fd: int, name: str, target: str) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    with open(source, "rb") as reading, open(target, "xb") as writing:
        status = os.fstat(source)
        while chunk := reading.read(trees.CHUNK_BYTES):
            writing.write(chunk)
        writing.flush()
        os.fchmod(writing.fileno(), status.st_mode & 0o777)
        os.utime(writing.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(writing.fileno())


def _size(changes: Iterable[Change]) -> int:
    """Return how many bytes it takes to keep what is replaced, hard links counted as copies."""
    replaced = sum(change.old[1] for change in changes if change.old is not None and _is_replaced(change))
    return replaced + len(_text(changes))


def _text(changes: Iterable[Change]) -> bytes:
    return json.dumps([[change.verb, change.path, change.old, change.new] for change in changes]).encode()


def _write_changes(place: str, changes: Iterable[Change]) -> None:
    files.replace(f"{place}/changes.json", _text(changes), RECORD_MODE)


def _read_changes(place: str) -> list[Change]:
    file = f"{place}/changes.json"
    try:
        shape = json.loads(files.read(file))
        return [Change(verb, _inside(path), _entry(old), _entry(new)) for verb, path, old, new in shape]
    except OSError as error:
        raise UnavailableError(f"cannot read {file}: {reason(error)}") from error
    except (ValueError, TypeError) as error:
        raise BadInputError(f"cannot read {file}: it is no list of changes") from error


def _inside(path: str) -> str:
    """Return a path that leads nowhere but down; what lies below a tree may have any name."""
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or "\0" in path:
        raise ValueError(path)
    return path


def _entry(shape: Any) -> trees.Entry | None:
    if shape is None:
        return None
    mode, size, mtime_ns, text = shape
    return (int(mode), int(size), int(mtime_ns), str(text))


def _with_now(changes: Sequence[Change], production_dir: str) -> Iterator[tuple[Change, trees.Entry | None]]:
    with contextlib.closing(trees.Way(production_dir)) as way:
        for change in changes:
            directory, _, name = change.path.rpartition("/")
            fd = _opened(way, directory, production_dir)
            yield change, None if fd < 0 else _entry_at(fd, name)


def _now(changes: Sequence[Change], production_dir: str) -> Iterator[Change]:
    for change, now in _with_now(changes, production_dir):
        yield Change(change.verb, change.path, change.old, now)


def _entry_at(fd: int, name: str) -> trees.Entry | None:
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return (stat.S_IFLNK, 0, 0, os.readlink(name, dir_fd=fd))
    except FileNotFoundError:
        return None
    mode = status.st_mode & _KIND_AND_PERMISSIONS
    return (mode, status.st_size, status.st_mtime_ns, "") if stat.S_ISREG(mode) else (mode, 0, 0, "")


def _is_directory(entry: trees.Entry) -> bool:
    return stat.S_ISDIR(entry[0])


def _is_as(now: trees.Entry | None, then: trees.Entry | None, change: Change) -> bool:
    """Tell whether something is what it was; a directory's permissions count where they are what changed."""
    if now is None or then is None or not (_is_directory(now) and _is_directory(then)):
        return now == then
    return now == then or not _is_mode(change)


def _is_mode(change: Change) -> bool:
    """Tell whether a directory changed its permissions, and nothing else."""
    return change.old is not None and change.new is not None and all(map(_is_directory, (change.old, change.new)))


def _makes_way(change: Change) -> bool:
    """Tell whether a directory has to make way for the file or link that it replaced."""
    old, new = change.old, change.new
    return old is not None and new is not None and not _is_directory(old) and _is_directory(new)


def _unfinished(changes: Sequence[Change], paths: Sequence[str], production_dir: str) -> Iterator[str]:
    """Yield what a run that was killed left under temporary names below the paths whose locks are held."""
    with contextlib.closing(trees.Way(production_dir)) as way:
        for directory in sorted({change.path.rpartition("/")[0] for change in changes}):
            fd = -1
            if any(directory == path or directory.startswith(path + "/") for path in paths):
                fd = _opened(way, directory, production_dir)
            if fd >= 0:
                yield from (trees.join(directory, name) for name in os.listdir(fd) if files.is_temporary(name))


def _listing(todo: Sequence[Change], gone: Iterable[str], source: str) -> trees.Listing:
    """Return what an undo puts back as a listing; its files are in the source.

    Args:
        todo: what is put back.
        gone: what goes besides.
        source: what is kept.
    """
    listing = trees.Listing(source)
    tops = {change.path for change in todo if _makes_way(change)}
    tops |= {change.path for change in todo if change.old is None}
    todo = [*todo, *(Change("remove", path, None, None) for path in gone)]
    for change in sorted(todo, key=lambda change: change.path.split("/")):
        *above, name = change.path.split("/")
        # What is in a directory that goes, goes with it.
        if any("/".join(above[:depth]) in tops for depth in range(1, len(above) + 1)):
            continue
        found = listing.top
        for part in above:
            found = found.directories.setdefault(part, trees.Directory(stat.S_IFDIR | 0o755, False))
        if change.old is None:
            found.absent.add(name)
        elif not _is_directory(change.old):
            found.entries[name] = change.old
        elif not _is_mode(change):
            # It is not there: all that will be in it is what is put back.
            found.directories[name] = trees.Directory(change.old[0], True)
    return listing


def _chmod(production_dir: str, path: str, mode: int) -> None:
    try:
        fd = trees.open_directory(production_dir, path)
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    except OSError as error:
        raise UnavailableError(f"cannot change {names.printable(path)}: {reason(error)}") from error
