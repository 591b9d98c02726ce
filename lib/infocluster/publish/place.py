# SPDX-License-Identifier: Apache-2.0
"""A batch job's files into the production tree: all of them or none, whatever is killed when.

A reader of the production tree sees each file old or new, never half. Between the first and the last new name it
may see a mixture of files; a push does not, because it calls `finish` under its own path locks before it reads.
Whoever removes unfinished writes below PRODUCTION_DIR (an install) calls `finish` first as well, for the same reason.

Shape: a journal is one file in STATE_DIR/publish, such as ``5f0c9a31b2d4e678.whole``: one JSON object,
    ``{"format": "infocluster publish 1", "directory": "world/survey",
    "names": [["index.html", ".~index.html.3f9c5e0a77b1"]], "remove": ["2024.html"]}``
    ``names`` pairs a final name with the temporary name that holds its content, ``remove`` has names that go after
    that. It ends in ``.staging`` until all contents are on the disk, and in ``.whole`` from then on: a staging
    journal is cleared away with its temporary names, a whole one is completed. It is written, read and removed by
    whoever holds a path lock that conflicts with its directory.

RACE: two pushes of two files of one directory both find its journal. They complete it one after the other, under a
    lock on STATE_DIR/publish; the second finds it gone.
RACE: a run is killed between two renames. A temporary name that is gone was given its final name; the rest follows.

Source: rename(2), fsync(2); documentation of the gather directories (why a job writes to production directly).
"""

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from infocluster import files, names, trees
from infocluster.config import Settings
from infocluster.errors import BadInputError, RefusedError, UnavailableError, UsageError, reason
from infocluster.locks import lockfile, pathlocks
from infocluster.publish import instrc

FORMAT = "infocluster publish 1"
STAGING = ".staging"
WHOLE = ".whole"
FILE_MODE = 0o644
NAMES_SHOWN = 10

Say = Callable[[str], None]


class Placed(NamedTuple):
    """What a publish did: names in the directory, each list in the order they were given."""

    written: list[str]
    unchanged: list[str]
    removed: list[str]


class _Journal(NamedTuple):
    """A journal; ``file`` is its path without the ending."""

    file: str
    directory: str
    renames: list[tuple[str, str]]
    remove: list[str]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def publish(
    directory: str,
    contents: Mapping[str, bytes],
    conf: Settings,
    say: Say = _say,
    remove: Sequence[str] = (),
) -> Placed:
    """Put files into a directory of the production tree, all or none, durable when it returns.

    The names are given in the order of the mapping, so that data can stand before the page that needs it. Modes are
    0644, and 0755 for a directory that is missing. What has the same content already is not touched.

    Args:
        directory: a tree path, such as ``world/survey``.
        contents: content by name; a name is one component.
        conf: the settings.
        say: gets a line when something has to be waited for or was left by a run that was killed.
        remove: names to remove after that; one that is not there is no error.

    Raises:
        UsageError: a name is none.
        RefusedError: an install would remove a name again (the message has the line to add and the file to add it
            to); a component of the directory is a symbolic link; a name is that of a directory.
        BadInputError: a .wwwinstrc or a journal is not in its form. Nothing was changed.
        UnavailableError: a lock is held too long, the disk is full. Nothing was changed, unless the message says
            that the next run completes it.
    """
    directory = names.tree_path(directory)
    for name in (*contents, *remove):
        _check_name(name)
    if not contents.keys().isdisjoint(remove):
        raise UsageError(f"cannot publish {names.printable(directory)}: a name is to be written and removed")
    with pathlocks.hold(
        [directory],
        timeout_s=conf["publish"]["lock_timeout_s"],
        directory=conf["site"]["state_dir"] + "/pathlocks",
        say=say,
    ):
        _check_protected(directory, [*contents, *remove], conf["site"]["development_dirs"])
        finish([directory], conf, say)
        return _placed(directory, contents, remove, conf)


def finish(held: Sequence[str], conf: Settings, say: Say = _say) -> int:
    """Complete, or clear away, what publishes that were killed left behind.

    Args:
        held: the tree paths whose path locks the caller holds. Journals of directories that conflict with none of
            them are another run's, which may be alive.
        conf: the settings.
        say: gets a line for each.

    Returns:
        How many there were.

    Raises:
        BadInputError: a journal is not in its form.
        UnavailableError: it cannot be completed now.
    """
    journal_dir = _journal_dir(conf)
    if not _listed(journal_dir):
        return 0
    done = 0
    with lockfile.hold(journal_dir, timeout_s=conf["publish"]["lock_timeout_s"]):
        for entry in _listed(journal_dir):
            path = f"{journal_dir}/{entry}"
            if files.is_temporary(entry):
                os.unlink(path)  # journals are written under this lock: nobody is at it
                continue
            file, ending = os.path.splitext(path)
            journal = _read(path, file)
            if not pathlocks.conflicts([journal.directory], held):
                continue
            about = f"a publish of {names.printable(journal.directory)} that was not finished"
            if ending == WHOLE:
                say(f"completing {about}")
                _complete(journal, conf)
            else:
                say(f"clearing away {about}")
                _discard(journal, conf)
            done += 1
    return done


def unfinished(conf: Settings) -> list[str]:
    """Return the directories with a journal, of live runs too, without taking or changing anything.

    Raises:
        BadInputError: a journal is not in its form.
    """
    found = set()
    for entry in _listed(_journal_dir(conf)):
        path = f"{_journal_dir(conf)}/{entry}"
        with contextlib.suppress(FileNotFoundError):
            if not files.is_temporary(entry):
                found.add(_read(path, os.path.splitext(path)[0]).directory)
    return sorted(found)


def _journal_dir(conf: Settings) -> str:
    return f"{conf['site']['state_dir']}/publish"


def _listed(journal_dir: str) -> list[str]:
    """Return the journals, and what is left of one that was just being written."""
    try:
        listed = os.listdir(journal_dir)
    except FileNotFoundError:
        return []
    return sorted(name for name in listed if name.endswith((STAGING, WHOLE)) or files.is_temporary(name))


def _check_name(name: str) -> None:
    if names.tree_path(name) != name or "/" in name:
        raise UsageError(f"cannot publish {names.shown(name)}: expected the name of a file in the directory")
    if files.is_temporary(name) or name == instrc.NAME:
        raise UsageError(f"cannot publish {names.shown(name)}: the name has a meaning of its own")


def _check_protected(directory: str, wanted: Sequence[str], development_dirs: Sequence[str]) -> None:
    for root in development_dirs:
        bare = _unprotected(root, directory, wanted)
        if bare:
            lines = ", ".join(names.shown(instrc.entry_for(name), limit=1000) for name in bare[:NAMES_SHOWN])
            more = f" and {len(bare) - NAMES_SHOWN} more" if len(bare) > NAMES_SHOWN else ""
            file = names.printable(f"{root}/{directory}/{instrc.NAME}")
            raise RefusedError(
                f"cannot publish {names.printable(directory)}: an install would change or remove it again; "
                f"to {file} add the line{'s' if len(bare) > 1 else ''} {lines}{more}"
            )


def _unprotected(root: str, directory: str, wanted: Sequence[str]) -> list[str]:
    """Return the names that an install from a development tree would not leave alone.

    A tree that does not hold the directory says nothing about it. One that lists it, or a directory above it, in
    the .wwwinstrc above leaves all of it alone.
    """
    here = ""
    for part in directory.split("/"):
        # What is a link there is no directory of that tree; an install copies the link's text.
        if not _is_directory(f"{root}/{trees.join(here, part)}"):
            return []
        if instrc.read(root, here).protects(part, True):
            return []
        here = trees.join(here, part)
    rules = instrc.read(root, directory)
    return [name for name in wanted if not rules.protects(name, False)]


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnavailableError(f"cannot read {names.printable(path)}: {reason(error)}") from error


def _placed(directory: str, contents: Mapping[str, bytes], remove: Sequence[str], conf: Settings) -> Placed:
    try:
        fd = trees.open_directory(conf["site"]["production_dir"], directory, make=True)
    except OSError as error:
        place = names.printable(os.path.join(conf["site"]["production_dir"], error.filename or "").rstrip("/"))
        raise UnavailableError(f"cannot publish {names.printable(directory)}: {place}: {reason(error)}") from error
    try:
        _check_no_directory(fd, directory, [*contents, *remove])
        written = {name: files.temporary_name(name) for name in contents if not _is_there(fd, name, contents[name])}
        unchanged = [name for name in contents if name not in written]
        gone = [name for name in remove if _status(fd, name) is not None]
        if written or gone:
            journal = _begun(directory, written, gone, conf)
            _stage(journal, fd, contents, conf)
            _complete(journal, conf)
        return Placed(list(written), unchanged, gone)
    finally:
        os.close(fd)


def _check_no_directory(fd: int, directory: str, wanted: Collection[str]) -> None:
    for name in wanted:
        status = _status(fd, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise RefusedError(f"cannot publish {names.printable(trees.join(directory, name))}: it is a directory")


def _status(fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_there(fd: int, name: str, content: bytes) -> bool:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False
    with open(file, "rb") as stream:
        status = os.fstat(file)
        kind = stat.S_IFREG | FILE_MODE
        return (status.st_mode, status.st_size) == (kind, len(content)) and stream.read() == content


def _begun(directory: str, written: Mapping[str, str], gone: list[str], conf: Settings) -> _Journal:
    """Write a staging journal, durable, and return it."""
    journal_dir = _journal_dir(conf)
    journal = _Journal(f"{journal_dir}/{os.urandom(8).hex()}", directory, list(written.items()), gone)
    shape = {"format": FORMAT, "directory": directory, "names": journal.renames, "remove": gone}
    try:
        files.make_directories(journal_dir, 0o750)
        with lockfile.hold(journal_dir, timeout_s=conf["publish"]["lock_timeout_s"]):
            files.replace(journal.file + STAGING, json.dumps(shape).encode(), 0o640)
    except OSError as error:
        raise UnavailableError(f"cannot write a journal in {journal_dir}: {reason(error)}") from error
    return journal


def _stage(journal: _Journal, fd: int, contents: Mapping[str, bytes], conf: Settings) -> None:
    """Write the new contents under their temporary names, durable, and mark the journal whole."""
    name = ""
    try:
        for name, temporary in journal.renames:
            _write(fd, temporary, contents[name])
        os.fsync(fd)
        os.rename(journal.file + STAGING, journal.file + WHOLE)
    except BaseException as error:
        _discard(journal, conf)
        if isinstance(error, OSError):
            place = names.printable(trees.join(journal.directory, name))
            raise UnavailableError(f"cannot publish {place}: {reason(error)}") from error
        raise


def _write(fd: int, temporary: str, content: bytes) -> None:
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        files.write_all(file, content)
        os.fchmod(file, FILE_MODE)
        os.fsync(file)
    finally:
        os.close(file)


def _complete(journal: _Journal, conf: Settings) -> None:
    """Do what a whole journal says, as far as it is not done, and remove it."""
    try:
        files.sync_directory(_journal_dir(conf))
        # Where the directory itself is gone, somebody removed it since, and there is nothing to complete.
        with contextlib.suppress(FileNotFoundError), _directory(journal, conf) as fd:
            for name, temporary in journal.renames:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
            for name in journal.remove:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
            os.fsync(fd)
        os.unlink(journal.file + WHOLE)
        files.sync_directory(_journal_dir(conf))
    except OSError as error:
        raise UnavailableError(
            f"cannot publish all of {names.printable(journal.directory)}: {reason(error)}; "
            f"the next run completes it by {journal.file}{WHOLE}"
        ) from error


def _discard(journal: _Journal, conf: Settings) -> None:
    """Remove a staging journal and the temporary names it knows."""
    try:
        with contextlib.suppress(FileNotFoundError), _directory(journal, conf) as fd:
            for _, temporary in journal.renames:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=fd)
        os.unlink(journal.file + STAGING)
    except OSError as error:
        raise UnavailableError(f"cannot clear away {journal.file}{STAGING}: {reason(error)}") from error


@contextlib.contextmanager
def _directory(journal: _Journal, conf: Settings) -> Iterator[int]:
    fd = trees.open_directory(conf["site"]["production_dir"], journal.directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(path: str, file: str) -> _Journal:
    try:
        shape = json.loads(files.read(path))
        if shape["format"] != FORMAT:
            raise ValueError
        directory = names.tree_path(shape["directory"])
        renames = [(name, temporary) for name, temporary in shape["names"]]
        remove = list(shape["remove"])
        for name in (*(name for name, _ in renames), *remove):
            _check_name(name)
        if not all(files.is_temporary(temporary) and "/" not in temporary for _, temporary in renames):
            raise ValueError
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise BadInputError(f"cannot read {path}: it is no journal of a publish; look at it and remove it") from error
    return _Journal(file, directory, renames, remove)
