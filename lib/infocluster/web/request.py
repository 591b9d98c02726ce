# SPDX-License-Identifier: Apache-2.0
"""What the visitor sent: RFC 3875 variables, and a body that is read when a handler asks for it.

Source: RFC 3875 4.1 and 4.2; RFC 9110 8.3, 15.5; Fetch Standard, "Origin header".
"""

import posix

from infocluster import config
from infocluster.web.response import HttpError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infocluster.config import Settings

FORM_TYPE = "application/x-www-form-urlencoded"
READ_BYTES = 1 << 16
DRAIN_LIMIT_BYTES = 1 << 26


class Request:
    """One request.

    Attributes:
        variables: the meta-variables of the server, bytes to bytes.
        taken_bytes: how much of the body was read.

    Args:
        variables: as above.
        settings: all settings; by default those of this host, once they are asked for.
        read: returns at most so many bytes of the body, b"" at its end; by default from the standard input.
    """

    __slots__ = ("_read_some", "_settings", "taken_bytes", "variables")

    def __init__(
        self,
        variables: "dict[bytes, bytes]",
        settings: "Settings | None" = None,
        read: "Callable[[int], bytes] | None" = None,
    ) -> None:
        self.variables = variables
        self.taken_bytes = 0
        self._settings = settings
        self._read_some = read or _standard_input

    @property
    def settings(self) -> "Settings":
        """Return all settings of this host.

        Raises:
            ConfigError: they cannot be read.
        """
        if self._settings is None:
            self._settings = config.load()
        return self._settings

    def variable(self, name: str) -> str:
        """Return a meta-variable as text, "" where there is none; bytes that are not UTF-8 become U+FFFD."""
        return self.variables.get(name.encode("ascii"), b"").decode("utf-8", "replace")

    @property
    def method(self) -> str:
        """Return the method in the letters the visitor sent, GET where the server names none."""
        return self.variable("REQUEST_METHOD") or "GET"

    def allow(self, *methods: str) -> None:
        """Go on only with one of these methods.

        Raises:
            HttpError: 405 with an Allow field.
        """
        if self.method not in methods:
            allowed = ", ".join(methods)
            raise HttpError(405, f"This address answers {allowed} only.", (("Allow", allowed),))

    def comes_from(self, networks: "list[str]") -> bool:
        """Tell whether the visitor's address is one of these, or in one of these networks."""
        address = self.variable("REMOTE_ADDR")
        if address in networks:
            return True
        if not networks:
            return False
        import ipaddress

        try:
            found = ipaddress.ip_address(address)
        except ValueError:  # no address at all: not one of those
            return False
        return any(found in ipaddress.ip_network(network) for network in networks)

    def check_origin(self) -> None:
        """Go on where the form was shown by this site, as far as the browser tells.

        Raises:
            HttpError: 403.
        """
        origin, host = self.variable("HTTP_ORIGIN"), self.variable("HTTP_HOST")
        if origin:
            site = "/".join(self.settings["site"]["url"].split("/")[:3])
            is_ours = origin.lower() in (f"https://{host}".lower(), f"http://{host}".lower(), site.lower())
        else:
            is_ours = self.variable("HTTP_SEC_FETCH_SITE") in ("", "same-origin", "none")
        if not is_ours:
            raise HttpError(403, "This form can only be sent from its own page.")

    def body(self, limit_bytes: int) -> bytes:
        """Return the whole body.

        Args:
            limit_bytes: the most that is taken.

        Raises:
            HttpError: 411 no length; 400 no number, or a body that ends before it; 413 over the limit.
        """
        return b"".join(self.chunks(limit_bytes))

    def chunks(self, limit_bytes: int) -> "Iterator[bytes]":
        """Return the body piece by piece, at most `READ_BYTES` at once; what is wrong with its length is raised here.

        Raises:
            HttpError: as `body`.
        """
        stated = self.variable("CONTENT_LENGTH")
        if not stated:
            raise HttpError(411, "The request does not say how long its body is.")
        if not (stated.isascii() and stated.isdigit()):
            raise HttpError(400, "The length of the request's body is not a number.")
        length = int(stated[:20])
        if length > limit_bytes:
            raise HttpError(413, f"The request is too large: at most {limit_bytes} bytes are taken.")
        return self._pieces(length)

    def _pieces(self, length: int) -> "Iterator[bytes]":
        while self.taken_bytes < length:
            chunk = self._read(length)
            if not chunk:
                raise HttpError(400, "The request ended before all of it arrived.")
            yield chunk

    def drain(self) -> None:
        """Read what is left of the body and throw it away.

        mod_cgid gives a program one socket for both ways: a reply is lost where the program leaves with some of the
        body unread, since the kernel then resets the connection (unix(7)).
        """
        stated = self.variable("CONTENT_LENGTH")
        length = int(stated[:20]) if stated.isascii() and stated.isdigit() else 0
        try:
            while self.taken_bytes < min(length, DRAIN_LIMIT_BYTES) and self._read(length):
                pass
        except OSError:  # no input: nothing is left of it
            return

    def _read(self, length: int) -> bytes:
        chunk = self._read_some(min(length - self.taken_bytes, READ_BYTES))
        self.taken_bytes += len(chunk)
        return chunk

    def form(self, limit_bytes: int) -> "list[tuple[str, str]]":
        """Return the fields of an urlencoded body, in order.

        Raises:
            HttpError: as `body`; 415 for another content type.
        """
        content_type = self.variable("CONTENT_TYPE").partition(";")[0].strip().lower()
        if content_type != FORM_TYPE:
            raise HttpError(415, f"A form has to be sent as {FORM_TYPE}.")
        return pairs(self.body(limit_bytes))

    def query(self) -> "list[tuple[str, str]]":
        """Return the fields of the query string, in order."""
        return pairs(self.variables.get(b"QUERY_STRING", b""))


def _standard_input(size: int) -> bytes:
    return posix.read(0, size)


def pairs(text: bytes) -> "list[tuple[str, str]]":
    """Return the fields of an urlencoded text, in order, blank values kept.

    The same as ``urllib.parse.parse_qsl(text, keep_blank_values=True)``, which a hit has no time
    to load; a test holds the two equal.

    Source: HTML Living Standard, application/x-www-form-urlencoded parsing.
    """
    result = []
    for field in text.split(b"&"):
        if field:
            name, _, value = field.partition(b"=")
            result.append((_unquoted(name), _unquoted(value)))
    return result


def _unquoted(text: bytes) -> str:
    text = text.replace(b"+", b" ")
    if b"%" in text:
        first, *rest = text.split(b"%")
        parts = [first]
        for part in rest:
            try:
                # fromhex skips white space, which is no hexadecimal digit here
                parts.append(
                    bytes.fromhex(part[:2].decode("ascii")) + part[2:] if part[:2].isalnum() else b"%" + part
                )
            except ValueError:
                parts.append(b"%" + part)
        text = b"".join(parts)
    return text.decode("utf-8", "replace")
