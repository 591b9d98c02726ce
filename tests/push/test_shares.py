# SPDX-License-Identifier: Apache-2.0
"""push.shares: servers dealt out to push hosts, and what becomes of the share of one that fails.

A program stands in for ssh: it runs the command on this machine and notes who went where. So push hosts and servers
are directories, and all else is real: relays, rsync, the conversation.
"""

import shutil
import sys

import pytest

from conftest import ROOT
from infocluster import __version__, config, trees
from infocluster.cron import progress
from infocluster.push import fan, run, servers, shares
from infocluster.push.plan import Request

SERVERS = tuple(f"web{number}" for number in range(1, 7))

# Whoever starts a relay is the master; the relay knows by a variable which push host it is.
SSH = """#!/bin/sh
case "$*" in *rdistd*) exec echo V ;; esac
while [ "$1" != -- ]; do shift; done
host=$2
shift 2
case "$*" in
*-relay)
    echo "master relay $host" >>{root}/log
    export RELAY=$host INFOCLUSTER_CONF={root}/$host.toml
    test -x {root}/$host.relay && exec {root}/$host.relay
    exec {python} {program} -relay ;;
esac
echo "${{RELAY:-master}} $host" >>{root}/log
test -e {root}/${{RELAY:-master}}.cut && {{ echo "ssh: connect to host $host: Connection timed out" >&2; exit 255; }}
exec sh -c "$*"
"""

HELLO = f'{{"format": "infocluster relay 1", "version": "{__version__}"}}'
TOLD = '{"server": "%s", "changes": [], "begun": [], "faults": [], "duration_s": 0.1, "was_unreachable": false}'


class Hosts:
    """Two push hosts and six servers, and one push over them."""

    def __init__(self, site, root):
        self.root = root
        self.site = site
        self.said, self.faults, self.done = [], [], []
        self.log = root / "log"
        ssh = root / "ssh"
        ssh.write_text(SSH.format(root=root, python=sys.executable, program=ROOT / "batch/wwwpush"))
        ssh.chmod(0o755)
        site.servers = SERVERS
        for name in (*SERVERS, "push1", "push2"):
            site.delivered(name).mkdir(parents=True, exist_ok=True)
        for name in ("push1", "push2"):
            (root / f"{name}.toml").write_text(
                f'[site]\nproduction_dir = "{site.delivered(name)}"\nstate_dir = "{root}/{name}.state"\n'
                f'[push]\nssh = "{ssh}"\nretries = 0\nssh_keep_s = 0\n'
            )
        self.configure(("web[1-6]", ""))
        for number in range(3):
            (site.production / "world/a").mkdir(exist_ok=True)
            (site.production / f"world/a/{number}.html").write_text(str(number))

    def configure(self, *kinds, transport="ssh", directory="", destination="", more=""):
        """Write the master's settings, with servers and their skeleton for each kind of them."""
        self.site.conf_file.write_text(
            f'[push]\nssh = "{self.root}/ssh"\nretries = 0\nssh_keep_s = 0\nconnect_timeout_s = 3\n{more}'
            f'[[push_hosts]]\nname = "push[1-2]"\ndirectory = "{directory or self.site.delivered("%h")}"\n'
            + "".join(
                f'[[servers]]\nname = "{names}"\nskeleton = "{skeleton}"\ntransport = "{transport}"\n'
                f'destination = "{destination or self.site.delivered("%h")}"\n'
                for names, skeleton in kinds
            )
        )

    def pretend(self, name, *lines):
        """Let a push host's relay be one that says these lines."""
        program = self.root / f"{name}.relay"
        program.write_text("#!/bin/sh\n" + "".join(lines))
        program.chmod(0o755)

    def push(self):
        settings = config.load(str(self.site.conf_file))
        paths = ["world/a"]
        listing = trees.scan(str(self.site.production), paths)
        jobs = [fan.Job(server, listing, paths) for server in servers.of_kind(settings, "web")]
        return shares.fan_out(
            jobs,
            listing,
            paths,
            settings,
            done=lambda job, outcome: self.done.append((job.server.name, outcome.server)),
            say=self.said.append,
            fault=self.faults.append,
        )

    def went(self, who):
        """Return where somebody went to."""
        lines = self.log.read_text().splitlines()
        return {line.removeprefix(f"{who} ") for line in lines if line.startswith(f"{who} ")}

    def check(self, outcomes):
        """Every server has everything and is told of once, in the order of the settings."""
        assert [(outcome.server, outcome.faults) for outcome in outcomes] == [(name, []) for name in SERVERS]
        assert sorted(self.done) == [(name, name) for name in SERVERS]
        for name in SERVERS:
            held = {file.name: file.read_text() for file in (self.site.delivered(name) / "world/a").iterdir()}
            assert held == {"0.html": "0", "1.html": "1", "2.html": "2"}


@pytest.fixture
def hosts(site, tmp_path):
    assert shutil.which("rsync")
    return Hosts(site, tmp_path)


def test_each_push_host_gets_a_copy_and_serves_an_even_share(hosts):
    hosts.check(hosts.push())
    assert hosts.faults == []
    assert hosts.went("master") == {"relay push1", "relay push2", "push1", "push2"}
    assert hosts.went("push1") == {"web1", "web3", "web5"}
    assert hosts.went("push2") == {"web2", "web4", "web6"}
    again = hosts.push()
    assert [outcome.changes for outcome in again] == [[]] * len(SERVERS)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["exit 1\n"], "its relay failed: it ended"),
        (["echo no such program >&2; exit 127\n"], "its relay failed: no such program"),
        (["echo hello\nexec cat\n"], "unexpected line 'hello'"),
        ([f"echo '{HELLO.replace(__version__, '0.0.1')}'\nexec cat >/dev/null\n"], "of version 0.0.1"),
        ([f"echo '{HELLO}'\nread -r work\necho '{{\"error\": \"cannot lock\"}}'\n"], "cannot lock"),
        (
            [f"echo '{HELLO}'\nread -r work\necho '{{\"locked\": true}}'\nread -r go\necho '{{\"done\": 3}}'\n"],
            "without a word of every server",
        ),
        (
            [f"echo '{HELLO}'\nread -r work\necho '{{\"locked\": true}}'\nread -r go\necho '{TOLD % 'web2'}'\n"],
            "told of 'web2'",
        ),
    ],
    ids=["dead", "missing", "garbage", "foreign", "refuses", "tells nothing", "tells of another's"],
)
def test_share_of_a_push_host_that_fails_goes_to_the_other(hosts, lines, why):
    hosts.pretend("push1", *lines)
    hosts.check(hosts.push())
    (fault,) = hosts.faults
    assert fault.startswith("push host push1: ") and why in fault
    assert fault.endswith("; the other push hosts will serve web[1,3,5]")
    assert hosts.went("push2") == set(SERVERS)


def test_what_a_push_host_told_of_before_it_died_is_done(hosts):
    hosts.pretend(
        "push1",
        f"echo '{HELLO}'\nread -r work\necho '{{\"locked\": true}}'\nread -r go\n",
        f"cp -pR {hosts.site.production}/. {hosts.site.delivered('web3')}\necho '{TOLD % 'web3'}'\nexit 1\n",
    )
    outcomes = hosts.push()
    hosts.check(outcomes)
    assert hosts.faults[0].endswith("will serve web[1,5]")
    # Nobody knows what it had done to the others.
    begun = {outcome.server: [action.path for action in outcome.begun] for outcome in outcomes if outcome.begun}
    assert begun == {"web1": ["world/a"], "web5": ["world/a"]}
    assert hosts.went("push2") == set(SERVERS) - {"web3"}


def test_command_runs_where_a_push_host_died_before_it_told_what_it_did(hosts, monkeypatch):
    site, ran = hosts.site, hosts.root / "ran"
    monkeypatch.setenv("INFOCLUSTER_CONF", str(site.conf_file))
    (site.conf_file.parent / "some.skel").write_text(
        f'${{FILES}} -> ${{HOSTS}}\n  cmdspecial "echo $FILES >>{ran}" ;\n'
    )
    hosts.configure(("web[1-6]", "some.skel"))
    told = f"echo '{HELLO}'\nread -r work\necho '{{\"locked\": true}}'\nread -r go\n"
    hosts.pretend("push1", told, f"cp -pR {site.production}/. {site.delivered('web1')}\nexit 1\n")
    request = Request("wwwpush", "web", ["world/a"])
    conf = config.load(str(site.conf_file))
    run.push(request, conf, hosts.done.append, hosts.said.append, hosts.faults.append, progress.bar)
    assert any(line.startswith("web1: ok, nothing to do") for line in hosts.said)
    files = {frozenset(line.split(":")) for line in ran.read_text().splitlines()}
    assert files == {frozenset(f"{site.delivered(name)}/world/a/{n}.html" for n in range(3)) for name in SERVERS}


def test_master_serves_when_no_push_host_is_left(hosts):
    hosts.pretend("push1", "exit 1\n")
    hosts.site.delivered("push2").rmdir()
    hosts.check(hosts.push())
    assert len(hosts.faults) == 2
    assert any("push host push2: cannot update it" in fault for fault in hosts.faults)
    assert hosts.faults[1].endswith(("this host will serve web[1-6]", "this host will serve web[2,4,6]"))
    assert hosts.went("master") >= set(SERVERS)


def test_push_host_that_reaches_none_of_its_servers_is_cut_off(hosts):
    (hosts.root / "push2.cut").touch()
    hosts.check(hosts.push())
    (fault,) = hosts.faults
    assert fault.startswith("push host push2: it reaches none of its servers") and "Connection timed out" in fault
    assert hosts.went("push1") == set(SERVERS)


def test_server_that_is_down_is_told_by_its_push_host_alone(hosts):
    hosts.site.delivered("web5").rmdir()
    outcomes = hosts.push()
    assert hosts.faults == []
    assert [outcome.server for outcome in outcomes if outcome.faults] == ["web5"]
    assert hosts.went("push2") == {"web2", "web4", "web6"}


SKELETON = """${FILES} -> ${HOSTS}
    except ( world/a/private.html world/a/own.html ) ;
    except_pat ( \\\\.log\\$ ) ;
"""


@pytest.mark.parametrize("option", ["-quiet", "-atomic"])
@pytest.mark.parametrize("others", ["web.skel", ""], ids=["one kind", "two kinds"])
def test_what_skeletons_and_modes_leave_out_is_neither_sent_nor_removed_by_push_hosts(hosts, others, option):
    site = hosts.site
    (site.root / "etc/web.skel").write_text(SKELETON)
    hosts.configure(("web[1-3]", "web.skel"), ("web[4-6]", others))
    for name, mode in (("private", 0o644), ("secret", 0o600)):
        (site.production / f"world/a/{name}.html").write_text("new")
        (site.production / f"world/a/{name}.html").chmod(mode)
    for server in (*SERVERS, "push1", "push2"):
        (site.delivered(server) / "world/a").mkdir(parents=True)
        for name in ("private.html", "secret.html", "own.html", "x.log", "gone.html"):
            (site.delivered(server) / "world/a" / name).write_text("old")
    done = site.batch("wwwpush", option, "world/a")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot push world/a/secret.html: others may not read it (mode 0600)" in line
    assert hosts.went("master") == {"relay push1", "relay push2", "push1", "push2"}
    sent = {"0.html": "0", "1.html": "1", "2.html": "2", "secret.html": "old"}
    some = {**sent, "private.html": "old", "own.html": "old", "x.log": "old"}
    every = {**sent, "private.html": "new"}
    expected = dict.fromkeys(SERVERS[:3], some) | dict.fromkeys(SERVERS[3:], some if others else every)
    for server, held in {**expected, "push1": expected["web6"], "push2": expected["web6"]}.items():
        found = {file.name: file.read_text() for file in (site.delivered(server) / "world/a").iterdir()}
        assert (server, found) == (server, held)


@pytest.mark.parametrize("is_moved", [False, True], ids=["same place", "elsewhere"])
def test_rdist_on_a_push_host_leaves_out_what_the_masters_skeleton_says(hosts, is_moved):
    site, root = hosts.site, hosts.root
    (site.root / "etc/web.skel").write_text(SKELETON.replace("world/a/own.html", "world/a/o*n.html"))
    rdist = root / "rdist"
    rdist.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/push/rdist_standin.py "$@"\n')
    rdist.chmod(0o755)
    more = f'rdist = "{rdist}"\n'
    for name in ("push1", "push2"):
        settings_file = root / f"{name}.toml"
        text = settings_file.read_text() + more
        settings_file.write_text(text if is_moved else text.replace(str(site.delivered(name)), str(site.production)))
    directory = "" if is_moved else site.production
    hosts.configure(
        ("web[1-6]", "web.skel"), transport="rdist", directory=directory, destination="/srv/www", more=more
    )
    (site.production / "world/a/private.html").write_text("new")
    old = {"private.html", "own.html", "x.log"}
    for server in SERVERS:
        (root / "there" / server / "srv/www/world/a").mkdir(parents=True)
        for name in (*old, "gone.html"):
            (root / "there" / server / "srv/www/world/a" / name).write_text("old")
    done = site.batch("wwwpush", "-keep", "world/a", RDIST_STANDIN_ROOT=str(root / "there"))
    assert (done.returncode, done.stderr) == (0, "")
    for server in SERVERS:
        held = {file.name: file.read_text() for file in (root / "there" / server / "srv/www/world/a").iterdir()}
        assert held == {"0.html": "0", "1.html": "1", "2.html": "2"} | dict.fromkeys(old, "old")
    for state, count in [(root / "push1.state", 3), (root / "push2.state", 3), (site.state, 6)]:
        kept = list((state / "distfiles").glob("*.dist"))
        assert len(kept) == (count if is_moved == (state == site.state) else 0)
