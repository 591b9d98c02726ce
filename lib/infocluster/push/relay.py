# SPDX-License-Identifier: Apache-2.0
"""The part of a push that runs on a push host: ``wwwpush -relay``, started by the master over ssh.

1. The relay says which version it is. The master hands over a `handover.Share`. Where this host's own settings have
   servers, those of the share have to be among them; so a push host that has the master's settings serves no others.
2. It takes the path locks of its own host, so that nobody else pushes or installs there meanwhile, and says so.
3. The master, who is the one that writes there now, updates this host's production tree like a server's; says go.
4. The relay compares its tree with what the master listed and pushes nothing if anything differs.
5. It serves its servers with the code of every push, and tells each one's outcome as soon as there is one.

Who leads is leased. Each side sends an empty line at least four times in ``lease_s``. A relay that hears nothing for
that long, or the end of its input, ends its work as if by a signal, at last by force. Whoever gets its servers next
waits until it surely has ended:

RACE: a push host is cut off from the master, not from the servers. The master stops its beats, waits for the lease
    and `GRACE_S`, and only then gives the servers to others.
RACE: the master is killed. Its ssh reads the end of the conversation and the relay its own; or the lease is over.

Source: ssh(1); sshd(8) on forced commands; flock(2) for what ends with its process.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from queue import Queue
from typing import BinaryIO

from infocluster import processes, trees
from infocluster.config import Settings
from infocluster.errors import (
    EX_OK,
    EX_TEMPFAIL,
    BadInputError,
    InfoclusterError,
    RefusedError,
    UnavailableError,
    reason,
)
from infocluster.locks import pathlocks
from infocluster.names import printable
from infocluster.push import fan, handover, servers
from infocluster.push.handover import Message
from infocluster.push.order import Outcome

# Seconds after the lease at which a relay that lost its master has ended, by force if need be.
GRACE_S = 2.0
# Seconds a relay waits for its share.
SHARE_S = 60.0
STEP_S = 0.2
CHUNK_BYTES = 1 << 16


def serve(source: BinaryIO, sink: BinaryIO, settings: Settings) -> int:
    """Do one share for a master: the relay, ``wwwpush -relay``.

    Args:
        source: what the master says; read by its descriptor.
        sink: what the master hears.
        settings: this host's settings.

    Returns:
        The exit status: 0 when the master was told of every server, how it went on them is told there; 64 or more
        when nothing, or not all, was done, told in an ``error`` line.

    Raises:
        BaseException: what interrupts it, such as a signal, also the one it gives itself when the master is lost.
    """
    master = _Master(source, sink)
    try:
        _serve(master, settings)
        return EX_OK
    except InfoclusterError as error:
        master.finished.set()
        master.try_to_tell({"error": str(error)})
        return error.exit_status
    finally:
        master.finished.set()


def _serve(master: "_Master", settings: Settings) -> None:
    production_dir = settings["site"]["production_dir"]
    master.tell(handover.HELLO)
    share = handover.share_read(master.line(), production_dir)
    _check_servers(share, settings)
    own = {**settings, "push": {**settings["push"], "server_timeout_s": share.server_timeout_s}}
    with master.at_work(share.lease_s), _locked(share.paths, settings, master):
        master.tell(handover.LOCKED)
        if master.line() != handover.GO:
            raise BadInputError("cannot relay: expected to be told to go")
        _compare(share, production_dir)

        def told(_job: fan.Job, outcome: Outcome) -> None:
            master.tell(handover.outcome_told(outcome))

        fan.out(share.jobs, own, False, share.atomic, done=told, keep=share.keep)
    master.finished.set()
    master.tell({"done": len(share.jobs)})


def _check_servers(share: handover.Share, settings: Settings) -> None:
    """Raise RefusedError for a server that this host's settings have otherwise, or not, where they have any."""
    if not settings["servers"]:
        return
    known: set[servers.Server] = set()
    for kind in {job.server.kind for job in share.jobs} & {section["kind"] for section in settings["servers"]}:
        known.update(servers.of_kind(settings, kind))
    for job in share.jobs:
        if job.server not in known:
            raise RefusedError(f"cannot relay to {job.server.name}: this host's settings have no such [[servers]]")


def _locked(paths: list[str], settings: Settings, master: "_Master") -> AbstractContextManager[None]:
    directory = settings["site"]["state_dir"] + "/pathlocks"
    return pathlocks.hold(paths, directory=directory, say=lambda line: master.tell({"say": line}))


class _Master:
    """A relay's end of the conversation with its master."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self.finished = threading.Event()
        self._source = source.fileno()
        self._sink = sink
        self._lines: Queue[bytes | None] = Queue()
        self._turn = threading.Lock()
        self._lost = threading.Event()
        self._lease_s = SHARE_S
        self._is_busy = False
        threading.Thread(target=self._listen, name="master", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Tell the master something. Raises UnavailableError when it is not there any more."""
        self._put(handover.written(message))

    def try_to_tell(self, message: Message) -> None:
        """Tell the master something if it listens still."""
        with suppress(UnavailableError):
            self.tell(message)

    def line(self) -> Message:
        """Return the next thing that the master says. Raises UnavailableError when it is not there any more."""
        line = self._lines.get()
        if line is None:
            raise UnavailableError("cannot relay: the master is gone")
        return handover.read(line)

    @contextmanager
    def at_work(self, lease_s: float) -> Iterator[None]:
        """Keep the lease, and end this process when it is over. Raises UnavailableError when it is already."""
        self._lease_s = lease_s
        threading.Thread(target=self._beat, args=(lease_s / 4,), name="beats", daemon=True).start()
        self._is_busy = True
        # RACE: it is lost before this process was busy: nobody would be signalled.
        if self._lost.is_set():
            raise UnavailableError("cannot relay: the master is gone")
        try:
            yield
        finally:
            self._is_busy = False

    def _put(self, line: bytes) -> None:
        try:
            with self._turn:
                self._sink.write(line)
                self._sink.flush()
        except OSError as error:
            raise UnavailableError(f"cannot tell the master: {reason(error)}") from error

    def _beat(self, pause_s: float) -> None:
        with suppress(UnavailableError):
            while not self.finished.wait(pause_s):
                self._put(handover.BEAT)

    def _listen(self) -> None:
        """Read lines until the end, or until the lease is over; then end the work of this process."""
        unread = bytearray()
        searched = 0
        heard_at = time.monotonic()
        while not self.finished.is_set():
            # In short steps: the lease becomes another one when the share is there.
            if not select.select([self._source], [], [], STEP_S)[0]:
                if time.monotonic() - heard_at > self._lease_s:
                    break
                continue
            chunk = os.read(self._source, CHUNK_BYTES)
            if not chunk or len(unread) > handover.LIMIT_BYTES:
                break
            heard_at = time.monotonic()
            unread += chunk
            while (found := unread.find(b"\n", searched)) >= 0:
                if found:
                    self._lines.put(bytes(unread[:found]))
                del unread[: found + 1]
                searched = 0
            searched = len(unread)
        self._lost.set()
        self._lines.put(None)
        if self._is_busy and not self.finished.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            if not self.finished.wait(GRACE_S / 2):
                _kill_children()
                os._exit(EX_TEMPFAIL)


def _compare(share: handover.Share, production_dir: str) -> None:
    """Raise RefusedError unless this host's tree holds all that is to be sent from it, and nothing that is not.

    What a skeleton leaves alone and only this host has is left out from here, as it would be at the master.
    """
    here = trees.scan(production_dir, share.paths)
    for listing in {id(job.listing): job.listing for job in share.jobs}.values():
        different = next(_different(listing, listing.top, here.top, ""), None)
        if different is not None:
            raise RefusedError(f"cannot relay: {printable(different)} is not as the master has it")


def _different(listing: trees.Listing, wanted: trees.Directory, found: trees.Directory, path: str) -> Iterator[str]:
    for name, entry in wanted.entries.items():
        if _whole_seconds(entry) != _whole_seconds(found.entries.get(name)):
            yield trees.join(path, name)
    if wanted.whole:
        more = found.entries.keys() | found.directories.keys()
        gone = more - wanted.entries.keys() - wanted.directories.keys() - wanted.left
    else:
        gone = wanted.absent & (found.entries.keys() | found.directories.keys())
    for name in sorted(gone):
        more_path = trees.join(path, name)
        if wanted.whole and (why := listing.stays(more_path)):
            wanted.left.add(name)
            listing.left.append((more_path, why))
        else:
            yield more_path
    for name, below in wanted.directories.items():
        # What is only on the way to something that is gone need not be there.
        there = found.directories.get(name, trees.Directory(trees.ABSENT, False))
        if below.whole and (there.mode == trees.ABSENT or (below.mode ^ there.mode) & 0o077):
            yield trees.join(path, name)
        yield from _different(listing, below, there, trees.join(path, name))


def _whole_seconds(entry: trees.Entry | None) -> tuple[int, int, int, str] | None:
    """Return an entry as a file system tells it that keeps no fractions of a second."""
    return entry and (entry[0], entry[1], entry[2] // trees.WHOLE_SECOND_NS, entry[3])


def _kill_children() -> None:
    """Kill every program that this process started, with its group."""
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children", encoding="ascii") as listed:
            for pid in listed.read().split():
                with suppress(OSError):
                    processes.kill_group(int(pid))
