# SPDX-License-Identifier: Apache-2.0
"""wwwdinst and wwwuinst as real processes: a table of cases (before, command, after, output), and what takes two."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from conftest import ROOT
from infocluster.locks import pathlocks

# A tree is told as {path: what}: a text is a file's content, "-> text" a link, None a directory, ("text", mode) a
# file with other permissions than 0664. Equal contents have equal mtimes.


def build(root, tree):
    for path, what in tree.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            place.mkdir(exist_ok=True)
        elif isinstance(what, str) and what.startswith("-> "):
            place.symlink_to(what[3:])
        else:
            content, mode = what if isinstance(what, tuple) else (what, 0o664)
            place.write_text(content)
            place.chmod(mode)
            os.utime(place, ns=(0, zlib.crc32(content.encode()) * 1001))
    for here, _, _ in os.walk(root):
        os.chmod(here, 0o775)


def read(root):
    found = {}
    for here, below, plain in os.walk(root):
        for name in (*below, *plain):
            path = os.path.join(here, name)
            key, status = os.path.relpath(path, root), os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[key] = f"-> {os.readlink(path)}"
            elif stat.S_ISDIR(status.st_mode):
                if not os.listdir(path):
                    found[key] = None
            elif stat.S_ISREG(status.st_mode):
                content, mode = Path(path).read_text(), stat.S_IMODE(status.st_mode)
                assert status.st_mtime_ns == zlib.crc32(content.encode()) * 1001 or content.startswith("made")
                found[key] = content if mode == 0o664 else (content, mode)
    return found


OK = (0, "")
CASES = {
    "new, changed and gone": (
        {"world/a/new": "n", "world/a/same": "s", "world/a/changed": "2", "world/a/sub/page": "p", "world/b": "b"},
        {"world/a/same": "s", "world/a/changed": "1", "world/a/gone": "g", "world/a/old/x": "x", "world/c": "c"},
        ["world/a"],
        {"world/a/new": "n", "world/a/same": "s", "world/a/changed": "2", "world/a/sub/page": "p", "world/c": "c"},
        """
        update world/a/changed
        install world/a/new
        install world/a/sub/
        install world/a/sub/page
        remove world/a/gone
        remove world/a/old/x
        remove world/a/old/
        wwwdinst: world/a: install 3, update 1, remove 3
        """,
        OK,
    ),
    "nothing to do": (
        {"world/a/x": "x", "world/a/l": "-> x"},
        {"world/a/x": "x", "world/a/l": "-> x"},
        ["world/a"],
        {"world/a/x": "x", "world/a/l": "-> x"},
        "wwwdinst: world/a: nothing to do",
        OK,
    ),
    "a file alone, with what is above it": (
        {"world/a/x": "x", "world/a/y": "y"},
        {},
        ["world/a/x"],
        {"world/a/x": "x"},
        """
        install world/
        install world/a/
        install world/a/x
        wwwdinst: world/a/x: install 3
        """,
        OK,
    ),
    "several paths, one of them gone, one below another": (
        {"world/a/x": "x", "world/b/y": "y", "world/c": None},
        {"world/b/z": "z", "world/c/gone": "g"},
        ["world/c/gone", "world/b/y", "world/b", "world/a"],
        {"world/a/x": "x", "world/b/y": "y", "world/c": None},
        """
        install world/a/
        install world/a/x
        install world/b/y
        remove world/b/z
        remove world/c/gone
        wwwdinst: world/a, world/b, world/c/gone: install 3, remove 2
        """,
        OK,
    ),
    "permissions alone, and what is repaired": (
        {"world/a/x": ("x", 0o775), "world/a/y": ("y", 0o600)},
        {"world/a/x": "x"},
        ["world/a"],
        {"world/a/x": ("x", 0o775), "world/a/y": "y"},
        """
        update world/a/x
        install world/a/y
        wwwdinst: world/a: install 1, update 1
        """,
        OK,
    ),
    "links by their text, a URL too": (
        {"world/a/r": "-> http://host/x", "world/a/n": "-> ../b", "world/a/s": "-> s", "world/a/o": "-> /etc/passwd"},
        {"world/a/r": "-> http://host/old", "world/a/n": "-> ../b", "world/a/gone": "-> x"},
        ["world/a"],
        {"world/a/r": "-> http://host/x", "world/a/n": "-> ../b", "world/a/s": "-> s", "world/a/o": "-> /etc/passwd"},
        """
        install world/a/o
        update world/a/r
        install world/a/s
        remove world/a/gone
        wwwdinst: world/a: install 2, update 1, remove 1
        """,
        OK,
    ),
    "what changed its type": (
        {"world/a/d": "now a file", "world/a/f/x": "now a directory", "world/a/l": "now a file too"},
        {"world/a/d/x": "x", "world/a/d/y": "y", "world/a/f": "f", "world/a/l": "-> f"},
        ["world/a"],
        {"world/a/d": "now a file", "world/a/f/x": "now a directory", "world/a/l": "now a file too"},
        """
        update world/a/d
        remove world/a/d/x
        remove world/a/d/y
        update world/a/l
        update world/a/f/
        install world/a/f/x
        wwwdinst: world/a: install 1, update 3, remove 2
        """,
        OK,
    ),
    "what changed its type above a named path": (
        {"world/a/f/x": "x", "world/a/l/b/y": "y"},
        {"world/a/f": "a file", "world/a/l": "-> http://host/"},
        ["world/a/f/x", "world/a/l/b/y"],
        {"world/a/f/x": "x", "world/a/l/b/y": "y"},
        """
        update world/a/f/
        install world/a/f/x
        update world/a/l/
        install world/a/l/b/
        install world/a/l/b/y
        wwwdinst: world/a/f/x, world/a/l/b/y: install 3, update 2
        """,
        OK,
    ),
    "what .wwwinstrc lists is neither installed, updated nor removed": (
        {
            "world/a/.wwwinstrc": "# by the night\nout.html\n*.svg\nkept/\n[!a]?",
            "world/a/out.html": "mine",
            "world/a/new.svg": "n",
            "world/a/kept/x": "mine",
            "world/a/bb": "bb",
            "world/a/aa": "aa",
            "world/a/sub/out.html": "not inherited",
        },
        {
            "world/a/out.html": "night",
            "world/a/old.svg": "night",
            "world/a/kept/y": "night",
            "world/a/sub/gone.svg": "not inherited",
            "world/a/.wwwinstrc": "a stray one",
        },
        ["world/a"],
        {
            "world/a/out.html": "night",
            "world/a/old.svg": "night",
            "world/a/kept/y": "night",
            "world/a/aa": "aa",
            "world/a/sub/out.html": "not inherited",
            "world/a/.wwwinstrc": "a stray one",
        },
        """
        install world/a/aa
        install world/a/sub/out.html
        remove world/a/sub/gone.svg
        wwwdinst: world/a: install 2, remove 1
        """,
        OK,
    ),
    "a rule for directories leaves a file alone to be removed": (
        {"world/a/.wwwinstrc": "x/", "world/a/y": "y"},
        {"world/a/x": "a file", "world/a/y": "y"},
        ["world/a"],
        {"world/a/y": "y"},
        """
        remove world/a/x
        wwwdinst: world/a: remove 1
        """,
        OK,
    ),
    "a protected name on the command line": (
        {"world/a/.wwwinstrc": "# comment\n\nx*", "world/a/x1": "new"},
        {"world/a/x1": "old"},
        ["world/a/x1"],
        {"world/a/x1": "old"},
        "",
        (77, "cannot install world/a/x1: world/a/x1 is protected by {dev}/world/a/.wwwinstrc:3: x*"),
    ),
    "a path below a protected directory": (
        {"world/.wwwinstrc": "a/", "world/a/x": "new"},
        {"world/a/x": "old"},
        ["-delete", "world/a/x"],
        {"world/a/x": "old"},
        "",
        (77, "world/a is protected by {dev}/world/.wwwinstrc:1: a/"),
    ),
    "a bad line stops before anything is changed": (
        {"world/a/.wwwinstrc": "fine\nb/c", "world/0/x": "x", "world/a/y": "y"},
        {"world/a/gone": "g"},
        ["world"],
        {"world/a/gone": "g"},
        "",
        (65, "{dev}/world/a/.wwwinstrc:2: 'b/c': expected one name of this directory"),
    ),
    "files of ours, RCS and editors are left alone": (
        {
            "world/a/.wwwinstmk": ("all:\n", 0o644),
            "world/a/RCS/x,v": "v",
            "world/a/x": ("x", 0o444),
            "world/a/y,v": "v",
            "world/a/y": ("y", 0o400),
            "world/a/.git/config": "c",
            "world/a/z~": "z",
            "world/a/.#lock": "-> me@host",
            "world/a/notes.v": "no version file",
        },
        {"world/a/.svn/entries": "e", "world/a/RCS/old,v": "v", "world/a/#z#": "z"},
        ["world/a"],
        {
            "world/a/x": ("x", 0o444),
            "world/a/y": ("y", 0o444),
            "world/a/notes.v": "no version file",
            "world/a/.svn/entries": "e",
            "world/a/RCS/old,v": "v",
            "world/a/#z#": "z",
        },
        """
        install world/a/notes.v
        install world/a/x
        install world/a/y
        wwwdinst: world/a: install 3
        """,
        OK,
    ),
    "a locked file is said and skipped": (
        {"world/a/RCS/x,v": "v", "world/a/x": ("new", 0o644), "world/a/y": "y"},
        {"world/a/x": "old"},
        ["world/a"],
        {"world/a/x": "old", "world/a/y": "y"},
        """
        skip world/a/x (locked under RCS: its owner may write it; check it in, or out without a lock)
        install world/a/y
        wwwdinst: world/a: install 1, skip 1
        """,
        (1, ""),
    ),
    "a locked file named": (
        {"world/a/x,v": "v", "world/a/x": ("new", 0o644)},
        {"world/a/x": "old"},
        ["world/a/x"],
        {"world/a/x": "old"},
        """
        skip world/a/x (locked under RCS: its owner may write it; check it in, or out without a lock)
        wwwdinst: world/a/x: skip 1
        """,
        (1, ""),
    ),
    "make that fails stops its directory alone": (
        {
            "world/a/.wwwinstmk": ("all: tool\n\techo\n", 0o644),
            "world/a/x": "stale",
            "world/a/sub/y": "below",
            "world/b/z": "z",
        },
        {"world/a/x": "old", "world/a/gone": "g"},
        ["world"],
        {"world/a/x": "old", "world/a/gone": "g", "world/b/z": "z"},
        """
        skip world/a (make failed: make: *** No rule to make target 'tool', needed by 'all'.  Stop.)
        install world/b/
        install world/b/z
        wwwdinst: world: install 2, skip 1
        """,
        (1, ""),
    ),
    "-delete removes from production only": (
        {"world/a/x": "x", "world/a/y": "y"},
        {"world/a/x": "x", "world/a/sub/z": "z", "world/b": "b"},
        ["-delete", "world/a/x", "world/a/sub"],
        {"world/a": None, "world/b": "b"},
        """
        remove world/a/sub/z
        remove world/a/sub/
        remove world/a/x
        wwwdinst: world/a/sub, world/a/x: remove 3
        """,
        OK,
    ),
    "-delete keeps what is protected in it": (
        {"world/a/.wwwinstrc": "data", "world/a/x": "x"},
        {"world/a/x": "x", "world/a/data": "night"},
        ["-delete", "world/a"],
        {"world/a/data": "night"},
        """
        remove world/a/x
        skip world/a/ (what it holds is kept)
        wwwdinst: world/a: remove 1, skip 1
        """,
        OK,
    ),
    "-delete of what is not there": (
        {"world/a/x": "x"},
        {},
        ["-delete", "world/a/x"],
        {},
        "",
        (77, "does not have it"),
    ),
    "-delete of a tree": (
        {"world/a": "a"},
        {"world/a": "a"},
        ["-delete", "world"],
        {"world/a": "a"},
        "",
        (64, "whole tree"),
    ),
    "a tree that is empty in development": (
        {"world": None},
        {"world/a": "a"},
        ["world"],
        {"world/a": "a"},
        "",
        (77, "empty"),
    ),
    "a path that is nowhere": ({"world/a": "a"}, {}, ["world/b"], {}, "", (77, "neither {dev} nor")),
    "no path": ({}, {}, [], {}, "", (64, "PATH is missing")),
    "an absolute path": ({}, {"world/a": "a"}, ["/etc"], {"world/a": "a"}, "", (64, "relative to the trees")),
    "a path that walks": ({}, {"world/a": "a"}, ["world/../../x"], {"world/a": "a"}, "", (64, "not allowed")),
    "a path with a line end": ({}, {"world/a": "a"}, ["world/a\nb"], {"world/a": "a"}, "", (64, "'world/a\\x0ab'")),
    "a path like an option": ({}, {}, ["--", "-r"], {}, "", (64, "does not begin")),
    "a path through a link of development": (
        {"world/l": "-> /etc"},
        {"world/l/passwd": "p"},
        ["world/l/passwd"],
        {"world/l/passwd": "p"},
        "",
        (77, "world/l is a symbolic link"),
    ),
    "a path through a link of production": (
        {"world/a": "a"},
        {"world/l": "-> /etc"},
        ["-delete", "world/l/passwd"],
        {"world/l": "-> /etc"},
        "",
        (77, "world/l is a symbolic link"),
    ),
    "a .wwwinstrc that is a link": (
        {"world/a/.wwwinstrc": "-> /etc/passwd", "world/a/x": "x"},
        {},
        ["world/a"],
        {},
        "",
        (77, "is a symbolic link"),
    ),
    "names below that hide or steer": (
        {"world/a/-rf": "r", "world/a/n\nl": "n", "world/a/\x1b[31m": "e", "world/a/\udcff": "b"},
        {"world/a/\x07": "bell"},
        ["world/a"],
        {"world/a/-rf": "r", "world/a/n\nl": "n", "world/a/\x1b[31m": "e", "world/a/\udcff": "b"},
        """
        install world/a/\\x1b[31m
        install world/a/-rf
        install world/a/n\\x0al
        install world/a/\\udcff
        remove world/a/\\x07
        wwwdinst: world/a: install 4, remove 1
        """,
        OK,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(site, name):
    development, production, arguments, after, output, (status, errors) = CASES[name]
    dev = site.root / "var/wwwdev"
    for root, tree in ((dev, development), (site.production, production)):
        shutil.rmtree(root)
        root.mkdir()
        build(root, tree)
    before = read(site.production)
    shown = site.batch("wwwdinst", "-show", *arguments)
    assert read(site.production) == before
    assert not (site.state / "install").exists()
    done = site.batch("wwwdinst", *arguments)
    lines = [line.strip() for line in output.strip().splitlines()]
    assert (done.stdout.splitlines(), done.returncode) == (lines, status), done.stderr
    assert errors.format(dev=dev) in done.stderr if errors else done.stderr == ""
    assert read(site.production) == after
    # What -show prints is what the run printed, and a second run has nothing left to do.
    assert (shown.stdout, shown.returncode) == (done.stdout, done.returncode)
    if status == 0 and "-delete" not in arguments:
        again = site.batch("wwwdinst", *[path for path in arguments if path != "world/c/gone"])
        assert again.stdout.splitlines()[-1].endswith("nothing to do"), again.stdout
        assert read(site.production) == after


@pytest.fixture
def dev(site):
    shutil.rmtree(site.root / "var/wwwdev")
    (site.root / "var/wwwdev").mkdir()
    return site.root / "var/wwwdev"


def lines(done):
    return done.stdout.splitlines()


def started(site, program, *arguments, **variables):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "batch" / program), *arguments],
        env=site.environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_make_comes_before_the_copy_and_show_runs_it_dry(site, dev):
    build(dev, {"world/a/data": "1", "world/a/.wwwinstmk": ("page.inc: data\n\techo made $$(cat data) >$@\n", 0o644)})
    shown = site.batch("wwwdinst", "-show", "world/a/data")
    assert (lines(shown)[-1], shown.returncode) == ("wwwdinst: world/a/data: install 2", 0)
    assert not (dev / "world/a/page.inc").exists()
    assert site.batch("wwwdinst", "world/a").returncode == 0
    assert (site.production / "world/a/page.inc").read_text() == "made 1\n"
    # For the makefile of a named file's directory, too.
    (dev / "world/a/data").write_text("22")
    assert lines(site.batch("wwwdinst", "world/a/page.inc"))[0] == "update world/a/page.inc"
    assert (site.production / "world/a/page.inc").read_text() == "made 22\n"


def test_recipe_that_fails_is_told_with_its_line(site, dev):
    build(dev, {"world/a/.wwwinstmk": ("all:\n\t@echo bad; exit 3\n", 0o644), "world/a/x": "stale", "world/b": "b"})
    done = site.batch("wwwdinst", "world/a/x", "world/b")
    assert lines(done)[0] == "skip world/a (make failed: make: *** [.wwwinstmk:2: all] Error 3)"
    assert (read(site.production), done.returncode) == ({"world/b": "b"}, 1)


def test_socket_is_said_and_is_no_fault(site, dev):
    build(dev, {"world/a/x": "x"})
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(dev / "world/a/s"))
        done = site.batch("wwwdinst", "world/a")
    assert lines(done)[0] == "skip world/a/s (neither file, directory nor symbolic link)"
    assert done.returncode == 0


def test_what_one_tree_installed_the_other_never_removes(site, dev):
    udev = site.root / "var/wwwudev"
    build(dev, {"world/a/d": "d", "world/a/both": "both", "world/d/x": "x", "world/empty": None})
    build(udev, {"world/a/u": "u", "world/a/both": "both", "world/u/x": "x"})
    assert site.batch("wwwdinst", "world").returncode == 0
    everything = read(dev) | read(udev)
    assert lines(site.batch("wwwuinst", "world"))[-1] == "wwwuinst: world: install 3"
    assert read(site.production) == everything
    # Neither a run of the other nor one of its own changes that.
    assert lines(site.batch("wwwdinst", "world")) == ["wwwdinst: world: nothing to do"]
    # What the other holds as well stays until both have let go of it.
    shutil.rmtree(dev / "world/a")
    assert lines(site.batch("wwwdinst", "world"))[:1] == ["remove world/a/d"]
    assert read(site.production / "world/a") == {"u": "u", "both": "both"}
    named = site.batch("wwwdinst", "-delete", "world/a/u")
    assert (lines(named)[0], named.returncode) == ("skip world/a/u (installed by wwwuinst)", 1)
    shutil.rmtree(udev / "world/a")
    assert lines(site.batch("wwwuinst", "world"))[-2:] == ["remove world/a/", "wwwuinst: world: remove 3"]
    assert read(site.production) == read(dev) | read(udev)


def test_what_nobody_noted_belongs_to_the_tree_that_has_it(site, dev):
    build(dev, {"world/a/d": "d"})
    build(site.root / "var/wwwudev", {"world/a/u": "u"})
    build(site.production, {"world/a/d": "d", "world/a/u": "u", "world/a/n": "nobody's"})
    assert lines(site.batch("wwwdinst", "world"))[:-1] == ["remove world/a/n"]
    assert lines(site.batch("wwwuinst", "world")) == ["wwwuinst: world: nothing to do"]
    # What could not be put in its place is noted by no run.
    build(dev, {"world/t": "file"})
    for root in (site.root / "var/wwwudev", site.production):
        build(root, {"world/t/x": "x"})
    for _ in range(2):
        done = site.batch("wwwdinst", "world/t")
        assert lines(done)[0] == "skip world/t (the directory in its place holds world/t, which is kept)"


def test_directory_stays_that_holds_what_the_other_trees_rules_protect(site, dev):
    build(dev, {"world/b": "b"})
    build(site.root / "var/wwwudev", {"world/a/.wwwinstrc": "data*"})
    build(site.production, {"world/a/data1": "night", "world/a/x/y": "y", "world/b": "b"})
    done = site.batch("wwwdinst", "world")
    assert lines(done)[:-1] == ["remove world/a/x/y", "remove world/a/x/"]
    assert read(site.production) == {"world/a/data1": "night", "world/b": "b"}
    # Nor does it make way for a file, and then nothing else is removed either.
    build(dev, {"world/a": "a file"})
    build(site.production, {"world/gone": "g"})
    shown, done = site.batch("wwwdinst", "-show", "world"), site.batch("wwwdinst", "world")
    assert lines(done)[0].startswith("skip world/a (the directory in its place holds world/a")
    assert lines(done)[1:-1] == ["skip world/gone (not everything new could be put in place)"]
    assert (done.returncode, shown.stdout) == (1, done.stdout)
    assert "world/gone" in read(site.production)


def test_file_stays_that_the_other_tree_holds_or_protects_where_a_directory_is_to_be(site, dev):
    udev = site.root / "var/wwwudev"
    build(udev, {"world/f": "u", "world/.wwwinstrc": "data"})
    build(site.production, {"world/data": "night", "world/gone": "g"})
    site.batch("wwwuinst", "world/f")
    before = read(site.production)
    build(dev, {"world/f/x": "x", "world/data/x": "x", "world/new": "n"})
    shown, done = site.batch("wwwdinst", "-show", "world"), site.batch("wwwdinst", "world")
    assert lines(done)[:-1] == [
        "install world/new",
        f"skip world/data (what is in its place is kept: protected by {udev}/world/.wwwinstrc:1: data)",
        "skip world/f (what is in its place is kept: installed by wwwuinst)",
        "skip world/gone (not everything new could be put in place)",
    ]
    assert (done.returncode, shown.stdout) == (1, done.stdout)
    assert read(site.production) == before | {"world/new": "n"}


def test_undo_puts_back_what_the_last_install_replaced_and_log_tells(site, dev):
    build(
        dev, {"world/a/x": "1", "world/a/t": "file", "world/a/l": "-> http://host/", "world/a/gone/y": ("y", 0o775)}
    )
    site.batch("wwwdinst", "world/a")
    first = read(site.production)
    shutil.rmtree(dev / "world/a")
    build(dev, {"world/a/x": "two", "world/a/t/z": "dir", "world/a/new/n": "n", "world/a/l": "no link"})
    site.batch("wwwdinst", "world/a")
    second = read(site.production)
    (dev / "world/a/x").chmod(0o775)
    (dev / "world/a/new").chmod(0o777)
    assert lines(site.batch("wwwdinst", "world/a"))[:-1] == ["update world/a/x", "update world/a/new/"]
    assert sorted(lines(site.batch("wwwdinst", "-undo"))[:-1]) == ["update world/a/new/", "update world/a/x"]
    assert read(site.production) == second
    assert stat.S_IMODE((site.production / "world/a/new").stat().st_mode) == 0o775
    shown = site.batch("wwwdinst", "-show", "-undo")
    assert read(site.production) == second
    done = site.batch("wwwdinst", "-undo")
    assert (done.stdout, done.returncode) == (shown.stdout, 0)
    assert "remove world/a/new/n" in lines(done) and "install world/a/gone/y" in lines(done)
    assert re.search(r"wwwdinst: world/a, undoing \S+: install 2, update 3, remove 3$", lines(done)[-1]), lines(done)
    assert read(site.production) == first
    # Each undo goes one install further back; what is put back is noted as the tree's own again.
    build(site.root / "var/wwwudev", {"world/b": "b"})
    assert lines(site.batch("wwwuinst", "world"))[:-1] == ["update world/", "install world/b"]
    assert site.batch("wwwdinst", "-undo").returncode == 0
    assert read(site.production) == {"world/b": "b"}
    assert site.batch("wwwdinst", "-undo").returncode == 77
    log = [line[20:] for line in lines(site.batch("wwwdinst", "-log"))]
    user = log[0].split()[0]
    assert log[0] == f"{user} wwwdinst world/a: install 6 (undone)"
    assert [line.split(":")[0].split(",")[0] for line in log[3:5]] == [f"{user} wwwdinst -undo world/a"] * 2
    assert len(lines(site.batch("wwwdinst", "-log", "world/b"))) == 1
    assert [one["what"] for one in json.loads(site.batch("wwwdinst", "-log", "-json").stdout)].count("undo") == 3


def test_undo_is_of_the_last_install_that_changed_the_path_or_of_none(site, dev):
    build(dev, {"world/a/x": "1", "world/b/y": "1"})
    site.batch("wwwdinst", "world/a")
    site.batch("wwwdinst", "world")
    # By what was changed, not by what was asked for.
    assert lines(site.batch("wwwdinst", "-undo", "world/a/x"))[:-1] == ["remove world/a/x", "remove world/a/"]
    assert read(site.production) == {"world/b/y": "1"}
    # One that is not kept is in the way of those before it, not of those after it.
    build(dev, {"world/b/y": "two"})
    site.batch("wwwdinst", "world/b")
    (kept,) = (site.state / "install/undo").glob("*/kept/0")
    shutil.rmtree(kept.parents[1])
    for arguments in ([], ["world/b/y"]):
        done = site.batch("wwwdinst", "-undo", *arguments)
        assert (done.returncode, done.stdout) == (77, "") and "it is not kept" in done.stderr
    assert read(site.production) == {"world/b/y": "two"}
    # As a crash of the host may leave a record.
    (site.state / "install/log/20000101T000000.000000Z-1.json").touch()
    build(dev, {"world/b/y": "three"})
    site.batch("wwwdinst", "world/b")
    done = site.batch("wwwdinst", "-log")
    assert (len(lines(done)), done.returncode) == (5, 1) and "it is no record of an install" in done.stderr
    assert site.batch("wwwdinst", "-undo").returncode == 0
    assert read(site.production) == {"world/b/y": "two"}


def test_undo_leaves_what_was_changed_since(site, dev):
    build(dev, {"world/a/x": "1", "world/a/y": "1"})
    site.batch("wwwdinst", "world/a")
    build(dev, {"world/a/x": "two", "world/a/y": "two", "world/a/sub/n": "n"})
    site.batch("wwwdinst", "world/a")
    build(site.production, {"world/a/x": "by hand", "world/a/sub/night": "data"})
    done = site.batch("wwwdinst", "-undo")
    assert done.returncode == 1
    assert set(lines(done)[:-1]) == {
        "skip world/a/x (changed since that install)",
        "update world/a/y",
        "remove world/a/sub/n",
        "skip world/a/sub/night (changed since that install)",
        "skip world/a/sub/ (what it holds is kept)",
    }
    assert read(site.production) == {"world/a/x": "by hand", "world/a/y": "1", "world/a/sub/night": "data"}


def test_undo_leaves_what_a_rule_protects_by_then_and_what_the_other_tree_holds(site, dev):
    tree = {"world/a/both": "b", "world/a/new": "n", "world/a/x": "1", "world/a/sub/new": "n"}
    build(dev, tree | {"world/a/y": "1"})
    site.batch("wwwdinst", "world/a")
    changed = {"world/a/x": "two", "world/a/y": "two", "world/b/both": "b", "world/b/mine": "m"}
    build(dev, changed)
    build(site.root / "var/wwwudev", {"world/a/sub/.wwwinstrc": "n*", "world/b/both": "b"})
    site.batch("wwwdinst", "world/a", "world/b")
    site.batch("wwwuinst", "world/b")
    build(dev, {"world/a/.wwwinstrc": "x"})
    shown, done = site.batch("wwwdinst", "-undo", "-show"), site.batch("wwwdinst", "-undo")
    assert lines(done)[:-1] == [
        f"skip world/a/x (protected by {dev}/world/a/.wwwinstrc:1: x)",
        "update world/a/y",
        "skip world/b/both (installed by wwwuinst)",
        "remove world/b/mine",
        "skip world/b/ (installed by wwwuinst)",
    ]
    assert (shown.stdout, done.returncode) == (done.stdout, 1)
    # The one before is undone next; in a directory that goes, too, the other tree's rules have a say.
    assert site.batch("wwwdinst", "-undo").returncode == 1
    assert read(site.production) == {
        "world/a/sub/new": "n",
        "world/a/x": "two",
        "world/b/both": "b",
    }


def test_undo_is_bounded_in_number_and_size_and_saves_by_links(site, dev):
    site.configure("[install]\nundo_count = 2\nundo_mb = 1\nlog_count = 4\n")
    for number in range(5):
        build(dev, {"world/a/x": "x" * (300_000 + number)})
        number_of_file = (site.production / "world/a/x").stat().st_ino if number else 0
        assert site.batch("wwwdinst", "world/a").returncode == 0
    kept = sorted((site.state / "install/undo").iterdir())
    assert len(kept) == 2
    assert (kept[-1] / "kept/0").stat().st_ino == number_of_file
    assert len(list((site.state / "install/log").iterdir())) == 4
    build(dev, {"world/a/x": "y" * 1_100_000})
    site.batch("wwwdinst", "world/a")
    assert len(list((site.state / "install/undo").iterdir())) == 2
    build(dev, {"world/a/x": "z"})
    shown, done = site.batch("wwwdinst", "-show", "world/a"), site.batch("wwwdinst", "world/a")
    assert lines(done)[0].startswith("this install cannot be undone: ")
    assert lines(done)[1] == "update world/a/x" and shown.stdout == done.stdout
    # The list of what is new counts as well.
    build(dev, {"world/a/new": "n"})
    site.configure("[install]\nundo_mb = 0\n")
    assert lines(site.batch("wwwdinst", "world/a"))[0].startswith("this install cannot be undone: ")


@pytest.mark.root
def test_undo_keeps_copies_where_the_state_is_on_another_file_system(site, dev):
    build(dev, {"world/a/x": "1"})
    site.batch("wwwdinst", "world/a")
    build(dev, {"world/a/x": "two"})
    script = (
        f"mount -t tmpfs none '{site.state}' && '{sys.executable}' '{ROOT}/batch/wwwdinst' world/a && "
        f"'{sys.executable}' '{ROOT}/batch/wwwdinst' -undo"
    )
    environment = site.environment(PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read(site.production) == {"world/a/x": "1"}


@pytest.mark.root
def test_full_disk_leaves_whole_files_and_no_temporary_name(site, dev):
    """Far more files than are on their way to the disk at once; the disk takes some of them."""
    build(dev, {f"world/a/p{number:03}": f"{number}" * 3000 for number in range(300)} | {"world/a/z": None})
    script = (
        f"mount -t tmpfs -o size=1m none '{site.production}' && mkdir -p '{site.production}/world/old' && "
        f"{{ '{sys.executable}' '{ROOT}/batch/wwwdinst' world; echo status $?; }} && "
        f"cp -a '{site.production}/.' '{site.root}/left'"
    )
    environment = site.environment(PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=environment, capture_output=True, text=True)
    assert "No space left on device" in done.stderr and done.stdout.endswith("status 75\n"), (
        done.stdout,
        done.stderr,
    )
    left = read(site.root / "left")
    installed = {line.split()[1] for line in lines(done) if line.startswith("install world/a/p")}
    assert installed and {path for path in left if "/p" in path} == installed
    assert all(left[path] == (dev / path).read_text() for path in installed)
    # Nothing is removed by a run that could not put all in place, and nothing half done is left.
    assert "world/old" in left and not [path for path in left if ".~" in path]


def test_push_follows_unless_something_failed(site, dev):
    build(dev, {"world/a/x": "x", "world/a b;c": None})
    shown = site.batch("wwwdinst", "-push", "-show", "world/a", "world/a b;c")
    assert lines(shown)[-1] == "would push: wwwpush world/a 'world/a b;c'"
    (dev / "world/a b;c").rmdir()
    assert not (site.delivered("web1") / "world").exists()
    done = site.batch("wwwdinst", "-push", "world/a")
    assert done.returncode == 0, done.stderr
    assert lines(done)[-3:-1] == ["wwwdinst: world/a: install 2", "web[1-3]: ok, 1 file, 2 directories"]
    assert read(site.delivered("web2")) == {"world/a/x": "x"}
    build(dev, {"world/a/y": "y", "world/a/z,v": "v", "world/a/z": ("z", 0o600)})
    done = site.batch("wwwdinst", "-push", "world/a")
    assert done.returncode == 1
    pushing = "not pushed, because not everything was installed; to push what was, type: wwwpush world/a"
    assert pushing in lines(done)
    assert read(site.delivered("web2")) == {"world/a/x": "x"}
    (dev / "world/a/z").chmod(0o400)
    assert site.batch("wwwdinst", "-push", "-quiet", "world").stdout == ""
    assert read(site.delivered("web2")) == {"world/a/x": "x", "world/a/y": "y", "world/a/z": ("z", 0o444)}


def test_quiet_prints_faults_only_and_json_one_object(site, dev):
    build(dev, {"world/a/x": "x", "world/a/z,v": "v", "world/a/z": ("z", 0o600)})
    done = site.batch("wwwdinst", "-quiet", "world/a")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("wwwdinst: skip world/a/z (locked under RCS")
    build(dev, {"world/a/x": "xx"})
    record = json.loads(site.batch("wwwdinst", "--json", "world/a").stdout)
    assert (record["what"], record["paths"], record["state"]) == ("install", ["world/a"], "faults")
    assert {"verb": "update", "path": "world/a/x", "reason": "", "fault": False} in record["changes"]


def test_rules_say_which_line_protects(site, dev):
    udev = site.root / "var/wwwudev"
    build(dev, {"world/a/.wwwinstrc": "#\nx*\nd/"})
    build(udev, {"world/a/.wwwinstrc": "?1", "world/b": "-> http://host/"})
    build(site.production, {"world/b": "-> a"})
    done = site.batch(
        "wwwdinst", "-rules", "world/a/x1", "world/a/d/y", "world/a/d", "world/a/d/", "world/a/q,v", "world/b/x"
    )
    assert lines(done) == [
        f"world/a/x1: wwwdinst: world/a/x1 is protected by {dev}/world/a/.wwwinstrc:2: x*",
        f"world/a/x1: wwwuinst: world/a/x1 is protected by {udev}/world/a/.wwwinstrc:1: ?1",
        f"world/a/d/y: wwwdinst: world/a/d is protected by {dev}/world/a/.wwwinstrc:3: d/",
        "world/a/d: no line protects it",
        f"world/a/d: wwwdinst: world/a/d is protected by {dev}/world/a/.wwwinstrc:3: d/",
        "world/a/q,v: wwwdinst: world/a/q,v is left alone in every directory",
        "world/a/q,v: wwwuinst: world/a/q,v is left alone in every directory",
        "world/b/x: no line protects it",
    ]


def test_overlapping_install_waits_for_the_path_lock(site, dev):
    build(dev, {"world/a/x": "x", "world/b/y": "y"})
    build(site.production, {"world": None})
    with pathlocks.hold(["world/a"], directory=f"{site.state}/pathlocks"):
        # One beside it does not wait.
        assert site.batch("wwwdinst", "world/b").returncode == 0
        waiting = started(site, "wwwdinst", "world")
        try:
            assert waiting.stdout.readline().startswith("waiting for world: ")
            assert read(site.production) == {"world/b/y": "y"}
        except BaseException:
            waiting.kill()
            raise
    assert waiting.communicate(timeout=60)[0].splitlines()[:2] == ["install world/a/", "install world/a/x"]
    assert read(site.production) == {"world/a/x": "x", "world/b/y": "y"}


def test_install_under_way_is_waited_for_by_an_install_above_and_a_push_below(site, dev):
    """The first one stops in its make, under its locks, until it is told to go on."""
    os.mkfifo(site.root / "go")
    makefile = f"all: ; echo made >one; read line <{site.root}/go; echo made >two\n"
    build(dev, {"world/a/.wwwinstmk": (makefile, 0o644), "world/a/sub/x": "x"})
    build(site.production, {"world/a": None})
    runs = [started(site, "wwwdinst", "world/a")]
    try:
        # Opened for writing when the make reads it: from here on its locks are held.
        with open(site.root / "go", "w") as go:
            for command in (
                ["wwwuinst", "-show", "world/a/sub"],
                ["wwwdinst", "world/a/sub"],
                ["wwwpush", "world/a"],
            ):
                runs.append(started(site, *command))
            assert runs[1].wait(60) == 77  # what changes nothing waits for nobody
            assert runs[2].stdout.readline().startswith("waiting for world/a/sub: ")
            assert runs[3].stdout.readline().startswith("waiting for world/a: ")
            assert read(site.production) == {"world/a": None}
            go.write("go on\n")
        outputs = [run.communicate(timeout=60)[0].splitlines() for run in runs]
    finally:
        for run in runs:
            if run.returncode is None:
                run.kill()
                run.communicate()
    assert [run.returncode for run in (runs[0], *runs[2:])] == [0, 0, 0]
    # Which of the two that wait came first is not known here: it may have told of both others.
    assert outputs[2][-1] == "wwwdinst: world/a/sub: nothing to do"
    # It was pushed whole, not as it stood when the push was asked for.
    assert read(site.delivered("web1")) == {"world/a/one": "made\n", "world/a/two": "made\n", "world/a/sub/x": "x"}


def test_publish_that_was_killed_is_completed_before(site, dev):
    build(dev, {"world/a/.wwwinstrc": "out\n", "world/a/x": "x"})
    (site.production / "world/a").mkdir()
    (site.production / "world/a/.~out.0123456789ab").write_text("result")
    (site.state / "publish").mkdir()
    (site.state / "publish/00.whole").write_text(
        json.dumps(
            {
                "format": "infocluster publish 1",
                "directory": "world/a",
                "names": [["out", ".~out.0123456789ab"]],
                "remove": [],
            }
        )
    )
    done = site.batch("wwwdinst", "world/a")
    assert lines(done)[0] == "completing a publish of world/a that was not finished"
    assert (site.production / "world/a/out").read_text() == "result"


def test_called_by_another_name_it_is_refused(site, tmp_path):
    (tmp_path / "batch").mkdir()
    (tmp_path / "lib").symlink_to(ROOT / "lib")
    shutil.copy(ROOT / "batch/wwwdinst", tmp_path / "batch/wwwxinst")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "batch/wwwxinst"), "world/a"],
        env=site.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 64 and "expected to be called wwwdinst or wwwuinst" in done.stderr
