# SPDX-License-Identifier: Apache-2.0
"""push.serve: a list of paths through a forced command, and nothing else; with a real sshd on loopback."""

import io
import json
import subprocess
import sys

import pytest

import sshd
from conftest import ROOT, Site
from infocluster.errors import RefusedError
from infocluster.push import serve

PEER = {"SSH_CONNECTION": "192.0.2.7 50412 192.0.2.1 22"}


def read(content, everything=False, log=None, **environment):
    lines = [] if log is None else log
    return serve.read_paths(io.BytesIO(content), {**PEER, **environment}, everything, lines.append)


def test_paths_are_read_in_their_one_form():
    content = "world/a/\nworld//é b;'$(x)\n".encode()
    assert read(content) == ["world/a", "world/é b;'$(x)"]
    assert read(content, SSH_ORIGINAL_COMMAND="wwwpush") == ["world/a", "world/é b;'$(x)"]
    assert read(b"world/\nworld/a\n", everything=True) == ["world", "world/a"]
    assert len(read(b"world/a\n" * 1000)) == 1000


@pytest.mark.parametrize(
    ("content", "environment"),
    [
        (b"world/a\n", {"SSH_ORIGINAL_COMMAND": "wwwpush -all"}),
        (b"world/a\n", {"SSH_ORIGINAL_COMMAND": "sh"}),
        (b"", {}),
        (b"\n", {}),
        (b"world/a\n\nworld/b\n", {}),
        (b"world/a\nworld/b", {}),
        (b"world\n", {}),
        (b"world/a\nworld/\n", {}),
        (b"-all\n", {}),
        (b"--\nworld/a\n", {}),
        (b"/world/a\n", {}),
        (b"world/../../etc\n", {}),
        (b"world/a\r\n", {}),
        (b"world/\x1b[2J\n", {}),
        (b"world/a\0b\n", {}),
        (b"world/\xff\n", {}),
        (b"world/a\n" * 1001, {}),
        (b"world/" + b"a/" * (1 << 19) + b"\n", {}),
    ],
)
def test_anything_but_a_list_of_paths_is_refused_and_logged(content, environment):
    log = []
    with pytest.raises(RefusedError):
        read(content, log=log, **environment)
    (line,) = log
    assert line.startswith("refused from 192.0.2.7 port 50412: cannot ")
    assert line.isprintable() and len(line) < 500


def test_no_more_than_the_limit_is_read():
    stream = io.BytesIO(b"world/a\n" * (1 << 18))
    with pytest.raises(RefusedError):
        serve.read_paths(stream, PEER, False, [].append)
    assert stream.tell() <= serve.LIST_LIMIT_BYTES + 1


class Door:
    """The batch host behind its sshd, with one key for parts and one for everything, and a client on another host."""

    def __init__(self, site, cluster, client):
        self.site, self.cluster, self.client = site, cluster, client
        lines = ""
        for key, options in (("user_key", "-serve"), ("other_key", "-serve -all")):
            command = (
                f"SUDO_USER=jane INFOCLUSTER_CONF={site.conf_file} {sys.executable} {ROOT}/batch/wwwpush {options}"
            )
            lines += f'restrict,command="{command}" {(cluster.root / f"{key}.pub").read_text()}'
        (cluster.root / "authorized_keys").write_text(lines)
        client.conf_file.write_text(f'[push]\nssh_config = "{cluster.config_file}"\nconnect_timeout_s = 5\n')
        for name in ("a/page", "b/page"):
            file = site.production / "world" / name
            file.parent.mkdir(parents=True)
            file.write_text(name)

    def via(self, *paths, host="info"):
        return self.client.batch("wwwpush", "-via", host, *paths)

    def ssh(self, *words, content=""):
        command = ["ssh", "-F", self.cluster.config_file, "info", *words]
        return subprocess.run(command, input=content, capture_output=True, text=True, timeout=60, check=False)

    def held(self, server="web1"):
        return sorted(
            str(file.relative_to(self.site.delivered(server))) for file in self.site.delivered(server).rglob("*")
        )


@pytest.fixture
def door(site, tmp_path):
    with sshd.cluster(tmp_path, "info") as cluster:
        yield Door(site, cluster, Site(tmp_path / "client").build())


def test_client_gets_the_report_and_the_exit_status_of_the_push(door):
    done = door.via("world/a")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("web[1-3]: ok, 1 file, 2 directories\n")
    assert door.held() == ["world", "world/a", "world/a/page"]
    (record,) = (door.site.state / "pushes").glob("2*.json")
    assert json.loads(record.read_text())["user"] == "jane"
    (door.site.production / "world/b/page").chmod(0o600)
    done = door.via("world/a", "world/b")
    assert done.returncode == 1
    assert "cannot push world/b/page: others may not read it" in done.stderr
    assert "wwwpush: wwwpush:" not in done.stderr


def test_key_for_parts_opens_nothing_else(door, tmp_path):
    assert door.via("world").returncode == 77
    assert door.ssh("touch", tmp_path / "touched").returncode == 77
    assert door.ssh("wwwpush", "-all", content="world/a\n").returncode == 77
    assert door.ssh(content="world/a\n-all\n").returncode == 77
    assert not (tmp_path / "touched").exists()
    assert door.held() == []
    assert door.ssh(content="world/a\n").returncode == 0
    assert door.held() == ["world", "world/a", "world/a/page"]


def test_key_for_everything_takes_whole_trees(door):
    door.cluster.configure(key="other_key")
    assert door.via("world").returncode == 0
    assert door.held() == ["world", "world/a", "world/a/page", "world/b", "world/b/page"]


def test_host_never_becomes_an_option(door, tmp_path):
    for host in (f"-oProxyCommand=touch {tmp_path}/touched", "info;touch", "a b"):
        assert door.client.batch("wwwpush", f"-via={host}", "world/a").returncode == 64
    assert not (tmp_path / "touched").exists()


def test_paths_are_checked_before_anybody_is_asked(door):
    for path in ("../etc", "/world/a", "world/a\nworld"):
        assert door.via(path).returncode == 64
    assert door.client.batch("wwwpush", "-via", "info").returncode == 64
    assert door.held() == []


def test_host_that_cannot_be_reached_is_told(door):
    door.cluster.configure(port=sshd.free_port())
    done = door.via("world/a")
    assert done.returncode == 75
    assert "cannot push by info: " in done.stderr and "refused" in done.stderr
