# SPDX-License-Identifier: Apache-2.0
"""survey-nightly on a Dask cluster: what is published is what this host alone would publish, or nothing is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dask_cluster
from conftest import ROOT, Site
from dask_cluster import Killed

pytestmark = pytest.mark.xdist_group("dask")

AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "",
)
RECORDS = 9000
OPENSSL = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=cluster")


def visits(site: Site) -> None:
    """Write some MB of visits: a task for each MB, and more of them than workers."""
    for server in site.servers:
        top = site.gather(server) / "survey"
        top.mkdir(exist_ok=True)
        with (top / "2026-11-22.jsonl").open("w") as file:
            for number in range(RECORDS):
                record = {
                    "id": f"{number:024x}",
                    "time": 1795305600 + number,
                    "agent": AGENTS[number * number % 5 % 4],
                }
                file.write(json.dumps(record | {"padding": "x" * 200}) + "\n")
            file.write("no record\n")


def with_cluster(site: Site, address: str, gather: str = "") -> None:
    site.configure(
        f'[gather]\nengine = "dask"\nscheduler = "{address}"\nscheduler_timeout_s = 5\n'
        + (f'gather_dir = "{gather}"\n' if gather else "")
    )


def numbers(site: Site) -> Any:
    return json.loads((site.production / "world/survey/index.json").read_text())


def on_this_host(site: Site, tmp_path: Path) -> Any:
    """Return what this host alone makes of the same records."""
    alone = Site(tmp_path / "alone").build()
    shutil.rmtree(alone.root / "var/gather")
    shutil.copytree(site.root / "var/gather", alone.root / "var/gather")
    assert alone.batch("survey-nightly").returncode == 1  # the line that is none
    return numbers(alone)


def test_night_whose_worker_is_killed_in_mid_run_publishes_what_one_host_would(site: Site, tmp_path: Path) -> None:
    visits(site)
    killed = Killed(tmp_path)
    with dask_cluster.started(tmp_path / "dask", workers=0) as running:
        running.worker("bystander", **killed.bystander)
        victim = running.worker("victim", VICTIM_AFTER="2", **killed.victim)
        with_cluster(site, running.address)
        with killed.soon(victim, has_bystander=True):
            done = site.batch("survey-nightly")
        assert done.returncode == 1 and done.stderr.count("cannot count 1 line of") == 3 == len(
            done.stderr.splitlines()
        )
        assert f"{3 * RECORDS} visits in 3 files" in done.stdout
        assert numbers(site) == on_this_host(site, tmp_path)
        again = site.batch("survey-nightly")
        assert (again.returncode, again.stderr) == (0, "") and "0 visits in 0 files" in again.stdout


def test_night_that_loses_its_scheduler_commits_nothing_and_the_next_does_it_all(site: Site, tmp_path: Path) -> None:
    visits(site)
    killed = Killed(tmp_path)
    with dask_cluster.started(tmp_path / "dask", workers=0) as running:
        running.worker("victim", VICTIM_AFTER="1", **killed.victim)
        with_cluster(site, running.address)
        with killed.soon(running.scheduler):
            done = site.batch("survey-nightly")
    assert done.returncode == 75
    assert done.stderr.startswith(f"survey-nightly: cannot fold on the cluster at {running.address}: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (site.production / "world/survey").exists()
    done = site.batch("survey-nightly")
    assert done.returncode == 75 and "cannot reach the scheduler" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with dask_cluster.started(tmp_path / "next") as running:
        with_cluster(site, running.address)
        assert f"{3 * RECORDS} visits in 3 files" in site.batch("survey-nightly").stdout
    assert numbers(site) == on_this_host(site, tmp_path)


def test_night_on_workers_that_do_not_see_the_files_commits_nothing(site: Site, tmp_path: Path) -> None:
    visits(site)
    with dask_cluster.started(tmp_path / "dask") as running:
        with_cluster(site, running.address, "/proc/self/cwd/var/gather")
        done = subprocess.run(
            [sys.executable, str(ROOT / "batch/survey-nightly")],
            env=site.environment(),
            cwd=site.root,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 75
    assert (
        "No such file or directory; this host can: every worker has to see /proc/self/cwd/var/gather" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (site.production / "world/survey").exists()
    site.configure()
    assert f"{3 * RECORDS} visits in 3 files" in site.batch("survey-nightly").stdout


def test_check_site_asks_the_cluster(site: Site, tmp_path: Path) -> None:
    def found() -> tuple[str, list[str]]:
        told = json.loads(site.batch("check-site", "-batch", "-json").stdout)
        return told["checks"]["folding"], [one["fault"] for one in told["faults"] if one["check"] == "folding"]

    assert found() == ("ok", [])
    with dask_cluster.started(tmp_path / "dask", workers=1) as running:
        with_cluster(site, running.address)
        assert found() == ("ok", [])
        (tmp_path / "infocluster").mkdir()
        (tmp_path / "infocluster/__init__.py").write_text("")
        running.worker("stranger", path=str(tmp_path))
        state, (fault,) = found()
        assert state == "1 fault" and "cannot use its infocluster: No module named" in fault
    state, (fault,) = found()
    assert f"cannot reach the scheduler at {running.address}" in fault


def certified(top: Path) -> dict[str, str]:
    """Make a certificate that is its own authority, and return Dask's settings of it as environment variables."""
    top.mkdir()
    key, certificate = str(top / "key.pem"), str(top / "certificate.pem")
    subprocess.run([*OPENSSL, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = {"CA_FILE": certificate}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        tls |= {f"{role}__KEY": key, f"{role}__CERT": certificate}
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in tls.items()}


def test_tls_is_dasks_own_setting(site: Site, tmp_path: Path) -> None:
    """Whoever has no certificate of the cluster's authority can neither ask nor be asked."""
    visits(site)
    own, foreign = certified(tmp_path / "own"), certified(tmp_path / "foreign")
    with dask_cluster.started(tmp_path / "dask", scheme="tls", variables=own) as running:
        assert running.address.startswith("tls://")
        with_cluster(site, running.address)
        without = site.batch("survey-nightly")
        assert (without.returncode, len(without.stderr.splitlines())) == (78, 1)
        assert "name no distributed.comm.tls.ca-file" in without.stderr
        stranger = site.batch("survey-nightly", **foreign)
        assert (stranger.returncode, len(stranger.stderr.splitlines())) == (75, 1)
        assert "cannot reach the scheduler" in stranger.stderr
        done = site.batch("survey-nightly", **own)
    assert f"{3 * RECORDS} visits in 3 files" in done.stdout
    assert numbers(site) == on_this_host(site, tmp_path)
