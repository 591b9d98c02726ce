# SPDX-License-Identifier: Apache-2.0
"""gather-query: SQL over what all servers gathered, by DuckDB, an optional package.

Each application is a table of its name, such as ``survey`` or ``"form-signup"``; its columns are ``server``,
``host``, ``app``, ``segment`` and the fields of its records (``id``, ``time`` in Unix seconds, ...). Its records are
those of segments, of entries (a file each) and of a queue, as far as they are still there: what a night consumed of a
queue is not. A line that is no record is passed over, as is one that is not whole yet, and an element of a queue that
holds something else. Of an answer to a form that was sent twice, the earlier one is the row. The query may read these
files, and nothing else here; only those of applications that it names are looked at, or all if it names none.

Source: DuckDB documentation, "JSON Loading", "Securing DuckDB".
"""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from infocluster import names
from infocluster.apps import forms
from infocluster.cron.command import Run
from infocluster.errors import BadInputError, ConfigError, UnavailableError, UsageError, reason
from infocluster.queue.simple import Simple
from infocluster.report import plain

ROWS_AT_ONCE = 1000


def work(run: Run) -> str:
    """Run the query, and print what it finds as a table, CSV or JSON.

    Raises:
        ConfigError: DuckDB is not installed.
        BadInputError: the query is wrong.
        UsageError: two forms of output are asked for.
        UnavailableError: the gather directory cannot be read, or nothing can be written.
        KeyboardInterrupt: a signal came.
    """
    if run.arguments["csv"] and run.arguments["json"]:
        raise UsageError("cannot print -csv and -json at once")
    try:
        import duckdb
    except ImportError:
        raise ConfigError("cannot query: the package duckdb is not installed (extra 'query')") from None
    gather = run.settings["gather"]
    with duckdb.connect(":memory:") as db:
        try:
            db.execute("SET allowed_directories = ?", [[gather["gather_dir"]]])
            db.execute("SET enable_external_access = false")
            for app, found in sorted(
                _segments(gather["gather_dir"], gather["host"], str(run.arguments["sql"])).items()
            ):
                try:
                    db.execute(_view(app, gather["gather_dir"], gather["host"], found))
                except duckdb.Error as error:
                    run.fault(f"cannot make a table of {app}: {_said(error)}")
            db.execute("SET lock_configuration = true")
            # Of nothing but a comment, what comes back is nothing, whatever the library's types say.
            done: Any = db.execute(str(run.arguments["sql"]))
            if done is None:
                raise BadInputError("cannot query: there is no SQL in it")
            if done.description is None:
                return ""
            head = [column[0] for column in done.description]
            rows = iter(lambda: done.fetchmany(ROWS_AT_ONCE), [])
            _print(run, head, (row for several in rows for row in several))
        except duckdb.Error as error:
            raise BadInputError(f"cannot query: {_said(error)}") from error
        except RuntimeError as error:
            # So the library tells of a signal, and of nothing else.
            raise KeyboardInterrupt from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UnavailableError(f"cannot write to the standard output: {reason(error)}") from error
    return ""


def _said(error: Exception) -> str:
    """Return what DuckDB says, in one line, without the mark below the place."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line.strip("^"))


def _segments(gather_dir: str, host: str, sql: str) -> dict[str, list[str]]:
    """Return the path of every segment, entry and element of a queue, by application.

    Args:
        gather_dir: where the servers' directories are seen.
        host: the HOST part of the path.
        sql: the query.

    Raises:
        UnavailableError: the directory cannot be read.
    """
    result: dict[str, list[str]] = {}
    try:
        tops = [
            f"{gather_dir}/{server}/{host}/{app}"
            for server in sorted(filter(names.is_name, os.listdir(gather_dir)))
            if os.path.isdir(f"{gather_dir}/{server}/{host}")
            for app in sorted(filter(names.is_name, os.listdir(f"{gather_dir}/{server}/{host}")))
            if os.path.isdir(f"{gather_dir}/{server}/{host}/{app}")
        ]
        # To make a table is to look through all of its records, for their fields.
        named = [top for top in tops if os.path.basename(top).casefold() in sql.casefold()]
        for top in named or tops:
            found = [f"{top}/{name}" for name in sorted(os.listdir(top)) if _is_ours(name)]
            some = [path for path in found if os.path.getsize(path)]
            some += [path for path in (f"{top}/{name}" for name in Simple(top)) if _holds_a_record(path)]
            if some:
                result.setdefault(os.path.basename(top), []).extend(some)
    except OSError as error:
        raise UnavailableError(f"cannot read {error.filename or gather_dir}: {reason(error)}") from error
    return result


def _is_ours(name: str) -> bool:
    return name.endswith((".jsonl", ".json")) and names.is_name(name)


def _holds_a_record(path: str) -> bool:
    """Tell whether an element of a queue begins as a record does; one that is gone by now holds none."""
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"{"
    except FileNotFoundError:
        return False


def _view(app: str, gather_dir: str, host: str, paths: Sequence[str]) -> str:
    """Return the SQL that makes an application a table."""
    listed = ", ".join(_text(path) for path in paths)
    below = f"string_split(substr(_path, {len(gather_dir) + 2}), '/')"
    name = '"' + app.replace('"', '""') + '"'
    once = ""
    if app.startswith(forms.app_of("")):
        once = " QUALIFY row_number() OVER (PARTITION BY id ORDER BY time, _path) = 1"
    return (
        f"CREATE VIEW {name} AS SELECT {below}[1] AS server, "  # noqa: S608 - quoted by _text
        f"{_text(host)} AS host, {_text(app)} AS app, "
        f"array_to_string({below}[4:], '/') AS segment, * EXCLUDE (_path) FROM read_json("
        f"[{listed}], format = 'newline_delimited', filename = '_path', union_by_name = true, ignore_errors = true, "
        "sample_size = -1, map_inference_threshold = -1) WHERE id IS NOT NULL" + once
    )


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _print(run: Run, head: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    if run.arguments["csv"]:
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(head)
        out.writerows(rows)
    elif run.arguments["json"]:
        for row in rows:
            print(json.dumps(dict(zip(head, row, strict=True)), ensure_ascii=False, default=str))
    else:
        for line in _aligned(head, [[_cell(value) for value in row] for row in rows]):
            run.say(line)


def _cell(value: Any) -> str:
    return "" if value is None else names.printable(str(value))


def _aligned(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(plain.columns, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [text + " " * (width - plain.columns(text)) for text, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()
