# SPDX-License-Identifier: Apache-2.0
"""What a quick push sends: exactly what makes each server equal again, whatever happened to it and to the tree."""

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infocluster import files, trees
from infocluster.errors import RefusedError, UnavailableError
from infocluster.push import manifest
from infocluster.push.servers import Server

NAMES = ("a", "b")
# Few, so that most steps meet what an earlier one left.
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda parts: "/".join(["world", *parts]))
NAMED = st.one_of(st.just(["world"]), st.lists(PATHS, min_size=1, max_size=3).map(trees.outermost))


def unreadable(_directory: str, _name: str, mode: int) -> str | None:
    return None if stat.S_ISLNK(mode) or mode & 4 else "others may not read it"


class World:
    """A production tree, servers as directories, and what is remembered and lacked."""

    def __init__(self, root: Path, count: int = 2) -> None:
        self.production, self.state = root / "www", root / "state"
        (self.production / "world").mkdir(parents=True)
        self.servers = []
        for number in range(count):
            destination = root / f"web{number}"
            destination.mkdir()
            self.servers.append(Server(f"web{number}", "web", "local", str(destination)))
        self.lacking: dict[str, list[str]] = {}
        self.reports: list[str] = []

    def write(self, path: str, version: int = 0, mode: int = 0o644) -> None:
        """Put a version of a file in place; its content and time depend on the version alone."""
        file = self.production / path
        self.remove(path)
        for above in reversed(file.parents):
            if above.is_relative_to(self.production) and not above.is_dir():
                above.unlink(missing_ok=True)
                above.mkdir()
        file.write_text(f"version {version}")
        file.chmod(mode)
        os.utime(file, ns=(0, 10**18 + version))

    def remove(self, path: str) -> None:
        file = self.production / path
        if path == "world":
            return
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif os.path.lexists(file) and not any(above.is_file() for above in file.parents):
            file.unlink()

    def link(self, path: str, text: str) -> None:
        self.write(path)
        (self.production / path).unlink()
        (self.production / path).symlink_to(text)

    def chmod(self, path: str, mode: int) -> None:
        file = self.production / path
        if file.exists() and not file.is_symlink():
            file.chmod(mode)

    def one(self, number: int) -> str:
        """Return one of the paths that are there."""
        there = sorted(self.production.rglob("*"))
        return str(there[number % len(there)].relative_to(self.production))

    def remove_one(self, number: int) -> None:
        self.remove(self.one(number))

    def chmod_one(self, number: int, mode: int) -> None:
        self.chmod(self.one(number), mode)

    def scan(self, paths: list[str]) -> trees.Listing:
        return trees.scan(str(self.production), paths, unreadable)

    def push(self, paths: list[str], on: list[Server], stop_behind: int | None = None) -> None:
        """Push as run does; a push that stops has failed on all of its servers."""
        listing = self.scan(paths)
        for server in on:
            for _ in islice(trees.mirror(listing, server.destination), stop_behind):
                pass
        if stop_behind is None:
            self.remember(on, listing, paths)
            for server in on:
                lacks = self.lacking.get(server.name, [])
                self.lacking[server.name] = [
                    lack for lack in lacks if not any(f"{lack}/".startswith(f"{path}/") for path in paths)
                ]
        else:
            for server in on:
                self.lacking.setdefault(server.name, []).extend(paths)

    def remember(self, on: list[Server], listing: trees.Listing, paths: list[str]) -> None:
        manifest.remember(str(self.state), on, listing, paths, self.servers, self.reports.append)

    def plan(self, listing: trees.Listing, paths: list[str]) -> list[manifest.Share]:
        return manifest.plan(str(self.state), self.servers, listing, paths, self.lacking, self.reports.append)

    def wanted(self, paths: list[str] | None = None) -> dict[str, list[str]]:
        paths = paths or ["world"]
        return {server.name: share.paths for share in self.plan(self.scan(paths), paths) for server in share.servers}

    def quick(self, paths: list[str]) -> None:
        listing = self.scan(paths)
        for share in self.plan(listing, paths):
            for server in share.servers:
                for action in trees.mirror(share.listing, server.destination):
                    assert action.verb not in ("fail", "keep")
            self.remember(share.servers, listing, paths)
        for server in self.servers:
            lacks = self.lacking.get(server.name, [])
            self.lacking[server.name] = [lack for lack in lacks if not self.covers(paths, lack)]

    @staticmethod
    def covers(paths: list[str], lack: str) -> bool:
        return any(f"{lack}/".startswith(f"{path}/") for path in paths)

    def differences(self, paths: list[str]) -> dict[str, list[trees.Action]]:
        listing = self.scan(paths)
        return {
            # A push that was stopped leaves temporary names until the next comparison of their directory.
            server.name: [
                action
                for action in trees.mirror(listing, server.destination, True)
                if not any(map(files.is_temporary, action.path.split("/")))
            ]
            for server in self.servers
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def stored(world: World) -> list[str]:
    names = os.listdir(world.state / "pushes/manifests")
    return sorted(name for name in names if name not in ("index.json", "lock"))


STEPS = st.one_of(
    st.tuples(st.just("write"), PATHS, st.integers(0, 2)),
    st.tuples(st.just("write"), PATHS, st.integers(0, 2), st.just(0o600)),
    st.tuples(st.just("remove_one"), st.integers(0, 99)),
    st.tuples(st.just("remove_one"), st.integers(0, 99)),
    st.tuples(st.just("link"), PATHS, st.sampled_from(["a", "http://elsewhere.example/"])),
    st.tuples(st.just("chmod_one"), st.integers(0, 99), st.sampled_from([0o755, 0o700, 0o715, 0o444])),
    st.tuples(st.just("push"), NAMED, st.sampled_from([0, 1, 2]), st.sampled_from([None, None, 0, 1, 2])),
    st.tuples(st.just("quick"), st.just(["world"])),
    st.tuples(st.just("quick"), NAMED),
)


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEPS, min_size=4, max_size=16))
def test_quick_push_makes_every_server_equal_whatever_came_before(steps: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root))
        (Path(world.servers[1].destination) / "world/a/of old").mkdir(parents=True)
        for path in ("a/a/a", "a/b", "b/a"):
            world.write(f"world/{path}")
        world.quick(["world"])
        for word, *arguments in steps:
            if word == "push":
                paths, which, stop_behind = arguments
                with contextlib.suppress(RefusedError):
                    world.push(paths, world.servers[which : which + 1] or world.servers, stop_behind)
            elif word != "quick":
                getattr(world, word)(*arguments)
            else:
                try:
                    world.quick(*arguments)
                except RefusedError as error:
                    assert "is a symbolic link" in str(error)
                    continue
                paths = arguments[0]
                assert world.differences(paths) == {server.name: [] for server in world.servers}
                # What is sent once is not sent again; of a part it may be, where what lies above it is not known.
                assert paths != ["world"] or set(map(tuple, world.wanted(paths).values())) == {()}
        world.quick(["world"])
        assert world.differences(["world"]) == {server.name: [] for server in world.servers}
        assert world.reports == []


@given(paths=st.lists(PATHS, min_size=1, max_size=4).map(trees.outermost), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_part_of_a_listing_is_what_a_scan_of_its_paths_finds(paths: list[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root))
        for number, path in enumerate(["a/a", "a/b/a", "b/a/a", "b/a/b"]):
            world.write(f"world/{path}", seed, 0o600 if number == seed else 0o644)
        world.link("world/b/b", "../a")
        (world.production / "world/a/b").chmod(0o755 if seed else 0o700)
        whole = world.scan(["world"])
        try:
            scanned = world.scan(paths)
        except RefusedError as error:
            with pytest.raises(RefusedError, match=re.escape(str(error))):
                manifest.part(whole, paths)
            return
        part = manifest.part(whole, paths)
        assert manifest.image(part.top) == manifest.image(scanned.top)
        assert (part.source, part.count, part.size_bytes) == (scanned.source, scanned.count, scanned.size_bytes)
        assert sorted(part.left) == sorted(scanned.left)


def test_path_that_was_not_scanned_is_never_taken_for_absent(world: World) -> None:
    world.write("world/a/a")
    world.write("world/b/b")
    listing = world.scan(["world/a"])
    for path in ("world/b", "world/b/b", "other/a"):
        with pytest.raises(ValueError, match="not in the listing"):
            manifest.part(listing, [path])


def test_only_what_is_new_changed_or_gone_is_named_and_its_outermost_path(world: World) -> None:
    for path in ("a/a", "a/b", "a/c/a", "b/a", "c"):
        world.write(f"world/{path}")
    world.push(["world"], world.servers)
    assert world.wanted() == {"web0": [], "web1": []}
    world.write("world/a/a", 1)
    world.remove("world/a/c")
    world.write("world/n/e/w")
    world.remove("world/c")
    world.write("world/c/now a directory")
    (world.production / "world/b").chmod(0o711 | 4)
    changed = ["world/a/a", "world/a/c", "world/b", "world/c", "world/n"]
    assert world.wanted() == {"web0": changed, "web1": changed}
    assert world.wanted(["world/a", "world/n/e"]) == {
        server.name: ["world/a/a", "world/a/c", "world/n/e"] for server in world.servers
    }


def test_server_of_which_nothing_is_known_gets_everything(world: World) -> None:
    world.write("world/a")
    world.push(["world"], world.servers[:1])
    assert world.wanted() == {"web0": [], "web1": ["world"]}
    world.push(["world/a"], world.servers[1:])
    assert world.wanted(["world/a"]) == {"web0": [], "web1": []}
    assert world.wanted() == {"web0": [], "web1": ["world"]}
    # The same name, another disk.
    world.servers[0] = world.servers[0]._replace(destination=world.servers[0].destination + "/new")
    assert world.wanted() == {"web0": ["world"], "web1": ["world"]}


def test_what_a_server_lacks_is_sent_though_nothing_changed(world: World) -> None:
    world.write("world/a/a")
    world.write("world/b")
    world.push(["world"], world.servers)
    world.lacking = {"web0": ["world/a/a", "world/a", "other"], "web1": [""]}
    assert world.wanted() == {"web0": ["world/a"], "web1": ["world"]}
    assert world.wanted(["world/a/a"]) == {"web0": ["world/a/a"], "web1": ["world/a/a"]}


def test_what_a_server_lacks_below_a_parent_that_is_gone_or_no_directory_any_more_is_the_parent(world: World) -> None:
    world.write("world/a/a/a")
    world.write("world/b/b/b")
    world.push(["world"], world.servers)
    world.remove("world/a")
    world.link("world/b/b", "http://elsewhere.example/")
    world.push(["world"], world.servers)
    world.lacking = {"web0": ["world/a/a/a"], "web1": ["world/b/b/b"]}
    assert world.wanted() == {"web0": ["world/a"], "web1": ["world/b/b"]}


def test_thousand_equal_servers_cost_one_file_and_one_share(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    world.servers = [Server(f"web{number}", "web", "ssh", "/srv/www") for number in range(1000)]
    world.write("world/a")
    world.remember(world.servers, world.scan(["world"]), ["world"])
    assert len(stored(world)) == 1
    world.write("world/a", 1)
    (share,) = world.plan(world.scan(["world"]), ["world"])
    assert (len(share.servers), share.paths) == (1000, ["world/a"])
    assert (share.listing.count, share.listing.size_bytes) == (1, len("version 1"))
    world.remember(world.servers[:400], world.scan(["world"]), ["world"])
    assert len(stored(world)) == 2
    assert sorted((len(share.servers), share.paths) for share in world.plan(world.scan(["world"]), ["world"])) == [
        (400, []),
        (600, ["world/a"]),
    ]


def test_what_nobody_has_any_more_is_dropped(world: World) -> None:
    for version in range(3):
        world.write("world/a", version)
        world.push(["world"], world.servers)
        assert len(stored(world)) == 1
    (world.state / "pushes/manifests/.~left over").touch()
    gone = world.servers.pop()
    world.push(["world/a"], world.servers)
    index = (world.state / "pushes/manifests/index.json").read_text()
    assert gone.name not in index
    # The same path twice is kept once.
    world.write("world/a", 4)
    world.push(["world/a"], world.servers)
    assert len(stored(world)) == 2


def test_many_named_pushes_become_one_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PARTS_LIMIT", 3)
    for path in "abcdef":
        world.write(f"world/{path}/x")
    world.push(["world"], world.servers)
    for path in "abcdef":
        world.write(f"world/{path}/x", 1)
        world.push([f"world/{path}"], world.servers)
        assert len(stored(world)) <= 3
    assert world.wanted() == {"web0": [], "web1": []}
    world.push(["world"], world.servers)
    assert len(stored(world)) == 1


def test_families_do_not_mix(world: World) -> None:
    world.write("world/a")
    ftp = world.servers[0]._replace(kind="ftp")
    manifest.remember(str(world.state), [ftp], world.scan(["world"]), ["world"], [ftp], world.reports.append)
    assert world.wanted() == {"web0": ["world"], "web1": ["world"]}
    world.push(["world"], world.servers)
    assert set(json.loads((world.state / "pushes/manifests/index.json").read_text())) == {"format", "ftp", "web"}
    assert len(stored(world)) == 1


def torn_files(world: World) -> Iterator[Path]:
    directory = world.state / "pushes/manifests"
    yield directory / "index.json"
    yield directory / stored(world)[0]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": "infocluster manifests 1", "web": [{}]}', None])
def test_torn_or_foreign_file_means_everything_and_heals(world: World, content: bytes | None) -> None:
    world.write("world/a")
    for which in range(2):
        world.push(["world"], world.servers)
        assert world.wanted() == {"web0": [], "web1": []}
        file = list(torn_files(world))[which]
        file.write_bytes(file.read_bytes()[:-7] if content is None else content)
        assert world.wanted() == {"web0": ["world"], "web1": ["world"]}
        assert str(file) in world.reports[-1]
        assert "its servers get everything" in world.reports[-1]
    # Torn in the middle and no shorter: the same name has to be written anew.
    file.write_bytes(b"x" * file.stat().st_size)
    world.push(["world"], world.servers)
    assert world.wanted() == {"web0": [], "web1": []}


def test_part_of_another_python_means_everything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write("world/a")
    world.push(["world"], world.servers)
    monkeypatch.setattr(manifest, "HEAD", b"infocluster manifest 1 cpython-399\n")
    assert world.wanted() == {"web0": ["world"], "web1": ["world"]}
    assert world.reports == []


def test_place_that_cannot_be_written_is_told(world: World) -> None:
    world.write("world/a")
    world.state.write_text("not a directory")
    with pytest.raises(UnavailableError, match="pushes/manifests: Not a directory"):
        world.push(["world"], world.servers)
