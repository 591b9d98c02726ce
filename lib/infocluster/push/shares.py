# SPDX-License-Identifier: Apache-2.0
"""A push over push hosts, at the master: each push host gets a copy first and then serves a share of the servers.

1. The servers are dealt out evenly. Each push host's relay is started over ssh (see `relay` for its side).
2. The relay gets its share, and takes the path locks of its host. Then that host's production tree is updated, like a
   server's, and the relay is told to go.
3. What it tells of a server is that server's outcome. Nothing else counts as done. Of a server that a push
   host was told to serve and did not tell of, the next outcome says that more may have been done (`Outcome.begun`).
4. What a push host did not tell of when it failed, died or fell silent goes in even parts to the push hosts that are
   left, and is pushed from here when none is. So does the share of one that reaches none of its servers.

RACE: an outcome is told and lost on the way. The server is served again by another and has it all: nothing to do
    but what its skeleton asks for, see above.
RACE: a push host is lost while it may still be at work: see `relay` for the lease that ends it before others begin.

Source: ssh(1), EXIT STATUS.
"""

import math
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from infocluster import config, processes, trees
from infocluster.config import Settings
from infocluster.errors import BadInputError, InfoclusterError, UnavailableError
from infocluster.names import printable, shown
from infocluster.push import fan, handover, nodes, servers, ssh, transport
from infocluster.push.fan import Job
from infocluster.push.handover import Message
from infocluster.push.order import Order, Outcome
from infocluster.push.relay import GRACE_S
from infocluster.push.servers import Server

KIND = "push host"
# Seconds that a push host may need from the connection to its first line.
START_S = 20.0

Say = Callable[[str], None]


def push_hosts(settings: Settings) -> list[Server]:
    """Return the push hosts as servers of their own kind, in the order of the settings; none where none are set.

    Raises:
        ConfigError: as `servers.of_kind`.
    """
    sections = [
        {
            **section,
            "kind": KIND,
            "transport": "ssh",
            "destination": section["directory"] or settings["site"]["production_dir"],
            "skeleton": "",
        }
        for section in settings["push_hosts"]
    ]
    return servers.of_kind({**settings, "servers": sections}, KIND) if sections else []


def relay_command(settings: Settings) -> str:
    """Return the command that starts the relay on a push host, for the shell that sshd(8) hands it to."""
    program = settings["push"]["push_host_command"] or config.ROOT + "/batch/wwwpush"
    return f"{shlex.quote(program)} -relay"


def fan_out(
    jobs: list[Job],
    listing: trees.Listing,
    paths: list[str],
    settings: Settings,
    atomic: bool = False,
    advance: Callable[[int], None] | None = None,
    done: Callable[[Job, Outcome], None] | None = None,
    say: Say = print,
    fault: Say = print,
    keep: bool = False,
) -> list[Outcome]:
    """Serve all servers over the push hosts, and return how it went, in the order of the jobs.

    Servers that are directories of this host are served from here, and those of rdist where a push host has the tree
    elsewhere: rdist compares what a skeleton leaves out with whole paths. The caller holds the path locks of this
    host.

    Args:
        jobs: one a server, as for `fan.out`; each one's listing is part of `listing`.
        listing: what the push hosts need to hold: all that some server gets. What it leaves alone stays there.
        paths: the tree paths that it is of.
        settings: all settings, with push hosts.
        atomic: see `Order`.
        advance: called with 1 when a server is done.
        done: called with each outcome as soon as there is one, one at a time.
        say: gets a line for what push hosts wait for.
        fault: gets a line for each push host that failed, and where its share goes.
        keep: see `Order`.

    Raises:
        ConfigError: the push hosts in the settings are not in order.
        BaseException: what interrupts it, such as a signal; the relays have by then ended or are cut off.
    """
    hosts = push_hosts(settings)
    is_moved = any(host.destination != settings["site"]["production_dir"] for host in hosts)
    here = {"local", "rdist"} if is_moved else {"local"}
    near = [job for job in jobs if job.server.transport in here]
    far = [job for job in jobs if job.server.transport not in here]
    work = _Work(far, listing, paths, settings, atomic, keep, advance, done, say, fault)
    hosts = hosts if far else []
    work.deal(hosts)
    threads = [threading.Thread(target=work.run, args=(host,), name=host.name, daemon=True) for host in hosts]
    try:
        for thread in threads:
            thread.start()
        for jobs_here in (near, work.wait):
            mine = jobs_here() if callable(jobs_here) else jobs_here
            if mine:
                outcomes = fan.out(mine, settings, False, atomic, work.advanced, work.noted, keep)
                work.outcomes.update((outcome.server, outcome) for outcome in outcomes)
    finally:
        work.stop()
        for thread in threads:
            thread.join()
    for job in far:
        if job.server.name in work.begun:
            work.outcomes[job.server.name].begun += [trees.Action("update", path) for path in job.paths]
    return [work.outcomes[job.server.name] for job in jobs]


class _Work:
    """What is to be done over push hosts, and how far it is: shared by one thread a push host."""

    def __init__(
        self,
        jobs: list[Job],
        listing: trees.Listing,
        paths: list[str],
        settings: Settings,
        atomic: bool,
        keep: bool,
        advance: Callable[[int], None] | None,
        done: Callable[[Job, Outcome], None] | None,
        say: Say,
        fault: Say,
    ) -> None:
        self.jobs = jobs
        self.listing = listing
        self.paths = paths
        self.settings = settings
        self.atomic = atomic
        self.keep = keep
        self.advance = advance
        self.done = done
        self.say = say
        self.fault = fault
        self.lease_s = max(handover.LEASE_LEAST_S, float(settings["push"]["connect_timeout_s"]))
        self.stopped = threading.Event()
        self.outcomes: dict[str, Outcome] = {}
        self.begun: set[str] = set()
        self._change = threading.Condition(threading.RLock())
        self._shares: dict[str, list[Job]] = {}
        self._orphans: deque[Job] = deque()
        self._open = len(jobs)
        self._alive = 0

    def deal(self, hosts: Sequence[Server]) -> None:
        """Give every push host its share, as even as can be."""
        self._shares = {host.name: self.jobs[place :: len(hosts)] for place, host in enumerate(hosts)}
        self._alive = len(hosts)

    def run(self, host: Server) -> None:
        """Let one push host do its share, and more when others fail, until it fails itself or all is done."""
        share = self._shares[host.name] or self._more()
        while share:
            left = {job.server.name: job for job in share}
            try:
                _Session(self, host, left).run()
                share = self._more()
                continue
            except InfoclusterError as error:
                why = str(error)
            except Exception as error:  # whatever is wrong with one push host, the servers are served
                why = f"{type(error).__name__}: {error}"
            self._give_up(host, list(left.values()), why)
            return

    def confirmed(self, job: Job, outcome: Outcome) -> None:
        """Note what a push host told of one server."""
        with self._change:
            self.outcomes[outcome.server] = outcome
            self._open -= 1
            self._change.notify_all()
            self.noted(job, outcome)
            self.advanced(1)

    def noted(self, job: Job, outcome: Outcome) -> None:
        """Tell the caller of an outcome, one at a time."""
        with self._change:
            if self.done:
                self.done(job, outcome)

    def advanced(self, count: int) -> None:
        """Tell the caller how many are done, one at a time."""
        with self._change:
            if self.advance:
                self.advance(count)

    def told(self, line: str) -> None:
        """Tell the caller what is being waited for, one line at a time."""
        with self._change:
            self.say(line)

    def wait(self) -> list[Job]:
        """Return when all servers are done, or no push host is left to do it: what is left then."""
        with self._change:
            # With a time limit: a signal is heard at once in a wait that has one, wherever this runs.
            while self._open and self._alive:
                self._change.wait(1.0)
            left = list(self._orphans)
            self._orphans.clear()
            return left

    def stop(self) -> None:
        """End the conversations that are open still."""
        with self._change:
            self.stopped.set()
            self._change.notify_all()

    def _more(self) -> list[Job]:
        """Return an even part of what others gave up, as soon as there is any; nothing when all is done."""
        with self._change:
            while self._open and not self._orphans and not self.stopped.is_set():
                self._change.wait(1.0)
            if self.stopped.is_set():
                return []
            count = math.ceil(len(self._orphans) / max(1, self._alive))
            return [self._orphans.popleft() for _ in range(count)]

    def _give_up(self, host: Server, left: list[Job], why: str) -> None:
        with self._change:
            self._alive -= 1
            self._orphans.extend(left)
            self._change.notify_all()
            if self.stopped.is_set():
                return
            whose = nodes.folded(job.server.name for job in left) if left else ""
            by = "the other push hosts" if self._alive else "this host"
            self.fault(f"push host {host.name}: {why}" + (f"; {by} will serve {whose}" if whose else ""))


class _Session:
    """One share and one push host: a conversation with its relay."""

    def __init__(self, work: _Work, host: Server, left: dict[str, Job]) -> None:
        self.work = work
        self.host = host
        self.left = left
        self.beat_s = work.lease_s / 4
        self.heard_at = self.told_at = time.monotonic()
        self.has_work = False
        # Whom it may have done something to.
        self.begun: set[str] = set()

    def run(self) -> None:
        """Have the share served; `left` loses each server that was told of.

        Raises:
            InfoclusterError: the push host failed; what is in `left` is not done and nobody is at it any more.
        """
        words = _ssh_words(self.host, self.work.settings)
        with processes.Conversation(words, handover.LIMIT_BYTES) as talk:
            try:
                self._talk(talk)
                talk.end(self.work.lease_s)
            except BaseException:
                self._part(talk)
                self.work.begun.update(self.begun & self.left.keys())
                raise

    def _part(self, talk: processes.Conversation) -> None:
        """Return when the relay cannot be at work any more."""
        # It reads the end of its input and ends; what it still says nobody reads.
        status = talk.end(GRACE_S)
        # ssh(1): the exit status is the remote command's, or 255.
        if self.has_work and not 0 <= status < 255:
            time.sleep(max(0.0, self.told_at + self.work.lease_s + GRACE_S - time.monotonic()))

    def _talk(self, talk: processes.Conversation) -> None:
        push = self.work.settings["push"]
        handover.check_version(self._line(talk, push["connect_timeout_s"] + START_S))
        share = handover.Share(
            self.work.paths,
            list(self.left.values()),
            self.work.lease_s,
            push["server_timeout_s"],
            self.work.atomic,
            self.work.keep,
        )
        self._tell(talk, handover.share_told(share))
        self.has_work = True
        while (message := self._line(talk)) != handover.LOCKED:
            if "say" not in message:
                raise BadInputError(f"unexpected line {shown(str(message))}")
            self.work.told(f"push host {self.host.name}: {printable(str(message['say']))}")
        self._update(talk)
        self._tell(talk, handover.GO)
        self.begun = set(self.left)
        # Outcomes of servers that it did not reach, as long as it has reached none.
        held: list[Outcome] = []
        alone = len(self.left) == 1
        reached = False
        while "done" not in (message := self._line(talk)):
            outcome = handover.outcome_read(message)
            if outcome.server not in self.left or any(outcome.server == other.server for other in held):
                raise BadInputError(f"it told of {shown(outcome.server)}, which is none that it has to serve")
            held.append(outcome)
            if not (outcome.changes or outcome.begun):
                self.begun.discard(outcome.server)
            reached = reached or alone or not outcome.was_unreachable
            while reached and held:
                self.work.confirmed(self.left[held[0].server], held[0])
                del self.left[held.pop(0).server]
        if held:
            # It is rather this push host that is cut off than all of them.
            raise UnavailableError(f"it reaches none of its servers ({held[0].server}: {held[0].faults[0]})")
        if self.left:
            raise BadInputError("it ended without a word of every server")

    def _update(self, talk: processes.Conversation) -> None:
        """Bring the push host's own tree up to date, and keep the conversation going meanwhile."""
        work = self.work
        stopped, ended = threading.Event(), threading.Event()
        end = time.monotonic() + work.settings["push"]["server_timeout_s"]
        order = Order(work.settings, work.paths, False, False, end, stopped)
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(transport.send, self.host, work.listing, order)
            update.add_done_callback(lambda _: ended.set())
            try:
                while not ended.wait(self.beat_s / 2):
                    self._keep_alive(talk)
                    line = talk.heard(0)
                    if line:
                        raise BadInputError(f"unexpected line {shown(line.decode('utf-8', 'replace'))}")
            finally:
                stopped.set()
        faults = update.result().faults
        if faults:
            raise UnavailableError(f"cannot update it: {faults[0]}")

    def _tell(self, talk: processes.Conversation, message: Message) -> None:
        talk.tell(handover.written(message))
        self.told_at = time.monotonic()

    def _keep_alive(self, talk: processes.Conversation) -> None:
        if self.work.stopped.is_set():
            raise UnavailableError("the push was stopped")
        now = time.monotonic()
        if now - self.told_at > self.beat_s and self.has_work:
            talk.tell(handover.BEAT)
            self.told_at = now

    def _line(self, talk: processes.Conversation, limit_s: float | None = None) -> Message:
        """Return the next line that says something."""
        limit_s = limit_s or self.work.lease_s
        self.heard_at = time.monotonic()
        while True:
            self._keep_alive(talk)
            try:
                line = talk.heard(min(self.beat_s / 2, limit_s))
            except UnavailableError as error:
                said = talk.errors.splitlines()
                why = printable(said[-1]) if said else str(error)
                raise UnavailableError(f"its relay failed: {why}") from None
            if line:
                return self._read(line)
            if line is not None:
                self.heard_at = time.monotonic()
            elif time.monotonic() - self.heard_at > limit_s:
                raise UnavailableError(f"not heard for {limit_s:g} s")

    def _read(self, line: bytes) -> Message:
        message = handover.read(line)
        if "error" in message:
            raise UnavailableError(str(message["error"]))
        return message


def _ssh_words(host: Server, settings: Settings) -> list[str]:
    """Return the command that starts a push host's relay."""
    return [*ssh.arguments(host, settings), host.name, relay_command(settings)]
