# SPDX-License-Identifier: Apache-2.0
"""Run a program of ours and kill it before its Nth step that the disk or another process could see.

Usage: killer.py N FD PROGRAM [ARGUMENT...]

With N = -1 it runs to its end and writes the number of its steps, as a line, to the descriptor FD.
"""

import _posixsubprocess
import os
import posix
import runpy
import signal
import sqlite3
import sys
from typing import Any

STEPS = ("fsync", "rename", "link", "unlink", "mkdir", "utime", "posix_spawn", "fchmod")
seen = 0


def step() -> None:
    global seen
    if seen == limit:
        os.kill(os.getpid(), signal.SIGKILL)
    seen += 1


def counted(function: Any, matters: Any = None) -> Any:
    def call(*arguments: Any, **more: Any) -> Any:
        if matters is None or matters(*arguments):
            step()
        return function(*arguments, **more)

    return call


def leave(function: Any) -> Any:
    def call(status: int) -> None:
        if limit < 0:
            os.write(told, f"{seen}\n".encode())
        function(status)

    return call


class Counted(sqlite3.Connection):
    """A connection whose commits are steps: the library makes them durable where no call of ours is seen."""

    def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            step()
        return super().execute(sql, *more)


def connect(*arguments: Any, **more: Any) -> sqlite3.Connection:
    return Counted(*arguments, **more)


limit, told = int(sys.argv[1]), int(sys.argv[2])
for name in STEPS:
    wrapped = counted(getattr(posix, name))
    setattr(posix, name, wrapped)
    setattr(os, name, wrapped)
posix.open = os.open = counted(posix.open, lambda _path, flags, *_: flags & os.O_CREAT)
_posixsubprocess.fork_exec = counted(_posixsubprocess.fork_exec)
sqlite3.connect = connect  # type: ignore[assignment]
posix._exit = leave(posix._exit)
sys.argv = sys.argv[3:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if limit < 0:
        os.write(told, f"{seen}\n".encode())
