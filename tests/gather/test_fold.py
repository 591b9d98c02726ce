# SPDX-License-Identifier: Apache-2.0
"""Folding gives the same result on one process, on several and on a Dask cluster, in whatever slices."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dask_cluster
from conftest import ROOT
from dask_cluster import Cluster, Killed
from gather.line_count import Faulty, LineCount
from infocluster.errors import ConfigError, UnavailableError
from infocluster.gather import cluster, collect, fold, slices
from infocluster.gather.collect import Part

# One cluster for all tests that only ask it: workers take seconds to start.
pytestmark = [
    pytest.mark.xdist_group("dask"),
    # A client that is closed while its scheduler is gone leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster.started(tmp_path_factory.mktemp("dask")) as running:
        yield running


def local(processes: int) -> Settings:
    return {"engine": "local", "processes": processes}


def on(running: Cluster, gather: Path, timeout_s: float = 20) -> Settings:
    told = {"scheduler": running.address, "scheduler_timeout_s": timeout_s, "gather_dir": str(gather)}
    return {"engine": "dask", "processes": 0, **told}


@pytest.fixture(params=["one process", "three processes", "dask"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "dask":
        return on(request.getfixturevalue("shared"), tmp_path)
    return local(1 if request.param == "one process" else 3)


def parts_of(top: Path) -> list[Part]:
    found = collect.look(collect.Source(str(top), "app", "www", form="lines"), {})
    assert not found.faults
    return found.parts


def write(top: Path, server: str, lines: list[bytes]) -> Path:
    path = top / server / "www/app"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_every_line_is_counted_once_in_whatever_slices(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 5000)
    monkeypatch.setattr(slices, "BLOCK_BYTES", 700)
    expected: Counter[bytes] = Counter()
    for server in range(3):
        lines = [b"%d" % (number % 97) * (number % 50) for number in range(2000)]
        write(tmp_path, f"web{server}", lines)
        expected.update(line for line in lines if line)
    read: list[int] = []
    folded = fold.run(LineCount(), parts_of(tmp_path), settings, read.append)
    assert folded.result == expected
    assert sum(folded.bad.values()) == 3 * len([n for n in range(2000) if n % 50 == 0])
    assert sum(read) == sum(part.end - part.start for part in parts_of(tmp_path))


def test_file_that_fails_half_way_is_left_out_whole(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 1000)
    write(tmp_path, "web1", [b"one"] * 1000)
    shrinks = write(tmp_path, "web2", [b"two"] * 1000)
    parts = parts_of(tmp_path)
    shrinks.write_bytes(b"two\n" * 300)
    folded = fold.run(LineCount(), parts, settings)
    assert folded.result == Counter({b"one": 1000})
    assert list(folded.failed) == [str(shrinks)]
    assert [part.server for part in folded.parts] == ["web1"]


def many_lines(top: Path) -> Counter[bytes]:
    """Write lines of three servers and return what they come to."""
    expected: Counter[bytes] = Counter()
    for server in range(3):
        lines = [b"%d" % (number * number % 9973) for number in range(6000)]
        write(top, f"web{server}", lines)
        expected.update(lines)
    return expected


def test_small_files_go_together_and_none_is_lost(
    tmp_path: Path, shared: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PARTS_A_TASK", 7)
    top = tmp_path / "web1/www/app"
    top.mkdir(parents=True)
    for number in range(100):
        (top / f"{number}.txt").write_bytes(b"%d\n" % (number % 10))
    parts = collect.look(collect.Source(str(tmp_path), "app", "www", form="entries"), {}).parts
    folded = fold.run(LineCount(), parts, on(shared, tmp_path))
    assert folded.result == Counter({b"%d" % number: 10 for number in range(10)})
    assert folded.parts == parts


@pytest.mark.parametrize("begun", [0, 3])
def test_worker_killed_in_mid_run_changes_nothing(
    tmp_path: Path, begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 2000)
    monkeypatch.setattr(slices, "BLOCK_BYTES", 500)
    expected = many_lines(tmp_path / "gather")
    killed = Killed(tmp_path)
    with dask_cluster.started(tmp_path / "dask", workers=0) as running:
        running.worker("bystander", **killed.bystander)
        victim = running.worker("victim", VICTIM_AFTER=str(begun), **killed.victim)
        read: list[int] = []
        parts = parts_of(tmp_path / "gather")
        with killed.soon(victim, has_bystander=True):
            folded = fold.run(LineCount(), parts, on(running, tmp_path / "gather"), read.append)
    assert folded.result == expected
    assert (folded.parts, folded.bad, folded.failed) == (parts, {}, {})
    assert sum(read) == sum(part.end - part.start for part in parts)


def test_scheduler_killed_in_mid_run_is_a_failure_for_now(tmp_path: Path) -> None:
    many_lines(tmp_path / "gather")
    killed = Killed(tmp_path)
    with dask_cluster.started(tmp_path / "dask", workers=0) as running:
        running.worker("victim", VICTIM_AFTER="0", **killed.victim)
        with killed.soon(running.scheduler), pytest.raises(UnavailableError, match="scheduler"):
            fold.run(LineCount(), parts_of(tmp_path / "gather"), on(running, tmp_path / "gather", timeout_s=5))


def test_task_that_workers_die_over_is_a_failure_for_now(tmp_path: Path) -> None:
    many_lines(tmp_path / "gather")
    killed = Killed(tmp_path)
    no_second = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with dask_cluster.started(tmp_path / "dask", workers=0, variables=no_second) as running:
        victim = running.worker("victim", VICTIM_AFTER="0", **killed.victim)
        with killed.soon(victim), pytest.raises(UnavailableError, match="workers died over the same task"):
            fold.run(LineCount(), parts_of(tmp_path / "gather"), on(running, tmp_path / "gather"))


def test_cluster_whose_last_worker_is_gone_is_a_failure_for_now(tmp_path: Path) -> None:
    many_lines(tmp_path / "gather")
    killed = Killed(tmp_path)
    with dask_cluster.started(tmp_path / "dask", workers=0) as running:
        victim = running.worker("victim", VICTIM_AFTER="0", **killed.victim)
        with killed.soon(victim), pytest.raises(UnavailableError, match="no worker is left, for 1 s"):
            fold.run(LineCount(), parts_of(tmp_path / "gather"), on(running, tmp_path / "gather", timeout_s=1))


def test_scheduler_that_is_not_there_or_has_no_worker_is_a_failure_for_now(tmp_path: Path) -> None:
    many_lines(tmp_path)
    with (
        dask_cluster.started(tmp_path / "dask", workers=0) as running,
        pytest.raises(UnavailableError, match=r"no worker in 1 s"),
    ):
        fold.run(LineCount(), parts_of(tmp_path), on(running, tmp_path, timeout_s=1))
    with pytest.raises(UnavailableError, match="cannot reach the scheduler"):
        fold.run(LineCount(), parts_of(tmp_path), on(running, tmp_path, timeout_s=1))


def test_worker_without_our_infocluster_or_with_another_is_refused(tmp_path: Path) -> None:
    many_lines(tmp_path)
    other = tmp_path / "other"
    (other / "infocluster").mkdir(parents=True)
    for name in ("__init__.py", "files.py", "errors.py", "names.py"):
        (other / "infocluster" / name).write_bytes((ROOT / "lib/infocluster" / name).read_bytes())
    with dask_cluster.started(tmp_path / "dask", workers=0) as running:
        settings = on(running, tmp_path)
        stranger = running.worker("stranger", path=str(tmp_path))
        with pytest.raises(ConfigError, match=r"worker tcp\S+ cannot use its infocluster: No module named"):
            fold.run(LineCount(), parts_of(tmp_path), settings)
        stranger.kill()
        stranger.wait()
        (other / "infocluster").rename(tmp_path / "infocluster")
        for path in (ROOT / "lib/infocluster").rglob("*.py"):
            copy = tmp_path / "infocluster" / path.relative_to(ROOT / "lib/infocluster")
            copy.parent.mkdir(exist_ok=True, parents=True)
            copy.write_bytes(path.read_bytes())
        running.worker("twin", path=f"{tmp_path}:{ROOT}/tests")
        assert fold.run(LineCount(), parts_of(tmp_path), settings).result
        assert cluster.faults(settings, LineCount.packages) == []
        with (tmp_path / "infocluster/names.py").open("a") as file:
            file.write("# changed\n")
        running.worker("older", path=f"{tmp_path}:{ROOT}/tests")
        (fault,) = cluster.faults(settings, LineCount.packages)
        assert "has infocluster 0." in fault and "and this host has 0." in fault
        running.workers["twin"].kill()
        with pytest.raises(ConfigError, match=r"has infocluster 0\..*and this host has 0\."):
            fold.run(LineCount(), parts_of(tmp_path), settings)


def test_workers_that_see_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gather directories are below the working directory, which each process has its own."""
    for place in ("here", "elsewhere"):
        (tmp_path / place).mkdir()
    write(tmp_path / "here", "web1", [b"one"] * 1000)
    monkeypatch.chdir(tmp_path / "here")
    with dask_cluster.started(tmp_path / "dask", workers=0) as running:
        settings = on(running, Path("/proc/self/cwd"))
        running.worker("elsewhere", directory=tmp_path / "elsewhere")
        (fault,) = cluster.faults(settings, ())
        assert "does not see /proc/self/cwd as this host does" in fault
        with pytest.raises(UnavailableError, match=r"cannot read \S+app: No such file.*this host can"):
            fold.run(LineCount(), parts_of(Path("/proc/self/cwd")), settings)
        write(tmp_path / "elsewhere", "web1", [b"two"] * 1000)
        with pytest.raises(UnavailableError, match=r"not what the batch host sees there; this host can"):
            fold.run(LineCount(), parts_of(Path("/proc/self/cwd")), settings)


def test_fault_of_the_job_is_the_callers(tmp_path: Path, shared: Cluster) -> None:
    many_lines(tmp_path)
    for settings in (local(1), on(shared, tmp_path)):
        with pytest.raises(ZeroDivisionError, match="a fault of the job"):
            fold.run(Faulty(), parts_of(tmp_path), settings)


def test_process_killed_on_this_host_is_a_failure_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 1000)
    many_lines(tmp_path)
    monkeypatch.setattr(slices, "_blocks", lambda part: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UnavailableError, match="was killed"):
        fold.run(LineCount(), parts_of(tmp_path), local(2))
