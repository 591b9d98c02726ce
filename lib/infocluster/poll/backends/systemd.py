# SPDX-License-Identifier: Apache-2.0
"""The backend ``systemd``: a unit is the backup.

The unit is of ``Type=oneshot``, best with ``RemainAfterExit=yes``, so that systemd remembers how it ended; ``%m`` in
its name is escaped as systemd-escape(1) does. It is restarted without waiting, and complete when a later run of it
than the one before the start (its InvocationID says so) ended well. The server's user needs a polkit rule for it.

    [[core_filers]]
    name = "cf-projects"
    backend = "systemd"
    unit = "backup@%m.service"

Source: systemctl(1), systemd.service(5), systemd.unit(5).
"""

from infocluster.errors import UnavailableError
from infocluster.poll.backends import base
from infocluster.poll.backends.base import FailedError, Seen
from infocluster.poll.state import State, clean

PROPERTIES = ("ActiveState", "SubState", "Result", "InvocationID", "LoadState", "StatusText")
ENDED = frozenset({("inactive", "dead"), ("active", "exited")})


class Backend(base.Base):
    """See the module. The job is the unit's InvocationID before the start."""

    needs = ("unit",)

    def prepare(self, state: State) -> str:
        """Remember the run of the unit that is not ours.

        Raises:
            UnavailableError: there is no such unit, or it is at work.
        """
        super().prepare(state)
        shown = self._shown(state)
        if shown["LoadState"] != "loaded":
            raise UnavailableError(f"cannot start {self._unit(state)}: systemd says it is {shown['LoadState']}")
        if shown["ActiveState"] in ("activating", "deactivating", "reloading"):
            raise UnavailableError(f"cannot start {self._unit(state)}: an earlier run of it is still at work")
        return shown["InvocationID"] or "-"

    def start(self, state: State) -> str:
        """Restart the unit, without waiting for its end.

        Raises:
            FailedError: systemd refuses.
        """
        command = [self.filer["systemctl"], "restart", "--no-block", "--", self._unit(state)]
        outcome = self.ran([word.replace("%", "%%") for word in command], state, self.poll["start_timeout_s"])
        if outcome.status != 0:
            raise FailedError(f"its start ended with {base.ended(outcome)}")
        return state.job

    def status(self, state: State) -> Seen:
        """Ask systemd how the unit is."""
        shown = self._shown(state)
        if not shown["InvocationID"] or shown["InvocationID"] == state.job:
            return Seen("running", "systemd has not begun it yet, or has forgotten it")
        if shown["ActiveState"] == "failed" or shown["Result"] != "success":
            return Seen("failed", f"its unit ended with {shown['Result']}")
        if (shown["ActiveState"], shown["SubState"]) in ENDED:
            return Seen("complete")
        return Seen("running", clean(shown["StatusText"]) or shown["ActiveState"])

    def confirm(self, state: State) -> Seen | None:
        """A run later than the one before is ours, or as good: it began after the first poll."""
        shown = self._shown(state)
        return None if shown["InvocationID"] in ("", state.job) else self.status(state)

    def _unit(self, state: State) -> str:
        return base.filled(self.filer["unit"], state, escaped)

    def _shown(self, state: State) -> dict[str, str]:
        command = [self.filer["systemctl"], "show", f"--property={','.join(PROPERTIES)}", "--", self._unit(state)]
        outcome = self.ran([word.replace("%", "%%") for word in command], state, self.poll["ask_timeout_s"])
        if outcome.status != 0:
            raise UnavailableError(f"cannot ask systemd: {base.ended(outcome)}")
        shown = dict.fromkeys(PROPERTIES, "")
        for line in outcome.output.decode("utf-8", "replace").splitlines():
            name, equals, value = line.partition("=")
            if equals and name in shown:
                shown[name] = value
        return shown


def escaped(value: str) -> str:
    """Return a text as an instance's name, as systemd-escape(1) makes it."""
    kept = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_."
    parts = []
    for place, character in enumerate(value):
        if character == "/":
            parts.append("-")
        elif character in kept and not (character == "." and place == 0):
            parts.append(character)
        else:
            parts += [f"\\x{byte:02x}" for byte in character.encode()]
    return "".join(parts)
