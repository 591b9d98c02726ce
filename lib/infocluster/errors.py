# SPDX-License-Identifier: Apache-2.0
"""The one family of errors: each says what a cron job should exit with and what a visitor should be answered.

Every message reads ``cannot VERB OBJECT: REASON``. The exit statuses are those of sysexits(3).
"""

EX_OK = 0
EX_SOME_FAILED = 1
EX_USAGE = 64
EX_DATAERR = 65
EX_SOFTWARE = 70
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


class InfoclusterError(Exception):
    """Something that a person has to know about; the message goes to whoever ran the program."""

    exit_status = EX_SOFTWARE
    http_status = 500


class UsageError(InfoclusterError):
    """The caller asked for something that does not exist or is not allowed to be written so."""

    exit_status = EX_USAGE
    http_status = 400


class BadInputError(InfoclusterError):
    """A file or a message is not in the form it has to have."""

    exit_status = EX_DATAERR
    http_status = 400


class UnavailableError(InfoclusterError):
    """It did not work now and may work later: a full disk, a lock that is held, a server that is down."""

    exit_status = EX_TEMPFAIL
    http_status = 503


class RefusedError(InfoclusterError):
    """The rules of the house forbid it."""

    exit_status = EX_NOPERM
    http_status = 403


class ConfigError(InfoclusterError):
    """A setting is missing, unknown or impossible; the message names file, line and setting."""

    exit_status = EX_CONFIG
    http_status = 500


class SomeFailedError(InfoclusterError):
    """The run went on to its end, and some of its items failed; each was reported by then."""

    exit_status = EX_SOME_FAILED


def reason(error: OSError) -> str:
    """Return the operating system's words for an error, without the path that the caller names anyway."""
    return error.strerror or str(error)
