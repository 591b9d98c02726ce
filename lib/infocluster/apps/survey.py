# SPDX-License-Identifier: Apache-2.0
"""The browser survey, a visitor's side: note the User-Agent, show what the last night counted.

Shape: a record of the application ``survey``: ``{"id":"...","time":1795384800.25,"agent":"Mozilla/5.0 ..."}``;
    ``agent`` is the User-Agent as it came, cut to ``[survey] agent_limit_bytes``, "" where none was sent.

The night's side is `survey_night`: a hit has no time to load it.

Source: RFC 9110 10.1.5.
"""

from infocluster import files
from infocluster.gather import drop
from infocluster.web.request import Request
from infocluster.web.response import HTML, Response

SUMMARY = "summary.html"
_NO_NIGHT_YET = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><title>Browser survey</title></head>\n'
    "<body><main><h1>Browser survey</h1><p>Your visit was noted. What all visits come to is counted each night; "
    "the first night is still to come.</p></main></body></html>\n"
)


def answer(request: Request) -> Response:
    """Note one visit and return the published summary.

    Raises:
        HttpError: 405 for another method than GET and HEAD.
        UnavailableError: the visit cannot be noted.
    """
    request.allow("GET", "HEAD")
    survey = request.settings["survey"]
    if request.method == "GET":
        agent = request.variables.get(b"HTTP_USER_AGENT", b"")[: survey["agent_limit_bytes"]]
        record = {"agent": agent.decode("utf-8", "replace")}
        drop.append(
            survey["app"], record, request.settings["gather"], request.variable("SERVER_GATHER"), survey["store"]
        )
    try:
        body = files.read(_summary_file(request))
    except FileNotFoundError:
        body = _NO_NIGHT_YET.encode("utf-8")
    return Response(body, HTML, fields=(("Cache-Control", "no-cache"),))


def _summary_file(request: Request) -> str:
    """Return where this server has the summary: below its document root, which serves one tree."""
    tree, _, below = request.settings["survey"]["directory"].partition("/")
    root = request.variable("DOCUMENT_ROOT") or request.settings["site"]["production_dir"] + "/" + tree
    return f"{root}/{below}/{SUMMARY}"
