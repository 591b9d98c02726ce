# SPDX-License-Identifier: Apache-2.0
"""push.ssh: how a server is reached, against a real sshd on loopback."""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import sshd
from infocluster.errors import ConfigError, UnavailableError
from infocluster.processes import Conversation
from infocluster.push import mux, ssh
from infocluster.push.order import Order, UnreachableError
from infocluster.push.servers import Server


@pytest.fixture
def cluster(tmp_path):
    with sshd.cluster(tmp_path, "web1", "web2") as running:
        yield running


def order(settings, left_s=20.0):
    return Order(settings, [], False, False, time.monotonic() + left_s, threading.Event())


def server(name="web1", **fields):
    return Server(name, "web", "ssh", "/nowhere", **fields)


def said(cluster, *words, content=b"", **push):
    outcome = ssh.run(server(), words, order(cluster.settings(**push)), content)
    assert outcome.status == 0, outcome.errors
    return outcome.output


def said_by(file):
    try:
        return file.read_text()
    except OSError:
        return ""


def logins(cluster):
    return (cluster.root / "sshd.log").read_text().count("Accepted publickey")


def test_words_reach_the_server_as_they_are(cluster):
    words = ["", "a b", "$HOME", "`id`", "'", '"', "\\", "*", ";reboot", "-n", "line\nline", "\udcff", "#", "!x", "~"]
    output = said(cluster, "printf", "%s\\0", *words)
    assert output == b"".join(os.fsencode(word) + b"\0" for word in words)
    assert said(cluster, "cat", content=b"\0content\n" * 100_000) == b"\0content\n" * 100_000


def test_one_connection_is_kept_and_shared(cluster):
    for _ in range(3):
        said(cluster, "true")
    assert logins(cluster) == 1
    [control] = cluster.sockets()
    assert control.parent.stat().st_mode & 0o777 == 0o700
    ssh.run(server("web2"), ["true"], order(cluster.settings()))
    assert logins(cluster) == 2
    assert len(cluster.sockets()) == 2


def test_connection_that_is_not_kept_is_opened_each_time(cluster):
    said(cluster, "true", ssh_keep_s=0.0)
    said(cluster, "true", ssh_keep_s=0.0)
    assert logins(cluster) == 2
    assert cluster.sockets() == []


def test_socket_of_a_killed_connection_is_no_obstacle(cluster):
    said(cluster, "true")
    [control] = cluster.sockets()
    [keeper] = [
        int(file.parent.name) for file in Path("/proc").glob("[0-9]*/cmdline") if f"{control} [mux]" in said_by(file)
    ]
    os.kill(keeper, signal.SIGKILL)
    assert control.exists()
    said(cluster, "true")
    assert logins(cluster) == 2
    said(cluster, "true")
    assert logins(cluster) == 2


def test_connection_that_is_let_go_of_is_opened_anew(cluster):
    said(cluster, "true")
    ssh.forget(server(), cluster.settings())
    assert cluster.sockets() == []
    said(cluster, "true")
    assert logins(cluster) == 2


@pytest.mark.root
@pytest.mark.parametrize("why", ["long", "anothers"])
def test_socket_is_in_a_directory_of_the_users_own(cluster, why):
    settings = cluster.settings()
    if why == "long":
        settings["site"]["state_dir"] = f"{cluster.root}/{'long' * 20}"
    else:
        # Another of the same group was the first to push.
        (cluster.state / "ssh").mkdir(mode=0o700)
        os.chown(cluster.state / "ssh", 60001, 60001)
    [option] = [word for word in ssh.arguments(server(), settings) if "ControlPath" in word]
    control = Path(option.partition("=")[2])
    assert len(os.fsencode(control)) <= 90
    status = control.parent.stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o700, os.geteuid())
    try:
        assert ssh.run(server(), ["true"], order(settings)).status == 0
        assert control.is_socket()
    finally:
        # The directory stays: it is every push's of this user whose own is not to be had.
        ssh.forget(server(), settings)


def test_directory_that_others_may_enter_is_not_used_for_sockets(cluster):
    (cluster.state / "ssh").mkdir(mode=0o755)
    with pytest.raises(UnavailableError, match="others may enter it"):
        said(cluster, "true")
    (cluster.state / "ssh").rmdir()
    (cluster.state / "ssh").symlink_to(cluster.root)
    with pytest.raises(UnavailableError, match="not a directory of ours"):
        said(cluster, "true")


def test_server_where_nothing_listens_is_unreachable(cluster):
    cluster.configure(port=sshd.free_port())
    with pytest.raises(UnreachableError, match=r"cannot reach web1: .*Connection refused"):
        said(cluster, "true")


def test_server_that_hangs_is_unreachable_in_time(cluster):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        cluster.configure(port=mute.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="timed out"):
            said(cluster, "true", connect_timeout_s=1.0)
        assert time.monotonic() - began < 5


def test_refused_key_is_told_and_not_taken_for_a_broken_connection(cluster):
    cluster.configure(key="other_key")
    with pytest.raises(UnavailableError, match="Permission denied") as caught:
        said(cluster, "true")
    assert not isinstance(caught.value, UnreachableError)


def test_server_with_another_host_key_gets_nothing(cluster):
    key = (cluster.root / "other_key.pub").read_text().split()
    (cluster.root / "known_hosts").write_text(f"test {key[0]} {key[1]}\n")
    with pytest.raises(UnavailableError, match="Host key verification failed") as caught:
        said(cluster, "cat", content=b"secret")
    assert not isinstance(caught.value, UnreachableError)
    assert logins(cluster) == 0


@pytest.mark.parametrize("user", ["-oProxyCommand=id", "a b", "root@other", "x\n"])
def test_user_never_becomes_an_option(cluster, user):
    with pytest.raises(ConfigError, match="not a plain user name"):
        ssh.run(server(user=user), ["true"], order(cluster.settings()))


def test_program_that_takes_too_long_is_ended(cluster):
    with pytest.raises(UnavailableError, match="not done after"):
        ssh.run(server(), ["sleep", "100"], order(cluster.settings(), 1.0))


def test_status_of_the_program_is_told(cluster):
    outcome = ssh.run(server(), ["sh", "-c", "echo out; echo err >&2; exit 3"], order(cluster.settings()))
    assert (outcome.status, outcome.output, outcome.errors) == (3, b"out\n", b"err\n")


def children():
    found = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):
            found |= set(Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def test_open_connection_is_used_without_a_client(cluster):
    settings = cluster.settings()
    said(cluster, "true")
    before = children()
    with ssh.conversation(server(), settings, "cat; echo err >&2; exit 7") as talk:
        assert children() == before
        content = b"line\n" * 100_000
        talk.tell(content, is_last=True)
        heard = [talk.heard(10) for _ in range(100_000)]
        assert set(heard) == {b"line"}
        with pytest.raises(UnavailableError, match="ended"):
            talk.heard(10)
        assert talk.end(10) == 7
        assert talk.errors == "err"
    assert logins(cluster) == 1


def test_session_that_is_given_up_ends_over_there(cluster):
    said(cluster, "true")
    mark = cluster.root / "ended"
    with ssh.conversation(server(), cluster.settings(), f"cat >/dev/null; touch {mark}; sleep 100") as talk:
        assert talk.heard(0.1) is None
    for _ in range(100):
        if mark.exists():
            return
        time.sleep(0.05)
    raise AssertionError("the program over there does not know that nobody is there")


def test_session_whose_connection_breaks_is_lost(cluster):
    said(cluster, "true")
    with ssh.conversation(server(), cluster.settings(), "echo $PPID; sleep 100") as talk:
        os.kill(int(talk.heard(10) or 0), signal.SIGKILL)
        with pytest.raises(UnavailableError):
            talk.heard(10)
        assert talk.end(10) == mux.LOST


def test_socket_where_nobody_answers_is_no_session(cluster, tmp_path):
    assert mux.session(str(tmp_path / "none"), "true") is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        assert mux.session(str(tmp_path / "deaf"), "true") is None
        deaf.listen()
        session = mux.session(str(tmp_path / "deaf"), "true")
        assert session is not None
        with Conversation(session, 1000) as talk:
            assert talk.heard(0.1) is None
