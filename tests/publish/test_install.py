# SPDX-License-Identifier: Apache-2.0
"""install: production becomes what a model says, or what rsync makes of it, and nothing outside is touched."""

import contextlib
import fnmatch
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conftest import Site
from infocluster import config, files
from infocluster.cron import progress
from infocluster.errors import InfoclusterError, RefusedError
from infocluster.publish import install, origin, prepare, undo
from infocluster.trees import STAGED, outermost

# A tree is {name: what}: a dictionary is a directory, ("file", content, mode, second) a file, ("link", text) a link.
NAMES = st.sampled_from(["a", "b", "c", "ab", "é x", "[1]*", "-r", ".hidden", "n\nl", "\udcff"])
FILE = st.tuples(st.just("file"), st.binary(max_size=3), st.sampled_from([0o664, 0o775, 0o600]), st.integers(1, 2))
LINK = st.tuples(st.just("link"), st.sampled_from(["a", "http://host/x", "../../outside", "/etc"]))


def trees(leaf, names=NAMES, leaves=14):
    below = st.recursive(leaf, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=leaves)
    return st.dictionaries(names, below, min_size=1, max_size=5)


RULE = st.sampled_from(["a", "b/", "*b", "?", "[!a]*", "[[]1]*", "# a", ""])
RULES = st.tuples(st.just("rules"), st.lists(RULE, min_size=1, max_size=2))
SOURCE = st.recursive(
    st.one_of(FILE, LINK),
    lambda inner: st.tuples(st.dictionaries(NAMES, inner, max_size=4), st.one_of(st.none(), st.none(), RULES)).map(
        lambda pair: pair[0] | ({".wwwinstrc": pair[1]} if pair[1] else {})
    ),
    max_leaves=14,
)
SOURCES = st.dictionaries(NAMES, SOURCE, min_size=1, max_size=5)


def build(directory, tree):
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, (0o775, 0o755, 0o700)[len(tree) % 3])
    for name, what in tree.items():
        path = f"{directory}/{name}"
        if isinstance(what, dict):
            build(path, what)
        elif what[0] == "link":
            os.symlink(what[1], path)
        elif what[0] == "rules":
            with open(path, "w") as file:
                file.write("\n".join(what[1]) + "\n")
        else:
            _, content, mode, second = what
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, mode)
            os.utime(path, ns=(0, second * 10**9 + 5))
    os.utime(directory, ns=(0, (1 + len(tree) % 2) * 10**9 + 5))


def read(directory):
    """Return a directory as such a tree; every file's permissions are those that a repair leaves."""
    found = {}
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            found[name] = read(path)
        elif stat.S_ISLNK(status.st_mode):
            found[name] = ("link", os.readlink(path))
        else:
            with open(path, "rb") as file:
                content = file.read()
            found[name] = ("file", content, stat.S_IMODE(status.st_mode), status.st_mtime_ns // 10**9)
    return found


@pytest.fixture
def conf():
    # Hundreds of installs are fsynced: in memory where there is such a place.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    top = Path(tempfile.mkdtemp(prefix="infocluster-test-", dir=memory))
    site = Site(top / "site").build()
    shutil.rmtree(site.root / "var/wwwdev")
    (site.root / "var/wwwdev").mkdir()
    yield config.load(str(site.conf_file))
    shutil.rmtree(top)


def run(conf, paths, program="wwwdinst", tell=None, **options):
    told = []

    def both(one):
        told.append(one)
        if tell is not None:
            tell(one)

    part = prepare.Part(True, options.get("show", False), os.geteuid(), True)
    request = install.Request(program, paths, "jane", os.geteuid(), part, **options)
    return install.install(request, conf, both, lambda line: None, progress.bar), told


def at(tree, path):
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def every_path(tree, above=()):
    for name, what in tree.items():
        if name != ".wwwinstrc":
            yield (*above, name)
        if isinstance(what, dict):
            yield from every_path(what, (*above, name))


class Model:
    """What production should be, worked out from the documentation alone, on dictionaries."""

    def __init__(self, sources):
        self.sources = sources  # by program
        self.held = {program: {} for program in sources}
        self.failed = set()

    def install(self, program, production):
        self.program, self.failed = program, set()
        result = self.fill(self.sources[program], production, ())
        if self.failed:  # nothing is removed where not everything could be put in place
            result = self.fill(self.sources[program], production, (), removes=False)
        held = {path: set(names) for path, names in self.offered(self.sources[program], ())}
        before = self.held[program]
        for path, name in self.failed:  # what could not be put in place is held only if it was
            held[path] -= {name} - before.get(path, set())
        if self.failed:
            held = {path: held.get(path, set()) | before.get(path, set()) for path in held.keys() | before.keys()}
        else:
            left = {path for path in before if path not in held and self.is_left(path)}
            held |= {path: before[path] for path in left}
        self.held[program] = held
        return result

    def fill(self, source, there, path, removes=True):
        result = {}
        for name, what in source.items():
            old = there.get(name)
            if self.protects(self.program, path, name, isinstance(what, dict)):
                if old is not None:
                    result[name] = old
            elif isinstance(what, dict) and isinstance(old, tuple) and self.kept(path, name, False):
                self.failed.add((path, name))
                result[name] = old
            elif isinstance(what, dict):
                result[name] = self.fill(what, old if isinstance(old, dict) else {}, (*path, name), removes)
            elif isinstance(old, dict) and self.holds_kept(path, name, old):
                self.failed.add((path, name))
                result[name] = old
            else:
                result[name] = self.copied(what, old)
        for name, what in there.items():
            if name not in source and not (isinstance(what, dict) and name in result):
                rest = self.rest(path, name, what) if removes else what
                if rest is not None:
                    result[name] = rest
        return result

    def install_part(self, program, production, paths, delete):
        """Return what an install of some paths leaves, None where it is refused."""
        self.program, self.failed = program, set()
        if any(self.refuses(path, production, delete) for path in paths):
            return None
        for removes in (True, False):
            result = production
            for path in paths:
                result = self.part(self.sources[program], result, (), path, removes, delete)
            if not self.failed:
                break
        return result

    def refuses(self, path, production, delete):
        def through_link(tree):
            above = [at(tree, path[:depth]) for depth in range(1, len(path))]
            return any(isinstance(what, tuple) and what[0] == "link" for what in above)

        what = self.at(self.program, path)
        for depth in range(len(path)):
            is_directory = depth + 1 < len(path) or isinstance(what, dict)
            if self.protects(self.program, path[:depth], path[depth], is_directory):
                return True
        if through_link(self.sources[self.program]):
            return True
        return (what is None or delete) and (through_link(production) or at(production, path) is None)

    def part(self, source, there, here, path, removes, delete):
        name, *below = path
        old, what = there.get(name), source.get(name)
        result = {other: whatever for other, whatever in there.items() if other != name}
        if not below and delete:
            left = self.rest(here, name, old)
            return result if left is None else result | {name: left}
        if not below:
            offered = {} if what is None else {name: what}
            return result | self.fill(offered, {} if old is None else {name: old}, here, removes)
        if isinstance(old, tuple) and self.kept(here, name, False):
            self.failed.add((here, name))
            return there
        inner = old if isinstance(old, dict) else {}
        what = what if isinstance(what, dict) else {}
        return result | {name: self.part(what, inner, (*here, name), below, removes, delete)}

    def copied(self, what, old):
        if what[0] == "link":
            return what
        _, content, mode, second = what
        # Equal size and time count as equal content.
        if isinstance(old, tuple) and old[0] == "file" and (len(old[1]), old[3]) == (len(content), second):
            content = old[1]
        return ("file", content, mode | 0o464, second)

    def rest(self, path, name, what):
        """Return what a removal leaves of something."""
        is_directory = isinstance(what, dict)
        kept = self.kept(path, name, is_directory)
        if kept == "whole" or (kept and not is_directory):
            return what
        if not is_directory:
            return None
        left = {inner: self.rest((*path, name), inner, below) for inner, below in what.items()}
        left = {inner: below for inner, below in left.items() if below is not None}
        return left if left or kept else None

    def kept(self, path, name, is_directory):
        if any(self.protects(program, path, name, is_directory) for program in self.sources):
            return "whole"
        others = [program for program in self.sources if program != self.program]
        if any(name in self.held[program].get(path, ()) for program in others):
            return "itself"
        if name in self.held[self.program].get(path, ()):
            return None
        found = [self.at(program, (*path, name)) for program in others]
        return (
            "itself" if any(what is not None and isinstance(what, dict) == is_directory for what in found) else None
        )

    def holds_kept(self, path, name, what):
        if self.kept(path, name, isinstance(what, dict)):
            return True
        return isinstance(what, dict) and any(self.holds_kept((*path, name), inner, what[inner]) for inner in what)

    def protects(self, program, path, name, is_directory):
        if name == ".wwwinstrc":
            return True
        here = self.at(program, path)
        rules = here.get(".wwwinstrc", ("rules", []))[1] if isinstance(here, dict) else []
        for rule in rules:
            bare = rule.strip()
            if not bare or bare.startswith("#") or (bare.endswith("/") and not is_directory):
                continue
            if fnmatch.fnmatchcase(name, bare.rstrip("/")):
                return True
        return False

    def at(self, program, path):
        return at(self.sources[program], path)

    def offered(self, source, path):
        yield path, source.keys()
        for name, what in source.items():
            if isinstance(what, dict) and not self.protects(self.program, path, name, True):
                yield from self.offered(what, (*path, name))

    def is_left(self, path):
        return any(
            self.at(self.program, path[:depth]) is not None
            and self.protects(
                self.program,
                path[: depth - 1],
                path[depth - 1],
                isinstance(self.at(self.program, path[:depth]), dict),
            )
            for depth in range(1, len(path) + 1)
        )


def emptied(conf):
    for directory in (*conf["site"]["development_dirs"], conf["site"]["production_dir"]):
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
    shutil.rmtree(conf["site"]["state_dir"], ignore_errors=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    production=trees(st.one_of(FILE, LINK)),
    rounds=st.lists(st.tuples(st.sampled_from(install.PROGRAMS), SOURCES, SOURCES), min_size=1, max_size=3),
)
def test_production_becomes_what_the_model_says_and_a_second_run_does_nothing(conf, production, rounds):
    emptied(conf)
    where = conf["site"]["production_dir"]
    build(f"{where}/world", production)
    model = Model({program: {} for program in install.PROGRAMS})
    for program, *sources in rounds:
        model.sources = dict(zip(install.PROGRAMS, sources, strict=True))
        for directory, source in zip(conf["site"]["development_dirs"], sources, strict=True):
            shutil.rmtree(directory)
            os.mkdir(directory)
            build(f"{directory}/world", source)
        before = read(f"{where}/world")
        _, shown = run(conf, ["world"], program, show=True)
        assert read(f"{where}/world") == before
        expected = model.install(program, before)
        _, told = run(conf, ["world"], program)
        assert read(f"{where}/world") == expected
        assert shown == told
        again = [one for one in run(conf, ["world"], program)[1] if one.verb != "skip"]
        assert again == []
        assert read(f"{where}/world") == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(production=trees(st.one_of(FILE, LINK)), own=SOURCES, other=SOURCES, delete=st.booleans(), data=st.data())
def test_named_paths_become_what_the_model_says_and_nothing_else_changes(conf, production, own, other, delete, data):
    emptied(conf)
    where = conf["site"]["production_dir"]
    build(f"{where}/world", production)
    for directory, source in zip(conf["site"]["development_dirs"], (own, other), strict=True):
        build(f"{directory}/world", source)
    model = Model(dict(zip(install.PROGRAMS, (own, other), strict=True)))
    known = sorted({*every_path(own), *every_path(production)})
    # A line end has no place in a named path, see test_case.
    known = [path for path in known if not any("\n" in name for name in path)]
    assume(known)
    paths = outermost(
        "/".join(("world", *path)) for path in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
    )
    before = read(f"{where}/world")
    expected = model.install_part("wwwdinst", before, [path.split("/")[1:] for path in paths], delete)
    if expected is None:
        with pytest.raises(RefusedError):
            run(conf, paths, delete=delete)
        assert read(f"{where}/world") == before
        return
    _, shown = run(conf, paths, show=True, delete=delete)
    assert read(f"{where}/world") == before
    _, told = run(conf, paths, delete=delete)
    assert read(f"{where}/world") == expected
    assert shown == told
    if not delete and all(at(expected, path.split("/")[1:]) is not None for path in paths):
        assert [one for one in run(conf, paths)[1] if one.verb != "skip"] == []
        assert read(f"{where}/world") == expected


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=trees(st.one_of(FILE, LINK)), production=trees(st.one_of(FILE, LINK)))
def test_without_rules_the_result_is_that_of_rsync(conf, source, production):
    emptied(conf)
    development, where = conf["site"]["development_dirs"][0], conf["site"]["production_dir"]
    build(f"{development}/world", source)
    build(f"{where}/world", production)
    twin = f"{where}-twin"
    shutil.rmtree(twin, ignore_errors=True)
    os.mkdir(twin)
    build(f"{twin}/world", production)
    run(conf, ["world"])
    # After the run, since that repairs the permissions of the development tree.
    subprocess.run(["rsync", "-a", "--force", "--delete", f"{development}/", f"{twin}/"], check=True)

    def exactly(top):
        return {
            os.path.relpath(f"{here}/{name}", top): (
                os.readlink(path) if os.path.islink(path := f"{here}/{name}") else "",
                os.lstat(path).st_mode,
                # A link is its text.
                0 if os.path.islink(path) else os.lstat(path).st_mtime_ns,
                files.read(path) if os.path.isfile(path) and not os.path.islink(path) else b"",
            )
            for here, below, plain in os.walk(top)
            for name in (*below, *plain)
        }

    assert exactly(f"{where}/world") == exactly(f"{twin}/world")


def stopped_after(count):
    """Return what stops a run, as a signal would, when it tells of one change more than so many."""
    left = iter(range(count))

    def tell(one):
        if one.verb != "skip" and next(left, None) is None:
            raise KeyboardInterrupt

    return tell


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    production=trees(st.one_of(FILE, LINK)),
    source=trees(st.one_of(FILE, LINK)),
    install_stops=st.one_of(st.none(), st.integers(0, 6)),
    undo_stops=st.one_of(st.none(), st.integers(0, 4)),
)
def test_undo_makes_production_what_it_was(conf, production, source, install_stops, undo_stops):
    """Also after an install that was stopped, and by an undo that was stopped and asked for again."""
    emptied(conf)
    where = conf["site"]["production_dir"]
    build(f"{where}/world", production)
    build(f"{conf['site']['development_dirs'][0]}/world", source)

    def exactly():
        modes = {here: stat.S_IMODE(os.stat(here).st_mode) for here, _, _ in os.walk(where)}
        return read(where), modes

    before = exactly()
    is_stopped = False
    try:
        _, told = run(conf, ["world"], tell=None if install_stops is None else stopped_after(install_stops))
    except KeyboardInterrupt:
        is_stopped = True
    if not is_stopped and not [one for one in told if one.verb != "skip"]:
        return
    of = undo.last(conf["site"]["state_dir"], "wwwdinst", os.geteuid(), [])
    request = install.Request("wwwdinst", [], "jane", os.geteuid(), prepare.Part(False, False, 0, True))
    undone = []
    tell = undone.append if undo_stops is None else stopped_after(undo_stops)
    try:
        install.put_back(of, request, conf, tell, lambda line: None, progress.bar)
    except KeyboardInterrupt:
        of = undo.last(conf["site"]["state_dir"], "wwwdinst", os.geteuid(), [])
        install.put_back(of, request, conf, undone.append, lambda line: None, progress.bar)
    assert exactly() == before
    assert not [one for one in undone if one.verb == "skip"]
    with pytest.raises(RefusedError):
        undo.last(conf["site"]["state_dir"], "wwwdinst", os.geteuid(), [])


def place(conf, tree, path, content=None):
    where = (
        f"{conf['site']['production_dir'] if tree == 'production' else conf['site']['development_dirs'][0]}/{path}"
    )
    os.makedirs(os.path.dirname(where), exist_ok=True)
    if content is not None:
        with open(where, "w") as file:
            file.write(content)
    return where


@pytest.fixture
def outside(conf):
    directory = Path(conf["site"]["production_dir"]).parent.parent / "outside"
    directory.mkdir()
    (directory / "page").write_text("secret")
    (directory / "gone").write_text("secret")
    yield directory
    assert sorted(path.name for path in directory.iterdir()) == ["gone", "page"]
    assert all(path.read_text() == "secret" for path in directory.iterdir())


@pytest.mark.parametrize("tree", ["development", "production"])
@pytest.mark.parametrize("new", ["directory", "file"])
def test_link_swapped_in_during_the_run_leads_nowhere(conf, outside, tree, new):
    """After the first change is told, directories that are still to come become links out of the tree."""
    # More than are on their way to the disk at once.
    count, first = 3 * STAGED, 2 * STAGED
    for number in range(count):
        place(conf, "development", f"world/a/d{number:03}/page", f"new {number}")
        place(conf, "production", f"world/a/d{number:03}/page", "old")
        place(conf, "production", f"world/a/d{number:03}/gone", "gone")
    swapped = []

    def swap(one):
        if not swapped and one.path.endswith("page"):
            for number in range(first, count):
                where = place(conf, tree, f"world/a/d{number:03}")
                if new == "directory":
                    os.rename(where, f"{where}-was")
                    os.symlink(outside, where)
                else:
                    os.unlink(f"{where}/page")
                    os.symlink(outside / "page", f"{where}/page")
                swapped.append(where)

    _, told = run(conf, ["world/a"], tell=swap)
    assert len(swapped) == count - first
    for here, _, plain in os.walk(conf["site"]["production_dir"]):
        for name in plain:
            if not os.path.islink(f"{here}/{name}"):
                assert "secret" not in files.read(f"{here}/{name}").decode()
    if (tree, new) != ("production", "file"):
        assert sum(one.is_fault for one in told) >= count - first
    # Production's own link is replaced where it stands, by the next run at the latest.
    if tree == "production":
        run(conf, ["world/a"])
        assert files.read(place(conf, "production", f"world/a/d{first}/page")) == b"new %d" % first
        assert not os.path.islink(place(conf, "production", f"world/a/d{first}"))


def test_links_that_come_and_go_all_the_time_lead_nowhere(conf, outside):
    directory = place(conf, "development", "world/a/sub")
    place(conf, "development", "world/a/sub/page", "mine")
    place(conf, "development", "world/a/sub/.wwwinstrc", "gone\n")
    place(conf, "production", "world/a/sub/gone", "night")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            while True:
                os.rename(directory, f"{directory}-was")
                os.symlink(outside, directory)
                os.unlink(directory)
                os.rename(f"{directory}-was", directory)
        os._exit(0)
    try:
        for _ in range(30):
            with contextlib.suppress(InfoclusterError):
                run(conf, ["world/a/sub"] if _ % 2 else ["world/a"])
            for here, _, plain in os.walk(conf["site"]["production_dir"]):
                for name in plain:
                    assert os.path.islink(f"{here}/{name}") or b"secret" not in files.read(f"{here}/{name}")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_repair_reaches_no_file_that_has_another_name_elsewhere(conf, outside):
    place(conf, "development", "world/a/x", "x")
    os.chmod(outside / "page", 0o600)
    os.link(outside / "page", place(conf, "development", "world/a/hard"))
    os.symlink(outside / "gone", place(conf, "development", "world/a/soft"))
    os.chmod(outside / "gone", 0o600)
    run(conf, ["world/a"])
    assert stat.S_IMODE(os.stat(outside / "page").st_mode) == stat.S_IMODE(os.stat(outside / "gone").st_mode) == 0o600


def test_protected_file_that_a_job_writes_during_the_run_stays(conf):
    """Also in a directory that goes, and that only the other tree's rules speak of."""
    place(conf, "development", "world/a/.wwwinstrc", "data*\n")
    place(conf, "development", "world/a/data", "the developer's")
    place(conf, "development", "world/a/page", "page")
    place(conf, "production", "world/a/data", "old")
    place(conf, "production", "world/gone/page", "page")
    (Path(conf["site"]["development_dirs"][1]) / "world/gone").mkdir(parents=True)
    (Path(conf["site"]["development_dirs"][1]) / "world/gone/.wwwinstrc").write_text("data*\n")
    written = []

    def write(one):
        if not written:
            for path in ("world/a/data", "world/a/data2", "world/gone/data"):
                written.append(place(conf, "production", path, "tonight's"))

    _, told = run(conf, ["world"], tell=write)
    changes = [str(one) for one in told if not one.is_directory]
    assert changes == ["install world/a/page", "remove world/gone/page"]
    assert [files.read(path) for path in written] == [b"tonight's"] * 3


def test_two_files_of_one_directory_are_both_noted(conf):
    """RACE: their installs hold no lock in common, and both write the directory's row."""
    place(conf, "development", "world/a/x", "x")
    place(conf, "development", "world/a/y", "y")
    state_dir = conf["site"]["state_dir"]
    both = [origin.Origins(state_dir, "wwwdinst", [path]) for path in ("world/a/x", "world/a/y")]
    for origins, path in zip(both, ("world/a/x", "world/a/y"), strict=True):
        part = prepare.Part(False, False, 0, True)
        tree = install.forest("wwwdinst", conf)[0]
        origins.settle(origins.offered(prepare.ready(tree, [path], {}, part, conf)[0].listing))
    assert origin.Origins(state_dir, "wwwdinst", ["world"]).held["world/a"] == {"x", "y"}


def test_temporary_names_of_a_killed_run_are_cleared(conf):
    place(conf, "development", "world/a/x", "x")
    for name in (".~x.0123456789ab", ".~other.0123456789ab"):
        place(conf, "production", f"world/a/{name}", "half")
    os.makedirs(place(conf, "production", "world/a/.~x.ba9876543210/below"))
    run(conf, ["world/a/x"])
    # Beside a named path another install may be at work.
    assert sorted(os.listdir(place(conf, "production", "world/a"))) == [".~other.0123456789ab", "x"]
    _, told = run(conf, ["world/a"])
    assert os.listdir(place(conf, "production", "world/a")) == ["x"]
    assert [one for one in told if not one.is_directory] == []
