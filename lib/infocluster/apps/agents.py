# SPDX-License-Identifier: Apache-2.0
"""Tell agents apart, and remember which were told apart: loading the rules costs more than most nights' visits.

Shape: table ``agents`` of the survey's database: ``agent, rules, is_bot, browser, version, system``, such as
    ``Mozilla/5.0 (X11; ...) Firefox/145.0, 202610, 0, Firefox, Firefox 145, Linux``. ``rules`` is the version of the
    rules; what other rules said is forgotten.

Source: ua-parser's uap-core; its devices named Spider are bots, and so is an agent that calls itself a bot, crawler
or spider.
"""

import sqlite3
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

from infocluster import names

SCHEMA = """
CREATE TABLE IF NOT EXISTS agents (
    agent TEXT PRIMARY KEY, rules TEXT NOT NULL, is_bot INTEGER NOT NULL, browser TEXT NOT NULL,
    version TEXT NOT NULL, system TEXT NOT NULL
) WITHOUT ROWID
"""
REMEMBERED = 20000
"""Agents that are remembered; when there are more, all are forgotten and those of the next nights learned again."""
PACKAGES = ("msgspec", "ua-parser", "ua-parser-builtins")
"""Distributions whose versions tell in what is counted."""
NONE_SENT = "(none sent)"
UNKNOWN = "(unknown)"
NAME_LIMIT = 60
_BOT_WORDS = ("bot", "crawl", "spider")


class Class(NamedTuple):
    """What an agent is taken for."""

    is_bot: bool
    browser: str
    version: str
    system: str


def classify(agent: str) -> Class:
    """Tell what an agent is: bot or not, browser, browser with major version, operating system."""
    if not agent.strip():
        return Class(False, NONE_SENT, NONE_SENT, NONE_SENT)
    import ua_parser

    found = ua_parser.parse(agent)
    family = found.user_agent.family if found.user_agent else UNKNOWN
    version = f"{family} {found.user_agent.major}" if found.user_agent and found.user_agent.major else family
    system = UNKNOWN
    if found.os:
        system = f"{found.os.family} {found.os.major}" if found.os.major else found.os.family
    spider = found.device is not None and found.device.family == "Spider"
    small = agent.lower()
    is_bot = spider or any(word in small for word in _BOT_WORDS)
    return Class(is_bot, _label(family), _label(version), _label(system))


def known(db: sqlite3.Connection) -> dict[str, Class]:
    """Return the agents that are remembered."""
    rows = db.execute("SELECT agent, is_bot, browser, version, system FROM agents WHERE rules = ?", (_rules(),))
    return {agent: Class(bool(is_bot), browser, version, system) for agent, is_bot, browser, version, system in rows}


def remember(db: sqlite3.Connection, learned: Mapping[str, Class]) -> None:
    """Remember agents, inside a transaction."""
    rules = _rules()
    db.execute("DELETE FROM agents WHERE rules != ?", (rules,))
    (count,) = db.execute("SELECT count(*) FROM agents").fetchone()
    if count + len(learned) > REMEMBERED:
        db.execute("DELETE FROM agents")
    rows = [(agent, rules, *what) for agent, what in list(learned.items())[:REMEMBERED]]
    db.executemany("INSERT OR REPLACE INTO agents VALUES (?, ?, ?, ?, ?, ?)", rows)


def _rules() -> str:
    return metadata.version("ua-parser-builtins")


def _label(text: str) -> str:
    """Return a name as pages and tables can bear it: what a visitor made up is cut and cleaned."""
    return names.printable(text)[:NAME_LIMIT].strip() or UNKNOWN
