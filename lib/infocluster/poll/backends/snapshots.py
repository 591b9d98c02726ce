# SPDX-License-Identifier: Apache-2.0
"""The backend ``snapshots``: a list of snapshots, as restic and borg print it, holds one that is new enough.

The status command prints JSON; ``list_pointer`` points to the list in it, ``time_pointer`` from an item to its time
(RFC 3339; without an offset it is this host's own). The backup is complete when a snapshot was begun after both the
target time and the first poll: an older one may lack what was written in between.

    [[core_filers]]
    name = "cf-projects"
    backend = "snapshots"
    start = ["/usr/bin/systemctl", "start", "--no-block", "restic-projects.service"]
    status = ["/usr/bin/restic", "-r", "/srv/restic", "--no-lock", "snapshots", "--json", "--tag", "projects"]
    time_pointer = "/time"

    [[core_filers]]
    name = "cf-archive"
    backend = "snapshots"
    status = ["/usr/bin/borg", "list", "--json", "--last", "5", "/srv/borg"]
    list_pointer = "/archives"
    time_pointer = "/start"

Source: restic documentation, "Scripting"; borg documentation, "borg list"; RFC 3339.
"""

import json
from datetime import datetime
from typing import Any

from infocluster.errors import UnavailableError
from infocluster.poll.backends import base
from infocluster.poll.backends.base import Seen
from infocluster.poll.state import State


class Backend(base.Base):
    """See the module."""

    needs = ("status",)

    def status(self, state: State) -> Seen:
        """Look for a snapshot that is new enough.

        Raises:
            UnavailableError: they cannot be listed, or the list cannot be read.
        """
        outcome = self.ran(self.filer["status"], state, self.poll["ask_timeout_s"])
        if outcome.status != 0:
            raise UnavailableError(f"cannot list the snapshots: {base.ended(outcome)}")
        try:
            snapshots = base.pointed(json.loads(outcome.output), self.filer["list_pointer"])
        except (ValueError, RecursionError) as error:
            raise UnavailableError(f"cannot read the list of snapshots: {error}") from error
        if not isinstance(snapshots, list):
            raise UnavailableError(f"cannot read the list of snapshots: none at '{self.filer['list_pointer']}'")
        newest = max((_begun(base.pointed(item, self.filer["time_pointer"])) for item in snapshots), default=0.0)
        if newest > max(state.target, state.asked):
            return Seen("complete")
        return Seen("running", f"the newest of {len(snapshots)} snapshots is too old")


def _begun(text: Any) -> float:
    """Return a snapshot's time in Unix seconds; 0 where it has none, which releases nothing."""
    if not isinstance(text, str):
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
