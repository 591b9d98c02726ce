# SPDX-License-Identifier: Apache-2.0
"""Directories that switch over in one step: a visitor sees all of the old one or all of the new one.

1. A run that changes nothing finds out what is to be done; a directory in which nothing is to be done is left alone.
2. Files and links that were named themselves are put in place as ever: a rename is one step anyway.
3. Each directory is built whole beside the present one, as ``.~NAME.RANDOM``: what is new is sent, what is the same
   is linked to the present one (``--link-dest``), and what is left out is linked by the server itself.
4. When all of them are complete, each changes places with the present one, by renameat2(2) with RENAME_EXCHANGE;
   what it then holds, the old one, is removed. Links between the two end there.
5. Last goes what is gone on the master and was named itself.

The steps on the server are a program of their own, which python3 there reads from us. Where it is missing, or the
file system exchanges no names, nothing is changed, and that is said. What a killed run left beside a directory is
removed by the next one.

Source: rename(2), rsync(1) --link-dest.
"""

import posix
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from infocluster import files
from infocluster.errors import UnavailableError
from infocluster.names import printable
from infocluster.push.rsync import Push, Report, kept
from infocluster.trees import Action, Directory

NOT_FOUND = 127

# What the server's python3 reads, any version of the last ten years; a call of one of its functions follows.
_PROGRAM = b"""
import ctypes, os, re, shutil, stat, sys

def end(error):
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    sys.stderr.write("infocluster: " + reason + "\\n")
    sys.exit(1)

def clear(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)

def exchange(one, other):
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise ValueError("its system exchanges no names")
    if call(-100, ctypes.c_char_p(one), -100, ctypes.c_char_p(other), ctypes.c_uint(2)) != 0:
        code = ctypes.get_errno()
        raise ValueError("its file system exchanges no names: " + os.strerror(code))

def prepare(path, staged):
    above, name = os.path.split(path)
    ours = re.compile(re.escape(b".~" + name[:40]) + rb"\\.[0-9a-f]{12}")
    for other in os.listdir(above or b"."):
        if len(name) <= 40 and ours.fullmatch(other):
            clear(os.path.join(above, other))
    probe = staged + b".probe"
    os.mkdir(staged, 0o700)
    os.mkdir(probe, 0o700)
    try:
        exchange(staged, probe)
    except ValueError:
        os.rmdir(staged)
        raise
    finally:
        os.rmdir(probe)

def carry(old, new):
    status = os.lstat(old)
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(new, 0o700)
        for name in os.listdir(old):
            carry(os.path.join(old, name), os.path.join(new, name))
        os.chmod(new, stat.S_IMODE(status.st_mode))
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.link(old, new, follow_symlinks=False)

def complete(path, staged, mode, left):
    for name in left:
        old, new = os.path.join(path, name), os.path.join(staged, name)
        if os.path.lexists(old) and not os.path.lexists(new):
            os.makedirs(os.path.dirname(new), exist_ok=True)
            carry(old, new)
    os.chmod(staged, mode)

def enter_all(destination, stages):
    os.chdir(destination)
    for path, staged, mode, left in stages:
        done = b"."
        for name in path.split(b"/")[:-1]:
            done += b"/" + name
            if not stat.S_ISDIR(os.lstat(done).st_mode):
                raise ValueError("a directory above it is something else")

def prepare_all(destination, stages):
    enter_all(destination, stages)
    for path, staged, mode, left in stages:
        prepare(path, staged)

def switch_all(destination, stages):
    enter_all(destination, stages)
    for path, staged, mode, left in stages:
        complete(path, staged, mode, left)
    for path, staged, mode, left in stages:
        if os.path.lexists(path):
            exchange(staged, path)
        else:
            os.rename(staged, path)
        sys.stdout.write("switched\\n")
        sys.stdout.flush()
    for path, staged, mode, left in stages:
        clear(staged)

def discard_all(destination, stages):
    os.chdir(destination)
    for path, staged, mode, left in stages:
        clear(staged)

def attempt(call, *arguments):
    try:
        call(*arguments)
    except (OSError, ValueError) as error:
        end(error)

"""


@dataclass(frozen=True, slots=True)
class _Stage:
    """A directory that is built anew: its tree path, its name until then, what it is to hold."""

    path: str
    staged: str
    node: Directory
    left: list[str]


def work(push: Push) -> Iterator[Action]:
    """Do a push in which each directory switches over in one step, and yield what was done.

    Raises:
        UnavailableError: the server cannot do it, or nothing more can be done there.
        UnreachableError: it could not be reached, or the connection broke.
    """
    order = push.order
    plan = list(Push(push.server, push.listing, order._replace(show=True, atomic=False)).work())
    if order.show or all(action.verb == "keep" for action in plan):
        yield from plan
        return
    stages = list(_stages(push, plan))
    others = [action for action in plan if not any(_is_in(action.path, stage.path) for stage in stages)]
    report = Report()
    switched = 0
    try:
        if put := [action.path for action in others if action.verb in ("install", "update")]:
            push.put(report, put, ["--dirs"])
        if stages:
            _ask(push, "prepare_all", stages)
        for stage in stages:
            _fill(push, report, stage)
        if stages and not report.faults:
            switched = _ask(push, "switch_all", stages)
        if push.absent and not report.faults:
            push.remove(report, push.absent)
    finally:
        if switched < len(stages):
            with suppress(UnavailableError):
                _ask(push, "discard_all", stages[switched:])
    done = [action for action in plan if any(_is_in(action.path, stage.path) for stage in stages[:switched])]
    yield from done
    yield from report.actions()
    if report.faults:
        yield from kept([action for action in plan if action.verb == "remove" and action not in done])


def _stages(push: Push, plan: list[Action]) -> Iterator[_Stage]:
    """Yield the directories in which there is anything to do."""
    for path, node in push.whole:
        if any(_is_in(action.path, path) and action.verb != "keep" for action in plan):
            above, _, name = path.rpartition("/")
            # The random part is what tells it from that of a directory with a longer name.
            short = name.encode("utf-8", "surrogateescape")[:40].decode("utf-8", "surrogateescape")
            staged = f"{files.TEMPORARY}{short}.{posix.urandom(6).hex()}"
            stays = [gone for gone, _ in push.listing.left] + [one.path for one in plan if one.verb == "keep"]
            left = [gone[len(path) + 1 :] for gone in stays if _is_in(gone, path)]
            yield _Stage(path, f"{above}/{staged}" if above else staged, node, left)


def _fill(push: Push, report: Report, stage: _Stage) -> None:
    """Send what a directory is to hold to where it is built; what cannot be sent goes into the report."""
    names = [*stage.node.entries, *stage.node.directories]
    if not names:
        return
    staging = Report()
    link = f"--link-dest={push.server.destination}/{stage.path}"
    push.put(staging, names, ["--recursive", link], below=(stage.path, stage.staged, stage.left))
    for path, why in staging.faults.items():
        report.faults[f"{stage.path}/{path}"] = why


def _ask(push: Push, function: str, stages: list[_Stage]) -> int:
    """Have the server do a step, and return in how many directories it was done.

    Raises:
        UnavailableError: it cannot, in none of them or behind those that were done.
    """
    values = [(stage.path, stage.staged, stage.node.mode & 0o777 | 0o700, stage.left) for stage in stages]
    call = f"attempt({function}, {_literal(push.server.destination)}, {_literal(values)})\n"
    outcome = push.ask(["python3", "-"], _PROGRAM + call.encode("ascii"))
    done = outcome.output.count(b"\n")
    if outcome.status == 0:
        return done
    lines = outcome.errors.decode("utf-8", "backslashreplace").strip().splitlines()
    why = lines[-1].removeprefix("infocluster: ") if lines else f"status {outcome.status}"
    if outcome.status == NOT_FOUND:
        why = "it has no python3, which does it there"
    path = stages[min(done, len(stages) - 1)].path
    after = f" and what follows, behind {done} others," if done else ""
    raise UnavailableError(f"cannot switch over {printable(path)}{after} on {push.server.name}: {printable(why)}")


def _literal(value: object) -> str:
    if isinstance(value, str):
        return repr(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return repr(value)


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")
