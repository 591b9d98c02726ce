# SPDX-License-Identifier: Apache-2.0
"""Start backup-watch for one core filer, detached from a hit: the web server waits for nothing of it.

Whoever holds the core filer's lock looks once more for new states after letting go of it (see `watch`), so while it
is held nobody needs to be started: of a thousand polls at once, a few start a process.

A hit loads this module when there is something to start.

Source: posix_spawn(3), setsid(2).
"""

import posix
import sys

from infocluster import config
from infocluster.locks import lockfile
from infocluster.poll import state

LOCK = "lock"
LOG = "backup-watch.log"
_PASSED = (b"PATH", b"LANG", b"INFOCLUSTER_CONF", b"SERVER_GATHER", b"TZ")


def kick(state_dir: str, mass: str, variables: "dict[bytes, bytes]") -> bool:
    """Start backup-watch for a core filer unless one is at it.

    Args:
        state_dir: where the states are; it holds one of this core filer.
        mass: the core filer's name.
        variables: the environment, of which a few are passed on.

    Returns:
        Whether one was started.

    Raises:
        OSError: it cannot be started; cron starts one within a minute.
    """
    lock = f"{state.place(state_dir, mass)}/{LOCK}"
    fd = posix.open(lock, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o640)
    if not lockfile.take(fd, timeout_s=0):
        posix.close(fd)
        return False
    lockfile.let_go(fd)
    program = config.ROOT + "/batch/backup-watch"
    # Not by its first line: in a checkout that looks for an interpreter in a PATH that a server may not set.
    command = [sys.executable, "-IS", program, f"-only={mass}"] if sys.executable else [program, f"-only={mass}"]
    log_flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_NOFOLLOW
    posix.posix_spawn(
        command[0],
        command,
        {name: variables[name] for name in _PASSED if name in variables},
        file_actions=[
            (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDONLY, 0),
            (posix.POSIX_SPAWN_OPEN, 1, "/dev/null", posix.O_WRONLY, 0),
            (posix.POSIX_SPAWN_OPEN, 2, f"{state_dir}/{LOG}", log_flags, 0o640),
        ],
        setsid=True,
    )
    return True
