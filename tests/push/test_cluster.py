# SPDX-License-Identifier: Apache-2.0
"""A push over push hosts among nine hosts made of namespaces, and what goes wrong meanwhile.

While something goes wrong a reader on every server looks at the pages all the time: it must never see half of one.
Afterwards the other servers are right, the report says who is not, and the next push heals it.
"""

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import cache

import pytest

import namespaces
from infocluster import files
from infocluster.locks import pathlocks

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("namespaces")]

PAGES = "world/a"
SMALL, BIG = 2_000, 1_500_000
SIZES = {"big.html": BIG, **{f"{number}.html": SMALL for number in range(8)}}
MARK_BYTES = 16
END_S = 60

# A page begins and ends with its size and version, so that half a page is told from a whole one.
READER = """
import os, select, sys
pages = sys.argv[1]
looks, torn = 0, set()
print("reads", flush=True)
while not select.select([0], [], [], 0.01)[0]:
    try:
        found = [name for name in os.listdir(pages) if name[0] != "."]
    except FileNotFoundError:
        continue
    for name in found:
        try:
            fd = os.open(f"{pages}/{name}", os.O_RDONLY)
        except FileNotFoundError:
            continue
        size = os.fstat(fd).st_size
        head, tail = os.pread(fd, 16, 0), os.pread(fd, 16, max(size - 16, 0))
        os.close(fd)
        looks += 1
        if head != tail or not head or int(head[:8]) != size:
            torn.add(f"{name}: {size} bytes, {head!r} to {tail!r}")
print(looks, *sorted(torn), sep="\\n")
"""


@cache
def page(version, size):
    """Return a page of which nothing is in any other: what has to be sent of it is all of it."""
    mark = b"%08d %06d\n" % (size, version)
    return mark + random.Random(mark).randbytes(size - 2 * MARK_BYTES) + mark


class Site:
    """A cluster with its settings, the pages of its master, and readers on its servers."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.master, self.servers, self.push_hosts = cluster.master, cluster.servers, cluster.push_hosts
        self.version = 0
        here = cluster.here
        for host in cluster.hosts:
            host.settings_file.write_text(
                f'[site]\nproduction_dir = "{here}/www"\nstate_dir = "{here}/state"\n'
                "[push]\nconnect_timeout_s = 2\nretries = 0\nserver_timeout_s = 60\n"
                f'push_host_command = "{cluster.wwwpush}"\n'
                '[[push_hosts]]\nname = "push[1-2]"\n'
                f'[[servers]]\nname = "www[1-6]"\ntransport = "ssh"\ndestination = "{here}/www"\n'
            )

    def write(self):
        """Give all pages of the master a new version."""
        self.version += 1
        directory = self.master.own_dir / "www" / PAGES
        directory.mkdir(parents=True, exist_ok=True)
        for name, size in SIZES.items():
            files.replace(str(directory / name), page(self.version, size), durable=False)

    def push(self):
        done = self.master.run([self.cluster.wwwpush, PAGES], timeout_s=END_S)
        return done.returncode, done.stdout, done.stderr

    def start(self):
        """Start a push and return when it is putting something on a server."""
        process = self.master.start([self.cluster.wwwpush, PAGES])
        namespaces.until(lambda: any(map(self.arrives, self.servers)), "something arrives")
        return process

    def arrives(self, server):
        """Tell whether a file of a server is being written."""
        try:
            return any(name.startswith(".") for name in os.listdir(server.own_dir / "www" / PAGES))
        except FileNotFoundError:
            return False

    def versions(self, server):
        """Return the versions of the pages that a server has, whole ones all of them."""
        found = set()
        for name, size in SIZES.items():
            content = (server.www / PAGES / name).read_bytes()
            version = int(content[9:15])
            assert content == page(version, size), f"{name} on {server.name}"
            found.add(version)
        return found

    def lacking(self):
        """Return the servers that have not all of the master's version and nothing else, with what they have."""
        found = {}
        for server in self.servers:
            other = set(os.listdir(server.www / PAGES)) ^ SIZES.keys()
            versions = self.versions(server) if not other & SIZES.keys() else set()
            if other or versions != {self.version}:
                found[server.name] = sorted(other) or versions
        return found

    @contextmanager
    def watched(self):
        """Let a reader look at each server's pages, and fail where one saw half a page, or none of them anything."""
        words = [sys.executable, "-I", "-S", "-c", READER, f"{self.cluster.here}/www/{PAGES}"]
        readers = {server.name: server.start(words) for server in self.servers}
        for reader in readers.values():
            assert reader.stdout.readline() == "reads\n"
        yield
        looks = 0
        for name, reader in readers.items():
            if reader.poll() is None:
                said, errors = reader.communicate("", timeout=END_S)
                count, *torn = said.splitlines() or [errors]
                assert torn == [], f"on {name}"
                looks += int(count)
        assert looks > 100

    def heal(self):
        """Take back all that was done to the hosts."""
        for host in (*self.servers, *self.push_hosts):
            if host.first is None:
                host.on()
            host.link(True)
            host.slow_down(None)

    def check_healed(self):
        status, said, errors = self.push()
        assert (status, errors) == (0, ""), said
        assert "www[1-6]: ok" in said or said.count(": ok") > 1
        assert self.lacking() == {}


@pytest.fixture(scope="module")
def cluster():
    with namespaces.cluster("master", ["push1", "push2"], [f"www{number}" for number in range(1, 7)]) as made:
        yield Site(made)


@pytest.fixture
def site(cluster):
    """The cluster with a version of the pages on every server, and a newer one on the master."""
    cluster.write()
    status, said, errors = cluster.push()
    assert (status, errors) == (0, ""), said
    assert cluster.lacking() == {}
    cluster.write()
    yield cluster
    cluster.heal()


def ended(process):
    said, errors = process.communicate(timeout=END_S)
    return process.returncode, said, errors


def test_hosts_are_apart(cluster):
    """The bed itself: own names, trees and processes, and no way out."""
    names = {host.checked("hostname").strip() for host in cluster.cluster.hosts}
    assert names == {"master", "push1", "push2", *(f"www{number}" for number in range(1, 7))}
    www1, www2 = cluster.servers[:2]
    www1.checked("touch", f"{cluster.cluster.here}/www/mine")
    assert os.listdir(www1.www) != os.listdir(www2.www)
    www1.checked("rm", f"{cluster.cluster.here}/www/mine")
    assert len(www1.checked("ps", "ax", "-o", "pid=").split()) < 10
    assert "default" not in www1.checked("ip", "route")
    assert subprocess.run(["ip", "route", "get", www1.address], capture_output=True, text=True).stdout.find("br0") < 0
    assert www1.run(["ssh", "www2", "true"]).returncode == 255
    assert cluster.master.run(["ssh", "www2", "hostname"]).stdout == "www2\n"
    (cluster.master.own_dir / "home/.ssh/known_hosts").rename(cluster.master.own_dir / "kept")
    assert "Host key verification failed" in cluster.master.run(["ssh", "www2", "true"]).stderr
    (cluster.master.own_dir / "kept").rename(cluster.master.own_dir / "home/.ssh/known_hosts")


def test_push_hosts_serve_their_shares_and_the_master_no_server(site):
    with site.watched():
        status, said, errors = site.push()
    assert (status, errors) == (0, "")
    assert said.splitlines()[0] == "www[1-6]: ok, 9 files"
    assert site.lacking() == {}
    for place, server in enumerate(site.servers):
        log = (server.own_dir / "sshd.log").read_text()
        peers = {line.split(" from ")[1].split()[0] for line in log.splitlines() if "Accepted publickey" in line}
        expected = {site.push_hosts[place % 2].address}
        # The bed's own test logs in to www2 from the master.
        assert peers - {site.master.address} == expected


def test_servers_that_hang_refuse_or_cannot_write_stand_alone(site):
    www1, www2, *_, www5, _ = site.servers
    # A kept connection would not ask the sshd that is stopped.
    www1.off()
    www1.on()
    www1.signal_sshd(signal.SIGSTOP)
    www2.off()
    www2.on()
    www2.signal_sshd(signal.SIGKILL)
    www5.read_only(True)
    try:
        with site.watched():
            status, said, errors = site.push()
        assert status == 1
        assert "www[3-4,6]: ok, 9 files" in said
        for name, why in (("www1", "cannot reach www1"), ("www2", "refused"), ("www5", "Read-only file system")):
            (line,) = [line for line in errors.splitlines() if line.startswith(f"wwwpush: {name}: failed")]
            assert why in line
        assert list(site.lacking()) == ["www1", "www2", "www5"]
    finally:
        www5.read_only(False)
        www1.off()
        www2.off()
        site.heal()
    site.check_healed()


def test_full_server_keeps_what_it_has(site):
    www4 = site.servers[3]
    www4.small_disk(2 * BIG + BIG // 2)
    try:
        # The old pages are there, and room for less than new ones beside them.
        www4.checked("cp", "-a", f"{site.master.here}/../hosts/www4/www/world", f"{site.cluster.here}/www/")
        filler = BIG + BIG // 4
        www4.checked("head", "-c", filler, "/dev/zero")
        www4.checked("sh", "-c", f"head -c {filler} /dev/zero >{site.cluster.here}/www/filler")
        with site.watched():
            status, said, errors = site.push()
        assert status == 1
        assert "www[1-3,5-6]: ok, 9 files" in said
        assert "wwwpush: www4: failed" in errors and "No space left on device" in errors
        assert list(site.lacking()) == ["www4"]
        assert site.versions(www4) <= {site.version - 1, site.version}
        www4.checked("rm", f"{site.cluster.here}/www/filler")
        site.check_healed()
    finally:
        www4.own_disk()


@pytest.mark.slow
def test_link_of_a_server_that_is_cut_in_mid_push_costs_the_others_nothing(site):
    www3 = site.servers[2]
    www3.slow_down(4000)
    with site.watched():
        process = site.master.start([site.cluster.wwwpush, PAGES])
        namespaces.until(lambda: site.arrives(www3), "something arrives")
        www3.link(False)
        status, said, errors = ended(process)
        assert status == 1
        assert "www[1-2,4-6]: ok, 9 files" in said
        assert "wwwpush: www3: failed" in errors
        # Its sshd notices too; what was under way there leaves nothing but an unfinished write.
        namespaces.until(lambda: "rsync" not in www3.checked("ps", "ax", "-o", "comm="), "rsync on www3 ends")
        assert list(site.lacking()) == ["www3"]
    site.heal()
    site.check_healed()


@pytest.mark.slow
def test_share_of_a_push_host_that_dies_is_done_by_the_other(site):
    for server in site.servers:
        server.slow_down(8000)
    with site.watched():
        process = site.start()
        site.push_hosts[0].off()
        status, said, errors = ended(process)
    assert "www[1-6]: ok, 9 files" in said or said.count(": ok") > 1
    assert site.lacking() == {}
    (line,) = errors.splitlines()
    assert line.startswith("wwwpush: push host push1: ")
    assert line.endswith("the other push hosts will serve www[1,3,5]")
    assert status == 1
    site.heal()
    site.write()
    site.check_healed()


@pytest.mark.slow
def test_push_host_that_is_cut_off_ends_before_another_takes_its_share(site):
    for server in site.servers:
        server.slow_down(4000)
    push2 = site.push_hosts[1]
    with site.watched():
        process = site.start()
        push2.link(False)
        told = process.stderr.readline()
        lost = "wwwpush: push host push2: not heard for 3 s; the other push hosts will serve www[2,4,6]\n"
        assert told == lost
        # Before anybody else is told to go on with its share.
        assert pathlocks.holders(f"{push2.own_dir}/state/pathlocks") == []
        status, said, errors = ended(process)
    assert (status, errors) == (1, "")
    assert said.count(": ok") >= 1
    assert site.lacking() == {}
    site.heal()
    site.write()
    site.check_healed()


@pytest.mark.slow
def test_killed_master_takes_its_relays_with_it(site):
    for server in site.servers:
        server.slow_down(4000)
    with site.watched():
        process = site.start()
        site.master.signal(process, signal.SIGKILL)
        assert ended(process)[0] == -signal.SIGKILL
        namespaces.until(
            lambda: not any(pathlocks.holders(f"{host.own_dir}/state/pathlocks") for host in site.push_hosts),
            "the relays let go",
        )
        for server in site.servers:
            assert site.versions(server) <= {site.version - 1, site.version}
    site.heal()
    site.check_healed()


@pytest.mark.slow
def test_page_that_changes_during_a_push_comes_with_the_next_one(site):
    for server in site.servers:
        server.slow_down(8000)
    with site.watched():
        process = site.start()
        site.write()
        status, said, errors = ended(process)
        assert (status, errors) == (0, ""), said
        for server in site.servers:
            assert site.versions(server) == {site.version - 1}
    site.heal()
    site.check_healed()


def test_record_of_a_push_over_push_hosts_has_every_server(site):
    assert site.push()[0] == 0
    records = sorted((site.master.own_dir / "state/pushes").glob("[0-9]*.json"))
    record = json.loads(records[-1].read_text())
    assert record["ok"] is True
    assert sorted(server["name"] for server in record["servers"]) == [server.name for server in site.servers]
    assert {server["updated"] for server in record["servers"]} == {len(SIZES)}
