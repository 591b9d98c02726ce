# SPDX-License-Identifier: Apache-2.0
"""controller: reports in, updates out, and everything about them published.

The life of a round:

1. reports that are new in the servers' queues are given to the aggregators;
2. every ``update_period_s`` the aggregators are asked what is new: updates, each with a revision;
3. the page, status.json, updates.json, the answers to requests and the metrics are put into the production tree, and,
   where the settings say so, pushed;
4. the marks by which the servers sweep their queues go there as well, every hour.

With -serve, requests that come to a Unix socket are answered in between.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infocluster import files, processes
from infocluster.aggregate import answers, base, store
from infocluster.aggregate.controller import Controller
from infocluster.apps import nodes_page, nodes_served
from infocluster.config import ROOT, Settings
from infocluster.cron.command import Run
from infocluster.errors import InfoclusterError, UnavailableError, UsageError, reason
from infocluster.publish import place

TIDY_S = 3600.0
AGES_S = 60.0
PUSH_TIMEOUT_S = 600.0
ANSWERS_LIMIT = 20000
METRICS_MODE = 0o644


def work(run: Run) -> str:
    """Do a round, or rounds until a signal comes.

    Raises:
        UsageError: neither -once nor -serve is asked for.
        UnavailableError: the database cannot be used.
    """
    asked = [name for name in ("once", "serve", "again", "aside") if run.arguments[name]]
    if len(asked) != 1:
        raise UsageError("cannot tell what to do: expected -once, -serve, -again or -aside")
    with store.opened(f"{run.settings['site']['state_dir']}/aggregate/aggregate.sqlite") as opened:
        if run.arguments["aside"]:
            return _aside(run, opened)
        control = Controller(run.settings, opened, run.fault)
        if run.arguments["again"]:
            return f"{control.again()} reports taken, {len(opened.aside())} still set aside"
        this = Rounds(run, control)
        if run.arguments["once"]:
            return this.once()
        with _listening(run.settings) as listener:
            this.serve(listener)
    return ""


def _aside(run: Run, opened: store.Store) -> str:
    found = opened.aside()
    for one in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.time))
        run.say(f"{one.number} {when} {one.module}: {one.reason}")
    return f"{len(found)} reports set aside"


class Rounds:
    """The rounds of one process.

    Args:
        run: this run.
        control: the aggregators.
    """

    def __init__(self, run: Run, control: Controller) -> None:
        self.run = run
        self.settings = run.settings
        self.own: dict[str, Any] = run.settings["aggregate"]
        self.control = control
        self.updated = self.tidied = self.published = self.marked = 0.0
        self._is_news = True
        # What was published, by name; a digest of it, or the mark by which an aggregator says that it is the same.
        self._placed: dict[str, str] = {}
        self._known: set[str] = set()

    def once(self) -> str:
        """Do one round and return its summary.

        Raises:
            UnavailableError: the database cannot be written.
        """
        taken = 0
        while more := self.control.take():
            taken += more
        told = self.control.update()
        self.control.tidy()
        self.publish(self.control.clock(), True)
        return f"{taken} report{'s' * (taken != 1)} read, {len(told)} update{'s' * (len(told) != 1)}"

    def serve(self, listener: "nodes_served.Listener") -> None:
        """Do rounds for ever; who holds what is published, as a long push does, keeps no report and no request."""
        self.settings = {**self.settings, "publish": {**self.settings["publish"], "lock_timeout_s": 0}}
        while True:
            self.run.faults.clear()  # they were told, and a run that ends by a signal counts none
            try:
                taken = self.control.take()
                self._is_news = self._is_news or bool(taken)
                now = self.control.clock()
                if now >= self.updated + self.own["update_period_s"]:
                    self.updated = now
                    self._is_news = bool(self.control.update()) or self._is_news
                    if self._is_news or now >= self.published + AGES_S:
                        self.publish(now, now >= self.marked + TIDY_S)
                if now >= self.tidied + TIDY_S:
                    self.tidied = now
                    self.control.tidy()
            except InfoclusterError as error:
                taken = 0
                self.control.fault(str(error))
            listener.serve(0 if taken else self.own["look_s"], self.asked)

    def asked(self, query: dict[str, str]) -> "tuple[int, bytes, bytes | None]":
        """Return status, JSON and protobuf of the answer to a request."""
        if query["type"] == nodes_served.UPDATES:
            since, epoch = query.get("since", ""), query.get("epoch", "")
            return 200, *nodes_served.updates(self.updates(since, epoch), since, epoch)
        try:
            found = self.control.answer(query)
        except UnavailableError as error:
            return 503, json.dumps({"error": str(error)}).encode("ascii"), None
        return (404, b'{"error": "There is nothing of this kind."}', None) if found is None else (200, *found)

    def updates(self, since: str = "", epoch: str = "") -> dict[str, Any]:
        """Return the document of updates, see `nodes_served`, without those that a client has: most ask for none."""
        opened = self.control.store
        whole = nodes_served.document(opened.epoch, opened.span(), opened.nodes(), self.control.clock())
        last, _ = nodes_served.place(whole, since, epoch)
        whole["updates"] = [nodes_served.update(one) for one in opened.updates(last)]
        return whole

    def publish(self, now: float, has_marks: bool) -> None:
        """Put what changed into the production tree; what cannot be is told, and tried again in the next round."""
        values = nodes_page.status(self.control, self.settings, now)
        contents: dict[str, bytes] = {}
        for name, content in self._answers():
            contents[name] = content
        contents["updates.json"] = json.dumps(self.updates()).encode("ascii")
        contents["metrics.txt"] = nodes_page.metrics(self.control, values)
        contents["status.json"] = json.dumps(values).encode("ascii")
        try:
            contents["nodes.js"] = nodes_page.script()
            contents["index.html"] = nodes_page.page(self.control, self.settings, values, now)
            changed = {name: content for name, content in contents.items() if self._is_new(name, content)}
            gone = [name for name in self._before() if name not in self._known]
            done = place.publish(self.own["directory"], changed, self.settings, self.run.say, gone)
            for name, content in changed.items():
                self._placed[name] = nodes_served.etag(content)
            for name in gone:
                self._placed.pop(name, None)
            if has_marks:
                marks = {f"{self.own['app']}.queue": self.control.marks()}
                place.publish(self.settings["gather"]["marks"], marks, self.settings, self.run.say)
                self.marked = now
            if self.own["metrics_file"]:
                files.replace(self.own["metrics_file"], contents["metrics.txt"], METRICS_MODE, durable=False)
            self.published = now
            self._is_news = False
            if self.own["push"] and (done.written or done.removed):
                self._push()
        except InfoclusterError as error:
            self._unpublished(str(error))
        except OSError as error:
            self._unpublished(f"cannot publish {error.filename}: {reason(error)}")

    def _unpublished(self, why: str) -> None:
        # Nobody knows what of it is in place: the next round gives all of it again.
        self._placed.clear()
        self.control.fault(why)

    def _is_new(self, name: str, content: bytes) -> bool:
        return self._placed.get(name) != nodes_served.etag(content)

    def _before(self) -> list[str]:
        """Return the answers that are in the production tree."""
        directory = f"{self.settings['site']['production_dir']}/{self.own['directory']}"
        try:
            listed = os.listdir(directory)
        except FileNotFoundError:
            return []
        return [name for name in listed if name.startswith("answer-")]

    def _answers(self) -> Iterator[tuple[str, bytes]]:
        """Yield the answers that changed since they were published, as (file name, content)."""
        self._known = set()
        for module in list(self.control.instances):
            for query in self.control.ask(module, "published", base.query):
                mark = query.pop("", "")
                name = answers.answer_name(query)
                if len(self._known) > 2 * ANSWERS_LIMIT:
                    self.control.fault(f"cannot publish all answers of {module}: over {ANSWERS_LIMIT}")
                    return
                self._known |= {name, answers.answer_name(query, ".pb")}
                if mark and self._placed.get(name + " mark") == mark:
                    continue
                try:
                    found = self.control.answer(query)
                except UnavailableError:
                    continue
                if found is None:
                    self._known -= {name, answers.answer_name(query, ".pb")}
                    continue
                self._placed[name + " mark"] = mark
                yield name, found[0]
                if found[1] is None:
                    self._known.discard(answers.answer_name(query, ".pb"))
                else:
                    yield answers.answer_name(query, ".pb"), found[1]

    def _push(self) -> None:
        """Push what was published."""
        command = [f"{ROOT}/batch/wwwpush", self.own["directory"], self.settings["gather"]["marks"]]
        paths = [path for path in command[1:] if os.path.isdir(f"{self.settings['site']['production_dir']}/{path}")]
        outcome = processes.run([command[0], *paths], PUSH_TIMEOUT_S)
        if outcome.status != 0:
            text = outcome.errors.decode("utf-8", "replace").strip().partition("\n")[0]
            raise UnavailableError(f"cannot push {', '.join(paths)}: {text}")


@contextmanager
def _listening(settings: Settings) -> "Iterator[nodes_served.Listener]":
    listener = nodes_served.Listener(settings["aggregate"]["socket"])
    try:
        yield listener
    finally:
        listener.close()
