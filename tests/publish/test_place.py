# SPDX-License-Identifier: Apache-2.0
"""place: a job's files appear in production whole and together, whatever is killed when."""

import os
import posix
import signal
import subprocess
import sys
import threading

import pytest

from infocluster import config, files, names
from infocluster.errors import BadInputError, RefusedError, UnavailableError, UsageError
from infocluster.locks import pathlocks
from infocluster.publish import place

OLD = {"index.html": b"old page", "data.json": b"old data", "same.txt": b"same"}
NEW = {"data.json": b"new data!", "index.html": b"new page", "same.txt": b"same", "more.html": b"more"}
STEPS = ("open", "write", "fchmod", "fsync", "rename", "unlink", "mkdir")


@pytest.fixture
def conf(site):
    site.protect("world/survey", "*\n")
    return config.load(str(site.conf_file))


def publish(conf, contents, directory="world/survey", remove=()):
    said = []
    return place.publish(directory, contents, conf, said.append, remove), said


def published(conf, directory="world/survey"):
    where = f"{conf['site']['production_dir']}/{directory}"
    return {name: files.read(f"{where}/{name}") for name in os.listdir(where)} if os.path.isdir(where) else {}


def finish(conf, paths=("world/survey",)):
    said = []
    place.finish(paths, conf, said.append)
    return said


def journals(conf):
    where = conf["site"]["state_dir"] + "/publish"
    return os.listdir(where) if os.path.isdir(where) else []


def killed(work, step):
    """Run some work in a child that is killed just before its system call number `step`; tell whether it was."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(call):
            def before(*arguments, **named):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return before

        for module in (os, posix):
            for name in STEPS:
                setattr(module, name, counted(getattr(module, name)))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the work itself failed"
    return status != 0


def leave_half_done(conf):
    """Publish, and be killed between the first and the second of the new names."""

    def work():
        rename, named = os.rename, 0

        def counted(*arguments, **options):
            nonlocal named
            named += "src_dir_fd" in options
            if named == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(*arguments, **options)

        os.rename = counted
        publish(conf, NEW)

    publish(conf, OLD, remove=["more.html"])
    assert killed(work, 10_000)
    assert published(conf)["data.json"] == NEW["data.json"]
    assert published(conf)["index.html"] == OLD["index.html"]
    assert [name.rpartition(".")[2] for name in journals(conf)] == ["whole"]


def test_files_are_written_and_those_with_the_same_content_are_left(conf):
    publish(conf, OLD)
    where = conf["site"]["production_dir"] + "/world/survey"
    before = os.stat(f"{where}/same.txt")
    done, said = publish(conf, NEW, remove=["index.htm"])
    assert (done.written, done.unchanged, done.removed) == (
        ["data.json", "index.html", "more.html"],
        ["same.txt"],
        [],
    )
    assert said == []
    after = os.stat(f"{where}/same.txt")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert published(conf) == NEW
    assert {os.stat(f"{where}/{name}").st_mode & 0o7777 for name in NEW} == {0o644}
    assert journals(conf) == []


def test_names_to_remove_go(conf):
    publish(conf, OLD)
    done, _ = publish(conf, {"index.html": b"new page"}, remove=["data.json", "never.there"])
    assert done.removed == ["data.json"]
    assert published(conf).keys() == {"index.html", "same.txt"}


def test_missing_directories_are_made(conf):
    os.umask(0o077)
    try:
        publish(conf, {"m.json": b"{}"}, "gather/deep/marks")
    finally:
        os.umask(0o022)
    where = conf["site"]["production_dir"] + "/gather"
    assert os.stat(where).st_mode & 0o777 == 0o755
    assert os.stat(f"{where}/deep/marks/m.json").st_mode & 0o777 == 0o644


def test_same_content_with_other_permissions_is_written(conf):
    publish(conf, OLD)
    path = conf["site"]["production_dir"] + "/world/survey/index.html"
    os.chmod(path, 0o600)
    assert publish(conf, OLD)[0].written == ["index.html"]
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_killed_at_any_step_the_files_are_old_or_new_together(conf):
    for step in range(1000):
        publish(conf, OLD, remove=["more.html"])
        was_killed = killed(lambda: publish(conf, NEW, remove=["gone.txt"]), step)
        seen = {name: content for name, content in published(conf).items() if not files.is_temporary(name)}
        assert all(content in (OLD.get(name), NEW.get(name)) for name, content in seen.items()), step
        finish(conf)
        assert published(conf) in (OLD, NEW), step
        assert journals(conf) == []
        if not was_killed:
            break
    else:
        pytest.fail("it never came to its end")
    assert step > 20


def test_killed_while_it_is_completed_the_next_run_completes_it(conf):
    outcomes = set()
    # A publish whose journal is whole is killed once more, at every step of its completion.
    for step in range(200):
        leave_half_done(conf)
        was_killed = killed(lambda: finish(conf), step)
        publish(conf, {"other.txt": str(step).encode()})
        publish(conf, {}, remove=["other.txt"])
        assert published(conf) == NEW
        assert journals(conf) == []
        outcomes.add(was_killed)
        if not was_killed:
            break
    assert outcomes == {True, False}


def test_a_reader_sees_old_or_new_whole_files(conf):
    big = {"a": b"1" * 300_000, "b": b"1" * 300_000}
    publish(conf, big)
    path = conf["site"]["production_dir"] + "/world/survey/a"
    seen, over = set(), threading.Event()

    def look():
        while not over.is_set():
            content = files.read(path)
            seen.add((len(content), bytes(set(content))))

    reader = threading.Thread(target=look)
    reader.start()
    for turn in b"2345678":
        publish(conf, {name: bytes([turn]) * 300_000 for name in big})
    over.set()
    reader.join()
    assert seen <= {(300_000, bytes([turn])) for turn in b"12345678"}


def test_journal_of_a_directory_that_is_not_held_is_not_touched(conf):
    leave_half_done(conf)
    before = published(conf)
    assert place.unfinished(conf) == ["world/survey"]
    assert finish(conf, ["world/surveys", "uw"]) == []
    assert published(conf) == before
    assert finish(conf, ["world/survey/index.html"]) == ["completing a publish of world/survey that was not finished"]
    assert published(conf) == NEW
    assert place.unfinished(conf) == []


def test_journal_whose_directory_was_removed_is_dropped(conf):
    leave_half_done(conf)
    where = conf["site"]["production_dir"] + "/world/survey"
    for name in os.listdir(where):
        os.unlink(f"{where}/{name}")
    os.rmdir(where)
    finish(conf)
    assert journals(conf) == []
    assert not os.path.exists(where)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": "other"}', b"[]"])
def test_journal_that_is_none_stops_everything(conf, content):
    os.makedirs(conf["site"]["state_dir"] + "/publish")
    files.replace(conf["site"]["state_dir"] + "/publish/0000.whole", content)
    with pytest.raises(BadInputError, match=r"0000\.whole"):
        publish(conf, OLD)
    assert published(conf) == {}


def test_journal_cannot_lead_outside(conf, tmp_path):
    os.makedirs(conf["site"]["state_dir"] + "/publish")
    for shape in (
        '{"format": "infocluster publish 1", "directory": "../x", "names": [], "remove": []}',
        '{"format": "infocluster publish 1", "directory": "world", "names": [["a/b", ".~a"]], "remove": []}',
        '{"format": "infocluster publish 1", "directory": "world", "names": [], "remove": ["../x"]}',
        '{"format": "infocluster publish 1", "directory": "world", "names": [["a", "../b"]], "remove": []}',
    ):
        files.replace(conf["site"]["state_dir"] + "/publish/0000.whole", shape.encode())
        with pytest.raises(BadInputError):
            finish(conf, [""])


def test_unprotected_name_is_refused_with_the_line_to_add(site, conf):
    site.protect("world/survey", "index.html\n")
    with pytest.raises(RefusedError) as caught:
        publish(conf, {"index.html": b"", "[1].html": b""})
    file = f"{site.root}/var/wwwdev/world/survey/.wwwinstrc"
    assert str(caught.value).endswith(f"to {file} add the line '[[]1].html'")
    assert caught.value.exit_status == 77
    assert published(conf) == {}
    # What it says is enough.
    site.protect("world/survey", "index.html\n[[]1].html\n")
    publish(conf, {"index.html": b"", "[1].html": b""})
    # Of many that end alike there will be more tomorrow.
    many = {f"day-{number}.{ending}": b"" for number in range(4) for ending in ("json", "[x]")}
    with pytest.raises(RefusedError, match=r"add the lines '\*\.json', '\*\.\[\[\]x\]', 'README'$"):
        publish(conf, {**many, "README": b""})
    site.protect("world/survey", "*.json\n*.[[]x]\nREADME\n")
    publish(conf, {**many, "README": b""})


def test_every_development_tree_that_holds_the_directory_has_to_protect(site, conf):
    (site.root / "var/wwwudev/world/survey").mkdir(parents=True)
    with pytest.raises(RefusedError, match=r"wwwudev/world/survey/\.wwwinstrc"):
        publish(conf, OLD)
    (site.root / "var/wwwudev/world/.wwwinstrc").write_text("survey/\n")
    publish(conf, OLD)
    with pytest.raises(RefusedError):
        publish(conf, {}, remove=["index.html"], directory="world")


def test_directory_that_no_development_tree_holds_needs_no_protection(conf):
    publish(conf, OLD, "gather/marks")
    assert published(conf, "gather/marks") == OLD


def test_bad_wwwinstrc_stops_before_anything_is_changed(site, conf):
    publish(conf, OLD)
    site.protect("world/survey", "*\na/b\n")
    with pytest.raises(BadInputError, match=r"\.wwwinstrc:2: 'a/b'"):
        publish(conf, NEW)
    assert published(conf) == OLD


def test_nothing_outside_production_is_written(site, conf, tmp_path):
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (site.production / "world/link").symlink_to(outside)
    for directory in ("world/link", "world/link/sub", "world/link/new"):
        with pytest.raises(RefusedError, match="world/link is a symbolic link"):
            publish(conf, OLD, directory)
    assert os.listdir(outside) == ["sub"]
    # A link in the place of a file is replaced, what it names is not written.
    (site.production / "world/survey").mkdir()
    (outside / "file").write_text("kept")
    (site.production / "world/survey/index.html").symlink_to(outside / "file")
    publish(conf, OLD)
    assert (outside / "file").read_text() == "kept"
    assert published(conf) == OLD


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\nb", "-a", ".~a.12", ".wwwinstrc", "x" * 256])
def test_name_that_is_none_is_refused(conf, name):
    with pytest.raises(UsageError):
        publish(conf, {"good": b"", name: b""})
    with pytest.raises(UsageError):
        publish(conf, {}, remove=[name])
    assert published(conf) == {}


def test_name_of_a_directory_is_refused(site, conf):
    (site.production / "world/survey/index.html").mkdir(parents=True)
    with pytest.raises(RefusedError, match=r"world/survey/index\.html: it is a directory"):
        publish(conf, OLD)


def test_publish_waits_for_the_path_lock_and_says_for_whom(conf):
    conf["publish"]["lock_timeout_s"] = 0.2
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            f"sys.path.insert(0, {os.path.dirname(os.path.dirname(names.__file__))!r})\n"
            "from infocluster.locks import pathlocks\n"
            f"with pathlocks.hold(['world'], directory={conf['site']['state_dir'] + '/pathlocks'!r}):\n"
            "    print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        holder.stdout.readline()
        said = []
        with pytest.raises(UnavailableError):
            place.publish("world/survey", OLD, conf, said.append)
        assert f"pid {holder.pid}" in said[0]
        assert published(conf) == {}
        holder.stdin.close()
    publish(conf, OLD)
    assert pathlocks.holders(conf["site"]["state_dir"] + "/pathlocks") == []


@pytest.mark.root
def test_full_disk_leaves_everything_as_it_was(site, conf):
    (site.production / "world/survey").mkdir()
    # A file system of its own, of 64 kB, in a mount namespace of its own.
    code = (
        "import sys\n"
        f"sys.path.insert(0, {os.path.dirname(os.path.dirname(names.__file__))!r})\n"
        "from infocluster import config\nfrom infocluster.publish import place\nimport os\n"
        f"conf = config.load({str(site.conf_file)!r})\n"
        "place.publish('world/survey', {'a': b'old'}, conf)\n"
        "try:\n"
        "    place.publish('world/survey', {'a': b'new', 'b': b'x' * 100_000}, conf)\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "where = conf['site']['production_dir'] + '/world/survey'\n"
        "print(os.listdir(where), open(where + '/a').read(), os.listdir(conf['site']['state_dir'] + '/publish'))\n"
    )
    mount = f"mount -t tmpfs -o size=64k none '{site.production}/world/survey' && exec \"$@\""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "cannot publish world/survey/b: No space left on device",
        "['a'] old []",
    ], done.stderr
