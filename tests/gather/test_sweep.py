# SPDX-License-Identifier: Apache-2.0
"""Only what was read and is old enough is dropped, and by its owner."""

import json
import os
import time
from pathlib import Path

import pytest

from conftest import Site
from infocluster.errors import BadInputError
from infocluster.gather import collect, drop, marks, sweep

SETTINGS = {"durable": False, "lock_timeout_s": 10, "limit_bytes": 65536}
DAY_S = 86400


def swept(top: Path, offset_of: dict[str, int], now: float, keep_days: int = 7) -> tuple[list[str], list[str]]:
    """Sweep `top` with marks at these offsets; return what was said and the faults."""
    said: list[str] = []
    faults: list[str] = []
    read = []
    for path in sorted((top / "survey").glob("*.jsonl")):
        first = collect.first_id(path.read_bytes().split(b"\n")[0])
        if path.name in offset_of:
            read.append(marks.Mark("web1", "www", "survey", path.name, first, offset_of[path.name]))
    sweep.sweep(str(top), "survey", read, keep_days, now, 1, said.append, faults.append)
    return said, faults


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    for number in range(3):
        drop.append("survey", {"time": 0.5, "number": number}, SETTINGS, str(tmp_path))
    return tmp_path / "survey/1970-01-01.jsonl"


def test_segment_that_is_read_and_old_goes(segment: Path) -> None:
    size = segment.stat().st_size
    assert swept(segment.parent.parent, {segment.name: size}, now=8 * DAY_S) == (["drop survey/1970-01-01.jsonl"], [])
    assert not segment.exists()


def test_segment_stays_for_the_keep_time(segment: Path) -> None:
    size = segment.stat().st_size
    assert swept(segment.parent.parent, {segment.name: size}, now=8 * DAY_S - 1) == ([], [])
    assert segment.exists()


def test_segment_with_one_unread_record_stays(segment: Path) -> None:
    size = segment.stat().st_size
    drop.append("survey", {"time": 0.5}, SETTINGS, str(segment.parent.parent))
    assert swept(segment.parent.parent, {segment.name: size}, now=80 * DAY_S) == ([], [])
    assert segment.exists()


def test_unmarked_segment_and_one_of_the_same_name_stay(segment: Path) -> None:
    assert swept(segment.parent.parent, {}, now=80 * DAY_S) == ([], [])
    other = marks.Mark("web1", "www", "survey", segment.name, "another", segment.stat().st_size)
    sweep.sweep(str(segment.parent.parent), "survey", [other], 0, 80 * DAY_S, 1, pytest.fail, pytest.fail)
    assert segment.exists()


def test_torn_line_that_nobody_will_end_keeps_nothing(segment: Path) -> None:
    size = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(b'{"id":"never ackn')
    assert swept(segment.parent.parent, {segment.name: size}, now=80 * DAY_S)[0] == ["drop survey/1970-01-01.jsonl"]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"app": "../x", "marks": []}', b'{"app": "a", "marks": [{"offset": "9"}]}']
)
def test_foreign_marks_are_refused(text: bytes) -> None:
    with pytest.raises(BadInputError, match="the file"):
        marks.parse(text, "the file")


def test_program_sweeps_what_the_marks_cover_and_reports_what_it_cannot_read(site: Site) -> None:
    gather = site.gather("web1")
    drop.append("survey", {"time": 0.5}, SETTINGS, str(gather))
    drop.append("survey", {}, SETTINGS, str(gather))
    (old,) = gather.glob("survey/1970*")
    first = json.loads(old.read_bytes())["id"]
    directory = site.production / "gather/marks"
    directory.mkdir(parents=True)
    mark = {"server": "web1", "host": "www", "app": "survey", "segment": old.name, "first_id": first}
    document = {"app": "survey", "made": time.time(), "marks": [{**mark, "offset": old.stat().st_size}]}
    (directory / "survey.json").write_text(json.dumps(document))
    (directory / "torn.json").write_text('{"app": "to')
    done = site.batch("gather-sweep", SERVER_GATHER=str(gather))
    assert (done.returncode, done.stdout) == (1, f"drop survey/{old.name}\ngather-sweep: 1 segment dropped\n")
    assert "torn.json" in done.stderr
    assert not old.exists()
    assert len(os.listdir(gather / "survey")) == 1


def test_entry_and_what_came_with_records_go_with_their_record(tmp_path: Path) -> None:
    entry = tmp_path / "form/0a.json"
    entry.parent.mkdir()
    entry.write_bytes(b'{"id":"0a","time":0,"picture":[{"file":"0a-picture-0.png"}]}\n')
    (tmp_path / "form.files").mkdir()
    names = ("0a-picture-0.png", ".~upload.1", "a-picture-0.png", "0b-x.png")
    named, *orphans, new = (tmp_path / "form.files" / name for name in names)
    orphans.append(tmp_path / "form/.~0b.json.1")
    for path in (named, *orphans, new, entry):
        path.write_bytes(path.read_bytes() if path == entry else b"x")
        os.utime(path, (0, 0))
    os.utime(new, (9 * DAY_S, 9 * DAY_S))
    mark = marks.Mark("web1", "www", "form", "0a.json", "0a", entry.stat().st_size)
    said: list[str] = []

    def sweep_with(read: list[marks.Mark]) -> None:
        sweep.sweep(str(tmp_path), "form", read, 7, 9 * DAY_S, 1, said.append, said.append)

    sweep_with([])
    assert said[0] == f"drop form/{orphans[-1].name}" and not orphans[-1].exists()
    assert said[1:] == ["drop form.files/.~upload.1", "drop form.files/a-picture-0.png"]
    assert named.exists() and entry.exists()
    sweep_with([mark])
    assert said[3:] == ["drop form/0a.json", "drop form.files/0a-picture-0.png"]
    assert os.listdir(tmp_path / "form.files") == ["0b-x.png"]
