# SPDX-License-Identifier: Apache-2.0
"""The backend ``marker``: the backup touches a file when it is done.

Only a file that was touched after the first poll counts, so yesterday's releases nothing; the clocks of the file's
host and of this one have to agree. What keeps a backup of an earlier target time that ends late from releasing this
one is ``%t`` or ``%r``, in the file's name or in ``marker_text``, a line that has to stand in it. ``marker_age_s``
waits until nobody has written to it for so long. A start command is run where there is one.

    [[core_filers]]
    name = "cf-projects"
    backend = "marker"
    start = ["/usr/local/sbin/backup-start", "%m", "%t"]
    marker = "/srv/backup/done/%m-%t"
"""

import os
import stat
import time

from infocluster.errors import UnavailableError, reason
from infocluster.poll.backends import base
from infocluster.poll.backends.base import Seen
from infocluster.poll.state import State


class Backend(base.Base):
    """See the module."""

    needs = ("marker",)

    def status(self, state: State) -> Seen:
        """Look at the file.

        Raises:
            UnavailableError: it cannot be read, or is no plain file.
        """
        path = base.filled(self.filer["marker"], state, _component)
        try:
            # A named pipe in its place keeps nobody waiting.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return Seen("running", "its marker is not there yet")
        except OSError as error:
            raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UnavailableError(f"cannot use {path} as a marker: it is no plain file")
            content = os.read(fd, base.OUTPUT_LIMIT_BYTES)
        except OSError as error:
            raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
        finally:
            os.close(fd)
        if status.st_mtime < state.asked:
            return Seen("running", "its marker is of an earlier backup")
        if time.time() - status.st_mtime < self.filer["marker_age_s"]:
            return Seen("running", "its marker was touched a moment ago")
        wanted = base.filled(self.filer["marker_text"], state).encode()
        if wanted and wanted not in [line.strip() for line in content.split(b"\n")]:
            return Seen("running", "its marker does not say yet that it is done")
        return Seen("complete")


def _component(value: str) -> str:
    """Return a value as a part of one file name."""
    return value.replace("/", "_").replace("\0", "_") if value not in (".", "..") else "_"
