# SPDX-License-Identifier: Apache-2.0
"""Drop what the batch host has read: the last step in a record's life, taken by its owner on its own server.

A segment goes when its day has ended more than `keep_days` ago and a mark covers all of it; a last line without
its end was torn by a crash, was never acknowledged, and keeps nothing. It is looked at and unlinked under the
application's lock, so no writer can add to it in between. Of a queue, each element that a mark names goes when it is
as old as that, and what died in it is purged.

An entry, one record a file, ``<app>/<id>.json``, goes in the same way, its day being that of the file's time. What
came with records, in ``<app>.files/``, goes when no record names it any more and it is older than a day; so do
writes in both that were not finished.
"""

import calendar
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from infocluster import files
from infocluster.errors import InfoclusterError, reason
from infocluster.gather import collect
from infocluster.gather.marks import Mark
from infocluster.locks import lockfile
from infocluster.queue import simple
from infocluster.queue.simple import Simple

DAY_S = 86400


def sweep(
    directory: str,
    app: str,
    marks: list[Mark],
    keep_days: int,
    now: float,
    lock_timeout_s: float,
    say: Callable[[str], None],
    fault: Callable[[str], None],
) -> int:
    """Unlink the segments of one application that are read and old enough.

    Args:
        directory: this server's gather directory.
        app: the application.
        marks: how far the batch host has read it.
        keep_days: days that a segment stays after its day.
        now: Unix time, s.
        lock_timeout_s: seconds to wait for the writers' lock.
        say: told of each segment that was dropped.
        fault: told of each that could not be.

    Returns:
        How many were dropped.
    """
    dropped = _sweep_queue(f"{directory}/{app}", app, marks, now - keep_days * DAY_S, say, fault)
    covered = {(mark.segment, mark.first_id): mark.offset for mark in marks if mark.app == app}
    top = f"{directory}/{app}"
    try:
        segments = sorted(name for name in os.listdir(top) if name.endswith((".jsonl", ".json")))
    except FileNotFoundError:
        return dropped
    for segment in segments:
        try:
            ended = _end_of_day(segment) if segment.endswith(".jsonl") else os.stat(f"{top}/{segment}").st_mtime
        except FileNotFoundError:
            continue
        if ended is None or now < ended + keep_days * DAY_S:
            continue
        try:
            with lockfile.hold(f"{top}.lock", timeout_s=lock_timeout_s):
                if _is_covered(f"{top}/{segment}", segment, covered):
                    os.unlink(f"{top}/{segment}")
                    dropped += 1
                    say(f"drop {app}/{segment}")
        except OSError as error:
            fault(f"cannot drop {top}/{segment}: {reason(error)}")
        except InfoclusterError as error:
            fault(str(error))
    _sweep_unfinished(top, now, say, fault)
    _sweep_files(top, now, say, fault)
    return dropped


def _sweep_unfinished(top: str, now: float, say: Callable[[str], None], fault: Callable[[str], None]) -> None:
    """Unlink entries that were never finished: nobody was told that they are kept."""
    try:
        for one in os.scandir(top):
            if files.is_temporary(one.name) and one.stat(follow_symlinks=False).st_mtime < now - DAY_S:
                os.unlink(one.path)
                say(f"drop {os.path.basename(top)}/{one.name}")
    except OSError as error:
        fault(f"cannot sweep {top}: {reason(error)}")


def _sweep_files(top: str, now: float, say: Callable[[str], None], fault: Callable[[str], None]) -> None:
    """Unlink what came with records that are dropped, or with none."""
    directory = top + ".files"
    try:
        found = [one for one in os.scandir(directory) if one.stat(follow_symlinks=False).st_mtime < now - DAY_S]
        old = {os.fsencode(one.name) for one in found}
        for path in _files_below(top) if old else ():
            with suppress(FileNotFoundError), open(path, "rb") as file:  # somebody may consume it meanwhile
                for line in file:
                    # A name that form.cgi gives stands in JSON as it is, between quotes.
                    old.difference_update(line.split(b'"'))
        for name in sorted(map(os.fsdecode, old)):
            os.unlink(f"{directory}/{name}")
            say(f"drop {os.path.basename(directory)}/{name}")
    except FileNotFoundError:
        return
    except OSError as error:
        fault(f"cannot sweep {directory}: {reason(error)}")


def _files_below(top: str) -> Iterator[str]:
    """Yield the plain files of an application: segments, entries, elements of its queue."""
    for entry in os.scandir(top):
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path


def _sweep_queue(
    top: str,
    app: str,
    marks: list[Mark],
    before: float,
    say: Callable[[str], None],
    fault: Callable[[str], None],
) -> int:
    """Remove the elements that are read and older than a time, purge the queue, and return how many went."""
    if not os.path.isdir(top):
        return 0
    queue, dropped = Simple(top), 0
    try:
        for mark in marks:
            name = mark.segment
            if mark.app != app or not simple.is_name(name) or int(name[9:17], 16) > before:
                continue
            try:
                first_id = collect.first_id(files.read(f"{top}/{name}").removesuffix(b"\n"))
            except FileNotFoundError:
                continue
            # Another server's element may have this name.
            if first_id != mark.first_id:
                continue
            if queue.lock(name) and queue.remove(name):
                dropped += 1
                say(f"drop {app}/{name}")
        queue.purge()
    except OSError as error:
        fault(f"cannot sweep {top}: {reason(error)}")
    except InfoclusterError as error:
        fault(str(error))
    return dropped


def _is_covered(path: str, segment: str, covered: dict[tuple[str, str], int]) -> bool:
    with open(path, "rb") as file:
        first = file.readline()
        if not first.endswith(b"\n"):
            return False
        offset = covered.get((segment, collect.first_id(first[:-1])))
        if offset is None or offset > os.fstat(file.fileno()).st_size:
            return False
        file.seek(offset)
        return not file.readline().endswith(b"\n")


def _end_of_day(segment: str) -> float | None:
    if not collect.is_segment(segment):
        return None
    return calendar.timegm(time.strptime(collect.day_of(segment), "%Y-%m-%d")) + DAY_S
