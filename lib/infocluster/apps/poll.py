# SPDX-License-Identifier: Apache-2.0
"""poll.cgi: what a storage cluster asks every ten seconds, answered from one small file.

The first poll of a key makes its state and starts backup-watch in the background; every other one reads it. What is
not allowed is answered in a sentence, and no state is touched.

Source: Avere operations guide, "Implementing a URL Polling Agent"; RFC 9110.
"""

import posix
import time

from infocluster.errors import ConfigError, InfoclusterError, UnavailableError
from infocluster.poll import agent, state
from infocluster.web.request import Request, pairs
from infocluster.web.response import HTML, TEXT, HttpError, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BODY_LIMIT_BYTES = 8192
# Seconds that a state is new before another poll starts backup-watch once more: the first starter may have died.
AGAIN_S = 5
NEVER_KEPT = (
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache, must-revalidate"),
    ("Expires", "Sat, 26 Jul 1997 05:00:00 GMT"),
)
_KNOWN = frozenset({"mass", "targetTime", "token", "done", "failed"})


def answer(request: Request) -> Response:
    """Answer one poll, or one word of a backup about itself, or show people how all stand."""
    try:
        return _answered(request, time.time())
    except HttpError as error:
        return _said(str(error) + "\n", error.http_status, error.fields)
    except InfoclusterError as error:
        from infocluster.web import cgi

        status, sentence, fields = cgi.told(error)
        return _said(sentence + "\n", status, fields)


def _answered(request: Request, now: float) -> Response:
    request.allow("GET", "HEAD", "POST")
    poll = request.settings["poll"]
    if not is_allowed(request):
        raise HttpError(403, "This address may not ask here.")
    # A Poll URL with a query of its own: how a cluster appends its arguments to that is not documented.
    query = request.variables.get(b"QUERY_STRING", b"")
    sent = pairs(query.replace(b"?mass=", b"&mass=").replace(b"?targetTime=", b"&targetTime="))
    if request.method == "POST":
        sent += request.form(BODY_LIMIT_BYTES)
    values: dict[str, str] = {}
    for name, value in sent:
        if name in _KNOWN:
            if name in values:
                raise HttpError(400, f"There has to be one {name} only.")
            values[name] = value
    if poll["token"]:
        _check_token(values.get("token", ""), poll["token"])
    state_dir = directory(poll, request.variable("SERVER_GATHER"))
    if request.method != "POST" and values.keys() <= {"token"}:
        from infocluster.apps import poll_page

        return Response(poll_page.page(request.settings, state_dir, now), HTML, fields=NEVER_KEPT)
    mass, target = _key(values, request.settings)
    if "done" in values or "failed" in values:
        return _heard(request, values, state_dir, mass, target)
    return _said(_polled(request, state_dir, mass, target, now))


def directory(poll: "dict[str, Any]", gather: str) -> str:
    """Return the state directory.

    Args:
        poll: the settings ``[poll]``.
        gather: what SERVER_GATHER names.

    Raises:
        UnavailableError: neither names one.
    """
    named: str = poll["state_dir"] or (gather and gather + "/poll")
    if not named.startswith("/"):
        raise UnavailableError("cannot keep states: neither poll.state_dir nor SERVER_GATHER names a directory")
    return named


def is_allowed(request: Request) -> bool:
    """Tell whether a visitor's address may ask here; all may where the settings name none."""
    allowed = request.settings["poll"]["allow"]
    return not allowed or request.comes_from(allowed)


def is_shown(request: Request) -> bool:
    """Tell whether a visitor of another page may see how all stand: who may ask, with the token if there is one."""
    from infocluster import secrets

    name = request.settings["poll"]["token"]
    told = dict(request.query()).get("token", "")
    try:
        return is_allowed(request) and (not name or secrets.is_same(told, secrets.read(name)))
    except ConfigError:
        return False


def _check_token(told: str, name: str) -> None:
    from infocluster import secrets

    if not secrets.is_same(told, secrets.read(name)):
        raise HttpError(403, "The token is missing or wrong.")


def _key(values: "dict[str, str]", settings: "dict[str, Any]") -> "tuple[str, int]":
    """Return core filer and target time, if they are some that there can be."""
    mass, digits = values.get("mass", ""), values.get("targetTime", "")
    if not mass or not digits:
        raise HttpError(400, "The arguments mass and targetTime have to be given.")
    if not any(filer["name"] == mass for filer in settings["core_filers"]):
        raise HttpError(404, "There is no core filer of this name here.")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 11):
        raise HttpError(400, "The targetTime has to be a Unix time of 1 to 11 digits.")
    return mass, int(digits)


def _polled(request: Request, state_dir: str, mass: str, target: int, now: float) -> str:
    """Return the answer to a poll; the state is there, and noted as polled, before it."""
    path = state.file(state_dir, mass, target)
    try:
        found = state.read(path, mass, target)
        if found is None:
            _check_time(target, request.settings["poll"], now)
        if request.method == "HEAD":
            return agent.text(found or agent.asked(mass, target, "", now))
        if found is None:
            found = agent.asked(mass, target, posix.urandom(8).hex(), now)
            if state.create(path, found, request.settings["poll"]["states_limit"]):
                _kick(request, state_dir, mass)
            else:
                found = state.read(path, mass, target) or found
        elif found.state == "new" and now - found.asked > AGAIN_S:
            _kick(request, state_dir, mass)
    except state.BadStateError as error:
        _log(str(error))
        return agent.UNREADABLE
    after, said = agent.answer(found, now)
    if after is not found:
        try:
            state.replace(path, after)
        except UnavailableError as error:
            # Complete is complete, whether or not we can note that it was told.
            _log(str(error))
    state.touch(path)
    return said


def _check_time(target: int, poll: "dict[str, Any]", now: float) -> None:
    """Go on where a new target time may be taken; one that was is answered for as long as it is kept."""
    if not now - poll["age_s"] <= target <= now + poll["horizon_s"]:
        raise HttpError(400, "The targetTime is too long ago or too far ahead.")


def _heard(request: Request, values: "dict[str, str]", state_dir: str, mass: str, target: int) -> Response:
    """Keep what a backup says of itself, if it has the token for it."""
    from infocluster import secrets
    from infocluster.poll import tokens

    word = "done" if "done" in values else "failed"
    filer = next(filer for filer in request.settings["core_filers"] if filer["name"] == mass)
    if filer["backend"] != "callback" or not filer["secret"]:
        raise HttpError(403, "Backups of this core filer do not report here.")
    right = tokens.token(word, mass, target, secrets.read(filer["secret"]))
    if not secrets.is_same(values[word], right):
        raise HttpError(403, "The token is wrong.")
    if request.method == "HEAD":
        return _said("The token is right.\n")
    try:
        found = state.read(state.file(state_dir, mass, target), mass, target)
    except state.BadStateError as error:
        _log(str(error))
        return _said(agent.UNREADABLE)
    if found is None:
        raise HttpError(404, "Nobody has asked for this backup.")
    if found.state not in agent.OPEN:
        return _said(f"This comes too late and is not kept: the backup is {found.state} already.\n")
    state.leave(state.file(state_dir, mass, target, state.DONE_SUFFIX), word)
    _kick(request, state_dir, mass)
    return _said(f"Noted: the backup says that it {'is done' if word == 'done' else 'failed'}.\n")


def _kick(request: Request, state_dir: str, mass: str) -> None:
    from infocluster.poll import kick

    try:
        kick.kick(state_dir, mass, request.variables)
    except OSError as error:
        # Cron starts one within a minute.
        _log(f"cannot start backup-watch: {error}")


def _log(line: str) -> None:
    from infocluster.web import cgi

    cgi.log(line)


def _said(text: str, status: int = 200, fields: "tuple[tuple[str, str], ...]" = ()) -> Response:
    return Response(text.encode("utf-8", "replace"), TEXT, status, (*NEVER_KEPT, *fields))
