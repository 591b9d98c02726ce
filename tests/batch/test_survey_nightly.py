# SPDX-License-Identifier: Apache-2.0
"""survey-nightly as a process: what every server gathered is counted once and published, or it is said why not."""

import csv
import json
import re
import shutil
import sqlite3
import subprocess
import time

import pytest

from conftest import Site
from infocluster.gather import drop

SETTINGS = {"durable": False, "lock_timeout_s": 10, "limit_bytes": 65536}
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
)
BOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
DAY_S = 86400
SUNDAY, MONDAY, FIRST = 1795305600 + 3600, 1795305600 + 90000, 1796083200 + 3600  # 2026-11-22, -23, 2026-12-01


def visit(site: Site, server: str, agent: str, when: float | None = None) -> None:
    record: dict[str, object] = {"agent": agent} | ({"time": when} if when is not None else {})
    drop.append("survey", record, SETTINGS, str(site.gather(server)))


def numbers(site: Site, page: str = "index") -> dict[str, object]:
    result = json.loads((site.production / f"world/survey/{page}.json").read_text())
    tables = {table["id"]: dict(table["rows"]) for table in result["tables"]}
    return {"visits": result["visits"], "bots": result["bots"], **tables}


def test_every_server_s_visits_are_counted_by_day_week_month_and_always(site: Site) -> None:
    visit(site, "web1", FIREFOX, SUNDAY)
    visit(site, "web2", FIREFOX, MONDAY)
    visit(site, "web3", CHROME, MONDAY)
    visit(site, "web3", BOT, FIRST)
    visit(site, "web3", "", FIRST)
    done = site.batch("survey-nightly")
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 visits in 4 files, 1 of bots" in done.stdout
    assert numbers(site) == {
        "visits": 5,
        "bots": 1,
        "browser": {"Firefox": 2, "Chrome": 1, "(none sent)": 1},
        "version": {"Firefox 145": 2, "Chrome 142": 1, "(none sent)": 1},
        "os": {"Linux": 2, "Windows 10": 1, "(none sent)": 1},
        "bot": {"Googlebot": 1},
    }
    for page, visits in {
        "day-2026-11-22": 1,
        "day-2026-11-23": 2,
        "week-2026-W47": 1,
        "week-2026-W48": 2,
        "month-2026-11": 3,
        "month-2026-12": 2,
    }.items():
        assert numbers(site, page)["visits"] == visits, page
        with (site.production / f"world/survey/{page}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        bots = 1 if page == "month-2026-12" else 0
        assert [page.partition("-")[2], "visits", "people", str(visits - bots)] in rows
        assert b"<svg" in (site.production / f"world/survey/{page}.html").read_bytes()


def test_night_run_twice_counts_nothing_twice(site: Site) -> None:
    visit(site, "web1", FIREFOX)
    site.batch("survey-nightly")
    page = site.production / "world/survey/index.html"
    before = page.stat().st_mtime_ns
    done = site.batch("survey-nightly")
    assert (done.returncode, done.stdout) == (
        0,
        "survey-nightly: 0 visits in 0 files, 0 of bots; 0 pages published\n",
    )
    assert numbers(site)["visits"] == 1
    assert page.stat().st_mtime_ns == before
    visit(site, "web1", FIREFOX)
    site.batch("survey-nightly")
    assert numbers(site)["visits"] == 2


def test_torn_line_and_odd_name_are_reported_and_the_rest_counted(site: Site) -> None:
    visit(site, "web1", FIREFOX)
    (segment,) = site.gather("web1").glob("survey/*")
    with segment.open("ab") as file:
        file.write(b'{"id":"torn')
    visit(site, "web1", FIREFOX)
    with segment.open("ab") as file:
        file.write(b"\xff not json\n")
    done = site.batch("survey-nightly")
    assert done.returncode == 1
    assert f"2 lines of {segment}" in done.stderr
    assert numbers(site)["visits"] == 2
    assert site.batch("survey-nightly").returncode == 0
    segment.with_name("old.jsonl").write_bytes(segment.read_bytes())
    visit(site, "web1", FIREFOX)
    done = site.batch("survey-nightly")
    assert (done.returncode, numbers(site)["visits"]) == (1, 3)
    assert "old.jsonl" in done.stderr


def test_day_of_a_server_whose_clock_was_wrong_is_counted_and_stops_nothing(site: Site) -> None:
    visit(site, "web1", FIREFOX)
    (segment,) = site.gather("web1").glob("survey/*")
    for day in ("1970-01-01", "9998-12-31"):
        segment.with_name(f"{day}.jsonl").write_bytes(segment.read_bytes())
    assert site.batch("survey-nightly").returncode == 0
    assert numbers(site)["visits"] == 3
    assert "1970-01-01" in (site.production / "world/survey/index.html").read_text()


def test_segment_that_lost_its_end_is_mended_as_its_manual_says(site: Site) -> None:
    for _ in range(3):
        visit(site, "web1", FIREFOX)
    site.batch("survey-nightly")
    (segment,) = site.gather("web1").glob("survey/*")
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:2]))
    for _ in range(2):
        visit(site, "web1", CHROME)
    done = site.batch("survey-nightly")
    assert done.returncode == 1
    assert f"cannot read on in {segment}" in done.stderr and "infocluster-segment(5)" in done.stderr
    manual = drop.__doc__ or ""
    (mend,) = (line.strip() for line in manual.splitlines() if "sed -i" in line)
    mend = mend.replace("1,512d", "1,2d").replace("2026-11-22.jsonl", segment.name)
    subprocess.run(["sh", "-c", mend], env=site.environment(SERVER_GATHER=str(site.gather("web1"))), check=True)
    assert site.batch("survey-nightly").returncode == 0
    assert numbers(site)["browser"] == {"Firefox": 3, "Chrome": 2}
    visit(site, "web1", CHROME)
    assert site.batch("survey-nightly").returncode == 0
    assert numbers(site)["visits"] == 6


def test_missing_server_is_reported_and_caught_up(site: Site) -> None:
    for server in site.servers:
        visit(site, server, FIREFOX)
    away = site.root / "away"
    (site.root / "var/gather/web2").rename(away)
    done = site.batch("survey-nightly")
    assert done.returncode == 1
    assert "web2" in done.stderr
    assert numbers(site)["visits"] == 2
    away.rename(site.root / "var/gather/web2")
    assert site.batch("survey-nightly").returncode == 0
    assert numbers(site)["visits"] == 3


def test_place_that_is_missing_is_told_once_by_its_path(site: Site) -> None:
    site.configure('[site]\nproduction_dir = "none"\n[gather]\ngather_dir = "nothing"\n')
    done = site.batch("survey-nightly")
    assert done.returncode == 75
    assert done.stderr.count(f"cannot read {site.root}/nothing: No such file or directory") == 1
    assert f"cannot publish gather/marks: {site.root}/none: No such file or directory" in done.stderr


def test_pages_at_the_top_of_a_tree_are_linked_at_the_top_of_the_site(site: Site) -> None:
    site.configure('[survey]\ndirectory = "world"\ntop = 1\n')
    site.protect("world", "*.json\n*.html\n*.csv\n")
    for agent in (FIREFOX, FIREFOX, CHROME, ""):
        visit(site, "web1", agent)
    assert site.batch("survey-nightly").returncode == 0
    assert '<a href="/">All numbers' in (site.production / "world/summary.html").read_text()
    letter = site.batch("mail-report", "-show").stdout
    assert "http://localhost/\n" in letter and re.search(r"Firefox +2\n +2 more +2\n", letter)


def test_directory_that_no_rule_protects_is_refused_and_published_once_it_is(site: Site) -> None:
    site.protect("world/survey", "*.json\n")
    visit(site, "web1", FIREFOX)
    done = site.batch("survey-nightly")
    assert done.returncode == 77
    assert ".wwwinstrc" in done.stderr
    assert not (site.production / "world/survey").exists() or not list((site.production / "world/survey").iterdir())
    site.protect("world/survey", "*.json\n*.html\n*.csv\n")
    done = site.batch("survey-nightly")  # what was counted by the refused night is published by this one
    assert done.returncode == 0
    assert numbers(site)["visits"] == 1
    assert "4 pages published" in site.batch("mail-report", "-show").stdout


def test_what_is_published_is_made_again_where_it_is_not_what_the_database_says(site: Site) -> None:
    survey, old = site.production / "world/survey", site.root / "old"
    visit(site, "web1", FIREFOX, SUNDAY)
    site.batch("survey-nightly")
    shutil.copytree(survey, old)
    visit(site, "web1", FIREFOX, MONDAY)
    site.batch("survey-nightly")
    published = {file.name for file in survey.iterdir()}

    def night() -> tuple[str, set[str], object]:
        done = site.batch("survey-nightly")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split("; ")[1], {file.name for file in survey.iterdir()}, numbers(site)["visits"]

    shutil.rmtree(survey)
    assert night() == ("6 pages published\n", published, 2)
    shutil.rmtree(survey)
    old.rename(survey)  # a backup of the night before
    assert night() == ("6 pages published\n", published, 2)
    site.configure('[site]\nname = "Another name"\n')
    assert night() == ("6 pages published\n", published, 2)
    assert "Another name" in (survey / "day-2026-11-22.html").read_text()
    assert night() == ("0 pages published\n", published, 2)


def test_day_that_comes_late_stands_between_its_neighbours(site: Site) -> None:
    for when in (SUNDAY, MONDAY + DAY_S, MONDAY):
        visit(site, "web1", FIREFOX, when)
        site.batch("survey-nightly")
    for day in ("22", "24"):
        page = (site.production / f"world/survey/day-2026-11-{day}.html").read_text()
        assert re.findall(r'href="([^"]*)" rel="(?:prev|next)"', page) == ["day-2026-11-23.html"]


def test_second_run_at_once_says_who_is_at_it(site: Site) -> None:
    (site.state / "locks").mkdir(parents=True, exist_ok=True)
    lock = site.state / "locks/survey-nightly.lock"
    held = ["flock", str(lock), "sh", "-c", "echo held; read end"]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        done = site.batch("survey-nightly")
        other.communicate(b"\n")
    assert done.returncode == 75
    assert str(other.pid) in done.stderr


def test_marks_let_the_server_sweep_what_was_counted(site: Site) -> None:
    for server in site.servers:
        visit(site, server, FIREFOX, time.time() - 30 * 86400)
        visit(site, server, FIREFOX)
    site.batch("survey-nightly")
    assert site.batch("wwwpush", "-all").returncode == 0
    for server in site.servers:
        visit(site, server, FIREFOX)
        marks = str(site.delivered(server) / "gather/marks")
        done = site.batch("gather-sweep", "-marks", marks, SERVER_GATHER=str(site.gather(server)))
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "gather-sweep: 1 segment dropped")
    site.batch("survey-nightly")
    assert numbers(site)["visits"] == 9


@pytest.mark.slow
def test_names_that_visitors_make_up_do_not_grow_without_bound(site: Site) -> None:
    for number in range(2500):
        visit(site, "web1", f"Made-up-{number}/1.0 <script>=cmd()")
    assert site.batch("survey-nightly").returncode == 0
    with sqlite3.connect(site.state / "survey.sqlite") as db:
        (most,) = db.execute("SELECT max(n) FROM (SELECT count(*) n FROM counts GROUP BY period, kind)").fetchone()
    assert most <= 2001
    assert numbers(site)["visits"] == 2500
    for page in (site.production / "world/survey").glob("*.html"):
        assert b"<script" not in page.read_bytes()


def test_help_and_bad_usage_answer_at_once(site: Site) -> None:
    site.conf_file.write_text("not even toml")
    assert "Usage: survey-nightly" in site.batch("survey-nightly", "--help").stdout
    done = site.batch("survey-nightly", "-nonsense")
    assert done.returncode == 64
    assert "-nonsense" in done.stderr
    assert site.batch("survey-nightly").returncode == 78
