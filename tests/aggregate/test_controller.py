# SPDX-License-Identifier: Apache-2.0
"""The controller: both shapes of aggregators, once and no more, what fails is set aside, and built-ins."""

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregate.cluster import SEED
from aggregate.house import House, files_report, report
from infocluster.aggregate import controller, messages_pb2, reports
from infocluster.aggregate.builtin import files as files_module
from infocluster.errors import BadInputError, UnavailableError

CONF = """[aggregate]
aggregators = [{names}]
module_dirs = ["modules"]
call_limit_s = 0.3
files_limit = 3
file_limit_bytes = 1000
"""
SIMPLE = """
class Sum(Aggregator):
    reporttype = "Number"
    updatetype = "Sum"
    requesttypes = "Sum", "Nothing"

    def __init__(self):
        self.total = self.restoreData(0)
        self.told = self.total

    def processReport(self, msg):
        self.total += int(msg.data)
        self.saveData(self.total)

    def processREQUEST(self, msg):
        if msg.type == "Sum":
            return {"total": self.total, "times": msg.fields.get("times", "")}

    def getUpdateMessage(self):
        if self.total == self.told:
            return None
        self.told = self.total
        return self.total
"""
HOOKS = """
class Hooks(Aggregator):
    DEPENDS = ["Sum"]

    def process_REPORT_Number(self, msg):
        self.last = (msg.src, msg.data.decode())
        if msg.data == b"13":
            raise ValueError("unlucky")
        if msg.data == b"99":
            while True:
                try:
                    pass
                except Exception:
                    pass

    def process_PUT_Word(self, msg):
        self.saveData(msg.data.decode())

    def process_GET_Last(self, msg):
        return [*self.last, self.other("Sum").total, self.restoreData()]

    def doUpdates(self, now):
        return [("Now", {"now": now}), ("None", None)]
"""


def house(tmp_path: Path, *names: str) -> House:
    made = House(tmp_path, CONF.format(names=", ".join(f'"{name}"' for name in names)))
    made.module(SIMPLE)
    made.module(HOOKS, "hooks.py")
    return made


def test_both_shapes_get_reports_answer_requests_and_tell_updates(tmp_path: Path) -> None:
    site = house(tmp_path, "Hooks")
    for n in range(5):
        site.put(report("Number", str(n).encode(), f"id-{n}"), f"web{n % 2}")
        site.now += 0.01
    word = report("Word", b"hello", "id-w")
    word.kind = "PUT"
    site.put(word)
    with site.controller() as control:
        assert control.take() == 6
        assert control.store.counts() == {"taken": 6}
        assert control.answer({"type": "Sum", "times": "7"}) == (b'{"total": 10, "times": "7"}', None)
        assert json.loads(control.answer({"type": "Last"})[0]) == ["node1", "4", 10, "hello"]  # type: ignore[index]
        assert control.answer({"type": "Nothing"}) is None and control.answer({"type": "Unknown"}) is None
        assert control.update() == [1, 2]
        first = control.store.updates()[0]
        assert (first.type, first.json) == ("Sum", b"10")
        assert [one.type for one in control.store.updates(1)] == ["Now"]
        assert control.take() == 0 and control.update() == [3]
    with site.controller() as control:
        assert control.answer({"type": "Sum"}) == (b'{"total": 10, "times": ""}', None)
        assert control.store.revision() == 3
    assert not site.faults


def test_report_takes_effect_once_however_often_and_wherever_it_comes(tmp_path: Path) -> None:
    site = house(tmp_path, "Sum")
    for server in ("web1", "web2", "web1"):
        site.put(report("Number", b"5", "same"), server)
        site.now += 0.01
    site.put(report("Number", b"7", "same", "node2"))
    with site.controller() as control:
        control.take()
        site.put(report("Number", b"5", "same"), "web3")
        control.take()
        assert control.instances["Sum"].total == 12  # type: ignore[attr-defined]
        assert control.store.counts() == {"taken": 2, "duplicate": 3}
        # A server that is out of reach for a while, as by NFS, brings nothing back that was read.
        server = tmp_path / "var/gather/web1"
        server.rename(tmp_path / "unmounted")
        assert control.take() == 0
        control.tidy()
        (tmp_path / "unmounted").rename(server)
        assert control.take() == 0 and control.store.counts() == {"taken": 2, "duplicate": 3}


def test_module_that_others_depend_on_keeps_what_it_has_and_is_no_aggregator(tmp_path: Path) -> None:
    site = house(tmp_path, "Writer")
    site.module(
        "class Book(Module):\n    def __init__(self): self.lines = self.restoreData([])\n"
        "    def keep(self): self.saveData(self.lines)\n"
        "class Writer(Aggregator):\n    DEPENDS: list[str] = ['Book']\n    requesttypes = 'Book',\n"
        "    def process_REPORT_Line(self, msg): self.other('Book').lines.append(msg.data.decode())\n"
        "    def processREQUEST(self, msg): return self.other('Book').lines\n"
    )
    for number in range(2):
        site.put(report("Line", b"line %d" % number, str(number)))
        with site.controller() as control:
            control.take()
            assert list(control.instances) == ["Writer"]
    with site.controller() as control:
        assert control.answer({"type": "Book"}) == (b'["line 0", "line 1"]', None)
    assert not site.faults


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def test_what_is_no_report_is_counted_with_its_reason(tmp_path: Path) -> None:
    site = house(tmp_path, "Sum")
    site.queue().add(b"SEER/1.0 REPORT\nId: x\n\n")
    site.queue().add(b"")
    site.queue().add(b"x" * (5 << 20))
    for make in (lambda path: path.symlink_to("/etc/hostname"), lambda path: os.mkfifo(path), bound):
        path = tmp_path / "var/gather/web1/www/reports" / site.queue().add(b"x")
        path.unlink()
        make(path)
    site.put(report("Other", b"", "o"))
    site.put(report("Number", b"1", "old", date=str(int(site.now) - 31 * 86400)))
    site.put(report("Number", b"1", "new", date=str(int(site.now) + 1000)))
    with site.controller() as control:
        assert control.take() == 9
        expected = {"malformed": 1, "unreadable": 5, "taken": 1, "no aggregator": 1, "too old": 1, "too new": 1}
        assert control.store.counts() == expected


def test_aggregator_that_raises_or_hangs_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    site = house(tmp_path, "Hooks")
    for n in (1, 13, 2, 99, 3):
        site.put(report("Number", str(n).encode(), f"id-{n}"))
        site.now += 0.01
    with site.controller() as control:
        control.take()
        assert control.instances["Sum"].total == 118  # type: ignore[attr-defined]
        assert control.instances["Hooks"].last == ("node1", "3")  # type: ignore[attr-defined]
        assert [(one.module, one.reason.split(" (")[0]) for one in control.store.aside()] == [
            ("Hooks", "ValueError: unlucky"),
            ("Hooks", "not done after 0.3 s"),
        ]
        assert len(site.faults) == 2 and "hooks.py" in site.faults[0]
        assert control.store.counts() == {"taken": 5, "set aside": 2}
    site.module(HOOKS.replace("raise ValueError", "str").replace("while True", "for _ in ()"), "hooks.py")
    with site.controller() as control:
        assert control.again() == 2 and not control.store.aside()
        assert control.instances["Sum"].total == 118  # type: ignore[attr-defined]


def test_fault_is_told_again_when_it_comes_back_and_gone_when_it_does_not(tmp_path: Path) -> None:
    site = house(tmp_path, "Nowhere")
    with site.controller() as control:
        lasting = list(site.faults)
        assert len(lasting) == 1 and control.standing() == lasting
        for _ in range(4):  # for longer than a fault is remembered, and it never heals
            control.fault("cannot read a")
            site.now += controller.FAULT_S / 2
        assert site.faults == [*lasting, "cannot read a"] == control.standing()
        site.now += controller.FAULT_S
        assert control.standing() == lasting
        control.fault("cannot read a")
        assert site.faults == [*lasting, "cannot read a", "cannot read a"]
        # However many there were, the next one is told, and no more are remembered.
        for number in range(controller.FAULTS_LIMIT + 10):
            control.fault(f"cannot read {number}")
        assert site.faults[-1] == f"cannot read {controller.FAULTS_LIMIT + 9}"
        assert len(control.standing()) == controller.FAULTS_LIMIT + 1
        assert control.standing(2)[1:] == site.faults[-2:]


def test_node_is_gray_when_it_is_silent_for_longer_than_it_said(tmp_path: Path) -> None:
    site = house(tmp_path, "Sum")
    site.put(report("Number", b"1", "a", period="60"))
    with site.controller() as control:
        control.take()
        assert not control.store.turn(site.now)
        site.now += 61
        revision = control.store.revision()
        assert (
            control.update() and control.store.updates(revision)[-1].json == b'{"silent": ["node1"], "reporting": []}'
        )
        site.put(report("Number", b"1", "b", period="60"))
        control.take()
        control.update()
        assert control.store.updates()[-1].json == b'{"silent": [], "reporting": ["node1"]}'


def test_owner_drops_what_was_read_and_no_more(tmp_path: Path) -> None:
    site = house(tmp_path, "Sum")
    began = site.now
    for n in range(3):
        site.put(report("Number", b"1", f"a{n}"))
    site.now += 3600
    site.put(report("Number", b"1", "b"))
    queue = site.queue()
    with site.controller() as control:
        early = control.marks()
        control.take()
        marks = control.marks()
        site.now += 3600
        later = control.marks()
        faults: list[str] = []
        assert reports.sweep(queue.path, early, "marks", site.now, 0, faults.append) == 0
        assert reports.sweep(queue.path, marks, "marks", began, 0, faults.append) == 0
        assert reports.sweep(queue.path, marks, "marks", site.now, 0, faults.append) == 3
        # One more came into the other directory than was read: it stays.
        name = next(iter(queue))
        (Path(queue.path) / name[:-1]).with_name(name.split("/")[1][:-1] + "f").write_bytes(b"late")
        assert reports.sweep(queue.path, later, "marks", site.now, 0, faults.append) == 0
        assert queue.count() == 2 and not faults
        control.tidy()
        assert control.take() == 1
    with pytest.raises(BadInputError):
        reports.sweep(queue.path, b"{}", "marks", site.now, 0, faults.append)


def test_files_are_kept_by_node_listed_and_told_once(tmp_path: Path) -> None:
    site = house(tmp_path, "FileProcessor")
    site.put(files_report("1", a_txt=b"one", b_txt=b"\x00\xff"))
    site.put(files_report("2", "node2", a_txt=b"two"))
    with site.controller() as control:
        control.take()
        found = json.loads(control.answer({"type": "FileList"})[0])  # type: ignore[index]
        assert [(one["node"], one["name"], one["size"]) for one in found["files"]] == [
            ("node1", "a.txt", "3"),
            ("node1", "b.txt", "2"),
            ("node2", "a.txt", "3"),
        ]
        answer = control.answer({"type": "File", "name": "b.txt"})
        assert answer and messages_pb2.Files.FromString(answer[1] or b"").files[0].data == b"\x00\xff"
        assert control.answer({"type": "File", "name": "a.txt"}) is None  # of which node?
        assert control.answer({"type": "File", "name": "a.txt", "node": "node2"})
        for name in ("../../etc/infocluster.toml", "/etc/passwd", "", "node1/a.txt"):
            assert control.answer({"type": "File", "name": name, "node": "node1"}) is None
        assert len(control.update()) == 1
        assert control.update() == []
        site.put(files_report("3", a_txt=b"new"))
        control.take()
    with site.controller() as control:
        control.update()
        told = json.loads(control.store.updates()[-1].json)["files"]
        assert [(one["node"], one["name"], one["data"]) for one in told] == [("node1", "a.txt", "bmV3")]


@pytest.mark.parametrize("argument", ["name", "filename"])
def test_request_for_a_file_reaches_no_aggregator_by_a_path(tmp_path: Path, argument: str) -> None:
    site = house(tmp_path, "FileProcessor")
    site.module(SEED.replace("@storagedir@", str(tmp_path / "seed")))
    (tmp_path / "secret").write_text("secret")
    site.put(files_report("1", a_txt=b"one"))
    with site.controller() as control:
        control.take()
        assert control.answer({"type": "File", argument: "a.txt"})
        for name in (str(tmp_path / "secret"), "../secret", "..", ".", ".hidden", "a\0b", "\udc80", "x" * 256):
            assert control.answer({"type": "File", argument: name}) is None
            assert control.answer({"type": "File", "name": "a.txt", "filename": "a.txt", argument: name}) is None
    assert not site.faults


@pytest.mark.parametrize(
    "contents",
    [
        {"a": b"", "b": b"", "c": b"", "d": b""},
        {"a": b"x" * 1001},
        {"../b": b""},
    ],
)
def test_files_over_the_limits_are_set_aside_whole(tmp_path: Path, contents: dict[str, bytes]) -> None:
    site = house(tmp_path, "FileProcessor")
    data = messages_pb2.Files()
    data.files.add(name="good", data=b"x")
    for name, content in contents.items():
        data.files.add(name=name, data=content)
    site.put(report("FileOutput", data.SerializeToString(), "1"))
    with site.controller() as control:
        control.take()
        assert len(control.store.aside()) == 1
        assert not list((tmp_path / "var/state/files").rglob("good"))


@given(st.text(max_size=300) | st.lists(st.sampled_from(["..", ".", "/", "a", "\0", "~", "\\", "%2e"])).map("".join))
def test_no_name_leaves_its_directory(name: str) -> None:
    try:
        found = files_module.plain(name)
    except BadInputError:
        return
    assert found == name and "/" not in name and not name.startswith(".") and "\0" not in name
    assert 0 < len(name.encode()) <= 255


def test_counters_know_their_course_and_what_a_day_added(tmp_path: Path) -> None:
    site = house(tmp_path, "Counters")
    start = int(site.now) - 3600
    for n, value in enumerate((100, 150, 170, 30, 40)):
        data = messages_pb2.Counters()
        # A clock that was ahead once does not keep later values out.
        data.counters.add(name="hits", value=value, time=start + 60 * n if n else site.now + 5000)
        site.put(report("Counters", data.SerializeToString(), f"c{n}", date=str(start + 60 * n)))
        site.now += 0.01
    bad = messages_pb2.Counters()
    bad.counters.add(name="hits", value=float("nan"))
    site.put(report("Counters", bad.SerializeToString(), "bad"))
    with site.controller() as control:
        control.take()
        answer = json.loads(control.answer({"type": "Counters", "node": "node1"})[0])  # type: ignore[index]
        (one,) = answer["counters"]
        assert one["value"] == 40 and [point["value"] for point in one["history"]] == [100, 150, 170, 30, 40]
        known = control.instances["Counters"].known["node1"]["hits"]  # type: ignore[attr-defined]
        assert sum(added for _, added in known["days"]) == 50 + 20 + 30 + 10
        assert control.answer({"type": "Counters", "node": "node2"}) is None
        assert len(control.store.aside()) == 1
        (section,) = control.ask("Counters", "sections", dict, start + 300.0)
        assert section["rows"][0][:3] == ["node1", "hits", "40"] and "<svg" in section["pictures"][0][1]


def test_a_request_is_nothing_that_is_kept_nor_a_failing_one_the_loss_of_others(tmp_path: Path) -> None:
    site = house(tmp_path, "Saver", "Sum")
    site.module(
        "class Saver(Aggregator):\n    requesttypes = 'Save', 'Fail'\n    def processREQUEST(self, msg):\n"
        "        if msg.type == 'Fail': raise OSError('no')\n        self.saveData(1); return self.restoreData()\n"
        "    def doUpdates(self, now): raise OSError('no')\n",
        "saver.py",
    )
    with site.controller() as control:
        assert control.answer({"type": "Save"}) == (b"1", None)
        assert control.store.restore("Saver", "", None) is None
        site.put(report("Number", b"5", "1"))
        control.take()
        before = dict(control.instances)
        with pytest.raises(UnavailableError):
            control.answer({"type": "Fail"})
        # The one that failed is another one now, and Sum has still to tell what it took.
        assert control.instances["Saver"] is not before["Saver"]
        assert len(control.update()) == 1 and control.store.updates()[0].json == b"5"
