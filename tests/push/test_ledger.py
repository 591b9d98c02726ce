# SPDX-License-Identifier: Apache-2.0
"""Who lacks what, remembered over failures, kills and torn files, and how it is told."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster import trees
from infocluster.errors import UnavailableError
from infocluster.push import ledger, record, status
from infocluster.push.order import Outcome
from infocluster.push.servers import Server
from locks.askers import LIB

SERVERS = [Server(f"web{number}", "web", "ssh", "/srv/www") for number in (1, 2, 3)]
FTP = Server("ftp1", "ftp", "local", "/srv/ftp")


class Book:
    """The ledger of a site, with what it reported."""

    def __init__(self, state: Path) -> None:
        self.state, self.servers, self.reports = str(state), list(SERVERS), []
        self.file = state / "pushes/ledger.json"

    def named(self, names: Iterable[str], paths: tuple[str, ...]) -> list[tuple[Server, tuple[str, ...]]]:
        return [(server, paths) for server in self.servers if server.name in names]

    def failed(self, names: str, *paths: str, now: float = 1000.0) -> None:
        ledger.failed(self.state, self.named(names.split(), paths), self.servers, self.reports.append, now)

    def has(self, names: str, *paths: str, now: float = 1000.0) -> None:
        ledger.has(self.state, self.named(names.split(), paths), self.servers, self.reports.append, now)

    def lacking(self) -> dict[str, list[str]]:
        return ledger.lacking(self.state, self.servers, self.reports.append)

    def since(self, name: str) -> dict[str, float | None]:
        return ledger.since(self.state, self.servers, self.reports.append)[name]

    def everybody_has_everything(self) -> "Book":
        self.has("web1 web2 web3", ledger.ALL)
        assert self.lacking() == {}
        return self


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def test_server_of_which_nothing_is_known_lacks_everything(book: Book) -> None:
    everything = {"web1": [""], "web2": [""], "web3": [""]}
    assert book.lacking() == everything
    assert not book.file.parent.exists()
    book.has("web1", "world", "other")
    assert book.lacking() == everything
    book.has("web1", ledger.ALL)
    assert book.lacking() == {"web2": [""], "web3": [""]}
    book.failed("web2", "world/a", now=2000.0)
    assert book.since("web2") == {"": 1000.0}


def test_push_of_a_directory_covers_what_is_below_and_nothing_else(book: Book) -> None:
    book.everybody_has_everything()
    book.failed("web1 web2", "world/a/x", "world/ab", "other")
    book.has("web1", "world/a")
    assert book.lacking() == {"web1": ["other", "world/ab"], "web2": ["other", "world/a/x", "world/ab"]}
    book.has("web1 web2", "world")
    assert book.lacking() == {"web1": ["other"], "web2": ["other"]}
    book.has("web1", "other/a")
    assert book.lacking()["web1"] == ["other"]
    book.has("web1", ledger.ALL)
    assert book.lacking() == {"web2": ["other"]}


def test_outermost_paths_are_kept_since_the_first_failure(book: Book) -> None:
    book.everybody_has_everything()
    book.failed("web1", "world/a/x", now=2000.0)
    book.failed("web1", "world/b", now=3000.0)
    assert book.since("web1") == {"world/a/x": 2000.0, "world/b": 3000.0}
    book.failed("web1", "world/a", now=4000.0)
    book.failed("web1", "world/a/y", now=5000.0)
    assert book.since("web1") == {"world/a": 2000.0, "world/b": 3000.0}
    book.failed("web1", "", now=6000.0)
    assert book.since("web1") == {"": 2000.0}


NAMES = ("a", "ab", "b")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
WORLD = [f"{a}/{b}/{c}" for a in NAMES for b in NAMES for c in NAMES]


@given(steps=st.lists(st.tuples(st.booleans(), st.lists(PATHS, min_size=1, max_size=3)), max_size=8))
def test_nothing_that_is_lacked_is_ever_forgotten(steps: list[tuple[bool, list[str]]]) -> None:
    """Against a model that knows of each file whether it is lacked."""
    lacks: ledger.Lacks = {}
    files: set[str] = set()
    for is_failed, paths in steps:
        covered = {file for file in WORLD if any(f"{file}/".startswith(f"{path}/") for path in paths)}
        lacks = ledger._with(lacks, paths, 1.0) if is_failed else ledger._without(lacks, paths)
        files = files | covered if is_failed else files - covered
        kept = {file for file in WORLD if any(f"{file}/".startswith(f"{path}/") for path in lacks)}
        assert files <= kept
        assert trees.outermost(lacks) == sorted(lacks, key=lambda path: path.split("/"))
        if is_failed:
            assert covered <= kept
        else:
            assert not any(f"{lack}/".startswith(f"{path}/") for lack in lacks for path in paths)


def test_very_many_paths_become_their_trees(book: Book) -> None:
    book.everybody_has_everything()
    book.failed("web1", "other/first", now=1500.0)
    book.failed("web1", *(f"world/{number}" for number in range(ledger.PATHS_LIMIT)), now=2000.0)
    assert book.since("web1") == {"other": 1500.0, "world": 2000.0}


def test_servers_come_go_and_move(book: Book) -> None:
    book.everybody_has_everything()
    book.failed("web1", "world/a")
    one, two, three = book.servers
    book.servers = [one, two._replace(destination="/new/www"), FTP]
    assert book.lacking() == {"web1": ["world/a"], "web2": [""], "ftp1": [""]}
    book.servers.pop()
    book.has("web2", ledger.ALL)
    assert set(json.loads(book.file.read_text())["web"]) == {"web1", "web2"}
    book.servers.append(three)
    assert book.lacking() == {"web1": ["world/a"], "web3": [""]}


def test_families_do_not_mix(book: Book) -> None:
    book.everybody_has_everything()
    ledger.failed(book.state, [(FTP, ["world"])], [FTP], book.reports.append, 1.0)
    assert book.lacking() == {}
    book.failed("web1", "world/a")
    assert ledger.lacking(book.state, [FTP], book.reports.append) == {"ftp1": [""]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"format": "infocluster ledger 2", "web": {}}',
        b'{"format": "infocluster ledger 1", "web": {"web1": {"where": "ssh:/srv/www", "lacks": ["world"]}}}',
        b'{"format": "infocluster ledger 1", "web": {"web1": {"lacks": {}}}}',
        b'{"format": "infocluster ledger 1", "web": {"web1": {"where": "ssh:/srv/www", "lacks": {}, "due": [7]}}}',
        b'{"format": "infocluster ledger 1", "web": []}',
        b"[" * 100000,
        None,
    ],
)
def test_torn_or_foreign_file_is_told_and_everybody_lacks_everything(book: Book, content: bytes | None) -> None:
    book.everybody_has_everything()
    book.file.write_bytes(book.file.read_bytes()[:-5] if content is None else content)
    assert book.lacking() == {"web1": [""], "web2": [""], "web3": [""]}
    assert book.reports == [
        f"cannot use {book.file}: not a ledger of ours; every server counts as lacking everything"
    ]
    book.has("web2", ledger.ALL)
    assert book.lacking() == {"web1": [""], "web3": [""]}
    assert len(book.reports) == 2


def test_file_that_cannot_be_read_or_written_is_told(book: Book) -> None:
    book.everybody_has_everything()
    book.file.unlink()
    book.file.mkdir()
    with pytest.raises(UnavailableError, match=r"cannot read .*/ledger.json: Is a directory"):
        book.lacking()
    Path(book.state, "file").write_text("")
    book.state += "/file"
    with pytest.raises(UnavailableError, match=r"cannot make .*: Not a directory"):
        book.failed("web1", "world")


def test_file_is_written_only_where_something_changed(book: Book) -> None:
    book.everybody_has_everything()
    before = book.file.stat()
    book.has("web1 web2", "world/a", now=5.0)
    book.failed("", "world")
    assert book.file.stat() == before
    assert oct(before.st_mode & 0o777) == "0o660"
    book.failed("web1", "world")
    assert book.file.stat().st_ino != before.st_ino


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from infocluster.push import ledger
from infocluster.push.servers import Server
servers = [Server(f"web{number}", "web", "ssh", "/srv/www") for number in (1, 2, 3)]
me = servers[int(sys.argv[3])]
for turn in range(100000):
    ledger.failed(sys.argv[2], [(me, [f"world/{turn}"])], servers, print, 1.0)
    print(turn, flush=True)
"""


def test_writers_that_are_killed_lose_nothing_that_was_written(book: Book) -> None:
    book.everybody_has_everything()
    writers = [
        subprocess.Popen(
            [sys.executable, "-I", "-c", WRITER, LIB, book.state, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    said = []
    for number, writer in enumerate(writers):
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(5 + number)]
        writer.kill()
        said.append(int((lines + writer.communicate()[0].splitlines(keepends=True))[-1]))
    lacking = book.lacking()
    for number, last in enumerate(said):
        assert set(lacking[f"web{number + 1}"]) >= {f"world/{turn}" for turn in range(last + 1)}
    assert book.reports == []


def test_path_whose_parent_is_no_directory_any_more_stands_for_that_parent(tmp_path: Path) -> None:
    (tmp_path / "world/a/b").mkdir(parents=True)
    (tmp_path / "world/file").write_text("")
    (tmp_path / "world/link").symlink_to("a")
    paths = ["world/a/b/gone", "world/gone/x", "world/gone/y/z", "world/file/x", "world/link/b", "other/x"]
    assert ledger.standing(str(tmp_path), paths) == [
        "other",
        "world/a/b/gone",
        "world/file",
        "world/gone",
        "world/link",
    ]


# How it is told


def keep(book: Book, started: float, ok: str, failed: str = "", **other: object) -> None:
    outcomes = [Outcome(name) for name in ok.split()]
    outcomes += [Outcome(name, faults=["cannot reach it"]) for name in failed.split()]
    os.makedirs(f"{book.state}/pushes", exist_ok=True)
    record.keep(
        {
            "format": record.FORMAT,
            "program": "wwwpush",
            "kind": "web",
            "user": "jane",
            "pid": 4711,
            "started": started,
            "waited_s": 0.0,
            "duration_s": 0.42,
            "paths": ["world/sample"],
            "show": False,
            "ok": not failed,
            "left": [],
            "servers": [record.of_server(outcome) for outcome in outcomes],
            "changes": record.changes(outcomes, 1000),
        }
        | other,
        f"{book.state}/pushes",
    )


def test_status_tells_the_last_pushes_and_who_lags_behind(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert status.status(book.state, "web", book.servers, 0.0, book.reports.append) == [
            "no push yet",
            "web[1-3]: lack everything, never had a complete push",
        ]
        book.everybody_has_everything()
        keep(book, 1763838251.25, "web1 web2 web3")
        keep(book, 1763838300.0, "ftp1", kind="ftp")
        keep(book, 1763839000.0, "web1", "web2 web3", paths=["world/a", "other"], left=[{"path": "x", "reason": "y"}])
        book.failed("web2 web3", "world/a", "other", now=1763839000.0)
        book.has("web2", "other")
        book.failed("web3", "world/b", now=1763839001.0)
        lines = status.status(book.state, "web", book.servers, 1763839000.0 + 3 * 3600 + 5, book.reports.append)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert lines == [
        "2025-11-22 19:04:11 jane: wwwpush world/sample: web[1-3] ok, in 0.42 s",
        "2025-11-22 19:16:40 jane: wwwpush world/a, other: web1 ok, web[2-3] failed, 1 left out, in 0.42 s",
        "web1: has everything",
        "web2: lacks world/a since 2025-11-22 19:16:40 (3 h)",
        "web3: lacks other, world/a, world/b since 2025-11-22 19:16:40 (3 h)",
    ]


def test_status_record_is_json_without_the_changes(book: Book) -> None:
    book.everybody_has_everything()
    keep(book, 1000.0, "web1 web2", "web3")
    book.failed("web3", "world/sample", now=1000.5)
    found = json.loads(json.dumps(status.record(book.state, "web", book.servers, book.reports.append)))
    assert set(found) == {"kind", "pushes", "servers"}
    assert found["servers"] == [
        {"name": "web1", "lacks": [], "since": None},
        {"name": "web2", "lacks": [], "since": None},
        {"name": "web3", "lacks": ["world/sample"], "since": 1000.5},
    ]
    (push,) = found["pushes"]
    assert "changes" not in push
    assert [server["ok"] for server in push["servers"]] == [True, True, False]


def test_status_shows_the_newest_and_survives_what_is_no_record(book: Book) -> None:
    book.everybody_has_everything()
    for number in range(status.PUSHES_SHOWN + 3):
        keep(book, 1000.0 + number, "web1")
    directory = Path(book.state, "pushes")
    (directory / "20991231T000000.000000Z-1.json").write_text('{"format": "infocluster push 1"')
    (directory / "20991231T000000.000000Z-2.json").write_text('{"format": "infocluster push 1", "kind": "web"}')
    found = status.record(book.state, "web", book.servers, book.reports.append)
    assert [push["started"] for push in found["pushes"]] == [1000.0 + number for number in range(3, 13)]
    assert len(book.reports) == 2
    assert all("not the record of a push" in line for line in book.reports)
    os.remove(directory / "20991231T000000.000000Z-1.json")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (7199, "1 h"),
        (172799, "47 h"),
        (172800, "2 days"),
        (9e5, "10 days"),
    ],
)
def test_span_of_time_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert status._span(seconds) == words
