# SPDX-License-Identifier: Apache-2.0
"""The tokens by which a backup says itself how it ended.

Shape: the token that says that the backup of core filer NAME for the target time T is done is the HMAC-SHA256, in 64
    hexadecimal digits, of ``done NAME T`` in UTF-8 under the secret; with ``failed`` in place of ``done`` it says
    that it failed. ``printf 'done %s %s' cf-projects 1795384800 | openssl dgst -sha256 -hmac "$SECRET"`` prints one.

A hit loads this module where a token is asked for.

Source: RFC 2104.
"""

from infocluster import secrets


def token(word: str, mass: str, target: int, secret: bytes) -> bytes:
    """Return the token by which a backup says how it ended, see above."""
    return secrets.hmac(secret, f"{word} {mass} {target}".encode()).hex().encode("ascii")
