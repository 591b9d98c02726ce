# SPDX-License-Identifier: Apache-2.0
"""The backend ``command``: one command starts the backup, another says how it stands.

The start command hands the backup to something that outlives it (systemd-run, ssh to the filer, at) and ends with 0;
anything else, or the time limit, is a failure for good. It has not ended before its outputs are closed: what it
leaves running has to have others. Its first line of output is the job, ``%j`` from then on.

The status command ends with 0 when the backup is complete, 75 while it runs, anything else when it failed; one that
was killed says nothing, and is asked again. The last line of its output is the progress, or why it failed. It is
trusted to speak of this run: give it ``%r``, ``%j`` or ``%t``. After a kill in the middle of a start it is asked only
if it is given ``%r``.

    [[core_filers]]
    name = "cf-projects"
    backend = "command"
    start = ["/usr/local/sbin/backup-start", "%m", "%r"]
    status = ["/usr/local/sbin/backup-status", "%r"]
"""

from infocluster.errors import EX_TEMPFAIL, UnavailableError
from infocluster.poll.backends import base
from infocluster.poll.backends.base import Seen
from infocluster.poll.state import State


class Backend(base.Base):
    """See the module."""

    needs = ("start", "status")

    def status(self, state: State) -> Seen:
        """Return what the status command says.

        Raises:
            UnavailableError: it cannot be run, is not done in time, or was killed.
        """
        outcome = self.ran(self.filer["status"], state, self.poll["ask_timeout_s"])
        if outcome.status < 0:
            raise UnavailableError(f"cannot ask how it stands: {base.ended(outcome)}")
        if outcome.status == 0:
            return Seen("complete", base.last_line(outcome.output))
        if outcome.status == EX_TEMPFAIL:
            return Seen("running", base.last_line(outcome.output))
        return Seen("failed", f"its status ended with {base.ended(outcome)}")

    def confirm(self, state: State) -> Seen | None:
        """Ask for the run by its id; a command that is not given it would tell of another one."""
        if not any("%r" in word for word in self.filer["status"]):
            return None
        seen = self.status(state)
        return None if seen.state == "failed" else seen
