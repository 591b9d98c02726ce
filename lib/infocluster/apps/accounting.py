# SPDX-License-Identifier: Apache-2.0
"""Accounting, an example of feeding SSM2: the survey's days as messages in its outgoing directory.

The life of a day's numbers:

1. survey-nightly counts them in ``STATE_DIR/survey.sqlite``;
2. accounting-nightly compares them with what it has sent of that day, which ``STATE_DIR/accounting.sqlite`` knows;
3. the days that changed become one message, or several where that is too large, each checked to be carried;
4. each message is added to the queue, durable; then what was sent is remembered, and that commits;
5. cron starts ssmsend, which signs and sends what is in the queue, and removes it.

A run that is killed between adding and committing is repeated by the next one: its days arrive twice, with the same
numbers. Who receives them keeps the last of each Site, Service and Day.

Shape: a message:

    Infocluster-summary-message: v0.1
    Site: EXAMPLE-1
    Service: survey
    Day: 2026-11-22
    People: 512
    Bots: 80
    %%
"""

import os
import sqlite3
from contextlib import closing

from infocluster.config import Settings
from infocluster.cron.command import Run
from infocluster.errors import ConfigError, UnavailableError
from infocluster.gather import cursor
from infocluster.queue import ssm
from infocluster.queue.simple import Simple
from infocluster.report import tables

VISITS, PEOPLE, BOTS = "visits", "people", "bots"
HEAD = "Infocluster-summary-message: v0.1\n"
SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    service TEXT NOT NULL, day TEXT NOT NULL, people INTEGER NOT NULL, bots INTEGER NOT NULL,
    PRIMARY KEY (service, day)
) WITHOUT ROWID
"""

Day = tuple[str, int, int]


def work(run: Run) -> str:
    """Queue the days whose numbers changed since they were sent last, and say how many.

    Raises:
        ConfigError: the site's name cannot stand in a message.
        UnavailableError: the numbers or the queue are out of reach.
    """
    settings = run.settings
    service, state_dir = settings["survey"]["app"], settings["site"]["state_dir"]
    queue = Simple(settings["accounting"]["queue_dir"], int(settings["accounting"]["umask"], 8), durable=True)
    counted = _counted(f"{state_dir}/{service}.sqlite")
    with cursor.opened(f"{state_dir}/accounting.sqlite", SCHEMA) as position:
        rows = position.db.execute("SELECT day, people, bots FROM sent WHERE service = ?", (service,))
        sent = set(rows)
        changed = [day for day in counted if day not in sent]
        messages = _messages(settings, service, changed)
        with position.transaction() as db:
            for message in messages:
                run.say(f"add {queue.add(message)}")
            db.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", [(service, *day) for day in changed])
    try:
        queue.purge()
    except UnavailableError as error:
        run.fault(str(error))
    return f"{len(changed)} day{'s' * (len(changed) != 1)} in {len(messages)} message{'s' * (len(messages) != 1)}"


def _counted(database: str) -> list[Day]:
    """Return what the night counted of each day; nothing before the first night."""
    if not os.path.exists(database):
        return []
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as db:
            days = tables.by_day(db, tables.ALWAYS, VISITS)
    except sqlite3.Error as error:
        raise UnavailableError(f"cannot read {database}: {error}") from error
    return [(day, n.get(PEOPLE, 0), n.get(BOTS, 0)) for day, n in days.items()]


def _messages(settings: Settings, service: str, days: list[Day]) -> list[bytes]:
    if not days:
        return []
    site = settings["accounting"]["site"] or settings["site"]["name"]
    records = (
        f"Site: {site}\nService: {service}\nDay: {day}\nPeople: {people}\nBots: {bots}\n%%\n"
        for day, people, bots in days
    )
    messages = ssm.split((HEAD + "".join(records)).encode("utf-8"), settings["accounting"]["limit_bytes"])
    for message in messages:
        if found := ssm.faults(message, settings["accounting"]["limit_bytes"]):
            raise ConfigError(f"cannot account for {site}: {'; '.join(found)}; set accounting.site")
    return messages
