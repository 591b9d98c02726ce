# SPDX-License-Identifier: Apache-2.0
"""trees: a destination becomes the same as its source, by whole files, and nothing outside is ever touched."""

import os
import shutil
import socket
import stat
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infocluster import files, trees
from infocluster.errors import RefusedError, UnavailableError

NAMES = st.sampled_from(["a", "b", "c", "ab", "é x", "[1]*", "-r", "#n", ".hidden", "n\nl", "\udcff"])
FILE = st.tuples(st.just("file"), st.binary(max_size=12), st.sampled_from([0o644, 0o640, 0o755]), st.integers(1, 3))
LINK = st.tuples(st.just("link"), st.sampled_from(["a", "http://host/x", "../../outside", "/etc"]))
TREE = st.recursive(
    st.one_of(FILE, LINK),
    lambda below: st.tuples(
        st.just("dir"), st.dictionaries(NAMES, below, max_size=5), st.sampled_from([0o755, 0o750])
    ),
    max_leaves=16,
)
ROOT = st.dictionaries(NAMES, TREE, max_size=6)


def build(directory, entries):
    os.makedirs(directory, exist_ok=True)
    for name, (kind, *rest) in entries.items():
        path = f"{directory}/{name}"
        if kind == "file":
            content, mode, second = rest
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, mode)
            os.utime(path, ns=(0, second * 10**9 + 5))
        elif kind == "link":
            os.symlink(rest[0], path)
        else:
            build(path, rest[0])
            os.chmod(path, rest[1])


def read(directory):
    """Return what a tree holds as {path: what}, in terms that two equal trees share."""
    found = {}
    for here, below, plain in os.walk(directory):
        for name in (*below, *plain):
            path = f"{here}/{name}"
            status = os.lstat(path)
            key = os.path.relpath(path, directory)
            if stat.S_ISLNK(status.st_mode):
                found[key] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[key] = ("dir", stat.S_IMODE(status.st_mode))
            else:
                with open(path, "rb") as file:
                    found[key] = ("file", file.read(), stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    return found


def mirror(source, destination, paths=None, leave=None, **options):
    listing = trees.scan(str(source), paths, leave)
    return listing, list(trees.mirror(listing, str(destination), **options))


def write(path, content="x", mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=ROOT, destination=ROOT)
def test_destination_becomes_the_source_and_a_second_run_does_nothing(tmp_path, source, destination):
    for name in ("s", "d"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    build(f"{tmp_path}/s", source)
    build(f"{tmp_path}/d", destination)
    before = read(tmp_path / "d")
    _, told = mirror(tmp_path / "s", tmp_path / "d", show=True)
    assert read(tmp_path / "d") == before
    _, done = mirror(tmp_path / "s", tmp_path / "d")
    after = read(tmp_path / "d")
    # Equal size and mtime count as equal content, as with rsync -a.
    expected = {
        key: (
            before[key][:2] + what[2:]
            if what[0] == "file"
            and before.get(key, " ")[0] == "file"
            and (len(before[key][1]), before[key][3]) == (len(what[1]), what[3])
            else what
        )
        for key, what in read(tmp_path / "s").items()
    }
    assert after == expected
    assert told == done
    assert mirror(tmp_path / "s", tmp_path / "d")[1] == []
    # What was said accounts for every difference, and for nothing else.
    installed = {action.path for action in done if action.verb == "install"}
    removed = {action.path for action in done if action.verb == "remove"}
    assert installed - removed == after.keys() - before.keys()
    assert removed - installed == before.keys() - after.keys()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=ROOT, destination=ROOT)
def test_result_is_that_of_rsync(tmp_path, source, destination):
    assert shutil.which("rsync"), "rsync is not installed: .ci/packages installs it"
    for name in ("s", "d", "r"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    build(f"{tmp_path}/s", source)
    for name in ("d", "r"):
        build(f"{tmp_path}/{name}", destination)
    subprocess.run(["rsync", "-a", "--force", "--delete", f"{tmp_path}/s/", f"{tmp_path}/r/"], check=True)
    mirror(tmp_path / "s", tmp_path / "d")
    assert read(tmp_path / "d") == read(tmp_path / "r")


def test_new_files_stand_before_old_ones_go(tmp_path):
    for name in ("a", "z"):
        write(tmp_path / f"s/{name}/new")
        write(tmp_path / f"d/{name}/old")
    _, done = mirror(tmp_path / "s", tmp_path / "d")
    assert [(action.verb, action.path) for action in done] == [
        ("install", "a/new"),
        ("install", "z/new"),
        ("remove", "a/old"),
        ("remove", "z/old"),
    ]


def test_only_named_paths_change(tmp_path):
    write(tmp_path / "s/world/a/new")
    write(tmp_path / "s/world/b/new")
    write(tmp_path / "d/world/a/old")
    write(tmp_path / "d/world/b/old")
    write(tmp_path / "d/world/gone/x")
    _, done = mirror(tmp_path / "s", tmp_path / "d", ["world/a", "world/gone"])
    assert [(action.verb, action.path) for action in done] == [
        ("install", "world/a/new"),
        ("remove", "world/gone/x"),
        ("remove", "world/gone"),
        ("remove", "world/a/old"),
    ]
    assert read(tmp_path / "d/world/b").keys() == {"old"}


def test_named_path_that_is_nowhere_makes_nothing(tmp_path):
    (tmp_path / "s/world/a").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    assert mirror(tmp_path / "s", tmp_path / "d", ["world/a/b/c"])[1] == []
    assert read(tmp_path / "d") == {}


def test_parents_of_a_named_file_are_made_with_their_modes(tmp_path):
    write(tmp_path / "s/world/a/page")
    (tmp_path / "s/world").chmod(0o750)
    (tmp_path / "d").mkdir()
    mirror(tmp_path / "s", tmp_path / "d", ["world/a/page"])
    assert read(tmp_path / "d")["world"] == ("dir", 0o750)
    assert read(tmp_path / "d")["world/a/page"][1] == b"x"


def test_path_through_a_link_is_refused(tmp_path):
    write(tmp_path / "s/world/real/page")
    (tmp_path / "s/world/link").symlink_to("real")
    with pytest.raises(RefusedError, match="world/link is a symbolic link"):
        trees.scan(str(tmp_path / "s"), ["world/link/page"])
    # The link itself can be named.
    (tmp_path / "d").mkdir()
    mirror(tmp_path / "s", tmp_path / "d", ["world/link"])
    assert read(tmp_path / "d")["world/link"] == ("link", "real")


def test_directory_swapped_for_a_link_leads_nowhere(tmp_path):
    write(tmp_path / "outside/kept")
    write(tmp_path / "s/sub/page")
    write(tmp_path / "d/sub/old")
    listing = trees.scan(str(tmp_path / "s"))
    # RACE: between the listing and the copy, both sides.
    actions = trees.mirror(listing, str(tmp_path / "d"))
    first = next(actions)
    assert (first.verb, first.path) == ("install", "sub/page")
    shutil.rmtree(tmp_path / "d/sub")
    (tmp_path / "d/sub").symlink_to(tmp_path / "outside")
    rest = list(actions)
    assert [action.verb for action in rest] == ["fail"]
    assert read(tmp_path / "outside").keys() == {"kept"}
    # Before the next run the link stands where a directory is to be: it is replaced, what it names is not touched.
    mirror(tmp_path / "s", tmp_path / "d")
    assert read(tmp_path / "d").keys() == {"sub", "sub/page"}
    assert read(tmp_path / "outside").keys() == {"kept"}
    # And the source's directory swapped after the listing.
    write(tmp_path / "s/sub/page", "new content")
    listing = trees.scan(str(tmp_path / "s"))
    shutil.rmtree(tmp_path / "s/sub")
    write(tmp_path / "outside/page", "a secret")
    (tmp_path / "s/sub").symlink_to(tmp_path / "outside")
    assert [action.verb for action in trees.mirror(listing, str(tmp_path / "d"))] == ["fail"]
    assert (tmp_path / "d/sub/page").read_text() == "x"


def test_file_swapped_for_a_link_or_fifo_is_not_read(tmp_path):
    write(tmp_path / "outside", "a secret")
    for name in ("link", "fifo"):
        write(tmp_path / f"s/{name}")
    (tmp_path / "d").mkdir()
    listing = trees.scan(str(tmp_path / "s"))
    for name in ("link", "fifo"):
        (tmp_path / f"s/{name}").unlink()
    (tmp_path / "s/link").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "s/fifo")
    done = list(trees.mirror(listing, str(tmp_path / "d")))
    assert [(action.verb, action.path) for action in done] == [("fail", "fifo"), ("fail", "link")]
    assert read(tmp_path / "d") == {}


def test_specials_are_left_alone_on_both_sides_and_told(tmp_path):
    write(tmp_path / "d/pipe", "kept")
    (tmp_path / "s").mkdir()
    os.mkfifo(tmp_path / "s/pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path / "s", os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
    listing, done = mirror(tmp_path / "s", tmp_path / "d")
    assert done == []
    assert [path for path, _ in listing.left] == ["pipe", "sock"]
    assert (tmp_path / "d/pipe").read_text() == "kept"


def test_what_the_caller_leaves_alone_stays_as_it_is(tmp_path):
    for name in ("s", "d"):
        write(tmp_path / name / "in/keep", name)
        write(tmp_path / name / "keep/x", name)
    write(tmp_path / "d/in/go")
    asked = []

    def leave(directory, name, mode):
        asked.append((directory, name, stat.S_ISDIR(mode)))
        return "mine" if name == "keep" else None

    listing, done = mirror(tmp_path / "s", tmp_path / "d", leave=leave)
    assert [(action.verb, action.path) for action in done] == [("remove", "in/go")]
    assert sorted(asked) == [("", "in", True), ("", "keep", True), ("in", "keep", False)]
    assert sorted(listing.left) == [("in/keep", "mine"), ("keep", "mine")]
    # Naming what lies below changes nothing about it.
    assert mirror(tmp_path / "s", tmp_path / "d", ["keep/x"], leave)[1] == []


def test_unfinished_writes_are_not_copied_and_are_cleared_away(tmp_path):
    write(tmp_path / "s" / files.temporary_name("page"))
    write(tmp_path / "d" / files.temporary_name("page"))
    _, done = mirror(tmp_path / "s", tmp_path / "d")
    assert [action.verb for action in done] == ["remove"]
    assert read(tmp_path / "d") == {}
    with pytest.raises(RefusedError):
        trees.scan(str(tmp_path / "s"), ["world/" + files.temporary_name("page")])


def test_nothing_is_removed_when_something_failed(tmp_path):
    write(tmp_path / "s/new")
    write(tmp_path / "d/old")
    listing = trees.scan(str(tmp_path / "s"))
    (tmp_path / "s/new").unlink()
    done = list(trees.mirror(listing, str(tmp_path / "d")))
    assert [(action.verb, action.path) for action in done] == [("fail", "new"), ("keep", "old")]
    assert read(tmp_path / "d").keys() == {"old"}


def test_set_user_id_is_never_copied(tmp_path):
    write(tmp_path / "s/program").chmod(0o6755)
    write(tmp_path / "d/program").chmod(0o6755)
    os.utime(tmp_path / "d/program", ns=(0, (tmp_path / "s/program").stat().st_mtime_ns))
    mirror(tmp_path / "s", tmp_path / "d")
    assert read(tmp_path / "d")["program"][2] == 0o755
    assert mirror(tmp_path / "s", tmp_path / "d")[1] == []


def test_permissions_alone_are_set_without_a_copy(tmp_path):
    write(tmp_path / "s/page").chmod(0o600)
    (tmp_path / "d").mkdir()
    mirror(tmp_path / "s", tmp_path / "d")
    number = (tmp_path / "d/page").stat().st_ino
    (tmp_path / "s/page").chmod(0o644)
    assert [action.verb for action in mirror(tmp_path / "s", tmp_path / "d")[1]] == ["update"]
    assert (tmp_path / "d/page").stat().st_ino == number
    assert read(tmp_path / "d") == read(tmp_path / "s")


def test_destination_that_keeps_whole_seconds_is_not_copied_again(tmp_path):
    write(tmp_path / "s/page")
    write(tmp_path / "d/page")
    os.utime(tmp_path / "s/page", ns=(0, 5_123_456_789))
    os.utime(tmp_path / "d/page", ns=(0, 5_000_000_000))
    assert mirror(tmp_path / "s", tmp_path / "d")[1] == []
    os.utime(tmp_path / "d/page", ns=(0, 5_000_000_001))
    assert [action.verb for action in mirror(tmp_path / "s", tmp_path / "d")[1]] == ["update"]


def test_names_of_255_bytes_are_copied(tmp_path):
    for name in ("x" * 255, "é" * 127):
        write(tmp_path / "s" / name)
    (tmp_path / "d").mkdir()
    mirror(tmp_path / "s", tmp_path / "d", durable=True)
    assert read(tmp_path / "d") == read(tmp_path / "s")


def test_missing_roots_are_told(tmp_path):
    with pytest.raises(UnavailableError, match=r"cannot read .*/s: No such file"):
        trees.scan(f"{tmp_path}/s")
    (tmp_path / "s").mkdir()
    with pytest.raises(UnavailableError, match=r"cannot open .*/d: No such file"):
        mirror(tmp_path / "s", tmp_path / "d")


@pytest.mark.parametrize(
    ("paths", "kept"),
    [
        (["w/a", "w/ab", "w/a/b"], ["w/a", "w/ab"]),
        (["w/a-b", "w/a/b", "w/a", "w/a"], ["w/a", "w/a-b"]),
        ([], []),
    ],
)
def test_paths_below_another_are_dropped_by_components(paths, kept):
    assert trees.outermost(paths) == kept
