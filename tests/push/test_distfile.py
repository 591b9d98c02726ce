# SPDX-License-Identifier: Apache-2.0
"""push.distfile: what is read from a distfile, what is printed, and what is refused.

What is printed is read by rdist itself too where it is installed; Debian 12 has none.
"""

import os
import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infocluster.errors import ConfigError
from infocluster.push import distfile
from infocluster.push.distfile import (
    QUOTE,
    Compare,
    Distribute,
    Install,
    Listed,
    Names,
    Special,
    UnwritableError,
    Variable,
)

RDIST = shutil.which("rdist")
# What its parser says of grammar; names may stand for nothing: a variable that is not set, a missing directory.
WRONG = re.compile(rb"(?:syntax|parse) error|missing closing|too long|[Uu]nknown option|Bad distfile options")

SAMPLE = r"""
# from the documentation of a cluster
HOSTS = ( web1 jane@web2 )
FILES = /www/world   # one name
pages: ${FILES} -> ${HOSTS}
	install -oremove,nochkowner -q -R /srv/www ;
	except /www/world/a\ b/private;except_pat ( \\.bak\$ /RCS/ )
	; notify ( webmaster@localhost ) ;
	special ( /www/x ) "touch
/tmp/\"stamp\"" ;
	cmdspecial "a \\ b; c" ;
( /www/a ) + ( /www/b ) -> ( web1 )
( a ) - b :: /var/stamp notify root ;
"""


def test_distfile_is_read_as_its_grammar_says():
    assert distfile.parse(SAMPLE, "F") == (
        Variable("HOSTS", Names(("web1", "jane@web2"))),
        Variable("FILES", Names(("/www/world",))),
        Distribute(
            Names(("${FILES}",)),
            Names(("${HOSTS}",)),
            (
                Install(("remove", "nochkowner", "quiet", "remove"), Names(("/srv/www",))),
                Listed("except", Names(("/www/world/a b/private",))),
                Listed("except_pat", Names(("\\.bak" + QUOTE + "$", "/RCS/"))),
                Listed("notify", Names(("webmaster@localhost",))),
                Special("special", 'touch /tmp/"stamp"', Names(("/www/x",))),
                Special("cmdspecial", "a \\ b; c"),
            ),
            "pages",
        ),
        Distribute(Names(("/www/a",), "+", ("/www/b",)), Names(("web1",))),
        Compare(Names(("a",), "-", ("b",)), "/var/stamp", (Listed("notify", Names(("root",))),)),
    )


def test_entries_and_commands_know_their_lines():
    entries = distfile.parse(SAMPLE, "F")
    assert [entry.line for entry in entries] == [3, 4, 5, 12, 13]
    assert [command.line for command in entries[2].commands] == [6, 7, 7, 8, 9, 11]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a#b", "a#b"),
        ("\\#a", "#a"),
        ("'a", "'a"),
        ("a-b", "a-b"),
        ("a+b&c", "a+b&c"),
        ("\\(a\\)\\=\\;\\:", "(a)=;:"),
        ("a\\\\b", "a\\b"),
        ("\\a\\b", "ab"),
        ("a\\[b\\$c[d", "a" + QUOTE + "[b" + QUOTE + "$c[d"),
        ("http\\://x", "http://x"),
    ],
)
def test_name_ends_and_is_quoted_as_rdist_does(text, name):
    assert distfile.parse(f"X = {text}", "F") == (Variable("X", Names((name,))),)


def test_two_words_may_touch():
    assert distfile.parse("a=(b)c=d", "F") == (Variable("a", Names(("b",))), Variable("c", Names(("d",))))
    [entry] = distfile.parse("x:(a)->(b)install;", "F")
    assert entry == Distribute(Names(("a",)), Names(("b",)), (Install(),), "x")
    # A dash ends no name.
    assert distfile.parse("a->b :: c", "F") == (Compare(Names(("a->b",)), "c"),)


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        ("\n\nX = ", "a list", "the end of the file"),
        ("X", "=, :, -> or ::", "the end of the file"),
        ("\nX = ( a", "a name or )", "the end of the file"),
        ("a -> b\n install c", "; at the end of a command", "the end of the file"),
        ("a -> b\n\n instal c ;", "=, :, -> or ::", "'c'"),
        ("a -> b\n install -ofoo ;", "an option of rdist", "'-ofoo'"),
        ("a -> b install -Z ;", "an option of rdist", "'-Z'"),
        ("a -> b install -o remove ;", "an option of rdist", "'-o'"),
        ("a -> b special c ;", "a command in quotes", "';'"),
        ('a -> b special "c', '" at the end of a command', "the end of the file"),
        ("a -> b special 'c' ;", "a command in quotes", "'''"),
        ("X = a + b - c", "one operator in a list", "'-'"),
        ("X = ( install )", "a name or )", "'install'"),
        ("X = ( a - b )", "a name or )", "'-'"),
        ("a ->", "a list of hosts", "the end of the file"),
        ("a :: ( b )", "the name of a time stamp file", "'('"),
        ("a -> b except ;", "a list", "';'"),
        (") ", "a variable, a label or a list of files", "')'"),
        ("X = a\r\n", "lines that end in a newline alone", "a carriage return"),
        ("X = a\\\nb", "a character behind \\", "the end of the line"),
        ("X = caf\u00e0", "no byte 0xA0, which rdist takes for its own quote mark", "'caf\u00e0'"),
        ("X = " + "a" * 3499, "a name of at most 3498 bytes", "a longer one"),
        ("X = a\0", "a text", "a zero byte"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(text, expected, found):
    with pytest.raises(ConfigError) as caught:
        distfile.parse(text, "etc/web.skel")
    place, _, told = str(caught.value).partition(": ")
    assert told == f"expected {expected}, found {found}"
    name, line = place.split(":")
    assert name == "etc/web.skel"
    assert 1 <= int(line) <= text.count("\n") + 1
    if text.startswith("\n\n"):
        assert line == "3"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_hostile_bytes_are_read_or_refused(content):
    try:
        entries = distfile.parse(os.fsdecode(content), "F")
    except ConfigError:
        return
    assert distfile.parse(distfile.printed(entries), "F") == entries


PIECES = st.sampled_from(
    [
        "a",
        "->",
        "::",
        ":",
        "=",
        "(",
        ")",
        ";",
        " ",
        "\n",
        '"',
        "'",
        "\\",
        "$",
        "{",
        "}",
        "[",
        "*",
        "+",
        "-",
        "&",
        "#",
        "install",
        "-oremove",
        "-R",
        "except",
        "except_pat",
        "special",
        "cmdspecial",
        "notify",
        "${X}",
        "/www/world",
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_hostile_words_are_read_or_refused(text):
    try:
        entries = distfile.parse(text, "F")
    except ConfigError as error:
        assert str(error).startswith("F:")
        return
    assert distfile.parse(distfile.printed(entries), "F") == entries


CHARACTERS = st.characters(min_codepoint=1, blacklist_categories=("Cs",), blacklist_characters="\n\u00a0")
PLAIN = st.sampled_from("abz/._-+&#=;:()'\"\\ \t~%,<>|^@!éß[]{}*?")
QUOTED = st.sampled_from("[]{}*?$").map(lambda character: QUOTE + character)
BYTES = st.sampled_from([os.fsdecode(bytes([byte])) for byte in (0x80, 0x9F, 0xA1, 0xFF)])


def writable(name):
    try:
        distfile.plain(name.replace(QUOTE, ""))
    except UnwritableError:
        return False
    return True


NAME = st.lists(st.one_of(PLAIN, PLAIN, QUOTED, BYTES, CHARACTERS), min_size=1, max_size=8).map("".join)
NAME = NAME.filter(writable)
BARE = NAME.filter(lambda name: not name.startswith("-"))
SIMPLE = st.lists(NAME, max_size=4).map(tuple)
NAMES = st.one_of(
    st.builds(Names, SIMPLE), st.builds(Names, SIMPLE, st.sampled_from("+-&"), SIMPLE), st.builds(Names, SIMPLE)
)
OPTION = st.one_of(
    st.sampled_from(sorted(distfile.OPTIONS)),
    st.sampled_from(sorted(distfile.OPTIONS)).map("no".__add__),
    st.just("defowner=www-data"),
)
STRING = st.text(st.one_of(PLAIN, CHARACTERS, st.sampled_from("$[")), max_size=20)
COMMAND = st.one_of(
    st.builds(Install, st.lists(OPTION, max_size=3).map(tuple), st.one_of(st.none(), NAMES)),
    st.builds(Listed, st.sampled_from(["notify", "except", "except_pat"]), NAMES),
    st.builds(Special, st.sampled_from(["special", "cmdspecial"]), STRING, st.one_of(st.none(), NAMES)),
)
COMMANDS = st.lists(COMMAND, max_size=3).map(tuple)
LABEL = st.one_of(st.just(""), BARE)
ENTRY = st.one_of(
    st.builds(Variable, BARE, NAMES),
    st.builds(Distribute, NAMES, NAMES, COMMANDS, LABEL),
    st.builds(Compare, NAMES, BARE, COMMANDS, LABEL),
)


@settings(deadline=None)
@given(st.lists(ENTRY, max_size=4).map(tuple))
def test_what_is_printed_is_read_as_the_same(entries):
    text = distfile.printed(entries)
    again = distfile.parse(text, "F")
    assert again == entries
    assert distfile.printed(again) == text
    if RDIST:
        done = subprocess.run([RDIST, "-n", "-f", "-"], input=os.fsencode(text), capture_output=True, check=False)
        assert not WRONG.search(done.stdout + done.stderr)


@settings(deadline=None)
@given(st.text(st.one_of(PLAIN, CHARACTERS, st.just("$")), min_size=1, max_size=20))
def test_literal_means_itself_or_is_refused(path):
    path = "/" + path
    try:
        name = distfile.literal(path)
    except UnwritableError:
        assert "\u00a0" in path or b"\xa0" in os.fsencode(path) or ("$" in path and set(path) & set("[{*?"))
        return
    assert "$" not in path or not set(path) & set("[{*?")
    [entry] = distfile.parse(f"X = {distfile.printed([Variable('Y', Names((name,)))])[4:]}", "F")
    [word] = distfile.expanded(entry.names, {}, "F:1")
    # One-character classes stand for their character.
    meant, place = "", 0
    while place < len(word):
        is_class = word[place] == "[" and word[place + 2 : place + 3] == "]"
        meant += word[place + 1] if is_class else word[place]
        place += 3 if is_class else 1
    assert meant == path


@pytest.mark.parametrize("name", ["", "-", "install", "cmdspecial", "a\nb", "\u00e0", "a" * 3499, "a\0"])
def test_what_cannot_be_written_is_told(name):
    with pytest.raises(UnwritableError):
        distfile.printed([Variable("X", Names((name,)))])


def test_lists_hold_what_rdist_holds():
    names = [f"/www/{number}" for number in range(5000)]
    assert [len(part) for part in distfile.split(names)] == [2047, 2047, 906]
    assert sum(distfile.split(names), ()) == tuple(names)
    assert distfile.printed([Variable("X", Names(tuple(names[:2047])))])
    with pytest.raises(UnwritableError, match="2047"):
        distfile.printed([Variable("X", Names(tuple(names[:2048])))])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("X=a", ("X", ("a",))),
        ("X=(a b\tc)", ("X", ("a", "b", "c"))),
        ("X=", ("X", ())),
        ("X", ("X", ())),
        ("X=a=b", ("X", ("a=b",))),
    ],
)
def test_definition_is_read_as_rdist_reads_d(text, value):
    assert distfile.definition(text) == value


VARIABLES = {
    "X": ("a", "b"),
    "y": ("1", "2"),
    "NONE": (),
    "DEEP": ("${X}$y",),
    "LOOP": ("x${LOOP}",),
    "D0": ("a", "b"),
    **{f"D{level}": (f"${{D{level - 1}}}${{D{level - 1}}}",) for level in range(1, 5)},
    **{f"E{level}": (f"${{E{level - 1}}}${{E{level - 1}}}",) for level in range(1, 40)},
    "E0": (),
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("/${X}/$y.html", ["/a/1.html", "/a/2.html", "/b/1.html", "/b/2.html"]),
        ("${DEEP}", ["a1", "a2", "b1", "b2"]),
        ("( c${NONE}d ${NONE} )", ["cd"]),
        ("${X}\\$", ["a$", "b$"]),
        ("( ${X} c ) - ( b )", ["a", "c"]),
        ("( ${X} c ) & ( c b )", ["b", "c"]),
        ("( b c ) + ${X}", ["b", "c", "a"]),
    ],
)
def test_variables_are_multiplied_out(text, names):
    [entry] = distfile.parse(f"Z = {text}", "F")
    assert distfile.expanded(entry.names, VARIABLES, "F:1") == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${OTHER}", r"a variable that is set, found \$\{OTHER\}"),
        ("a$", "a variable's name behind"),
        ("${}", "a variable's name behind"),
        ("${X", "a } behind"),
        ("${LOOP}", "variables that do not hold themselves"),
        ("${D4}", "at most 2047 names"),
        ("${E39}", "variables that do not hold themselves"),
        ("\\$a${X}", "variables before a quoted"),
        ("a\\[1\\]", r"of which rdist takes nothing"),
        ("a\\*", r"expected \* alone or the class \[\*\], found \\\*"),
    ],
)
def test_what_rdist_would_expand_wrongly_is_refused(text, expected):
    [entry] = distfile.parse(f"Z = {text}", "F")
    with pytest.raises(ConfigError, match=r"^F:7: expected .*") as caught:
        distfile.expanded(entry.names, VARIABLES, "F:7")
    assert caught.match(expected)
