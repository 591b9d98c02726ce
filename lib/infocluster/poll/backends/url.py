# SPDX-License-Identifier: Apache-2.0
"""The backend ``url``: an HTTP interface starts the backup and says how it stands.

A POST to ``start_url``, with the run in JSON and its id as Idempotency-Key, starts it; any status from 200 to 299
says that it did. ``job_pointer`` points to the job's name in the reply. A GET of ``status_url`` returns JSON:
``state_pointer`` points to a word that stands in ``complete_words`` or ``failed_words``; any other one means that it
runs. ``%m %t %r %j`` in addresses are quoted. With ``secret``, its text is sent as Authorization. After a kill in the
middle of a start the status is asked only if its address has the run's id. No redirection is followed.

    [[core_filers]]
    name = "cf-projects"
    backend = "url"
    start_url = "https://filer.example.org/api/backups?volume=%m"
    job_pointer = "/job/uuid"
    status_url = "https://filer.example.org/api/jobs/%j"
    state_pointer = "/state"
    complete_words = ["success"]
    failed_words = ["failure", "error"]
    progress_pointer = "/progress"

Source: RFC 9110; RFC 6901 (JSON pointer); RFC 8259.
"""

import http.client
import json
import socket
import threading
import time
import urllib.parse
from contextlib import suppress
from typing import Any

from infocluster import secrets
from infocluster.errors import ConfigError, UnavailableError
from infocluster.poll.backends import base
from infocluster.poll.backends.base import FailedError, Seen
from infocluster.poll.state import State, clean

CHUNK_BYTES = 4096


class Backend(base.Base):
    """See the module."""

    needs = ("start_url", "status_url")

    def start(self, state: State) -> str:
        """POST, and return the job.

        Raises:
            FailedError: it was refused, or names no job.
            UnavailableError: there was no reply, or none that can be read.
        """
        body = json.dumps({"coreFiler": state.mass, "targetTime": state.target, "run": state.run}).encode()
        status, content = self._asked("POST", self.filer["start_url"], state, body, self.poll["start_timeout_s"])
        if not 200 <= status < 300:
            raise FailedError(f"its start was answered {status}")
        if not self.filer["job_pointer"]:
            return state.job
        job = base.pointed(_document(content), self.filer["job_pointer"])
        if not isinstance(job, str | int) or isinstance(job, bool) or job == "":
            raise FailedError(f"the reply to its start names no job at '{self.filer['job_pointer']}'")
        return clean(str(job))

    def status(self, state: State) -> Seen:
        """GET, and look where the pointers point.

        Raises:
            UnavailableError: there was no reply, or none that can be read.
        """
        status, content = self._asked("GET", self.filer["status_url"], state, None, self.poll["ask_timeout_s"])
        if status != 200:
            raise UnavailableError(f"cannot ask how it stands: answered {status}")
        document = _document(content)
        word = base.pointed(document, self.filer["state_pointer"])
        if not isinstance(word, str):
            raise UnavailableError(f"cannot tell how it stands: no text at '{self.filer['state_pointer']}'")
        if word in self.filer["complete_words"]:
            return Seen("complete")
        if word in self.filer["failed_words"]:
            return Seen("failed", f"its state is '{clean(word)}'")
        pointer = self.filer["progress_pointer"]
        progress = base.pointed(document, pointer) if pointer else None
        return Seen("running", clean(word if progress is None else str(progress)))

    def confirm(self, state: State) -> Seen | None:
        """Ask for the run by its id, where the interface knows it."""
        return self.status(state) if "%r" in self.filer["status_url"] else None

    def _asked(
        self, method: str, address: str, state: State, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        """Send one request and return status and body, all of it in time and no more of it than is read."""
        filled = base.filled(address, state, lambda value: urllib.parse.quote(value, safe=""))
        try:
            parts = urllib.parse.urlsplit(filled)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(f"cannot ask {filled}: it is no http or https address")
            of_scheme = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = of_scheme(parts.hostname, parts.port, timeout=timeout_s)
        except (ValueError, http.client.InvalidURL) as error:
            raise ConfigError(f"cannot ask {filled}: {error}") from error
        fields = {"Accept": "application/json", "Connection": "close", "User-Agent": "infocluster"}
        if self.filer["secret"]:
            fields["Authorization"] = secrets.read(self.filer["secret"]).decode("latin-1")
        if body is not None:
            fields |= {"Content-Type": "application/json", "Idempotency-Key": state.run}
        end = time.monotonic() + timeout_s
        cut: threading.Timer | None = None
        try:
            connection.connect()
            # The socket's own timeout begins anew with each byte.
            cut = threading.Timer(end - time.monotonic(), _cut, (connection.sock,))
            cut.start()
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request(method, target, body, fields)
            reply = connection.getresponse()
            content = b""
            while chunk := reply.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > base.OUTPUT_LIMIT_BYTES:
                    raise UnavailableError(f"cannot read the reply of {parts.hostname}: it is too long")
            if time.monotonic() >= end:  # what was cut off looks as if it had ended
                raise TimeoutError
            return reply.status, content
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = f"not done after {timeout_s:g} s" if time.monotonic() >= end else error or type(error).__name__
            raise UnavailableError(f"cannot ask {parts.hostname}: {why}") from error
        finally:
            if cut:
                cut.cancel()
            connection.close()


def _cut(connected: socket.socket) -> None:
    """End a conversation that lasts too long: whoever reads finds its end."""
    with suppress(OSError):
        # Not SSLSocket's own, which takes its state away from whoever reads.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _document(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnavailableError(f"cannot read the reply as JSON: {error}") from error
