# SPDX-License-Identifier: Apache-2.0
"""moderate.cgi: a person's word on an answer, by the link that came with it in a letter.

The life of a word:

1. the letter that brings an answer has a link for it, where the form asks for moderation: signed, and open for
   `OPEN_DAYS` after the answer;
2. GET shows two buttons and changes nothing: programs that look through letters follow links, too;
3. POST, from that page only, appends the word to the application ``decisions-NAME``; it is on the disk when the
   person is told so;
4. the night takes the newest word on each answer, whichever server or command it came by, and publishes.

Shape: the link is ``CGI_URL/moderate.cgi/NAME?ID.TIME.SIGNATURE``: the answer's id, its time in hexadecimal, and the
    first 32 hexadecimal digits of the HMAC-SHA256 of ``moderate NAME ID TIME`` under the site's secret. A record is
    ``{"id": "5f0c2a9be7d14c33a01b92ce", "time": 1795384800.25, "answer": "<32 hexadecimal digits>", "state":
    "shown"}``, or ``"hidden"``.

A hit loads this module.

Source: RFC 9110 9.2.1 (safe methods); RFC 2104.
"""

import time

from infocluster import secrets
from infocluster.apps import forms_compiled
from infocluster.gather import drop
from infocluster.web.request import FORM_TYPE, Request, pairs
from infocluster.web.response import HTML, HttpError, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from infocluster.apps.forms_compiled import Form
    from infocluster.config import Settings

SHOWN, HIDDEN = "shown", "hidden"
OPEN_DAYS = 60
_DAY_S = 86400
_BODY_BYTES = 4096
_NOT_OPEN = "This link is not whole, or is too old. On the batch host forms-nightly -publish and -hide decide too."


def app_of(name: str) -> str:
    """Return the application whose records are what people decided of a form's answers."""
    return f"decisions-{name}"


def is_moderated(form: "Form") -> bool:
    """Tell whether a form's answers wait for a person's word."""
    return bool(form["answers"]["publish"] and form["answers"]["moderate"])


def link(form: str, answer_id: str, when: float, settings: "Settings", secret: bytes) -> str:
    """Return the address where a person decides of an answer.

    Args:
        form: the form's name.
        answer_id: the answer's id.
        when: its time, Unix s.
        settings: all settings.
        secret: the site's.
    """
    from urllib.parse import urljoin

    site, stamp = settings["site"], f"{int(when):x}"
    programs = urljoin(site["url"], site["cgi_url"])
    return f"{programs}moderate.cgi/{form}?{answer_id}.{stamp}.{_signature(form, answer_id, stamp, secret)}"


def answer(request: Request) -> Response:
    """Show what can be decided of an answer, or take a person's word.

    Raises:
        HttpError: 403 no link of ours, one that is too old, or a word from another site; 404 no such form, or none
            whose answers wait; 405; 411, 413, 415; 422 neither of the two words.
        UnavailableError: the word cannot be kept now.
        ConfigError: the form's declaration or the secret is not as it has to be.
    """
    request.allow("GET", "HEAD", "POST")
    name = request.variable("PATH_INFO").removeprefix("/")
    form = forms_compiled.load(name, request.settings)
    if form is None or not is_moderated(form):
        raise HttpError(404, "There is no form here whose answers wait for somebody's word.")
    answer_id, when = _opened(request, name, time.time())
    if request.method != "POST":
        return _page(request, form, answer_id, when, "")
    request.check_origin()
    state = _word(request)
    drop.append(
        app_of(name),
        {"answer": answer_id, "state": state},
        request.settings["gather"],
        request.variable("SERVER_GATHER"),
    )
    return _page(request, form, answer_id, when, state)


def _opened(request: Request, name: str, now: float) -> "tuple[str, int]":
    """Return id and time of the answer that the link is for.

    Raises:
        HttpError: 403.
    """
    answer_id, _, rest = request.variable("QUERY_STRING").partition(".")
    stamp, _, signature = rest.partition(".")
    right = _signature(name, answer_id, stamp, secrets.read(request.settings["forms"]["secret"]))
    if not secrets.is_same(signature, right.encode("ascii")) or now > int(stamp, 16) + OPEN_DAYS * _DAY_S:
        raise HttpError(403, _NOT_OPEN)
    return answer_id, int(stamp, 16)


def _word(request: Request) -> str:
    """Return what was decided.

    Raises:
        HttpError: 411, 413, 415, 422.
    """
    kind = request.variable("CONTENT_TYPE").partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise HttpError(415, f"A decision has to be sent as {FORM_TYPE}.")
    said = [value for name, value in pairs(request.body(_BODY_BYTES)) if name == "state"]
    if said not in ([SHOWN], [HIDDEN]):
        raise HttpError(422, "Please press one of the two buttons.")
    return said[0]


def _page(request: Request, form: "Form", answer_id: str, when: int, state: str) -> Response:
    from infocluster import pages
    from infocluster.apps import forms_declared

    values = {
        **forms_declared.site_values(request.settings),
        "form": form,
        "answer": answer_id,
        "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when)),
        "state": state,
        "words": {"shown": SHOWN, "hidden": HIDDEN},
    }
    page = pages.fill("form_moderate.html", values).encode("utf-8", "replace")
    return Response(page, HTML, fields=(("Cache-Control", "no-store"), ("X-Robots-Tag", "noindex")))


def _signature(form: str, answer_id: str, stamp: str, secret: bytes) -> str:
    return secrets.hmac(secret, f"moderate {form} {answer_id} {stamp}".encode("utf-8", "replace")).hex()[:32]
