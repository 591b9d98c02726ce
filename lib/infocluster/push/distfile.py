# SPDX-License-Identifier: Apache-2.0
"""The grammar of rdist's distfiles: a text becomes a small tree, and a tree a text that rdist reads as the same.

Shape: a distfile is a sequence of entries; blanks, tabs and newlines only separate::

    # a comment, from a # that begins a word to the end of the line
    HOSTS = ( web1 web2 )
    pages: ( /www/world ) -> ${HOSTS}
        install -oremove,nochkowner ;
        except /www/world/private ;
        except_pat ( \\\\.bak\\$ /RCS/ ) ;
        cmdspecial "systemctl reload apache2" ;
    ( /www/world ) :: /var/run/stamp notify webmaster ;

    A list is a NAME or ``( NAME ... )``, or two of them with one ``+``, ``-`` or ``&`` between them. A name ends at a
    blank, quote, parenthesis, ``=``, ``;`` or ``:``; a backslash takes the next character as it is. ``$x`` and
    ``${name}`` stand for a variable's names; a name is multiplied out over them. A STRING stands in double quotes and
    may go on over line ends, which become blanks.

In the tree a name is a text in which `QUOTE` stands before a ``[ ] { } * ? $`` that a backslash took as it is; all
other characters are themselves. rdist 6.1.5 has three faults that this module knows of:

* it drops a ``[ ] { } * ?`` that stands behind a backslash: `expanded` refuses such a name, and `literal` writes
  them as classes of one character, ``[[]``;
* its own mark for a quoted character is the byte 0xA0, so a name that has it (the second byte of ``à``) cannot be
  written at all;
* names with both ``$`` and one of ``[ { * ?`` are taken for others.

Source: rdist(1), rdist 6.1.5 as it runs.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from infocluster.errors import BadInputError, ConfigError
from infocluster.names import shown

QUOTE = "\0"
NAMES_LIMIT = 2047
WORD_LIMIT_BYTES = 3498

COMMANDS = ("install", "notify", "except", "except_pat", "special", "cmdspecial")
OPTIONS = frozenset(
    (
        *("chknfs", "chkreadonly", "chksym", "compare", "defgroup", "defowner", "follow", "history", "ignlnks"),
        *("nochkgroup", "nochkmode", "nochkowner", "nodescend", "noexec", "numchkgroup", "numchkowner", "quiet"),
        *("remove", "savetargets", "sparse", "updateperm", "verify", "whole", "younger"),
    )
)
OLD_OPTIONS = {
    "v": "verify",
    "N": "chknfs",
    "O": "chkreadonly",
    "q": "quiet",
    "b": "compare",
    "r": "nodescend",
    "R": "remove",
    "s": "savetargets",
    "w": "whole",
    "y": "younger",
    "h": "follow",
    "i": "ignlnks",
    "x": "noexec",
}

_QUOTABLE = "[]{}*?$"
_WILD = "[{*?"
_ENDS = " \"'\t()=;:\n"
_BLANKS = " \t\n"
_QUOTE_BYTE = 0xA0
# How often variables may be put in for one list; more are variables that hold each other.
_STEPS_LIMIT = 20_000


class UnwritableError(BadInputError):
    """A name, a list or a string cannot be said in a distfile; the message says why."""


@dataclass(frozen=True, slots=True)
class Names:
    """A list: ``left``, or ``left`` and ``right`` with an operator (``+``, ``-`` or ``&``) between them."""

    left: tuple[str, ...]
    operator: str = ""
    right: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Install:
    """``install``: how files get there, and under which name. Options are words without their dash."""

    options: tuple[str, ...] = ()
    destination: Names | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Listed:
    """``notify``, ``except`` or ``except_pat`` with its list."""

    command: str
    names: Names
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Special:
    """``special`` or ``cmdspecial``: a shell command, for the files of a list or for all."""

    command: str
    text: str
    names: Names | None = None
    line: int = field(default=0, compare=False)


Command = Install | Listed | Special


@dataclass(frozen=True, slots=True)
class Variable:
    """``NAME = list``."""

    name: str
    names: Names
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Distribute:
    """``sources -> hosts commands``, with its label or ""."""

    sources: Names
    hosts: Names
    commands: tuple[Command, ...] = ()
    label: str = ""
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """``sources :: stamp commands``, with its label or "": what is newer than the file ``stamp``."""

    sources: Names
    stamp: str
    commands: tuple[Command, ...] = ()
    label: str = ""
    line: int = field(default=0, compare=False)


Entry = Variable | Distribute | Compare


def parse(text: str, file: str) -> tuple[Entry, ...]:
    """Return the entries of a distfile.

    Args:
        text: its content; bytes that are not UTF-8 as `os.fsdecode` has them.
        file: its name, for messages.

    Raises:
        ConfigError: ``FILE:LINE: expected WHAT, found WHAT`` for the first thing that rdist would not take, or that
            it would take for something else than it looks like.
    """
    return tuple(_Parser(text, file).entries())


def printed(entries: Sequence[Entry]) -> str:
    """Return the text of a distfile, which `parse` and rdist read as these entries.

    Raises:
        UnwritableError: a name, list or string cannot be written.
    """
    return "".join(_entry(entry) + "\n" for entry in entries)


def literal(path: str) -> str:
    """Return the name that in a list of files means exactly this path.

    Args:
        path: a path as it is on the disk. Where it has wildcards it has to exist when rdist reads the distfile.

    Raises:
        UnwritableError: there is no such name.
    """
    wild = any(character in _WILD for character in path)
    if wild and "$" in path:
        raise UnwritableError(f"cannot write {shown(path)} in a distfile: it has both $ and one of [ {{ * ?")
    name = "".join(f"[{character}]" if character in _WILD else character for character in path)
    return plain(name)


def plain(text: str) -> str:
    """Return a text as a name in which no ``$`` stands for a variable.

    Raises:
        UnwritableError: there is no such name.
    """
    name = text.replace("$", QUOTE + "$")
    _word(name)
    return name


def split(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield names in as many parts as their number takes: a list of rdist holds 2047."""
    for start in range(0, len(names), NAMES_LIMIT):
        yield tuple(names[start : start + NAMES_LIMIT])


def definition(text: str) -> tuple[str, tuple[str, ...]]:
    """Return name and value of a variable as the option ``-d`` gives it: ``name``, ``name=value``, ``name=(a b)``.

    Raises:
        BadInputError: it has no name.
    """
    name, _, value = text.partition("=")
    if not name:
        raise BadInputError(f"cannot read {shown(text)}: expected NAME=VALUE")
    if value.startswith("("):
        return name, tuple(value[1:].partition(")")[0].split())
    return name, (value,) if value else ()


def expanded(
    names: Names, variables: Mapping[str, tuple[str, ...]], place: str, is_pattern: bool = False
) -> list[str]:
    """Return the names of a list with variables put in, the operator done and no quote marks left.

    Wildcards are still there: what they stand for is not this module's.

    Args:
        names: the list.
        variables: each one's names, as the tree has them.
        place: ``FILE:LINE``, for messages.
        is_pattern: whether they are regular expressions, for the advice in messages.

    Raises:
        ConfigError: a variable that is not set or holds itself; a character that rdist would drop; over 2047 names.
    """
    work = _Expansion(variables, place, is_pattern)
    left = work.all(names.left)
    if not names.operator:
        return left
    right = work.all(names.right)
    if names.operator == "-":
        return [name for name in left if name not in right]
    if names.operator == "&":
        return [name for name in left if name in right]
    return left + [name for name in right if name not in left]


class _Expansion:
    """The variables of one list being put in."""

    def __init__(self, variables: Mapping[str, tuple[str, ...]], place: str, is_pattern: bool) -> None:
        self.variables = variables
        self.place = place
        self.is_pattern = is_pattern
        self.steps = 0

    def all(self, names: Sequence[str]) -> list[str]:
        result: list[str] = []
        for name in names:
            for each in self.one(name, 0):
                if len(result) == NAMES_LIMIT:
                    self.fail(f"at most {NAMES_LIMIT} names", "more")
                result.append(each.replace(QUOTE, ""))
        return result

    def one(self, name: str, depth: int) -> Iterator[str]:
        self.steps += 1
        if depth > 100 or self.steps > _STEPS_LIMIT:
            self.fail("variables that do not hold themselves", shown(name.replace(QUOTE, "\\")))
        self.refuse_dropped(name)
        place = name.find("$")
        if place < 0 or name[place - 1 : place] == QUOTE:
            # rdist looks at the first $ alone.
            if any(name[spot - 1] != QUOTE for spot in _places(name, "$", place + 1)):
                self.fail("variables before a quoted $", shown(name.replace(QUOTE, "\\")))
            if name:
                yield name
            return
        variable, tail = self.variable(name, place)
        values = self.variables.get(variable)
        if values is None:
            self.fail("a variable that is set", f"${{{variable}}}")
        for value in values or ("",):
            yield from self.one(name[:place] + value + tail, depth + 1)

    def variable(self, name: str, place: int) -> tuple[str, str]:
        rest = name[place + 1 :]
        if rest.startswith("{"):
            end = rest.find("}")
            if end < 0:
                self.fail("a } behind ${", shown(name.replace(QUOTE, "\\")))
            variable, tail = rest[1:end], rest[end + 1 :]
        else:
            variable, tail = rest[:1], rest[1:]
        if not variable or QUOTE in variable:
            self.fail("a variable's name behind $", shown(name.replace(QUOTE, "\\")))
        return variable, tail

    def refuse_dropped(self, name: str) -> None:
        place = name.find(QUOTE)
        while place >= 0:
            character = name[place + 1 : place + 2]
            if character != "$":
                instead = f"\\\\{character}" if self.is_pattern else f"{character} alone or the class [{character}]"
                self.fail(instead, f"\\{character}, of which rdist takes nothing")
            place = name.find(QUOTE, place + 1)

    def fail(self, expected: str, found: str) -> NoReturn:
        raise ConfigError(f"{self.place}: expected {expected}, found {found}")


def _places(text: str, character: str, start: int) -> Iterator[int]:
    place = text.find(character, start)
    while place >= 0:
        yield place
        place = text.find(character, place + 1)


class _Token(NamedTuple):
    """A word of a distfile; ``kind`` is "name", "string", "option", "end", a command, or the mark itself."""

    kind: str
    text: str
    line: int

    def words(self) -> str:
        if self.kind == "end":
            return "the end of the file"
        if self.kind == "string":
            return "a string in quotes"
        return shown(self.text.replace(QUOTE, "\\"), 60)


class _Parser:
    """One distfile being read."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.place = 0
        self.line = 1
        self.depth = 0
        self.token = self.read()

    def entries(self) -> Iterator[Entry]:
        while self.token.kind != "end":
            yield self.entry()

    def entry(self) -> Entry:
        first = self.token
        label = ""
        if first.kind == "name":
            self.next()
            if self.token.kind == "=":
                self.next()
                return Variable(first.text, self.names("a list"), first.line)
            if self.token.kind == ":":
                label = first.text
                self.next()
                sources = self.names("a list of files")
            else:
                sources = self.operation((first.text,))
        else:
            sources = self.names("a variable, a label or a list of files")
        if self.token.kind == "->":
            self.next()
            hosts = self.names("a list of hosts")
            return Distribute(sources, hosts, tuple(self.commands()), label, first.line)
        if self.token.kind != "::":
            self.fail("=, :, -> or ::" if first.kind == "name" and not label else "-> or ::")
        self.next()
        stamp = self.take("name", "the name of a time stamp file").text
        return Compare(sources, stamp, tuple(self.commands()), label, first.line)

    def commands(self) -> Iterator[Command]:
        while self.token.kind in COMMANDS:
            command, line = self.token.kind, self.token.line
            self.next()
            if command == "install":
                yield Install(tuple(self.options()), self.optional_names(), line)
            elif command in ("special", "cmdspecial"):
                names = self.optional_names()
                yield Special(command, self.take("string", "a command in quotes").text, names, line)
            else:
                yield Listed(command, self.names("a list"), line)
            self.take(";", "; at the end of a command")
        if self.token.kind not in ("name", "(", "end"):
            self.fail("a command or an entry")

    def options(self) -> Iterator[str]:
        while self.token.kind == "option":
            text = self.token.text.replace(QUOTE, "")
            if text[1] == "o":
                for word in text[2:].split(","):
                    name, _, value = word.partition("=")
                    name = name.lower()
                    if name not in OPTIONS and name.removeprefix("no") not in OPTIONS:
                        self.fail("an option of rdist")
                    yield f"{name}={value}" if value else name
            elif len(text) == 2 and text[1] in OLD_OPTIONS:
                yield OLD_OPTIONS[text[1]]
            else:
                self.fail("an option of rdist")
            self.next()

    def optional_names(self) -> Names | None:
        return self.names("a list") if self.token.kind in ("name", "(") else None

    def names(self, expected: str) -> Names:
        return self.operation(self.simple(expected))

    def operation(self, left: tuple[str, ...]) -> Names:
        operator = self.token.kind
        if operator not in ("+", "-", "&"):
            return Names(left)
        self.next()
        names = Names(left, operator, self.simple("a list"))
        if self.token.kind in ("+", "-", "&"):
            self.fail("one operator in a list")
        return names

    def simple(self, expected: str) -> tuple[str, ...]:
        if self.token.kind == "name":
            return (self.next().text,)
        if self.token.kind != "(":
            self.fail(expected)
        self.next()
        names = []
        while self.token.kind == "name":
            names.append(self.next().text)
        self.take(")", "a name or )")
        return tuple(names)

    def take(self, kind: str, expected: str) -> _Token:
        if self.token.kind != kind:
            self.fail(expected)
        return self.next()

    def next(self) -> _Token:
        token = self.token
        self.token = self.read()
        return token

    def fail(self, expected: str) -> NoReturn:
        self.refuse(expected, self.token.words(), self.token.line)

    def refuse(self, expected: str, found: str, line: int) -> NoReturn:
        raise ConfigError(f"{self.file}:{line}: expected {expected}, found {found}")

    def read(self) -> _Token:
        """Read the next token."""
        self.skip()
        text, place, line = self.text, self.place, self.line
        if place == len(text):
            return _Token("end", "", line)
        first = text[place]
        pair = text[place : place + 2]
        if pair in ("->", "::"):
            self.place += 2
            return _Token(pair, pair, line)
        if first in "=;+&():":
            self.place += 1
            self.depth += (first == "(") - (first == ")")
            return _Token(first, first, line)
        if first == '"':
            return _Token("string", self.string(), line)
        return self.name()

    def skip(self) -> None:
        text = self.text
        while self.place < len(text):
            character = text[self.place]
            if character == "#":
                end = text.find("\n", self.place)
                self.place = len(text) if end < 0 else end
                continue
            if character not in _BLANKS:
                return
            self.line += character == "\n"
            self.place += 1

    def string(self) -> str:
        line, text, place = self.line, self.text, self.place + 1
        result = []
        while True:
            character = text[place : place + 1]
            if character == '"':
                break
            if character == "\\":
                place += 1
                character = text[place : place + 1]
            if not character:
                self.refuse('" at the end of a command', "the end of the file", line)
            if character == QUOTE:
                self.refuse("a text", "a zero byte", self.line)
            self.line += character == "\n"
            result.append(" " if character == "\n" else character)
            place += 1
        self.place = place + 1
        string = "".join(result)
        if len(_bytes(string)) > WORD_LIMIT_BYTES:
            self.refuse(f"a command of at most {WORD_LIMIT_BYTES} bytes", "a longer one", line)
        return string

    def name(self) -> _Token:
        text, place, line = self.text, self.place, self.line
        result = []
        # A character that cannot begin a token may stand there all the same, such as an apostrophe.
        while place < len(text) and (place == self.place or text[place] not in _ENDS):
            character = text[place]
            if character == "\\":
                place += 1
                character = text[place : place + 1]
                if not character or character == "\n":
                    self.refuse("a character behind \\", "the end of the line", line)
                if character in _QUOTABLE:
                    result.append(QUOTE)
            elif character == "\r":
                self.refuse("lines that end in a newline alone", "a carriage return", line)
            if character == QUOTE:
                self.refuse("a text", "a zero byte", line)
            result.append(character)
            place += 1
        self.place = place
        word = "".join(result)
        content = _bytes(word)
        if len(content) > WORD_LIMIT_BYTES:
            self.refuse(f"a name of at most {WORD_LIMIT_BYTES} bytes", "a longer one", line)
        if _QUOTE_BYTE in content:
            self.refuse("no byte 0xA0, which rdist takes for its own quote mark", shown(word, 60), line)
        if word == "-":
            return _Token("-", word, line)
        if word.startswith("-") and self.depth <= 0:
            return _Token("option" if len(word) > 1 else "-", word, line)
        return _Token(word if word in COMMANDS else "name", word, line)


def _entry(entry: Entry) -> str:
    if isinstance(entry, Variable):
        return f"{_bare(entry.name)} = {_list(entry.names)}"
    label = f"{_bare(entry.label)}: " if entry.label else ""
    if isinstance(entry, Distribute):
        head = f"{label}{_list(entry.sources)} -> {_list(entry.hosts)}"
    else:
        head = f"{label}{_list(entry.sources)} :: {_bare(entry.stamp)}"
    return "".join([head, *(f"\n\t{_command(command)} ;" for command in entry.commands)])


def _command(command: Command) -> str:
    if isinstance(command, Install):
        parts = ["install"]
        if command.options:
            parts.append("-o" + _word(",".join(command.options)))
        if command.destination is not None:
            parts.append(_list(command.destination))
        return " ".join(parts)
    if isinstance(command, Listed):
        return f"{command.command} {_list(command.names)}"
    names = f"{_list(command.names)} " if command.names is not None else ""
    return f"{command.command} {names}{_string(command.text)}"


def _list(names: Names) -> str:
    if names.operator:
        return f"{_simple(names.left)} {names.operator} {_simple(names.right)}"
    return _simple(names.left)


def _simple(names: tuple[str, ...]) -> str:
    if len(names) > NAMES_LIMIT:
        raise UnwritableError(f"cannot write a list of {len(names)} names: rdist takes {NAMES_LIMIT}")
    words = [_word(name) for name in names]
    if len(words) == 1 and not names[0].startswith("-"):
        return words[0]
    line = " ".join(words)
    return f"( {line} )" if len(line) < 80 else "(" + "".join(f"\n\t\t{word}" for word in words) + "\n\t)"


def _bare(name: str) -> str:
    if name.startswith("-"):
        raise UnwritableError(f"cannot write {shown(name)} in a distfile: here it would be an option")
    return _word(name)


def _word(name: str) -> str:
    """Return a name with the backslashes that it takes."""
    if not name or name == "-" or name in COMMANDS:
        raise UnwritableError(f"cannot write {shown(name)} in a distfile: it means something else there")
    content = _bytes(name)
    if len(content) > WORD_LIMIT_BYTES:
        raise UnwritableError(f"cannot write {shown(name)} in a distfile: it is over {WORD_LIMIT_BYTES} bytes")
    if _QUOTE_BYTE in content:
        raise UnwritableError(f"cannot write {shown(name)} in a distfile: it has the byte 0xA0")
    if "\n" in name:
        raise UnwritableError(f"cannot write {shown(name)} in a distfile: it has a newline")
    if name.isascii() and name.replace("/", "a").replace(".", "a").replace("_", "a").isalnum():
        return name
    result: list[str] = []
    quoted = False
    for place, character in enumerate(name):
        if character == QUOTE:
            if quoted or name[place + 1 : place + 2] not in tuple(_QUOTABLE):
                raise UnwritableError(f"cannot write {shown(name)} in a distfile: it has a zero byte")
            quoted = True
            continue
        if quoted or character in _ENDS or character in "\\\r" or (not result and character in "+&#-"):
            result.append("\\")
        result.append(character)
        quoted = False
    return "".join(result)


def _string(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise UnwritableError(f"cannot write the command {shown(text)} in a distfile: it has a newline or zero byte")
    if len(_bytes(text)) > WORD_LIMIT_BYTES:
        raise UnwritableError(f"cannot write the command {shown(text)}: it is over {WORD_LIMIT_BYTES} bytes")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _bytes(text: str) -> bytes:
    return os.fsencode(text) if not text.isascii() else text.encode("ascii")
