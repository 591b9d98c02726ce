# SPDX-License-Identifier: Apache-2.0
"""push.run: what a push takes, sends, leaves out, tells and remembers."""

import json
import os
import signal
import threading
import time

import pytest

from infocluster import config, files, trees
from infocluster.cron import progress
from infocluster.errors import ConfigError, RefusedError, UnavailableError, UsageError
from infocluster.locks import pathlocks
from infocluster.push import ledger, record, run, transport
from infocluster.push.order import Order
from infocluster.push.plan import Request
from infocluster.push.servers import Server


class Push:
    """A push of a site, with what it said."""

    def __init__(self, site, *paths, **request):
        self.said, self.faults, self.finished = [], [], []
        conf = config.load(str(site.conf_file))
        kind, finish = request.pop("kind", "web"), request.pop("finish", self.finished.append)
        self.record = run.push(
            Request("wwwpush", kind, paths, **request),
            conf,
            finish,
            self.said.append,
            self.faults.append,
            progress.bar,
        )


def write(site, path, content="x", mode=0o644):
    file = site.production / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)
    return file


def held(site, server):
    root = site.delivered(server)
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_servers_become_copies_below_the_named_path_only(site):
    write(site, "world/a/new")
    write(site, "world/b/new")
    for server in site.servers:
        (site.delivered(server) / "world/a").mkdir(parents=True)
        (site.delivered(server) / "world/a/old").write_text("")
        (site.delivered(server) / "world/old").write_text("")
    push = Push(site, "world/a/")
    assert push.said == ["web[1-3]: ok, 1 file, 1 removed"]
    assert push.faults == []
    for server in site.servers:
        assert held(site, server) == {"world", "world/old", "world/a", "world/a/new"}
    assert Push(site, "world/a").said == ["web[1-3]: ok, nothing to do"]


def test_path_that_is_gone_is_removed_on_the_servers(site):
    write(site, "world/kept")
    write(site, "world/gone/page")
    Push(site, "world", everything=True)
    (site.production / "world/gone/page").unlink()
    (site.production / "world/gone").rmdir()
    assert Push(site, "world/gone", "world/slip").said == [
        "not in the production tree: world/gone, world/slip; servers that have it lose it",
        "web[1-3]: ok, 2 removed",
    ]
    assert held(site, "web2") == {"world", "world/kept"}


def test_what_others_may_not_read_is_left_as_it_is_on_the_servers(site):
    write(site, "world/page", "old")
    write(site, "world/dir/page", "old")
    Push(site, everything=True)
    write(site, "world/page", "newer", 0o640)
    write(site, "world/dir/page", "newer")
    (site.production / "world/dir").chmod(0o750)
    write(site, "world/other", "new")
    push = Push(site, "world/page", "world/dir/page", "world/other")
    assert push.faults == [
        "cannot push world/dir: others may not read it (mode 0750); the servers keep what they have",
        "cannot push world/page: others may not read it (mode 0640); the servers keep what they have",
    ]
    assert push.said == ["web[1-3]: ok, 1 file"]
    assert not push.record["ok"]
    for path in ("world/page", "world/dir/page"):
        assert (site.delivered("web1") / path).read_text() == "old"


def test_a_server_that_fails_stands_alone(site):
    write(site, "world/page")
    site.delivered("web2").rmdir()
    push = Push(site, "world/page")
    assert push.said == ["web[1,3]: ok, 1 file, 1 directory"]
    assert len(push.faults) == 1
    assert push.faults[0].startswith(f"web2: failed: cannot open {site.delivered('web2')}: No such file")
    assert [server["ok"] for server in push.record["servers"]] == [True, False, True]
    assert "world/page" in held(site, "web3")


def test_links_are_sent_as_they_are(site):
    write(site, "world/page")
    (site.production / "world/away").symlink_to("http://elsewhere.example/x")
    Push(site, "world/away")
    assert os.readlink(site.delivered("web1") / "world/away") == "http://elsewhere.example/x"
    assert held(site, "web1") == {"world", "world/away"}


@pytest.mark.parametrize("path", ["", "/world/a", "../world", "world/../uw", "world/./a", "-x/y", "world/a\nb"])
def test_text_that_is_no_path_is_refused(site, path):
    write(site, "world/a")
    with pytest.raises(UsageError):
        Push(site, path, everything=True)


def test_whole_tree_needs_to_be_asked_for(site):
    write(site, "world/a")
    with pytest.raises(UsageError, match="give -all"):
        Push(site, "world")
    with pytest.raises(UsageError, match="expected a path"):
        Push(site)
    Push(site, "world/", everything=True)
    assert held(site, "web1") == {"world", "world/a"}


def test_path_through_a_link_is_refused(site):
    write(site, "world/a/page")
    (site.production / "world/link").symlink_to("a")
    (site.production / "tree").symlink_to("world")
    # Before any lock: nobody waits for what is refused.
    with pathlocks.hold([pathlocks.ALL], directory=f"{site.state}/pathlocks"):
        for path in ("world/link/page", "tree/a"):
            with pytest.raises(RefusedError, match="is a symbolic link"):
                Push(site, path)
    with pytest.raises(RefusedError, match="not finished"):
        Push(site, "world/" + files.temporary_name("page"))


def test_tree_that_is_missing_or_empty_never_empties_the_servers(site):
    write(site, "world/page")
    write(site, "uw/page")
    Push(site, everything=True)
    for path in ("world/page", "uw/page"):
        (site.production / path).unlink()
    (site.production / "uw").rmdir()
    for path in ("world/page", "uw/page"):
        with pytest.raises(RefusedError):
            Push(site, path)
    with pytest.raises(RefusedError):
        Push(site, "uw", everything=True)
    with pytest.raises(UnavailableError):
        Push(site, everything=True)
    assert held(site, "web1") == {"world", "world/page", "uw", "uw/page"}
    # Beside another tree the empty one is told and left out; only its name empties it.
    write(site, "new/page")
    push = Push(site, everything=True)
    assert len(push.faults) == 1
    assert push.faults[0].startswith("cannot push world: the tree 'world' is empty here")
    assert "world/page" in held(site, "web1")
    Push(site, "world", everything=True)
    assert held(site, "web1") == {"world", "uw", "uw/page", "new", "new/page"}


def test_tree_that_is_a_link_never_replaces_the_servers_tree(site):
    write(site, "world/page")
    write(site, "uw/page")
    Push(site, everything=True)
    away = site.root / "away"

    def move(_paths=()):
        (site.production / "world").rename(away)
        (site.production / "world").symlink_to(away)

    with pytest.raises(RefusedError, match="'world' is a symbolic link"):
        Push(site, "world", everything=True, finish=move)  # while it waited for the locks
    for paths in (("world",), ("world/page",), ("uw", "world")):
        with pytest.raises(RefusedError, match="'world' is a symbolic link"):
            Push(site, *paths, everything=True)
    assert Push(site, everything=True).faults == [
        "cannot push world: a tree is a directory, and 'world' is a symbolic link"
    ]
    assert not (site.delivered("web1") / "world").is_symlink()
    assert held(site, "web1") == {"world", "world/page", "uw", "uw/page"}


def test_everything_is_every_directory_of_the_production_tree(site):
    write(site, "world/a")
    write(site, "uw/a")
    write(site, ".snapshot/a")
    write(site, "loose")
    (site.production / "link").symlink_to("world")
    push = Push(site, everything=True)
    assert push.faults == ["cannot push link: a tree is a directory, and 'link' is a symbolic link"]
    assert held(site, "web1") == {"world", "world/a", "uw", "uw/a"}


def test_show_says_what_a_push_would_do_and_changes_nothing(site):
    write(site, "world/a/new")
    write(site, "world/a/same")
    (site.delivered("web1") / "world/a").mkdir(parents=True)
    (site.delivered("web1") / "world/a/old").write_text("")
    before = [held(site, server) for server in site.servers], sorted(site.state.rglob("*"))
    push = Push(site, "world/a", show=True)
    assert push.said == [
        "web1: install world/a/new",
        "web1: install world/a/same",
        "web1: remove world/a/old",
        "web[2-3]: install world/",
        "web[2-3]: install world/a/",
        "web[2-3]: install world/a/new",
        "web[2-3]: install world/a/same",
        "web1: would send 2 files, remove 1",
        "web[2-3]: would send 2 files, 2 directories",
    ]
    assert push.finished == []
    assert ([held(site, server) for server in site.servers], sorted(site.state.rglob("*"))) == before


def test_unfinished_publishes_are_completed_under_the_lock_before_the_paths_are_read(site):
    write(site, "world/page")
    (site.production / "world" / files.temporary_name("more")).write_text("not yet")
    conf = config.load(str(site.conf_file))

    def finish(paths):
        assert paths == ["world/more", "world/page"]
        assert len(run.pathlocks.holders(conf["site"]["state_dir"] + "/pathlocks")) == 1
        write(site, "world/more")

    request = Request("wwwpush", "web", ["world/page", "world/more", "world/page/"])
    run.push(request, conf, finish, [].append, [].append, progress.bar)
    assert held(site, "web1") == {"world", "world/page", "world/more"}


def lacking(site):
    return ledger.lacking(str(site.state), run.servers.of_kind(config.load(str(site.conf_file)), "web"), print)


def lack(site, server, *paths):
    """Note that a server lacks paths, as a push that fails there does."""
    every = run.servers.of_kind(config.load(str(site.conf_file)), "web")
    ledger.failed(str(site.state), [(one, paths) for one in every if one.name == server], every, print)


def test_retry_of_a_server_that_lacks_everything_leaves_nothing_lacking(site):
    write(site, "world/page")
    Push(site, "world/page")
    assert set(lacking(site)) == set(site.servers)
    assert Push(site, retry=True).faults == []
    assert lacking(site) == {}
    assert Push(site, retry=True).said == []


def test_tree_that_cannot_be_pushed_stays_lacking_and_holds_no_other(site):
    for tree in ("world", "uw", "link", "gone"):
        write(site, f"{tree}/page")
    Push(site, everything=True)
    for tree in ("world", "uw", "link", "gone"):
        lack(site, "web1", f"{tree}/page")
        lack(site, "web2", "world/page")
        (site.delivered("web1") / tree / "page").write_text("other")
    (site.production / "world/page").unlink()
    for tree in ("link", "gone"):
        (site.production / tree).rename(site.root / tree)
    (site.production / "link").symlink_to(site.root / "link")
    push = Push(site, retry=True)
    assert push.said == ["web1: ok, 1 file"]
    assert len(push.faults) == 3
    for tree in ("world", "link", "gone"):
        assert any(fault.startswith(f"cannot push {tree}/page: ") for fault in push.faults)
        assert (site.delivered("web1") / tree / "page").read_text() == "other"
    assert (site.delivered("web1") / "uw/page").read_text() == "x"
    left = {"web1": ["gone/page", "link/page", "world/page"], "web2": ["world/page"]}
    assert lacking(site) == left
    assert len(Push(site, everything=True).faults) == 2
    assert lacking(site) == left


def test_quick_push_removes_what_a_retry_had_brought(site):
    for path in ("world/a/kept", "world/b/kept"):
        write(site, path)
    Push(site, everything=True)
    new = {"web1": write(site, "world/a/new"), "web2": write(site, "world/b/new")}
    for server, file in new.items():
        lack(site, server, str(file.relative_to(site.production).parent))
    Push(site, retry=True)
    for server, file in new.items():
        assert str(file.relative_to(site.production)) in held(site, server)
        file.unlink()
    Push(site, quick=True, everything=True)
    for server in new:
        assert held(site, server) == held(site, "web3")


def test_quick_push_sends_what_failed_while_it_waited(site):
    write(site, "world/a/page")
    Push(site, everything=True)
    (site.delivered("web2") / "world/a/page").unlink()
    push = Push(site, "world/a", quick=True, finish=lambda _paths: lack(site, "web2", "world/a/page"))
    assert sorted(push.said) == ["web2: ok, 1 file", "web[1,3]: ok, nothing to do"]
    assert lacking(site) == {}


def test_command_that_failed_or_never_ran_is_run_by_the_next_push(site, monkeypatch):
    monkeypatch.setenv("INFOCLUSTER_CONF", str(site.conf_file))
    command, ran = site.root / "command", site.root / "ran"
    (site.root / "etc/distfile.web.skel").write_text(f'${{FILES}} -> ${{HOSTS}}\n    cmdspecial "sh {command}" ;\n')
    text = site.conf_file.read_text()
    site.conf_file.write_text(text.replace('name = "web1"', 'name = "web1"\nskeleton = "distfile.web.skel"'))

    def pushed(*paths, does=f"echo $FILES >>{ran}", **request):
        """Push, and return the files that the command was run for."""
        command.write_text(does)
        ran.write_text("")
        push = Push(site, *paths, **request)
        names = ran.read_text().replace(f"{site.delivered('web1')}/", "").split()
        return [sorted(line.split(":")) for line in names], bool(push.faults)

    write(site, "world/a/page")
    write(site, "world/a/other")
    write(site, "world/b/page")
    every = ["world/a/other", "world/a/page", "world/b/page"]
    assert pushed(everything=True) == ([every], False)

    write(site, "world/a/page", "changed")
    assert pushed("world/a", does="exit 1") == ([], True)
    assert lacking(site) == {"web1": ["world/a"]}
    assert pushed("world/b") == ([], False)
    assert pushed("world/a", does="exit 1") == ([], True)
    assert pushed(retry=True) == ([["world/a/page"]], False)
    assert pushed("world/a") == ([], False)

    write(site, "world/b/page", "changed")
    (site.production / "world/a/page").unlink()
    assert pushed(quick=True, everything=True, does="exit 1") == ([], True)
    assert pushed("world/a/page", does=f"echo gone >>{ran}") == ([["gone"]], False)
    assert pushed(quick=True, everything=True) == ([["world/b/page"]], False)

    # The shell that runs it is a child of the push.
    write(site, "world/b/page", "changed once more")
    command.write_text("kill -9 $(ps -o ppid= $(ps -o ppid= $PPID))")
    assert site.batch("wwwpush", "world/b/page", "world/a").returncode == -signal.SIGKILL
    assert pushed("world/b") == ([["world/b/page"]], False)
    assert pushed("world/a") == ([["world/a/other"]], False)
    assert lacking(site) == {}

    # Nothing was sent, so nothing is due.
    write(site, "world/b/page", "changed again")
    away = site.root / "away"
    site.delivered("web1").rename(away)
    assert pushed("world/a", "world/b") == ([], True)
    away.rename(site.delivered("web1"))
    assert pushed(everything=True) == ([["world/b/page"]], False)


def test_only_servers_of_the_kind_are_served(site):
    write(site, "world/a")
    with pytest.raises(ConfigError, match='kind = "ftp"'):
        Push(site, "world/a", kind="ftp")
    text = site.conf_file.read_text()
    ftp = site.root / "var/servers/ftp1"
    ftp.mkdir()
    site.conf_file.write_text(f'{text}\n[[servers]]\nname = "ftp1"\nkind = "ftp"\ndestination = "{ftp}"\n')
    assert Push(site, "world/a", kind="ftp").said == ["ftp1: ok, 1 file, 1 directory"]
    assert held(site, "web1") == set()


@pytest.mark.parametrize("destination", ["", "/world", "/.."])
def test_destination_that_overlaps_the_production_tree_is_refused(site, destination):
    write(site, "world/a")
    site.conf_file.write_text(f'[[servers]]\nname = "web1"\ndestination = "{site.production}{destination}"\n')
    with pytest.raises(ConfigError, match="overlaps the production tree"):
        Push(site, "world/a")


def test_record_has_what_was_done(site):
    write(site, "world/a/page", "four")
    write(site, "world/secret", mode=0o600)
    push = Push(site, "world/secret", "world/a")
    [file] = (site.state / "pushes").glob("2*.json")
    record = json.loads(file.read_text())
    assert record == push.record
    assert record["paths"] == ["world/a", "world/secret"]
    assert record["left"] == [{"path": "world/secret", "reason": "others may not read it (mode 0600)"}]
    assert record["ok"] is False
    assert record["changes"] == [
        {
            "servers": "web[1-3]",
            "install": ["world", "world/a", "world/a/page"],
            "update": [],
            "remove": [],
            "more": 0,
        }
    ]
    counts = {key: record["servers"][0][key] for key in ("name", "ok", "installed", "updated", "removed", "bytes")}
    assert counts == {"name": "web1", "ok": True, "installed": 3, "updated": 0, "removed": 0, "bytes": 4}


def test_only_the_newest_records_are_kept(site, monkeypatch):
    monkeypatch.setattr(record, "RECORDS_KEPT", 2)
    write(site, "world/a")
    for _ in range(4):
        last = Push(site, "world/a").record
    kept = [json.loads(file.read_text()) for file in (site.state / "pushes").glob("2*.json")]
    assert len(kept) == 2
    assert last in kept


def test_server_that_takes_too_long_is_told_and_ends(site):
    for number in range(5):
        write(site, f"world/{number}")
    listing = trees.scan(str(site.production))
    server = Server("web1", "web", "local", str(site.delivered("web1")))
    late = Order({}, ["world"], False, False, time.monotonic() - 1, threading.Event())
    outcome = transport.send(server, listing, late)
    assert outcome.faults == ["not done after -1 s"]
    assert len(outcome.changes) == 1
    stopped = threading.Event()
    stopped.set()
    order = Order({}, ["world"], False, False, time.monotonic() + 60, stopped)
    assert transport.send(server, listing, order).faults == ["the push was stopped"]


def test_a_fault_of_ours_on_one_server_is_its_own(site):
    listing = trees.scan(str(site.production))
    order = Order({}, ["world"], False, False, time.monotonic() + 60, threading.Event())
    outcome = transport.send(Server("web1", "web", "none", ""), listing, order)
    assert outcome.faults == ["KeyError: 'none'"]
