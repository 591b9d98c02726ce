# SPDX-License-Identifier: Apache-2.0
"""The reader delivers each whole record once, whatever form it is in, and says what it could not read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster.errors import UnavailableError
from infocluster.gather import collect, cursor
from infocluster.gather.collect import Part, Source


def put(top: Path, server: str, name: str, text: bytes) -> Path:
    path = top / server / "www" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


def segment(*ids: str) -> bytes:
    return b"".join(json.dumps({"id": i, "time": 1.0}).encode() + b"\n" for i in ids)


def read_on(top: Path, known: dict[tuple[str, str, str], cursor.Position], **options: object) -> list[bytes]:
    """Read what is new, remember how far, and return the records."""
    source = Source(str(top), "app", "www", **options)  # type: ignore[arg-type]
    found = collect.look(source, known)
    assert not found.faults
    records = []
    for part in found.parts:
        records += [record for record, _ in collect.records(collect.content(part), source)]
        known[part.server, part.segment, part.first_id] = part.position()
    return records


def test_each_record_of_every_server_is_read_once(tmp_path: Path) -> None:
    known: dict[tuple[str, str, str], cursor.Position] = {}
    put(tmp_path, "web1", "app/2026-11-21.jsonl", segment("a", "b"))
    two = put(tmp_path, "web2", "app/2026-11-21.jsonl", segment("c"))
    assert [json.loads(r)["id"] for r in read_on(tmp_path, known)] == ["a", "b", "c"]
    assert read_on(tmp_path, known) == []
    with two.open("ab") as file:
        file.write(segment("d"))
    assert [json.loads(r)["id"] for r in read_on(tmp_path, known)] == ["d"]


def test_bytes_behind_the_last_end_of_line_wait(tmp_path: Path) -> None:
    known: dict[tuple[str, str, str], cursor.Position] = {}
    path = put(tmp_path, "web1", "app/2026-11-21.jsonl", segment("a") + b'{"id": "ha')
    assert len(read_on(tmp_path, known)) == 1
    with path.open("ab") as file:
        file.write(b'lf", "time": 2}\n')
    assert [json.loads(r)["id"] for r in read_on(tmp_path, known)] == ["half"]


def test_position_survives_a_copy_and_not_another_file_of_the_same_name(tmp_path: Path) -> None:
    known: dict[tuple[str, str, str], cursor.Position] = {}
    path = put(tmp_path, "web1", "app/2026-11-21.jsonl", segment("a", "b"))
    read_on(tmp_path, known)
    text = path.read_bytes()
    path.unlink()
    put(tmp_path, "web1", "app/2026-11-21.jsonl", text + segment("c"))
    assert [json.loads(r)["id"] for r in read_on(tmp_path, known)] == ["c"]
    put(tmp_path, "web1", "app/2026-11-21.jsonl", segment("x", "y", "z"))
    assert [json.loads(r)["id"] for r in read_on(tmp_path, known)] == ["x", "y", "z"]


@pytest.mark.parametrize("changed", [segment("a"), segment("a", "B", "c")])
def test_file_that_changed_behind_the_reader_is_reported_and_not_read(tmp_path: Path, changed: bytes) -> None:
    known: dict[tuple[str, str, str], cursor.Position] = {}
    path = put(tmp_path, "web1", "app/2026-11-21.jsonl", segment("a", "b"))
    put(tmp_path, "web2", "app/2026-11-21.jsonl", segment("q"))
    read_on(tmp_path, known)
    path.write_bytes(changed)
    with (tmp_path / "web2/www/app/2026-11-21.jsonl").open("ab") as file:
        file.write(segment("r"))
    found = collect.look(Source(str(tmp_path), "app", "www"), known)
    assert [part.server for part in found.parts] == ["web2"]
    assert len(found.faults) == 1
    assert "changed" in found.faults[0]


def test_missing_server_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    put(tmp_path, "web1", "app/2026-11-21.jsonl", segment("a"))
    found = collect.look(Source(str(tmp_path), "app", "www", ("web1", "web2")), {})
    assert len(found.parts) == 1
    assert len(found.faults) == 1
    assert "web2" in found.faults[0]
    reader = collect.read(Source(str(tmp_path), "app", "www", ("web1", "web2")), {})
    assert json.loads(next(reader)[3])["id"] == "a"
    with pytest.raises(UnavailableError, match="web2"):
        next(reader)


def test_plain_file_with_a_record_a_line(tmp_path: Path) -> None:
    known: dict[tuple[str, str, str], cursor.Position] = {}
    path = put(tmp_path, "web1", "app", b"one\ntwo\nthr")
    assert read_on(tmp_path, known, form="lines") == [b"one", b"two"]
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert read_on(tmp_path, known, form="lines") == [b"three"]
    path.write_bytes(b"emptied and begun again\n")
    assert read_on(tmp_path, known, form="lines") == [b"emptied and begun again"]
    for again in (b"one\n2\n3\n4\n5\n6\n7\n", b"one\n"):
        path.write_bytes(again)  # with the first line that it had before, and not with what followed
        assert read_on(tmp_path, known, form="lines") == again.splitlines()
    path.write_bytes(segment("a", "b"))
    read_on(tmp_path, known, form="lines")
    path.write_bytes(segment("a"))  # an id is of one record only: this is not a new file
    assert len(collect.look(Source(str(tmp_path), "app", "www", form="lines"), known).faults) == 1


def test_file_with_separator_lines(tmp_path: Path) -> None:
    known: dict[tuple[str, str, str], cursor.Position] = {}
    path = put(tmp_path, "web1", "app", b"a\nb\n%%\nc\n%%\nunfini")
    assert read_on(tmp_path, known, form="separated", separator=b"%%") == [b"a\nb", b"c"]
    with path.open("ab") as file:
        file.write(b"shed\n%%\n")
    assert read_on(tmp_path, known, form="separated", separator=b"%%") == [b"unfinished"]


def test_one_file_an_entry(tmp_path: Path) -> None:
    known: dict[tuple[str, str, str], cursor.Position] = {}
    put(tmp_path, "web1", "app/one", b"first\nentry")
    put(tmp_path, "web1", "app/.hidden", b"being written")
    (tmp_path / "web1/www/app/directory").mkdir()
    assert read_on(tmp_path, known, form="entries") == [b"first\nentry"]
    put(tmp_path, "web1", "app/two", b"second")
    assert read_on(tmp_path, known, form="entries") == [b"second"]
    long = json.dumps({"id": "abc", "text": "x" * 5000}).encode()
    put(tmp_path, "web1", "app/long", long)
    assert read_on(tmp_path, known, form="entries") == [long]
    assert ("web1", "long", "abc") in known


@given(
    st.lists(st.binary(max_size=40).filter(lambda r: b"%" not in r and b"\n" not in r), max_size=20),
    st.sampled_from(["lines", "separated"]),
)
def test_records_and_their_lengths_cover_the_text(texts: list[bytes], form: str) -> None:
    end = b"\n" if form == "lines" else b"\n%%\n"
    text = b"".join(record + end for record in texts)
    found = list(collect.records(text, Source("", "app", "www", (), form, b"%%")))
    assert [record for record, _ in found] == texts
    assert sum(length for _, length in found) == len(text)


@pytest.mark.parametrize("lengths", [(1 << 20,), (3 << 20, 5), (10, (1 << 20) + 7)])
def test_last_end_is_found_however_far_back(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    text = b"x\n" + b"".join(b"y" * length for length in lengths)
    put(tmp_path, "web1", "app", text)
    (part,) = collect.look(Source(str(tmp_path), "app", "www", form="lines"), {}).parts
    assert (part.start, part.end) == (0, 2)


def test_odd_things_in_the_place_of_segments_stop_nothing(tmp_path: Path) -> None:
    import os

    put(tmp_path, "web1", "app/2026-11-20.jsonl", segment("a"))
    os.mkfifo(tmp_path / "web1/www/app/2026-11-21.jsonl")
    (tmp_path / "web1/www/app/2026-11-22.jsonl").mkdir()
    (tmp_path / "web1/www/app/2026-11-23.jsonl").symlink_to("/etc/passwd")
    put(tmp_path, "web1", "app/notes.txt", b"not ours\n")
    put(tmp_path, "web1", "app/2026-11-24.jsonl", b"")
    (tmp_path / "a file").write_text("")
    odd = (
        "old",
        "20261122",
        "2026-W47-7",
        "2026-11-5",
        "2026-11-31",
        "9999-12-31",
        "2026-11-20 copy",
        "2026-11-20.1",
    )
    for name in odd:
        put(tmp_path, "web1", f"app/{name}.jsonl", segment("b"))
    put(tmp_path, "web1", "app/.2026-11-20.jsonl", b"being written")
    found = collect.look(Source(str(tmp_path), "app", "www"), {})
    assert [part.segment for part in found.parts] == ["2026-11-20.jsonl"]
    assert len(found.faults) == 3 + len(odd)
    assert all(any(f"/{name}.jsonl" in fault for fault in found.faults) for name in odd)


def test_record_without_an_id_is_known_by_its_text() -> None:
    assert collect.first_id(b'{"id": "abc"}') == "abc"
    assert collect.first_id(b"plain") != collect.first_id(b"other")
    for odd in (b"[1]", b'{"id": 3}', b"\xff", b'{"id": ""}'):
        assert len(collect.first_id(odd)) == 16


def test_part_is_behind_what_was_read(tmp_path: Path) -> None:
    path = put(tmp_path, "web1", "app/2026-11-21.jsonl", segment("a", "b"))
    (part,) = collect.look(Source(str(tmp_path), "app", "www"), {}).parts
    size = path.stat().st_size
    assert part == Part(str(path), "web1", "www", "app", "2026-11-21.jsonl", "a", 0, size, part.tail)
    known = {("web1", "2026-11-21.jsonl", "a"): part.position()}
    assert not read_on(tmp_path, known)
    (tmp_path / "web1").rename(tmp_path / "web2")  # a server that goes away once it was read takes nothing with it
    assert part.position() == known["web1", "2026-11-21.jsonl", "a"]
