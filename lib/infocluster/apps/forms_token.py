# SPDX-License-Identifier: Apache-2.0
"""The token of one visit to a form: made here, sent back once, and how often an address may do that.

Shape: a token is ``TIME.NONCE.SIGNATURE``: the Unix time in hexadecimal, 24 hexadecimal digits that nobody can
    guess, and the HMAC-SHA256 of ``form NAME TIME NONCE`` under the site's secret. The record's id is the SHA-256 of
    the token, 32 hexadecimal digits of it: answers that are sent twice are one record, whichever servers they reach.
    ``$SERVER_GATHER/form-NAME.rate/2026112223`` holds 8 bytes for each record of an hour, the digest of the address
    that sent it; the file of an hour before goes when the first record of another hour comes.

A hit loads this module.

Source: RFC 2104; FIPS 180-4.
"""

import posix

from infocluster import files, secrets
from infocluster.errors import UnavailableError, reason
from infocluster.locks import lockfile

_ENTRY_BYTES = 8
_NONCE_BYTES = 12
_LOCK_TIMEOUT_S = 10.0
NEW, OLD, WRONG = "new", "old", "wrong"


def issue(form: str, now: float, secret: bytes) -> str:
    """Return a new token for a form."""
    stamp, nonce = f"{int(now):x}", posix.urandom(_NONCE_BYTES).hex()
    return f"{stamp}.{nonce}.{_signature(form, stamp, nonce, secret)}"


def look(token: str, form: str, now: float, open_s: float, secret: bytes) -> "tuple[str, float]":
    """Return `NEW`, `OLD` or `WRONG`, and how many seconds ago a token was issued, 0 where it is wrong."""
    stamp, _, rest = token.partition(".")
    nonce, _, signature = rest.partition(".")
    right = _signature(form, stamp, nonce, secret)
    if not secrets.is_same(signature, right.encode("ascii")):
        return WRONG, 0.0
    age_s = now - int(stamp, 16)
    # A clock of another server may be a little ahead of ours.
    return (NEW if -60 <= age_s <= open_s else OLD), max(age_s, 0.0)


def record_id(token: str) -> str:
    """Return the id of the record that a token stands for."""
    return secrets.sha256(token.encode("utf-8", "replace")).hex()[:32]


def count(directory: str, address: str, limit: int, now: float, secret: bytes) -> bool:
    """Count one record for an address, and tell whether it may still have it in this hour.

    Args:
        directory: ``$SERVER_GATHER/form-NAME.rate``.
        address: whose record it is; of IPv6 addresses the network of 64 bits counts.
        limit: records an address may have in an hour; 0 sets no limit, and nothing is counted.
        now: Unix time, s.
        secret: the site's, so that the file tells nobody who was here.

    Raises:
        UnavailableError: it cannot be counted.
    """
    if not limit:
        return True
    import time

    entry = secrets.hmac(secret, b"address " + _network(address).encode("utf-8", "replace"))[:_ENTRY_BYTES]
    name = time.strftime("%Y%m%d%H", time.gmtime(now))
    try:
        try:
            fd = posix.open(f"{directory}/{name}", posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW)
        except FileNotFoundError:
            fd = _next_hour(directory, name)
        try:
            if not lockfile.take(fd, timeout_s=_LOCK_TIMEOUT_S):
                raise UnavailableError(f"cannot count in {directory}: its lock was held too long")
            size = posix.fstat(fd).st_size
            size -= size % _ENTRY_BYTES
            seen = _times(posix.pread(fd, size, 0), entry)
            if seen < limit:
                posix.pwrite(fd, entry, size)
        finally:
            posix.close(fd)
    except OSError as error:
        raise UnavailableError(f"cannot count in {directory}: {reason(error)}") from error
    return seen < limit


def _signature(form: str, stamp: str, nonce: str, secret: bytes) -> str:
    return secrets.hmac(secret, f"form {form} {stamp} {nonce}".encode("utf-8", "replace")).hex()


def _network(address: str) -> str:
    if ":" not in address:
        return address
    import ipaddress

    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address


def _times(content: bytes, entry: bytes) -> int:
    """Count an entry among entries; what only looks like one across two of them does not count."""
    found, place = 0, content.find(entry)
    while place >= 0:
        found += place % _ENTRY_BYTES == 0
        place = content.find(entry, place + 1)
    return found


def _next_hour(directory: str, name: str) -> int:
    files.make_directories(directory)
    for old in posix.listdir(directory):
        if old < name:
            try:
                posix.unlink(f"{directory}/{old}")
            except FileNotFoundError:  # another hit was first
                continue
    return posix.open(f"{directory}/{name}", posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600)
