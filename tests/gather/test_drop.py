# SPDX-License-Identifier: Apache-2.0
"""A record is in its segment once and whole, or the segment is as it was."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster.errors import BadInputError, UnavailableError, UsageError
from infocluster.gather import collect, drop

SETTINGS = {"durable": False, "lock_timeout_s": 10, "limit_bytes": 65536}
DAY = 1795384800.25
LIB = str(Path(drop.__file__).parents[2])

SCALARS = st.text() | st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


def only_segment(directory: Path) -> Path:
    (segment,) = directory.glob("*/*.jsonl")
    return segment


def test_record_is_one_line_of_json_in_the_segment_of_its_day(tmp_path: Path) -> None:
    record_id = drop.append("survey", {"time": DAY, "agent": 'a "b"\n\x01é'}, SETTINGS, str(tmp_path))
    segment = tmp_path / "survey/2026-11-22.jsonl"
    assert segment.read_bytes().count(b"\n") == 1
    assert json.loads(segment.read_bytes()) == {"id": record_id, "time": DAY, "agent": 'a "b"\n\x01é'}
    assert len(record_id) >= 16
    assert set(record_id) <= set("0123456789abcdef")


@given(st.dictionaries(st.text(), VALUES))
def test_line_is_what_the_library_writes(record: dict[str, object]) -> None:
    try:
        expected = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        with pytest.raises(BadInputError):
            drop.line(record)
        return
    assert drop.line(record) == expected.encode("utf-8", "replace") + b"\n"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_number_that_json_has_not_is_refused(number: float, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="JSON"):
        drop.append("survey", {"x": number}, SETTINGS, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_line_over_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="allowed"):
        drop.append("survey", {"agent": "x" * 70000}, SETTINGS, str(tmp_path))


def test_torn_line_is_closed_off_by_the_next_writer(tmp_path: Path) -> None:
    drop.append("survey", {"time": DAY, "agent": "one"}, SETTINGS, str(tmp_path))
    with only_segment(tmp_path).open("ab") as segment:
        segment.write(b'{"id":"torn by a cra')
    drop.append("survey", {"time": DAY, "agent": "two"}, SETTINGS, str(tmp_path))
    lines = only_segment(tmp_path).read_bytes().split(b"\n")
    assert [len(line) > 0 for line in lines] == [True, True, True, False]
    assert json.loads(lines[2])["agent"] == "two"


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", ".hidden", "a\0b", "x" * 65])
def test_application_name_never_walks(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        drop.append(name, {}, SETTINGS, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_missing_gather_directory_is_said(tmp_path: Path) -> None:
    for directory, store in itertools.product(
        ("", "relative", str(tmp_path / "missing")), (drop.SEGMENTS, drop.QUEUE)
    ):
        with pytest.raises(UnavailableError, match="cannot"):
            drop.append("survey", {}, SETTINGS, directory, store)
        assert not os.path.exists(tmp_path / "missing")


def test_lock_excludes_flock_of_util_linux(tmp_path: Path) -> None:
    drop.append("survey", {}, SETTINGS, str(tmp_path))
    held = ["flock", str(tmp_path / "survey.lock"), "sh", "-c", "echo held; read end"]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UnavailableError, match=f"held by pid {other.pid}"):
            drop.append("survey", {}, {**SETTINGS, "lock_timeout_s": 0.1}, str(tmp_path))
        other.communicate(b"\n")
    drop.append("survey", {}, SETTINGS, str(tmp_path))


APPEND_MANY = """
import sys
from infocluster.gather import drop
for number in range({records}):
    record = {{"writer": {writer}, "number": number, "pad": "x" * (number % 900)}}
    drop.append("survey", record, {settings}, {directory!r})
"""


@pytest.mark.parametrize("records", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_many_writers_lose_and_tear_nothing_while_readers_run(tmp_path: Path, records: int) -> None:
    directory = tmp_path / "web1/www"
    source = collect.Source(str(tmp_path), "survey", "www")
    directory.mkdir(parents=True)
    code = [
        APPEND_MANY.format(writer=w, records=records, settings=SETTINGS, directory=str(directory)) for w in range(8)
    ]
    writers = [subprocess.Popen([sys.executable, "-c", text], env={"PYTHONPATH": LIB}) for text in code]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        for _, _, _, record in collect.read(source, {}):
            seen.add(json.loads(record)["id"])  # every line a reader gets is whole
    for writer in writers:
        assert writer.wait() == 0
    found = [json.loads(record) for _, _, _, record in collect.read(source, {})]
    assert {(r["writer"], r["number"]) for r in found} == {(w, n) for w in range(8) for n in range(records)}
    assert len(found) == 8 * records
    assert seen <= {r["id"] for r in found}


@pytest.mark.root
def test_full_disk_leaves_the_segment_as_it_was(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        before = b""
        with pytest.raises(UnavailableError, match="No space left"):
            for _ in range(1000):
                drop.append("survey", {"pad": "x" * 3000}, SETTINGS, str(disk))
                before = only_segment(disk).read_bytes()
        assert only_segment(disk).read_bytes() == before
        assert before.endswith(b"\n")
        # Another day's segment cannot even begin: nothing empty stays behind.
        with pytest.raises(UnavailableError, match="No space left"):
            drop.append("survey", {"time": 0, "pad": "x" * 60000}, SETTINGS, str(disk))
        assert not (disk / "survey/1970-01-01.jsonl").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.root
def test_read_only_disk_is_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(UnavailableError, match="Read-only"):
            drop.append("survey", {}, SETTINGS, str(disk))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_link_in_the_place_of_a_segment_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    gather = tmp_path / "gather"
    (gather / "survey").mkdir(parents=True)
    (gather / "survey/2026-11-22.jsonl").symlink_to(outside)
    with pytest.raises(UnavailableError):
        drop.append("survey", {"time": DAY}, SETTINGS, str(gather))
    assert outside.read_text() == "mine\n"


@pytest.mark.root
def test_file_owner_may_read_and_not_change_what_the_server_user_wrote(open_dir: Path) -> None:
    gather = open_dir / "gather/web1/www"
    gather.mkdir(parents=True)
    os.chown(gather, 33, 33)
    write = (
        f"from infocluster.gather import drop; drop.append('survey', {{'agent': 'x'}}, {SETTINGS}, {str(gather)!r})"
    )
    read = (
        "from infocluster.gather import collect\n"
        f"found = list(collect.read(collect.Source({str(open_dir / 'gather')!r}, 'survey', 'www'), {{}}))\n"
        "assert len(found) == 1, found\n"
        f"import os; path = {str(gather)!r} + '/survey/' + found[0][1]\n"
        "for change in (lambda: os.unlink(path), lambda: open(path, 'ab'), lambda: os.truncate(path, 0)):\n"
        "    try: change()\n"
        "    except PermissionError: continue\n"
        "    raise SystemExit('changed it')\n"
    )
    for user, code in ((33, write), (65534, read)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            user=user,
            group=user,
            extra_groups=[],
            env={"PYTHONPATH": LIB, "PATH": os.defpath},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
