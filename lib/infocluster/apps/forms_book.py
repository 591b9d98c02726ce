# SPDX-License-Identifier: Apache-2.0
"""A form's answers on the batch host: one database a form, with how far each server was read in the same transaction.

Shape: ``STATE_DIR/forms/NAME/answers.sqlite``: table ``answers``: ``id, time, day, server, segment, record, state,
    letter``; ``record`` is what form.cgi gathered, as JSON; ``state`` is ``new``, ``shown`` or ``hidden``; ``letter``
    is the key of the letter it went into, "" before. ``erased`` has the ids that must never come back; ``letters``
    the keys of letters that are queued; ``dirty`` the days whose results have to be written again; ``placed`` what is
    published; ``decided`` when a person spoke of an answer last; ``uncopied`` whose files are still to be
    copied; ``declared`` the text of the form's declaration: answers outlive it. Files that people sent are beside it,
    in ``files/``.

Source: SQLite, "PRAGMA secure_delete" (what is deleted is overwritten).
"""

import glob
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple

from infocluster import files, names
from infocluster.apps.forms_declared import UPLOAD_KB_MOST
from infocluster.config import Settings
from infocluster.errors import UnavailableError, UsageError, reason
from infocluster.gather import cursor
from infocluster.web.uploads import TYPES

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640
COPIED_BYTES = 1 << 20
NEW = "new"
ID_LEAST = 8
ID_DIGITS = "0123456789abcdef"
_FILE_TEXTS = ("name", "type", "sha256", "file")
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id TEXT PRIMARY KEY, time REAL NOT NULL, day TEXT NOT NULL, server TEXT NOT NULL, segment TEXT NOT NULL,
    record TEXT NOT NULL, state TEXT NOT NULL, letter TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_time ON answers (time);
CREATE TABLE IF NOT EXISTS erased (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS letters (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dirty (day TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS placed (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uncopied (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS declared (text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decided (id TEXT PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID;
"""


class Answer(NamedTuple):
    """One answer, as the database has it."""

    id: str
    time: float
    day: str
    server: str
    segment: str
    record: dict[str, Any]
    state: str
    letter: str


class Book:
    """An open database of answers; made by `opened`.

    Attributes:
        cursor: positions and transactions.
        top: the form's directory.
    """

    def __init__(self, position: cursor.Cursor, top: str) -> None:
        self.cursor = position
        self.db = position.db
        self.top = top

    @property
    def files_dir(self) -> str:
        """Return where the files that people sent are."""
        return self.top + "/files"

    def declare(self, text: str) -> None:
        """Remember the text of the form's declaration."""
        if self.declared() != text:
            with self.cursor.transaction() as db:
                db.execute("DELETE FROM declared")
                db.execute("INSERT INTO declared VALUES (?)", (text,))

    def declared(self) -> str:
        """Return the text of the declaration that was seen last, or ""."""
        return "".join(text for (text,) in self.db.execute("SELECT text FROM declared"))

    def take(self, db: sqlite3.Connection, server: str, segment: str, records: Iterable[dict[str, Any]]) -> int:
        """Add records, inside a transaction, and return how many are new; one that is known or was erased is not."""
        added = 0
        for record in records:
            day = datetime.fromtimestamp(record["time"], UTC).date().isoformat()
            if db.execute("SELECT 1 FROM erased WHERE id = ?", (record["id"],)).fetchone():
                continue
            text = json.dumps(record, ensure_ascii=False)
            row = (record["id"], record["time"], day, server, segment, text, NEW, "")
            found = db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount
            if found:
                added += 1
                db.execute("INSERT OR IGNORE INTO dirty VALUES (?)", (day,))
                if sent_files(record):
                    db.execute("INSERT OR IGNORE INTO uncopied VALUES (?)", (record["id"],))
        return added

    def answers(self, where: str = "1", values: Iterable[Any] = ()) -> list[Answer]:
        """Return answers in order of their time; `where` is SQL of ours."""
        rows = self.db.execute(
            "SELECT id, time, day, server, segment, record, state, letter FROM answers "  # noqa: S608 - see above
            f"WHERE {where} ORDER BY time, id",
            tuple(values),
        )
        return [Answer._make((*row[:5], json.loads(row[5]), *row[6:])) for row in rows]

    def found(self, start: str) -> Answer | None:
        """Return the one answer whose id begins so, or None.

        Raises:
            UsageError: there are several.
        """
        found = self.answers("substr(id, 1, ?) = ?", (len(start), start))
        if len(found) > 1:
            raise UsageError(f"cannot tell which answer {start} is: there are {len(found)}; give more of its id")
        return found[0] if found else None

    def decide(self, db: sqlite3.Connection, answer_id: str, state: str, when: float) -> None:
        """Take a person's word on an answer, inside a transaction, unless a later one was taken, or it is gone.

        Args:
            db: the transaction's.
            answer_id: the answer's id.
            state: `forms_moderation.SHOWN` or ``HIDDEN``.
            when: when the word was given, Unix s.
        """
        rows = db.execute("SELECT day, state FROM answers WHERE id = ?", (answer_id,)).fetchall()
        if not rows or db.execute("SELECT 1 FROM decided WHERE id = ? AND time > ?", (answer_id, when)).fetchone():
            return
        db.execute("INSERT OR REPLACE INTO decided VALUES (?, ?)", (answer_id, when))
        ((day, before),) = rows
        if before != state:
            db.execute("UPDATE answers SET state = ? WHERE id = ?", (state, answer_id))
            db.execute("INSERT OR IGNORE INTO dirty VALUES (?)", (day,))

    def remove(self, gone: list[Answer], for_good: bool) -> None:
        """Remove answers and their files.

        Args:
            gone: the answers.
            for_good: whether they stay away when a server's segment is read once more.
        """
        # Files first: what an interrupted run has left would be named by nothing.
        for answer in gone:
            for told in sent_files(answer.record):
                remove_file(f"{self.files_dir}/{told['file']}")
        with self.cursor.transaction() as db:
            for answer in gone:
                db.execute("DELETE FROM answers WHERE id = ?", (answer.id,))
                db.execute("DELETE FROM decided WHERE id = ?", (answer.id,))
                db.execute("DELETE FROM uncopied WHERE id = ?", (answer.id,))
                db.execute("INSERT OR IGNORE INTO dirty VALUES (?)", (answer.day,))
                if for_good:
                    db.execute("INSERT OR IGNORE INTO erased VALUES (?)", (answer.id,))

    def uncopied(self) -> list[Answer]:
        """Return the answers whose files are still to be copied."""
        return self.answers("id IN (SELECT id FROM uncopied)")

    def copied(self, done: Iterable[Answer]) -> None:
        """Remember that the files of answers are here, or never will be."""
        with self.cursor.transaction() as db:
            for answer in done:
                db.execute("DELETE FROM uncopied WHERE id = ?", (answer.id,))
                db.execute("INSERT OR IGNORE INTO dirty VALUES (?)", (answer.day,))

    def put(self, name: str, source: BinaryIO, size: int, sha256: str) -> bool:
        """Put a file beside the database, if it is the one that a record tells of; return whether it is.

        Args:
            name: what it is called, one of `files_in`.
            source: where it is read from, in parts: a form may take files of a GB.
            size: its bytes.
            sha256: its digest, hexadecimal.

        Raises:
            OSError: it cannot be read or written.
        """
        temporary = f"{self.files_dir}/{files.temporary_name(name)}"
        digest, left = hashlib.sha256(), size
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as target:
            try:
                while chunk := source.read(min(left + 1, COPIED_BYTES)):
                    digest.update(chunk)
                    target.write(chunk)
                    left -= len(chunk)
                    if left < 0:
                        break
                is_it = left == 0 and digest.hexdigest() == sha256
                if is_it:
                    target.flush()
                    os.fchmod(target.fileno(), FILE_MODE)
                    os.fsync(target.fileno())
                    os.rename(temporary, f"{self.files_dir}/{name}")
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
        files.sync_directory(self.files_dir)
        return is_it

    def days(self) -> list[str]:
        """Return the days whose results have to be written again."""
        return [day for (day,) in self.db.execute("SELECT day FROM dirty ORDER BY day")]

    def unmailed(self) -> list[tuple[str, list[Answer]]]:
        """Return letters to write: what is new gets the key of one; what an interrupted run gave a key keeps it."""
        with self.cursor.transaction() as db:
            ids = [one for (one,) in db.execute("SELECT id FROM answers WHERE letter = '' ORDER BY id")]
            if ids:
                key = hashlib.sha256("/".join(ids).encode()).hexdigest()[:32]
                db.executemany("UPDATE answers SET letter = ? WHERE id = ?", [(key, one) for one in ids])
        keys = self.db.execute(
            "SELECT DISTINCT letter FROM answers WHERE letter != '' AND letter NOT IN (SELECT key FROM letters)"
        ).fetchall()
        return [(key, self.answers("letter = ?", (key,))) for (key,) in keys]

    def mailed(self, key: str) -> None:
        """Remember that a letter is queued."""
        with self.cursor.transaction() as db:
            db.execute("INSERT OR IGNORE INTO letters VALUES (?)", (key,))


def all_names(settings: Settings) -> list[str]:
    """Return the names of all forms that there are answers of, whether they are declared still or not."""
    found = glob.glob("*/answers.sqlite", root_dir=f"{settings['site']['state_dir']}/forms")
    return sorted(path.partition("/")[0] for path in found)


@contextmanager
def opened(name: str, settings: Settings) -> Iterator[Book]:
    """Open the database of a form, made if missing, and close it at the end.

    Only one run does so at a time: writes beside it that are not finished are those of one that was killed, and go.

    Raises:
        UnavailableError: it cannot be opened.
    """
    top = f"{settings['site']['state_dir']}/forms/{name}"
    try:
        for directory in (os.path.dirname(top), top, top + "/files"):
            files.make_directories(directory, DIRECTORY_MODE)
        for directory in (top, top + "/files"):
            for left in filter(files.is_temporary, os.listdir(directory)):
                os.unlink(f"{directory}/{left}")
    except OSError as error:
        raise UnavailableError(f"cannot make {top}: {reason(error)}") from error
    with cursor.opened(top + "/answers.sqlite", SCHEMA) as position:
        position.db.execute("PRAGMA secure_delete = ON")
        os.chmod(top + "/answers.sqlite", FILE_MODE)
        yield Book(position, top)


def sent_files(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a record says of the files that came with it."""
    return [told for value in record.values() for told in files_in(value, record["id"])]


def files_in(value: Any, record_id: str) -> list[dict[str, Any]]:
    """Return the files that one answer of a record tells of."""
    return [told for told in value if _is_file(told, record_id)] if isinstance(value, list) else []


def is_whole(record: dict[str, Any]) -> bool:
    """Tell whether the lists of a record hold nothing but texts, and files as form.cgi tells of them."""
    return all(
        isinstance(item, str) or _is_file(item, record["id"])
        for value in record.values()
        if isinstance(value, list)
        for item in value
    )


def _is_file(told: Any, record_id: str) -> bool:
    """Tell whether an entry tells of a file by a name that form.cgi gives.

    The web server's user wrote it, and the file owner opens, sends, publishes and removes what is called so: a name
    is of this record alone, leads nowhere, and ends as its type does.
    """
    if not isinstance(told, dict) or not all(isinstance(told.get(key), str) for key in _FILE_TEXTS):
        return False
    name, size = told["file"], told.get("bytes")
    return (
        name.startswith(record_id + "-")
        and names.is_name(name, names.COMPONENT_LIMIT_BYTES)
        and name.endswith(TYPES.get(told["type"], "/"))
        and isinstance(size, int)
        and not isinstance(size, bool)
        and 0 <= size <= UPLOAD_KB_MOST * 1024
    )


def remove_file(path: str) -> bool:
    """Remove a file; return whether it was there.

    Raises:
        UnavailableError: it cannot be removed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UnavailableError(f"cannot remove {path}: {reason(error)}") from error
    return True
