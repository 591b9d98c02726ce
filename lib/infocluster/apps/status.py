# SPDX-License-Identifier: Apache-2.0
"""status.cgi: how this host's own programs stand, for people; it changes nothing.

A part of the page is a function that returns its title and its HTML, in `PARTS`.
"""

import time

from infocluster.errors import InfoclusterError
from infocluster.web.request import Request
from infocluster.web.response import HTML, Response, escaped


def answer(request: Request) -> Response:
    """Return the page.

    Raises:
        HttpError: 405 for another method than GET and HEAD.
    """
    from infocluster.apps import poll_page

    request.allow("GET", "HEAD")
    if ("format", "openmetrics") in request.query():
        from infocluster.apps import nodes_status

        return nodes_status.metrics(request)
    now = time.time()
    content = "\n".join(
        f"<h2>{escaped(title)}</h2>\n{html}" for title, html in (part(request, now) for part in PARTS)
    )
    return Response(poll_page.whole("Status", content, now), HTML, fields=(("Cache-Control", "no-store"),))


def _polling(request: Request, now: float) -> "tuple[str, str]":
    from infocluster.apps import poll, poll_page

    title = "Polling agent"
    if not request.settings["core_filers"]:
        return title, "<p>No core filer is set.</p>"
    if not poll.is_shown(request):
        return title, "<p>Shown only to who may poll: by address, and with the token if there is one.</p>"
    try:
        where = poll.directory(request.settings["poll"], request.variable("SERVER_GATHER"))
        return title, poll_page.table(request.settings, where, now)
    except InfoclusterError:
        return title, "<p>Its states cannot be read now.</p>"


def _nodes(request: Request, now: float) -> "tuple[str, str]":
    from infocluster.apps import nodes_status

    return nodes_status.published(request, now)


def _reports(request: Request, now: float) -> "tuple[str, str]":
    from infocluster.apps import nodes_status

    return nodes_status.own(request, now)


def _gathered(request: Request, now: float) -> "tuple[str, str]":
    from infocluster.apps import nodes_status

    return nodes_status.gathered(request, now)


PARTS = (_nodes, _reports, _gathered, _polling)
