# SPDX-License-Identifier: Apache-2.0
"""Secrets of the polling agent: files of etc/secrets, compared in constant time; and the tokens of a callback.

Shape: the token that says that the backup of core filer NAME for the target time T is done is the HMAC-SHA256, in 64
    hexadecimal digits, of ``done NAME T`` in UTF-8 under the secret; with ``failed`` in place of ``done`` it says
    that it failed. ``printf 'done %s %s' cf-projects 1795384800 | openssl dgst -sha256 -hmac "$SECRET"`` prints one.

A hit loads this module where a token is asked for.

Source: RFC 2104.
"""

from _operator import _compare_digest

from infocluster import config, files, names
from infocluster.errors import ConfigError, reason


def read(name: str) -> bytes:
    """Return a secret, without the white space round it.

    Args:
        name: a file of etc/secrets, beside the settings.

    Raises:
        ConfigError: there is none, or it is empty.
    """
    if not names.is_name(name):
        raise ConfigError(f"cannot read the secret {names.shown(name)}: it has to be a file's name in etc/secrets")
    path = f"{config.settings_file().rpartition('/')[0]}/secrets/{name}"
    try:
        secret = files.read(path).strip()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {reason(error)}") from error
    if not secret:
        raise ConfigError(f"cannot use {path}: it is empty")
    return secret


def is_same(told: str, secret: bytes) -> bool:
    """Tell whether what was sent is the secret, in a time that does not tell how much of it was right."""
    return bool(_compare_digest(told.encode("utf-8", "replace"), secret))


def token(word: str, mass: str, target: int, secret: bytes) -> bytes:
    """Return the token by which a backup says how it ended, see above."""
    import hmac

    return hmac.digest(secret, f"{word} {mass} {target}".encode(), "sha256").hex().encode("ascii")
