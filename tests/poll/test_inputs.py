# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent and whatever lies in the state file: only what is complete is answered with the phrase.

The handler is called in this process, so that there are thousands of inputs; the doors' own tests call it as one.
"""

import hmac  # noqa: F401
import io
import ipaddress  # noqa: F401
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# What a hit may import late is imported here: an import reads directories.
import infocluster.apps.poll
import infocluster.apps.poll_page
import infocluster.poll.kick  # noqa: F401
from infocluster import config
from infocluster.locks import lockfile
from infocluster.poll import agent, state, tokens
from infocluster.poll.state import State
from infocluster.web import cgi
from infocluster.web.request import Request

NOW = int(time.time())
NAME = "cf one"
LIMITED = """
[poll]
token = "token"
allow = ["192.0.2.0/24", "2001:db8::1"]
"""
CONF = """
[[core_filers]]
name = "cf one"
backend = "callback"
secret = "callback"
[[core_filers]]
name = "RELEASE Core Filer SYNC"
backend = "marker"
"""
PHRASE = agent.RELEASE.encode()
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TOKENS = [tokens.token(word, NAME, NOW, b"a key").decode() for word in ("done", "failed")]


@dataclass
class Touched:
    """What of the file system is touched while `on`."""

    on: bool = False
    paths: list[str] = field(default_factory=list)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or not (event == "open" or event.startswith(("os.", "shutil.", "subprocess.", "socket."))):
            return
        if event == "open" and not (arguments[2] or 0) & WRITES and str(arguments[0]).endswith((".py", ".pyc")):
            return  # an import
        if event.startswith(("subprocess.", "socket.", "os.posix_spawn", "os.fork", "os.exec")):
            self.paths.append(event)
        self.paths += [os.fsdecode(one) for one in arguments if isinstance(one, str | bytes) and len(one) > 1]


touched = Touched()


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "etc/secrets").mkdir(parents=True)
        (path / "etc/open.toml").write_text(CONF)
        (path / "etc/limited.toml").write_text(LIMITED + CONF)
        (path / "etc/secrets/callback").write_text("a key")
        (path / "etc/secrets/token").write_text("open sesame")
        (path / "gather").mkdir()
        previous = os.environ.get("INFOCLUSTER_CONF")
        os.environ["INFOCLUSTER_CONF"] = str(path / "etc/open.toml")
        sys.addaudithook(touched.hear)
        yield path
        touched.on = False
        if previous is None:
            del os.environ["INFOCLUSTER_CONF"]


words = st.one_of(
    st.sampled_from([NAME, NAME.upper(), agent.RELEASE, "../../x", "/etc/passwd", "", "\0", "open sesame", *TOKENS]),
    st.text(max_size=20),
)
times = st.one_of(
    st.sampled_from([str(NOW), f"0{NOW}", str(NOW + 300), str(NOW - 10**6), "-1", "9" * 11, agent.RELEASE, "١٢"]),
    st.integers(-10, 10**12).map(str),
)
arguments = st.one_of(
    st.tuples(st.sampled_from(["mass"]), words),
    st.tuples(st.sampled_from(["targetTime"]), times),
    st.tuples(st.sampled_from(["token", "done", "failed", "mass[]", "TARGETTIME", agent.RELEASE]), words),
)
asked_right = st.builds(
    lambda more, target: [("mass", NAME), ("targetTime", target), *more],
    st.lists(st.tuples(st.sampled_from(["x", "x", "y", "token", "done", "failed"]), words), max_size=1),
    st.sampled_from([str(NOW), str(NOW), f"0{NOW}", str(NOW + 1)]),
)
queries = st.one_of(
    asked_right, asked_right, asked_right, asked_right, st.lists(arguments, max_size=5), st.binary(max_size=60)
)
bodies = st.one_of(asked_right, st.lists(arguments, max_size=4), st.binary(max_size=60))
methods = st.sampled_from(["GET"] * 12 + ["HEAD", "POST", "POST", "POST", "PUT", "get", "", agent.RELEASE])
addresses = st.one_of(st.sampled_from(["192.0.2.9", "2001:db8::1", "127.0.0.1", ""]), st.text(max_size=12))


def content(name: str, mass: str, why: str, cut: int, put: bytes) -> tuple[str, bytes]:
    made = State(mass, NOW, "5f0c2a9be7d14c33", name, float(NOW), float(NOW))
    made.why = made.progress = state.clean(why)
    whole = state.content(made)
    if cut or put:
        return "", whole[: len(whole) - cut] + put
    return (name if mass == NAME else ""), whole


complete = st.builds(
    content, st.sampled_from(["complete", "released"]), st.just(NAME), words, st.just(0), st.just(b"")
)
contents = st.one_of(
    st.none(),
    complete,
    complete,
    st.builds(content, st.sampled_from(sorted(state.STATES)), st.just(NAME), words, st.just(0), st.just(b"")),
    st.builds(
        content,
        st.sampled_from(["complete", "released"]),
        st.sampled_from([NAME, "cf two"]),
        words,
        st.integers(0, 60),
        st.sampled_from([b"", b"x", b"end ", PHRASE]),
    ),
    st.binary(max_size=40).map(lambda put: ("", put)),
)


def encoded(sent: list[tuple[str, str]] | bytes) -> bytes:
    if isinstance(sent, bytes):
        return sent
    pairs = (quote(n.encode("utf-8", "replace")) + "=" + quote(v.encode("utf-8", "replace")) for n, v in sent)
    return "&".join(pairs).encode()


def check(
    top: Path,
    is_limited: bool,
    method: str,
    query: list[tuple[str, str]] | bytes,
    body: list[tuple[str, str]] | bytes,
    address: str,
    before: tuple[str, bytes] | None,
    all_settings: dict[bool, config.Settings],
) -> bool:
    """Send one request and hold to what is promised; return whether it was answered with the phrase."""
    state_dir = top / "gather/poll"
    path = Path(state.file(str(state_dir), NAME, NOW))
    if before is not None:
        path.write_bytes(before[1])
    sent = encoded(body)
    variables = {
        b"REQUEST_METHOD": os.fsencode(method.encode("utf-8", "replace").decode().replace("\0", "")),
        b"QUERY_STRING": encoded(query),
        b"REMOTE_ADDR": address.encode("utf-8", "replace"),
        b"SERVER_GATHER": os.fsencode(top / "gather"),
        b"CONTENT_TYPE": b"application/x-www-form-urlencoded",
        b"CONTENT_LENGTH": str(len(sent)).encode(),
    }
    touched.paths.clear()
    touched.on = True
    try:
        request = Request(variables, all_settings[is_limited], io.BytesIO(sent).read)
        message = cgi.answer("infocluster.apps.poll:answer", request).message()
    finally:
        touched.on = False
    status = int(message.split(b" ", 2)[1])
    assert status in {200, 400, 403, 404, 405, 411, 413, 415}, message
    if PHRASE in message:
        assert status == 200 and before and before[0] in {"complete", "released"}
        assert before[0] and state.parse(path.read_bytes()).state in {"complete", "released"}
    outside = [one for one in touched.paths if not one.startswith((str(state_dir), str(top / "etc/secrets")))]
    assert not outside, outside
    for other in (top / "gather").rglob("*"):
        if other.is_file() and other.name != "lock":
            assert other.parent in places(top) and other.suffix in {".state", ".done"}, other
            other.unlink()
    return PHRASE in message


def places(top: Path) -> list[Path]:
    found = [Path(state.place(str(top / "gather/poll"), name)) for name in (NAME, agent.RELEASE)]
    for place in found:
        place.mkdir(parents=True, exist_ok=True)
    return found


def held_to_it(top: Path, examples: int) -> None:
    all_settings = {
        limited: config.load(str(top / f"etc/{'limited' if limited else 'open'}.toml")) for limited in (True, False)
    }
    seen: list[bool] = []

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(st.sampled_from([False, False, True]), methods, queries, bodies, addresses, contents))
    def every(drawn: tuple[Any, ...]) -> None:
        seen.append(check(top, *drawn, all_settings))

    one, two = places(top)
    # While these are held a poll starts no process: there would be thousands.
    with lockfile.hold(str(one / "lock")), lockfile.hold(str(two / "lock")):
        every()
    # It is no test where nothing is ever released; how often it is, is chance.
    assert len(seen) >= examples and sum(seen) < 0.9 * len(seen) and (sum(seen) > 0 or examples < 1000)


def test_no_input_and_no_state_but_a_complete_one_brings_the_phrase(top: Path) -> None:
    held_to_it(top, 500)


@pytest.mark.slow
def test_of_twenty_thousand_inputs_none_but_a_complete_one_brings_the_phrase(top: Path) -> None:
    held_to_it(top, 20_000)


def test_the_check_above_sees_what_it_looks_for(top: Path) -> None:
    """The same check with a complete state answers with the phrase, so it is not blind."""
    all_settings = {False: config.load(str(top / "etc/open.toml"))}
    places(top)
    whole = content("complete", NAME, "", 0, b"")[1]
    right = [("mass", NAME), ("targetTime", str(NOW))]
    check(top, False, "GET", right, b"", "", ("complete", whole), all_settings)
    with pytest.raises(AssertionError):
        check(top, False, "GET", right, b"", "", ("failed", whole), all_settings)
