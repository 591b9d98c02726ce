# SPDX-License-Identifier: Apache-2.0
"""SQLite databases: opened, made where they are missing, and changed in whole transactions only.

Each is one file on a local disk, used by processes of one host. What was committed is on the disk when `transaction`
ends; what was not, by a kill or an error, never was.

Source: SQLite, "Atomic commit", "PRAGMA synchronous", "Write-Ahead Logging".
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from infocluster import files
from infocluster.errors import UnavailableError, reason

DIRECTORY_MODE = 0o750
TIMEOUT_S = 60.0


@contextmanager
def opened(file: str, schema: str = "", has_log: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database, made if missing, and close it at the end.

    Args:
        file: its path, on a local disk; its directory is made if missing.
        schema: SQL of its tables, each ``CREATE TABLE IF NOT EXISTS``.
        has_log: whether a log is written ahead, so that a commit waits for the disk once. Others may then not copy
            the file alone.

    Raises:
        UnavailableError: it cannot be opened, or is no database.
    """
    try:
        files.make_directories(os.path.dirname(file), DIRECTORY_MODE)
        connection = sqlite3.connect(file, isolation_level=None, timeout=TIMEOUT_S)
    except OSError as error:
        raise UnavailableError(f"cannot open {file}: {reason(error)}") from error
    except sqlite3.Error as error:
        raise UnavailableError(f"cannot open {file}: {error}") from error
    with closing(connection):
        try:
            if has_log:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(schema)
        except sqlite3.Error as error:
            raise UnavailableError(f"cannot open {file}: {error}") from error
        yield connection


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit what is done inside together, or nothing of it.

    Raises:
        UnavailableError: the database is locked, full or out of reach; nothing of it was done.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:
        _roll_back(db)
        raise UnavailableError(f"cannot commit to {file_of(db)}: {error}") from error
    except BaseException:
        _roll_back(db)
        raise


def file_of(db: sqlite3.Connection) -> str:
    """Return the path of an open database."""
    return str(db.execute("PRAGMA database_list").fetchone()[2])


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")
