# SPDX-License-Identifier: Apache-2.0
"""A skeleton says which files one kind of server gets, and what is to be done there when they have changed.

It is a distfile of rdist with a blank for what is pushed: its one entry distributes ``${FILES}`` to ``${HOSTS}``,
and each push fills these two in. [[servers]] skeleton names the file, which lies beside infocluster.toml. It holds
for every transport: what it leaves out is neither sent to these servers nor removed there, by rsync as by rdist.

Shape: text in the language of distfiles, see rdist(1). ``${TOP}`` stands for the production tree's directory::

    # etc/distfile.web.skel: the web servers
    PRIVATE = ( world/webinfo/private world/drafts )

    ${FILES} -> ${HOSTS}
        install -oremove,nochkowner,nochkgroup ;
        except ( ${PRIVATE} world/sample/*.tmp ) ;
        except_pat ( \\\\.bak\\$ /RCS/ /RCS\\$ ) ;
        special ( world/conf/redirects ) "make -C /etc/redirects" ;
        cmdspecial "systemctl reload apache2" ;
        notify www-mgmt ;

Variables:
  ${FILES}  what is pushed; the entry's whole list of files
  ${HOSTS}  who gets it; the entry's whole list of hosts
  ${TOP}    the production tree's directory, such as /www

Commands:
  install     options for rdist, which other transports do without. No destination: [[servers]] has it. Not allowed
              are follow, history, nodescend, noexec, savetargets, verify, whole and younger, because a push means one
              thing with all transports. remove is always meant; quiet is passed over.
  except      names of files and directories, each with all below it. A name counts from ${TOP}, or begins with it.
              Wildcards * ? [a-z] {a,b} are those of the shell. They are compared with each name that comes, where
              rdist itself would look once what they match on the master.
  except_pat  basic regular expressions, found anywhere in a whole path (/www/world/a). A character that a backslash
              has to protect in the expression takes two of them in the file, and a $ one: \\\\.bak\\$
  special     a command for the shell, after a push, for each file that was sent: of the list, or of all. FILE is its
              path on the master, REMFILE that on the server, BASEFILE its last part.
  cmdspecial  a command for the shell, once after a push that changed something: of the list, or anything. FILES has
              the server's paths of what was sent, with ":" between them; where they are too many for a variable, it
              runs again for the next ones.
  notify      who gets a letter about each push that changed something.

The commands of special and cmdspecial run on each server, as who the push is there; on this host where the transport
is local. They are the administrator's: whoever may write the skeleton may run them. Unlike rdist, which pastes names
of files into the command's text, a push gives them as environment variables, so that no file's name is ever run.
What failed, or was not run because the push ended before, is run by the next push of these paths, though nothing has
changed since; it may then run for more than did change.

A skeleton has one entry and no entry with ``::``. A name behind a backslash of which rdist 6.1.5 would take nothing
(``\\*``) is refused, and so is the byte 0xA0. A skeleton that cannot be read stops a push before it has begun.

Source: rdist(1), regex(7); documentation of wwwpush and its distfile.skel.
See also: wwwpush(1), infocluster.toml(5)
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from infocluster import config, files, names, trees
from infocluster.config import Settings
from infocluster.errors import ConfigError, UsageError, reason
from infocluster.push import basicre, distfile
from infocluster.push.distfile import Command, Distribute, Install, Listed, Names, UnwritableError

LIMIT_BYTES = 1 << 20
FILES, HOSTS, TOP = "FILES", "HOSTS", "TOP"
SEND, REMOVE = "send", "remove"
DEFAULT_OPTIONS = ("nochkowner", "nochkgroup")

_REFUSED = frozenset({"follow", "history", "nodescend", "noexec", "savetargets", "verify", "whole", "younger"})
# What the generated distfile says by itself, or must not say because its output is read.
_DROPPED = frozenset({"remove", "noremove", "quiet", "noquiet"})
_WILD = "[{*?"


class LeftOut(str):
    """Why a skeleton leaves something out: a reason as any other, but no fault."""

    __slots__ = ()


@dataclass(slots=True)
class Special:
    """One ``special`` or ``cmdspecial`` of a skeleton.

    Attributes:
        text: the shell command.
        once: whether it runs once a push (cmdspecial), or for each file.
        files: the files it is for, None for all.
    """

    text: str
    once: bool
    files: "Paths | None"


@dataclass(slots=True)
class Distribution:
    """A distfile for one push.

    Attributes:
        text: what rdist reads; entries with the label SEND put things in place, those with REMOVE remove.
        sends: whether there is an entry with the label SEND.
        removes: whether there is an entry with the label REMOVE.
        unwritable: ``(tree path, why)`` of what cannot be said in it.
    """

    text: str
    sends: bool
    removes: bool
    unwritable: list[tuple[str, str]] = field(default_factory=list)


class Paths:
    """A set of paths below a directory, said by names, wildcards and expressions.

    Args:
        top: the directory; expressions are compared with it, a slash and the path.
    """

    __slots__ = ("_all", "_each", "_top", "exact", "expressions")

    def __init__(self, top: str) -> None:
        self._top = os.fsencode(top) + b"/"
        self._all: list[re.Pattern[bytes]] = []
        self._each: list[re.Pattern[bytes]] = []
        self.exact: dict[str, int] = {}
        self.expressions: list[tuple[bytes, int]] = []

    def compile(self) -> None:
        """Make ready for `line`.

        Raises:
            basicre.BadPatternError: they are too many to be looked for together.
        """
        self._all = basicre.compiled([pattern for pattern, _ in self.expressions])
        self._each = [basicre.compiled([pattern])[0] for pattern, _ in self.expressions]

    def line(self, path: str) -> int | None:
        """Return the line of the skeleton that says a tree path, or None."""
        line = self.exact.get(path)
        if line is not None or not self._all:
            return line
        whole = self._top + (path.encode("ascii") if path.isascii() else os.fsencode(path))
        if not any(pattern.search(whole) for pattern in self._all):
            return None
        found = (
            line for pattern, (_, line) in zip(self._each, self.expressions, strict=True) if pattern.search(whole)
        )
        return next(found, None)


class Skeleton:
    """A skeleton that was read; `none` has one that leaves nothing out.

    Attributes:
        file: its path, "" for none.
        notify: who gets a letter, as it is written there.
        specials: the commands for the servers, in their order.
        text: what was read.
        top: the production tree's directory, as which it was read.
    """

    __slots__ = ("_excepted", "_options", "file", "notify", "specials", "text", "top")

    def __init__(self, file: str, top: str) -> None:
        self.file = file
        self.notify: list[str] = []
        self.specials: list[Special] = []
        self.text = ""
        self.top = top.rstrip("/")
        self._options: tuple[str, ...] = DEFAULT_OPTIONS
        self._excepted = Paths(self.top)

    @classmethod
    def none(cls, settings: Settings) -> "Skeleton":
        """Return the skeleton of servers that have none."""
        return cls("", settings["site"]["production_dir"])

    @classmethod
    def read(cls, file: str, settings: Settings) -> "Skeleton":
        """Return the skeleton in a file.

        Args:
            file: its path; see `located`.
            settings: all settings; the production tree's directory is taken from them.

        Raises:
            ConfigError: it cannot be read, or says something that is none: file, line, what was expected.
        """
        try:
            content = files.read(file)
        except OSError as error:
            raise ConfigError(f"cannot read the skeleton {names.printable(file)}: {reason(error)}") from error
        if len(content) > LIMIT_BYTES:
            raise ConfigError(f"cannot read the skeleton {names.printable(file)}: it is over {LIMIT_BYTES} bytes")
        return cls.parsed(os.fsdecode(content), file, settings["site"]["production_dir"])

    @classmethod
    def parsed(cls, text: str, file: str, top: str) -> "Skeleton":
        """Return the skeleton in a text.

        Raises:
            ConfigError: ``FILE:LINE: expected WHAT, found WHAT``.
        """
        result = cls(file, top)
        result.text = text
        _Reader(result, names.printable(file), result.top).read(distfile.parse(text, names.printable(file)))
        return result

    def left_out(self, paths: Iterable[str]) -> list[tuple[str, LeftOut]]:
        """Return those of some tree paths that are left out, or lie below a directory that is, with the reason."""
        result = []
        for path in paths:
            parts = path.split("/")
            for count in range(1, len(parts) + 1):
                why = self.reason("/".join(parts[:count]))
                if why is not None:
                    result.append((path, why))
                    break
        return result

    def leave(self, directory: str, name: str, _mode: int) -> LeftOut | None:
        """Return why something is left out, or None: a `trees.Leave`."""
        return self.reason(f"{directory}/{name}" if directory else name)

    def reason(self, path: str) -> LeftOut | None:
        """Return why a tree path is left out, or None; what is said of the directories above it is not looked at."""
        line = self._excepted.line(path)
        return None if line is None else self._reason(line)

    def guard(self, listing: trees.Listing) -> None:
        """Mark in a listing the names that are left out and are not here, so that no server loses them either.

        What an expression or wildcard alone says is not marked: it has no name before a server is seen, and `reason`
        tells it then.
        """
        for path, line in self._excepted.exact.items():
            above, _, last = path.rpartition("/")
            node = listing.directory(above)
            if node is None or last in node.entries or last in node.directories or last in node.left:
                continue
            if node.whole or last in node.absent:
                node.absent.discard(last)
                node.left.add(last)
                listing.left.append((path, self._reason(line)))

    def distfile(self, paths: Iterable[str]) -> str:
        """Return the text of a distfile that sends tree paths to where they are here.

        Raises:
            UnwritableError: one of them cannot be said in it.
        """
        distribution = self.distribution(list(paths))
        for _, why in distribution.unwritable:
            raise UnwritableError(why)
        return distribution.text

    def distribution(
        self,
        paths: Sequence[str],
        directories: Collection[str] | None = None,
        gone: Sequence[str] = (),
        left: Sequence[str] = (),
        destination: str = "",
    ) -> Distribution:
        """Return the distfile of one push.

        rdist sends a directory that is named with everything below it, but removes a named path that is gone only as
        a part of its directory. So its directory is distributed with expressions that leave out everything else;
        likewise for a name that cannot be written.

        Args:
            paths: tree paths to send, each of which is there and not left out.
            directories: those of them that are directories; None looks at none, and all may be.
            gone: tree paths to remove; the directory of each is there.
            left: tree paths that are left out for other reasons than this skeleton's.
            destination: the tree's directory on the server; "" where it is the same as here.
        """
        work = _Distribution(self.top, destination.rstrip("/") or self.top, self._options)
        excepted = work.excepted(self._excepted, left)
        whole = [path for path in paths if directories is None or path in directories]
        hidden = {path: why for path in paths if (why := work.unwritable(path))}
        work.send(SEND, [path for path in paths if path not in hidden], excepted, ())
        work.through(SEND, hidden, excepted, ())
        work.send(REMOVE, [path for path in whole if path not in hidden], excepted, ("remove",))
        work.through(REMOVE, [*(path for path in whole if path in hidden), *gone], excepted, ("remove",))
        head = f"# Made by infocluster{' from ' + names.printable(self.file) if self.file else ''}.\n"
        return Distribution(
            head + distfile.printed(work.entries),
            SEND in _labels(work.entries),
            REMOVE in _labels(work.entries),
            list(work.failed.items()),
        )

    def _reason(self, line: int) -> LeftOut:
        return LeftOut(f"{self.file}, line {line}, leaves it out")


def _labels(entries: Iterable[distfile.Entry]) -> set[str]:
    return {entry.label for entry in entries if isinstance(entry, Distribute)}


def located(name: str) -> str:
    """Return the path of a skeleton that [[servers]] names: it lies beside the settings file."""
    return os.path.join(os.path.dirname(os.path.abspath(config.settings_file())), name)


class _Reader:
    """The entries of a skeleton, taken up one after the other as rdist does."""

    def __init__(self, result: Skeleton, file: str, top: str) -> None:
        self.result = result
        self.file = file
        self.top = top
        self.variables: dict[str, tuple[str, ...]] = {}
        # Where it cannot be written there is no such variable, and names count from it without.
        with contextlib.suppress(UnwritableError):
            self.variables[TOP] = (distfile.plain(top),)
        self.found = False

    def read(self, entries: Iterable[distfile.Entry]) -> None:
        line = 1
        for entry in entries:
            line = entry.line
            if isinstance(entry, distfile.Variable):
                self.variable(entry)
            elif isinstance(entry, distfile.Compare):
                self.fail(line, "no entry with ::, which a push has no use for", "one")
            else:
                self.distribute(entry)
        if not self.found:
            self.fail(line, f"an entry ${{{FILES}}} -> ${{{HOSTS}}}", "the end of the file")

    def variable(self, entry: distfile.Variable) -> None:
        # The option -d of rdist overrides these in the file.
        if entry.name in (FILES, HOSTS):
            return
        if entry.name in self.variables:
            self.fail(entry.line, "a variable once", f"{entry.name} again")
        value = entry.names.left
        if entry.names.operator:
            value = tuple(distfile.plain(name) for name in self.expanded(entry.names, entry.line))
        self.variables[entry.name] = value

    def distribute(self, entry: Distribute) -> None:
        if self.found:
            self.fail(entry.line, "one entry in a skeleton", "another")
        self.found = True
        if entry.sources != Names((f"${{{FILES}}}",)):
            self.fail(entry.line, f"${{{FILES}}} alone as the list of files", "something else")
        if entry.hosts != Names((f"${{{HOSTS}}}",)):
            self.fail(entry.line, f"${{{HOSTS}}} alone as the list of hosts", "something else")
        for command in entry.commands:
            self.command(command)
        try:
            self.result._excepted.compile()
        except basicre.BadPatternError as error:
            self.fail(entry.line, str(error), "these")

    def command(self, command: Command) -> None:
        if isinstance(command, Install):
            self.install(command)
        elif isinstance(command, distfile.Special):
            chosen = None
            if command.names is not None:
                chosen = Paths(self.top)
                self.paths(command.names, command.line, chosen)
                chosen.compile()
            once = command.command == "cmdspecial"
            self.result.specials.append(Special(command.text, once, chosen))
        elif command.command == "notify":
            self.result.notify += self.expanded(command.names, command.line)
        elif command.command == "except":
            self.paths(command.names, command.line, self.result._excepted)
        else:
            for pattern in self.expanded(command.names, command.line, True):
                try:
                    basicre.compiled([os.fsencode(pattern)])
                except basicre.BadPatternError as error:
                    self.fail(command.line, str(error), names.shown(pattern, 60))
                self.result._excepted.expressions.append((os.fsencode(pattern), command.line))

    def install(self, command: Install) -> None:
        if command.destination is not None:
            self.fail(command.line, "install without a name: [[servers]] destination has it", "one")
        for option in command.options:
            if option in _REFUSED:
                self.fail(command.line, "an option that a push can have", option)
        self.result._options = tuple(option for option in command.options if option not in _DROPPED)

    def paths(self, listed: Names, line: int, into: Paths) -> None:
        for word in self.expanded(listed, line):
            try:
                for name in basicre.braces(word) if word not in ("{", "{}") else (word,):
                    path = self.below(name, line)
                    if any(character in _WILD for character in path):
                        start = basicre.quoted(os.fsencode(self.top) + b"/")
                        for pattern in basicre.of_glob(os.fsencode(path)):
                            into.expressions.append((b"^" + start + pattern[1:], line))
                    else:
                        into.exact.setdefault(path, line)
            except basicre.BadPatternError as error:
                self.fail(line, str(error), names.shown(word, 60))

    def below(self, name: str, line: int) -> str:
        """Return the tree path of a name, which may have wildcards."""
        path = name
        if name.startswith("/"):
            if not name.startswith(self.top + "/"):
                self.fail(line, f"a path below {self.top}", names.shown(name, 60))
            path = name[len(self.top) + 1 :]
        try:
            if path.startswith("~"):
                raise UsageError
            return names.tree_path(path)
        except UsageError:
            self.fail(
                line,
                f"a path of the production tree, such as world/private or {self.top}/world/private",
                names.shown(name, 60),
            )

    def expanded(self, listed: Names, line: int, is_pattern: bool = False) -> list[str]:
        return distfile.expanded(listed, self.variables, f"{self.file}:{line}", is_pattern)

    def fail(self, line: int, expected: str, found: str) -> NoReturn:
        raise ConfigError(f"{self.file}:{line}: expected {expected}, found {found}")


class _Distribution:
    """The entries of one push's distfile."""

    def __init__(self, top: str, destination: str, options: tuple[str, ...]) -> None:
        self.top = top
        self.destination = destination
        self.options = options
        self.entries: list[distfile.Entry] = []
        self.failed: dict[str, str] = {}

    def unwritable(self, path: str) -> str:
        """Return why a path cannot be named as a source or a destination, or ""."""
        try:
            distfile.literal(f"{self.top}/{path}" if path else self.top)
            distfile.plain(f"{self.destination}/{path}" if path else self.destination)
        except UnwritableError as error:
            return str(error)
        return ""

    def excepted(self, paths: Paths, left: Sequence[str]) -> tuple[Command, ...]:
        """Return the commands that leave out what a skeleton and the state of the files leave out."""
        exact, patterns = [], [pattern for pattern, _ in paths.expressions]
        for path in (*paths.exact, *left):
            # rdist itself refuses names with a newline.
            if "\n" in path:
                continue
            whole = f"{self.top}/{path}"
            # A name with wildcards would be looked for here, and its directory may be missing.
            if self.unwritable(path) or any(character in _WILD for character in whole):
                patterns.append(b"^" + basicre.quoted(os.fsencode(whole)) + b"$")
            else:
                exact.append(distfile.plain(whole))
        return (*_listed("except", exact), *self.patterns(patterns))

    def patterns(self, patterns: Sequence[bytes]) -> tuple[Command, ...]:
        return tuple(_listed("except_pat", [distfile.plain(os.fsdecode(pattern)) for pattern in patterns]))

    def send(self, label: str, paths: Sequence[str], excepted: tuple[Command, ...], more: tuple[str, ...]) -> None:
        """Add entries for paths that can be named."""
        if self.destination == self.top:
            for part in distfile.split([distfile.literal(f"{self.top}/{path}") for path in paths]):
                self.add(label, part, None, excepted, more)
            return
        beside: dict[str, list[str]] = {}
        for path in paths:
            beside.setdefault(path.rpartition("/")[0], []).append(path)
        for directory, several in beside.items():
            for part in distfile.split(several):
                # One source gets the destination's name, several go into a directory of that name.
                under = part[0] if len(part) == 1 else directory
                self.add(label, tuple(distfile.literal(f"{self.top}/{path}") for path in part), under, excepted, more)

    def through(self, label: str, paths: Iterable[str], excepted: tuple[Command, ...], more: tuple[str, ...]) -> None:
        """Add entries for paths that can only be reached through the directory above them."""
        above: dict[str, list[str]] = {}
        for path in paths:
            directory = path.rpartition("/")[0]
            while directory and self.unwritable(directory):
                directory = directory.rpartition("/")[0]
            why = self.unwritable(directory)
            try:
                if why:
                    raise UnwritableError(why)
                self.patterns(self.all_but(directory, [path]))
            except UnwritableError as error:
                self.failed[path] = str(error)
            else:
                above.setdefault(directory, []).append(path)
        for directory, several in above.items():
            source = distfile.literal(f"{self.top}/{directory}" if directory else self.top)
            others = self.patterns(self.all_but(directory, several))
            self.add(label, (source,), directory, (*others, *excepted), more)

    def all_but(self, directory: str, paths: Sequence[str]) -> list[bytes]:
        start = len(directory) + 1 if directory else 0
        whole = os.fsencode(f"{self.top}/{directory}" if directory else self.top)
        return basicre.all_but(whole, [os.fsencode(path[start:]) for path in paths])

    def add(
        self,
        label: str,
        sources: tuple[str, ...],
        under: str | None,
        excepted: tuple[Command, ...],
        more: tuple[str, ...],
    ) -> None:
        """Add an entry; ``under`` is the tree path its destination has, None where that is the sources' own."""
        destination = None
        if under is not None and self.destination != self.top:
            destination = Names((distfile.plain(f"{self.destination}/{under}" if under else self.destination),))
        install = Install((*self.options, *more), destination)
        self.entries.append(Distribute(Names(sources), Names((f"${{{HOSTS}}}",)), (install, *excepted), label))


def _listed(command: str, words: Sequence[str]) -> Iterator[Listed]:
    for part in distfile.split(words):
        yield Listed(command, Names(part))
