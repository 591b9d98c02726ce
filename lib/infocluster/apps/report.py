# SPDX-License-Identifier: Apache-2.0
"""report.cgi: a node hands in a report; it is answered when the report is in the gather queue, durable.

What is not taken is counted by its reason, one that came before among it; a node that no key is known for is listed
as a ghost.

Source: RFC 9110; see `aggregate.signing` for what is signed.
"""

import time

from infocluster import names, secrets
from infocluster.aggregate import intake, signing, wire
from infocluster.errors import InfoclusterError
from infocluster.web.request import Request
from infocluster.web.response import TEXT, HttpError, Response

# Bytes of a message beside its body.
HEAD_BYTES = wire.HEAD_LIMIT_BYTES
KINDS = ("REPORT", "PUT")
DUPLICATE = "duplicate"
# Why a request is refused before its message is looked at.
WORDS = {405: "method", 411: "length", 413: "size"}
MALFORMED = "malformed"


class _RefusedError(HttpError):
    """A report that is not taken: the word that it is counted by, and whose it is where nobody knows the node."""

    def __init__(self, word: str, status: int, sentence: str, ghost: str = "") -> None:
        super().__init__(status, sentence)
        self.word = word
        self.ghost = ghost


def answer(request: Request) -> Response:
    """Take one report.

    Raises:
        HttpError: 405, 411, 413; 400 malformed; 403 unknown node, wrong clock or signature.
        UnavailableError: it cannot be kept now; the node has to send it again.
        ConfigError: a key cannot be read.
    """
    try:
        return _taken(request, time.time())
    except HttpError as error:
        if isinstance(error, _RefusedError):
            _count(request, error.word, error.ghost)
        else:
            _count(request, WORDS.get(error.http_status, MALFORMED))
        fields = (("Cache-Control", "no-store"), *error.fields)
        return Response(f"refused: {error}\n".encode("utf-8", "replace"), TEXT, error.http_status, fields)


def _taken(request: Request, now: float) -> Response:
    request.allow("POST")
    own = request.settings["aggregate"]
    queue = intake.queue_dir(own["app"], request.variable("SERVER_GATHER"))
    body = request.body(own["limit_bytes"] + HEAD_BYTES)
    node, message_id = request.variable("HTTP_X_SEER_NODE"), request.variable("HTTP_X_SEER_ID")
    date = request.variable("HTTP_X_SEER_DATE")
    key = signing.key(node) if names.is_name(node) else None
    if key is None:
        raise _RefusedError("unknown", 403, "There is no such node here.", node)
    if not (date.isascii() and date.isdigit() and len(date) <= 12):
        raise _RefusedError(MALFORMED, 400, "X-Seer-Date has to be a Unix time.")
    if not abs(int(date) - now) <= own["clock_s"]:
        raise _RefusedError("clock", 403, f"Your clock and this server's, {now:.0f}, differ too much.")
    path = request.variable("SCRIPT_NAME") + request.variable("PATH_INFO")
    right = signing.sign(key, "POST", path, node, message_id, int(date), body)
    if not secrets.is_same(request.variable("HTTP_X_SEER_SIGNATURE"), right.encode("ascii")):
        raise _RefusedError("signature", 403, "The signature is wrong.")
    try:
        message = wire.parse(body, own["limit_bytes"])
    except wire.BadMessageError as error:
        raise _RefusedError(MALFORMED, 400, str(error)) from None
    if message.kind not in KINDS or (message.src, message.id) != (node, message_id):
        raise _RefusedError(MALFORMED, 400, "It is no REPORT or PUT, or not from this node and of this id.")
    is_durable = request.settings["gather"]["durable"]
    is_new = intake.put(queue, node, message_id, body, 2 * own["clock_s"], now, is_durable)
    if not is_new:
        _count(request, DUPLICATE)
    said = f"{'stored' if is_new else DUPLICATE} {message_id}\n"
    return Response(said.encode("ascii"), TEXT, fields=(("Cache-Control", "no-store"),))


def _count(request: Request, word: str, ghost: str = "") -> None:
    """Count a report that is not taken; where that cannot be, it is not taken all the same."""
    from infocluster.aggregate import refusals

    try:
        queue = intake.queue_dir(request.settings["aggregate"]["app"], request.variable("SERVER_GATHER"))
        refusals.note(queue + ".refused", word, ghost, request.variable("REMOTE_ADDR"), int(time.time()))
    except (OSError, InfoclusterError) as error:
        from infocluster.web import cgi

        cgi.log(f"cannot count a report that is not taken: {error}")
