# SPDX-License-Identifier: Apache-2.0
"""What drifted on a server is found by content, however the server is reached."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sshd
from conftest import Site
from infocluster import config, trees
from infocluster.errors import UnavailableError, UsageError
from infocluster.push import plan, verify
from infocluster.push.order import Order
from infocluster.push.servers import Server
from infocluster.push.skeleton import Skeleton
from locks.askers import LIB, Asker

WAYS = ("local", "ssh", "daemon")
NAMES = ("page.html", "a name", "#hash", "a'b\"c", "back\\slash", "[1]*?", "-x", "\udca0\udcff", "line\nend", "ünï")


class Pair:
    """A production tree and one server that has the same."""

    def __init__(self, root: Path, way: str, reach: object) -> None:
        self.production, self.server_dir = root / "www", root / "servers/web1/www"
        self.conf = {"site": {"production_dir": str(self.production), "state_dir": str(root / "state")}, "push": {}}
        self.server_dir.mkdir(parents=True, exist_ok=True)
        destination = str(self.server_dir)
        if way == "ssh":
            assert isinstance(reach, sshd.Cluster)
            self.conf = reach.settings()
            self.server = Server("web1", "web", "ssh", destination)
        elif way == "daemon":
            self.conf["push"] = {"rsync": sshd.RSYNC, "connect_timeout_s": 5.0}
            self.server = Server("localhost", "web", "daemon", "/all" + destination, port=int(str(reach)))
        else:
            self.server = Server("web1", "web", "local", destination)
        self.conf["site"] = {"production_dir": str(self.production), "state_dir": str(root / "state")}
        for name in NAMES:
            self.write(f"world/a/{name}", name)
        self.write("world/b/page", "b")
        self.write("other/page", "other")
        (self.production / "world/link").symlink_to("http://elsewhere.example//x")
        (self.production / "world/empty").mkdir()
        self.push()

    def write(self, path: str, content: str) -> Path:
        file = self.production / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, errors="surrogateescape")
        return file

    def there(self, path: str) -> Path:
        return self.server_dir / path

    def push(self, *paths: str) -> None:
        listing = trees.scan(str(self.production), paths or ["world", "other"])
        assert all(action.verb not in ("fail", "keep") for action in trees.mirror(listing, str(self.server_dir)))

    def drift(self, *paths: str, skeleton: str = "") -> verify.Drift:
        top = str(self.production)
        excepted = Skeleton.parsed(skeleton, "web.skel", top) if skeleton else Skeleton("", top)
        wanted = verify.contents(top, paths or ["other", "world"], excepted)
        order = Order(self.conf, wanted.paths, True, False, time.monotonic() + 30, threading.Event())
        return verify.compare(self.server, wanted, order)

    def change_behind_our_back(self, path: str) -> None:
        """Another content of the same size, time and permissions."""
        file = self.there(path)
        before = file.stat()
        file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_size == before.st_size


@pytest.fixture(scope="module")
def reach(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    root = tmp_path_factory.mktemp("reach")
    with (
        sshd.cluster(root, "web1") as cluster,
        sshd.rsync_daemon(root, "[all]\npath = /\nread only = no\nmunge symlinks = no\n") as port,
    ):
        yield {"ssh": cluster, "daemon": port, "local": None}


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path: Path, reach: dict[str, object]) -> Pair:
    return Pair(tmp_path, request.param, reach[request.param])


@pytest.fixture
def local(tmp_path: Path) -> Pair:
    return Pair(tmp_path, "local", None)


def found(drift: verify.Drift) -> dict[str, list[str]]:
    lists = ("missing", "extra", "differ", "unread", "faults")
    return {name: getattr(drift, name) for name in lists if getattr(drift, name)}


def test_equal_server_is_the_same(pair: Pair) -> None:
    drift = pair.drift()
    assert found(drift) == {}
    assert drift.is_same
    assert drift.duration_s > 0


def test_each_sort_of_drift_is_found_under_its_name(pair: Pair) -> None:
    for name in NAMES:
        pair.change_behind_our_back(f"world/a/{name}")
    pair.there("world/b/page").unlink()
    pair.there("world/extra").mkdir()
    pair.there("world/extra/page").write_text("x")
    pair.there("world/link").unlink()
    pair.there("world/link").symlink_to("http://elsewhere.example//y")
    pair.there("world/empty").rmdir()
    drift = pair.drift()
    assert found(drift) == {
        "missing": ["world/b/page", "world/empty"],
        "extra": ["world/extra", "world/extra/page"],
        "differ": sorted([*(f"world/a/{name}" for name in NAMES), "world/link"]),
    }
    assert not drift.is_same


def test_only_the_named_paths_are_compared(pair: Pair) -> None:
    pair.change_behind_our_back("world/a/page.html")
    pair.change_behind_our_back("other/page")
    assert found(pair.drift("world/b", "world/a/a name")) == {}
    assert found(pair.drift("other", "world/b")) == {"differ": ["other/page"]}
    assert found(pair.drift("world/a/page.html")) == {"differ": ["world/a/page.html"]}


def test_path_that_is_gone_here_has_to_be_gone_there(pair: Pair) -> None:
    shutil.rmtree(pair.production / "world/b")
    (pair.production / "world/a/page.html").unlink()
    assert found(pair.drift("world/b", "world/a/page.html")) == {
        "extra": ["world/a/page.html", "world/b", "world/b/page"]
    }
    pair.push("world/b", "world/a/page.html")
    assert found(pair.drift("world/b", "world/a/page.html")) == {}


def test_what_a_push_leaves_out_is_not_compared(pair: Pair) -> None:
    pair.write("world/b/secret", "s").chmod(0o600)
    pair.change_behind_our_back("world/b/page")
    (pair.production / "world/b/page").chmod(0o640)
    pair.there("world/b/secret").write_text("old")
    (pair.production / "world/a").chmod(0o700)
    pair.change_behind_our_back("world/a/page.html")
    assert found(pair.drift()) == {}


def test_what_the_skeleton_leaves_out_is_not_compared(pair: Pair) -> None:
    skeleton = "${FILES} -> ${HOSTS}\n\texcept ( world/b ) ;\n\texcept_pat ( \\\\.bak\\$ ) ;\n"
    pair.change_behind_our_back("world/b/page")
    pair.there("world/a/page.bak").write_text("only there, and nowhere named")
    assert found(pair.drift("world", skeleton=skeleton)) == {}
    assert found(pair.drift("world")) == {"extra": ["world/a/page.bak"], "differ": ["world/b/page"]}


def test_kind_of_thing_that_differs_is_told(local: Pair) -> None:
    local.there("world/b/page").unlink()
    local.there("world/b/page").mkdir()
    local.there("world/a/a name").unlink()
    os.mkfifo(local.there("world/a/a name"))
    local.there("world/link").unlink()
    local.there("world/link").write_text("http://elsewhere.example//x")
    assert found(local.drift()) == {"differ": ["world/a/a name", "world/b/page", "world/link"]}


def test_server_without_its_destination_or_out_of_reach_is_a_fault_of_its_own(pair: Pair) -> None:
    shutil.rmtree(pair.server_dir)
    drift = pair.drift()
    assert not drift.is_same
    if pair.server.transport == "daemon":
        # It would make the directory of its module.
        assert "world/b/page" in drift.missing
        pair.server = Server("localhost", "web", "daemon", "/all", port=sshd.free_port())
        (fault,) = pair.drift().faults
        assert fault.startswith("cannot reach localhost: ")
    else:
        assert drift.faults == [f"cannot open {pair.server_dir}: no such directory on web1"]


def test_server_without_the_programs_is_told(local: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert local.drift().faults == ["cannot verify web1: it needs find, sort, sed, xargs and sha256sum of GNU"]


@pytest.mark.root
def test_file_that_cannot_be_read_there_or_here_is_told_from_one_that_is_missing(open_dir: Path) -> None:
    """As a user who owns a file here that others may read, and he may not."""
    pair = Pair(open_dir, "local", None)
    here = pair.write("world/b/here", "others may")
    pair.push()
    here.chmod(0o044)
    os.chown(here, 65534, 65534)
    pair.there("world/b/page").chmod(0o600)
    pair.there("world/a/page.html").unlink()
    code = f"""
import sys, os
sys.path.insert(0, {LIB!r})
import threading, time
from concurrent.futures import thread
from infocluster import processes
from infocluster.push import verify
from infocluster.push.servers import Server
from infocluster.push.skeleton import Skeleton
from infocluster.push.order import Order
top, there = sys.argv[1:]
os.setuid(65534)
wanted = verify.contents(top, ["world"], Skeleton("", top))
order = Order({{}}, wanted.paths, True, False, time.monotonic() + 30, threading.Event())
drift = verify.compare(Server("web1", "web", "local", there), wanted, order)
print(wanted.unread, drift.missing, drift.unread, drift.differ, drift.extra, drift.faults)
"""
    command = [sys.executable, "-c", code, str(pair.production), str(pair.server_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    unread = "{'world/b/here': 'Permission denied'}"
    assert done.stdout == f"{unread} ['world/a/page.html'] ['world/b/page'] [] [] []\n"


# A whole family


def drifted_site(site: Site) -> dict:
    for path in ("world/a", "world/b"):
        (site.production / path).write_text(path)
    for server in site.servers:
        (site.delivered(server) / "world").mkdir()
        for path in ("world/a", "world/b"):
            (site.delivered(server) / path).write_text(path)
    (site.delivered("web2") / "world/a").write_text("WORLD/A")
    (site.delivered("web3") / "world/a").write_text("World/a")
    return config.load(str(site.conf_file))


def all_servers(conf: dict, *paths: str, **request: object) -> tuple[list[verify.Drift], list[str], list[str]]:
    said: list[str] = []
    faults: list[str] = []
    asked = plan.Request("wwwpush", "web", paths, **request)
    return verify.all_servers(asked, conf, said.append, faults.append), said, faults


def test_family_is_told_by_server_and_equal_ones_together(site: Site) -> None:
    conf = drifted_site(site)
    drifts, said, faults = all_servers(conf, everything=True)
    assert said == ["web1: same"]
    assert faults == ["web[2-3]: differs world/a"]
    assert [drift.is_same for drift in drifts] == [True, False, False]
    shape = json.loads(json.dumps(verify.as_record(drifts)))
    assert (shape[1]["server"], shape[1]["differ"], shape[1]["ok"]) == ("web2", ["world/a"], False)
    (site.delivered("web2") / "world/b").unlink()
    shutil.rmtree(site.delivered("web3"))
    faults = all_servers(conf, "world/a", "world/b")[2]
    assert faults[:2] == ["web2: missing world/b", "web2: differs world/a"]
    assert faults[2].startswith("web3: cannot open ")
    assert len(faults) == 3
    assert [drift.server for drift in all_servers(conf, everything=True, on="web[1,3]")[0]] == ["web1", "web3"]
    assert all_servers(conf, "world/slip", on="web1")[1] == [
        "not in the production tree: world/slip; servers that have it lose it",
        "web1: same",
    ]


def test_verify_refuses_what_a_push_refuses_and_waits_for_pushes(site: Site) -> None:
    conf = drifted_site(site)
    with pytest.raises(UsageError, match="give -all"):
        all_servers(conf, "world")
    pusher = Asker(site.state / "pathlocks").holds("world/a")
    try:
        with pytest.raises(UnavailableError, match="cannot lock world: "):
            all_servers(conf, everything=True, timeout_s=0.0)
    finally:
        pusher.dies()
        pusher.process.communicate()
    assert len(all_servers(conf, everything=True, timeout_s=0.0)[0]) == 3
