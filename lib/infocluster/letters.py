# SPDX-License-Identifier: Apache-2.0
"""Letters: one letter is text and HTML in one, and is kept until a mail server takes it.

The life of a letter:

1. `compose` makes it, with its one Message-ID and date.
2. `queue` leaves it whole and durable in ``STATE_DIR/letters/``; or `adopt` takes over a file that holds one.
3. `deliver` hands each waiting letter, oldest first, to the mail server or to a sendmail program. Taken: the file
   goes. Not taken: it stays for the next time. Refused for good by all of its recipients: it is set aside in
   ``STATE_DIR/letters/refused/``; moved back to ``letters/``, it is tried again.

A letter that was killed between the mail server's yes and the removal of its file goes out again, under the same
Message-ID: no mail system can do better.

Shape: ``letters/20261122T031500Z-5a1f0c9be2d47a33.eml``: date and the digest of the Message-ID name the file, so that
    names sort by time and the same letter queued again replaces itself. Its content is an RFC 5322 message
    in 7-bit form with CRLF at the end of each line.

Source: RFC 5322, RFC 2046 5.1.4 (multipart/alternative), RFC 3834 5 (Auto-Submitted), RFC 5321 4.2.1 (replies).
"""

import email
import hashlib
import os
import smtplib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

from infocluster import files, names, processes
from infocluster.errors import BadInputError, ConfigError, UnavailableError, reason
from infocluster.locks import lockfile

# What is sent is 7-bit: any server takes it, whatever it says it can do.
POLICY = SMTP.clone(cte_type="7bit")
SUFFIX = ".eml"
DIRECTORY_MODE = 0o750
FILE_MODE = 0o640
PERMANENT = range(500, 600)
AUTHENTICATION_REQUIRED = 530
LINE_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a letter: its name, its type such as ``image/svg+xml``, its content."""

    name: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of the letters that waited, one sentence each; a sentence names the letter's file."""

    sent: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    """Recipients that were refused while others took the letter."""


class _NoServerError(UnavailableError):
    """There is no mail server to talk to: no other letter needs to be tried."""


class _RefusedError(Exception):
    """The mail server does not want this letter, now or later."""


def compose(
    sender: str,
    recipients: Sequence[str],
    subject: str,
    text: str,
    html: str | None = None,
    attachments: Iterable[Attachment] = (),
    time_s: float | None = None,
    key: str | None = None,
) -> EmailMessage:
    """Make a letter.

    Args:
        sender: ``www-mgmt@example.org`` or ``Web management <www-mgmt@example.org>``.
        recipients: one or more of the same form.
        subject: line ends and control characters in it become spaces.
        text: for a plain reader; lines of any length and character.
        html: the same for a reader that shows HTML.
        attachments: what goes with it.
        time_s: its date, in Unix seconds; by default now.
        key: what its Message-ID is made from, letters and digits; by default random.

    Raises:
        ConfigError: an address is not one, or there is no recipient.
    """
    if not recipients:
        raise ConfigError("cannot write a letter: it has no recipient")
    from_address = address(sender)
    letter = EmailMessage(policy=POLICY)
    letter["From"] = from_address
    letter["To"] = [address(recipient) for recipient in recipients]
    letter["Subject"] = _one_line(subject)
    now = datetime.now(UTC) if time_s is None else datetime.fromtimestamp(time_s, UTC)
    letter["Date"] = now
    letter["Message-ID"] = f"<{key or os.urandom(16).hex()}@{from_address.domain or 'localhost'}>"
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(text)
    if html is not None:
        letter.add_alternative(html, subtype="html")
    for attachment in attachments:
        main, _, sub = attachment.media_type.partition("/")
        letter.add_attachment(attachment.content, maintype=main, subtype=sub, filename=attachment.name)
    return letter


def queue(state_dir: str, letter: EmailMessage) -> str:
    """Leave a letter to be delivered, durable when the call returns, and return its file.

    Raises:
        UnavailableError: it cannot be written.
    """
    path = f"{_made(state_dir)}/{_name(letter)}"
    try:
        files.replace(path, letter.as_bytes(), FILE_MODE)
    except OSError as error:
        raise UnavailableError(f"cannot queue a letter in {path}: {reason(error)}") from error
    return path


def adopt(state_dir: str, file: str) -> str:
    """Take over a whole letter from a file on the same file system, in one step, and return its new file.

    Whoever has to do something exactly once for a letter writes it beside his own files first.

    Raises:
        BadInputError: it holds no letter.
        UnavailableError: it cannot be moved.
    """
    try:
        path = f"{_made(state_dir)}/{_name(parse(files.read(file)))}"
        os.rename(file, path)
        files.sync_directory(os.path.dirname(path))
        files.sync_directory(os.path.dirname(file))
    except OSError as error:
        raise UnavailableError(f"cannot queue the letter {file}: {reason(error)}") from error
    return path


def parse(content: bytes) -> EmailMessage:
    """Return the letter that a file holds.

    Raises:
        BadInputError: it has no sender, recipient, date or Message-ID, or an address that not every server takes.
    """
    letter = email.message_from_bytes(content, policy=POLICY)
    try:
        addresses = "".join([_sender(letter), *_recipients(letter)])
        complete = addresses.isascii() and _recipients(letter) and letter["Date"].datetime and letter["Message-ID"]
    except (AttributeError, LookupError, TypeError, ValueError):  # not there, or so that its parser gives up
        complete = None
    if not complete:
        raise BadInputError("cannot use it as a letter: From, To, Date or Message-ID is missing or torn")
    return letter


def waiting(state_dir: str) -> list[str]:
    """Return the names of the letters that wait, oldest first.

    Raises:
        UnavailableError: the directory cannot be read.
    """
    directory = state_dir + "/letters"
    try:
        found = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnavailableError(f"cannot read {directory}: {reason(error)}") from error
    return sorted(name for name in found if name.endswith(SUFFIX) and not files.is_temporary(name))


def deliver(state_dir: str, mail: dict[str, Any]) -> Delivered:
    """Hand over every waiting letter, oldest first, under the lock of the letters' directory.

    Each letter has a connection of its own, so that one that the mail server chokes on does not keep the others;
    where there is no mail server at all, the rest is not tried.

    Args:
        state_dir: the directory above ``letters/``.
        mail: the settings ``[mail]``.

    Raises:
        UnavailableError: another process is delivering still after ``timeout_s``, or a file cannot be moved.
    """
    done = Delivered()
    if not waiting(state_dir):
        return done
    directory = _made(state_dir)
    with lockfile.hold(directory, timeout_s=mail["timeout_s"]):
        no_server = ""
        # The list that counts: what another process has sent while this one waited is gone.
        for name in waiting(state_dir):
            if no_server:
                done.waiting.append(f"{name}: {no_server}")
                continue
            try:
                _hand_over(directory, name, mail, done)
            except _NoServerError as error:
                no_server = str(error)
                done.waiting.append(f"{name}: {no_server}")
            except (BadInputError, _RefusedError) as error:
                _set_aside(directory, name)
                done.refused.append(f"{name}: {error}")
            except UnavailableError as error:
                done.waiting.append(f"{name}: {error}")
    return done


def _hand_over(directory: str, name: str, mail: dict[str, Any], done: Delivered) -> None:
    """Send one letter and remove it the moment it is taken."""
    path = f"{directory}/{name}"
    try:
        content = files.read(path)
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
    letter = parse(content)
    send = _by_sendmail if mail["transport"] == "sendmail" else _by_smtp
    with send(mail, letter, content) as refusals:
        try:
            os.unlink(path)
            files.sync_directory(directory)
        except OSError as error:
            raise UnavailableError(f"it was sent, but cannot remove {path}: {reason(error)}") from error
    done.sent.append(f"{name}: sent to {_one_line(letter['To'])}")
    done.partly.extend(f"{name}: {refusal}" for refusal in refusals)


@contextmanager
def _by_smtp(mail: dict[str, Any], letter: EmailMessage, content: bytes) -> Iterator[list[str]]:
    """Have a mail server take a letter; the context opens when it has, and gives the recipients it refused."""
    server = f"{mail['smtp_host']} port {mail['smtp_port']}"
    try:
        session = smtplib.SMTP(mail["smtp_host"], mail["smtp_port"], timeout=mail["timeout_s"])
    except OSError as error:  # smtplib's errors are of this family too
        raise _NoServerError(f"cannot reach the mail server {server}: {_words(error)}") from error
    try:
        yield _taken(session, server, letter, content)
    except BaseException:
        # Not quit(): in the middle of a letter the server would take that for text.
        session.close()
        raise
    with suppress(OSError):  # the letter is taken, whatever the server says to this
        session.quit()


def _taken(session: smtplib.SMTP, server: str, letter: EmailMessage, content: bytes) -> list[str]:
    try:
        refused = session.sendmail(_sender(letter), _recipients(letter), content)
    except smtplib.SMTPRecipientsRefused as error:
        said = "; ".join(_refusals(error.recipients))
        if all(code in PERMANENT for code, _ in error.recipients.values()):
            raise _RefusedError(said) from error
        raise UnavailableError(said) from error
    except smtplib.SMTPResponseException as error:
        said = _reply(error.smtp_code, error.smtp_error)
        if error.smtp_code in PERMANENT and error.smtp_code != AUTHENTICATION_REQUIRED:
            raise _RefusedError(f"the mail server {server} refuses it: {said}") from error
        raise UnavailableError(f"the mail server {server} does not take it now: {said}") from error
    except OSError as error:
        raise UnavailableError(f"cannot send it to the mail server {server}: {_words(error)}") from error
    return _refusals(refused)


def _refusals(recipients: Mapping[str, tuple[int, bytes | str]]) -> list[str]:
    return [f"{recipient} is refused: {_reply(*reply)}" for recipient, reply in recipients.items()]


@contextmanager
def _by_sendmail(mail: dict[str, Any], letter: EmailMessage, content: bytes) -> Iterator[list[str]]:
    """Have a program that takes sendmail's options take a letter; the context opens when it has."""
    program = mail["sendmail"]
    arguments = [program, "-i", "-f", _sender(letter), "--", *_recipients(letter)]
    outcome = processes.run(arguments, mail["timeout_s"], content.replace(b"\r\n", b"\n"))
    if outcome.status != 0:
        said = _one_line((outcome.errors or outcome.output).decode("utf-8", "replace"))
        raise UnavailableError(
            f"cannot send it through {program}: exit status {outcome.status}{': ' * bool(said)}{said}"
        )
    yield []


def _set_aside(directory: str, name: str) -> None:
    refused_dir = directory + "/refused"
    try:
        files.make_directories(refused_dir, DIRECTORY_MODE)
        os.rename(f"{directory}/{name}", f"{refused_dir}/{name}")
        files.sync_directory(refused_dir)
        files.sync_directory(directory)
    except OSError as error:
        raise UnavailableError(f"cannot set aside {directory}/{name}: {reason(error)}") from error


def _made(state_dir: str) -> str:
    directory = state_dir + "/letters"
    try:
        files.make_directories(directory, DIRECTORY_MODE)
    except OSError as error:
        raise UnavailableError(f"cannot make {directory}: {reason(error)}") from error
    return directory


def _name(letter: EmailMessage) -> str:
    written = letter["Date"].datetime.astimezone(UTC)
    digest = hashlib.sha256(letter["Message-ID"].encode("utf-8", "replace")).hexdigest()
    return f"{written:%Y%m%dT%H%M%SZ}-{digest[:16]}{SUFFIX}"


def address(text: str) -> Address:
    """Return the one address that a setting holds.

    Raises:
        ConfigError: it is none, or several, or led by a ``-``.
    """
    try:
        header = POLICY.header_factory("To", text if text.isprintable() else "")
        (address,) = header.addresses
        # A local user without a domain is told as one defect; anything else that was passed over is another.
        whole = len(header.defects) == (not address.domain) and header.groups[0].display_name is None
        usable = address.addr_spec.isascii() and address.username.strip("-") and address.username[0] != "-"
    except (LookupError, ValueError):
        whole = usable = False
    if not (whole and usable):
        raise ConfigError(f"cannot write to or from {names.shown(text)}: expected one address, as in www@example.org")
    result: Address = address
    return result


def _sender(letter: EmailMessage) -> str:
    return str(letter["From"].addresses[0].addr_spec)


def _recipients(letter: EmailMessage) -> list[str]:
    return [address.addr_spec for address in letter["To"].addresses]


def _words(error: OSError) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return _reply(error.smtp_code, error.smtp_error)
    return _one_line(reason(error))


def _reply(code: int, said: bytes | str) -> str:
    return _one_line(f"{code} {said.decode('utf-8', 'replace') if isinstance(said, bytes) else said}")


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LINE_LIMIT]
