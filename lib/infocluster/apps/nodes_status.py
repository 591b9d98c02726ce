# SPDX-License-Identifier: Apache-2.0
"""What status.cgi shows of reports: this server's own queue, what the controller published last, and the metrics."""

import json
import posix
import time

from infocluster import files
from infocluster.aggregate import intake, refusals
from infocluster.apps import request as asked
from infocluster.errors import InfoclusterError
from infocluster.poll import agent
from infocluster.queue.simple import Simple
from infocluster.web.request import Request
from infocluster.web.response import Response, escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def own(request: Request, _now: float) -> "tuple[str, str]":
    """Return the part about this server's own queue."""
    title = "Reports to this server"
    try:
        queue = intake.queue_dir(request.settings["aggregate"]["app"], request.variable("SERVER_GATHER"))
        waiting = Simple(queue).count()
        refused = refusals.read(queue + ".refused")
    except (InfoclusterError, OSError):
        return title, "<p>They cannot be read now.</p>"
    rows = [("in the queue, read or not", str(waiting))]
    rows += [(f"not taken: {reason}", str(n)) for reason, n in sorted(refused.counts.items())]
    html = _table(("What", "How many"), rows)
    if refused.ghosts:
        ghosts = [(name, str(n), where, _moment(last)) for name, (n, where, last) in sorted(refused.ghosts.items())]
        html += "<h3>Ghosts: nodes that there is no key for</h3>\n" + _table(
            ("Name", "Times", "From", "Last"), ghosts
        )
    return title, html


def published(request: Request, now: float) -> "tuple[str, str]":
    """Return the part about what the controller published last."""
    title = "Nodes"
    values = _status(request)
    if values is None:
        return title, "<p>Nothing was published yet.</p>"
    age = max(0, int(now - values["made"]))
    rows = [
        (
            node["name"],
            # Silent by now, whatever it was when this was published.
            "silent" if now - node["last"] > node["period"] else "reporting",
            _moment(node["last"]),
            str(node["reports"]),
        )
        for node in values["nodes"]
    ]
    counts = [(name, str(n)) for name, n in values["counts"].items()] + [("set aside", str(values["aside"]))]
    html = f"<p>As the controller published it {age} s ago, revision {values['revision']}.</p>\n"
    html += (
        _table(("Node", "State", "Last report", "Reports"), rows) + "\n" + _table(("Messages", "How many"), counts)
    )
    return title, html


def _status(request: Request) -> "dict[str, Any] | None":
    """Return what status.json holds, None where it is missing or none of ours."""
    try:
        values: dict[str, Any] = json.loads(files.read(asked.directory(request) + "/status.json"))
        return values if values["format"] == "infocluster status 1" else None
    except (OSError, InfoclusterError, ValueError, KeyError, TypeError):
        return None


def metrics(request: Request) -> Response:
    """Return the published metrics, with this server's own behind them."""
    lines: list[str] = []
    try:
        path = asked.directory(request) + "/metrics.txt"
        text = files.read(path).decode("utf-8", "replace")
        lines += [line for line in text.split("\n") if line and line != "# EOF"]
        lines += [
            "# TYPE infocluster_published_age_seconds gauge",
            "# HELP infocluster_published_age_seconds Its age.",
        ]
        lines.append(f"infocluster_published_age_seconds {max(0.0, time.time() - posix.stat(path).st_mtime):.0f}")
    except (OSError, InfoclusterError):
        lines = []
    try:
        queue = intake.queue_dir(request.settings["aggregate"]["app"], request.variable("SERVER_GATHER"))
        waiting, refused = Simple(queue).count(), refusals.read(queue + ".refused")
        lines += [
            "# TYPE infocluster_own_queue gauge",
            "# HELP infocluster_own_queue Reports in this server's queue.",
        ]
        lines.append(f"infocluster_own_queue {waiting}")
        lines += ["# TYPE infocluster_own_refused counter", "# HELP infocluster_own_refused Reports not taken here."]
        lines += [
            f'infocluster_own_refused_total{{reason="{word}"}} {n}' for word, n in sorted(refused.counts.items())
        ]
    except (OSError, InfoclusterError):
        pass  # a number that cannot be had is left out
    text = "\n".join([*lines, "# EOF", ""])
    return Response(text.encode("utf-8", "replace"), OPENMETRICS, fields=(("Cache-Control", "no-store"),))


def _table(head: "tuple[str, ...]", rows: "Sequence[tuple[str, ...]]") -> str:
    top = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escaped(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"


def _moment(when: float) -> str:
    return agent.moment(when)
