# SPDX-License-Identifier: Apache-2.0
"""What status.cgi shows beside polls: what is gathered on this server, its own queue of reports, what the controller
published last, and the metrics.
"""

import itertools
import json
import posix
import time

from infocluster import files, names
from infocluster.aggregate import intake, refusals
from infocluster.apps import request as asked
from infocluster.errors import InfoclusterError
from infocluster.poll import agent
from infocluster.queue.simple import Simple
from infocluster.web.request import Request
from infocluster.web.response import Response, escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

# More files of an application are not counted: a page is not to take long.
FILES_LIMIT = 10000
PUSHES_HEAD = ("Started", "Paths", "By", "Took", "Arrived")
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
        ghosts = [
            (name, str(n), where, agent.moment(last)) for name, (n, where, last) in sorted(refused.ghosts.items())
        ]
        html += "<h3>Ghosts: nodes that there is no key for</h3>\n" + _table(
            ("Name", "Times", "From", "Last"), ghosts
        )
    return title, html


def gathered(request: Request, _now: float) -> "tuple[str, str]":
    """Return the part about what lies in this server's gather directories, read by the batch host or not."""
    title = "Gathered on this server"
    rows = []
    try:
        for entry in sorted(posix.scandir(request.variable("SERVER_GATHER")), key=lambda entry: entry.name):
            if names.is_name(entry.name) and entry.is_dir(follow_symlinks=False):
                found = list(itertools.islice(_files(entry.path), FILES_LIMIT))
                count = f"{len(found)}{' or more' if len(found) == FILES_LIMIT else ''}"
                oldest = agent.moment(min(last for _, last in found)) if found else ""
                rows.append((entry.name, count, str(sum(size for size, _ in found)), oldest))
    except OSError:
        return title, "<p>It cannot be read now.</p>"
    return title, _table(("Application", "Files", "Bytes", "Oldest"), rows)


def _files(top: str) -> "Iterator[tuple[int, float]]":
    """Yield size and time of each file below a directory; what vanishes meanwhile was swept."""
    try:
        for entry in posix.scandir(top):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            else:
                status = entry.stat(follow_symlinks=False)
                yield status.st_size, status.st_mtime
    except FileNotFoundError:
        return


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
            agent.moment(node["last"]),
            str(node["reports"]),
        )
        for node in values["nodes"]
    ]
    counts = [(name, str(n)) for name, n in values["counts"].items()] + [("still set aside", str(values["aside"]))]
    counts += [
        (f"not taken by {one['server']}: {word}", str(n))
        for one in values["refused"]
        for word, n in sorted(one["counts"].items())
    ]
    html = f"<p>As the controller published it {age} s ago, revision {values['revision']}.</p>\n"
    html += (
        _table(("Node", "State", "Last report", "Reports"), rows) + "\n" + _table(("Messages", "How many"), counts)
    )
    for heading, head, found in _others(request, values):
        if found:
            html += f"\n<h3>{heading}</h3>\n" + _table(head, found)
    return title, html


def push_row(push: "dict[str, Any]") -> "list[str]":
    """Return a push of the published ``status.json`` as the cells below `PUSHES_HEAD`."""
    return [
        agent.moment(push["started"]),
        ", ".join(path or "everything" for path in push["paths"]),
        push["user"],
        f"{push['duration_s']:.1f} s",
        "everywhere" if push["ok"] else "not everywhere",
    ]


def _others(request: Request, values: "dict[str, Any]") -> "Iterator[tuple[str, tuple[str, ...], list[Any]]]":
    """Yield heading, head and rows of what else the controller published."""
    from infocluster.apps import poll, poll_page

    yield "Pushes", PUSHES_HEAD, [push_row(push) for push in reversed(values["pushes"])]
    lacking = [(one["name"], ", ".join(path or "everything" for path in one["lacks"])) for one in values["servers"]]
    yield "Servers that lack something", ("Server", "Paths"), [row for row in lacking if row[1]]
    locks = [(what, state, user, agent.moment(since)) for what, state, user, since in values.get("locks", ())]
    yield "Locks and slots", ("Of", "State", "By", "Since"), locks
    if poll.is_shown(request):
        yield "Backups", ("Server", *poll_page.HEAD), values["backups"]
    yield "Faults", ("What",), [(line,) for line in values["faults"]]


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
