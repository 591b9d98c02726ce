# SPDX-License-Identifier: Apache-2.0
"""Basic regular expressions, as ``except_pat`` of a distfile has them: matched here as rdist matches them there.

rdist compiles them with regcomp(3) and never leaves the C locale, so they are matched byte by byte, anywhere in a
path. `compiled` turns one into a pattern of `re`; what regcomp(3) leaves to the system's taste is refused
(``\\w``, ``\\<``), but ``\\+``, ``\\?`` and ``\\|`` are known. `of_glob` and `all_but` say wildcards and "all
but these" in this language, so that rdist and we test the same expression.

Source: regex(7), POSIX.1-2017 XBD 9.3; glob patterns of csh(1).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

_CLASSES: dict[str, Callable[[int], bool]] = {
    "alnum": lambda c: chr(c).isalnum(),
    "alpha": lambda c: chr(c).isalpha(),
    "blank": lambda c: c in b" \t",
    "cntrl": lambda c: c < 0x20 or c == 0x7F,
    "digit": lambda c: chr(c).isdigit(),
    "graph": lambda c: 0x20 < c < 0x7F,
    "lower": lambda c: chr(c).islower(),
    "print": lambda c: 0x20 <= c < 0x7F,
    "punct": lambda c: 0x20 < c < 0x7F and not chr(c).isalnum(),
    "space": lambda c: c in b" \t\n\v\f\r",
    "upper": lambda c: chr(c).isupper(),
    "xdigit": lambda c: c in b"0123456789abcdefABCDEF",
}
_SPECIAL = b".[\\*^$"
# In brackets each of these may mean more than itself, depending on where it stands.
_IN_BRACKETS = b"]^[\\-"
_REPEAT_LIMIT = 255
# A distfile cannot hold this byte; see distfile.py.
_UNWRITABLE = 0xA0


class BadPatternError(ValueError):
    """A pattern is none; the message says what was expected."""


def compiled(patterns: Sequence[bytes]) -> list[re.Pattern[bytes]]:
    """Return patterns for ``search``: one of them matches where any of the expressions does.

    Args:
        patterns: basic regular expressions.

    Raises:
        BadPatternError: one of them is none.
    """
    alone: list[bytes] = []
    together: list[bytes] = []
    for pattern in patterns:
        translation = _Translation(pattern)
        source = translation.source()
        (alone if translation.refers else together).append(source)
    if together:
        alone.append(b"|".join(b"(?:" + source + b")" for source in together))
    try:
        return [re.compile(source, re.DOTALL) for source in alone]
    except (re.error, OverflowError, RecursionError) as error:
        raise BadPatternError(f"a pattern that can be used ({error})") from None


def quoted(text: bytes) -> bytes:
    """Return the expression that matches exactly this text."""
    return b"".join(_literal(byte) for byte in text)


def of_glob(glob: bytes) -> list[bytes]:
    """Return the expressions that match exactly the paths that a glob stands for.

    ``*``, ``?`` and ``[a-z]`` never match a ``/``, nor a ``.`` at the beginning of a name; braces are not known here
    (see `braces`).

    Raises:
        BadPatternError: a ``[`` without its ``]``.
    """
    bodies = [b""]
    starts = [True]
    place = 0
    while place < len(glob):
        byte = glob[place : place + 1]
        place += 1
        if byte == b"[":
            members, place = _glob_class(glob, place)
            pieces = [bracket(members - {0x2F}), bracket(members - {0x2E, 0x2F})]
            bodies = [body + pieces[start] for body, start in zip(bodies, starts, strict=True)]
            starts = [False] * len(bodies)
        elif byte == b"?":
            bodies = [body + (b"[^./]" if start else b"[^/]") for body, start in zip(bodies, starts, strict=True)]
            starts = [False] * len(bodies)
        elif byte == b"*":
            # At the beginning of a name either something that is no dot, or nothing.
            pairs = list(zip(bodies, starts, strict=True))
            bodies = [body + (b"[^./][^/]*" if start else b"[^/]*") for body, start in pairs]
            bodies += [body for body, start in pairs if start]
            starts = [False] * len(pairs) + [True] * (len(bodies) - len(pairs))
        else:
            here = byte[0]
            if here == 0x2E:
                # A dot that is written out; nothing that a star left empty stands before it.
                kept = [
                    spot for spot, start in enumerate(starts) if not (start and glob[place - 2 : place - 1] == b"*")
                ]
                bodies = [bodies[spot] for spot in kept]
                starts = [starts[spot] for spot in kept]
            bodies = [body + _literal(here) for body in bodies]
            starts = [here == 0x2F] * len(bodies)
    # A star that is a whole name does not stand for nothing.
    return [b"^" + body + b"$" for body in bodies if body and not body.endswith(b"/")]


def braces(word: str) -> Iterator[str]:
    """Yield the words that a word with ``{a,b}`` stands for, each once for each alternative.

    Raises:
        BadPatternError: a ``{`` without its ``}``, or over 2047 words.
    """
    waiting = [word]
    count = 0
    while waiting:
        count += 1
        if count > 2047:
            raise BadPatternError("at most 2047 names from braces")
        head = waiting.pop()
        start = _outside_brackets(head, "{", 0)
        if start < 0:
            yield head
            continue
        parts, end = _alternatives(head, start)
        waiting += [head[:start] + part + head[end + 1 :] for part in reversed(parts)]


def bracket(members: Iterable[int]) -> bytes:
    """Return the bracket expression for a set of bytes, in which 0xA0 is never written."""
    wanted = set(members) - {0}
    if not wanted:
        return b"[^\x01-\xff]"
    others = set(range(1, 256)) - wanted
    if len(others) < len(wanted) and _UNWRITABLE not in others:
        return b"[^" + _brackets(others) + b"]"
    if _UNWRITABLE in wanted and len(wanted) < 128:
        return b"[^" + _brackets(others) + b"]"
    if wanted == {0x5E}:
        return b"\\^"
    return b"[" + _brackets(wanted) + b"]"


def all_but(directory: bytes, kept: Iterable[bytes]) -> list[bytes]:
    """Return expressions of which one matches each path below a directory, but for some and what is below those.

    Directories on the way to a path that is kept are not matched either; what else is in them is.

    Args:
        directory: a path without a slash at its end.
        kept: paths relative to it.
    """
    following: dict[bytes, set[int]] = {b"": set()}
    ends = set()
    for path in kept:
        ends.add(path)
        for length in range(len(path)):
            following.setdefault(path[:length], set()).add(path[length])
    start = b"^" + quoted(directory + b"/")
    result = []
    for prefix in sorted({*following, *ends}):
        if any(prefix.startswith(end + b"/") for end in ends):
            continue
        allowed = following.get(prefix, set()) | ({0x2F} if prefix in ends else set())
        here = start + quoted(prefix)
        result.append(here + bracket(set(range(1, 256)) - allowed))
        on_the_way = prefix in ends or 0x2F in allowed or prefix == b"" or prefix.endswith(b"/")
        if not on_the_way:
            result.append(here + b"$")
    return result


def _literal(byte: int) -> bytes:
    if byte == _UNWRITABLE:
        return bracket({byte})
    return b"\\" + bytes([byte]) if byte in _SPECIAL else bytes([byte])


def _brackets(members: set[int]) -> bytes:
    """Return what stands between the brackets; the first byte is never ``^`` unless it is the only one."""
    result = [b"]"] if 0x5D in members else []
    plain = sorted(members.difference(_IN_BRACKETS))
    start = 0
    for place in range(1, len(plain) + 1):
        if place == len(plain) or plain[place] != plain[place - 1] + 1:
            first, last = plain[start], plain[place - 1]
            if last - first > 1:
                result.append(bytes([first]) + b"-" + bytes([last]))
            else:
                result.append(bytes(range(first, last + 1)))
            start = place
    # A "[" before ".", ":" or "=" would begin a class, a "-" between two a range.
    result += [bytes([byte]) for byte in b"\\^[-" if byte in members]
    return b"".join(result)


def _glob_class(glob: bytes, place: int) -> tuple[set[int], int]:
    end = glob.find(b"]", place)
    if end <= place:
        raise BadPatternError("a ] for every [, with something between them; write [[] for the character")
    inner = glob[place:end]
    members: set[int] = set()
    spot = 0
    while spot < len(inner):
        if inner[spot + 1 : spot + 2] == b"-" and spot + 2 < len(inner):
            members.update(range(inner[spot], inner[spot + 2] + 1))
            spot += 3
        else:
            members.add(inner[spot])
            spot += 1
    return members, end + 1


def _outside_brackets(word: str, character: str, place: int) -> int:
    while place < len(word):
        if word[place] == character:
            return place
        if word[place] == "[":
            end = word.find("]", place)
            place = len(word) if end < 0 else end
        place += 1
    return -1


def _alternatives(word: str, start: int) -> tuple[list[str], int]:
    depth, place, begin = 0, start, start + 1
    parts = []
    while place < len(word):
        character = word[place]
        if character == "[":
            end = word.find("]", place)
            place = len(word) if end < 0 else end
        elif character == "{":
            depth += 1
        elif character == "," and depth == 1:
            parts.append(word[begin:place])
            begin = place + 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return [*parts, word[begin:place]], place
        place += 1
    raise BadPatternError("a } for every {; write [{] for the character")


class _Translation:
    """One expression on its way into the language of `re`."""

    def __init__(self, pattern: bytes) -> None:
        self.pattern = pattern
        self.place = 0
        self.closed: list[int] = []
        self.groups = 0
        self.refers = re.search(rb"\\[1-9]", pattern.replace(b"\\\\", b"")) is not None

    def source(self) -> bytes:
        if b"\0" in self.pattern:
            raise BadPatternError("no zero byte in a pattern")
        result = self.alternatives(0)
        if self.place < len(self.pattern):
            raise BadPatternError("a \\( before a \\)")
        return result

    def next(self, count: int = 1) -> bytes:
        return self.pattern[self.place : self.place + count]

    def alternatives(self, depth: int) -> bytes:
        if depth > 50:
            raise BadPatternError("at most 50 groups in each other")
        parts = [self.sequence(depth)]
        while self.next(2) == b"\\|":
            self.place += 2
            parts.append(self.sequence(depth))
        return b"|".join(parts)

    def sequence(self, depth: int) -> bytes:
        """Translate up to a ``\\)``, a ``\\|`` or the end; here alone ``^`` and a first ``*`` mean something else."""
        result: list[bytes] = []
        if self.next() == b"^":
            self.place += 1
            result.append(rb"\A")
        if self.next() == b"*":
            self.place += 1
            result.append(self.repeated(rb"\*"))
        while self.place < len(self.pattern) and self.next(2) not in (b"\\)", b"\\|"):
            if self.next() == b"$" and self.pattern[self.place + 1 : self.place + 3] in (b"", b"\\)", b"\\|"):
                self.place += 1
                result.append(rb"\Z")
                break
            result.append(self.repeated(self.atom(depth)))
        return b"".join(result)

    def atom(self, depth: int) -> bytes:
        byte = self.next()
        self.place += 1
        if byte == b".":
            return b"[^\\x00]"
        if byte == b"[":
            return self.bracket()
        if byte != b"\\":
            return re.escape(byte)
        byte = self.next()
        self.place += 1
        if byte == b"(":
            return self.group(depth)
        if byte in (b"{", b"+", b"?"):
            raise BadPatternError(f"something to repeat before \\{byte.decode()}")
        if b"1" <= byte <= b"9":
            if int(byte) not in self.closed:
                raise BadPatternError(f"a group before \\{byte.decode()}")
            return b"(?:\\" + byte + b")"
        if not byte:
            raise BadPatternError("a character behind \\")
        if byte.isalnum() or byte in b"<>`'" or byte in b"})":
            raise BadPatternError(f"nothing that differs from system to system, such as \\{byte.decode()}")
        return re.escape(byte)

    def group(self, depth: int) -> bytes:
        self.groups += 1
        number = self.groups
        inner = self.alternatives(depth + 1)
        if self.next(2) != b"\\)":
            raise BadPatternError("a \\) for every \\(")
        self.place += 2
        self.closed.append(number)
        return (b"(" if self.refers else b"(?:") + inner + b")"

    def repeated(self, atom: bytes) -> bytes:
        repetition = self.repetition()
        if not repetition:
            return atom
        if self.repetition():
            raise BadPatternError("one repetition of a thing")
        return b"(?:" + atom + repetition + b")"

    def repetition(self) -> bytes:
        if self.next() == b"*":
            self.place += 1
            return b"*"
        if self.next(2) in (b"\\+", b"\\?"):
            self.place += 2
            return self.pattern[self.place - 1 : self.place]
        return self.interval() if self.next(2) == b"\\{" else b""

    def interval(self) -> bytes:
        found = re.compile(rb"\\\{(\d{1,5})(,?)(\d{0,5})\\\}").match(self.pattern, self.place)
        if found is None or (found[3] and not found[2]):
            raise BadPatternError("\\{2\\}, \\{2,\\} or \\{2,5\\}")
        least, most = int(found[1]), int(found[3] or found[1])
        if not least <= most <= _REPEAT_LIMIT:
            raise BadPatternError(f"at most {_REPEAT_LIMIT} times, the smaller number first")
        self.place = found.end()
        return b"{%d%s%s}" % (least, found[2], found[3])

    def bracket(self) -> bytes:
        negated = self.next() == b"^"
        self.place += negated
        members: set[int] = set()
        first = True
        while first or self.next() != b"]":
            first = False
            if self.next(2) == b"[:":
                members.update(self.character_class())
                continue
            low = self.member()
            if self.next() == b"-" and self.next(2)[1:] not in (b"]", b""):
                self.place += 1
                high = self.member()
                if high < low:
                    raise BadPatternError("a range from less to more")
                members.update(range(low, high + 1))
            else:
                members.add(low)
        self.place += 1
        if negated:
            members = set(range(1, 256)) - members
        if not members:
            return b"(?!)"
        return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(members)) + b"]"

    def member(self) -> int:
        if self.next(2) in (b"[.", b"[="):
            mark = self.next(2)[1:]
            byte, end = self.pattern[self.place + 2 : self.place + 3], self.pattern[self.place + 3 : self.place + 5]
            if not byte or end != mark + b"]":
                raise BadPatternError("one character in [. .] or [= =]")
            self.place += 5
            return byte[0]
        byte = self.next()
        if not byte:
            raise BadPatternError("a ] for every [")
        self.place += 1
        return byte[0]

    def character_class(self) -> Iterator[int]:
        end = self.pattern.find(b":]", self.place)
        name = self.pattern[self.place + 2 : end].decode("ascii", "replace") if end >= 0 else ""
        if name not in _CLASSES:
            raise BadPatternError("a class such as [:alpha:]")
        self.place = end + 2
        is_member = _CLASSES[name]
        return (byte for byte in range(1, 128) if is_member(byte))
