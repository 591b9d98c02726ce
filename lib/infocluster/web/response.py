# SPDX-License-Identifier: Apache-2.0
"""What the visitor gets: a status, header fields, a body; and the errors that are answers.

Source: RFC 3875 6; RFC 9110.
"""

from infocluster.errors import InfoclusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"

PHRASES = {
    200: "OK",
    303: "See Other",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Response:
    """A whole answer.

    Attributes:
        status: the HTTP status.
        content_type: the media type of the body.
        body: the bytes of the body.
        stream: what follows the body, piece by piece as it comes; None where the body is whole, and its length told.
        fields: further header fields, names and values in ASCII without line ends.
    """

    __slots__ = ("body", "content_type", "fields", "status", "stream")

    def __init__(
        self,
        body: bytes,
        content_type: str = HTML,
        status: int = 200,
        fields: "tuple[tuple[str, str], ...]" = (),
        stream: "Iterable[bytes] | None" = None,
    ) -> None:
        self.body = body
        self.content_type = content_type
        self.status = status
        self.fields = fields
        self.stream = stream

    def message(self, is_head: bool = False) -> bytes:
        """Return the answer as a CGI program writes it, without its stream, and without the body for HEAD.

        Raises:
            ValueError: a header field holds a line end, which would be the visitor's chance to write others.
        """
        lines = [
            f"Status: {self.status} {PHRASES[self.status]}",
            f"Content-Type: {self.content_type}",
            "X-Content-Type-Options: nosniff",
        ]
        if self.stream is None:
            lines.insert(2, f"Content-Length: {len(self.body)}")
        for name, value in self.fields:
            lines.append(f"{name}: {value}")
        for line in lines:
            if "\r" in line or "\n" in line:
                raise ValueError("a header field with a line end in it")
        head = "\r\n".join(lines) + "\r\n\r\n"
        return head.encode("ascii") + (b"" if is_head else self.body)


class HttpError(InfoclusterError):
    """An answer that is an error, with a sentence for the visitor.

    Args:
        status: the HTTP status.
        sentence: what the visitor reads.
        fields: further header fields.
    """

    def __init__(self, status: int, sentence: str, fields: "tuple[tuple[str, str], ...]" = ()) -> None:
        super().__init__(sentence)
        self.http_status = status
        self.fields = fields


def error_page(status: int, sentence: str, fields: "tuple[tuple[str, str], ...]" = ()) -> Response:
    """Return a small page that says one sentence."""
    phrase = PHRASES[status]
    body = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{phrase}</title></head>\n'
        f"<body><main><h1>{phrase}</h1><p>{escaped(sentence)}</p></main></body></html>\n"
    )
    return Response(body.encode("utf-8", "replace"), HTML, status, (("Cache-Control", "no-store"), *fields))


def escaped(text: str) -> str:
    """Return a text that is safe in HTML, between tags and in quotes; the same as ``html.escape``."""
    return (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#x27;")
    )
