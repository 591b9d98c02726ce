# SPDX-License-Identifier: Apache-2.0
"""Accounts of this host: who may do what to a file, and doing something as another user.

Source: inode(7), setuid(2), getgrouplist(3).
"""

import grp
import json
import os
import pwd
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from infocluster import files
from infocluster.errors import InfoclusterError, RefusedError, UnavailableError, reason
from infocluster.names import shown


class User(NamedTuple):
    """An account: its name, or its number where it has none."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int]


def by_name(name: str) -> User | None:
    """Return an account, None where there is none of that name."""
    try:
        return _user(pwd.getpwnam(name))
    except KeyError:
        return None


def by_number(uid: int) -> User:
    """Return the account with a number; where it has no name, its number stands for it."""
    try:
        return _user(pwd.getpwuid(uid))
    except KeyError:
        return User(str(uid), uid, uid, frozenset({uid}))


def file_owner(site: Mapping[str, Any]) -> User:
    """Return the file owner: whom the settings name, or who owns the production tree.

    Args:
        site: the settings ``[site]``.

    Raises:
        UnavailableError: there is no such user, or nothing to tell by.
    """
    if site["file_owner"]:
        found = by_name(site["file_owner"])
        if found is None:
            raise UnavailableError(f"cannot be the file owner: there is no user {shown(site['file_owner'])}")
        return found
    try:
        return by_number(os.stat(site["production_dir"]).st_uid)
    except OSError as error:
        raise UnavailableError(f"cannot read {site['production_dir']}: {reason(error)}") from error


def _user(entry: pwd.struct_passwd) -> User:
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, frozenset(groups))


def may_write(status: os.stat_result, user: User) -> bool:
    """Tell whether a user may write a file, or make and remove names in a directory, by owner, group and mode."""
    return may(status, user, 0o3 if stat.S_ISDIR(status.st_mode) else 0o2)


def may(status: os.stat_result, user: User, wanted: int) -> bool:
    """Tell whether a user has all of some permissions.

    Args:
        status: of the file or directory.
        user: who wants to.
        wanted: bits of one class, as in chmod(1): 4 read, 2 write, 1 execute or search.
    """
    if user.uid == 0:
        return True
    if status.st_uid == user.uid:
        bits = status.st_mode >> 6
    elif status.st_gid in user.groups:
        bits = status.st_mode >> 3
    else:
        bits = status.st_mode
    return bits & wanted == wanted


def group_name(gid: int) -> str:
    """Return a group's name, or its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def as_user(user: User, task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do something as another user, in a child process, and return what it returned.

    Args:
        user: who to be. Only root can be another one.
        task: returns what JSON can carry.

    Returns:
        The task's answer, or ``{"fault": REASON}`` where it raised an error of the system or of ours.

    Raises:
        RefusedError: this process may not become that user.
        UnavailableError: the child ended without an answer.
    """
    if os.geteuid() not in (0, user.uid):
        raise RefusedError(f"only root and {user.name} can do this")
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups(sorted(user.groups))
                os.setgid(user.gid)
                os.setuid(user.uid)
            try:
                answer = task()
            except OSError as error:
                answer = {"fault": f"{error.filename}: {reason(error)}"}
            except (InfoclusterError, ValueError) as error:
                answer = {"fault": str(error)}
            files.write_all(writing, json.dumps(answer).encode())
            status = 0
        finally:
            # Never back into the caller's code: this is its copy.
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as stream:
        content = stream.read()
    os.waitpid(pid, 0)
    if not content:
        raise UnavailableError(f"nothing can be done as {user.name}")
    answer = json.loads(content)
    return answer if isinstance(answer, dict) else {}
