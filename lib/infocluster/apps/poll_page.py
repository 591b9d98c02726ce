# SPDX-License-Identifier: Apache-2.0
"""How all backups stand, for people: the rows behind poll.cgi without arguments, status.cgi and backup-watch -status.

The phrase that releases a core filer is in none of them.
"""

from infocluster.errors import UnavailableError
from infocluster.poll import agent, state
from infocluster.web.response import escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEAD = ("Core filer", "Target time", "State", "Since", "Progress", "Last poll", "Next poll expected")
SHOWN = 20


def rows(settings: "dict[str, Any]", state_dir: str, now: float) -> "list[tuple[str, ...]]":
    """Return a row for each of the newest states of each core filer, as texts under `HEAD`.

    Raises:
        UnavailableError: the state directory cannot be read.
    """
    found: list[tuple[str, ...]] = []
    for filer in settings["core_filers"]:
        targets = state.targets(state_dir, filer["name"])
        found += [_row(settings, state_dir, filer["name"], target, now) for target in reversed(targets[-SHOWN:])]
        if not targets:
            found.append((filer["name"], "", "never asked for", "", "", "", ""))
    return [tuple(agent.without_phrase(cell) for cell in row) for row in found]


def _row(settings: "dict[str, Any]", state_dir: str, mass: str, target: int, now: float) -> "tuple[str, ...]":
    when = agent.moment(target)
    try:
        found = state.read(state.file(state_dir, mass, target), mass, target)
    except state.BadStateError:
        return (mass, when, "failed", "", "its state file cannot be used; the operator has to look", "", "")
    except UnavailableError:
        return (mass, when, "unknown", "", "its state file cannot be read now", "", "")
    if found is None:
        return (mass, when, "forgotten", "", "", "", "")
    name = "released, though not complete" if "forced" in found.flags else found.state
    words = found.why or (found.progress if found.state == "running" else "")
    following = ""
    if found.state in agent.OPEN:
        expected = found.polled + settings["poll"]["poll_s"]
        following = agent.moment(expected) + (" (overdue)" if now > expected + settings["poll"]["poll_s"] else "")
    return (mass, when, name, agent.moment(found.since), words, agent.moment(found.polled), following)


def table(settings: "dict[str, Any]", state_dir: str, now: float) -> str:
    """Return the rows as a table in HTML.

    Raises:
        UnavailableError: the state directory cannot be read.
    """
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in HEAD)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n"
        for row in rows(settings, state_dir, now)
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def page(settings: "dict[str, Any]", state_dir: str, now: float) -> bytes:
    """Return the page of poll.cgi.

    Raises:
        UnavailableError: the state directory cannot be read.
    """
    lead = "A storage cluster asks here, with the arguments mass and targetTime, whether a backup is complete."
    return whole("Polling agent", f"<p>{lead}</p>\n{table(settings, state_dir, now)}", now)


def whole(title: str, content: str, now: float) -> bytes:
    """Return a page with this title and content (HTML), and the time it was made."""
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escaped(title)}</title>'
        # A wide table scrolls by itself; covers move with it and uncover a shade at the side where there is more.
        "<style>body{font:1em/1.5 sans-serif;margin:1.5em auto;padding:0 1em;max-width:75em}"
        "table{display:block;overflow-x:auto;margin:0 0 1em;border-collapse:collapse;background:"
        "linear-gradient(to right,Canvas 35%,transparent) 0 0/3em 100% no-repeat local,"
        "linear-gradient(to left,Canvas 35%,transparent) 100% 0/3em 100% no-repeat local,"
        "linear-gradient(to right,#8888,transparent) 0 0/1em 100% no-repeat,"
        "linear-gradient(to left,#8888,transparent) 100% 0/1em 100% no-repeat}"
        "th,td{text-align:left;vertical-align:top;padding:.3em 1.2em .3em 0;border-bottom:1px solid #8888}"
        "td:only-child{overflow-wrap:anywhere}</style></head>\n"
        f"<body><main><h1>{escaped(title)}</h1>\n{content}\n<p>As of {agent.moment(now)}.</p></main></body></html>\n"
    )
    return agent.without_phrase(text).encode("utf-8", "replace")
