# SPDX-License-Identifier: Apache-2.0
"""What check-site says of a queue that several users share by a group.

A user who adds and one who consumes share a queue when its top directory belongs to a group of both and is
set-group-ID with mode 2770, so that what is made in it is the group's too, and when every adder has the umask 007.
With ``fs.protected_hardlinks = 1``, which is usual, a lock (a second link) is made by who may read and write the
element: by its owner, and by its group where its mode is 0660.

Source: proc_sys_fs(5), link(2), inode(7).
"""

import os
import shlex
import stat
from collections.abc import Iterator
from typing import Any

from infocluster.apps import accounts
from infocluster.apps.accounts import User
from infocluster.queue.simple import Simple

UMASK = 0o007
SHOWN = 5
# In the queue, where its rights are those of an intermediate directory; nobody takes it for one, by its name.
PROBE = ".check-site"
HARDLINKS = "/proc/sys/fs/protected_hardlinks"


def faults(directory: str, users: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a shared queue, and the mend.

    Args:
        directory: its top.
        users: names of those who add and consume.

    Raises:
        RefusedError: this user may not become those users.
        UnavailableError: nothing can be done as one of them.
    """
    quoted = shlex.quote(directory)
    known: list[User] = []
    for name in users:
        user = accounts.by_name(name)
        if user is None:
            yield f"{directory}: there is no user {name}", "set queues.users"
            return
        known.append(user)
    if not known:
        yield f"{directory}: nobody is named who uses it", "set queues.users"
        return
    shared = frozenset.intersection(*(user.groups for user in known)) - {0}
    group = accounts.group_name(min(shared)) if shared else "GROUP"
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        yield f"{directory} is missing", f"install -d -o {users[0]} -g {group} -m 2770 {quoted}"
        return
    if not stat.S_ISDIR(status.st_mode):
        yield f"{directory} is no directory", "set queues.queue_dir"
        return
    outside = [user.name for user in known if status.st_gid not in user.groups]
    if outside:
        # Nobody is to come into root's group for a queue.
        mend = f"chgrp -R {group} {quoted}" if shared or not status.st_gid else ""
        group = accounts.group_name(status.st_gid)
        yield (
            f"{directory} is shared by group {group}, which lacks {', '.join(outside)}",
            mend or "; ".join(f"usermod -aG {group} {name}" for name in outside),
        )
        return
    group, mode = accounts.group_name(status.st_gid), stat.S_IMODE(status.st_mode)
    if mode & 0o2077 != 0o2070:
        yield f"{directory} has mode {mode:04o}, and a shared queue has 2770", f"chmod 2770 {quoted}"
        return
    found = list(_entries(directory, status.st_gid))
    for path, what in found[:SHOWN]:
        yield what, f"chgrp {group} {shlex.quote(path)}; chmod g+rwX,o-rwx {shlex.quote(path)}"
    if len(found) > SHOWN:
        yield (
            f"{len(found) - SHOWN} more like this in {directory}",
            f"chgrp -R {group} {quoted}; umask 007 for adders",
        )
    if not found:
        yield from _round(directory, known)


def _entries(directory: str, gid: int) -> Iterator[tuple[str, str]]:
    """Yield what in a queue is not its group's to lock and remove."""
    for top in os.scandir(directory):
        if not (len(top.name) == 8 and top.is_dir(follow_symlinks=False)):
            continue
        try:
            elements = [entry.path for entry in os.scandir(top.path) if len(entry.name) == 14]
        except FileNotFoundError:  # a purge took it
            continue
        for path, needed, what in (
            (top.path, 0o2070, "removed"),
            *((element, 0o060, "locked") for element in elements),
        ):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if status.st_gid != gid or status.st_mode & needed != needed:
                yield path, f"{path} cannot be {what} by the group: mode {stat.S_IMODE(status.st_mode):04o}{_why()}"


def _why() -> str:
    try:
        with open(HARDLINKS, encoding="ascii") as file:
            return ", with fs.protected_hardlinks = 1" if file.read().strip() == "1" else ""
    except OSError:
        return ""


def _round(directory: str, users: list[User]) -> Iterator[tuple[str, str]]:
    """Let each user add an element that the next one consumes."""
    probe = f"{directory}/{PROBE}"
    for adder, consumer in zip(users, [*users[1:], *users[:1]], strict=True):
        answer = accounts.as_user(adder, lambda: {"name": Simple(probe, UMASK).add(b"check-site\n")})
        if "fault" not in answer:
            name = str(answer["name"])
            answer = accounts.as_user(consumer, lambda name=name: _consumed(probe, name))  # type: ignore[misc]
        if "fault" in answer:
            yield (
                f"{directory}: {consumer.name} cannot consume what {adder.name} adds: {answer['fault']}",
                f"see doc/queues.md, Two users; ls -ld {shlex.quote(directory)}; id {adder.name}; id {consumer.name}",
            )
        accounts.as_user(adder, lambda: _cleared(probe))


def _consumed(probe: str, name: str) -> dict[str, Any]:
    queue = Simple(probe, UMASK)
    if not queue.lock(name) or queue.get(name) is None or not queue.remove(name):
        return {"fault": f"{probe}/{name} was not there to be locked"}
    return {}


def _cleared(probe: str) -> dict[str, Any]:
    """Remove the probe with whatever is left in it: all of it is the adder's, also the consumer's lock."""
    for directory, _, names in os.walk(probe, topdown=False):
        for name in names:
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    return {}
