# SPDX-License-Identifier: Apache-2.0
"""poll.cgi as a process: what is asked, what is refused, and one start for a key however many ask."""

import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from conftest import ROOT, Reply, Site, parse_reply
from infocluster import config
from infocluster.locks import lockfile
from infocluster.poll import agent, state, tokens
from infocluster.poll.state import State

NOW = int(time.time())
NAME = "cf one/ä"
CONF = """
{more}
[[core_filers]]
name = "cf one/ä"
backend = "command"
start = ["/bin/sh", "-c", "echo $TARGET_TIME >>{root}/log"]
status = ["/bin/sh", "-c", "exit 75"]
[[core_filers]]
name = "cf-back"
backend = "callback"
secret = "callback"
"""


def configure(site: Site, more: str = "") -> None:
    site.configure(CONF.format(root=site.root, more=more))
    (site.root / "etc/secrets").mkdir(exist_ok=True)
    (site.root / "etc/secrets/callback").write_text("a key\n")
    (site.root / "etc/secrets/poll").write_text("open sesame\n")


def query(target: object = NOW, mass: str = NAME, **more: str) -> str:
    return urlencode({"mass": mass, "targetTime": str(target), **more})


def poll(site: Site, asked: str, method: str = "GET", **variables: str) -> Reply:
    reply = site.cgi("poll.cgi", method, QUERY_STRING=asked, **variables)
    assert reply.exit_status == 0
    return reply


def states(site: Site) -> list[Path]:
    return sorted((site.gather() / "poll").glob("*/*.state"))


def put(site: Site, name: str, target: int = NOW, mass: str = NAME) -> Path:
    path = Path(state.file(str(site.gather() / "poll"), mass, target))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(state.content(State(mass, target, "5f0c2a9be7d14c33", name, NOW - 1, NOW - 1)))
    return path


def until(condition: object, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def log(site: Site) -> list[str]:
    return (site.root / "log").read_text().split() if (site.root / "log").exists() else []


def test_first_poll_starts_the_backup_and_is_answered_as_the_cluster_expects(site: Site) -> None:
    configure(site)
    reply = poll(site, query(token="ignored", x="1"))
    assert reply.status == 200 and b"been starting since" in reply.body and agent.RELEASE.encode() not in reply.body
    assert reply.fields["Content-Type"].startswith("text/plain")
    assert reply.fields["Pragma"] == "no-cache"
    assert reply.fields["Cache-Control"] == "no-cache, must-revalidate"
    assert reply.fields["Expires"] == "Sat, 26 Jul 1997 05:00:00 GMT"
    until(lambda: b"has been running since" in poll(site, query()).body)
    assert log(site) == [str(NOW)]


def test_what_the_settings_released_is_answered_with_the_phrase_and_with_why(site: Site) -> None:
    configure(site)
    path = put(site, "released")
    found = state.read(str(path), NAME, NOW)
    assert found
    found.flags, found.why = "forced", "the tape is torn"
    path.write_bytes(state.content(found))
    for _ in range(2):
        body = poll(site, query()).body
        assert body.count(agent.RELEASE.encode()) == 1 and b"is not complete (the tape is torn)" in body


@pytest.mark.parametrize("name", ["complete", "released"])
def test_complete_releases_every_time_it_is_asked(site: Site, name: str) -> None:
    configure(site)
    path = put(site, name)
    for _ in range(2):
        assert poll(site, query()).body.count(agent.RELEASE.encode()) == 1
    found = state.read(str(path), NAME, NOW)
    assert found and found.state == "released" and not log(site)
    # What was begun in time is answered however long it took.
    assert agent.RELEASE.encode() in poll(site, query(put(site, name, NOW - 86400 - 100).stem)).body
    # Leading zeros are the same number.
    assert agent.RELEASE.encode() in poll(site, query(f"0{NOW}")).body


def test_head_and_post_answer_as_get_does_and_head_changes_nothing(site: Site) -> None:
    configure(site)
    environment = site.environment(REQUEST_METHOD="HEAD", QUERY_STRING=query(), SERVER_GATHER=str(site.gather()))
    program = [sys.executable, "-IS", str(ROOT / "cgi-bin/poll.cgi")]
    output = subprocess.run(program, env=environment, capture_output=True, check=True).stdout
    assert output.endswith(b"\r\n\r\n") and b"Status: 200" in output and not states(site)
    path = put(site, "complete")
    output = subprocess.run(program, env=environment, capture_output=True, check=True).stdout
    body = query().encode()
    form = {"CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": str(len(body))}
    found = state.read(str(path), NAME, NOW)
    assert found and found.state == "complete"
    reply = site.cgi("poll.cgi", "POST", body, QUERY_STRING="token=x", **form)
    assert agent.RELEASE.encode() in reply.body
    assert f"Content-Length: {len(reply.body)}\r\n".encode() in output


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("mass=cf-back", 400),
        ("targetTime=1", 400),
        ("mass=&targetTime=", 400),
        (query() + "&mass=cf-back", 400),
        (query() + f"&targetTime={NOW}", 400),
        (query(mass="cf-none"), 404),
        (query(mass="../../../etc/passwd"), 404),
        (query(mass=NAME.upper()), 404),
        (f"MASS={quote(NAME)}&targettime={NOW}", 200),  # no argument of ours: the page
        (query("-1"), 400),
        (query("1e9"), 400),
        (query(f" {NOW}"), 400),
        (query("\u0661\u0662"), 400),
        (query("9" * 12), 400),
        (query("9" * 11), 400),
        (query(NOW - 86400 - 100), 400),
        (query(NOW + 691200 + 7200), 400),
        (query(mass=agent.RELEASE), 404),
        (query(agent.RELEASE), 400),
        (f"{quote(agent.RELEASE)}={quote(agent.RELEASE)}", 200),
        (query(done="x"), 403),
        (query(mass="cf-back", done="x"), 403),
        (query(mass="cf-back", failed=agent.RELEASE), 403),
    ],
    # Not by the texts: the clock is in them, and each process of a run reads it at another second.
    ids=itertools.count(),
)
def test_what_is_not_allowed_is_said_in_a_sentence_and_touches_no_state(site: Site, asked: str, status: int) -> None:
    configure(site)
    path = put(site, "complete")
    before = path.read_bytes()
    reply = poll(site, asked)
    assert reply.status == status
    assert agent.RELEASE.encode() not in reply.body and (status == 200 or reply.body.endswith(b".\n"))
    assert states(site) == [path] and path.read_bytes() == before and not log(site)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "get", agent.RELEASE])
def test_other_methods_are_refused(site: Site, method: str) -> None:
    configure(site)
    reply = poll(site, query(), method)
    assert (reply.status, reply.fields["Allow"]) == (405, "GET, HEAD, POST") and not states(site)


def test_only_allowed_addresses_and_the_token_may_ask(site: Site) -> None:
    configure(site, '[poll]\nallow = ["192.0.2.7", "198.51.100.0/24", "2001:db8::/32"]\ntoken = "poll"\n')
    put(site, "complete")
    right = query(token="open sesame")
    for address in ("192.0.2.7", "198.51.100.200", "2001:db8::1"):
        assert poll(site, right, REMOTE_ADDR=address).status == 200
        for wrong in (query(), query(token=""), query(token="open sesam"), query(token="open sesame\u00e4"), ""):
            assert poll(site, wrong, REMOTE_ADDR=address).status == 403
    for address in ("192.0.2.8", "", "x", "::ffff:192.0.2.7%lo"):
        assert poll(site, right, REMOTE_ADDR=address).status == 403
    assert b"cf one" in poll(site, "token=open+sesame", REMOTE_ADDR="192.0.2.7").body
    for address, told, is_shown in (
        ("192.0.2.7", "open+sesame", 1),
        ("192.0.2.7", "x", 0),
        ("192.0.2.8", "open+sesame", 0),
    ):
        shown = site.cgi("status.cgi", REMOTE_ADDR=address, QUERY_STRING=f"token={told}")
        assert shown.status == 200 and (b"cf one" in shown.body) == is_shown
    # As a cluster may append its arguments to a Poll URL that has one.
    appended = "token=open+sesame?" + query()
    assert agent.RELEASE.encode() in poll(site, appended, REMOTE_ADDR="192.0.2.7").body


def test_backup_says_itself_how_it_ended(site: Site) -> None:
    configure(site)
    for target, word, expected in ((NOW, "done", "released"), (NOW + 300, "failed", "failed")):
        token = tokens.token(word, "cf-back", target, b"a key").decode()
        assert poll(site, query(target, "cf-back", **{word: token})).status == 404
        poll(site, query(target, "cf-back"))
        other = {"done": "failed", "failed": "done"}[word]
        assert poll(site, query(target, "cf-back", **{other: token})).status == 403
        assert poll(site, query(target + 1, "cf-back", **{word: token})).status == 403
        assert b"Noted" in poll(site, query(target, "cf-back", **{word: token})).body

        def stands(target: int = target, expected: str = expected) -> bool:
            poll(site, query(target, "cf-back"))
            found = state.read(state.file(str(site.gather() / "poll"), "cf-back", target), "cf-back", target)
            return bool(found and found.state == expected)

        until(stands)
        late = poll(site, query(target, "cf-back", **{word: token})).body.decode()
        assert "too late" in late and expected in late and agent.RELEASE not in late


def test_token_is_what_the_manual_says_openssl_makes() -> None:
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", "a key"], input=b"done cf-back 5", capture_output=True, check=True
    )
    assert done.stdout.split()[-1] == tokens.token("done", "cf-back", 5, b"a key")


def test_people_see_how_all_stand_without_the_phrase(site: Site) -> None:
    configure(site)
    put(site, "released")
    put(site, "running", NOW + 300)
    put(site, "running", NOW + 600).write_bytes(b"torn")
    for reply in (poll(site, ""), site.cgi("status.cgi")):
        page = reply.body.decode()
        assert reply.status == 200 and reply.fields["Content-Type"].startswith("text/html")
        assert "cf one/ä" in page and "released" in page and "cannot be used" in page and "never asked for" in page
        assert agent.RELEASE not in page
    assert site.cgi("status.cgi", "POST").status == 405


def test_unreadable_state_is_told_to_the_log_and_releases_nothing(site: Site) -> None:
    configure(site)
    path = put(site, "complete")
    path.write_bytes(path.read_bytes()[:-2])
    reply = poll(site, query())
    assert reply.status == 200 and b"failed" in reply.body and agent.RELEASE.encode() not in reply.body
    assert str(path) in reply.errors and "torn" in reply.errors


@pytest.mark.parametrize("gather", ["", "relative", "/proc/none", "/dev/null"])
def test_state_that_cannot_be_kept_is_503(site: Site, gather: str) -> None:
    configure(site)
    reply = poll(site, query(), SERVER_GATHER=gather)
    assert reply.status == 503 and agent.RELEASE.encode() not in reply.body
    assert reply.fields["Content-Type"].startswith("text/plain") and reply.fields["Pragma"] == "no-cache"
    assert reply.fields["Retry-After"] and b"(Incident " in reply.body


def test_too_many_states_are_refused(site: Site) -> None:
    configure(site, "[poll]\nstates_limit = 2\n")
    put(site, "released")
    put(site, "released", NOW + 1)
    assert poll(site, query(NOW + 2)).status == 503 and poll(site, query()).status == 200
    assert not [name for name in os.listdir(states(site)[0].parent) if name.startswith(".~")]


def test_a_poll_loads_no_heavy_module(site: Site) -> None:
    """What a poll imports is its run time: with compiled settings, only modules of ours and what is built in."""
    configure(site)
    put(site, "complete")
    config.compile_settings(str(site.conf_file))
    code = (
        "import sys, posix; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "leave = posix._exit\n"
        "def left(status):\n"
        "    posix.write(2, ' '.join(set(sys.modules) - before).encode()); leave(status)\n"
        "posix._exit = left\n"
        "from infocluster.web import cgi; cgi.run('infocluster.apps.poll:answer')\n"
    )
    environment = site.environment(
        REQUEST_METHOD="GET", QUERY_STRING=query(), SERVER_GATHER=str(site.gather()), REMOTE_ADDR="192.0.2.1"
    )
    program = [sys.executable, "-IS", "-c", code, str(ROOT / "lib")]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert agent.RELEASE in done.stdout
    loaded = done.stderr.split()
    assert {name for name in loaded if not name.startswith("infocluster")} <= {"_blake2", "time"}
    assert len(loaded) <= 16, sorted(loaded)


def at_once(site: Site, targets: list[int], width: int) -> list[Reply]:
    """Have so many processes ask at a time."""
    environment = site.environment(REQUEST_METHOD="GET", SERVER_GATHER=str(site.gather()))
    program = [sys.executable, "-IS", str(ROOT / "cgi-bin/poll.cgi")]

    def ask(target: int) -> Reply:
        done = subprocess.run(
            program, env=environment | {"QUERY_STRING": query(target)}, capture_output=True, check=True
        )
        return parse_reply(done.stdout, done.stderr.decode())

    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(ask, targets))


def test_fifty_processes_poll_one_new_key_at_once_and_it_starts_once(site: Site) -> None:
    configure(site)
    replies = at_once(site, [NOW] * 50, 50)
    assert {reply.status for reply in replies} == {200}
    until(lambda: b"been running" in poll(site, query()).body)
    assert log(site) == [str(NOW)]


@pytest.mark.slow
def test_a_thousand_keys_at_once_are_each_started_once_and_leave_nothing_behind(site: Site) -> None:
    configure(site)
    targets = [NOW + number for number in range(1000)]
    replies = at_once(site, targets, 100)
    assert {reply.status for reply in replies} == {200}
    until(lambda: len(log(site)) >= 1000, 300)
    lock = state.place(str(site.gather() / "poll"), NAME) + "/lock"
    with lockfile.hold(lock, timeout_s=120):  # the starter is done
        assert sorted(map(int, log(site))) == targets
        found = [state.read(str(path), NAME, int(path.stem)) for path in states(site)]
        assert len(found) == 1000 and {one.state for one in found if one} == {"running"}
        assert {one.run for one in found if one}.__len__() == 1000
        names = os.listdir(os.path.dirname(lock))
        assert set(names) == {f"{target}.state" for target in targets} | {"lock"}
