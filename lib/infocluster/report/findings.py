# SPDX-License-Identifier: Apache-2.0
"""What a nightly job found, left in a file until mail-report has written it into a letter.

Shape: ``STATE_DIR/findings/survey-nightly-20261122T031500.250000Z-9f86d0818e3a.json``: job, time (UTC) and a random
    part name the file, which is UTF-8 JSON, such as
    ``{"job":"survey-nightly","time":1795317300.25,"title":"Browser survey","lines":["12 visits on 2 servers."],
    "tables":[{"title":"Browsers","head":["browser","visits"],"rows":[["Firefox",7],["Other",5]]}],
    "faults":["cannot read web3: no such directory"],"links":["https://www.example.org/survey/"]}``

    ``lines`` and ``faults`` are sentences; each row has a cell, a text or a number, for each text in ``head``; a link
    is an http or https address. Fields that are not named here are passed over.

A finding appears under its name whole and durable. A file that is none (torn, or somebody else's) is
reported, each time, and left where it is.

Source: RFC 8259 (JSON).
"""

import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from infocluster import files, names
from infocluster.errors import BadInputError, UnavailableError, reason

SUFFIX = ".json"
DIRECTORY_MODE = 0o750
FILE_MODE = 0o640
LIMIT_BYTES = 16 << 20
"""A file larger than this is no finding; a letter could not carry it."""

Cell = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under a head; every row is as long as the head."""

    title: str = ""
    head: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one run of a job has to tell."""

    job: str
    time: float
    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The findings that wait, by file name, in the order of their time; and a sentence for each file that is none."""

    found: dict[str, Finding]
    faults: list[str]


def directory(state_dir: str) -> str:
    """Return where findings wait."""
    return state_dir + "/findings"


def leave(state_dir: str, job: str, finding: Mapping[str, Any], time_s: float | None = None) -> str:
    """Leave a finding for mail-report, durable when the call returns, and return its file.

    Args:
        state_dir: the site's state directory.
        job: the program that found it.
        finding: ``title``, and what there is of ``lines``, ``tables``, ``faults`` and ``links``.
        time_s: when, in Unix seconds; by default now.

    Raises:
        UsageError: the job's name is no name.
        BadInputError: the finding is not in the form above.
        UnavailableError: it cannot be written.
    """
    now = time.time() if time_s is None else time_s
    whole = {**_encodable(finding), "job": names.name(job, "the name of a job"), "time": now}
    try:
        if unknown := sorted(set(whole) - set(Finding.__slots__)):
            raise msgspec.ValidationError(f"there is no field {names.shown(unknown[0])}")
        content = msgspec.json.encode(_checked(msgspec.convert(whole, Finding)))
    except msgspec.ValidationError as error:
        raise BadInputError(f"cannot leave a finding of {job}: {error}") from error
    stamp = datetime.fromtimestamp(now, UTC)
    path = f"{directory(state_dir)}/{job}-{stamp:%Y%m%dT%H%M%S.%fZ}-{os.urandom(6).hex()}{SUFFIX}"
    try:
        files.make_directories(directory(state_dir), DIRECTORY_MODE)
        files.replace(path, content, FILE_MODE)
    except OSError as error:
        raise UnavailableError(f"cannot leave a finding in {path}: {reason(error)}") from error
    return path


def waiting(state_dir: str) -> Waiting:
    """Return the findings that wait.

    Raises:
        UnavailableError: the directory cannot be read.
    """
    where = directory(state_dir)
    try:
        present = sorted(name for name in os.listdir(where) if name.endswith(SUFFIX) and not files.is_temporary(name))
    except FileNotFoundError:
        present = []
    except OSError as error:
        raise UnavailableError(f"cannot read {where}: {reason(error)}") from error
    found: dict[str, Finding] = {}
    faults = []
    for name in present:
        try:
            found[name] = _read(f"{where}/{name}")
        except OSError as error:
            faults.append(f"cannot read {where}/{name}: {reason(error)}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            faults.append(f"cannot use {where}/{name} as a finding: {error}; it stays until somebody removes it")
    return Waiting(dict(sorted(found.items(), key=lambda item: (item[1].time, item[0]))), faults)


def forget(state_dir: str, forgotten: Iterable[str]) -> None:
    """Remove findings by their file names; one that is gone already is no error.

    Raises:
        UnavailableError: one cannot be removed.
    """
    where = directory(state_dir)
    try:
        for name in forgotten:
            try:
                os.unlink(f"{where}/{os.path.basename(name)}")
            except FileNotFoundError:
                continue
        files.sync_directory(where)
    except OSError as error:
        raise UnavailableError(f"cannot remove findings in {where}: {reason(error)}") from error


def _encodable(value: Any) -> Any:
    """Return a value with every text in it as UTF-8 can hold it: bytes that a path brought along become escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


def _read(path: str) -> Finding:
    if not os.path.basename(path).isascii():
        raise msgspec.ValidationError("its name is none of ours")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > LIMIT_BYTES:
        raise msgspec.ValidationError(f"expected a file of at most {LIMIT_BYTES} bytes")
    return _checked(msgspec.json.decode(files.read(path), type=Finding))


def _checked(finding: Finding) -> Finding:
    """Return a finding if it holds to what its types cannot say."""
    for table in finding.tables:
        if any(len(row) != len(table.head) for row in table.rows):
            raise msgspec.ValidationError(f"a row of the table {names.shown(table.title)} is not as long as its head")
    for link in finding.links:
        if not link.startswith(("http://", "https://")) or not link.isprintable() or " " in link:
            raise msgspec.ValidationError(f"the link {names.shown(link)} is no http or https address")
    try:
        datetime.fromtimestamp(finding.time, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise msgspec.ValidationError(f"the time {finding.time} is none") from error
    return finding
