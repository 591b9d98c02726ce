# SPDX-License-Identifier: Apache-2.0
"""How far each gathered file has been read, in the same SQLite database as what came of reading it.

One transaction commits results and positions together, so a night that is killed has read nothing, and a night
that is run twice counts nothing twice.

Shape: table ``positions``, one row a segment: ``server, host, app, segment, first_id, offset, tail``, such as
    ``web1, www, survey, 2026-11-22.jsonl, 5f0c2a9be7d14c33, 4096, 9c1f3a02``.
    A segment is known by its name and `first_id`, never by inode or mtime, so that a position survives a change
    from NFS to a copy of the files. ``offset`` is in bytes and stands behind an end of line; ``tail`` is the CRC-32
    of the (up to) 256 bytes before it, by which a file that changed behind us is noticed.

Source: SQLite, atomic commit; zlib.crc32.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infocluster import databases

_SCHEMA = """
CREATE TABLE IF NOT EXISTS positions (
    server TEXT NOT NULL, host TEXT NOT NULL, app TEXT NOT NULL, segment TEXT NOT NULL, first_id TEXT NOT NULL,
    offset INTEGER NOT NULL, tail TEXT NOT NULL,
    PRIMARY KEY (server, host, app, segment, first_id)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Position:
    """How far one segment was read."""

    server: str
    host: str
    app: str
    segment: str
    first_id: str
    offset: int
    tail: str


class Cursor:
    """An open database of positions and results; made by `opened`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def positions(self, app: str, host: str) -> dict[tuple[str, str, str], Position]:
        """Return how far an application was read, by (server, segment, first_id)."""
        rows = self.db.execute(
            "SELECT server, host, app, segment, first_id, offset, tail FROM positions WHERE app = ? AND host = ?",
            (app, host),
        )
        return {(row[0], row[3], row[4]): Position(*row) for row in rows}

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit results and positions together; see `databases.transaction`.

        Raises:
            UnavailableError: nothing of it was done.
        """
        with databases.transaction(self.db) as db:
            yield db

    def advance(self, position: Position) -> None:
        """Remember, inside a transaction, how far a segment was read."""
        self.db.execute(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                position.server,
                position.host,
                position.app,
                position.segment,
                position.first_id,
                position.offset,
                position.tail,
            ),
        )

    def forget(self, app: str, host: str, keys: Iterable[tuple[str, str, str]]) -> None:
        """Forget, inside a transaction, files that are gone for good, by (server, segment, first_id)."""
        self.db.executemany(
            "DELETE FROM positions WHERE app = ? AND host = ? AND server = ? AND segment = ? AND first_id = ?",
            [(app, host, *key) for key in keys],
        )


@contextmanager
def opened(file: str, schema: str = "") -> Iterator[Cursor]:
    """Open the database of an application, made if missing, and close it at the end.

    Args:
        file: its path, on a local disk; its directory is made if missing.
        schema: SQL of the tables for results, each ``CREATE TABLE IF NOT EXISTS``.

    Raises:
        UnavailableError: it cannot be opened, or is no database.
    """
    with databases.opened(file, _SCHEMA + ";" + schema) as connection:
        yield Cursor(connection)
