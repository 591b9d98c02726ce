# SPDX-License-Identifier: Apache-2.0
"""push.handover and push.relay: what a relay takes from a master, what it refuses, and when it ends."""

import copy
import json
import os
import selectors
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from infocluster import __version__, trees
from infocluster.errors import BadInputError, ConfigError, RefusedError
from infocluster.locks import pathlocks
from infocluster.push import handover
from infocluster.push.fan import Job
from infocluster.push.order import Outcome
from infocluster.push.servers import Server
from infocluster.push.skeleton import Skeleton

LEASE_S = 3.0
SOON_S = 20


def server(name="web1"):
    return Server(name, "web", "ssh", f"/srv/{name}", "www", 2222)


def share(source, *paths, servers=("web1", "web2"), lease_s=LEASE_S):
    skeleton = Skeleton.parsed("${FILES} -> ${HOSTS} except_pat draft\\$ ;", "web.skel", str(source))
    listing = trees.scan(str(source), paths, skeleton.leave)
    listing.leave = skeleton.leave
    jobs = [Job(server(name), listing, list(paths), skeleton) for name in servers]
    return handover.Share(list(paths), jobs, lease_s, 60, False)


def flat(directory, path=""):
    """Return everything that a listing says, in a form that compares."""
    own = (directory.mode, directory.whole, directory.entries, directory.left, directory.absent)
    result = {path: own}
    for name, below in directory.directories.items():
        result |= flat(below, trees.join(path, name))
    return result


@pytest.fixture
def tree(tmp_path):
    """A production tree with all that a listing can hold."""
    root = tmp_path / "www"
    (root / "world/a/deep").mkdir(parents=True)
    for name in ("page", "é", "two\nlines", "draft"):
        (root / "world/a" / name).write_text(name)
    with open(os.fsencode(root) + b"/world/a/\xff", "w"):
        pass
    (root / "world/a/deep/er").write_text("")
    (root / "world/a/link").symlink_to("http://localhost/x y")
    return root


def test_share_arrives_as_it_was_told(tree, tmp_path):
    told = share(tree, "world/a", "world/b/gone", "world/gone")
    elsewhere = str(tmp_path / "elsewhere")
    arrived = handover.share_read(handover.read(handover.written(handover.share_told(told))), elsewhere)
    assert (arrived.paths, arrived.lease_s, arrived.server_timeout_s) == (told.paths, LEASE_S, 60)
    assert [(job.server, job.paths) for job in arrived.jobs] == [(job.server, job.paths) for job in told.jobs]
    listing, before = arrived.jobs[0].listing, told.jobs[0].listing
    assert flat(listing.top) == flat(before.top)
    assert (listing.source, listing.count, listing.size_bytes) == (elsewhere, before.count, before.size_bytes)
    assert listing.left == before.left == [("world/a/draft", "web.skel, line 1, leaves it out")]
    assert [type(why) for _, why in listing.left] == [type(why) for _, why in before.left]
    assert [listing.stays(path) for path in ("world/b/draft", "world/b")] == [before.left[0][1], None]
    assert arrived.jobs[1].listing is listing


def put(*way):
    """Return a change of a message: the last of these is put where the others lead."""
    *way, last, value = way

    def change(message):
        for step in way:
            message = message[step]
        message[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (put("version", __version__ + "x"), BadInputError),
        (put("format", "infocluster relay 0"), BadInputError),
        (put("more", 1), BadInputError),
        (put("jobs", 0, "server", "command", "x"), BadInputError),
        (put("jobs", []), BadInputError),
        (put("jobs", 0, "listing", -1), BadInputError),
        (put("lease_s", 0), BadInputError),
        (put("lease_s", "nan"), BadInputError),
        (put("server_timeout_s", 1e9), BadInputError),
        (put("atomic", 1), BadInputError),
        (put("keep", 1), BadInputError),
        (put("skeletons", []), BadInputError),
        (put("skeletons", 0, "web.skel"), BadInputError),
        (put("skeletons", 0, ["none", "web.skel", "/www"]), ConfigError),
        (put("paths", ["world/a/"]), BadInputError),
        (put("paths", ["../etc"]), BadInputError),
        (put("paths", ["/etc"]), BadInputError),
        (put("paths", "world"), BadInputError),
        (put("paths", ["world", "world/a"]), BadInputError),
        (put("paths", ["world/b"]), RefusedError),
        (put("jobs", 0, "paths", ["world"]), RefusedError),
        (put("jobs", 0, "server", "name", "-oProxyCommand=x"), BadInputError),
        (put("jobs", 0, "server", "name", "web1 web2"), BadInputError),
        (put("jobs", 0, "server", "destination", ""), BadInputError),
        (put("jobs", 0, "server", "port", 65536), BadInputError),
        (put("jobs", 0, "server", "transport", "none"), BadInputError),
        (put("jobs", 0, "server", "transport", "local"), RefusedError),
        (put("listings", 0, []), BadInputError),
        (put("listings", 0, 2, 3, {"../x": [33188, 1, 1, ""]}), BadInputError),
        (put("listings", 0, 2, 3, {"a/b": [33188, 1, 1, ""]}), BadInputError),
        (put("listings", 0, 2, 3, {"x": [33188, "1;", 1, ""]}), BadInputError),
        (put("listings", 0, 2, 5, [".."]), BadInputError),
        (put("listings", 0, 2, 0, "world/c/d"), BadInputError),
        (put("listings", 0, 1, 5, ["b"]), RefusedError),
        (put("listings", 0, 0, 2, True), RefusedError),
    ],
)
def test_share_that_is_not_in_order_is_refused(tree, change, error):
    message = handover.read(handover.written(handover.share_told(share(tree, "world/a"))))
    handover.share_read(copy.deepcopy(message), str(tree))
    change(message)
    with pytest.raises(error):
        handover.share_read(message, str(tree))


def test_outcome_arrives_as_it_was_told_and_in_no_other_form():
    told = Outcome("web1", [trees.Action("install", "world/\udcff", False, 5)], ["a fault"], 0.5, True)
    told.begun.append(trees.Action("update", "world/b", True, 0))
    message = handover.read(handover.written(handover.outcome_told(told)))
    assert handover.outcome_told(handover.outcome_read(message)) == handover.outcome_told(told)
    for name, wrong in [
        ("server", None),
        ("changes", [["fail", "world/a", False, 5]]),
        ("changes", [["install", 7, False, 5]]),
        ("changes", [["install", "world/a"]]),
        ("begun", [["install", "world/a", 0, 5]]),
        ("faults", "a fault"),
        ("faults", []),  # unreachable, and nothing to show for it
        ("was_unreachable", 1),
        ("more", 1),
    ]:
        with pytest.raises(BadInputError):
            handover.outcome_read({**message, name: wrong})


class Relay:
    """A real relay with this process as its master."""

    def __init__(self, site):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "batch/wwwpush"), "-relay"],
            env=site.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.unread = b""
        assert self.hear() == {"format": "infocluster relay 1", "version": __version__}

    def tell(self, message):
        self.process.stdin.write(message if isinstance(message, bytes) else handover.written(message))

    def hear(self):
        """Return the next thing that it says, None at the end."""
        while True:
            with selectors.DefaultSelector() as select:
                select.register(self.process.stdout, selectors.EVENT_READ)
                assert select.select(SOON_S), "the relay says nothing"
            line = self.process.stdout.readline()
            if line != b"\n":
                return json.loads(line) if line else None

    def end(self):
        status = self.process.wait(SOON_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        return status


@pytest.fixture
def relay(site):
    relays = []
    site.conf_file.write_text(
        f'[push]\nssh = "{site.root}/none"\n[[servers]]\nname = "web[1-2]"\ntransport = "ssh"\nuser = "www"\n'
        'port = 2222\ndestination = "/srv/%h"\n'
    )

    def start():
        relays.append(Relay(site))
        return relays[-1]

    yield start
    for each in relays:
        each.process.kill()
        each.end()


def copied(site, tree):
    """Make the site's production tree the copy of another, as a master does."""
    listing = trees.scan(str(tree))
    assert [action for action in trees.mirror(listing, str(site.production)) if action.verb == "fail"] == []


@pytest.mark.parametrize("what", ["changed", "missing", "more", "other mode", "not removed"])
def test_relay_whose_tree_is_not_the_masters_pushes_nothing(site, tree, relay, what):
    copied(site, tree)
    if what == "changed":
        (site.production / "world/a/page").write_text("other")
    elif what == "missing":
        (site.production / "world/a/deep/er").unlink()
    elif what == "more":
        (site.production / "world/a/deep/more").write_text("")
    elif what == "other mode":
        (site.production / "world/a/page").chmod(0o600)
    else:
        (site.production / "world/gone").write_text("")
    one = relay()
    one.tell(handover.share_told(share(tree, "world/a", "world/gone")))
    assert one.hear() == {"locked": True}
    one.tell({"go": True})
    (said,) = one.hear().values()
    name = {"missing": "deep/er", "more": "deep/more", "not removed": "../gone"}.get(what, "page")
    assert said == f"cannot relay: {os.path.normpath('world/a/' + name)} is not as the master has it"
    assert one.hear() is None
    assert one.end() == RefusedError.exit_status


def test_relay_holds_the_paths_of_its_host_and_waits_for_them(site, tree, relay):
    directory = str(site.state / "pathlocks")
    one = relay()
    with pathlocks.hold(["world"], directory=directory):
        one.tell(handover.share_told(share(tree, "world/a")))
        assert "waiting for" in one.hear()["say"]
    assert one.hear() == {"locked": True}
    assert [request.paths for request in pathlocks.holders(directory)] == [("world/a",)]


@pytest.mark.parametrize("how", ["end of input", "silence"])
def test_relay_without_its_master_ends_and_lets_go(site, tree, relay, how):
    one = relay()
    began = time.monotonic()
    one.tell(handover.share_told(share(tree, "world/a")))
    assert one.hear() == {"locked": True}
    if how == "end of input":
        one.process.stdin.close()
    assert one.process.wait(SOON_S) == 128 + signal.SIGTERM
    assert how == "end of input" or time.monotonic() - began >= LEASE_S
    assert pathlocks.holders(str(site.state / "pathlocks")) == []


def test_relay_refuses_what_is_no_share(site, relay):
    one = relay()
    one.tell(b"world/a\n")
    assert "unexpected line" in one.hear()["error"]
    assert one.end() == BadInputError.exit_status


@pytest.mark.parametrize("how", [{"destination": "/"}, {"name": "web3"}, {"kind": "ftp"}, {"transport": "daemon"}])
def test_relay_serves_those_servers_that_its_own_settings_have(site, tree, relay, how):
    told = share(tree, "world/a")
    told.jobs[1] = told.jobs[1]._replace(server=told.jobs[1].server._replace(**how))
    one = relay()
    one.tell(handover.share_told(told))
    assert "this host's settings have no such" in one.hear()["error"]
    assert one.end() == RefusedError.exit_status


def test_relay_is_refused_through_sudo(site):
    done = site.batch("wwwpush", "-relay", SUDO_UID="1000")
    assert (done.returncode, done.stdout) == (RefusedError.exit_status, "")
    assert "not through sudo" in done.stderr
