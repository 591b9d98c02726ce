# SPDX-License-Identifier: Apache-2.0
"""Types of files that visitors may send: told by their first bytes, never by what the visitor calls them.

Source: MIME Sniffing Standard, 6 (image, PDF and archive signatures).
"""

TYPES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "application/pdf": ".pdf",
    "application/zip": ".zip",
    "text/plain": ".txt",
}
"""Each type that can be told, and the ending a file of it gets."""
FIRST_BYTES = 16
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
)


def type_of(first: bytes) -> str:
    """Return the type of a file by its first `FIRST_BYTES` bytes: text/plain where no other is told and no control
    characters stand in them, "" where nothing can be told.
    """
    for signature, media_type in _SIGNATURES:
        if first.startswith(signature):
            return media_type
    if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return "image/webp"
    return "" if is_binary(first) else "text/plain"


def is_binary(content: bytes) -> bool:
    """Tell whether bytes hold control characters that no text has."""
    return content.translate(None, _CONTROLS) != content


_CONTROLS = bytes(code for code in range(32) if code not in (9, 10, 12, 13, 27)) + b"\x7f"
