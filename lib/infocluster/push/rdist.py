# SPDX-License-Identifier: Apache-2.0
"""rdist as a transport: the real program gets a distfile, and what it says is read, because its exit status lies.

1. The distfile is made from the server's skeleton and the named paths, under a name of its own in
   STATE_DIR/distfiles, beside a wrapper that reaches the server by ssh as all other programs of ours do.
2. rdist runs the entries with the label ``send``: it puts in place what is new and removes nothing.
3. Only when nothing failed it runs those with the label ``remove``.
4. Each line of its output is a thing that was done, or a fault. rdist ends with status 0 although a server could not
   write (``REMOTE ERROR``), a name was refused, or the host was in no entry: so a run counts as done only when it
   said that it finished this host, and every error in its output is a fault whatever the status.
5. Both files are removed; the distfile stays where the order says ``keep``, for whoever wants to see it.

rdist cannot remove a named path whose directory is gone here too; that is told as a fault. Owner and group that the
server could not set are none: no transport copies them.

Shape: lines of rdist 6.1.5, HOST as in the distfile, SERVER as the server calls itself (left out where both are the
    same)::

        HOST: updating host HOST
        HOST: /www/world/a: installing
        HOST: SERVER: /srv/www/world/old: removed
        HOST: SERVER: REMOTE ERROR: /srv/www/world/rdist123456: create failed: No space left on device
        HOST: LOCAL ERROR: /www/world/a: lstat failed: No such file or directory
        HOST: updating of HOST finished

Source: rdist(1), rdist 6.1.5 as it runs.
"""

import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infocluster import files, processes, trees
from infocluster.errors import ConfigError, RefusedError, UnavailableError, reason
from infocluster.locks import tickets
from infocluster.names import printable
from infocluster.push import ssh
from infocluster.push.order import Order
from infocluster.push.servers import Server
from infocluster.push.skeleton import REMOVE, SEND, LeftOut, Skeleton
from infocluster.trees import Action, Listing

OUTPUT_LIMIT_BYTES = 1 << 30
# Seconds rdist waits for an answer of the server.
ANSWER_S = 900

_KEPT_WHY = "not everything new could be put in place"
_ERROR = re.compile(r"(?:(?P<server>[^/: ]+): )?(?P<side>LOCAL|REMOTE) ERROR: (?P<text>.*)", re.DOTALL)
_SERVER = re.compile(r"[^/: ]+: (?=/)")
# What a line says behind the path it begins with.
_DONE = {
    "installing": "install",
    "updating": "update",
    "updated": "update",
    "mkdir": "install",
    "removed": "remove",
    "need to install": "install",
    "need to update": "update",
    "need to remove": "remove",
}
_MODE = re.compile(r": (?:chmod from [0-7]+ to [0-7]+|(?:need to )?chmod to [0-7]+)$")
_UNREACHED = re.compile(
    r"[Ll]ost connection|No input from server|[Rr]esponse time out|[Uu]nexpected (?:EOF|control record)"
    r"|Connection (?:refused|timed out|closed|reset)|No route to host|[Nn]etwork is unreachable"
    r"|[Cc]ould not resolve|[Uu]nknown host|Broken pipe|Read error occurred"
)
_NO_RDISTD = re.compile(r"not found|No such file or directory")
# The server could not give a file its owner or group: nobody asked for that.
_OWNERS = re.compile(r"chown|chgrp|unknown login name|unknown group|not in group|clearing set[ug]id")
_BAD = re.compile(r"ERROR|failed|Refuse to handle|cannot|Error in distfile")


def push(server: Server, listing: Listing, order: Order) -> Iterator[Action]:
    """Bring a listing to a server with rdist.

    Raises:
        RefusedError: each directory should switch over in one step, which rdist cannot do.
        ConfigError: the server's user cannot be used, or rdist is not there.
        UnreachableError: the server could not be reached, or the connection broke.
        UnavailableError: rdist did not end in time, or the push was stopped.
    """
    if order.atomic:
        raise RefusedError(f"cannot switch over directories on {server.name}: rdist puts files in place one by one")
    settings = order.settings
    if not os.access(settings["push"]["rdist"], os.X_OK):
        raise ConfigError(f"cannot push to {server.name}: there is no program {settings['push']['rdist']}")
    return _Push(server, listing, order, order.skeleton or Skeleton.none(settings)).actions()


class _Push:
    """One push to one server."""

    def __init__(self, server: Server, listing: Listing, order: Order, skeleton: Skeleton) -> None:
        self.server = server
        self.listing = listing
        self.order = order
        self.skeleton = skeleton
        self.failed = False
        self.told: set[tuple[str, str]] = set()

    def actions(self) -> Iterator[Action]:
        present, directories, gone = [], set(), []
        for path in self.order.paths:
            kind = _kind(self.listing, path)
            if kind == "lost":
                yield self.fault(path, "rdist cannot remove it, because its directory is gone here too: push that")
            elif kind == "gone":
                gone.append(path)
            elif kind:
                present.append(path)
                if kind == "directory":
                    directories.add(path)
        left = [path for path, why in self.listing.left if not isinstance(why, LeftOut)]
        made = self.skeleton.distribution(present, directories, gone, left, self.server.destination)
        for path, why in made.unwritable:
            yield self.fault(path, why)
        with self.distfile(made.text) as (distfile, transport):
            if made.sends:
                yield from self.run(distfile, transport, SEND)
            if not made.removes:
                return
            if not self.failed or self.order.show:
                yield from self.run(distfile, transport, REMOVE)
            else:
                for path in gone:
                    yield Action("keep", path, False, 0, _KEPT_WHY)

    @contextmanager
    def distfile(self, text: str) -> Iterator[tuple[str, str]]:
        """Leave the distfile and the wrapper under names of their own, and remove them."""
        directory = self.order.settings["site"]["state_dir"] + "/distfiles"
        if ":" in directory:
            raise ConfigError(f"cannot use {directory} with rdist: it takes a colon in its path for a list of paths")
        stamp = f"{directory}/{self.server.name}-{os.getpid()}-{os.urandom(6).hex()}"
        words = [shlex.quote(word) for word in ssh.arguments(self.server, self.order.settings)[:-1]]
        made = []
        try:
            try:
                if not os.path.isdir(directory):
                    tickets.make(directory)
                for name, content, mode in (
                    (f"{stamp}.dist", text, 0o640),
                    (f"{stamp}.ssh", f'#!/bin/sh\nexec {" ".join(words)} "$@"\n', 0o750),
                ):
                    files.replace(name, os.fsencode(content), mode, durable=False)
                    made.append(name)
            except OSError as error:
                raise UnavailableError(f"cannot write {stamp}: {reason(error)}") from error
            yield made[0], made[1]
        finally:
            for name in made:
                with suppress(FileNotFoundError):
                    if not (self.order.keep and name.endswith(".dist")):
                        os.unlink(name)

    def run(self, distfile: str, transport: str, label: str) -> Iterator[Action]:
        """Run the entries of one label and yield what rdist did."""
        user = ssh.user(self.server)
        host = f"{user}@{self.server.name}" if user else self.server.name
        left_s = max(self.order.end - time.monotonic(), 0)
        words = [self.order.settings["push"]["rdist"], "-f", distfile, "-d", f"HOSTS={host}", "-P", transport]
        words += ["-t", str(max(1, min(ANSWER_S, round(left_s))))]
        if self.order.show:
            words += ["-o", "verify"]
        outcome = processes.run(
            [*words, label],
            left_s,
            environment=_environment(),
            is_stopped=self.order.stopped.is_set,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
        )
        reading = _Reading(self, host)
        for line in (outcome.output + b"\n" + outcome.errors).split(b"\n"):
            if line.strip():
                yield from reading.line(os.fsdecode(line))
        yield from reading.end(outcome.status)

    def fault(self, path: str, why: str) -> Action:
        self.failed = True
        return Action("fail", path, False, 0, why)

    def done(self, verb: str, path: str) -> Iterator[Action]:
        """Yield what was done, with all below it where rdist names only a directory that it would make."""
        is_directory, size = _status(self.listing, path)
        if ("removed" if verb == "remove" else "put", path) in self.told:
            return
        self.told.add(("removed" if verb == "remove" else "put", path))
        yield Action(verb, path, is_directory, size)
        if self.order.show and verb == "install" and is_directory:
            for below in _below(self.listing, path):
                yield from self.done("install", below)


class _Reading:
    """What one run of rdist says, line by line.

    A line that a file is being installed comes before it is: it counts once the next line is no error of that file.
    """

    def __init__(self, push: _Push, host: str) -> None:
        self.push = push
        self.host = host
        self.top = push.listing.source.rstrip("/")
        self.destination = push.server.destination.rstrip("/")
        self.waiting: tuple[str, str] | None = None
        self.finished = False
        self.faults = 0
        self.notes: list[str] = []
        self.unreached = ""

    def line(self, line: str) -> Iterator[Action]:
        text, is_ours = self.without_host(line)
        if found := _ERROR.fullmatch(text):
            yield from self.error(found["text"], found["side"] == "REMOTE")
            return
        yield from self.settle()
        if text == f"updating of {self.host} finished":
            self.finished = True
        elif is_ours and (done := self.action(text)):
            verb, path = done
            if text.endswith((": installing", ": updating")):
                self.waiting = done
            else:
                yield from self.push.done(verb, path)
        elif is_ours and _BAD.search(text) and not _OWNERS.search(text):
            yield self.fault(self.named(text), text)
        else:
            self.notes.append(text)

    def end(self, status: int) -> Iterator[Action]:
        """Tell what the whole run tells.

        Raises:
            UnreachableError: the server was not reached, or the connection broke.
        """
        said = [note for note in self.notes if note and not note.startswith("updating host ")]
        last = f": {printable(said[-1])}" if said else ""
        if self.unreached:
            refused = ssh.not_reached(self.push.server, os.fsencode("\n".join(said) or self.unreached))
            if any(_NO_RDISTD.search(note) and "rdistd" in note for note in said):
                raise UnavailableError(f"cannot update {self.push.server.name}{last}")
            raise refused
        yield from self.settle()
        if not self.finished and not self.faults:
            yield self.fault("", f"rdist did not say that it finished {self.host}{last}")
        elif status != 0 and not self.faults:
            yield self.fault("", f"rdist ended with status {status}{last}")

    def without_host(self, line: str) -> tuple[str, bool]:
        """Return a line without the host it begins with, and whether it began so: others are not rdist's own."""
        if line.startswith(self.host + ": "):
            return line[len(self.host) + 2 :], True
        # rdist leaves the host out where its message begins with that already.
        return line, line.startswith(("LOCAL ERROR: ", "REMOTE ERROR: "))

    def action(self, text: str) -> tuple[str, str] | None:
        """Return verb and tree path of a line that tells what was done, or None."""
        if found := _SERVER.match(text):
            text = text[found.end() :]
        whole, colon, words = text.rpartition(": ")
        verb = _DONE.get(words)
        if verb is None and (found := _MODE.search(text)):
            whole, colon, verb = text[: found.start()], ":", "update"
        path = self.tree_path(whole) if colon and verb else None
        return (verb, path) if path and verb else None

    def tree_path(self, whole: str) -> str | None:
        """Return the tree path of a path here or on the server, None for one outside."""
        for root in (self.top, self.destination):
            if whole.startswith(root + "/"):
                return whole[len(root) + 1 :]
        return None

    def error(self, text: str, is_remote: bool) -> Iterator[Action]:
        """Tell an error, and take back what was said to be on its way when it is of that."""
        named = self.named(text)
        if self.waiting is not None:
            path = self.waiting[1]
            directory = path.rpartition("/")[0]
            of_it = named in ("", path) or (
                is_remote and named.rpartition("/")[0] == directory and "/rdist" in f"/{named}"
            )
            if of_it:
                self.waiting, named = None, path
            else:
                yield from self.settle()
        if _UNREACHED.search(text):
            self.unreached = text
            self.push.failed = True
            return
        words = text.partition(": ")[2] if named and text.startswith("/") and ": " in text else text
        yield self.fault(named, words)

    def named(self, text: str) -> str:
        """Return the tree path that a message begins with, "" without."""
        whole = _SERVER.sub("", text, count=1) if _SERVER.match(text) else text
        if not whole.startswith("/"):
            return ""
        path = self.tree_path(re.split(r": | -> ", whole, maxsplit=1)[0])
        return path or ""

    def settle(self) -> Iterator[Action]:
        if self.waiting is not None:
            verb, path = self.waiting
            self.waiting = None
            yield from self.push.done(verb, path)

    def fault(self, path: str, why: str) -> Action:
        self.faults += 1
        return self.push.fault(path, printable(why))


def _kind(listing: Listing, path: str) -> str:
    """Return what a named path is: "file", "directory", "gone", "lost" (with its directory) or "" (left out)."""
    above, _, last = path.rpartition("/")
    node = listing.directory(above)
    if node is None:
        return ""
    if last in node.absent:
        return "lost" if above and node.mode == trees.ABSENT else "gone"
    if last in node.directories:
        return "directory"
    return "file" if last in node.entries else ""


def _status(listing: Listing, path: str) -> tuple[bool, int]:
    """Return whether a tree path is a directory of the listing, and its size in bytes."""
    node = listing.directory(path.rpartition("/")[0])
    last = path.rpartition("/")[2]
    if node is None:
        return False, 0
    if last in node.directories:
        return True, 0
    entry = node.entries.get(last)
    return False, entry[1] if entry else 0


def _below(listing: Listing, path: str) -> Iterator[str]:
    node = listing.directory(path)
    if node is not None:
        for name in sorted((*node.entries, *node.directories)):
            yield trees.join(path, name)


def _environment() -> dict[str, str]:
    """Return our environment without what changes how rdist works, in the locale it expects."""
    changed = ("RDIST_OPTIONS", "RSH")
    return {name: value for name, value in os.environ.items() if name not in changed} | {"LC_ALL": "C"}
