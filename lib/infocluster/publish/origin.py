# SPDX-License-Identifier: Apache-2.0
"""Which development tree installed what: what one of them installed, the other never removes.

The development trees share one production tree. Each is remembered to *hold* the names that it offered at its last
install of a path, those included that stood in production already. An install removes what its own tree no longer
holds, unless another tree holds it. Both may hold a name: then the last to install it has its content there, and it
goes when both have let go of it.

Shape: ``STATE_DIR/install/origins.sqlite``, table ``held``, one row a program and directory:
    ``program, directory, names``, such as ``wwwdinst, world/sample, index.html/logo.svg``
    ``directory`` is a tree path, ``names`` has the names in it, sorted and joined by ``/``, directories among them;
    both are bytes, as file names are.

A name is noted before it is put in place and struck out after it was removed, so that a run that is killed between
leaves a name too many, never one too few; the next run of the same path strikes it out.

Where nothing is known of a name (installed before this was noted, or by a copy of another kind), it belongs to
every other development tree that has it.

Source: SQLite, atomic commit; documentation of wwwinst (several development trees, one production tree).
"""

import os
import sqlite3
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from infocluster import databases, files, trees
from infocluster.errors import UnavailableError, reason
from infocluster.publish import development

DIRECTORY_MODE = 0o2770
FILE_MODE = 0o660
_SCHEMA = """
CREATE TABLE IF NOT EXISTS held (
    program TEXT NOT NULL, directory BLOB NOT NULL, names BLOB NOT NULL, PRIMARY KEY (program, directory)
) WITHOUT ROWID
"""
_PUT = "INSERT INTO held VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET names = excluded.names"

# Names in a directory, by its path.
Held = dict[str, frozenset[str]]


class Offer(NamedTuple):
    """What a listing says is held.

    Attributes:
        whole: the names of every directory that is listed whole, packed.
        add, strike: of the directories above a named path, the names that are, or no longer are, held.
        gone: directories of which nothing is held any more.
    """

    whole: dict[str, bytes]
    add: dict[str, set[str]]
    strike: dict[str, set[str]]
    gone: list[str]


def file_of(state_dir: str) -> str:
    """Return the database's path."""
    return f"{state_dir}/install/origins.sqlite"


class Origins:
    """What is known, for one run of one program.

    Attributes:
        program: whose install it is.
        held: what its tree held before, in and below the paths of the run, and in the directories above them.
    """

    __slots__ = ("_below", "_file", "_others", "_packed", "held", "program")

    def __init__(self, state_dir: str, program: str, paths: Sequence[str]) -> None:
        """Read what a program's tree holds.

        Args:
            state_dir: STATE_DIR.
            program: such as ``wwwdinst``.
            paths: tree paths, none below another.

        Raises:
            UnavailableError: it cannot be read.
        """
        self.program = program
        self._file = file_of(state_dir)
        self._packed: dict[str, bytes] = {}
        self._below: list[str] = []
        self._others: dict[str, dict[str, frozenset[str]]] = {}
        self.held: Held = {}
        for directory, names, is_above in self._read(paths):
            path = os.fsdecode(directory)
            self._packed[path] = names
            self.held[path] = _unpacked(names)
            if not is_above:
                self._below.append(path)

    def holders(self, directory: str, name: str) -> list[str]:
        """Return the other programs whose tree holds a name.

        Raises:
            UnavailableError: it cannot be read.
        """
        if directory not in self._others:
            self._others[directory] = self._read_others(directory)
        return [program for program, names in self._others[directory].items() if name in names]

    def is_known(self, directory: str, name: str) -> bool:
        """Tell whether the run's own tree was noted to hold a name."""
        return name in self.held.get(directory, ())

    def offered(self, listing: trees.Listing, failing: Collection[str] = ()) -> Offer:
        """Return what a listing says is held.

        Args:
            listing: what is to stand in production.
            failing: paths that cannot be put in place; they are held only if they were.
        """
        offer = Offer({}, {}, {}, [])
        left: set[str] = set()
        for path, found in development.directories(listing):
            left.update(trees.join(path, name) for name in found.left)
            held = self.held.get(path, frozenset())
            there = [name for name, below in found.directories.items() if below.mode != trees.ABSENT]
            names = [*found.entries, *there, *found.left]
            if failing:
                names = [name for name in names if name in held or trees.join(path, name) not in failing]
            if found.whole:
                offer.whole[path] = _packed(names)
                continue
            if not held.issuperset(names):
                offer.add[path] = set(names)
            if found.absent & held:
                offer.strike[path] = found.absent
        offer.gone.extend(path for path in self._below if path not in offer.whole and not _is_below(path, left))
        return offer

    def note(self, offer: Offer) -> None:
        """Note, before anything is put in place, what is to be held besides what is.

        Raises:
            UnavailableError: it cannot be written.
        """
        whole = {}
        for path, packed in offer.whole.items():
            before = self._packed.get(path)
            together = packed if not before or before == packed else _packed(self.held[path] | _unpacked(packed))
            if together != before:
                whole[path] = together
        self._write(Offer(whole, offer.add, {}, []))

    def settle(self, offer: Offer) -> None:
        """Note, when all is in place and removed, exactly what is held.

        Raises:
            UnavailableError: it cannot be written.
        """
        whole = {path: packed for path, packed in offer.whole.items() if self._packed.get(path) != packed}
        self._write(Offer(whole, offer.add, offer.strike, offer.gone))

    def add(self, paths: Iterable[str]) -> None:
        """Note that names are held again.

        Raises:
            UnavailableError: it cannot be written.
        """
        names: dict[str, set[str]] = {}
        for path in paths:
            directory, _, name = path.rpartition("/")
            names.setdefault(directory, set()).add(name)
        self._write(Offer({}, names, {}, []))

    def _read(self, paths: Sequence[str]) -> Iterator[tuple[bytes, bytes, bool]]:
        if not os.path.exists(self._file):
            return
        wanted: set[bytes] = set()
        with _opened(self._file) as db:
            query = "SELECT directory, names FROM held WHERE program = ?"
            for path in paths:
                bare = os.fsencode(path)
                # "0" is the character after "/".
                below = (self.program, bare, bare + b"/", bare + b"0")
                for row in db.execute(f"{query} AND (directory = ? OR directory > ? AND directory < ?)", below):
                    yield (*row, False)
                wanted.update(os.fsencode(above) for above in _above(path))
            for directory in wanted:
                for row in db.execute(f"{query} AND directory = ?", (self.program, directory)):
                    yield (*row, True)

    def _read_others(self, directory: str) -> dict[str, frozenset[str]]:
        if not os.path.exists(self._file):
            return {}
        with _opened(self._file) as db:
            rows = db.execute(
                "SELECT program, names FROM held WHERE directory = ? AND program != ?",
                (os.fsencode(directory), self.program),
            )
            return {program: _unpacked(names) for program, names in rows}

    def _write(self, offer: Offer) -> None:
        if not (offer.whole or offer.add or offer.strike or offer.gone):
            return
        try:
            make_directory(os.path.dirname(self._file))
        except OSError as error:
            raise UnavailableError(f"cannot write {self._file}: {reason(error)}") from error
        with _opened(self._file) as opened, databases.transaction(opened) as db:
            db.executemany(_PUT, [(self.program, os.fsencode(path), names) for path, names in offer.whole.items()])
            # RACE: two installs of two files of one directory hold no lock in common. Each adds and strikes its own
            # names to what the row holds by then, in its transaction.
            for path in offer.add.keys() | offer.strike.keys():
                where = (self.program, os.fsencode(path))
                row = db.execute("SELECT names FROM held WHERE program = ? AND directory = ?", where).fetchone()
                names = _unpacked(row[0] if row else b"") | offer.add.get(path, set())
                db.execute(_PUT, (*where, _packed(names - offer.strike.get(path, set()))))
            db.executemany(
                "DELETE FROM held WHERE program = ? AND directory = ?",
                [(self.program, os.fsencode(path)) for path in offer.gone],
            )


def make_directory(path: str) -> None:
    """Make a directory that the group of the state directory shares; one that is there is left as it is.

    Raises:
        OSError: as mkdir(2).
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        files.make_directories(path, 0o770)
        os.chmod(path, DIRECTORY_MODE)


@contextmanager
def _opened(file: str) -> Iterator[sqlite3.Connection]:
    try:
        with databases.opened(file, _SCHEMA) as db:
            status = os.stat(file)
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != FILE_MODE:
                os.chmod(file, FILE_MODE)
            yield db
    except (OSError, sqlite3.Error) as error:
        raise UnavailableError(f"cannot use {file}: {error}") from error


def _packed(names: Iterable[str]) -> bytes:
    return os.fsencode("/".join(sorted(names)))


def _unpacked(names: bytes) -> frozenset[str]:
    return frozenset(os.fsdecode(names).split("/")) if names else frozenset()


def _above(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition("/")[0]
        yield path


def _is_below(path: str, tops: set[str]) -> bool:
    return path in tops or any(above in tops for above in _above(path))
