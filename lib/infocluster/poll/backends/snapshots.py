# SPDX-License-Identifier: Apache-2.0
"""The backend ``snapshots``: a list of snapshots, as restic and borg print it, holds one that is new enough.

The status command prints JSON; ``list_pointer`` points to the list in it, ``time_pointer`` from an item to its time
(RFC 3339; without an offset it is this host's own). The backup is complete when a snapshot was begun at or after the
first poll, which a cluster sends when everything is written through, before or after the target time: an older one
may lack what was written in between. One that is dated later than now counts for nothing; the clocks of the host that
dates snapshots and of this one have to agree.

The last few are enough of the list, and a list that is too long for us is said to be. A command gets PATH, LANG and
TZ of us, and nothing of the repository: what opens it is named on the command line, by options or by env(1).

    [[core_filers]]
    name = "cf-projects"
    backend = "snapshots"
    start = ["/usr/bin/systemctl", "start", "--no-block", "restic-projects.service"]
    status = ["/usr/bin/restic", "-r", "/srv/restic", "--password-file", "/etc/backup/restic.key", "--no-lock",
              "--no-cache", "snapshots", "--json", "--latest", "5", "--tag", "projects"]
    time_pointer = "/time"

    [[core_filers]]
    name = "cf-archive"
    backend = "snapshots"
    status = ["/usr/bin/env", "BORG_PASSCOMMAND=/bin/cat /etc/backup/borg.key", "BORG_BASE_DIR=/var/lib/borg",
              "/usr/bin/borg", "list", "--json", "--last", "5", "/srv/borg"]
    list_pointer = "/archives"
    time_pointer = "/start"

Source: restic-snapshots(1); restic documentation, "Scripting"; borg documentation, "borg list", "Environment
Variables"; RFC 3339.
"""

import json
import time
from datetime import datetime
from typing import Any

from infocluster.errors import UnavailableError
from infocluster.poll.backends import base
from infocluster.poll.backends.base import Seen
from infocluster.poll.state import State

LIST_LIMIT_BYTES = 1 << 22


class Backend(base.Base):
    """See the module."""

    needs = ("status",)

    def status(self, state: State) -> Seen:
        """Look for a snapshot that is new enough.

        Raises:
            UnavailableError: they cannot be listed, or the list cannot be read.
        """
        outcome = self.ran(self.filer["status"], state, self.poll["ask_timeout_s"], LIST_LIMIT_BYTES)
        if outcome.status != 0:
            raise UnavailableError(f"cannot list the snapshots: {base.ended(outcome)}")
        if len(outcome.output) == LIST_LIMIT_BYTES:
            raise UnavailableError(
                f"cannot read the list of snapshots: it has {LIST_LIMIT_BYTES} bytes or more; list the last ones only"
            )
        try:
            snapshots = base.pointed(json.loads(outcome.output), self.filer["list_pointer"])
        except (ValueError, RecursionError) as error:
            raise UnavailableError(f"cannot read the list of snapshots: {error}") from error
        if not isinstance(snapshots, list):
            raise UnavailableError(f"cannot read the list of snapshots: none at '{self.filer['list_pointer']}'")
        begun = [_begun(base.pointed(item, self.filer["time_pointer"])) for item in snapshots]
        now = time.time()
        if any(state.asked <= one <= now for one in begun):
            return Seen("complete")
        late = sum(one > now for one in begun)
        of_them = f", {late} of them dated later than now" if late else ""
        return Seen("running", f"none of {len(begun)} snapshots{of_them} was begun since the first poll")


def _begun(text: Any) -> float:
    """Return a snapshot's time in Unix seconds; 0 where it has none, which releases nothing."""
    if not isinstance(text, str):
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
