# SPDX-License-Identifier: Apache-2.0
"""Arguments of a program, read by the usage in its own docstring: there is no second list of options.

Shape: the usage begins with ``Usage:`` at the start of a line and goes on over lines that are indented deeper, as in
    ``Usage: wwwpush [-show] [-timeout S]
                    [-json] PATH...``
    After the program's name each word is one of

    ==================  ===========================================  ======================
    ``[-show]``         an option that is given or not               ``False`` or ``True``
    ``[-timeout S]``    an option with a value                       ``None`` or a text
    ``NAME``            one argument                                 a text
    ``[NAME]``          one argument or none                         ``None`` or a text
    ``NAME...``         one argument or more                         a list of texts
    ``[NAME...]``       any number of arguments                      a list of texts
    ==================  ===========================================  ======================

    and is found under its name in small letters, as in
    ``{"show": True, "timeout": None, "json": False, "path": ["world"]}``.

An option is written ``-show`` or ``--show``, a value ``-timeout 5`` or ``-timeout=5``; no abbreviations. Options may
stand behind arguments; ``--`` ends them. Only the ``=`` gives a value that begins with a ``-``.

Nothing is imported that an interpreter has not loaded at its start: a wrong option is answered at once.

Source: getopt_long_only(3); POSIX.1-2017 XBD 12.2, guidelines 10 and 13.
"""

from infocluster.errors import UsageError
from infocluster.names import shown

Values = dict[str, "bool | str | list[str] | None"]

HELP = frozenset({"-help", "--help", "-h"})
VERSION = frozenset({"-version", "--version"})


class Usage:
    """What a program takes.

    Attributes:
        line: the usage in one line, without ``Usage:``.
        options: name in small letters to whether it takes a value.
        positionals: (name, least, whether there may be any number) in their order.
    """

    __slots__ = ("line", "options", "positionals")

    def __init__(self, line: str) -> None:
        self.line = line
        self.options: dict[str, bool] = {}
        self.positionals: list[tuple[str, int, bool]] = []


def asked(arguments: list[str]) -> str | None:
    """Return ``"help"`` or ``"version"`` where that is asked for before any ``--``, else None."""
    ahead = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not HELP.isdisjoint(ahead):
        return "help"
    return None if VERSION.isdisjoint(ahead) else "version"


def of(manual: str) -> Usage:
    """Return what the usage in a docstring declares.

    Raises:
        ValueError: there is no usage, or it is not in the form above: the program is wrong, not its caller.
    """
    usage = Usage(" ".join(_words(manual)))
    words = _grouped(usage.line)[1:]
    for word in words:
        _declare(usage, word)
    names = [*usage.options, *(name for name, _, _ in usage.positionals)]
    if len(set(names)) < len(names):
        raise ValueError(f"cannot read the usage {shown(usage.line)}: a name stands in it twice")
    if sum(many for _, _, many in usage.positionals) > 1:
        raise ValueError(f"cannot read the usage {shown(usage.line)}: only one name may have '...'")
    return usage


def parse(usage: Usage, arguments: list[str]) -> Values:
    """Return the arguments by name.

    Args:
        usage: what `of` returned.
        arguments: those of the command line, without the program.

    Raises:
        UsageError: one is unknown, missing, or one too many.
    """
    values: Values = {name: None if takes_value else False for name, takes_value in usage.options.items()}
    rest: list[str] = []
    place = 0
    while place < len(arguments):
        word = arguments[place]
        place += 1
        if word == "--":
            rest += arguments[place:]
            break
        if word == "-" or not word.startswith("-"):
            rest.append(word)
            continue
        name, equals, value = _bare(word).partition("=")
        if name not in usage.options:
            raise UsageError(f"cannot use {shown(word)}: there is no such option")
        if not usage.options[name]:
            if equals:
                raise UsageError(f"cannot use {shown(word)}: -{name} takes no value")
            values[name] = True
            continue
        if not equals:
            if place == len(arguments) or _is_option(arguments[place]):
                raise UsageError(f"cannot use {shown(word)}: its value is missing")
            value = arguments[place]
            place += 1
        values[name] = value
    return values | _placed(usage, rest)


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _bare(option: str) -> str:
    return option[2:] if option.startswith("--") else option[1:]


def _placed(usage: Usage, rest: list[str]) -> Values:
    """Share out what is no option: each name its least, what is over from left to right."""
    spare = len(rest) - sum(least for _, least, _ in usage.positionals)
    values: Values = {}
    place = 0
    for name, least, many in usage.positionals:
        if place + least > len(rest):
            raise UsageError(f"cannot go on: {name.upper()} is missing")
        taken = least + (max(spare, 0) if many else min(max(spare, 0), 1 - least))
        spare -= taken - least
        found = rest[place : place + taken]
        place += taken
        values[name] = found if many else (found[0] if found else None)
    if place < len(rest):
        raise UsageError(f"cannot use {shown(rest[place])}: that is one argument too many")
    return values


def _words(manual: str) -> list[str]:
    words: list[str] = []
    margin = -1
    for line in manual.split("\n"):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if margin >= 0:
            if not text or indent <= margin:
                break
            words += text.split()
        elif text.startswith("Usage:"):
            margin = indent
            words += text.removeprefix("Usage:").split()
    if not words:
        raise ValueError("cannot read the usage: the docstring has no line 'Usage: PROGRAM ...'")
    return words


def _grouped(line: str) -> list[str]:
    """Return the words of a usage; what stands in brackets is one word."""
    words: list[str] = []
    is_open = False
    for word in line.split():
        if is_open:
            words[-1] += " " + word
        else:
            words.append(word)
        is_open = words[-1].startswith("[") and "]" not in words[-1]
    return words


def _declare(usage: Usage, word: str) -> None:
    inner = word[1:-1] if word.startswith("[") and word.endswith("]") else word
    many = inner.endswith("...")
    name, _, value = inner.removesuffix("...").partition(" ")
    plain = name.lstrip("-").replace("-", "").replace("_", "").isalnum() and (not value or value.isupper())
    if plain and name.startswith("-") and name.islower() and inner != word and not many:
        usage.options[name.lstrip("-")] = bool(value)
    elif plain and name.isupper() and not name.startswith("-") and not value:
        usage.positionals.append((name.lower(), int(inner == word), many))
    else:
        raise ValueError(f"cannot read the usage {shown(usage.line)}: {shown(word)} is not in the form of usage.py")
