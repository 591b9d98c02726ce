# SPDX-License-Identifier: Apache-2.0
"""rsync as a transport: over ssh, or to a daemon's module.

1. A server that is reached by ssh is asked first what it lacks (`comparison`); where it lacks nothing that was all,
   and a few small files went in the same conversation (`parcel`). Where that cannot be told, rsync compares.
2. Much that is new goes as `archives`. One rsync puts in place what else is new or differs: it gets the named paths
   or the very paths that differ as a list, and rules that hide and protect what is left out. It moves its files to
   their names together, at its end.
3. Only when that went well another one removes what is gone: `--delete` in one and the same run would go on after a
   file could not be written. So the first run is told that it may remove nothing, and says whether there is more.
   A named path that is gone itself is listed to an rsync whose source is empty but for the directories above it.
4. What rsync did is read from its output, which it prints in a form of our own; what failed is read from its
   messages, and only then from its exit status.

Names go in lists that end in null bytes, each led by a slash, which rsync takes off: a ``#`` or ``;`` would be a
comment even there. What comes back has all that is not printable ASCII as ``\\#`` and three octal digits. Patterns
are anchored; a backslash protects in them only where they have one of ``*?[``. Modification times are compared to
the nanosecond, those of directories and links not at all; setuid, setgid and sticky bits are not sent.

Source: rsync(1), sections "FILTER RULES", "EXIT VALUES", --files-from, --delete-missing-args, --out-format.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress

from infocluster import processes
from infocluster.config import Settings
from infocluster.errors import UnavailableError
from infocluster.names import printable
from infocluster.processes import Outcome
from infocluster.push import archives, comparison, ssh
from infocluster.push.order import BEGUN, Order, UnreachableError
from infocluster.push.servers import Server
from infocluster.trees import Action, Directory, Listing, above, join

# From so many files and links on, a server is asked what it lacks before an rsync is started.
LARGE_COUNT = 100

# From this share of what was listed on, rsync finds what to send on its own: it lists faster than it reads lists.
MOST = 0.5

# So many directories are named in the command; rsync takes twice as long to go through one that a list names.
ARGUMENTS_LIMIT = 100

# Seconds without a byte until a connection counts as dead.
SILENCE_S = 60

OUTPUT_LIMIT_BYTES = 1 << 30

WENT = "it went away while it was sent"

_HOLDING = ".~tmp~"

_ALWAYS = ("--secluded-args", "--from0", "--no-compress")
_TELL = "--out-format== %i %l %n"
_SAME = (
    "--links", "--perms", "--times", "--omit-dir-times", "--omit-link-times", "--modify-window=-1",
    "--chmod=Du+rwx,ug-s,o-t",
)  # fmt: skip
_UPDATES = ("--force", "--filter=hide .~*", "--filter=risk .~*")
_SWEEPS = ("--filter=hide .~*", "--filter=risk .~*", "--filter=protect,p *")

_LINE = re.compile(r"= (?P<kind>.{11}) (?P<size>\d+) (?P<path>.*)", re.DOTALL)
_ESCAPED = re.compile(rb"\\#(\d{3})")
_QUOTED = re.compile(
    r'rsync: (?:\[\w+\] )?(?P<step>[^"]*)"(?P<path>.*?)"(?: \(in \S+\))?(?: (?:failed|->|from|\().*|: .*)'
)
_BARE = re.compile(r"rsync: (?:\[\w+\] )?(?P<step>[^(\"]*)\((?P<path>.*)\) failed: .*")
_WHY = re.compile(r": (?P<why>[^:]*?) \(\d+\)$")
_VANISHED = re.compile(r'file has vanished: "(?P<path>.*)"')
_STUCK = re.compile(r"could not make way for (?:new )?[\w ]+: (?P<path>.*)")
_NOT_EMPTY = re.compile(r"cannot delete non-empty directory: (?P<path>.*)")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\w{6}")

_MORE_TO_REMOVE = re.compile(r"Deletions stopped due to --max-delete limit \((?P<count>\d+) skipped\)")
_SPEAKER = re.compile(r"rsync: (?:\[\w+\] )?")
_HOPELESS = ("No space left on device", "Read-only file system", "Disk quota exceeded", "Disc quota exceeded")

_SOME_FAILED, _VANISHED_SOME, _LIMITED = 23, 24, 25
_BROKEN = frozenset({10, 12, 30, 35, ssh.NOT_REACHED})


class Report:
    """What runs of rsync did, by tree path, and what they could not do.

    Attributes:
        put: what was put in place, or would be.
        removed: what was removed, or would be.
        faults: why something could not be done.
        is_all: whether all that was wanted was done, and nothing was to be said of it.
        stuck: whether something was not replaced because a run was not allowed to remove what is in its place.
        more: how many things a run that was not allowed to remove has left for another one.
        words: what was said beside that.
    """

    __slots__ = ("faults", "is_all", "more", "put", "removed", "stuck", "words")

    def __init__(self) -> None:
        self.put: dict[str, Action] = {}
        self.removed: dict[str, Action] = {}
        self.faults: dict[str, str] = {}
        self.is_all = False
        self.stuck = False
        self.more = 0
        self.words: list[str] = []

    def actions(self) -> Iterator[Action]:
        """Yield all in the order of events: what was put in place, what failed, what was removed."""
        replaced = {parent for path in self.removed for parent in above(path)} & self.put.keys()
        for path in sorted(self.put):
            if path not in self.faults:
                action = self.put[path]
                yield action._replace(verb="update") if path in replaced else action
        for path in sorted(self.faults):
            yield Action("fail", path, reason=self.faults[path])
        for path in sorted(self.removed, reverse=True):
            if path not in self.put and path not in self.faults:
                yield self.removed[path]


class Push:
    """A listing on its way to one server."""

    def __init__(self, server: Server, listing: Listing, order: Order) -> None:
        self.server = server
        self.listing = listing
        self.order = order
        self.named: list[str] = []
        self.absent: list[str] = []
        self.whole: list[tuple[str, Directory]] = []
        # What stays although the master has it not, and the directories that it is in.
        self.spared: dict[str, str] = {}
        self.occupied: set[str] = set()
        self.sort_out(listing.top, "")

    def sort_out(self, node: Directory, path: str) -> None:
        """Find what the push names: what is there, and what is gone."""
        if node.whole:
            self.whole.append((path, node))
            self.named.append(path)
            return
        self.named += [join(path, name) for name in node.entries]
        self.absent += [join(path, name) for name in node.absent]
        for name, below in node.directories.items():
            self.sort_out(below, join(path, name))

    def work(self, found: comparison.Difference | None = None) -> Iterator[Action]:
        """Do it all, and yield what was done. The destination has to exist: a disk not mounted is not filled.

        Args:
            found: what the server is known to lack, if it was asked.

        Raises:
            UnreachableError: the server could not be reached, or the connection broke.
            UnavailableError: it refused us, its disk is full or read-only, the time is over, or the push was stopped.
            ConfigError: its user is no plain name.
        """
        if found is None and self.server.transport == "ssh" and self.whole and self.listing.count >= LARGE_COUNT:
            found = self.compared()
        report = Report()
        try:
            yield from self.put_named(report) if found is None else self.put_difference(report, found)
        except UnavailableError:
            begun = [*report.put.values(), *report.removed.values()] if found is None else found.put + found.removals
            yield from (action._replace(reason=BEGUN) for action in begun if not self.order.show)
            raise

    def compared(self) -> comparison.Difference | None:
        """Ask the server what it lacks; None where it cannot tell.

        Raises:
            UnavailableError: the destination is not there; and as `ssh.run`.
        """
        script = comparison.script(self.listing, self.order.paths, self.server.destination)
        answer = ssh.run(self.server, ["sh", "-s"], self.order, script)
        if answer.status == comparison.NO_DESTINATION:
            raise comparison.no_destination(self.server)
        return comparison.difference(self.listing, answer.output)

    def put_difference(self, report: Report, found: comparison.Difference) -> Iterator[Action]:
        """Put in place and remove what is known to differ."""
        if self.order.show:
            yield from found.actions()
            return
        left = found.put
        begun: list[Action] = []
        if self.server.transport == "ssh" and len(left) >= archives.MANY:
            done, begun = archives.put(self.server, self.listing, self.order, left)
            report.put = {action.path: action for action in done}
            report.is_all = len(done) == len(left) and not found.removals
            left = [action for action in left if action.path not in report.put]
        wanted = [] if found.removals else left
        # Only where something old is replaced can old and new be mixed; to hold all back costs half as much again.
        is_held = any(action.verb == "update" and not action.is_directory for action in left)
        if len(left) > MOST * self.listing.count:
            self.put(report, self.named, ["--recursive"], is_held=is_held, wanted=wanted)
        elif left:
            self.put(report, [action.path for action in left], ["--dirs"], is_held=is_held, wanted=wanted)
        if report.is_all:
            yield from found.put
            yield from found.kept
            return
        for action in found.put:
            if action.path in report.put:
                # Of what had another kind of thing in its place rsync tells that it is new.
                report.put[action.path] = action
            elif not os.path.lexists(f"{self.listing.source}/{action.path}"):
                report.faults.setdefault(action.path, WENT)
        # What rsync does not tell of these was there when it came.
        report.put.update({action.path: action for action in begun})
        if not report.faults and found.outermost:
            self.remove(report, found.outermost)
        elif report.faults:
            yield from kept(found.removals)
        yield from report.actions()
        yield from found.kept

    def put_named(self, report: Report) -> Iterator[Action]:
        """Put in place and remove what rsync finds to differ."""
        if self.named:
            if not self.whole:
                self.put(report, self.named, ["--dirs"])
            elif self.order.show:
                self.put(report, self.named, ["--recursive", "--delete-delay"])
                self.spare(report.removed)
                report.removed = {
                    path: one
                    for path, one in report.removed.items()
                    if path not in self.spared.keys() | self.occupied
                }
            else:
                self.put(report, self.named, ["--recursive", "--delete-delay", "--max-delete=0"], is_limited=True)
                if report.stuck:
                    report.faults.clear()
                    self.put(report, self.named, ["--recursive"])
                if report.more and not report.faults:
                    if self.listing.leave:
                        would = Report()
                        self.put(would, self.named, ["--recursive", "--delete-delay", "--dry-run"])
                        self.spare(would.removed)
                    self.put(report, self.named, ["--recursive", "--delete-delay"])
        gone = [Action("remove", path) for path in self.absent]
        if report.faults:
            yield from kept(gone + [Action("remove", self.order.paths[0])] * report.more)
        elif gone:
            self.remove(report, self.absent)
        yield from report.actions()
        yield from (Action("keep", path, reason=why) for path, why in self.spared.items())

    def spare(self, removed: Iterable[str]) -> None:
        """Find out what of that which would be removed stays: see `Listing.leave`."""
        for path in removed:
            if why := self.listing.stays(path):
                self.spared[path] = why
                self.occupied.update(above(path))

    def put(
        self,
        report: Report,
        paths: list[str],
        options: list[str],
        is_limited: bool = False,
        is_held: bool = True,
        below: tuple[str, str, list[str]] | None = None,
        wanted: Sequence[Action] = (),
    ) -> None:
        """Run an rsync from the production tree.

        Args:
            report: gets what it does.
            paths: tree paths it is given.
            options: how it handles what is in directories.
            is_limited: whether it may remove nothing, so that what it could not replace is no fault yet.
            is_held: whether files get their names together, at the end.
            below: a directory that is sent under another name, that name, and what of it is left out; the other
                paths are then relative to it.
            wanted: all that it has to do, where that is known; it did that but for what it complains of.

        Raises:
            UnavailableError: nothing more can be done.
        """
        here, there, left = below or ("", "", [path for path, _ in self.listing.left] + sorted(self.spared))
        if is_held and below is None:
            options = [*options, "--delay-updates"]
        # What to keep of links costs a fifth more, for nothing in most trees.
        linked = ["--hard-links"] if self.listing.has_links else []
        with ExitStack() as stack:
            if left:
                import tempfile

                rules = stack.enter_context(tempfile.NamedTemporaryFile())
                rules.write(b"".join(b"- " + _pattern(path) + b"\0" for path in left))
                rules.flush()
                options = [*options, f"--exclude-from={rules.name}"]
            outcome = self.run(
                [*_SAME, *options, *linked, *_UPDATES, *([] if wanted else [_TELL])],
                paths,
                join(self.listing.source, here) if here else self.listing.source,
                there,
            )
        if wanted and outcome.status == 0 and not outcome.errors:
            report.is_all = True
            return
        if wanted:
            known = (action for action in wanted if os.path.lexists(f"{self.listing.source}/{action.path}"))
            report.put |= {action.path: action for action in known}
        self.read(report, outcome, is_limited)
        self.judge(report, outcome)

    def remove(self, report: Report, paths: list[str]) -> None:
        """Remove files, links, and directories with all that is in them.

        Args:
            report: gets what is removed.
            paths: their tree paths, none below another.

        Raises:
            UnavailableError: nothing more can be done.
        """
        import tempfile

        # Directories above a path are sent, so that a link in the place of one does not lead the removal elsewhere.
        with tempfile.TemporaryDirectory() as empty:
            for parent in {path.rpartition("/")[0] for path in paths}:
                os.makedirs(f"{empty}/{parent}", exist_ok=True)
            outcome = self.run(["--dirs", "--existing", "--delete-missing-args", "--force", _TELL], paths, empty)
        removal = Report()
        self.read(removal, outcome, False)
        report.removed |= removal.removed
        report.faults |= removal.faults
        self.judge(removal, outcome)

    def sweep(self) -> None:
        """Remove what a put that failed left on a disk that is full of it; where that fails, the next one does it."""
        options = ["--recursive", "--existing", "--ignore-existing", "--delete-before", *_SWEEPS]
        with suppress(UnavailableError):
            self.run(options, self.named, self.listing.source)

    def run(self, options: list[str], paths: list[str], source: str, there: str = "") -> Outcome:
        """Run rsync with a list of paths below a source, to its end; they come below `there` in the destination.

        Raises:
            UnavailableError: it cannot be started, did not end in time, or was stopped.
        """
        push, server = self.order.settings["push"], self.server
        left_s = self.order.end - time.monotonic()
        destination = join(server.destination, f"{there}/." if there else ".")
        words = [push["rsync"], *_ALWAYS, *options, f"--timeout={max(1, min(SILENCE_S, round(left_s)))}"]
        is_listed = "--recursive" not in options or len(paths) > ARGUMENTS_LIMIT
        words += ["--files-from=-"] if is_listed else ["--relative"]
        sources = [f"{source}/"] if is_listed else [f"{source}/./{path}" for path in paths]
        if self.order.show:
            words.append("--dry-run")
        if server.transport == "local":
            target = ["--", *sources, destination]
        elif server.transport == "ssh":
            target = [remote_shell(server, self.order.settings), "--", *sources, f"{server.name}:{destination}"]
        else:
            seconds = max(1, round(push["connect_timeout_s"]))
            target = [f"--contimeout={seconds}", "--no-motd", "--", *sources, address(server) + destination]
        return processes.run(
            words + target,
            max(left_s, 0),
            b"".join(b"/" + os.fsencode(path) + b"\0" for path in paths) if is_listed else b"",
            environment(),
            is_stopped=self.order.stopped.is_set,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
        )

    def ask(self, words: list[str], content: bytes) -> Outcome:
        """Run a program where the destination is, with something to read, and return how it ended.

        Raises:
            UnreachableError: the server could not be reached, or the connection broke.
            UnavailableError: the program cannot be started, did not end in time, or was stopped.
        """
        if self.server.transport == "ssh":
            return ssh.run(self.server, words, self.order, content)
        left_s = max(self.order.end - time.monotonic(), 0)
        return processes.run(words, left_s, content, is_stopped=self.order.stopped.is_set)

    def read(self, report: Report, outcome: Outcome, is_limited: bool) -> None:
        """Take into a report what an rsync did and said."""
        for line in outcome.output.decode("ascii", "backslashreplace").split("\n"):
            if (action := _action(line)) is not None:
                (report.removed if action.verb == "remove" else report.put)[action.path] = action
            elif not is_limited and (found := _NOT_EMPTY.fullmatch(line)):
                path = self.tree_path(found["path"])
                if path not in self.occupied:
                    report.faults[path] = "cannot remove a directory that is not empty"
        for line in outcome.errors.decode("ascii", "backslashreplace").split("\n"):
            if found := _MORE_TO_REMOVE.match(line):
                report.more = int(found["count"])
            elif found := _STUCK.fullmatch(line):
                report.stuck = True
                report.faults[self.tree_path(found["path"])] = "cannot remove what is in its place"
            elif found := _VANISHED.fullmatch(line):
                report.faults[self.tree_path(found["path"])] = WENT
            elif (found := _QUOTED.fullmatch(line) or _BARE.fullmatch(line)) and (why := _WHY.search(line)):
                report.faults.setdefault(self.tree_path(found["path"]), f"{_step(found['step'])}{why['why']}")
            elif line and not line.startswith(("rsync warning:", "***")):
                report.words.append(line)

    def judge(self, report: Report, outcome: Outcome) -> None:
        """Raise what an exit status and what was said with it mean, unless the report tells it all.

        Raises:
            UnreachableError: the connection broke, or there was none.
            UnavailableError: nothing more can be done there.
        """
        status = outcome.status
        if status == 0:
            return
        for path, why in report.faults.items():
            if why.endswith(_HOPELESS):
                self.sweep()
                raise UnavailableError(f"cannot write {self.server.destination}/{printable(path)}: {why}")
        if status in (_VANISHED_SOME, _LIMITED) or (status == _SOME_FAILED and (report.faults or report.more)):
            return
        said = [printable(_unescaped(word)) for word in report.words]
        text = "; ".join([word for word in said if not word.startswith("rsync error:")] or said)
        text = _SPEAKER.sub("", text) or f"rsync ended with status {status}"
        if any("rsync: " in word and "not found" in word for word in said):
            raise UnavailableError(f"cannot update {self.server.name}: it has no rsync")
        if status in _BROKEN or "max connections" in text:
            if self.server.transport == "ssh":
                ssh.forget(self.server, self.order.settings)
                raise ssh.not_reached(self.server, outcome.errors)
            raise UnreachableError(f"cannot reach {self.server.name}: {text}")
        first = [f"{printable(path)}: {why}" for path, why in report.faults.items()][:1]
        raise UnavailableError(f"cannot update {self.server.name}: {(first or [text])[0]}")

    def tree_path(self, text: str) -> str:
        """Return the tree path of a file that rsync names, by whichever of its names."""
        path = _unescaped(text)
        # A daemon tells paths as they are in its module.
        module = self.server.destination.lstrip("/").partition("/")[2]
        for root in (self.server.destination, self.listing.source, "/" + module, module):
            if root.strip("/") and path.startswith(root + "/"):
                path = path[len(root) + 1 :]
                break
        path = path.removeprefix("./").strip("/")
        *parents, name = path.split("/")
        parents = [parent for parent in parents if parent != _HOLDING]
        if found := _TEMPORARY.fullmatch(name):
            known = join("/".join(parents), found["name"])
            directory = self.listing.directory("/".join(parents))
            if known in self.named or (directory is not None and found["name"] in directory.entries):
                name = found["name"]
        return join("/".join(parents), name)


def _action(line: str) -> Action | None:
    """Return what a line of rsync's output tells, or None for one that is no such line."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    kind, path = found["kind"], _unescaped(found["path"])
    is_directory = path.endswith("/")
    path = path.rstrip("/")
    if path in (".", ""):
        return None
    if kind.startswith("*deleting"):
        return Action("remove", path, is_directory)
    size = int(found["size"]) if kind[1] == "f" else 0
    return Action("install" if kind[2] == "+" else "update", path, is_directory, size)


def kept(removals: list[Action]) -> Iterator[Action]:
    """Yield what was to be removed and is not, because something failed."""
    for action in removals:
        yield action._replace(verb="keep", reason="not everything new could be put in place")


def _step(step: str) -> str:
    """Return words for what rsync was at where its reason alone would not tell, else nothing."""
    return "cannot remove: " if "delete" in step or "rmdir" in step or "unlink" in step else ""


def _unescaped(text: str) -> str:
    """Return a name as it is from how rsync prints it."""
    if "\\#" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), text.encode("ascii", "replace")))


def _pattern(path: str) -> bytes:
    """Return the pattern that matches one tree path."""
    text = b"/" + os.fsencode(path)
    # Without a wildcard a pattern is taken as it is, backslashes too.
    return re.sub(rb"[\\*?[]", rb"\\\g<0>", text) if re.search(rb"[*?[]", text) else text


def address(server: Server) -> str:
    """Return what the destination on an rsync daemon's host begins with. Raises as `ssh.user`."""
    at = f"{user}@" if (user := ssh.user(server)) else ""
    return f"rsync://{at}{server.name}{f':{server.port}' if server.port else ''}"


def remote_shell(server: Server, settings: Settings) -> str:
    """Return the option of rsync that has it use the connection of `ssh`. Raises as `ssh.arguments`."""
    return "--rsh=" + " ".join(_shell_word(word) for word in ssh.arguments(server, settings))


def _shell_word(word: str) -> str:
    """Return a word of the command behind --rsh, which rsync splits at blanks itself; no shell reads it."""
    if word and not set(word) & {" ", "'", '"', "\t", "\n"}:
        return word
    return "'" + word.replace("'", "''") + "'"


def environment() -> dict[str, str]:
    """Return our environment without what changes how rsync works or talks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RSYNC_")}
    if "RSYNC_PASSWORD" in os.environ:
        kept["RSYNC_PASSWORD"] = os.environ["RSYNC_PASSWORD"]
    return kept | {"LC_ALL": "C"}
