# SPDX-License-Identifier: Apache-2.0
"""What the controller remembers: one SQLite database, in which a report and what came of it are committed together.

Shape: STATE_DIR/aggregate/aggregate.sqlite has the tables

    ==============  ============================================================================================
    ``seen``        elements of the servers' queues that were read: server, directory, name
    ``taken``       ids that took effect: src, id, and the day (Unix days) of it
    ``saved``       what an aggregator keeps through saveData: class, part, MessagePack
    ``nodes``       when a node was first and last heard of, its period (s), how many reports, whether it is gray
    ``counts``      how many messages were taken, and how many were not, by reason
    ``aside``       reports that an aggregator could not take: when it came, which one, why, the message
    ``updates``     updates by their revision: when, type, JSON, protobuf
    ``meta``        the epoch: a name for this database, so that another one's revisions are told apart
    ==============  ============================================================================================

Source: SQLite, atomic commit and AUTOINCREMENT (a number is never given twice); MessagePack specification.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from infocluster import databases

DAY_S = 86400
_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    server TEXT NOT NULL, directory TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (server, directory, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (
    src TEXT NOT NULL, id TEXT NOT NULL, day INTEGER NOT NULL, PRIMARY KEY (src, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS taken_day ON taken (day);
CREATE TABLE IF NOT EXISTS saved (
    name TEXT NOT NULL, part TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (name, part)
);
CREATE TABLE IF NOT EXISTS nodes (
    name TEXT PRIMARY KEY, first REAL NOT NULL, last REAL NOT NULL, period REAL NOT NULL, reports INTEGER NOT NULL,
    gray INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (reason TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS aside (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, module TEXT NOT NULL, reason TEXT NOT NULL,
    message BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS updates (
    revision INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, type TEXT NOT NULL, json BLOB NOT NULL, pb BLOB
);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Node(NamedTuple):
    """A node that was heard of; times are Unix seconds."""

    name: str
    first: float
    last: float
    period: float
    reports: int
    gray: bool

    def is_silent(self, now: float) -> bool:
        """Tell whether it has been silent for longer than it said."""
        return now - self.last > self.period


class Aside(NamedTuple):
    """A report that an aggregator could not take."""

    number: int
    time: float
    module: str
    reason: str
    message: bytes


class Update(NamedTuple):
    """An update; `json` is its data as JSON, `pb` as protobuf where it has such a form."""

    revision: int
    time: float
    type: str
    json: bytes
    pb: bytes | None


class Store:
    """An open database; made by `opened`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.db.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (os.urandom(6).hex(),))
        self.epoch: str = self.db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done inside together, or nothing of it.

        Raises:
            UnavailableError: the database is locked, full or out of reach; nothing of it was done.
        """
        with databases.transaction(self.db):
            yield

    def save(self, name: str, part: str, data: Any) -> None:
        """Keep what an aggregator gives.

        Raises:
            TypeError: MessagePack has no form for it.
        """
        try:
            packed = msgspec.msgpack.encode(data)
        except (OverflowError, RecursionError, ValueError) as error:
            raise TypeError(f"cannot keep this: {error}") from error
        self.db.execute("INSERT OR REPLACE INTO saved VALUES (?, ?, ?)", (name, part, packed))

    def restore(self, name: str, part: str, default: Any) -> Any:
        """Return what was kept last under a name."""
        row = self.db.execute("SELECT data FROM saved WHERE name = ? AND part = ?", (name, part)).fetchone()
        return default if row is None else msgspec.msgpack.decode(row[0], strict=False)

    def parts(self, name: str) -> list[str]:
        """Return the parts that an aggregator kept."""
        rows = self.db.execute("SELECT part FROM saved WHERE name = ? AND part <> '' ORDER BY part", (name,))
        return [row[0] for row in rows]

    def seen(self, server: str, directory: str) -> set[str]:
        """Return which elements of a directory were read."""
        rows = self.db.execute("SELECT name FROM seen WHERE server = ? AND directory = ?", (server, directory))
        return {row[0] for row in rows}

    def see(self, server: str, directory: str, name: str) -> None:
        """Remember that an element was read."""
        self.db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (server, directory, name))

    def forget(self, present: set[tuple[str, str]], servers: set[str]) -> None:
        """Forget the elements of directories that are gone.

        Args:
            present: the directories there are, as (server, directory).
            servers: whose queues can be seen; those of another one are perhaps only out of reach.
        """
        known = self.db.execute("SELECT DISTINCT server, directory FROM seen").fetchall()
        gone = [pair for pair in known if tuple(pair) not in present and pair[0] in servers]
        self.db.executemany("DELETE FROM seen WHERE server = ? AND directory = ?", gone)

    def take(self, src: str, message_id: str, now: float) -> bool:
        """Remember an id; return False where it took effect before."""
        done = self.db.execute("INSERT OR IGNORE INTO taken VALUES (?, ?, ?)", (src, message_id, int(now // DAY_S)))
        return done.rowcount == 1

    def forget_ids(self, now: float, keep_days: int) -> None:
        """Forget ids that no report may come with any more."""
        self.db.execute("DELETE FROM taken WHERE day < ?", (int(now // DAY_S) - keep_days - 1,))

    def count(self, reason: str) -> None:
        """Count a message."""
        self.db.execute(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT (reason) DO UPDATE SET n = n + 1",
            (reason,),
        )

    def counts(self) -> dict[str, int]:
        """Return how many messages were counted, by reason."""
        return dict(self.db.execute("SELECT reason, n FROM counts ORDER BY reason").fetchall())

    def hear(self, name: str, when: float, period: float) -> None:
        """Note that a node was heard of."""
        self.db.execute(
            "INSERT INTO nodes VALUES (?, ?, ?, ?, 1, 0) ON CONFLICT (name) DO UPDATE SET"
            " period = CASE WHEN excluded.last >= last THEN excluded.period ELSE period END,"
            " last = MAX(last, excluded.last), reports = reports + 1",
            (name, when, when, period),
        )

    def nodes(self) -> list[Node]:
        """Return all nodes by name."""
        rows = self.db.execute("SELECT name, first, last, period, reports, gray FROM nodes ORDER BY name")
        return [Node(row[0], row[1], row[2], row[3], row[4], bool(row[5])) for row in rows]

    def turn(self, now: float) -> list[str]:
        """Note which nodes are gray now, and return those that were not what they are."""
        turned = [node for node in self.nodes() if node.is_silent(now) != node.gray]
        self.db.executemany("UPDATE nodes SET gray = NOT gray WHERE name = ?", [(node.name,) for node in turned])
        return [node.name for node in turned]

    def set_aside(self, came: float, module: str, reason: str, message: bytes, limit: int) -> None:
        """Keep a report that an aggregator could not take, and forget the oldest over a limit."""
        self.db.execute(
            "INSERT INTO aside (time, module, reason, message) VALUES (?, ?, ?, ?)", (came, module, reason, message)
        )
        self.db.execute("DELETE FROM aside WHERE number <= (SELECT MAX(number) FROM aside) - ?", (limit,))

    def aside(self) -> list[Aside]:
        """Return the reports that were set aside, the oldest first."""
        return [Aside(*row) for row in self.db.execute("SELECT * FROM aside ORDER BY number")]

    def clear_aside(self, number: int) -> None:
        """Forget a report that was set aside."""
        self.db.execute("DELETE FROM aside WHERE number = ?", (number,))

    def tell(self, now: float, kind: str, json: bytes, pb: bytes | None, limit: int, limit_bytes: int) -> int:
        """Add an update and return its revision; forget the oldest over a number, and over so many bytes."""
        row = self.db.execute(
            "INSERT INTO updates (time, type, json, pb) VALUES (?, ?, ?, ?) RETURNING revision", (now, kind, json, pb)
        ).fetchone()
        revision = int(row[0])
        self.db.execute("DELETE FROM updates WHERE revision <= ?", (revision - limit,))
        over = self.db.execute(
            "SELECT MAX(revision) FROM (SELECT revision, SUM(LENGTH(json) + COALESCE(LENGTH(pb), 0))"
            " OVER (ORDER BY revision DESC) AS size FROM updates) WHERE size > ?",
            (limit_bytes,),
        ).fetchone()[0]
        if over is not None:
            self.db.execute("DELETE FROM updates WHERE revision <= ?", (min(over, revision - 1),))
        return revision

    def updates(self, since: int = 0) -> list[Update]:
        """Return the updates behind a revision that are kept."""
        rows = self.db.execute(
            "SELECT revision, time, type, json, pb FROM updates WHERE revision > ? ORDER BY revision", (since,)
        )
        return [Update(*row) for row in rows]

    def revision(self) -> int:
        """Return the newest revision, 0 where there is none."""
        return self.span()[1]

    def span(self) -> tuple[int, int]:
        """Return the oldest revision that is kept and the newest, 0 and 0 where there is none."""
        row = self.db.execute("SELECT MIN(revision), MAX(revision) FROM updates").fetchone()
        return (row[0] or 0, row[1] or 0)


@contextmanager
def opened(file: str) -> Iterator[Store]:
    """Open the database, made if missing, and close it at the end.

    Args:
        file: its path, on a local disk; its directory is made if missing.

    Raises:
        UnavailableError: it cannot be opened, or is no database.
    """
    # With a log ahead, a commit is one wait for the disk.
    with databases.opened(file, _SCHEMA, has_log=True) as db:
        yield Store(db)
