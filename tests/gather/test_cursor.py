# SPDX-License-Identifier: Apache-2.0
"""Positions and results are committed together or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from infocluster.errors import UnavailableError
from infocluster.gather import cursor
from infocluster.gather.cursor import Position

RESULTS = "CREATE TABLE IF NOT EXISTS results (n INTEGER)"
HERE = Position("web1", "www", "app", "2026-11-21.jsonl", "a", 100, "0" * 8)


def test_position_and_result_are_committed_together(tmp_path: Path) -> None:
    file = str(tmp_path / "state/app.sqlite")
    with cursor.opened(file, RESULTS) as position, position.transaction() as db:
        db.execute("INSERT INTO results VALUES (1)")
        position.advance(HERE)
    with cursor.opened(file, RESULTS) as position:
        assert position.positions("app", "www") == {("web1", "2026-11-21.jsonl", "a"): HERE}
        assert position.db.execute("SELECT n FROM results").fetchall() == [(1,)]


def test_error_inside_takes_both_back(tmp_path: Path) -> None:
    file = str(tmp_path / "app.sqlite")
    with cursor.opened(file, RESULTS) as position:
        with pytest.raises(ZeroDivisionError), position.transaction() as db:
            db.execute("INSERT INTO results VALUES (1)")
            position.advance(HERE)
            _ = 1 / 0
        assert position.positions("app", "www") == {}
        assert position.db.execute("SELECT count(*) FROM results").fetchone() == (0,)


def test_process_killed_inside_a_transaction_leaves_nothing(tmp_path: Path) -> None:
    file = str(tmp_path / "app.sqlite")
    code = (
        "import os, sys; from infocluster.gather import cursor; from infocluster.gather.cursor import Position\n"
        f"with cursor.opened({file!r}, {RESULTS!r}) as position, position.transaction() as db:\n"
        f"    db.execute('INSERT INTO results VALUES (1)'); position.advance({HERE!r}); os.kill(os.getpid(), 9)\n"
    )
    lib = str(Path(cursor.__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": lib}, check=False).returncode == -9
    with cursor.opened(file, RESULTS) as position:
        assert position.positions("app", "www") == {}
        assert position.db.execute("SELECT count(*) FROM results").fetchone() == (0,)


def test_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "app.sqlite").write_bytes(b"not a database, " * 100)
    with pytest.raises(UnavailableError, match=r"app\.sqlite"), cursor.opened(str(tmp_path / "app.sqlite")):
        pass
