# SPDX-License-Identifier: Apache-2.0
"""Any bytes at report.cgi's handler, and any files in a report: an answer of ours, and nothing written outside."""

import io
import os
import posix
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregate.house import House, files_report, report
from infocluster import config
from infocluster.aggregate import messages_pb2, signing, wire
from infocluster.apps import report as door
from infocluster.web.request import Request

KEY = b"a key of sixteen bytes and more"
PATH = "/cgi-bin/report.cgi"
TEXTS = st.text(max_size=40) | st.sampled_from(
    ["node1", "..", "../../x", "a/b", "", "0", "-1", "9" * 30, "\x00", "é"]
)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as top:
        path = Path(top)
        (path / "etc/secrets/nodes").mkdir(parents=True)
        (path / "etc/infocluster.toml").write_text("")
        (path / "etc/secrets/nodes/node1").write_bytes(KEY)
        (path / "gather").mkdir()
        before = posix.environ.get(b"INFOCLUSTER_CONF")
        posix.environ[b"INFOCLUSTER_CONF"] = str(path / "etc/infocluster.toml").encode()
        config.compile_settings(str(path / "etc/infocluster.toml"))
        yield path
        if before is None:
            del posix.environ[b"INFOCLUSTER_CONF"]
        else:
            posix.environ[b"INFOCLUSTER_CONF"] = before


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_anything_at_the_door_is_answered_and_stays_in_its_place(root: Path, data: st.DataObject) -> None:
    good = wire.content(files_report(f"m{time.time_ns()}", a_txt=b"1"))
    body = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=8))
    content = bytes(body)
    node, message_id = data.draw(st.just("node1") | TEXTS), data.draw(st.just("m1") | TEXTS)
    if data.draw(st.booleans()):
        message_id = good.split(b"\n")[1].partition(b": ")[2].decode()
    date = int(time.time())
    signature = signing.sign(KEY, "POST", PATH, node, message_id, date, content)
    variables = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": PATH,
        "CONTENT_LENGTH": data.draw(st.just(str(len(content))) | TEXTS),
        "REMOTE_ADDR": data.draw(st.just("192.0.2.1") | TEXTS),
        "SERVER_GATHER": str(root / "gather"),
        "HTTP_X_SEER_NODE": node,
        "HTTP_X_SEER_ID": message_id,
        "HTTP_X_SEER_DATE": data.draw(st.just(str(date)) | TEXTS),
        "HTTP_X_SEER_SIGNATURE": data.draw(st.just(signature) | TEXTS),
    }
    encoded = {name.encode(): value.encode("utf-8", "surrogatepass") for name, value in variables.items()}
    reply = door.answer(Request(encoded, None, io.BytesIO(content).read))
    reply.message()
    assert reply.status in (200, 400, 403, 411, 413)
    assert set(os.listdir(root)) == {"etc", "gather"}
    assert set(os.listdir(root / "gather")) <= {"reports", "reports.nodes", "reports.refused", "reports.refused.lock"}
    assert set(os.listdir(root / "etc")) == {"secrets", "infocluster.toml", "infocluster.toml.compiled"}
    if (root / "gather/reports.nodes").exists():
        assert set(os.listdir(root / "gather/reports.nodes")) <= {"node1", "node1~"}


NAMES = st.text(max_size=60) | st.lists(st.sampled_from(["..", ".", "/", "a", "\\", "~", "%2e", "\n"])).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=20), st.floats()), max_size=5), st.binary(max_size=30))
def test_files_of_any_names_are_kept_in_their_place_or_set_aside(
    told: list[tuple[str, bytes, float]], junk: bytes
) -> None:
    with tempfile.TemporaryDirectory() as top:
        site = House(Path(top) / "site", '[aggregate]\naggregators = ["FileProcessor"]\n')
        data = messages_pb2.Files()
        for name, content, when in told:
            data.files.add(name=name, data=content, modtime=when)
        site.put(report("FileOutput", data.SerializeToString(), "1"))
        site.put(report("FileOutput", junk, "2"))
        site.put(files_report("3", good_txt=b"still"))
        with site.controller() as control:
            control.take()
            control.update()
            assert control.answer({"type": "File", "name": "good.txt"})
            kept = {path for path in Path(top).rglob("*") if path.is_file() and "aggregate.sqlite" not in path.name}
        queue = Path(site.queue().path)
        files_dir = Path(site.settings["aggregate"]["files_dir"])
        outside = {path for path in kept if queue not in path.parents and path.parent != files_dir / "node1"}
        assert outside == {site.root / "etc/infocluster.toml"}
        assert os.listdir(top) == ["site"]
