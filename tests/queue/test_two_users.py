# SPDX-License-Identifier: Apache-2.0
"""A queue of two users: one adds, the other consumes, and neither is root."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infocluster.apps import accounts, queue_check

LIB = Path(__file__).resolve().parents[2] / "lib"
ADDER, CONSUMER, GROUP = 61001, 61002, 61003
HARDLINKS = Path("/proc/sys/fs/protected_hardlinks")
pytestmark = [pytest.mark.root, pytest.mark.xdist_group("hardlinks")]

CONSUME = """
from infocluster.queue.simple import Simple
queue = Simple(top)
for name in queue.locked():
    print(queue.get(name), queue.touch(name), queue.remove(name))
print(queue.count(), queue.purge()[0])
"""
CONSUME_DIRQ = """
from dirq.QueueSimple import QueueSimple
queue = QueueSimple(top)
for name in queue:
    print(queue.lock(name), queue.get(name), queue.remove(name))
"""
ADD = "from infocluster.queue.simple import Simple; Simple(top, umask={umask}, granularity_s=1).add(b'x')"


@pytest.fixture(autouse=True)
def protected() -> Iterator[None]:
    """Hard links protected, as Linux distributions have them."""
    before = HARDLINKS.read_text()
    if before.strip() != "1":
        HARDLINKS.write_text("1")
    yield
    if before.strip() != "1":
        HARDLINKS.write_text(before)


def run(uid: int, top: Path, program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", f"top = {str(top)!r}\n{program}"]
    environment = {"PYTHONPATH": f"{LIB}:{':'.join(path for path in sys.path if path)}"}
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        user=uid,
        group=uid,
        extra_groups=[GROUP],
        check=False,
    )


def shared(top: Path) -> Path:
    queue = top / "queue"
    queue.mkdir()
    os.chown(queue, ADDER, GROUP)
    queue.chmod(0o2770)
    return queue


def test_group_with_umask_007_shares_a_queue(open_dir: Path) -> None:
    queue = shared(open_dir)
    # One's own are locked with a time that he sets, another's with the kernel's.
    for adder in (ADDER, CONSUMER, CONSUMER, ADDER, ADDER, CONSUMER):
        assert run(adder, queue, ADD.format(umask=0o007)).returncode == 0
    done = run(CONSUMER, queue, CONSUME)
    assert (done.stdout, done.stderr) == ("b'x' True True\n" * 6 + "0 0\n", "")
    assert run(ADDER, queue, ADD.format(umask=0o007)).returncode == 0
    assert run(CONSUMER, queue, CONSUME_DIRQ).stdout == "True b'x' None\n"


def test_element_that_the_group_may_not_write_is_a_fault_and_stays(open_dir: Path) -> None:
    queue = shared(open_dir)
    assert run(ADDER, queue, ADD.format(umask=0o027)).returncode == 0
    before = sorted(queue.rglob("*"))
    done = run(CONSUMER, queue, CONSUME)
    assert "UnavailableError: cannot lock" in done.stderr and "(fs.protected_hardlinks)" in done.stderr
    assert sorted(queue.rglob("*")) == before
    # What the group may have, behind it, is reached where somebody is told of the rest.
    os.chmod(next(queue.iterdir()), 0o2770)
    assert run(CONSUMER, queue, ADD.format(umask=0o007)).returncode == 0
    done = run(
        CONSUMER,
        queue,
        CONSUME.replace("locked()", "locked(refused.append)").replace("queue =", "refused = []; queue =")
        + "print(len(refused))",
    )
    assert (done.stdout, done.stderr) == ("b'x' True True\n1 0\n1\n", "")


def found(queue: Path, *more: accounts.User) -> list[str]:
    return [fault for fault, _ in queue_check.faults(str(queue), ["adder", "consumer"])]


def test_doctor_tells_what_a_shared_queue_lacks(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Accounts of these names, without a line in this host's own list of them.
    users = {
        name: accounts.User(name, uid, uid, frozenset({uid, GROUP}))
        for name, uid in (("adder", ADDER), ("consumer", CONSUMER))
    } | {"loner": accounts.User("loner", CONSUMER, CONSUMER, frozenset({CONSUMER}))}
    monkeypatch.setattr(accounts, "by_name", users.get)
    queue = open_dir / "queue"
    assert [fault for fault, _ in queue_check.faults(str(queue), [])] == [f"{queue}: nobody is named who uses it"]
    assert found(queue) == [f"{queue} is missing"]
    shared(open_dir)
    assert found(queue) == []
    assert list(queue.iterdir()) == []
    os.chown(open_dir, ADDER, ADDER)
    open_dir.chmod(0o700)
    assert [fault.partition(" adds")[0] for fault in found(queue)] == [
        f"{queue}: consumer cannot consume what adder",
        f"{queue}: adder cannot consume what consumer",
    ]
    assert list(queue.iterdir()) == []
    open_dir.chmod(0o755)
    queue.chmod(0o770)
    assert found(queue) == [f"{queue} has mode 0770, and a shared queue has 2770"]
    queue.chmod(0o2770)
    assert run(ADDER, queue, ADD.format(umask=0o027)).returncode == 0
    (fault, other) = sorted(found(queue))
    assert "cannot be removed by the group: mode 2750" in fault
    assert "cannot be locked by the group: mode 0640, with fs.protected_hardlinks = 1" in other
    os.chown(queue, ADDER, ADDER)
    ((fault, mend),) = queue_check.faults(str(queue), ["adder", "consumer"])
    assert fault.endswith("which lacks consumer") and mend == f"chgrp -R {GROUP} {queue}"
    os.chown(queue, ADDER, 0)
    assert [mend for _, mend in queue_check.faults(str(queue), ["adder", "loner"])] == [f"chgrp -R GROUP {queue}"]
    os.chown(queue, ADDER, ADDER)
    ((_, mend),) = queue_check.faults(str(queue), ["adder", "loner"])
    assert mend == f"usermod -aG {ADDER} loner"
    (open_dir / "file").touch()
    assert found(open_dir / "file") == [f"{open_dir}/file is no directory"]
