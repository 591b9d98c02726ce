# SPDX-License-Identifier: Apache-2.0
"""Checks of a host by itself: its users, its trees and who may write them, what is compiled, its timetable.

Source: proc_pid_mountinfo(5), crontab(5).
"""

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source, find_spec
from typing import NamedTuple

from infocluster import config, files, processes
from infocluster.apps import accounts, installation
from infocluster.apps.accounts import User
from infocluster.apps.checks import (
    PROGRAM_TIMEOUT_S,
    Fault,
    NotCheckedError,
    Place,
    by_server_or_all,
    only,
    quoted,
    writable,
)
from infocluster.errors import InfoclusterError

# Places where a lock or an SQLite database of one host is not safe from another.
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "coda", "lustre", "gpfs", "beegfs", "glusterfs"}
    | {"fuse.glusterfs", "fuse.sshfs"}
)
# What etc/crontab calls the two users.
SAMPLE_OWNER, SAMPLE_SERVER = "wwwowner", "www-data"
PACKAGES = ("filelock", "jinja2", "python_multipart")


def users(place: Place) -> Iterator[Fault]:
    """Check that there are two users, and that neither is root."""
    site = place.settings["site"]
    found: list[User] = []
    for what, setting, account in (
        ("the web server's user", "server_user", place.server),
        ("the file owner", "file_owner", place.owner),
    ):
        try:
            user = account()
        except NotCheckedError as error:
            make = f", or: adduser --system --group {quoted(site[setting])}" if site[setting] else ""
            yield Fault(f"{what}: {error}", f"set site.{setting} to a user that is there{make}")
            continue
        found.append(user)
        if user.uid == 0:
            yield Fault(f"{what} is root", f"set site.{setting} to a user of its own")
    if len(found) == 2 and found[0].uid == found[1].uid:
        yield Fault(
            f"{found[0].name} is both the web server's user and the file owner: a visitor who breaks a "
            "program changes the pages",
            "set site.file_owner to another user and chown the production tree to it",
        )


def tree(place: Place) -> Iterator[Fault]:
    """Check that the installed tree is what was installed, that its interpreter is there, and who may write it."""
    if not place.installed:
        raise NotCheckedError("this is a checkout, not an installation")
    again = f"make install PREFIX={quoted(place.root)} PYTHON={quoted(place.installed['python'])}"
    if place.installed["prefix"] != place.root:
        yield Fault(f"{place.root} was installed to be used as {place.installed['prefix']}", again)
    for path, (mode, mark) in sorted(place.installed["files"].items()):
        try:
            status = os.lstat(f"{place.root}/{path}")
            now = installation.mark(f"{place.root}/{path}")
        except FileNotFoundError:
            yield Fault(f"{place.root}/{path} is missing", again)
            continue
        if now != mark:
            yield Fault(f"{place.root}/{path} is not what was installed", again)
        elif not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) != mode:
            yield Fault(
                f"{place.root}/{path} has mode {stat.S_IMODE(status.st_mode):04o}",
                f"chmod {mode:04o} {quoted(f'{place.root}/{path}')}",
            )
    yield from writable(place, [place.root], {f"{place.root}/var"})
    try:
        found = installation.interpreter(place.installed["python"])
    except InfoclusterError as error:
        yield Fault(f"line 1 of every program: {error}", again)
        return
    if found.tag != place.installed["tag"]:
        yield Fault(f"{found.path} has become {found.tag}; the tree is for {place.installed['tag']}", again)
    sys.path_importer_cache.clear()
    for package in PACKAGES:
        if find_spec(package) is None:
            yield Fault(f"the package {package} is missing in {place.root}/{installation.SITE}", again)


def compiled(place: Place) -> Iterator[Fault]:
    """Check that what is compiled is compiled from what is there, and for its reader: a hit is slow otherwise."""
    if not place.installed:
        raise NotCheckedError("this is a checkout, not an installation")
    mend = f"{quoted(place.root)}/batch/check-site -compile"
    if not config.is_compiled(place.settings_file):
        yield Fault(f"the compiled copy of {place.settings_file} is missing or older than it", mend)
    modules = [f"{place.root}/{path}" for path in installation.compiled_files(place.root)]
    # A module that many of them have is told once.
    changed: set[str] = set()
    for file in modules:
        try:
            text = files.read(file)
        except FileNotFoundError:
            yield Fault(f"{file} is missing", mend)
            continue
        for source, size, mtime_ns in installation.compiled_from(text):
            try:
                status = os.stat(source)
            except FileNotFoundError:
                yield Fault(f"{source} is gone, and {file} still has it", mend)
                continue
            if (status.st_size, status.st_mtime_ns) != (size, mtime_ns) and source not in changed:
                changed.add(source)
                yield Fault(f"{source} was changed after {file} was made", mend)
    for path in place.installed["files"]:
        if path.startswith("lib/") and path.endswith(".py"):
            modules.append(f"{place.root}/{path}")
    for module in modules:
        if os.path.exists(module) and not _is_fresh(module):
            yield Fault(f"{module} has no compiled copy, or an older one", mend)
    yield from _closed(place, [copy for copy in map(cache_from_source, modules) if os.path.exists(copy)])


def _closed(place: Place, copies: list[str]) -> Iterator[Fault]:
    """Yield what keeps a hit, or on a batch host a job, from its modules: a mode, which root does not feel."""
    reader = place.server() if place.is_web else place.owner()
    closed = [
        copy
        for copy in copies
        if not (
            accounts.may(os.stat(os.path.dirname(copy)), reader, 0o1) and accounts.may(os.stat(copy), reader, 0o4)
        )
    ]
    if closed:
        count = f", and {len(closed) - 1} more" if len(closed) > 1 else ""
        yield Fault(
            f"{closed[0]}{count} is not for {reader.name} to read", f"chmod -R go+rX {quoted(f'{place.root}/lib')}"
        )


def _is_fresh(module: str) -> bool:
    try:
        head = files.read(cache_from_source(module))[:16]
        status = os.stat(module)
    except FileNotFoundError:
        return False
    mtime_s, size = int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")
    return mtime_s == int(status.st_mtime) & 0xFFFFFFFF and size == status.st_size & 0xFFFFFFFF


def settings(place: Place) -> Iterator[Fault]:
    """Check who may write the settings and their compiled copy: whoever may, may be anybody here."""
    for path in (place.settings_file, place.settings_file + ".compiled", os.path.dirname(place.settings_file)):
        if os.path.exists(path):
            yield from by_server_or_all(place, path, os.stat(path))


def secrets(place: Place) -> Iterator[Fault]:
    """Check that secrets are their owner's to write, one group's to read, and nobody else's."""
    directory = os.path.dirname(place.settings_file) + "/secrets"
    if not os.path.isdir(directory):
        raise NotCheckedError("there are none")
    for path in sorted(
        path for top, _, names in os.walk(directory) for path in (top, *(f"{top}/{one}" for one in names))
    ):
        status = os.lstat(path)
        mode = stat.S_IMODE(status.st_mode)
        right = 0o750 if stat.S_ISDIR(status.st_mode) else 0o640
        if mode & ~right:
            yield Fault(f"{path} has mode {mode:04o}", f"chmod {right:04o} {quoted(path)}")
        if status.st_uid == place.server().uid:
            yield Fault(f"{path} belongs to the web server's user", f"chown root {quoted(path)}")


def state(place: Place) -> Iterator[Fault]:
    """Check the state directory: the file owner's, closed to others, on a local disk."""
    only(place.is_batch, "batch host")
    directory = place.settings["site"]["state_dir"]
    owner = place.owner()
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        yield Fault(f"{directory} is missing", f"install -d -o {owner.name} -m 0750 {quoted(directory)}")
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != owner.uid:
        yield Fault(
            f"{directory} belongs to {accounts.by_number(status.st_uid).name}, not to the file owner",
            f"chown -R {owner.name} {quoted(directory)}",
        )
    if mode & 0o007:
        yield Fault(f"{directory} is open to everyone: mode {mode:04o}", f"chmod o-rwx {quoted(directory)}")
    if mode & 0o020 and not mode & 0o2000:
        yield Fault(
            f"{directory} is shared with group {accounts.group_name(status.st_gid)}, and what is made in it "
            f"would not be: mode {mode:04o}",
            f"chmod g+s {quoted(directory)}",
        )
    kind = file_system(directory)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Fault(
            f"{directory} is on {kind}: locks and databases of two hosts would meet there unseen",
            "set site.state_dir to a directory on a local disk",
        )


def file_system(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system that a path is on, such as ``ext4``, "" where that is not known.

    Source: proc_pid_mountinfo(5).
    """
    path = os.path.realpath(path)
    longest, found = -1, ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                left, _, right = line.partition(" - ")
                point = left.split()[4].encode("latin-1", "replace").decode("unicode_escape")
                # Of two on one point the later one is on top.
                if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= longest:
                    longest, found = len(point), right.split()[0]
    except (OSError, IndexError, UnicodeError):
        return found
    return found


def production(place: Place) -> Iterator[Fault]:
    """Check the production tree: there, the file owner's, and not for the web server's user to write."""
    only(place.is_batch, "batch host")
    top = place.production
    if not os.path.isdir(top):
        owner = place.settings["site"]["file_owner"] or "OWNER"
        yield Fault(f"{top} is missing", f"install -d -o {quoted(owner)} -m 0755 {quoted(top)}")
        return
    yield from writable(place, [top], set())
    for path in [top, *(entry.path for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False))]:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & 0o020 and not mode & 0o2000:
            yield Fault(
                f"{path} is shared with a group, and what is made in it would not be: mode {mode:04o}",
                f"chmod g+s {quoted(path)}",
            )
    for directory in place.settings["site"]["development_dirs"]:
        if not os.path.isdir(directory):
            yield Fault(f"the development tree {directory} is missing", f"install -d -m 2775 {quoted(directory)}")


class CronEntry(NamedTuple):
    """One line of a timetable: who runs what."""

    user: str
    command: str


def cron_entries(text: str, user: str | None) -> Iterator[CronEntry]:
    """Yield the entries of a crontab.

    Args:
        text: its content.
        user: whose it is; None for a system crontab, where the user stands before the command.

    Source: crontab(5).
    """
    for line in text.splitlines():
        words = line.split(None, 5)
        if not words or line.lstrip().startswith("#") or "=" in words[0]:
            continue
        rest = line.split(None, 1)[1:] if words[0].startswith("@") else words[5:]
        if not rest:
            continue
        if user is not None:
            yield CronEntry(user, rest[0])
        else:
            runner, _, command = rest[0].partition(" ")
            yield CronEntry(runner, command.strip())


def cron(place: Place) -> Iterator[Fault]:
    """Check that cron runs what the sample timetable lists, each program with its options as the user it is for."""
    if not place.installed:
        raise NotCheckedError("this is a checkout, not an installation")
    found = list(_timetables(place))
    sample = quoted(f"{place.root}/etc/crontab")
    roles = {SAMPLE_OWNER: (place.is_batch, place.owner), SAMPLE_SERVER: (place.is_web, place.server)}
    # Where no storage cluster polls, nobody has to be watched.
    unneeded = set() if place.settings["core_filers"] else {f"{place.root}/batch/backup-watch"}
    lines = list(cron_entries(files.read(f"{place.root}/etc/crontab").decode(), None))
    for user, command in lines:
        is_ours, account = roles.get(user, (False, place.owner))
        program = next((word for word in command.split() if word.startswith(f"{place.root}/batch/")), "")
        if not is_ours or not program or program in unneeded:
            continue
        options = _options(command)
        # An option that another line is there for makes it that one: forms-nightly -soon is not the night.
        others = {option for line in lines if program in line.command for option in _options(line.command)} - options
        runners = {
            entry.user
            for entry in found
            if program in entry.command.split()
            and options <= _options(entry.command)
            and not others & _options(entry.command)
        }
        told = " ".join([program, *sorted(options)])
        if not runners:
            yield Fault(f"cron does not run {told}", f"see {sample}; copy its line to /etc/cron.d/infocluster")
        elif account().name not in runners:
            yield Fault(
                f"cron runs {told} as {', '.join(sorted(runners))}",
                f"let it run as {account().name} in /etc/cron.d/infocluster",
            )
    for entry in found:
        for word in entry.command.split():
            if word.startswith(f"{place.root}/batch/") and not os.access(word, os.X_OK):
                yield Fault(f"cron runs {word}, which is missing or no program", "take the line out of the crontab")


def _options(command: str) -> set[str]:
    """Return the options of a command, each with one hyphen as the sample writes them."""
    return {"-" + word.lstrip("-") for word in command.split() if word.startswith("-")}


def _timetables(place: Place) -> Iterator[CronEntry]:
    paths: list[str] = []
    for named in place.timetables:
        below = sorted(entry.path for entry in os.scandir(named) if entry.is_file()) if os.path.isdir(named) else []
        paths += below or [named] * os.path.isfile(named)
    for path in paths:
        yield from cron_entries(files.read(path).decode("utf-8", "replace"), None)
    if shutil.which("crontab") is None:
        return
    for account in (place.owner, place.server):
        try:
            user = account()
        except NotCheckedError:
            continue
        if os.geteuid() == 0:
            command = ["crontab", "-u", user.name, "-l"]
        elif os.geteuid() == user.uid:
            command = ["crontab", "-l"]
        else:
            continue
        outcome = processes.run(command, PROGRAM_TIMEOUT_S)
        if outcome.status == 0:
            yield from cron_entries(outcome.output.decode("utf-8", "replace"), user.name)
