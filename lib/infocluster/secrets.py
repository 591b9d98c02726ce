# SPDX-License-Identifier: Apache-2.0
"""Secrets: files of etc/secrets, what is signed with them, and a comparison that does not tell how much was right.

A hit loads this module: digests are the interpreter's own, hmac and hashlib would cost it 5 ms.

Source: RFC 2104; FIPS 180-4.
"""

from _operator import _compare_digest

from infocluster import config, files, names
from infocluster.errors import ConfigError, reason

_BLOCK_BYTES = 64
_INNER = bytes(code ^ 0x36 for code in range(256))
_OUTER = bytes(code ^ 0x5C for code in range(256))


def read(name: str) -> bytes:
    """Return a secret, without the white space round it.

    Args:
        name: a file of etc/secrets, beside the settings.

    Raises:
        ConfigError: there is none, or it is empty.
    """
    if not names.is_name(name):
        raise ConfigError(f"cannot read the secret {names.shown(name)}: it has to be a file's name in etc/secrets")
    path = f"{directory()}/{name}"
    try:
        secret = files.read(path).strip()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {reason(error)}") from error
    if not secret:
        raise ConfigError(f"cannot use {path}: it is empty")
    return secret


def directory() -> str:
    """Return the directory of the secrets, beside the settings."""
    return f"{config.settings_file().rpartition('/')[0]}/secrets"


def is_same(told: str, right: bytes) -> bool:
    """Tell whether what was sent is right, in a time that does not tell how much of it was."""
    return bool(_compare_digest(told.encode("utf-8", "replace"), right))


def sha256(content: bytes) -> bytes:
    """Return a digest."""
    try:
        from _sha256 import sha256 as digest
    except ImportError:  # another Python
        from hashlib import sha256 as digest
    return bytes(digest(content).digest())


def hmac(key: bytes, content: bytes) -> bytes:
    """Return the HMAC-SHA256, the same as ``hmac.digest(key, content, "sha256")``; a test holds the two equal."""
    if len(key) > _BLOCK_BYTES:
        key = sha256(key)
    key = key.ljust(_BLOCK_BYTES, b"\0")
    return sha256(key.translate(_OUTER) + sha256(key.translate(_INNER) + content))
