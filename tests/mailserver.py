# SPDX-License-Identifier: Apache-2.0
"""A real mail server on loopback, on a port that the kernel chose, for the tests of letters."""

import email
import email.policy
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


class MailServer(Controller):
    """Takes letters; what it answers to a recipient or to a letter can be set."""

    def __init__(self) -> None:
        super().__init__(self, hostname="127.0.0.1", port=0)
        self.taken: list[tuple[list[str], EmailMessage]] = []
        self.recipient_replies: dict[str, str] = {}
        self.data_reply = "250 taken"
        self.before_mail: Callable[[], None] = lambda: None

    def _trigger_server(self) -> None:
        # Only now the port is known.
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()

    async def handle_MAIL(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.before_mail()
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        reply = self.recipient_replies.get(address, "250 OK")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        if self.data_reply.startswith("250"):
            content: Any = envelope.content
            letter = email.message_from_bytes(content, policy=email.policy.default)
            assert isinstance(letter, EmailMessage)
            self.taken.append((list(envelope.rcpt_tos), letter))
        return self.data_reply

    @property
    def ids(self) -> list[str]:
        return [str(letter["Message-ID"]) for _, letter in self.taken]


@contextmanager
def running() -> Iterator[MailServer]:
    """Run a mail server while the context is open."""
    server = MailServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def refusing_port() -> Iterator[int]:
    """Give a port where nothing listens and nothing else will: the mail server that is down."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
