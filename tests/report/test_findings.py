# SPDX-License-Identifier: Apache-2.0
"""Findings: left whole, read in the order of time, whatever else lies there."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from infocluster.errors import BadInputError, UsageError
from infocluster.report import findings
from infocluster.report.findings import Finding, Table

FINDING: dict[str, Any] = {
    "title": "Browser survey",
    "lines": ["12 visits."],
    "tables": [{"title": "Browsers", "head": ["browser", "visits"], "rows": [("Firefox", 7), ["Other", 2.5]]}],
    "faults": ["cannot read web3: gone"],
    "links": ["https://www.example.org/survey/"],
}


def test_a_finding_is_read_as_it_was_left(tmp_path: Path) -> None:
    path = findings.leave(str(tmp_path), "survey-nightly", FINDING, 1795317300.25)
    name = os.path.basename(path)
    assert re.fullmatch(r"survey-nightly-20261122T031500\.250000Z-[0-9a-f]{12}\.json", name)
    assert os.listdir(tmp_path / "findings") == [name]
    assert os.stat(path).st_mode & 0o777 == 0o640
    table = Table(title="Browsers", head=["browser", "visits"], rows=[["Firefox", 7], ["Other", 2.5]])
    expected = Finding(
        job="survey-nightly", time=1795317300.25, title="Browser survey", lines=["12 visits."], tables=[table],
        faults=["cannot read web3: gone"], links=["https://www.example.org/survey/"],
    )  # fmt: skip
    assert findings.waiting(str(tmp_path)) == findings.Waiting({name: expected}, [])
    rows = [["Firefox", 7], ["Other", 2.5]]
    assert json.loads(Path(path).read_bytes()) == FINDING | {
        "job": "survey-nightly", "time": 1795317300.25, "tables": [FINDING["tables"][0] | {"rows": rows}],
    }  # fmt: skip


def test_findings_wait_in_the_order_of_their_time(tmp_path: Path) -> None:
    left = [findings.leave(str(tmp_path), job, {"title": job}, at) for job, at in (("a", 30), ("b", 10), ("c", 20.5))]
    names = [os.path.basename(path) for path in left]
    assert list(findings.waiting(str(tmp_path)).found) == [names[1], names[2], names[0]]
    findings.forget(str(tmp_path), [names[1], "gone already.json", names[0]])
    assert list(findings.waiting(str(tmp_path)).found) == [names[2]]


def test_where_nothing_was_ever_left_nothing_waits(tmp_path: Path) -> None:
    assert findings.waiting(str(tmp_path)) == findings.Waiting({}, [])


TORN: dict[str, Any] = {
    "torn.json": b'{"job":"a","time":1,"title":"half',
    "empty.json": b"",
    "list.json": b"[]",
    "latin.json": b'{"job":"a","time":1,"title":"\xfc"}',
    "type.json": b'{"job":"a","time":"now","title":"t"}',
    "row.json": b'{"job":"a","time":1,"title":"t","tables":[{"head":["x"],"rows":[["a","b"]]}]}',
    "link.json": b'{"job":"a","time":1,"title":"t","links":["javascript:alert(1)"]}',
    "when.json": b'{"job":"a","time":1e300,"title":"t"}',
    "\u00fc.json": b'{"job":"a","time":1,"title":"t"}',
}


def test_a_torn_or_foreign_file_is_reported_and_stays_and_hides_no_other(tmp_path: Path) -> None:
    name = os.path.basename(findings.leave(str(tmp_path), "job", {"title": "t"}))
    for foreign, content in TORN.items():
        (tmp_path / "findings" / foreign).write_bytes(content)
    os.mkfifo(tmp_path / "findings/pipe.json")
    (tmp_path / "findings/directory.json").mkdir()
    for other in ("notes.txt", ".~job.json.00"):
        (tmp_path / "findings" / other).touch()
    os.symlink("nowhere", tmp_path / "findings/link-to-nowhere.json")
    waiting = findings.waiting(str(tmp_path))
    assert list(waiting.found) == [name]
    reported = {re.findall(r"findings/(\S+\.json)", fault)[0] for fault in waiting.faults}
    assert reported == {*TORN, "pipe.json", "directory.json", "link-to-nowhere.json"}
    assert len(os.listdir(tmp_path / "findings")) == len(reported) + 3


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"title": 1},
        {"title": "t", "line": ["misspelt"]},
        {"title": "t", "faults": "text"},
        {"title": "t", "tables": [{"head": ["a"], "rows": [[None]]}]},
        {"title": "t", "tables": [{"head": ["a"], "rows": [["x", "y"]]}]},
        {"title": "t", "links": ["www.example.org"]},
    ],
)
def test_a_finding_in_another_form_is_not_left(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="cannot leave a finding of job"):
        findings.leave(str(tmp_path), "job", wrong)
    assert not (tmp_path / "findings").exists()


def test_a_job_is_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        findings.leave(str(tmp_path), "../job", {"title": "t"})


def test_undecoded_bytes_of_a_path_can_be_told(tmp_path: Path) -> None:
    findings.leave(str(tmp_path), "job", {"title": "t", "faults": [os.fsdecode(b"cannot read \xff")]})
    (found,) = findings.waiting(str(tmp_path)).found.values()
    assert found.faults == ["cannot read \\udcff"]
