# SPDX-License-Identifier: Apache-2.0
"""The normal queue by itself, and with python-dirq on the other side."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dirq.queue import Queue
from hypothesis import given
from hypothesis import strategies as st

from infocluster.errors import BadInputError, ConfigError, UnavailableError
from infocluster.queue import normal
from infocluster.queue.normal import SSM_SCHEMA, Normal

SCHEMA = {"body": "string", "raw": "binary?", "header": "table?"}
DATA = {"body": "text \u00fc\n", "header": {"a\tb": "c\\n\nd", "": "empty"}}
WORDS = st.text(st.characters(codec="utf-8", include_characters="\\\t\nnt"), max_size=8)


def frozen() -> float:
    return 1795384800.25


@pytest.fixture
def top(tmp_path: Path) -> str:
    return str(tmp_path / "queue")


def everything(top: str) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in Path(top).rglob("*"))


def age(path: str, seconds: float) -> None:
    before = time.time() - seconds
    os.utime(path, (before, before))


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(Path(normal.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_element_is_a_directory_of_fields(top: str) -> None:
    name = Normal(top, SCHEMA, digit=11, clock=frozen).add(DATA | {"raw": b"\xff\n"})
    assert name == "00000000/6b0365e03d090b"
    assert everything(top) == sorted(
        ["00000000", name, *(f"{name}/{field}" for field in SCHEMA), "temporary", "obsolete"]
    )
    assert Path(f"{top}/{name}/header").read_bytes() == b"\tempty\na\\tb\tc\\\\n\\nd\n"
    assert Path(f"{top}/{name}/raw").read_bytes() == b"\xff\n"


def test_what_we_add_dirq_iterates_locks_gets_and_removes(top: str) -> None:
    ours = Normal(top, SCHEMA)
    names = [ours.add(DATA), ours.add({"body": ""})]
    theirs = Queue(top, schema=SCHEMA)
    assert list(theirs.names()) == names
    assert theirs.count() == 2
    for name, data in zip(names, (DATA, {"body": ""}), strict=True):
        assert theirs.lock(name)
        assert not ours.lock(name)
        assert ours.get(name) is None
        assert not ours.remove(name) and not ours.unlock(name)
        assert theirs.get(name) == data
        theirs.remove(name)
    assert ours.count() == 0


def test_what_dirq_adds_we_iterate_lock_get_and_remove(top: str) -> None:
    theirs = Queue(top, schema=SCHEMA)
    names = [theirs.add(DATA), theirs.add({"body": ""})]
    ours = Normal(top, SCHEMA)
    assert list(ours) == names
    found = []
    for name in ours.locked():
        assert not theirs.lock(name)
        found.append(ours.get(name))
        assert ours.remove(name)
    assert found == [DATA, {"body": ""}]
    assert theirs.count() == 0
    assert everything(top) == ["00000000", "obsolete", "temporary"]


def test_directories_are_numbered_as_dirq_numbers_them(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    ours, theirs = Normal(one, SCHEMA, elements_limit=2), Queue(other, schema=SCHEMA, maxelts=2)
    for queue in (ours, theirs):
        names = [queue.add({"body": "x"}) for _ in range(5)]
        for name in names[4:]:
            assert queue.lock(name)
            queue.remove(name)
        queue.add({"body": "x"})
    directories = [sorted(name for name in os.listdir(top) if len(name) == 8) for top in (one, other)]
    assert directories[0] == directories[1]
    assert directories[0][:3] == ["00000000", "00000001", "00000002"]


@given(values=st.dictionaries(WORDS, WORDS, max_size=5))
def test_table_is_stored_as_dirq_stores_it(values: dict[str, str]) -> None:
    from dirq.queue import _hash2string, _string2hash

    stored = normal.table(values).decode()
    assert stored == _hash2string(values)
    assert normal.parse_table(stored) == _string2hash(stored) == values


def test_line_that_is_none_of_a_table_is_told(top: str) -> None:
    queue = Normal(top, {"header": "table"})
    name = queue.add({"header": {"a": "b"}})
    Path(f"{top}/{name}/header").write_text("a\tb\tc\n")
    assert queue.lock(name)
    with pytest.raises(BadInputError, match="no line of a table"):
        queue.get(name)


def test_element_that_does_not_fit_the_schema_is_refused_and_leaves_nothing(top: str) -> None:
    queue = Normal(top, SCHEMA)
    for data in ({}, {"raw": b""}, {"body": b"bytes"}, {"body": "", "other": ""}, {"body": "", "header": {"a": 1}}):
        with pytest.raises(BadInputError):
            queue.add(data)
    with pytest.raises(BadInputError, match="without a schema"):
        Normal(top).add({"body": ""})
    assert not os.path.exists(top)
    for schema in ({"body": "text"}, {"../body": "string"}, {"body": "string?"}):
        with pytest.raises(ConfigError):
            Normal(top, schema)


def test_lock_that_was_broken_and_taken_by_another_is_not_ours(top: str) -> None:
    queue, other = Normal(top, SCHEMA), Normal(top, SCHEMA)
    name = queue.add(DATA)
    assert queue.lock(name)
    age(f"{top}/{name}", 700)
    assert Normal(top).purge() == (0, 1, 0)
    assert other.lock(name)
    assert queue.get(name) is None
    assert not queue.touch(name) and not queue.remove(name) and not queue.unlock(name)
    assert other.touch(name)
    assert other.get(name) == DATA
    assert other.remove(name)


def test_lock_that_another_makes_while_we_remove_is_no_fault(top: str) -> None:
    """In a process of its own, where the other one, who had looked the path up before, comes between two steps."""
    program = """
import os, sys
from infocluster.queue.normal import Normal
queue = Normal(sys.argv[1], {"body": "string"})
removed = os.rmdir
def lock_and_remove(path):
    if "/obsolete/" in path and not path.endswith("/locked"):
        os.rmdir = removed
        os.mkdir(path + "/locked")
    removed(path)
os.rmdir = lock_and_remove
name = queue.add({"body": "x"})
print(queue.lock(name), queue.remove(name), os.rmdir is removed, os.listdir(sys.argv[1] + "/obsolete"))
"""
    assert run(program, top) == "True True True []\n"


def test_unlocked_element_is_there_for_the_next(top: str) -> None:
    queue = Normal(top, SCHEMA)
    name = queue.add(DATA)
    assert not queue.remove(name)
    assert queue.lock(name) and not queue.lock(name)
    assert queue.unlock(name) and not queue.unlock(name)
    assert list(queue.locked()) == [name]


def test_purge_takes_what_died_and_leaves_the_rest(top: str) -> None:
    queue = Normal(top, SCHEMA, elements_limit=1)
    names = [queue.add(DATA) for _ in range(3)]
    assert queue.lock(names[0]) and queue.remove(names[0])
    old, new = f"{top}/temporary/{'0' * 14}", f"{top}/obsolete/{'1' * 14}"
    for path in (old, new):
        os.mkdir(path)
        Path(f"{path}/body").touch()
    age(old, 301)
    unfinished = f"{top}/.~00000001.0123456789ab"
    os.mkdir(unfinished)
    age(unfinished, 301)
    assert queue.lock(names[1])
    assert queue.purge() == (2, 0, 1)
    assert not os.path.exists(unfinished)
    assert os.path.exists(f"{new}/body") and not os.path.exists(old)
    age(f"{top}/{names[1]}", 601)
    assert queue.purge(0, 0) == (0, 0, 0)
    assert queue.purge() == (0, 1, 0)
    assert list(queue) == names[1:]


def test_strange_entries_are_ignored_and_never_fatal(top: str, tmp_path: Path) -> None:
    queue = Normal(top, SCHEMA)
    name = queue.add(DATA)
    directory = Path(top) / "00000000"
    (directory / "0123456789abcd").touch()
    (directory / "0123456789abce").symlink_to(tmp_path)
    for stray in ("0123456789ABCD", "0123456789abc", "0123456789abcd.tmp", "x"):
        (directory / stray).mkdir()
    (Path(top) / "00000001").touch()
    (Path(top) / "0000000A").mkdir()
    (Path(top) / "temporary" / "0123456789abcd").touch()
    (directory / name[9:] / "locked").touch()
    for path in (top, f"{top}/{name}", f"{top}/temporary/0123456789abcd"):
        age(path, 9999)
    before = everything(top)
    assert list(queue) == [name]
    assert queue.count() == 1
    for stray in ("00000000/0123456789abcd", "00000001/0123456789abcd", "00000009/0123456789abcd"):
        assert not queue.lock(stray)
    queue.purge()
    assert everything(top) == before


def test_element_that_ssm_received_is_read_with_its_schema(top: str) -> None:
    """As SSM2's receiver writes: into incoming with the sender, into reject with the reason."""
    received = Queue(top, schema={"body": "string", "signer": "string", "empaid": "string?"})
    rejected = Queue(top, schema={"body": "string", "signer": "string?", "empaid": "string?", "error": "string"})
    first = {
        "body": "APEL-summary-job-message: v0.3\n",
        "signer": "/C=UK/CN=host",
        "empaid": "6b0365e0/6b0365e03d090b",
    }
    second = {"body": "MIME", "error": "Message rejected"}
    received.add(first), rejected.add(second)
    queue = Normal(top, SSM_SCHEMA)
    assert [queue.get(name) for name in queue.locked()] == [first, second]


def test_queue_that_nobody_made_is_empty(top: str) -> None:
    queue = Normal(top, SCHEMA)
    assert (list(queue), queue.count(), queue.purge()) == ([], 0, (0, 0, 0))
    assert not os.path.exists(top)


def test_umask_of_a_queue_is_not_that_of_the_process(top: str) -> None:
    name = Normal(top, SCHEMA, umask=0o007).add(DATA)
    modes = [os.stat(f"{top}/{path}").st_mode & 0o777 for path in ("", "temporary", "00000000", name, f"{name}/body")]
    assert modes == [0o770, 0o770, 0o770, 0o770, 0o660]


def test_durable_element_and_its_directories_are_synced_before_add_returns(top: str) -> None:
    """In a process of its own, which says what it asks the kernel for."""
    program = """
import os, posix, sys
from infocluster.queue.normal import Normal
synced, renamed = os.fsync, os.rename
def sync_and_note(fd):
    print("fsync", os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), sys.argv[1]))
    synced(fd)
def rename_and_note(old, new):
    print("rename", os.path.relpath(new, sys.argv[1]))
    renamed(old, new)
os.fsync = posix.fsync = sync_and_note
os.rename = rename_and_note
queue = Normal(sys.argv[1], {"body": "string"}, durable=True, digit=0, clock=lambda: 1795384800.0)
print("added", queue.add({"body": "x"}))
"""
    said = run(program, top)
    name = "6b0365e0000000"
    assert said.splitlines() == [
        "fsync ..",
        f"fsync temporary/{name}/body",
        f"fsync temporary/{name}",
        f"rename 00000000/{name}",
        "fsync 00000000",
        "fsync .",
        f"added 00000000/{name}",
    ]


def test_real_error_is_raised_at_once_and_leaves_nothing(top: str) -> None:
    Path(top).write_text("a file")
    with pytest.raises(UnavailableError, match="Not a directory"):
        Normal(top, SCHEMA).add(DATA)
    os.unlink(top)
    queue = Normal(top, {"b" * 300: "string"})
    with pytest.raises(UnavailableError, match="File name too long"):
        queue.add({"b" * 300: "x"})
    assert everything(top) == ["obsolete", "temporary"]
