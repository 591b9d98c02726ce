# SPDX-License-Identifier: Apache-2.0
"""push.skeleton: what it leaves out, what it runs, what it refuses, and the distfile that rdist gets."""

import os
import subprocess
from pathlib import Path

import pytest

from infocluster import trees
from infocluster.errors import ConfigError
from infocluster.push import distfile, skeleton
from infocluster.push.distfile import Distribute, UnwritableError
from infocluster.push.skeleton import LeftOut, Skeleton

ETC = Path(__file__).resolve().parents[2] / "etc"
ENTRY = "${FILES} -> ${HOSTS}\n"


def parsed(commands, before="", top="/www"):
    return Skeleton.parsed(f"{before}{ENTRY}{commands}", "web.skel", top)


def test_named_paths_and_what_is_below_them_are_left_out():
    skel = parsed("except ( world/private /www/world/a.html ${TOP}/ftp/x ) ;", "A = b\n")
    asked = [
        "world/private",
        "world/private/a/b",
        "world/private2",
        "world/a.html",
        "world/a.htm",
        "ftp/x/y",
        "world",
    ]
    assert skel.left_out(asked) == [
        (path, "web.skel, line 3, leaves it out")
        for path in ("world/private", "world/private/a/b", "world/a.html", "ftp/x/y")
    ]


def test_patterns_are_found_anywhere_in_the_whole_path():
    skel = parsed(r"except_pat ( \\.bak\$ /RCS/ ^${TOP}/world/dra ) ;")
    out = ["world/a.bak", "x/RCS/a", "world/drafts", "world/drafts/a", "a.bak/b"]
    assert [path for path, _ in skel.left_out([*out, "world/a.bakx", "x/RCS", "x/world/dra"])] == out


def test_patterns_match_what_grep_finds(tmp_path):
    patterns = [r"\.bak$", "/RCS$", r"core\.[0-9]\{1,\}$", r"\(ab\)\1", "~$", r"/\.[^/]*$"]
    words = " ".join(
        distfile.printed([distfile.Variable("X", distfile.Names((distfile.plain(one),)))])[4:-1] for one in patterns
    )
    skel = parsed(f"except_pat ( {words} ) ;")
    paths = [
        "world/" + name for name in ("a.bak", "abak", "RCS", "RCS/a", "core.1", "core.x", "xababx", "a~", ".a", "b.a")
    ]
    done = subprocess.run(
        ["grep", *(word for pattern in patterns for word in ("-e", pattern))],
        input="\n".join(f"/www/{path}" for path in paths),
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": os.defpath},
        check=True,
    )
    assert [f"/www/{path}" for path in paths if skel.reason(path)] == done.stdout.split()
    assert len(done.stdout.split()) == 6


def test_wildcards_and_braces_match_names_as_they_come():
    skel = parsed("except ( world/*.tmp world/{a,b}/?x world/[0-9] ) ;")
    out = ["world/a.tmp", "world/a/yx", "world/b/yx", "world/7"]
    assert [path for path, _ in skel.left_out([*out, "world/.tmp", "world/c/yx", "world/a/yyx", "world/77"])] == out


def test_names_that_are_not_utf8_are_compared_byte_by_byte():
    name = os.fsdecode(b"world/caf\xe9")
    assert parsed(os.fsdecode(b"except world/caf\xe9 ;")).reason(name)
    assert parsed("except_pat caf.\\$ ;").reason(name)
    assert not parsed("except_pat caf.\\$ ;").reason("world/caf\u00e9")


def test_scan_leaves_out_what_the_skeleton_does(tmp_path):
    for name in ("world/private/a", "world/sub/a.bak", "world/sub/a", "world/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    skel = parsed(
        "except ( world/private world/gone world/lost/x ftp/x ) ;\nexcept_pat \\\\.bak\\$ ;", top=str(tmp_path)
    )
    listing = trees.scan(str(tmp_path), ["world"], skel.leave)
    assert [path for path, _ in listing.left] == ["world/private", "world/sub/a.bak"]
    assert all(isinstance(why, LeftOut) for _, why in listing.left)
    skel.guard(listing)
    world = listing.top.directories["world"]
    assert world.left == {"private", "gone"}
    assert [path for path, _ in listing.left] == ["world/private", "world/sub/a.bak", "world/gone"]


def test_server_keeps_what_the_skeleton_names_and_the_master_lacks(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "world").mkdir(parents=True)
    for name in ("own", "extra", "named", "new"):
        (there / "world" / name).mkdir(parents=True)
    skel = parsed("except ( world/own world/named ) ;", top=str(here))
    listing = trees.scan(str(here), ["world/own", "world/extra"], skel.leave)
    skel.guard(listing)
    assert [action.path for action in trees.mirror(listing, str(there))] == ["world/extra"]
    listing = trees.scan(str(here), ["world"], skel.leave)
    skel.guard(listing)
    assert [action.path for action in trees.mirror(listing, str(there))] == ["world/new"]
    assert sorted(os.listdir(there / "world")) == ["named", "own"]


def test_commands_and_addresses_are_told():
    skel = parsed(
        'special ( world/conf ) "a b" ; cmdspecial "c" ; notify ( ${WHO} root ) ;', "WHO = ( jane@x joe )\n"
    )
    assert [(special.text, special.once) for special in skel.specials] == [("a b", False), ("c", True)]
    assert skel.specials[0].files.line("world/conf") == 3
    assert skel.specials[0].files.line("world/other") is None
    assert skel.specials[1].files is None
    assert skel.notify == ["jane@x", "joe", "root"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "web.skel:1: expected an entry ${FILES} -> ${HOSTS}, found the end of the file"),
        ("\n\nX = a\n", "web.skel:3: expected an entry ${FILES} -> ${HOSTS}, found the end of the file"),
        ("/www -> ${HOSTS}", "web.skel:1: expected ${FILES} alone as the list of files"),
        ("${FILES} -> web1", "web.skel:1: expected ${HOSTS} alone as the list of hosts"),
        ("${FILES} - a -> ${HOSTS}", "web.skel:1: expected ${FILES} alone"),
        (ENTRY + ENTRY, "web.skel:2: expected one entry in a skeleton, found another"),
        ("${FILES} :: stamp", "web.skel:1: expected no entry with ::"),
        (ENTRY + "install /srv ;", "web.skel:2: expected install without a name"),
        (ENTRY + "install -oyounger ;", "web.skel:2: expected an option that a push can have, found younger"),
        (ENTRY + "install -ofoo ;", "web.skel:2: expected an option of rdist, found '-ofoo'"),
        (ENTRY + "\nexcept /srv/x ;", "web.skel:3: expected a path below /www, found '/srv/x'"),
        (ENTRY + "except ~/x ;", "web.skel:2: expected a path of the production tree"),
        (ENTRY + "except a/../b ;", "web.skel:2: expected a path of the production tree"),
        (ENTRY + "except /www ;", "web.skel:2: expected a path below /www"),
        (ENTRY + "except ${PRIVATE} ;", "web.skel:2: expected a variable that is set, found ${PRIVATE}"),
        (ENTRY + "except ${FILES} ;", "web.skel:2: expected a variable that is set, found ${FILES}"),
        (ENTRY + "except x\\*y ;", "web.skel:2: expected * alone or the class [*]"),
        (ENTRY + "except_pat \\*y ;", "web.skel:2: expected \\\\*, found \\*"),
        (ENTRY + "except_pat \\\\(x ;", "web.skel:2: expected ; at the end of a command, found '('"),
        (ENTRY + "except_pat \\\\\\(x ;", "web.skel:2: expected a \\) for every \\(, found '\\(x'"),
        (ENTRY + "except x[a ;", "web.skel:2: expected a ] for every [, "),
        (ENTRY + "except x{a ;", "web.skel:2: expected a } for every {"),
        ("A = b\nA = c\n" + ENTRY, "web.skel:2: expected a variable once, found A again"),
        (ENTRY + "except ( world/a", "web.skel:2: expected a name or ), found the end of the file"),
    ],
)
def test_skeleton_that_is_none_is_refused_with_file_and_line(text, told):
    with pytest.raises(ConfigError) as caught:
        Skeleton.parsed(text, "web.skel", "/www")
    assert str(caught.value).startswith(told)
    assert caught.value.exit_status == 78


def test_skeleton_file_is_read_or_refused(tmp_path):
    conf = {"site": {"production_dir": "/www"}}
    with pytest.raises(ConfigError, match="No such file"):
        Skeleton.read(str(tmp_path / "none"), conf)
    (tmp_path / "skel").write_bytes(b"# caf\xe9\n${FILES} -> ${HOSTS} except world/x ;")
    assert Skeleton.read(str(tmp_path / "skel"), conf).reason("world/x")
    assert skeleton.located(str(tmp_path / "skel")) == str(tmp_path / "skel")
    assert os.path.basename(os.path.dirname(skeleton.located("web.skel"))) == "etc"


def entries(text):
    return {entry.label: entry for entry in distfile.parse(text, "F")}


def test_distfile_sends_first_and_removes_then():
    skel = parsed(
        "install -oremove,compare,quiet ; except ( world/private ) ; except_pat \\\\.bak\\$ ;"
        'notify a ; cmdspecial "x" ;'
    )
    text = skel.distfile(["world/a b", "world/x[1].html"])
    assert text == (
        "# Made by infocluster from web.skel.\n"
        "send: ( /www/world/a\\ b /www/world/x[[]1].html ) -> ${HOSTS}\n"
        "\tinstall -ocompare ;\n"
        "\texcept /www/world/private ;\n"
        "\texcept_pat \\\\.bak\\$ ;\n"
        "remove: ( /www/world/a\\ b /www/world/x[[]1].html ) -> ${HOSTS}\n"
        "\tinstall -ocompare,remove ;\n"
        "\texcept /www/world/private ;\n"
        "\texcept_pat \\\\.bak\\$ ;\n"
    )


def test_distfile_removes_only_where_directories_are():
    made = parsed("").distribution(["world/a", "world/d"], {"world/d"})
    assert entries(made.text)["send"].sources.left == ("/www/world/a", "/www/world/d")
    assert entries(made.text)["remove"].sources.left == ("/www/world/d",)
    assert (made.sends, made.removes) == (True, True)
    made = parsed("").distribution(["world/a"], set())
    assert (made.sends, made.removes) == (True, False)


def test_sources_over_the_limit_of_a_list_are_split():
    made = parsed("").distribution([f"world/{number}" for number in range(5000)], set())
    assert [len(entry.sources.left) for entry in distfile.parse(made.text, "F")] == [2047, 2047, 906]


def test_other_destination_is_named_for_each_directory():
    paths = ["world/a", "world/b", "world/sub/c", "ftp"]
    made = parsed("").distribution(paths, set(), destination="/srv/www/")
    assert [(entry.sources.left, entry.commands[0].destination.left) for entry in distfile.parse(made.text, "F")] == [
        (("/www/world/a", "/www/world/b"), ("/srv/www/world",)),
        (("/www/world/sub/c",), ("/srv/www/world/sub/c",)),
        (("/www/ftp",), ("/srv/www/ftp",)),
    ]


def test_what_cannot_be_named_is_reached_through_its_directory():
    made = parsed("except_pat x ;").distribution(
        ["world/d/caf\u00e0", "world/a$[b"], {"world/d/caf\u00e0"}, ["world/gone"]
    )
    found = list(distfile.parse(made.text, "F"))
    assert [(entry.label, entry.sources.left) for entry in found] == [
        ("send", ("/www/world/d",)),
        ("send", ("/www/world",)),
        ("remove", ("/www/world/d",)),
        ("remove", ("/www/world",)),
    ]
    assert all(isinstance(entry, Distribute) and entry.commands[-1].names.left == ("x",) for entry in found)
    assert made.unwritable == []


def test_what_cannot_be_said_at_all_is_told():
    deep = "world/" + "x/" * 1800 + "x"
    made = parsed("").distribution([deep, "world/a"], {deep}, [deep + "y"])
    assert [path for path, _ in made.unwritable] == [deep, deep + "y"]
    assert "over 3498 bytes" in made.unwritable[0][1]
    assert [entry.sources.left for entry in distfile.parse(made.text, "F")] == [("/www/world/a",)]


def test_production_tree_that_cannot_be_named_holds_for_other_transports():
    skel = parsed("except world/x ;", top="/srv/caf\u00e0")
    assert skel.reason("world/x") and not skel.reason("world/y")
    assert [path for path, _ in skel.distribution(["world"]).unwritable] == ["world"]
    with pytest.raises(UnwritableError, match="0xA0"):
        skel.distfile(["world"])


@pytest.mark.parametrize("name", ["distfile.web.skel", "distfile.ftp.skel"])
def test_sample_is_a_skeleton(name):
    skel = Skeleton.read(str(ETC / name), {"site": {"production_dir": "/www"}})
    assert skel.reason("world/x.bak") and skel.reason("world/RCS") and not skel.reason("world/index.html")
    assert distfile.parse(skel.distfile(["world/sample"]), name)


def test_servers_without_a_skeleton_get_everything():
    skel = Skeleton.none({"site": {"production_dir": "/www"}})
    assert skel.left_out(["world"]) == [] and skel.specials == [] and skel.notify == []
    assert "install -onochkowner,nochkgroup,remove" in skel.distfile(["world"])
