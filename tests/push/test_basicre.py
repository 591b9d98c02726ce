# SPDX-License-Identifier: Apache-2.0
"""push.basicre: expressions match what regcomp(3) and grep match, in the C locale, byte by byte."""

import contextlib
import ctypes
import itertools
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infocluster.push import basicre

LIBC = ctypes.CDLL(None)
for function in (LIBC.newlocale, LIBC.uselocale):
    function.restype = ctypes.c_void_p
LIBC.uselocale.argtypes = [ctypes.c_void_p]
LIBC.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
C_LOCALE = LIBC.newlocale(0x1FBF, b"C", None)


@contextlib.contextmanager
def c_locale():
    """The C locale for this thread, as rdist has it."""
    before = LIBC.uselocale(C_LOCALE)
    try:
        yield
    finally:
        LIBC.uselocale(before)


class Regex:
    """An expression of the C library."""

    def __init__(self, pattern):
        self.buffer = ctypes.create_string_buffer(512)
        with c_locale():
            self.is_one = LIBC.regcomp(self.buffer, ctypes.c_char_p(pattern), 8) == 0

    def __call__(self, path):
        with c_locale():
            return LIBC.regexec(self.buffer, ctypes.c_char_p(path), 0, None, 0) == 0

    def __del__(self):
        if self.is_one:
            LIBC.regfree(self.buffer)


def regcomp(pattern):
    """Return a test for paths made by the C library, None where it refuses the pattern."""
    regex = Regex(pattern)
    return regex if regex.is_one else None


def found(patterns, path):
    return any(pattern.search(path) for pattern in basicre.compiled(patterns))


PATHS = [
    b"/www/world/a.bak",
    b"/www/world/axbak",
    b"/www/world/RCS",
    b"/www/world/RCS/a,v",
    b"/www/world/a b/c",
    b"/www/world/a*b",
    b"/www/world/a[1].html",
    b"/www/world/$x^y",
    b"/www/world/aaa",
    b"/www/world/abab",
    b"/www/world/core.4711",
    b"/www/world/Caf\xc3\xa9",
    b"/www/world/caf\xc3\xa0",
    b"/www/world/a\\b",
    b"/www/world/x]y-z",
    b"/www/world/{1,2}+?|",
    b"/www/world/.htaccess",
    b"/www/world/a~",
]


@pytest.mark.parametrize(
    "pattern",
    [
        rb"\.bak$",
        rb".bak$",
        rb"/RCS/",
        rb"/RCS$",
        rb"/RCS\(/.*\)*$",
        rb"core\.[0-9][0-9]*$",
        rb"core\.[0-9]\{4\}$",
        rb"a\{3\}",
        rb"a\{2,\}",
        rb"[aA]\{1,2\}$",
        rb"^/www/world/a",
        rb"^/www/world/[^a]",
        rb"\(ab\)\1",
        rb"\(.\)\1\1$",
        rb"a*b",
        rb"*b",
        rb"^*",
        rb"\(^/www\)",
        rb"\(*b\)",
        rb"a\*b",
        rb"a\[1]",
        rb"a[[]1[]]",
        rb"[]]y",
        rb"[]y-]",
        rb"[^]/]y",
        rb"]y-z",
        rb"$x",
        rb"x^y",
        rb"\$x\^y",
        rb"x^y$",
        rb"[[:digit:]]$",
        rb"[[:alpha:].]$",
        rb"[[:upper:][:punct:]]$",
        rb"[[:space:]]",
        rb"[^[:print:]]",
        rb"[[.-.]]",
        rb"[[=a=]]$",
        rb"[a-c]*$",
        rb"[--/]a",
        rb"[\]b",
        rb"a\\b",
        b"caf..$",
        b"caf.$",
        b"\xc3[\xa0-\xa9]$",
        rb"{1,2}+?|",
        rb"1\|2",
        rb"ab\+$",
        rb"xab\?",
        rb"/\.",
        rb"~$",
        rb"x\|^/www/world/a\|RCS$",
        rb"\(RCS$\)",
        rb"\(\(a\)\(b\)\)\3\{0,1\}",
        rb"/$",
        rb"",
    ],
)
def test_expression_matches_what_grep_and_the_library_match(pattern):
    done = subprocess.run(
        ["grep", "-n", "-e", pattern],
        input=b"\n".join(PATHS) + b"\n",
        capture_output=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    by_grep = {PATHS[int(line.partition(b":")[0]) - 1] for line in done.stdout.splitlines()}
    by_library = regcomp(pattern)
    assert (
        {path for path in PATHS if found([pattern], path)} == by_grep == {path for path in PATHS if by_library(path)}
    )


PIECES = st.sampled_from(
    [
        b"a",
        b"b",
        b"/",
        b".",
        b"*",
        b"^",
        b"$",
        b"[ab]",
        b"[^a]",
        b"[]b]",
        b"[a-b]",
        rb"\(",
        rb"\)",
        rb"\|",
        rb"\+",
        rb"\?",
        rb"\{1\}",
        rb"\{0,1\}",
        rb"\{2,\}",
        rb"\1",
        rb"\.",
        rb"\*",
        rb"\[",
        rb"\\",
        b"[[:alpha:]]",
        b"{",
        b"}",
        b"+",
        b"-",
    ]
)
SHORT = ["".join(letters).encode() for count in range(5) for letters in itertools.product("ab/$", repeat=count)]


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=7).map(b"".join))
@example(rb"\(a*\)*\1")
@example(rb"\(^a\|b$\)*/")
def test_any_expression_is_refused_or_matches_what_the_library_matches(pattern):
    by_library = regcomp(pattern)
    try:
        compiled = basicre.compiled([pattern])
    except basicre.BadPatternError:
        return
    assert by_library is not None, "rdist would refuse this"
    ours = [path for path in SHORT if any(each.search(path) for each in compiled)]
    assert ours == [path for path in SHORT if by_library(path)]


@pytest.mark.parametrize(
    "pattern",
    [
        rb"\(a",
        rb"a\)",
        rb"[a",
        rb"[]",
        rb"[[:foo:]]",
        rb"a\{2",
        rb"a\{3,2\}",
        rb"\1",
        rb"\(a\1\)",
        b"a\\",
        rb"[b-a]",
        rb"\w",
        rb"\<a",
        rb"a\b",
        rb"\{1\}",
        rb"\+",
        rb"a\{999\}",
        rb"a**",
        rb"a\+*",
        rb"[[.space.]]",
        rb"\(" * 60,
        b"a\x00",
    ],
)
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(basicre.BadPatternError):
        basicre.compiled([pattern])


def test_expressions_are_looked_for_together():
    patterns = [rb"\.bak$", rb"\(.\)\1x", rb"/RCS/", rb"\(a\)\1y"]
    for path in (b"/a.bak", b"/bbx", b"/RCS/a", b"/aay"):
        assert found(patterns, path)
    for path in (b"/a.baky", b"/abx", b"/RCS", b"/bby"):
        assert not found(patterns, path)
    assert len(basicre.compiled(patterns)) == 3
    assert basicre.compiled([]) == []


NAME = st.binary(min_size=1, max_size=6).filter(lambda name: b"/" not in name and b"\0" not in name)
NAME |= (
    st.lists(st.sampled_from([b"a", b"ab", b"\xa0", b"\xc3", b"]", b"[", b"^", b"-", b"\\", b".", b"$", b"*"]))
    .map(b"".join)
    .filter(bool)
)


@settings(deadline=None)
@given(NAME, NAME)
def test_quoted_text_matches_itself_alone(text, other):
    pattern = b"^" + basicre.quoted(text) + b"$"
    assert b"\xa0" not in pattern
    for tested in (regcomp(pattern), lambda path: found([pattern], path)):
        assert tested(text)
        assert tested(other) == (other == text)


@settings(deadline=None)
@given(st.sets(st.integers(1, 255)))
def test_bracket_matches_its_bytes_alone(members):
    pattern = basicre.bracket(members)
    by_library = regcomp(b"^" + pattern + b"$")
    compiled = basicre.compiled([b"^" + pattern + b"$"])
    assert {byte for byte in range(1, 256) if by_library(bytes([byte]))} == members
    assert {byte for byte in range(1, 256) if any(each.search(bytes([byte])) for each in compiled)} == members
    if members != {0xA0}:
        assert 0xA0 not in pattern


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(NAME, min_size=1, max_size=3).map(b"/".join), min_size=1, max_size=4), st.data())
def test_all_but_some_are_matched(kept, data):
    patterns = basicre.all_but(b"/www/wor.ld", kept)
    tests = [regcomp(pattern) for pattern in patterns]
    assert None not in tests
    compiled = basicre.compiled(patterns)
    near = [path[:-1] for path in kept] + [path + b"x" for path in kept] + [path + b"/x" for path in kept]
    other = data.draw(st.lists(NAME, min_size=1, max_size=3).map(b"/".join))
    for path in [*kept, *near, other]:
        if not path or path.startswith(b"/") or path.endswith(b"/") or b"//" in path:
            continue
        # A path stays when it is kept, below one that is, or on the way to one.
        stays = any((path + b"/").startswith(one + b"/") or (one + b"/").startswith(path + b"/") for one in kept)
        whole = b"/www/wor.ld/" + path
        assert any(each.search(whole) for each in compiled) == (not stays), path
        assert any(test(whole) for test in tests) == (not stays), path
    for outside in (b"/www/wor.ld", b"/www", b"/www/worxld/a"):
        assert not any(test(outside) for test in tests)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        (
            b"a/*.html",
            [b"a/x.html", b"a/xy.z.html"],
            [b"a/.html", b"a/b/x.html", b"a/x.htm", b"xa/x.html", b"a/.x.html"],
        ),
        (b"*", [b"a", b"a.b"], [b".a", b"a/b"]),
        (b"a*", [b"a", b"a.b", b"ab"], [b"ba", b"a/b"]),
        (b"*a", [b"a", b"ba"], [b".a", b"ab"]),
        (b"*.*", [b"a.b", b"a."], [b".a", b"ab"]),
        (b".*", [b".a"], [b"a"]),
        (b"**a", [b"a", b"ba"], [b".a"]),
        (b"?a", [b"ba"], [b".a", b"a", b"bba"]),
        (b"[a-c]x", [b"ax", b"cx"], [b"dx", b"a"]),
        (b"[.a]x", [b"ax"], [b".x"]),
        (b"x[.a]", [b"x.", b"xa"], [b"x"]),
        (b"a[[]1]", [b"a[1]"], [b"a1"]),
        (b"[*]", [b"*"], [b"a"]),
        (b"*/b", [b"a/b"], [b"b", b"a/c/b", b".a/b"]),
        (b"a.b+$", [b"a.b+$"], [b"axb+$"]),
    ],
)
def test_glob_stands_for_what_the_shell_finds(glob, yes, no):
    patterns = basicre.of_glob(glob)
    tests = [regcomp(pattern) for pattern in patterns]
    for path in [*yes, *no]:
        assert found(patterns, path) == (path in yes), path
        assert any(test(path) for test in tests) == (path in yes), path


def test_glob_without_its_bracket_is_refused():
    for glob in (b"a[b", b"[]a"):
        with pytest.raises(basicre.BadPatternError):
            basicre.of_glob(glob)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("a", ["a"]),
        ("a{b,c}d", ["abd", "acd"]),
        ("{a,b}{c,d}", ["ac", "ad", "bc", "bd"]),
        ("a{b,c{d,e}}", ["ab", "acd", "ace"]),
        ("{,x}a", ["a", "xa"]),
        ("[{]a{b,c}", ["[{]ab", "[{]ac"]),
    ],
)
def test_braces_are_alternatives(word, words):
    assert list(basicre.braces(word)) == words


@pytest.mark.parametrize("word", ["a{b", "{a,{b}", "{a,b}" * 12])
def test_bad_braces_are_refused(word):
    with pytest.raises(basicre.BadPatternError):
        list(basicre.braces(word))
