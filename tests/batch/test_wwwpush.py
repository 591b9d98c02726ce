# SPDX-License-Identifier: Apache-2.0
"""wwwpush and ftppush as real processes: what they print, how they end, and that overlapping ones take turns."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BATCH = Path(__file__).resolve().parent.parent.parent / "batch"


@pytest.fixture
def site(site):
    for name in ("a/index.html", "a/logo.svg", "b/index.html"):
        file = site.production / "world" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return site


def started(site, *arguments):
    return subprocess.Popen(
        [sys.executable, str(BATCH / "wwwpush"), *arguments],
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def delivered(site, server):
    root = site.delivered(server)
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def master(site):
    return {
        str(path.relative_to(site.production)): path.read_text()
        for path in site.production.rglob("*")
        if path.is_file()
    }


def test_all_brings_everything_to_every_server_and_exits_0(site):
    done = site.batch("wwwpush", "-all")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "web[1-3]: ok, 3 files, 3 directories"
    assert lines[1].startswith("wwwpush: pushed world on 3 servers in ")
    for server in site.servers:
        assert delivered(site, server) == master(site)
    assert site.batch("wwwpush", "-quiet", "-all").stdout == ""
    assert len(list((site.state / "pushes").glob("2*.json"))) == 2


@pytest.mark.root
def test_full_server_does_not_hold_the_others_and_exits_1(site):
    (site.production / "world/a/big").write_text("x" * 100_000)
    # web2's disk has 64 kB, in a mount namespace of this one run.
    mount = f"mount -t tmpfs -o size=64k none '{site.delivered('web2')}' && exec \"$@\""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, str(BATCH / "wwwpush"), "world/a"],
        env=site.environment(PATH="/usr/sbin:/usr/bin:/sbin:/bin"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "web[1,3]: ok, 3 files, 2 directories"
    assert "web2: failed" in done.stderr
    assert "world/a/big: No space left on device" in done.stderr
    for server in ("web1", "web3"):
        assert delivered(site, server)["world/a/big"] == "x" * 100_000


def test_unwritable_server_and_unreadable_file_are_told_and_exit_1(site):
    (site.production / "world/a/logo.svg").chmod(0o600)
    site.delivered("web3").rmdir()
    site.delivered("web3").write_text("not a directory")
    done = site.batch("wwwpush", "world/a", "world/b")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "web[1-2]: ok, 2 files, 3 directories"
    assert "world/a/logo.svg: others may not read it (mode 0600)" in done.stderr
    assert "web3: failed: cannot open" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("wwwpush: pushed world/a, world/b on 2 of 3 servers in ")


def test_show_changes_nothing(site):
    (site.delivered("web1") / "world/a").mkdir(parents=True)
    (site.delivered("web1") / "world/a/old").write_text("old")
    done = site.batch("wwwpush", "-show", "world/a")
    assert done.returncode == 0
    assert "web1: remove world/a/old" in done.stdout.splitlines()
    assert "web[2-3]: install world/a/logo.svg" in done.stdout.splitlines()
    assert delivered(site, "web1") == {"world/a/old": "old"}
    assert delivered(site, "web2") == {}
    assert not (site.state / "pushes").exists()
    assert not (site.state / "pathlocks").exists()


def test_json_is_the_record_and_nothing_else(site):
    record = json.loads(site.batch("wwwpush", "--json", "world/a").stdout)
    [kept] = (site.state / "pushes").glob("2*.json")
    assert json.loads(kept.read_text()) == record
    shown = json.loads(site.batch("wwwpush", "-show", "-json", "world/b").stdout)
    assert shown["changes"][0]["install"] == ["world/b", "world/b/index.html"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ((), 64),
        (("-nonsense",), 64),
        (("world",), 64),
        (("/world/a",), 64),
        (("world/../a",), 64),
        (("-timeout", "soon", "world/a"), 64),
        (("-timeout", "nan", "world/a"), 64),
        (("nowhere/a",), 77),
        (("world/link/x",), 77),
    ],
)
def test_wrong_arguments_change_nothing(site, arguments, status):
    (site.production / "world/link").symlink_to("a")
    done = site.batch("wwwpush", *arguments)
    assert done.returncode == status, done.stderr
    assert "wwwpush: cannot" in done.stderr
    assert delivered(site, "web1") == {}


def test_ftppush_serves_the_other_family(site):
    done = site.batch("ftppush", "world/a")
    assert done.returncode == 78
    assert 'kind = "ftp"' in done.stderr
    ftp = site.root / "var/servers/ftp1/www"
    ftp.mkdir(parents=True)
    text = site.conf_file.read_text()
    site.conf_file.write_text(f'{text}\n[[servers]]\nname = "ftp1"\nkind = "ftp"\ndestination = "{ftp}"\n')
    assert site.batch("ftppush", "world/a").stdout.splitlines()[0] == "ftp1: ok, 2 files, 2 directories"
    assert delivered(site, "web1") == {}


def test_overlapping_pushes_wait_for_each_other_and_others_pass(site):
    # The first push stands still in the middle, holding world/a: completing publishes needs this lock.
    (site.state / "publish").mkdir()
    (site.state / "publish/.~left").write_text("")
    gate = os.open(site.state / "publish", os.O_RDONLY)
    fcntl.flock(gate, fcntl.LOCK_EX)
    first = started(site, "world/a")
    tickets = site.state / "pathlocks"
    while not (tickets.exists() and any(name.endswith(".ticket") for name in os.listdir(tickets))):
        assert first.poll() is None
    second = started(site, "world/a/logo.svg")
    assert select.select([second.stdout], [], [], 30)[0], "it does not wait for the first one's paths"
    assert second.stdout.readline().startswith("waiting for world/a/logo.svg: ")
    third = site.batch("wwwpush", "-timeout", "0.1", "world/a/index.html", "world/b")
    assert third.returncode == 75
    assert f"pid {first.pid}" in third.stderr
    # What does not touch them is only held up by the gate, not by their paths.
    assert site.batch("wwwpush", "-show", "world/b").returncode == 0
    assert delivered(site, "web1") == {}
    os.close(gate)
    for push in (first, second):
        output, errors = push.communicate(timeout=60)
        assert (push.returncode, errors) == (0, "")
        assert "web[1-3]: ok" in output
    assert delivered(site, "web1").keys() == {"world/a/index.html", "world/a/logo.svg"}
    records = sorted(
        (json.loads(file.read_text()) for file in (site.state / "pushes").glob("2*.json")), key=lambda r: r["pid"]
    )
    ended = {record["pid"]: record["started"] + record["duration_s"] for record in records}
    began = {record["pid"]: record["started"] + record["waited_s"] for record in records}
    assert began[second.pid] >= ended[first.pid] - 0.1


def test_killed_push_leaves_whole_files_and_the_next_one_mends(site):
    for number in range(3000):
        (site.production / f"world/a/{number}").write_text(f"{number} " * 50)
    push = started(site, "world/a")
    landed = site.delivered("web1") / "world/a"
    while not (landed.exists() and len(os.listdir(landed)) > 50):
        assert push.poll() is None
    push.send_signal(signal.SIGKILL)
    push.communicate()
    wanted = master(site)
    for path, content in delivered(site, "web1").items():
        assert "/.~" in path or content == wanted[path]
    done = site.batch("wwwpush", "world/a")
    assert done.returncode == 0, done.stderr
    for server in site.servers:
        assert delivered(site, server) == {path: text for path, text in wanted.items() if "world/a/" in path}


def test_ended_push_tidies_up_and_lets_go(site):
    for number in range(3000):
        (site.production / f"world/a/{number}").write_text("x")
    push = started(site, "world/a")
    landed = site.delivered("web1") / "world/a"
    while not (landed.exists() and len(os.listdir(landed)) > 50):
        assert push.poll() is None
    push.terminate()
    push.communicate(timeout=60)
    assert push.returncode == 128 + signal.SIGTERM
    for server in site.servers:
        assert not any("/.~" in path for path in delivered(site, server))
    assert site.batch("wwwpush", "-timeout", "0", "world/a").returncode == 0


def test_publish_that_was_killed_is_completed_before_its_files_are_sent(site):
    (site.production / "world/a/.~index.html.00").write_text("new")
    (site.production / "world/a/.~logo.svg.00").write_text("new")
    (site.state / "publish").mkdir()
    (site.state / "publish/00.whole").write_text(
        json.dumps(
            {
                "format": "infocluster publish 1",
                "directory": "world/a",
                "names": [["index.html", ".~index.html.00"], ["logo.svg", ".~logo.svg.00"]],
                "remove": [],
            }
        )
    )
    done = site.batch("wwwpush", "world/a/logo.svg", "world/b")
    assert "completing a publish of world/a that was not finished" in done.stdout
    assert delivered(site, "web1")["world/a/logo.svg"] == "new"
    assert (site.production / "world/a/index.html").read_text() == "new"


def write(site, path, content="x"):
    file = site.production / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-status", "world/a"], "-status does not go with a path"),
        (["-via=", "world/a"], "the host to push by"),
        (["-via=-oProxyCommand=x", "world/a"], "the host to push by"),
        (["-retry", "world/a"], "-retry sends what servers lack"),
        (["-relay", "-all"], "-relay does not go with -all"),
        (["-on", "nobody", "world/a"], "no such server"),
    ],
)
def test_what_does_not_go_together_is_said(site, arguments, said):
    done = site.batch("wwwpush", *arguments)
    assert done.returncode == 64, done.stderr
    assert said in done.stderr


def test_retry_sends_what_a_server_lacks_and_status_shows_it(site):
    write(site, "world/a/page.html")
    write(site, "world/b/page.html")
    assert site.batch("wwwpush", "-all").returncode == 0
    away = site.root / "away"
    site.delivered("web2").rename(away)
    write(site, "world/a/page.html", "changed")
    assert site.batch("wwwpush", "world/a").returncode == 1
    assert "web2" in site.batch("wwwpush", "-status").stdout
    away.rename(site.delivered("web2"))
    write(site, "world/b/page.html", "changed too")
    done = site.batch("wwwpush", "-retry")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "web2: ok, 1 file")
    assert (site.delivered("web2") / "world/a/page.html").read_text() == "changed"
    assert (site.delivered("web2") / "world/b/page.html").read_text() == "x"
    assert site.batch("wwwpush", "-retry").stdout == "wwwpush: no server lacks anything\n"
    write(site, "world/secret").chmod(0o600)
    (site.production / "other").symlink_to("world")
    assert site.batch("wwwpush", "-all").returncode == 1
    *_, push, fault, _ = site.batch("wwwpush", "-status").stdout.splitlines()
    assert ": wwwpush world: web[1-3] ok, 1 left out, in " in push
    assert fault == "  cannot push other: a tree is a directory, and 'other' is a symbolic link"


def test_quick_sends_what_changed_here_and_all_heals_what_changed_there(site):
    write(site, "world/a/page.html")
    write(site, "world/b/page.html")
    assert site.batch("wwwpush", "-all").returncode == 0
    write(site, "world/a/page.html", "changed")
    (site.delivered("web3") / "world/b/page.html").write_text("changed behind our back")
    done = site.batch("wwwpush", "-quick", "-all")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "web[1-3]: ok, 1 file")
    assert site.batch("wwwpush", "-quick", "-all").stdout.startswith("web[1-3]: ok, nothing to do\n")
    assert site.batch("wwwpush", "-verify", "-all").returncode == 1
    assert site.batch("wwwpush", "-all").stdout.splitlines()[-2].startswith("web3: ok, 1 file")
    assert site.batch("wwwpush", "-verify", "-all").returncode == 0


def test_skeleton_leaves_out_runs_commands_and_tells_by_letter(site):
    (site.root / "etc/distfile.web.skel").write_text(
        "${FILES} -> ${HOSTS}\n    except world/private ;\n"
        f'    cmdspecial "echo $FILES >> {site.root}/ran" ;\n    notify www-mgmt@localhost ;\n'
    )
    text = site.conf_file.read_text().replace(
        '[[servers]]\nname = "web1"', '[[servers]]\nskeleton = "distfile.web.skel"\nname = "web1"'
    )
    site.conf_file.write_text(text)
    write(site, "world/a/page.html")
    write(site, "world/private/page.html")
    done = site.batch("wwwpush", "world/a", "world/private")
    assert done.returncode == 0
    assert "letter" in done.stderr  # no mail server listens here: it waits, and that is told
    assert "world/private is not sent" in done.stdout
    assert not (site.delivered("web1") / "world/private").exists()
    assert (site.delivered("web2") / "world/private/page.html").exists()
    assert str(site.delivered("web1") / "world/a/page.html") in (site.root / "ran").read_text().strip().split(":")
    letters = [file.read_text() for file in (site.state / "letters").glob("*.eml")]
    assert len(letters) == 1
    assert "web1: install world/a/page.html" in letters[0]


def test_skeleton_that_cannot_be_read_stops_the_push_before_anything(site):
    (site.root / "etc/distfile.web.skel").write_text("${FILES} -> ${HOSTS}\n    except ( world/private ;\n")
    site.conf_file.write_text(
        site.conf_file.read_text().replace('name = "web1"', 'name = "web1"\nskeleton = "distfile.web.skel"')
    )
    write(site, "world/a/page.html")
    done = site.batch("wwwpush", "world/a")
    assert done.returncode == 78
    assert "distfile.web.skel:2" in done.stderr
    assert not (site.delivered("web2") / "world").exists()
