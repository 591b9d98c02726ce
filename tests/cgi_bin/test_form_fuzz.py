# SPDX-License-Identifier: Apache-2.0
"""form.cgi against bodies that no browser sends: never a fault of ours, never much memory, never a file left."""

import posix
import random
from pathlib import Path

import pytest

from cgi_bin import form_site
from cgi_bin.form_site import BODIES, declare, token, uploads
from conftest import Site
from infocluster import settings
from infocluster.web import cgi
from infocluster.web.request import Request

SEEDS = [file.read_bytes() for file in sorted(BODIES.iterdir())]
PIECES = (
    *(b"\r\n", b"--", b"\0", b"%", b"%00", b"&", b"=", b";", b'"', b"\\", b"\xff\xfe", b"\r", b"\n", b": "),
    *(b"a" * 5000, b"\x89PNG\r\n\x1a\n", b"\xed\xa0\x80"),
    b'Content-Disposition: form-data; name="picture"; filename="x"\r\n\r\n',
)
KNOWN = {303, 400, 411, 413, 415, 422}
SMALL = ("prlimit", f"--as={64 << 20}")


def mutated(chance: random.Random, file: Path, with_token: str) -> tuple[dict[str, str], bytes]:
    """Return variables and a body that are nearly those of a file of bodies."""
    chosen = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randrange(6)):
        place = chance.randrange(len(chosen) + 1)
        action = chance.randrange(5)
        if action == 0:
            chosen[place : place + chance.randrange(40)] = b""
        elif action == 1:
            chosen[place:place] = chance.choice(PIECES)
        elif action == 2:
            chosen[place : place + 1] = bytes([chance.randrange(256)])
        elif action == 3:
            other = chance.choice(SEEDS)
            chosen[place:place] = other[chance.randrange(len(other)) :][: chance.randrange(400)]
        else:
            del chosen[place:]
    file.write_bytes(bytes(chosen))
    variables, body = form_site.body_of(file, with_token)
    kept = {
        name: value.replace("\0", "")
        for name, value in variables.items()
        if name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    }
    if chance.random() < 0.1:
        kept["CONTENT_LENGTH"] = chance.choice(["", "0", "-1", "1e3", str(len(body) + 1), "9" * 30, "٣"])
    return kept, body


@pytest.fixture(autouse=True)
def conf(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(posix.environ, b"INFOCLUSTER_CONF", str(site.conf_file).encode())


def run_in_process(site: Site, tmp_path: Path, count: int, seed: int) -> set[int]:
    known = settings.read(str(site.conf_file))
    chance, statuses = random.Random(seed), set()
    for number in range(count):
        variables, body = mutated(chance, tmp_path / "body", token())
        told = {"REQUEST_METHOD": "POST", "PATH_INFO": "/guestbook", "SERVER_GATHER": str(site.gather()), **variables}
        encoded = {name.encode(): value.encode("utf-8", "surrogateescape") for name, value in told.items()}
        place = [0]

        def read(size: int, body: bytes = body, place: list[int] = place, chance: random.Random = chance) -> bytes:
            size = min(size, chance.choice((1, 7, 100, 65536)))
            chunk = body[place[0] : place[0] + size]
            place[0] += size
            return chunk

        reply = cgi.answer("infocluster.apps.forms:answer", Request(encoded, known, read))
        assert reply.status in KNOWN, (seed, number, reply.status, variables, body)
        assert reply.message()
        statuses.add(reply.status)
    return statuses


def assert_nothing_is_left(site: Site) -> None:
    named = {told["file"] for record in form_site.records(site) for told in record["picture"]}
    assert {path.name for path in uploads(site)} == named


def test_strange_bodies_have_an_answer(site: Site, tmp_path: Path) -> None:
    declare(site)
    assert {303, 400, 413, 422} <= run_in_process(site, tmp_path, 1500, 1)
    assert_nothing_is_left(site)


@pytest.mark.slow
def test_hundred_thousand_strange_bodies_have_an_answer(site: Site, tmp_path: Path) -> None:
    declare(site)
    assert run_in_process(site, tmp_path, 100_000, 2) <= KNOWN
    assert_nothing_is_left(site)


@pytest.mark.slow
def test_five_hundred_strange_requests_stay_small(site: Site, tmp_path: Path) -> None:
    declare(site)
    chance = random.Random(3)
    for number in range(500):
        variables, body = mutated(chance, tmp_path / "body", token())
        variables = {name: value for name, value in variables.items() if value.isprintable()}
        reply = site.cgi("form.cgi", "POST", body, under=SMALL, PATH_INFO="/guestbook", **variables)
        assert reply.status in KNOWN, (number, variables, body, reply.errors)
        assert reply.exit_status == 0 and "Traceback" not in reply.errors
    assert_nothing_is_left(site)
