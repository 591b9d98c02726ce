# SPDX-License-Identifier: Apache-2.0
"""How far a run has come, shown to a person at a terminal and to nobody else.

Rooms below get `bar` passed in: they know neither terminals nor rich, which is loaded only when there is one.

Source: rich documentation, Progress Display.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BYTES = "bytes"


@contextmanager
def bar(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with its rate on standard error while the context is open, if that is a terminal.

    Args:
        what: what is being done, such as ``"reading"``.
        total: how many there are; None where that is not known.
        unit: what is counted, such as ``"records"``; ``"bytes"`` are shown as kB, MB and so on.

    Returns:
        A context manager that gives ``advance(n)``: n more are done.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.1f} {unit}/s")

    counted: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
    if unit != BYTES:
        counted = (MofNCompleteColumn(), TextColumn(unit, markup=False), Rate())
    shown = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counted,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Lines that a program says meanwhile stand above the bar; a file or a pipe gets its own, untouched.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    with shown:
        task = shown.add_task(what, total=total)
        yield lambda n: shown.advance(task, n)


def _nothing(_n: int) -> None:
    """Show nothing."""
