# SPDX-License-Identifier: Apache-2.0
"""instrc: which entries a .wwwinstrc protects, and which lines it must not hold."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infocluster.errors import BadInputError, RefusedError
from infocluster.publish import instrc


def protects(text, name, is_directory=False):
    return instrc.parse(text, "FILE").protects(name, is_directory)


@pytest.mark.parametrize(
    ("entry", "name", "answer"),
    [
        ("summary.html", "summary.html", True),
        ("summary.html", "Summary.html", False),
        ("summary.html", "summaryxhtml", False),
        ("*.svg", "a.svg", True),
        ("*.svg", ".svg", True),
        ("*", ".htaccess", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[a-c]1", "b1", True),
        ("[!a-c]1", "b1", False),
        ("[!a-c]1", "d1", True),
        ("[]]", "]", True),
        ("[[]x", "[x", True),
        ("[*]", "*", True),
        ("[*]", "a", False),
        ("[#]x", "#x", True),
        ("back\\slash", "back\\slash", True),
        ("  round blanks \t", "round blanks", True),
        ("dos\r", "dos", True),
        ("\ufeffa", "a", True),
        ("\ufeff# a", "a", False),
        ("[\ufeff]a", "\ufeffa", True),
        ("# *", "x", False),
        ("", "", False),
        ("a", "ab", False),
        ("é*", "éa", True),
        ("a\u2028b", "a\u2028b", True),
    ],
)
def test_entry_protects(entry, name, answer):
    assert protects(entry, name) is answer


def test_slash_at_the_end_means_directories_only():
    assert protects("data/", "data", is_directory=True)
    assert not protects("data/", "data", is_directory=False)
    assert protects("data", "data", is_directory=True)


@pytest.mark.parametrize(
    "entry", ["a/b", "/a", "../x", "..", ".", "./", "/", "//", "a//", "[ab", "x[!]", "[]", "a\x01b", "a\tb", "a\x7fb"]
)
def test_bad_line_is_told_with_file_and_line(entry):
    with pytest.raises(BadInputError, match=r"^/dev/w/\.wwwinstrc:3: '.*': expected "):
        instrc.parse(f"# first\ngood\n{entry}\nlast\n", "/dev/w/.wwwinstrc")


def test_rule_says_which_line_protects():
    rules = instrc.parse("# about\n\n*.html\nindex.html\n", "FILE")
    rule = rules.rule("index.html", False)
    assert (rule.line, rule.text) == (3, "*.html")
    assert rules.rule("index.txt", False) is None


@example("\ufeffa")
@given(st.text(st.characters(blacklist_characters="/\0", min_codepoint=0x20), min_size=1, max_size=12))
def test_line_for_a_name_protects_that_name_alone(name):
    if name in (".", "..") or "\x7f" in name:
        return
    entry = instrc.entry_for(name)
    assert protects(f"{entry}\n", name)
    assert not protects(f"{entry}\n", name + "x")
    assert not protects(f"{entry}\n", "x" + name)


def test_file_is_read_from_its_own_directory_only(tmp_path):
    (tmp_path / "world/a").mkdir(parents=True)
    (tmp_path / "world/.wwwinstrc").write_bytes(b"kept\nbyte\xff\n")
    rules = instrc.read(str(tmp_path), "world")
    assert rules.file == f"{tmp_path}/world/.wwwinstrc"
    assert rules.protects("kept", False)
    assert rules.protects(os.fsdecode(b"byte\xff"), False)
    assert not instrc.read(str(tmp_path), "world/a").protects("kept", False)


def test_link_fifo_and_linked_directory_are_refused(tmp_path):
    (tmp_path / "secret").write_text("to/ken\n")
    for name in ("link", "fifo"):
        (tmp_path / name).mkdir()
    (tmp_path / "link/.wwwinstrc").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo/.wwwinstrc")
    (tmp_path / "way").symlink_to("link")
    for name in ("link", "fifo", "way"):
        with pytest.raises(RefusedError) as caught:
            instrc.read(str(tmp_path), name)
        assert "ken" not in str(caught.value)
