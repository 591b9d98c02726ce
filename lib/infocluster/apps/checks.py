# SPDX-License-Identifier: Apache-2.0
"""What every check of check-site works with: the place that is looked at, a fault and its mend.

A check is a function of a `Place` that yields its faults, and raises `NotCheckedError` where it cannot be made here.

Source: inode(7) for set-group-ID and sticky directories.
"""

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infocluster.apps import accounts
from infocluster.apps.accounts import User
from infocluster.config import Settings

SHOWN_FAULTS = 5
PROGRAM_TIMEOUT_S = 60.0


class Fault(NamedTuple):
    """One thing that is not as it has to be, and what to do."""

    fault: str
    mend: str


class NotCheckedError(Exception):
    """A check cannot be made here, or by this user; says why."""


@dataclass(slots=True)
class Place:
    """What is looked at.

    Attributes:
        root: the tree this program is in.
        settings_file: where its settings are.
        settings: what they say.
        installed: the list of what was installed, {} in a checkout.
        gather: this web server's gather directory, "" where it is not known.
        is_web, is_batch: which parts this host plays.
        timetables: files and directories of system crontabs.
        known: accounts that were looked up.
    """

    root: str
    settings_file: str
    settings: Settings
    installed: dict[str, Any]
    gather: str
    is_web: bool
    is_batch: bool
    timetables: tuple[str, ...] = ("/etc/crontab", "/etc/cron.d")
    known: dict[str, User] = field(default_factory=dict)

    @property
    def production(self) -> str:
        """Return the production tree."""
        return str(self.settings["site"]["production_dir"])

    def server(self) -> User:
        """Return the web server's user."""
        return self._account(self.settings["site"]["server_user"])

    def owner(self) -> User:
        """Return the file owner."""
        named = self.settings["site"]["file_owner"]
        if not named:
            try:
                return accounts.by_number(os.stat(self.production).st_uid)
            except OSError:
                raise NotCheckedError("nobody is named as file owner, and there is no production tree") from None
        return self._account(named)

    def _account(self, name: str) -> User:
        if name not in self.known:
            user = accounts.by_name(name)
            if user is None:
                raise NotCheckedError(f"there is no user {name}")
            self.known[name] = user
        return self.known[name]


def writable(place: Place, tops: list[str], but: set[str]) -> Iterator[Fault]:
    """Yield what the web server's user or everybody may write below directories: the first few, and how many."""
    count = 0
    for path, status in _walk(tops, but):
        for fault in by_server_or_all(place, path, status):
            count += 1
            if count <= SHOWN_FAULTS:
                yield fault
    if count > SHOWN_FAULTS:
        below = " ".join(map(quoted, tops))
        yield Fault(f"{count - SHOWN_FAULTS} more like this below {below}", f"chmod -R go-w {below}")


def _walk(tops: list[str], but: set[str]) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [(top, os.stat(top)) for top in tops]
    while waiting:
        path, status = waiting.pop()
        yield path, status
        if not stat.S_ISDIR(status.st_mode):
            continue
        for entry in os.scandir(path):
            if entry.path not in but and not entry.is_symlink():
                waiting.append((entry.path, entry.stat(follow_symlinks=False)))


def by_server_or_all(place: Place, path: str, status: os.stat_result) -> Iterator[Fault]:
    """Yield a fault where the web server's user or everybody may write a path."""
    server = place.server()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == server.uid:
        yield Fault(f"{path} belongs to {server.name}, the web server's user", f"chown root {quoted(path)}")
    elif mode & 0o002:
        yield Fault(f"{path} is for everyone to write: mode {mode:04o}", f"chmod o-w {quoted(path)}")
    elif accounts.may_write(status, server):
        yield Fault(
            f"{path} is for {server.name} to write, by its group {accounts.group_name(status.st_gid)}: "
            f"mode {mode:04o}",
            f"chmod g-w {quoted(path)}",
        )


def only(plays: bool, part: str) -> None:
    """Go on only where this host plays a part.

    Raises:
        NotCheckedError: it does not.
    """
    if not plays:
        raise NotCheckedError(f"this is no {part}")


def quoted(path: str) -> str:
    """Return a path as a shell reads it, for a command that somebody may type."""
    return shlex.quote(path)
