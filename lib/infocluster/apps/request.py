# SPDX-License-Identifier: Apache-2.0
"""request.cgi: what an aggregator is asked for, or the updates since a revision.

Where there is a controller's socket on this host, the answer is live; without one, or where it does not answer in
time, it is what was published and pushed, with its age.

Source: RFC 9110 8.8.3 (ETag), 12.5.1 (Accept), 13.1.2 (If-None-Match), RFC 9111 5.1 (Age).
"""

import posix
import time

from infocluster import files, names, secrets
from infocluster.aggregate import answers
from infocluster.errors import UnavailableError, reason
from infocluster.web.request import Request
from infocluster.web.response import HttpError, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ARGUMENTS_LIMIT = 8
VALUE_LIMIT = 300
RAW = "raw"
UPDATES = "Updates"
RETRY_AFTER_S = "10"
# What is handed in by nodes is theirs: nothing of it runs here.
_HARMLESS = (("Content-Security-Policy", "default-src 'none'; sandbox"),)
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_RESERVED = frozenset({"id", "src", "dst", "dattrib", "content-length", "date", "period"})


def answer(request: Request) -> Response:
    """Answer one request.

    Raises:
        HttpError: 400 no such question; 404 nothing of this kind; 503 neither the controller nor what was published.
        UnavailableError: what was published cannot be read.
    """
    request.allow("GET", "HEAD")
    query = _query(request)
    form = query.pop("format", "")
    wants_protobuf = form != RAW and _wants_protobuf(request.variable("HTTP_ACCEPT"))
    found = _live(request, query) or _published(request, query, wants_protobuf)
    status, told, protobuf, fields = found
    if status != 200:
        raise HttpError(status, "There is nothing of this kind." if status == 404 else "It cannot be answered now.")
    if form == RAW:
        return _raw(told, fields)
    content, kind = (protobuf, answers.PROTOBUF) if wants_protobuf and protobuf is not None else (told, answers.JSON)
    return _tagged(request, content, kind, (*fields, ("Vary", "Accept"), *_HARMLESS))


def _query(request: Request) -> "dict[str, str]":
    """Return what is asked for, names and values, with its type."""
    sent = request.query()
    query: dict[str, str] = {}
    for name, value in sent:
        if name in query or name in _RESERVED or not name or not _TOKEN.issuperset(name) or name[0] == "-":
            raise HttpError(400, "An argument's name stands twice, or cannot be used.")
        if len(value) > VALUE_LIMIT or not value.isprintable():
            raise HttpError(400, "An argument is too long, or holds control characters.")
        if value.strip(" ") != value:
            raise HttpError(400, "An argument begins or ends with a blank.")
        query[name] = value
    if len(query) > ARGUMENTS_LIMIT:
        raise HttpError(400, "There are too many arguments.")
    if "updates" in query:
        return {"type": UPDATES, **{name: query[name] for name in ("since", "epoch") if query.get(name)}}
    if not names.is_name(query.get("type", "")) or query["type"] == UPDATES:
        raise HttpError(400, "The argument type has to say what is asked for, or updates has to be there.")
    return {name: value for name, value in query.items() if value}


def _live(
    request: Request, query: "dict[str, str]"
) -> "tuple[int, bytes, bytes | None, tuple[tuple[str, str], ...]] | None":
    own = request.settings["aggregate"]
    if not own["socket"]:
        return None
    from infocluster.apps import nodes_served

    found = nodes_served.ask(own["socket"], query, own["answer_limit_s"])
    if found is None or found[0] == 503:
        return None
    return (*found, (("Cache-Control", "no-cache"), ("X-Infocluster-Source", "live")))


def directory(request: Request) -> str:
    """Return where on this web server what the controller published is.

    Raises:
        UnavailableError: the server names no document root.
    """
    root = request.variable("DOCUMENT_ROOT")
    if not root.startswith("/"):
        raise UnavailableError("cannot answer: DOCUMENT_ROOT names no directory")
    # The document root is one access tree, the first part of the setting.
    below: str = request.settings["aggregate"]["directory"].partition("/")[2]
    return f"{root}/{below}" if below else root


def _published(
    request: Request, query: "dict[str, str]", wants_protobuf: bool
) -> "tuple[int, bytes, bytes | None, tuple[tuple[str, str], ...]]":
    top = directory(request)
    try:
        made = posix.stat(top + "/updates.json").st_mtime
    except OSError:
        raise HttpError(
            503, "Nothing was published yet, and no controller answers.", (("Retry-After", RETRY_AFTER_S),)
        ) from None
    age = max(0, int(time.time() - made))
    fields = (("Cache-Control", "no-cache"), ("Age", str(age)), ("X-Infocluster-Source", "published"))
    if query["type"] == UPDATES:
        from infocluster.apps import nodes_served

        whole = _document(_read(top + "/updates.json"))
        found = nodes_served.updates(whole, query.get("since", ""), query.get("epoch", ""), wants_protobuf)
        return 200, *found, fields
    try:
        told = files.read(f"{top}/{answers.answer_name(query)}")
        protobuf = None
        if wants_protobuf:
            try:
                protobuf = files.read(f"{top}/{answers.answer_name(query, '.pb')}")
            except FileNotFoundError:  # it has no such form
                protobuf = None
    except FileNotFoundError:
        return 404, b"", None, fields
    except OSError as error:
        raise UnavailableError(f"cannot read below {top}: {reason(error)}") from error
    return 200, told, protobuf, fields


def _read(path: str) -> bytes:
    try:
        return files.read(path)
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {reason(error)}") from error


def _document(text: bytes) -> "dict[str, Any]":
    import json

    try:
        whole: dict[str, Any] = json.loads(text)
        if whole["format"] != "infocluster updates 1":
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UnavailableError("cannot use updates.json: it is none of ours") from None
    return whole


def _wants_protobuf(accept: str) -> bool:
    return any(part.partition(";")[0].strip() == answers.PROTOBUF for part in accept.split(","))


def _tagged(request: Request, content: bytes, kind: str, fields: "tuple[tuple[str, str], ...]") -> Response:
    tag = f'"{secrets.sha256(content).hex()[:24]}"'
    fields = (("ETag", tag), *fields)
    known = [part.strip().removeprefix("W/") for part in request.variable("HTTP_IF_NONE_MATCH").split(",")]
    if tag in known or "*" in known:
        return Response(b"", kind, 304, fields)
    return Response(content, kind, fields=fields)


def _raw(told: bytes, fields: "tuple[tuple[str, str], ...]") -> Response:
    """Return what one file holds, to be kept and not shown."""
    import base64
    import json

    try:
        (file,) = json.loads(told)["files"]
        content, name = base64.b64decode(file.get("data", "")), str(file["name"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HttpError(400, "Only a single file can be had as it is.") from None
    from urllib.parse import quote

    kept = ("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name, safe='')}")
    return Response(content, "application/octet-stream", fields=(*fields, kept, *_HARMLESS))
