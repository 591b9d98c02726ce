# SPDX-License-Identifier: Apache-2.0
"""push.rdist and push.specials: what a server gets, what is read from rdist's output, what is run afterwards.

The rdist here is a stand-in (rdist_standin.py): Debian 12 has none.
"""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from infocluster import trees
from infocluster.errors import ConfigError, RefusedError, UnavailableError
from infocluster.push import rdist, specials
from infocluster.push.order import Order, UnreachableError
from infocluster.push.servers import Server
from infocluster.push.skeleton import Skeleton

SSH = """#!/bin/sh
# Stands for the way to a server: greets as rdistd does, or fails as ssh does.
printf '%s\\n' "$@" >>{log}
case $(cat {mode}) in
down) echo "ssh: connect to host web1 port 22: Connection refused" >&2; exit 255;;
bare) echo "sh: 1: rdistd: not found" >&2; exit 127;;
*) echo V;;
esac
"""


class Cluster:
    """A master, one server, the stand-in and a way to the server."""

    def __init__(self, tmp_path, monkeypatch):
        self.master = tmp_path / "www"
        self.root = tmp_path / "hosts/web1"
        self.state = tmp_path / "state"
        self.skel = tmp_path / "web.skel"
        self.log, self.mode = tmp_path / "ssh.log", tmp_path / "ssh.mode"
        for directory in (self.master / "world", self.root, self.state):
            directory.mkdir(parents=True)
        self.mode.write_text("up")
        ssh = tmp_path / "ssh"
        ssh.write_text(SSH.format(log=self.log, mode=self.mode))
        ssh.chmod(0o755)
        program = tmp_path / "rdist"
        standin = Path(__file__).with_name("rdist_standin.py")
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {standin} "$@"\n')
        program.chmod(0o755)
        push = {"rdist": str(program), "ssh": str(ssh), "ssh_config": "", "ssh_keep_s": 0, "connect_timeout_s": 5}
        self.conf = {
            "site": {"production_dir": str(self.master), "state_dir": str(self.state)},
            "push": push,
        }
        self.destination = "/srv/www"
        monkeypatch.setenv("RDIST_STANDIN_ROOT", str(tmp_path / "hosts"))
        monkeypatch.setenv("RDIST_OPTIONS", "younger")

    @property
    def there(self):
        return Path(f"{self.root}{self.destination}")

    def write(self, path, content="x", mode=0o644):
        file = self.master / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)
        return file

    def give(self, path, content="old"):
        file = self.there / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        os.utime(file, (1, 1))
        return file

    def actions(self, *paths, show=False, atomic=False, leave=None, user="", timeout_s=60, keep=False):
        name = str(self.skel) if self.skel.exists() else ""
        skeleton = Skeleton.read(name, self.conf) if name else Skeleton.none(self.conf)
        listing = trees.scan(str(self.master), paths, lambda *item: skeleton.leave(*item) or (leave and leave(*item)))
        server = Server("web1", "web", "rdist", self.destination, user, 0, name)
        order = Order(
            self.conf, list(paths), show, atomic, time.monotonic() + timeout_s, threading.Event(), keep, skeleton
        )
        return rdist.push(server, listing, order)

    def push(self, *paths, **how):
        return [(action.verb, action.path) for action in self.actions(*paths, **how)]

    def held(self):
        return {str(path.relative_to(self.there)) for path in self.there.rglob("*")}


@pytest.fixture(params=["same", "other"])
def cluster(request, tmp_path, monkeypatch):
    result = Cluster(tmp_path, monkeypatch)
    if request.param == "same":
        result.destination = str(result.master)
    return result


@pytest.fixture
def simple(tmp_path, monkeypatch):
    return Cluster(tmp_path, monkeypatch)


def test_server_becomes_the_copy_of_the_named_paths(cluster):
    cluster.write("world/a/new")
    cluster.write("world/a/changed", "new")
    cluster.write("world/file", "longer")
    (cluster.master / "world/a/link").symlink_to("http://elsewhere/")
    for path in ("world/a/changed", "world/a/gone/x", "world/kept", "world/file"):
        cluster.give(path)
    done = list(cluster.actions("world/a", "world/file"))
    assert {(one.verb, one.path, one.is_directory, one.size) for one in done} == {
        ("install", "world/a/new", False, 1),
        ("update", "world/a/changed", False, 3),
        ("install", "world/a/link", False, 0),
        ("update", "world/file", False, 6),
        ("remove", "world/a/gone/x", False, 0),
        ("remove", "world/a/gone", False, 0),
    }
    assert [one.verb for one in done][-2:] == ["remove", "remove"]
    assert cluster.held() == {
        "world",
        *(f"world/{name}" for name in ("a", "a/new", "a/changed", "a/link", "file", "kept")),
    }
    assert os.readlink(cluster.there / "world/a/link") == "http://elsewhere/"
    assert cluster.push("world/a", "world/file") == []
    assert os.listdir(cluster.state / "distfiles") == []


def test_new_directories_are_told_once(simple):
    simple.write("world/a/b/c")
    (simple.there / "world").mkdir(parents=True)
    new = [("install", "world/a"), ("install", "world/a/b"), ("install", "world/a/b/c")]
    assert simple.push("world/a") == new


def test_named_paths_that_are_gone_are_removed_and_nothing_beside_them(cluster):
    cluster.write("world/d/stays")
    for path in (
        "world/d/gone",
        "world/d/gone2",
        "world/d/gon",
        "world/d/go/x",
        "world/tree/x/y",
        "world/tre",
        "world/other/x",
    ):
        cluster.give(path)
    cluster.give("world/d/stays", "not to be touched")
    done = cluster.push("world/d/gone", "world/tree")
    assert done == [
        ("remove", "world/d/gone"),
        ("remove", "world/tree/x/y"),
        ("remove", "world/tree/x"),
        ("remove", "world/tree"),
    ]
    left = {"gone2", "gon", "go", "go/x", "stays"}
    assert cluster.held() == {"world", "world/d", "world/tre", "world/other", "world/other/x"} | {
        f"world/d/{name}" for name in left
    }
    assert (cluster.there / "world/d/stays").read_text() == "not to be touched"


def test_path_whose_directory_is_gone_too_is_told(simple):
    simple.give("world/d/x")
    [fault] = simple.actions("world/d/x")
    assert (fault.verb, fault.path) == ("fail", "world/d/x")
    assert "its directory is gone here too" in fault.reason
    assert simple.held() == {"world", "world/d", "world/d/x"}


NAMES = [
    " blank",
    "a b",
    "q\"u'o",
    "p(a)r",
    "e=q;s:c",
    "d$ollar",
    "b\\ack",
    "#num",
    "+p&a-m",
    "~t",
    "per%",
    "ca\u00e9",
]
WILD = ["a[1].html", "b{x", "c*d", "e?f", "[", "{a,b}"]
HIDDEN = ["caf\u00e0", "$a[b", "l\u00e0/d\u00e8"]


@pytest.mark.parametrize("name", [*NAMES, *WILD, *HIDDEN])
def test_every_name_arrives_and_goes(cluster, name):
    cluster.write(f"world/{name}", "new")
    cluster.write("world/cafe", "new")
    cluster.write("world/a1.html", "new")
    (cluster.there / "world").mkdir(parents=True)
    assert ("install", f"world/{name}") in cluster.push(f"world/{name}")
    assert cluster.held() - {"world/l\u00e0"} == {"world", f"world/{name}"}
    (cluster.master / "world" / name).unlink()
    assert cluster.push(f"world/{name}") == [("remove", f"world/{name}")]
    assert cluster.held() - {"world/l\u00e0"} == {"world"}


def test_hidden_directory_arrives_with_what_is_in_it_alone(cluster):
    for path in ("world/\u00e0/x", "world/\u00e0/y", "world/\u00e8/x", "world/other"):
        cluster.write(path)
    cluster.give("world/\u00e0/gone")
    cluster.give("world/unknown")
    cluster.push("world/\u00e0")
    assert cluster.held() == {"world", "world/\u00e0", "world/\u00e0/x", "world/\u00e0/y", "world/unknown"}


def test_what_is_left_out_is_neither_sent_nor_removed(cluster):
    cluster.skel.write_text(
        "${FILES} -> ${HOSTS}\n install -onochkowner ;\n"
        "except ( world/private world/own ) ;\n except_pat \\\\.bak\\$ ;\n"
    )
    for path in ("world/private/x", "world/a.bak", "world/a", "world/secret", "world/s[1]"):
        cluster.write(path)
    for path in ("world/private/y", "world/own", "world/b.bak", "world/extra", "world/secret"):
        cluster.give(path)
    why = lambda _directory, name, _mode: "not for all" if name in ("secret", "s[1]") else None  # noqa: E731
    assert set(cluster.push("world", leave=why)) == {("install", "world/a"), ("remove", "world/extra")}
    assert cluster.held() == {"world", "world/private"} | {
        f"world/{name}" for name in ("private/y", "own", "b.bak", "a", "secret")
    }
    assert (cluster.there / "world/secret").read_text() == "old"


def test_show_changes_nothing_and_tells_what_would_be_done(cluster):
    cluster.write("world/a/new/x")
    cluster.write("world/a/changed", "new")
    cluster.give("world/a/changed")
    cluster.give("world/a/extra")
    cluster.give("world/gone")
    before = cluster.held()
    assert sorted(cluster.push("world/a", "world/gone", show=True)) == [
        ("install", "world/a/new"),
        ("install", "world/a/new/x"),
        ("remove", "world/a/extra"),
        ("remove", "world/gone"),
        ("update", "world/a/changed"),
    ]
    assert cluster.held() == before


def test_write_that_fails_is_told_although_the_status_is_0(cluster):
    cluster.write("world/a", "new")
    cluster.write("world/b", "new")
    for path in ("world/a", "world/extra", "world/gone"):
        cluster.give(path)
    (cluster.root / ".full").touch()
    done = list(cluster.actions("world/a", "world/b", "world/gone"))
    assert [(one.verb, one.path) for one in done] == [
        ("fail", "world/a"),
        ("fail", "world/b"),
        ("keep", "world/gone"),
    ]
    assert "No space left on device" in done[0].reason
    assert cluster.held() == {"world", "world/a", "world/extra", "world/gone"}
    assert cluster.push("world")[-1][0] == "fail"
    assert "world/extra" in cluster.held()


def test_name_with_a_newline_is_told_although_the_status_is_0(simple):
    simple.write("world/d/a\nb")
    simple.write("world/d/c")
    simple.give("world/d/extra")
    done = list(simple.actions("world/d"))
    assert ("install", "world/d/c") in [(one.verb, one.path) for one in done]
    [fault] = [one for one in done if one.verb == "fail"]
    assert "Refuse to handle filename containing newline" in fault.reason
    assert "world/d/extra" in simple.held()


def test_file_that_vanishes_is_told_and_the_others_go_on(simple):
    file = simple.write("world/a")
    simple.write("world/b")
    work = simple.actions("world/a", "world/b")
    file.unlink()
    done = list(work)
    assert ("fail", "world/a") in [(one.verb, one.path) for one in done]
    assert ("install", "world/b") in [(one.verb, one.path) for one in done]


def test_server_that_is_down_is_unreachable(simple):
    simple.write("world/a")
    simple.mode.write_text("down")
    with pytest.raises(UnreachableError, match=r"cannot reach web1: .*Connection refused"):
        simple.push("world/a")
    assert os.listdir(simple.state / "distfiles") == []


def test_server_without_rdistd_is_not_tried_again(simple):
    simple.write("world/a")
    simple.mode.write_text("bare")
    with pytest.raises(UnavailableError, match="rdistd: not found") as caught:
        simple.push("world/a")
    assert not isinstance(caught.value, UnreachableError)


def test_connection_that_breaks_is_unreachable(simple):
    simple.write("world/a")
    (simple.root / ".cut").touch()
    with pytest.raises(UnreachableError, match="Lost connection"):
        simple.push("world/a")


def test_server_is_reached_as_settings_say(simple):
    simple.write("world/a")
    simple.push("world/a", user="jane")
    words = simple.log.read_text().splitlines()
    assert words[-4:] == ["web1", "-l", "jane", "rdistd -S"]
    assert "-oBatchMode=yes" in words and "-oConnectTimeout=5" in words
    with pytest.raises(ConfigError, match="not a plain user name"):
        simple.push("world/a", user="-oProxyCommand=x")


PROGRAM = "#!/bin/sh\n{body}\n"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("exit 0", "rdist did not say that it finished web1"),
        ("echo 'web1: updating of web1 finished'; exit 1", "rdist ended with status 1"),
        ("echo 'master: LOCAL ERROR: Error in distfile: line 3: Too many names'; exit 1", "line 3: Too many names"),
        ("echo 'web1: updating of web1 finished'; echo 'web1: s: /srv/www/world/a: chmod failed: x'", "chmod failed"),
        ("echo 'web1: updating of web1 finished'; echo 'web1: REMOTE ERROR: /srv/www/world/a: x: y'", "x: y"),
        ("kill -9 $$", "rdist did not say that it finished web1"),
    ],
)
def test_run_that_does_not_say_that_it_went_well_did_not(simple, body, told):
    simple.write("world/a")
    Path(simple.conf["push"]["rdist"]).write_text(PROGRAM.format(body=body))
    [fault] = simple.actions("world/a")
    assert fault.verb == "fail" and told in fault.reason


def test_owner_that_cannot_be_set_is_no_fault(simple):
    simple.write("world/a")
    lines = ["web1: /srv/www/world/x: chgrp 33 failed: Operation not permitted", "web1: updating of web1 finished"]
    Path(simple.conf["push"]["rdist"]).write_text(PROGRAM.format(body="\n".join(f"echo '{line}'" for line in lines)))
    assert simple.push("world/a") == []


def test_time_that_is_over_ends_it(simple):
    simple.write("world/a")
    Path(simple.conf["push"]["rdist"]).write_text(PROGRAM.format(body="exec sleep 60"))
    with pytest.raises(UnavailableError, match="not done after"):
        simple.push("world/a", timeout_s=0.5)
    assert os.listdir(simple.state / "distfiles") == []


def test_distfile_is_kept_where_that_is_asked(simple):
    simple.write("world/a")
    list(simple.actions("world/a", keep=True))
    [name] = os.listdir(simple.state / "distfiles")
    assert name.startswith("web1-") and name.endswith(".dist")
    assert f"send: {simple.master}/world/a -> ${{HOSTS}}" in (simple.state / "distfiles" / name).read_text()


def test_switching_over_in_one_step_is_refused(simple):
    simple.write("world/a")
    with pytest.raises(RefusedError):
        simple.push("world/a", atomic=True)


def test_rdist_that_is_not_there_is_told(simple):
    simple.write("world/a")
    simple.conf["push"]["rdist"] += "x"
    with pytest.raises(ConfigError, match="there is no program"):
        simple.push("world/a")


SKELETON = """${FILES} -> ${HOSTS}
    special ( world/conf ) "echo special $FILE $REMFILE $BASEFILE >>$LOG" ;
    cmdspecial "echo all \\"$FILES\\" >>$LOG" ;
    cmdspecial ( world/never ) "echo never >>$LOG" ;
    special "test \\"$BASEFILE\\" != bad || { echo broken >&2; exit 3; }" ;
"""


def test_commands_run_on_the_server_after_its_files_changed(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    skeleton = Skeleton.parsed(SKELETON, "web.skel", "/www")
    server = Server("web1", "web", "local", "/srv", "", 0, "web.skel")
    order = Order({"site": {"production_dir": "/www"}}, [], False, False, time.monotonic() + 60, threading.Event())
    evil = "world/a; touch evil $(touch evil) '\n\""
    changes = [
        trees.Action("install", "world", True),
        trees.Action("update", "world/conf"),
        trees.Action("install", evil),
        trees.Action("remove", "world/old"),
        trees.Action("install", "world/bad"),
    ]
    monkeypatch.chdir(tmp_path)
    assert specials.run(server, skeleton, changes, order) == [
        'the command test "$BASEFILE" != bad || { echo broken >&2; exit 3; } for /srv/world/bad ended with status 3 '
        "(broken)"
    ]
    assert log.read_text() == (
        f"special /www/world/conf /srv/world/conf conf\nall /srv/world/conf:/srv/{evil}:/srv/world/bad\n"
    )
    assert not (tmp_path / "evil").exists()
    log.unlink()
    assert specials.run(server, skeleton, [], order) == []
    assert specials.run(server, skeleton, [trees.Action("remove", "world/old")], order) == []
    assert log.read_text() == "all \n"


def test_command_gets_all_names_however_many_they_are(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    skeleton = Skeleton.parsed('${FILES} -> ${HOSTS}\n cmdspecial "echo $FILES >>$LOG" ;\n', "web.skel", "/www")
    server = Server("web1", "web", "local", "/srv", "", 0, "web.skel")
    order = Order({"site": {"production_dir": "/www"}}, [], False, False, time.monotonic() + 60, threading.Event())
    paths = [f"world/{'x' * 200}{number:04}" for number in range(1000)]
    assert specials.run(server, skeleton, [trees.Action("install", path) for path in paths], order) == []
    assert log.read_text().replace("\n", ":").split(":")[:-1] == [f"/srv/{path}" for path in paths]
    assert log.read_text().count("\n") < 5


def test_daemon_runs_no_commands():
    skeleton = Skeleton.parsed(SKELETON, "web.skel", "/www")
    server = Server("web1", "web", "daemon", "module", "", 0, "web.skel")
    order = Order({"site": {"production_dir": "/www"}}, [], False, False, time.monotonic() + 60, threading.Event())
    [fault] = specials.run(server, skeleton, [trees.Action("install", "world/a")], order)
    assert "an rsync daemon runs none" in fault
