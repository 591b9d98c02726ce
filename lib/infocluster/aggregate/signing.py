# SPDX-License-Identifier: Apache-2.0
"""Signatures of reports: HMAC-SHA256 by a node's key, over what was asked, by whom, when and with which body.

Shape: signed are six lines without a last line end: method, path, node, id, date (Unix seconds), and the SHA-256 of
    the body in hexadecimal; they travel as the headers ``X-Seer-Node``, ``X-Seer-Id``, ``X-Seer-Date`` and
    ``X-Seer-Signature`` (64 hexadecimal digits)::

        POST
        /cgi-bin/report.cgi
        node1
        644a1f0c2e9b31-7
        1795384800
        9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

A node's key is what the file ``etc/secrets/nodes/NODE`` holds, without the white space round it, on the node and on
every web server that takes its reports. A node without such a file is not known.

A hit loads this module.

Source: RFC 2104; FIPS 180-4.
"""

import posix

from infocluster import files, names, secrets
from infocluster.errors import ConfigError, reason

LEAST_BYTES = 16


def sign(key: bytes, method: str, path: str, node: str, message_id: str, date: int, body: bytes) -> str:
    """Return the signature in hexadecimal."""
    text = f"{method}\n{path}\n{node}\n{message_id}\n{date}\n{secrets.sha256(body).hex()}"
    return secrets.hmac(key, text.encode("utf-8", "replace")).hex()


def key_file(node: str) -> str:
    """Return the file that a node's key is in.

    Raises:
        UsageError: the node's name is none.
    """
    names.name(node, "a node's name")
    return f"{secrets.directory()}/nodes/{node}"


def key(node: str) -> bytes | None:
    """Return a node's key, None where the node is not known.

    Raises:
        UsageError: the node's name is none.
        ConfigError: its file cannot be read, or holds less than 16 bytes.
    """
    path = key_file(node)
    try:
        found = files.read(path).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {reason(error)}") from error
    if len(found) < LEAST_BYTES:
        raise ConfigError(f"cannot use {path}: a key has {LEAST_BYTES} bytes at least")
    return found


def known() -> "list[str]":
    """Return the nodes that there are keys for."""
    try:
        found = posix.listdir(f"{secrets.directory()}/nodes")
    except OSError:
        return []
    return sorted(name for name in found if names.is_name(name))
