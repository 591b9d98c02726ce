# SPDX-License-Identifier: Apache-2.0
"""Folding gives the same result on one process and on several, in whatever slices."""

from collections import Counter
from pathlib import Path

import pytest

from infocluster.gather import collect, fold
from infocluster.gather.collect import Part


class LineCount:
    """Count lines by their text; an empty line is no record."""

    def empty(self) -> Counter[bytes]:
        return Counter()

    def map(self, segment: str, block: bytes) -> tuple[Counter[bytes], int]:
        assert block.endswith(b"\n")
        lines = block.split(b"\n")[:-1]
        return Counter(line for line in lines if line), lines.count(b"")

    def merge(self, one: Counter[bytes], other: Counter[bytes]) -> Counter[bytes]:
        one.update(other)
        return one


def parts_of(top: Path) -> list[Part]:
    found = collect.look(collect.Source(str(top), "app", "www", form="lines"), {})
    assert not found.faults
    return found.parts


def write(top: Path, server: str, lines: list[bytes]) -> Path:
    path = top / server / "www/app"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("processes", [1, 3])
def test_every_line_is_counted_once_in_whatever_slices(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "SLICE_BYTES", 5000)
    monkeypatch.setattr(fold, "BLOCK_BYTES", 700)
    expected: Counter[bytes] = Counter()
    for server in range(3):
        lines = [b"%d" % (number % 97) * (number % 50) for number in range(2000)]
        write(tmp_path, f"web{server}", lines)
        expected.update(line for line in lines if line)
    read: list[int] = []
    folded = fold.run(LineCount(), parts_of(tmp_path), processes, read.append)
    assert folded.result == expected
    assert sum(folded.bad.values()) == 3 * len([n for n in range(2000) if n % 50 == 0])
    assert sum(read) == sum(part.end - part.start for part in parts_of(tmp_path))


@pytest.mark.parametrize("processes", [1, 3])
def test_file_that_fails_half_way_is_left_out_whole(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "SLICE_BYTES", 1000)
    write(tmp_path, "web1", [b"one"] * 1000)
    shrinks = write(tmp_path, "web2", [b"two"] * 1000)
    parts = parts_of(tmp_path)
    shrinks.write_bytes(b"two\n" * 300)
    folded = fold.run(LineCount(), parts, processes)
    assert folded.result == Counter({b"one": 1000})
    assert list(folded.failed) == [str(shrinks)]
    assert [part.server for part in folded.parts] == ["web1"]
