# SPDX-License-Identifier: Apache-2.0
"""gather-pull as a process, over a real sshd: the copy is counted as the directories themselves would be."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sshd
from conftest import Site
from infocluster.gather import drop

SETTINGS = {"durable": False, "lock_timeout_s": 10, "limit_bytes": 65536}
SERVERS = ("web1", "web2")


class Pulled:
    """A site whose servers keep what they gathered for themselves."""

    def __init__(self, site: Site, cluster: sshd.Cluster) -> None:
        self.site, self.cluster = site, cluster
        self.real = cluster.root / "real"
        self.copy = site.root / "copy"
        for server in SERVERS:
            (self.real / server / "www").mkdir(parents=True)
        self.configure(str(self.copy))

    def configure(self, gather_dir: str, pull_from: str = "", servers: str = "web[1-2]") -> None:
        self.site.conf_file.write_text(
            f'[site]\nproduction_dir = "{self.site.production}"\nstate_dir = "{self.site.root}/state"\n'
            f'[gather]\ngather_dir = "{gather_dir}"\nkeep_days = 0\n'
            f'pull_from = "{pull_from or f"{self.real}/%h"}"\n'
            f'[push]\nssh_config = "{self.cluster.config_file}"\nconnect_timeout_s = 5\n'
            f'[[servers]]\nname = "{servers}"\ntransport = "ssh"\n'
            f'destination = "{self.cluster.root}/servers/%h/www"\n'
        )

    def visit(self, server: str, when: float | None = None) -> Path:
        top = self.real / server / "www"
        drop.append("survey", {"agent": "x", "time": when or time.time()}, SETTINGS, str(top))
        return max((top / "survey").iterdir())

    def pull(self) -> subprocess.CompletedProcess[str]:
        return self.site.batch("gather-pull")

    def counted(self) -> str:
        done = self.site.batch("survey-nightly")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split(": ", 1)[1].split(" visit")[0]


@pytest.fixture
def pulled(site: Site, tmp_path: Path) -> Iterator[Pulled]:
    root = tmp_path / "cluster"
    root.mkdir()
    with sshd.cluster(root, *SERVERS) as cluster:
        yield Pulled(site, cluster)


def test_what_was_fetched_is_counted_once_also_when_nfs_comes_and_goes(pulled: Pulled) -> None:
    for server in (*SERVERS, "web1"):
        pulled.visit(server)
    done = pulled.pull()
    assert (done.returncode, done.stderr) == (0, "") and "2 of 2 servers" in done.stdout
    assert pulled.counted() == "3"
    pulled.visit("web2")
    pulled.configure(str(pulled.real))
    assert pulled.counted() == "1"
    pulled.configure(str(pulled.copy))
    pulled.visit("web1")
    assert pulled.pull().returncode == 0
    assert pulled.counted() == "1"
    assert pulled.counted() == "0"


def test_only_what_is_new_of_a_segment_travels(pulled: Pulled) -> None:
    for _ in range(3000):
        segment = pulled.visit("web1")
    pulled.pull()
    pulled.visit("web1")
    done = pulled.pull()
    assert int(done.stdout.split()[-2]) < os.stat(segment).st_size / 50
    copied = pulled.copy / segment.relative_to(pulled.real)
    assert copied.read_bytes() == segment.read_bytes()
    # What was added on another ground is not mixed with what was here.
    text = segment.read_bytes()
    copied.write_bytes(b"x" * 1000)
    pulled.pull()
    assert copied.read_bytes() == text


def test_torn_line_is_counted_when_it_is_whole(pulled: Pulled) -> None:
    segment = pulled.visit("web1")
    whole = segment.read_bytes()
    pulled.visit("web1")
    added = segment.read_bytes()
    segment.write_bytes(added[: len(whole) + 10])
    pulled.pull()
    assert pulled.counted() == "1"
    segment.write_bytes(added)
    pulled.pull()
    assert pulled.counted() == "1"


def test_server_out_of_reach_is_told_of_and_caught_up(pulled: Pulled) -> None:
    pulled.visit("web1")
    pulled.visit("web2")
    away = pulled.real / "away"
    (pulled.real / "web2").rename(away)
    pulled.configure(str(pulled.copy), servers="web[1-3].invalid,web[1-2]")
    done = pulled.pull()
    assert done.returncode == 1 and "1 of 5 servers" in done.stdout
    assert "cannot fetch all of web2: " in done.stderr and "cannot reach web3.invalid: " in done.stderr
    away.rename(pulled.real / "web2")
    pulled.configure(str(pulled.copy))
    assert pulled.pull().returncode == 0
    assert pulled.counted() == "2"


def test_nothing_but_plain_files_comes(pulled: Pulled) -> None:
    segment = pulled.visit("web1")
    directory = segment.parent
    (directory / "2026-11-01.jsonl").symlink_to("/etc/passwd")
    (directory.parent / "other").symlink_to("/etc")
    os.mkfifo(directory / "2026-11-02.jsonl")
    (directory / ".~unfinished").write_text("half")
    (directory / "line\nfeed").write_text("odd")
    (directory.parent / "reports/6b0365e0").mkdir(parents=True)
    (directory.parent / "reports/6b0365e0/6b0365e03d090b").write_text("element")
    assert pulled.pull().returncode == 0
    found = sorted(str(path.relative_to(pulled.copy)) for path in pulled.copy.rglob("*") if not path.is_dir())
    assert found == [f"web1/www/survey/{segment.name}", "web1/www/survey/line\nfeed"]


def test_what_was_read_goes_from_the_copy_a_day_after_the_server_may_drop_it(pulled: Pulled) -> None:
    old, young, unread = (pulled.visit("web1", time.time() - days * 86400) for days in (0, 0, 0))
    assert old == young == unread
    days = [old.with_name(time.strftime("%Y-%m-%d.jsonl", time.gmtime(time.time() - age * 86400))) for age in (1, 3)]
    for day, number in zip(days, "12", strict=True):
        day.write_text(f'{{"id":"{number * 16}","time":1795305600,"agent":"x"}}\n')
    pulled.pull()
    assert pulled.counted() == "5"
    for day in days:
        day.unlink()
    assert pulled.pull().returncode == 0
    left = sorted(path.name for path in (pulled.copy / "web1/www/survey").iterdir())
    assert left == sorted([days[0].name, old.name])


def test_key_that_may_only_read_is_enough_and_writes_nothing(pulled: Pulled) -> None:
    segment = pulled.visit("web1")
    keys = pulled.cluster.root / "authorized_keys"
    keys.write_text(f'restrict,command="rrsync -ro {pulled.real}/web1" {keys.read_text()}')
    pulled.configure(str(pulled.copy), ".", "web1")
    done = pulled.pull()
    assert (done.returncode, done.stderr) == (0, "")
    assert pulled.counted() == "1"
    ssh = f"ssh -F {pulled.cluster.config_file}"
    for target in ("web1:", "web1:www/survey/"):
        command = ["rsync", "-t", "-e", ssh, "/etc/passwd", target]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert [path.name for path in segment.parent.iterdir()] == [segment.name]
