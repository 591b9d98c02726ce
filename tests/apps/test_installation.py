# SPDX-License-Identifier: Apache-2.0
"""A real installation: what is in it, what it runs with, what it loads, and what an edit does to it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infocluster import settings
from infocluster.apps import installation
from infocluster.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = installation.default_interpreter()


def install(prefix: Path | str, *options: str) -> str:
    command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(prefix), "--extras", ""]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run(
        # The umask of a careful root: the tree is for every user all the same.
        [*command, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One installation, at a place of its own; tests that change something take `tree`."""
    prefix = tmp_path_factory.mktemp("installed") / "infocluster"
    install(prefix)
    return prefix


@pytest.fixture
def tree(template: Path, tmp_path: Path) -> Path:
    """An installation made anew where the test may change it; the packages are the template's."""
    prefix = tmp_path / "infocluster"
    (prefix / "lib").mkdir(parents=True)
    shutil.copytree(template / "lib/site", prefix / "lib/site", symlinks=True)
    install(prefix)
    return prefix


def run(program: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", **variables}
    command = [*options, str(program)] if options else [str(program)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def visit(tree: Path, gather: Path, *options: str) -> subprocess.CompletedProcess[str]:
    gather.mkdir(exist_ok=True)
    return run(
        tree / "cgi-bin/survey.cgi",
        *options,
        SERVER_GATHER=str(gather),
        DOCUMENT_ROOT=str(tree),
        REQUEST_METHOD="GET",
        HTTP_USER_AGENT="a",
    )


def where(tree: Path, module: str) -> list[str]:
    """Return what an installed program sees of a module: its loader, __file__, __package__ and answer."""
    program = (
        f"import sys; sys.path.insert(0, {str(tree / 'lib/compiled')!r}); import survey_cgi; "
        f"sys.path[0] = {str(tree / 'lib')!r}; import {module} as module; "
        "print(type(module.__spec__.loader).__name__, module.__file__, module.__package__, "
        "getattr(module, 'ADDED', '-'), sep='\\n')"
    )
    done = subprocess.run([SYSTEM_PYTHON, "-IS", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_tree_has_the_shape_of_the_checkout(template: Path) -> None:
    assert set(os.listdir(template)) == {"cgi-bin", "batch", "lib", "etc", "doc"}
    for directory in ("cgi-bin", "batch"):
        assert set(os.listdir(template / directory)) == set(os.listdir(ROOT / directory))
        for name in os.listdir(ROOT / directory):
            if (ROOT / directory / name).is_symlink():
                assert os.readlink(template / directory / name) == os.readlink(ROOT / directory / name)
            else:
                assert os.stat(template / directory / name).st_mode & 0o7777 == 0o755
    assert (template / "doc/man/man1/check-site.1").exists()
    assert (template / "etc/infocluster.toml").read_text() == settings.sample()


def test_all_of_it_is_for_others_to_read_and_nothing_to_write_or_half_done(template: Path) -> None:
    for top, directories, names in os.walk(template):
        for name in [*directories, *names]:
            path = os.path.join(top, name)
            mode = 0o050 if path == f"{template}/etc/secrets" else 0o055 if name in directories else 0o044
            assert os.path.islink(path) or os.stat(path).st_mode & (mode | 0o022) == mode, path
            assert not name.startswith(".~"), path
    assert os.stat(template / "etc/secrets").st_mode & 0o7777 == 0o750


def test_doors_name_one_interpreter_and_one_tree(template: Path) -> None:
    lines = (template / "cgi-bin/survey.cgi").read_text().splitlines()
    assert lines[0] == f"#!{SYSTEM_PYTHON} -IS"
    assert "venv" not in lines[0]
    start = (
        f"sys.path.insert(0, '{template}/lib/compiled'); import survey_cgi as start; sys.path[0] = '{template}/lib'"
    )
    assert f"{start}; start.begin_program()" in lines
    assert f"sys.path.insert(0, '{template}/lib')" in (template / "batch/wwwpush").read_text().splitlines()
    assert "import os.path, sys" not in lines


def test_hit_answers_and_loads_our_modules_out_of_one_file(template: Path, tmp_path: Path) -> None:
    done = visit(template, tmp_path / "gather")
    assert done.stdout.startswith("Status: 200 OK")
    traced = visit(template, tmp_path / "gather", SYSTEM_PYTHON, "-IS", "-X", "importtime")
    loaded = [line.rpartition("|")[2].strip() for line in traced.stderr.splitlines() if "|" in line]
    behind = loaded[loaded.index("survey_cgi") + 1 :]
    assert not [name for name in behind if name.startswith("infocluster")]
    foreign = {name for name in behind if not name.startswith("infocluster")} - set(sys.builtin_module_names)
    assert foreign <= {"fcntl", "_json"}
    # Neither the table of settings nor TOML: the compiled copy was used.
    assert "infocluster.settings" not in loaded and "tomllib" not in loaded
    opened = _opened(template, tmp_path / "gather")
    assert [
        name for name in opened if name.startswith(("infocluster", "survey")) and name.endswith((".py", ".pyc"))
    ] == [f"survey_cgi.{sys.implementation.cache_tag}.pyc"]


def _opened(tree: Path, gather: Path) -> list[str]:
    """Return the names of the files of ours that a hit opens, as the interpreter's audit hook tells them."""
    hook = (
        "import sys; sys.addaudithook(lambda event, given: event == 'open' and sys.stderr.write(f'{given[0]}\\n')); "
        f"name = {str(tree / 'cgi-bin/survey.cgi')!r}; exec(compile(open(name).read(), name, 'exec'))"
    )
    environment = {"SERVER_GATHER": str(gather), "DOCUMENT_ROOT": str(tree), "HTTP_USER_AGENT": "a"}
    done = subprocess.run(
        [SYSTEM_PYTHON, "-IS", "-c", hook], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("Status: 200"), done.stderr
    return [os.path.basename(line) for line in done.stderr.splitlines() if line.startswith(str(tree / "lib"))]


def test_finder_serves_a_module_as_the_ordinary_import_would(template: Path) -> None:
    file = template / "lib/infocluster/files.py"
    assert where(template, "infocluster.files") == ["Served", str(file), "infocluster", "-"]
    package = template / "lib/infocluster/locks/__init__.py"
    assert where(template, "infocluster.locks") == ["Served", str(package), "infocluster.locks", "-"]
    assert where(template, "infocluster.report.tables")[0] == "SourceFileLoader"


def test_edited_module_takes_effect_at_once(tree: Path) -> None:
    file = tree / "lib/infocluster/files.py"
    file.write_text(file.read_text() + "\nADDED = 'yes'\n")
    assert where(tree, "infocluster.files") == ["SourceFileLoader", str(file), "infocluster", "yes"]
    assert where(tree, "infocluster.names")[0] == "Served"
    file.unlink()
    with pytest.raises(subprocess.CalledProcessError):
        where(tree, "infocluster.files")


def test_edit_that_keeps_the_size_takes_effect_too(tree: Path) -> None:
    file = tree / "lib/infocluster/errors.py"
    text = file.read_text()
    file.write_text(text.replace("EX_USAGE = 64", "EX_USAGE = 65"))
    assert len(file.read_text()) == len(text)
    assert where(tree, "infocluster.errors")[0] == "SourceFileLoader"


def test_code_of_another_python_is_left_alone(tree: Path) -> None:
    file = tree / "lib/compiled/survey_cgi.py"
    text = file.read_text()
    tag = repr(sys.implementation.cache_tag)
    assert text.count(f"\nSERVED = serve(TABLE, {tag})\n") == 1
    file.write_text(text.replace(f"serve(TABLE, {tag})", "serve(TABLE, 'cpython-299')"))
    assert where(tree, "infocluster.files")[0] == "SourceFileLoader"


def test_copy_with_whole_seconds_stays_compiled(template: Path, tmp_path: Path) -> None:
    """tar keeps whole seconds only; what is compiled must be valid behind it, at the same place."""
    prefix = tmp_path / "infocluster"
    staged = tmp_path / "staged"
    install(prefix, "--destdir", str(staged))
    assert not prefix.exists()
    for top, _, names in os.walk(staged):
        for name in names:
            if name.endswith((".py", ".json", ".toml")) or "cgi-bin" in top:
                assert str(staged).encode() not in Path(top, name).read_bytes(), name
    archive = tmp_path / "tree.tar"
    subprocess.run(["tar", "-C", str(staged), "-cf", str(archive), "."], check=True)
    subprocess.run(["tar", "-C", "/", "-xpf", str(archive), f".{prefix}"], check=True)
    assert where(prefix, "infocluster.files")[0] == "Served"
    assert visit(prefix, tmp_path / "gather").stdout.startswith("Status: 200")
    traced = visit(prefix, tmp_path / "gather", SYSTEM_PYTHON, "-IS", "-X", "importtime")
    assert "infocluster.settings" not in traced.stderr


def test_second_run_keeps_what_is_the_administrators(tree: Path) -> None:
    conf = tree / "etc/infocluster.toml"
    conf.write_text('[site]\nname = "ours"\n')
    door = tree / "cgi-bin/own.cgi"
    door.write_text("#!/bin/sh\n")
    listed = json.loads((tree / "lib/infocluster_installed.json").read_text())
    (tree / "batch/of-old").write_text("#!/bin/sh\n")
    listed["files"]["batch/of-old"] = [0o755, "0"]
    (tree / "lib/infocluster_installed.json").write_text(json.dumps(listed))
    said = install(tree)
    assert conf.read_text() == '[site]\nname = "ours"\n'
    assert (tree / "etc/infocluster.toml.sample").read_text() == settings.sample()
    assert "kept etc/infocluster.toml; the new sample is etc/infocluster.toml.sample" in said
    assert door.exists() and not (tree / "batch/of-old").exists()
    assert "packages" not in said
    assert where(tree, "infocluster.files")[0] == "Served"


def test_packages_are_those_of_the_tests_and_are_found(template: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(template / 'lib')!r}); import infocluster; "
        "import filelock, jinja2, python_multipart; print(jinja2.__file__, filelock.__version__)"
    )
    done = subprocess.run([SYSTEM_PYTHON, "-IS", "-c", program], capture_output=True, text=True, check=True)
    file, version = done.stdout.split()
    assert file == str(template / "lib/site/jinja2/__init__.py")
    assert version == installation.packages(str(ROOT), ())["filelock"]
    assert "pytest" not in os.listdir(template / "lib/site")


def test_checkout_finds_its_packages_with_any_python() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'lib')!r}); import infocluster, jinja2; print(jinja2.__file__)"
    )
    done = subprocess.run([SYSTEM_PYTHON, "-IS", "-c", program], capture_output=True, text=True, check=True)
    assert "/build/venv/" in done.stdout


def test_interpreter_is_never_a_script_or_of_an_environment(tmp_path: Path) -> None:
    plain = installation.interpreter(SYSTEM_PYTHON)
    assert plain.path == SYSTEM_PYTHON and plain.tag == sys.implementation.cache_tag
    assert "venv" not in installation.interpreter(sys.executable).path
    script = tmp_path / "python3"
    script.write_text(f'#!/bin/sh\nexec {SYSTEM_PYTHON} "$@"\n')
    script.chmod(0o755)
    assert os.path.realpath(installation.interpreter(str(script)).path) == os.path.realpath(SYSTEM_PYTHON)
    with pytest.raises(ConfigError, match="no such program"):
        installation.interpreter(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="it is not Python"):
        installation.interpreter("/bin/true")


def test_what_cannot_be_installed_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    python = installation.interpreter(SYSTEM_PYTHON)
    source = tmp_path / "top/checkout"
    shutil.copytree(ROOT / "batch", source / "batch", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", source)
    (tmp_path / "link").symlink_to(source)
    for place, extras, why in (
        (tmp_path / "a b", (), "takes no blanks"),
        (tmp_path / "new", ("nonsense",), "cannot install the extra 'nonsense'"),
        (source, (), "the checkout is there"),
        (source.parent, (), "the checkout is there"),
        (tmp_path / "link", (), "the checkout is there"),
        (Path("/"), (), "the checkout is there"),
    ):
        with pytest.raises(ConfigError, match=why):
            installation.install(str(source), str(place), "", python, extras, print)
    assert sorted(os.listdir(tmp_path)) == ["link", "top"] and os.listdir(source.parent) == ["checkout"]
    assert (source / "batch/locks").read_bytes() == (ROOT / "batch/locks").read_bytes()


def test_door_that_is_none_is_refused(tmp_path: Path) -> None:
    for directory in ("cgi-bin", "batch", "lib/infocluster", "doc", "etc"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "batch/tool").write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match="cannot install batch/tool: it does not begin as a door does"):
        list(installation.plan(str(tmp_path), "/opt/x", installation.interpreter(SYSTEM_PYTHON)))
