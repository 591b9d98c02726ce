# SPDX-License-Identifier: Apache-2.0
"""What the controller publishes of itself: the page, status.json, and the metrics for others' monitoring.

Shape: status.json is ``{"format": "infocluster status 1", "made": 1795384800.5, "epoch": "5f0c2a9be7d1",
    "revision": 12, "nodes": [{"name": "node1", "first": 1795380000.0, "last": 1795384799.0, "period": 180.0,
    "reports": 80, "gray": false}], "counts": {"taken": 80, "duplicate": 1}, "aside": 0, "modules": ["FileProcessor"],
    "faults": ["..."], "refused": [{"server": "web1", "counts": {"signature": 3}, "ghosts": {"node77": [3,
    "192.0.2.9", 1795384800]}}], "pushes": [...], "servers": [...], "backups": [["cf", ...]],
    "locks": [["world/a", "holds", "www", 1795384800.5]]}``:
    counts are of messages that the controller read, faults those of the last hour and those that last, refusals what
    web servers did not take; pushes and
    servers as ``wwwpush -status -json`` has them; backups are rows of `poll_page`; locks say of which paths, or
    of "a slot", how it stands, whose it is and since when.

    metrics.txt is OpenMetrics text, of gauges and counters whose names begin with ``infocluster_``.

Source: OpenMetrics 1.0; node exporter documentation, "Textfile Collector".
"""

import json
import re
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from infocluster import files, names, pages
from infocluster.aggregate import base, refusals
from infocluster.aggregate.base import Aggregator
from infocluster.aggregate.controller import Controller
from infocluster.apps import nodes_status, poll_page
from infocluster.config import Settings
from infocluster.errors import InfoclusterError, UnavailableError
from infocluster.locks import pathlocks, slots
from infocluster.push import servers
from infocluster.push import status as pushing

FORMAT = "infocluster status 1"
PUSHES = 10
FAULTS = 50
CELL_LIMIT = 300
LARGE = frozenset({"data", "history"})
KINDS = ("web", "ftp")
# What status.cgi adds to the metrics that it finds published.
OF_STATUS = frozenset({"published_age_seconds", "own_queue", "own_refused"})
# What the template has beside sections.
IDS = frozenset({"main", "made", "live", "state", "figures", "reporting", "silent", "nodes"})
_WORD = re.compile("[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def script() -> bytes:
    """Return the script of the page."""
    return files.read(f"{pages.TEMPLATES_DIR}/nodes.js")


def status(control: Controller, settings: Settings, now: float) -> dict[str, Any]:
    """Return what status.json holds."""
    opened = control.store
    found: dict[str, Any] = {
        "format": FORMAT,
        "made": round(now, 3),
        "epoch": opened.epoch,
        "revision": opened.revision(),
        "nodes": [{**node._asdict(), "gray": node.is_silent(now)} for node in opened.nodes()],
        "counts": opened.counts(),
        "aside": len(opened.aside()),
        "modules": list(control.instances),
        "faults": control.standing(FAULTS),
        "refused": list(_refused(control)),
        "pushes": [],
        "servers": [],
        "backups": [],
        "locks": [],
    }
    for kind in KINDS:
        if not any(server["kind"] == kind for server in settings["servers"]):
            continue
        try:
            of_kind = servers.of_kind(settings, kind)
            told = pushing.record(settings["site"]["state_dir"], kind, of_kind, control.fault)
        except InfoclusterError as error:
            control.fault(str(error))
            continue
        found["pushes"] += [_push(push) for push in told.get("pushes", [])[-PUSHES:]]
        found["servers"] += told.get("servers", [])
    try:
        found["locks"] = list(_locks(settings["site"]["state_dir"]))
    except InfoclusterError as error:
        control.fault(str(error))
    gather = settings["gather"]
    for server, _ in control.queues.servers():
        try:
            state_dir = f"{gather['gather_dir']}/{server}/{gather['host']}/poll"
            # What a token guards is not published.
            rows = [] if settings["poll"]["token"] else poll_page.rows(settings, state_dir, now)
        except UnavailableError:
            continue
        found["backups"] += [[server, *row] for row in rows if row[1]]
    return found


def _push(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "program": record["program"],
        "user": record["user"],
        "started": record["started"],
        "duration_s": record["duration_s"],
        "paths": record["paths"],
        "ok": record["ok"],
    }


def _locks(state_dir: str) -> Iterable[list[Any]]:
    for request in pathlocks.holders(f"{state_dir}/pathlocks"):
        yield [pathlocks.listed(request.paths), request.state, request.user, request.since]
    for push in slots.holders(f"{state_dir}/slots"):
        yield ["a slot", push.state, push.user, push.held_since or push.since]


def _refused(control: Controller) -> Iterable[dict[str, Any]]:
    for server, queue in control.queues.servers():
        try:
            found = refusals.read(queue + ".refused")
        except OSError:
            continue
        if found.counts:
            ghosts = {name: list(ghost) for name, ghost in found.ghosts.items()}
            yield {"server": server, "counts": found.counts, "ghosts": ghosts}


def page(control: Controller, settings: Settings, values: dict[str, Any], now: float) -> bytes:
    """Return the page.

    Raises:
        InfoclusterError: the template does not have all it names.
    """
    own = settings["aggregate"]
    silent = sum(node["gray"] for node in values["nodes"])
    last = list(_own_sections(values))
    sections = _sections(control, settings["site"]["cgi_url"], {*IDS, *(section["id"] for section in last)}, now)
    filled = {
        "site": settings["site"],
        "made": _moment(now),
        "now": f"{now:.3f}",
        "revision": values["revision"],
        "epoch": values["epoch"],
        "request": settings["site"]["cgi_url"] + "request.cgi",
        "every_ms": int(max(0.5, own["update_period_s"]) * 1000),
        "reporting": len(values["nodes"]) - silent,
        "silent": silent,
        "taken": values["counts"].get("taken", 0),
        "nodes": [_node(node, now) for node in values["nodes"]],
        "sections": [*sections, *last],
    }
    return pages.fill("nodes.html", filled).encode("utf-8")


def _sections(control: Controller, cgi_url: str, ids: set[str], now: float) -> list[dict[str, Any]]:
    """Return the sections of all aggregators; of those that share an id, the first: the script finds them by it."""
    found = []
    for name, instance in list(control.instances.items()):
        if type(instance).sections is Aggregator.sections:
            shaped = _plain(control, name, cgi_url)
        else:
            shaped = control.ask(name, "sections", lambda section: _shaped(section, cgi_url), now)
        for section in shaped:
            if section["id"] in ids:
                control.fault(f"cannot show a section of {name}: its id {section['id']} is another one's")
            else:
                ids.add(section["id"])
                found.append(section)
    return found


def _plain(control: Controller, name: str, cgi_url: str) -> Iterable[dict[str, Any]]:
    """Return sections for an aggregator that has none of its own: what it answers, as a table."""
    for query in control.ask(name, "published", base.query):
        if set(query) != {"type"}:
            continue
        try:
            found = control.answer(query)
        except UnavailableError:
            continue
        told = json.loads(found[0]) if found else None
        section = control.attempt(f"show {query['type']} of {name}", _tabled, name, query["type"], told, cgi_url)
        if section is not None:
            yield section


def _tabled(name: str, kind: str, told: Any, cgi_url: str) -> dict[str, Any] | None:
    """Return what an aggregator answered as a section, None where it was nothing."""
    if told is None:
        return None
    listed = told
    if isinstance(told, dict) and len(told) == 1:
        (listed,) = told.values()
    rows: list[list[Any]]
    if isinstance(listed, list) and listed and all(isinstance(one, dict) for one in listed):
        head = [str(key) for key in listed[0] if key not in LARGE]
        rows = [[_cell(key, one.get(key, ""), kind) for key in head] for one in listed]
    elif isinstance(told, dict):
        head, rows = ["Name", "Value"], [[str(key), str(value)[:CELL_LIMIT]] for key, value in told.items()]
    else:
        head, rows = ["Value"], [[str(told)[:CELL_LIMIT]]]
    return _shaped({"id": f"{name}-{kind}", "title": f"{name}: {kind}", "head": head, "rows": rows}, cgi_url)


def _cell(key: str, value: Any, kind: str) -> Any:
    if key == "name" and kind == "FileList":
        return (str(value), "?" + urlencode({"type": "File", "name": str(value), "format": "raw"}))
    if key == "modtime" and isinstance(value, int | float):
        return _moment(value)
    return str(value)[:CELL_LIMIT]


def _node(node: dict[str, Any], now: float) -> dict[str, Any]:
    return {
        "name": node["name"],
        "gray": node["gray"],
        "last": f"{node['last']:.3f}",
        "period": str(node["period"]),
        "when": _moment(node["last"]),
        "age": _span(now - node["last"]),
        "reports": node["reports"],
    }


def _own_sections(values: dict[str, Any]) -> Iterable[dict[str, Any]]:
    latest = sorted(values["pushes"], key=lambda push: -push["started"])[:PUSHES]
    pushes = [nodes_status.push_row(push) for push in latest]
    lacking = [server["name"] for server in values["servers"] if server["lacks"]]
    text = f"Not up to date: {', '.join(lacking)}." if lacking else ""
    yield _section("pushes", "Pushes", list(nodes_status.PUSHES_HEAD), pushes, text)
    head = ["Server", *poll_page.HEAD]
    yield _section("backups", "Backups", head, [[str(cell) for cell in row] for row in values["backups"]])
    counts = [[reason, f"{n:,}"] for reason, n in values["counts"].items()]
    counts += [
        [f"not taken by {one['server']}: {reason}", f"{n:,}"]
        for one in values["refused"]
        for reason, n in sorted(one["counts"].items())
    ]
    text = f"{values['aside']} reports are set aside; controller -aside lists them." if values["aside"] else ""
    yield _section("messages", "Messages", ["What", "How many"], counts, text)
    ghosts = [
        [name, one["server"], f"{n:,}", where, _moment(last)]
        for one in values["refused"]
        for name, (n, where, last) in sorted(one["ghosts"].items())
    ]
    if ghosts:
        yield _section("ghosts", "Ghosts", ["Name", "Came to", "Times", "From", "Last"], ghosts)
    if values["faults"]:
        yield _section("faults", "Faults", ["What"], [[line] for line in values["faults"]])


def _section(key: str, title: str, head: list[str], rows: list[list[Any]], text: str = "") -> dict[str, Any]:
    return _shaped({"id": key, "title": title, "head": head, "rows": rows, "text": text}, "")


def _shaped(section: dict[str, Any], cgi_url: str) -> dict[str, Any]:
    """Return a section as the template wants it: every cell a text and an address, every picture with its title."""
    rows = [
        [
            {"text": str(cell[0]), "address": f"{cgi_url}request.cgi{cell[1]}"}
            if isinstance(cell, tuple | list)
            else {"text": str(cell), "address": ""}
            for cell in row
        ]
        for row in section.get("rows", [])
    ]
    pictures = [{"title": str(title), "svg": pages.picture(svg)} for title, svg in section.get("pictures", [])]
    return {
        "id": names.name(section["id"], "the id of a section"),
        "title": str(section["title"]),
        "head": [str(cell) for cell in section.get("head", [])],
        "rows": rows,
        "pictures": pictures,
        "text": str(section.get("text", "")),
    }


def metrics(control: Controller, values: dict[str, Any]) -> bytes:
    """Return the metrics as OpenMetrics text."""
    # By name: kind, help, and by labels the value.
    families: dict[str, tuple[str, str, dict[str, float]]] = {}

    def add(name: str, kind: str, told: str, labels: dict[str, str], value: float) -> None:
        family = families.setdefault(name, (kind, told, {}))
        inner = ",".join(f'{label}="{_quoted(text)}"' for label, text in sorted(labels.items()))
        family[2]["{" + inner + "}" if inner else ""] = float(value)

    for node in values["nodes"]:
        labels = {"node": node["name"]}
        add("node_last_report_seconds", "gauge", "When a node reported last, Unix time.", labels, node["last"])
        add(
            "node_up",
            "gauge",
            "1 while a node is not silent for longer than it said.",
            labels,
            float(not node["gray"]),
        )
        add("node_reports", "counter", "Reports of a node that took effect.", labels, node["reports"])
    for reason, n in values["counts"].items():
        add("messages", "counter", "Messages that the controller read, by what came of them.", {"result": reason}, n)
    for one in values["refused"]:
        for reason, n in sorted(one["counts"].items()):
            labels = {"server": one["server"], "reason": reason}
            add("refused", "counter", "Reports that a web server did not take.", labels, n)
    add("aside", "gauge", "Reports that are set aside.", {}, values["aside"])
    add("revision", "gauge", "The newest update.", {}, values["revision"])
    add("published_seconds", "gauge", "When this was published, Unix time.", {}, values["made"])
    for server in values["servers"]:
        add("server_lacks", "gauge", "Paths that a server lacks.", {"server": server["name"]}, len(server["lacks"]))
    ours = OF_STATUS | families.keys()
    for module in list(control.instances):
        for name, about, labels, value in control.ask(module, "metrics", _gauge, values["made"]):
            if name.removesuffix("_total") in ours:
                control.fault(f"cannot use a metric of {module}: {name} is another one's name")
            else:
                add(name, "gauge", about, labels, value)
    lines = []
    for name, (kind, about, rows) in sorted(families.items()):
        lines += [f"# TYPE infocluster_{name} {kind}", f"# HELP infocluster_{name} {_quoted(about)}"]
        suffix = "_total" if kind == "counter" else ""
        lines += [f"infocluster_{name}{suffix}{inner} {value!r}" for inner, value in rows.items()]
    return ("\n".join([*lines, "# EOF", ""])).encode("utf-8", "replace")


def _gauge(told: Any) -> tuple[str, str, dict[str, str], float]:
    """Return what `metrics` of an aggregator gave, where it is a gauge."""
    name, about, labels, value = told
    for word in (name, *labels):
        if not (_WORD.fullmatch(word) and not word.startswith("__")):
            raise ValueError(f"{names.shown(word)} is no name of a metric or a label")
    return name, str(about), {label: str(text) for label, text in labels.items()}, float(value)


def _quoted(text: str) -> str:
    return names.visible(text).replace("\\", "\\\\").replace('"', '\\"')


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 172800 else f"{whole // 86400} days"
