# SPDX-License-Identifier: Apache-2.0
"""The backend ``callback``: the backup itself says that it is done, by ``poll.cgi?...&done=TOKEN``.

The token is made with the secret, see `infocluster.poll.tokens`; ``failed=TOKEN`` with its own token says that it
failed. A start command is run where there is one, and finds both tokens in its environment.

    [[core_filers]]
    name = "cf-projects"
    backend = "callback"
    secret = "poll-callback"
    start = ["/usr/local/sbin/backup-start", "%m", "%t"]
"""

from infocluster import files
from infocluster.errors import UnavailableError, reason
from infocluster.poll import state as states
from infocluster.poll.backends import base
from infocluster.poll.backends.base import Seen
from infocluster.poll.state import State


class Backend(base.Base):
    """See the module."""

    needs = ("secret",)

    def status(self, state: State) -> Seen:
        """Look for the word that poll.cgi left.

        Raises:
            UnavailableError: it cannot be read.
        """
        path = states.file(self.state_dir, state.mass, state.target, states.DONE_SUFFIX)
        try:
            word = files.read(path)
        except FileNotFoundError:
            return Seen("running", "it has not said yet that it is done")
        except OSError as error:
            raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
        return Seen("complete") if word == b"done\n" else Seen("failed", "it said so itself")
