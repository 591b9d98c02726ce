# SPDX-License-Identifier: Apache-2.0
"""One lock on one file or directory, seen from other programs, other users and other threads."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infocluster.errors import UnavailableError
from infocluster.locks import lockfile

LIB = str(Path(lockfile.__file__).parents[2])
PERL = "open(my $f, '<', shift) or die; $| = 1; print flock($f, MODE | LOCK_NB) ? 'had' : 'busy'; <STDIN>"
# Imports first: what follows may be another user, who need not be able to read the checkout.
START = f"import sys; sys.path.insert(0, {LIB!r}); import os, signal; from infocluster.locks import lockfile\n"


@pytest.fixture(params=["file", "directory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / "target"
    path.mkdir() if request.param == "directory" else path.touch()
    return str(path)


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start programs that are talked to over pipes, and are gone when the test is."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def program(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", START + code, *arguments)


def held_by_flock(start: Callable[..., "subprocess.Popen[str]"], path: str, *options: str) -> "subprocess.Popen[str]":
    process = start("flock", *options, path, "sh", "-c", "echo held; cat >/dev/null")
    assert said(process) == "held"
    return process


def flock_has_it(path: str, *options: str) -> bool:
    return subprocess.run(["flock", "-n", *options, path, "true"], check=False).returncode == 0


def is_free(path: str, shared: bool = False) -> bool:
    try:
        with lockfile.hold(path, shared=shared, timeout_s=0):
            return True
    except UnavailableError:
        return False


def waiters(path: str) -> int:
    inode = os.stat(path).st_ino
    return sum("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    """Look until something can be seen that nobody tells."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.002)


def test_flock_program_is_excluded_and_excludes(target: str, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    with lockfile.hold(target):
        assert not flock_has_it(target)
        assert not flock_has_it(target, "-s")
    assert flock_has_it(target)
    process = held_by_flock(start, target)
    assert not is_free(target)
    assert not is_free(target, shared=True)
    process.communicate()
    assert is_free(target)


def test_shared_holders_hold_together_and_keep_an_exclusive_one_out(
    target: str, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    with lockfile.hold(target, shared=True):
        with lockfile.hold(target, shared=True, timeout_s=0):
            assert flock_has_it(target, "-s")
            assert not flock_has_it(target)
        assert not is_free(target)
    assert flock_has_it(target)
    held_by_flock(start, target, "-s")
    assert is_free(target, shared=True)
    assert not is_free(target)


def test_perl_is_excluded_and_excludes(target: str, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    def perl(mode: str) -> str:
        answer, _ = start("perl", "-MFcntl=:flock", "-e", PERL.replace("MODE", mode), target).communicate("\n")
        return answer

    with lockfile.hold(target):
        assert (perl("LOCK_EX"), perl("LOCK_SH")) == ("busy", "busy")
    with lockfile.hold(target, shared=True):
        assert (perl("LOCK_EX"), perl("LOCK_SH")) == ("busy", "had")
    process = start("perl", "-MFcntl=:flock", "-e", PERL.replace("MODE", "LOCK_EX"), target)
    assert process.stdout is not None
    assert process.stdout.read(3) == "had"
    assert not is_free(target)
    process.communicate("\n")
    assert is_free(target)


def test_missing_lock_file_is_made_empty_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "app.lock"
    with lockfile.hold(str(path)):
        inode = path.stat().st_ino
    with lockfile.hold(str(path)):
        pass
    assert (path.stat().st_ino, path.read_bytes()) == (inode, b"")


def test_content_of_a_locked_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.write_text("a record\n")
    with lockfile.hold(str(path)):
        assert path.read_text() == "a record\n"
    assert path.read_text() == "a record\n"


@pytest.mark.parametrize("timeout_s", [0, -1, 1e-9, 0.05])
def test_wait_ends_when_the_time_is_over(
    target: str, start: Callable[..., "subprocess.Popen[str]"], timeout_s: float
) -> None:
    held_by_flock(start, target)
    before = time.monotonic()
    with pytest.raises(UnavailableError, match="cannot lock"), lockfile.hold(target, timeout_s=timeout_s):
        pass
    assert timeout_s <= time.monotonic() - before < 5


def test_wait_in_a_thread_ends_when_the_time_is_over_or_the_lock_is_free(
    target: str, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = held_by_flock(start, target)
    seen: list[str] = []

    def wait(timeout_s: float) -> None:
        try:
            with lockfile.hold(target, timeout_s=timeout_s):
                seen.append("held")
        except UnavailableError as error:
            seen.append(str(error))

    for timeout_s in (0.05, 20):
        thread = threading.Thread(target=wait, args=(timeout_s,))
        thread.start()
        if timeout_s == 20:
            process.communicate()
        thread.join()
    assert seen[0].startswith(f"cannot lock {target} after 0.05 s: held by pid {process.pid}")
    assert seen[1] == "held"


@pytest.mark.parametrize("timeout_s", ["None", "20"])
def test_waiter_starts_when_the_holder_ends(
    target: str, start: Callable[..., "subprocess.Popen[str]"], timeout_s: str
) -> None:
    with lockfile.hold(target):
        code = f"with lockfile.hold(sys.argv[1], timeout_s={timeout_s}): print('held', flush=True)"
        waiter = start(*program(code, target))
        until(lambda: waiters(target) == 1)
    assert said(waiter) == "held"


def test_short_alarm_that_comes_before_the_wait_does_not_leave_it_endless(target: str) -> None:
    code = """
os.nice(5)
with lockfile.hold(sys.argv[1]):
    fd = os.open(sys.argv[1], os.O_RDONLY)
    print(sum(lockfile.take(fd, timeout_s=1e-6 * (number % 40)) for number in range(2000)))
"""
    done = subprocess.run(program(code, target), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


def test_alarm_of_the_caller_is_given_back(target: str, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    held_by_flock(start, target)
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        assert not is_free(target)
        with pytest.raises(UnavailableError), lockfile.hold(target, timeout_s=0.01):
            pass
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with (
            pytest.raises(UnavailableError, match=rf"cannot open the lock .*/{name}: "),
            lockfile.hold(str(tmp_path / name)),
        ):
            pass
    assert not (tmp_path / "nowhere").exists()


def test_missing_directory_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(UnavailableError, match=r"absent/app\.lock: No such file or directory"),
        lockfile.hold(f"{tmp_path}/absent/app.lock"),
    ):
        pass


def test_message_names_the_holder(target: str, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = held_by_flock(start, target)
    assert lockfile.holder(target) == f"pid {process.pid} (flock)"
    words = re.escape(f"cannot lock {target} after 0.01 s: held by pid {process.pid} (flock)")
    with pytest.raises(UnavailableError, match=words), lockfile.hold(target, timeout_s=0.01):
        pass
    process.communicate()
    assert lockfile.holder(target) is None


def test_killed_holder_frees_it_for_the_waiter(target: str, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    code = "with lockfile.hold(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    holder = start(*program(code, target))
    assert said(holder) == "held"
    waiter = start(*program(code, target))
    until(lambda: waiters(target) == 1)
    holder.kill()
    assert said(waiter) == "held"


def test_program_started_by_a_killed_holder_does_not_keep_it(
    target: str, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    code = """
import subprocess
with lockfile.hold(sys.argv[1]):
    print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
    sys.stdin.read()
"""
    holder = start(*program(code, target))
    pid = int(said(holder))
    try:
        assert not is_free(target)
        holder.kill()
        holder.wait()
        assert is_free(target)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_forked_child_neither_keeps_nor_ends_it(target: str, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    code = """
try:
    with lockfile.hold(sys.argv[1]):
        leaver = os.fork()
        if not leaver:
            raise SystemExit(0)
        os.waitpid(leaver, 0)
        stayer = os.fork()
        if not stayer:
            os.closerange(0, 3)
            signal.alarm(30)
            signal.pause()
        print("held", flush=True)
        sys.stdin.readline()
    print("left", flush=True)
    sys.stdin.readline()
finally:
    if leaver and stayer:
        os.kill(stayer, signal.SIGKILL)
"""
    holder = start(*program(code, target))
    assert said(holder) == "held"
    assert not is_free(target)
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert said(holder) == "left"
    assert is_free(target)
    holder.communicate("\n")


def test_alone_lets_one_process_in_and_names_it(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    path = str(tmp_path / "night.lock")
    code = "lock = lockfile.alone(sys.argv[1]); print('held', flush=True); sys.stdin.read(); lock.release()"
    first = start(*program(code, path))
    assert said(first) == "held"
    with pytest.raises(UnavailableError, match=rf"cannot lock {path}: held by pid {first.pid} \(python"):
        lockfile.alone(path)
    assert not is_free(path)
    first.communicate()
    assert first.returncode == 0
    lock = lockfile.alone(path)
    assert not flock_has_it(path)
    lock.release()
    assert flock_has_it(path)
    killed = start(*program(code, path))
    assert said(killed) == "held"
    killed.kill()
    killed.wait()
    lockfile.alone(path).release()


def test_alone_tells_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "night.lock").mkdir()
    with pytest.raises(UnavailableError, match=r"night\.lock: Is a directory"):
        lockfile.alone(str(tmp_path / "night.lock"))


def test_a_hit_loads_nothing_heavy_with_it() -> None:
    code = f"""
import sys; sys.path.insert(0, {LIB!r})
from infocluster.locks import lockfile
print(sorted({{"os", "re", "json", "typing", "contextlib", "dataclasses", "collections", "filelock", "signal"}}
    & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


BECOME = "os.setgroups([]); os.setgid(65533); os.setuid(65533)\n"


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_another_user_needs_no_more_than_read_permission(
    open_dir: Path, start: Callable[..., "subprocess.Popen[str]"], mode: int
) -> None:
    open_dir.chmod(0o1777)
    path = open_dir / "app.lock"
    path.touch()
    path.chmod(mode)
    code = BECOME + "with lockfile.hold(sys.argv[1], timeout_s=20): print('held', flush=True); sys.stdin.read()"
    with lockfile.hold(str(path)):
        other = start(*program(code, str(path)))
        until(lambda: waiters(str(path)) == 1)
    assert said(other) == "held"
    with pytest.raises(UnavailableError, match=rf"pid {other.pid} "), lockfile.hold(str(path), timeout_s=0):
        pass


@pytest.mark.root
def test_permission_is_what_the_message_says_when_it_is_missing(open_dir: Path) -> None:
    (open_dir / "closed.lock").touch()
    (open_dir / "closed.lock").chmod(0o600)
    code = BECOME + "lockfile.hold(sys.argv[1]).__enter__()"
    for name in ("closed.lock", "absent.lock"):
        done = subprocess.run(program(code, str(open_dir / name)), capture_output=True, text=True, check=False)
        assert f"cannot open the lock {open_dir / name}: Permission denied" in done.stderr
    assert not (open_dir / "absent.lock").exists()
