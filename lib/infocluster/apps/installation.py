# SPDX-License-Identifier: Apache-2.0
"""An installed tree: made from a checkout by ``make install``, and known well enough to be checked by check-site.

PREFIX has the shape of the checkout, so that what is said of one holds for the other:

    cgi-bin/ batch/   the doors; line 1 names one interpreter, and starts it without site and environment
    lib/infocluster/  the house, compiled
    lib/compiled/survey_cgi.py     what a hit of survey.cgi loads at its start, in one file (see `infocluster.start`)
    lib/infocluster_installed.json what was installed, for the next run and for check-site
    lib/site/         other people's packages, as they are in the virtual environment that ran the tests
    etc/              samples; a file that is there already stays, and the new sample is left beside it as NAME.sample
    doc/              pages, and man pages in doc/man

Steps of one run:
  1. find the interpreter that the doors will name, and see that it is the kind the packages are for
  2. copy doors, house, samples and pages, each file replaced whole, mtimes in whole seconds: tar and cp -a keep those
  3. copy the packages, unless the same ones are there
  4. compile: modules, templates, settings, what a hit loads
  5. remove what an earlier run installed and this one did not; write the list

Shape: ``lib/infocluster_installed.json`` is
    ``{"version": "0.1.0", "prefix": "/opt/infocluster", "python": "/usr/bin/python3", "tag": "cpython-311",
    "files": {"batch/wwwpush": [493, "9f86d081..."], "batch/ftppush": [511, "-> wwwpush"]}}``:
    a file's mode and the SHA-256 of its content, or a link's text. Files of etc/ are not in it: they are the
    administrator's.

Source: execve(2), "Interpreter scripts"; compileall, Python library reference; Core metadata specifications.
"""

import argparse
import ast
import compileall
import hashlib
import json
import marshal
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import infocluster
from infocluster import config, files, pages, processes, settings
from infocluster.apps import forms_compiled, manual
from infocluster.errors import ConfigError, InfoclusterError, UsageError, reason

BOOTSTRAP = 'import os.path, sys\nsys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))\n'
BATCH_BOOTSTRAP = "import sys\nsys.path.insert(0, {lib!r})\n"
HIT_BOOTSTRAP = (
    "import sys\nsys.path.insert(0, {compiled!r}); import {module} as start; "
    "sys.path[0] = {lib!r}; start.begin_program()\n"
)
SHEBANG = "#!/usr/bin/env python3\n"
DOORS = ("cgi-bin", "batch")
MANIFEST = "lib/infocluster_installed.json"
COMPILED = "lib/compiled"
# Where the settings are not compiled a hit is slow anyway.
NO_PART_OF_A_HIT = "infocluster.settings"
SITE = "lib/site"
# Directories of a checkout that are made anew in an installation.
UNWANTED = frozenset({"__pycache__", "compiled"})
UMASK = 0o022
"""Of whoever makes the tree: what is compiled has no other mode, and is for every user's programs to read."""
PACKAGES_STAMP = ".infocluster-packages"
# What the samples of etc/ call the tree they are in.
SAMPLE_PREFIX = b"/opt/infocluster"
SYSTEM_PYTHON = "/usr/bin/python3"
SHEBANG_LIMIT_BYTES = 127
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Item:
    """One file or link of the tree.

    Attributes:
        path: relative to the tree.
        mode: permission bits; 0o777 for a link.
        content: a file's bytes, or a link's text in ASCII.
        is_link: whether it is a symbolic link.
        mtime_s: whole seconds, Unix time.
    """

    path: str
    mode: int
    content: bytes
    is_link: bool
    mtime_s: int

    def mark(self) -> list[Any]:
        """Return what the list of installed files says of it."""
        return [self.mode, _mark(self.content, self.is_link)]


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that doors name on line 1, and the tag of the code it can load."""

    path: str
    tag: str


def main(arguments: list[str] | None = None) -> int:
    """Install what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="make install", description="Make an installed tree from a checkout.")
    parser.add_argument("--prefix", default=SAMPLE_PREFIX.decode(), help="where the tree will be used")
    parser.add_argument("--destdir", default="", help="a directory to build it in, before PREFIX")
    parser.add_argument("--python", default="", help="the interpreter the programs will name")
    parser.add_argument("--extras", default="batch", help="extras of pyproject.toml, separated by commas")
    asked = parser.parse_args(arguments)
    extras = [extra for extra in asked.extras.split(",") if extra]
    os.umask(UMASK)
    try:
        python = interpreter(asked.python or default_interpreter())
        install(config.ROOT, os.path.abspath(asked.prefix), asked.destdir, python, extras, print)
    except InfoclusterError as error:
        print(f"make install: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"make install: cannot write {error.filename}: {reason(error)}", file=sys.stderr)
        return ConfigError.exit_status
    return 0


def install(
    source: str,
    prefix: str,
    destdir: str,
    python: Interpreter,
    extras: Iterable[str],
    say: Callable[[str], None],
) -> None:
    """Make or renew an installed tree.

    Args:
        source: the checkout.
        prefix: where the tree will be used; absolute, without blanks.
        destdir: "" or the directory it is staged in: then it is built at DESTDIR/PREFIX and names PREFIX inside.
        python: what the doors name; of the same version as the one that runs this.
        extras: which extras of pyproject.toml the packages are for, beside the ones that a web server needs.
        say: told each step, a line each.

    Raises:
        ConfigError: the interpreter or the place cannot be used, or a package is missing here, and nothing was
            changed; or, last, settings that are there already say something impossible.
        OSError: a file cannot be written; run it again when it can.
    """
    if any(character.isspace() for character in prefix):
        raise ConfigError(f"cannot install in {prefix!r}: line 1 of a program takes no blanks")
    if python.tag != sys.implementation.cache_tag:
        raise ConfigError(
            f"cannot install for {python.path}: it is {python.tag}, and the packages here are for "
            f"{sys.implementation.cache_tag}; make clean, then make install PYTHON={python.path}"
        )
    root = os.path.abspath(destdir) + prefix if destdir else prefix
    if f"{os.path.realpath(source)}/".startswith(f"{os.path.realpath(root).rstrip('/')}/"):
        raise ConfigError(f"cannot install in {root}: the checkout is there, and its programs would be changed")
    wanted = packages(source, extras)
    before = manifest(root)
    items = list(plan(source, prefix, python))
    for item in items:
        put(root, item)
    for path, mode in (("etc/secrets", 0o750),):
        make_directory(f"{root}/{path}", mode)
    say(f"{len(items)} files in {root}")
    for line in put_samples(source, root, prefix):
        say(line)
    if put_packages(root, wanted):
        say(f"{len(wanted)} packages in {root}/{SITE}")
    compile_modules(root, prefix)
    count = write_compiled(root, prefix)
    say(f"{count} programs in {root}/{COMPILED}")
    installed = {item.path: item.mark() for item in items}
    for path in sorted(set(before.get("files", {})) - set(installed)):
        remove_installed(root, path)
        say(f"removed {path}: no longer part of infocluster")
    listed = {
        "version": infocluster.__version__,
        "prefix": prefix,
        "python": python.path,
        "tag": python.tag,
        "files": installed,
    }
    files.replace(f"{root}/{MANIFEST}", json.dumps(listed, indent=1, sort_keys=True).encode() + b"\n", durable=False)
    # Last, since it may be an administrator's file that says something impossible: the rest is in place by then.
    config.compile_settings(f"{root}/etc/infocluster.toml", prefix)
    # Not as compiled, which names the place of use: where the tree is built now.
    forms_compiled.compile_forms(settings.read(f"{root}/etc/infocluster.toml"))
    os.sync()


def default_interpreter() -> str:
    """Return the program that this interpreter's environment was made from, by its lasting name where it has one."""
    base = str(getattr(sys, "_base_executable", sys.executable))
    return SYSTEM_PYTHON if os.path.realpath(SYSTEM_PYTHON) == os.path.realpath(base) else base


def interpreter(asked: str) -> Interpreter:
    """Return the interpreter that doors shall name: a real program, not of a virtual environment, not a script.

    Args:
        asked: a path, or a name to be found in PATH.

    Raises:
        ConfigError: there is none, it is no Python 3.11 or later, or its path is too long for line 1.
    """
    path = shutil.which(asked)
    if path is None:
        raise ConfigError(f"cannot use {asked} as interpreter: no such program")
    path = os.path.abspath(path)
    question = "import sys; print(sys.implementation.cache_tag, sys.version_info >= (3, 11), sys._base_executable)"
    outcome = processes.run([path, "-IS", "-c", question], PROBE_TIMEOUT_S)
    words = outcome.output.decode("utf-8", "replace").split()
    if outcome.status != 0 or len(words) != 3 or words[1] != "True":
        raise ConfigError(f"cannot use {path} as interpreter: it is not Python 3.11 or later")
    tag, _, base = words
    with open(path, "rb") as program:
        is_script = program.read(2) == b"#!"
    # A version switcher's script costs each hit ten interpreters; an environment may go away with the checkout.
    if is_script or os.path.exists(os.path.join(os.path.dirname(os.path.dirname(path)), "pyvenv.cfg")):
        path = base
    if len(path) + len("#! -IS") > SHEBANG_LIMIT_BYTES or " " in path:
        raise ConfigError(f"cannot use {path} as interpreter: line 1 of a program takes no blanks and 127 bytes")
    return Interpreter(path, tag)


def plan(source: str, prefix: str, python: Interpreter) -> Iterator[Item]:
    """Yield what an installed tree holds, etc/ and packages apart.

    Args:
        source: the checkout.
        prefix: where the tree will be used.
        python: what the doors name.

    Raises:
        ConfigError: a door does not have the shape of one.
    """
    for directory in DOORS:
        for name in sorted(os.listdir(f"{source}/{directory}")):
            path = f"{source}/{directory}/{name}"
            if name.startswith(".") or os.path.isdir(path):
                continue
            item = _item(source, f"{directory}/{name}", 0o755)
            yield item if item.is_link else _door(item, prefix, python)
    for relative in sorted(_below(source, "lib/infocluster")):
        yield _item(source, relative, 0o644)
    for relative in sorted(_below(source, "doc")):
        yield _item(source, relative, 0o644)
    for name, content, mtime_s in manual.pages(source):
        yield Item(f"doc/man/{name}", 0o644, content, False, mtime_s)


def _item(source: str, relative: str, mode: int) -> Item:
    path = f"{source}/{relative}"
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return Item(relative, 0o777, os.fsencode(os.readlink(path)), True, int(status.st_mtime))
    return Item(relative, mode, files.read(path), False, int(status.st_mtime))


def _door(item: Item, prefix: str, python: Interpreter) -> Item:
    text = item.content.decode("utf-8")
    if not text.startswith(SHEBANG) or text.count(BOOTSTRAP) != 1:
        raise ConfigError(f"cannot install {item.path}: it does not begin as a door does (see doc/design.md)")
    text = text.replace(SHEBANG, f"#!{python.path} -IS\n", 1)
    directory, name = item.path.split("/")
    bootstrap = HIT_BOOTSTRAP if directory == "cgi-bin" else BATCH_BOOTSTRAP
    places = {"lib": f"{prefix}/lib", "compiled": f"{prefix}/{COMPILED}", "module": _start_module(name)}
    text = text.replace(BOOTSTRAP, bootstrap.format(**places))
    return Item(item.path, item.mode, text.encode(), False, item.mtime_s)


def _below(source: str, directory: str) -> Iterator[str]:
    for top, directories, names in os.walk(f"{source}/{directory}"):
        directories[:] = [name for name in directories if name not in UNWANTED and not name.startswith(".")]
        for name in names:
            if not name.endswith(".pyc") and not name.startswith("."):
                yield os.path.relpath(os.path.join(top, name), source)


def put(root: str, item: Item) -> None:
    """Put one item in place whole.

    Raises:
        OSError: it is as it was.
    """
    path = f"{root}/{item.path}"
    make_directory(os.path.dirname(path))
    if item.is_link:
        temporary = f"{os.path.dirname(path)}/{files.temporary_name(os.path.basename(path))}"
        os.symlink(os.fsdecode(item.content), temporary)
        os.rename(temporary, path)
        return
    _replace(path, item.content, item.mode, item.mtime_s)


def _replace(path: str, content: bytes, mode: int, mtime_s: int) -> None:
    # The final mtime before the final name: a module is compared with its compiled copy by it.
    temporary = f"{os.path.dirname(path)}/{files.temporary_name(os.path.basename(path))}"
    files.replace(temporary, content, mode, durable=False)
    os.utime(temporary, (mtime_s, mtime_s))
    os.rename(temporary, path)


def make_directory(path: str, mode: int = 0o755) -> None:
    """Make a directory with exactly this mode, and what is missing above it; one that exists stays as it is.

    Raises:
        OSError: as mkdir(2).
    """
    if not os.path.isdir(path):
        make_directory(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, mode)


def put_samples(source: str, root: str, prefix: str) -> Iterator[str]:
    """Put the samples of etc/ where there are none yet, beside those that there are, and yield what to tell.

    Raises:
        OSError: a sample cannot be written.
    """
    for relative in sorted(_below(source, "etc")):
        if relative.startswith("etc/secrets/") or relative.endswith(".compiled"):
            continue
        item = _item(source, relative, 0o644)
        content = item.content.replace(SAMPLE_PREFIX, os.fsencode(prefix))
        path = f"{root}/{relative}"
        make_directory(os.path.dirname(path))
        if not os.path.lexists(path):
            _replace(path, content, item.mode, item.mtime_s)
        elif files.read(path) != content:
            _replace(path + ".sample", content, item.mode, item.mtime_s)
            yield f"kept {relative}; the new sample is {relative}.sample"


def packages(source: str, extras: Iterable[str]) -> dict[str, str]:
    """Return the packages that an installation needs, name to version, as they are in this interpreter's environment.

    Args:
        source: the checkout, whose pyproject.toml lists what is needed.
        extras: which of its extras are wanted.

    Raises:
        ConfigError: one is missing here, is too old, or there is no such extra.
    """
    import tomllib
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    with open(f"{source}/pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        if extra not in project["optional-dependencies"]:
            raise ConfigError(f"cannot install the extra '{extra}': pyproject.toml has none of that name")
        texts += project["optional-dependencies"][extra]
    found: dict[str, str] = {}
    asked: set[tuple[str, frozenset[str]]] = set()
    wanted = [(Requirement(text), frozenset[str]()) for text in texts]
    while wanted:
        requirement, parent_extras = wanted.pop()
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in parent_extras or {""}
        ):
            continue
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in asked:
            continue
        asked.add((name, frozenset(requirement.extras)))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise ConfigError(f"cannot install {requirement}: it is not in {sys.prefix}") from None
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise ConfigError(f"cannot install {requirement}: {sys.prefix} has {distribution.version}")
        found[name] = distribution.version
        for text in distribution.requires or ():
            wanted.append((Requirement(text), frozenset(requirement.extras)))
    return found


def put_packages(root: str, wanted: dict[str, str]) -> bool:
    """Copy packages out of this interpreter's environment into the tree, and compile them.

    Args:
        root: the tree as it is now, DESTDIR included.
        wanted: name to version.

    Returns:
        False where the same ones are there already.

    Raises:
        OSError: they cannot be copied; the packages that were there are as they were.
    """
    from importlib import metadata

    lines = [f"{name}=={version}\n" for name, version in sorted(wanted.items())]
    stamp = "".join([f"{sys.implementation.cache_tag}\n", *lines]).encode()
    site = f"{root}/{SITE}"
    try:
        if files.read(f"{site}/{PACKAGES_STAMP}") == stamp:
            return False
    except FileNotFoundError:
        pass
    new = f"{site}.new"
    shutil.rmtree(new, ignore_errors=True)
    make_directory(new)
    for name in sorted(wanted):
        for file in metadata.distribution(name).files or ():
            if ".." in file.parts or "__pycache__" in file.parts or file.is_absolute():
                continue
            status = os.stat(file.locate())
            make_directory(os.path.dirname(f"{new}/{file}"))
            shutil.copyfile(file.locate(), f"{new}/{file}")
            os.chmod(f"{new}/{file}", 0o755 if status.st_mode & 0o100 else 0o644)
            os.utime(f"{new}/{file}", (int(status.st_mtime), int(status.st_mtime)))
    files.replace(f"{new}/{PACKAGES_STAMP}", stamp, durable=False)
    old = f"{site}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(site):
        os.rename(site, old)
    os.rename(new, site)
    shutil.rmtree(old, ignore_errors=True)
    # Some packages carry files for other Pythons, which do not compile here: no fault of this run.
    compileall.compile_dir(site, quiet=2, workers=0)
    return True


def compile_modules(root: str, prefix: str) -> None:
    """Compile the house and its templates.

    Raises:
        ConfigError: a module does not compile.
        InfoclusterError: a template does not.
    """
    library = f"{root}/lib/infocluster"
    # ddir is what tracebacks show: where the tree will be used, not where it was built. The templates have been, or
    # will be, compiled in their own way.
    own = re.compile("/templates/compiled/")
    if not compileall.compile_dir(library, ddir=f"{prefix}/lib/infocluster", quiet=1, rx=own):
        raise ConfigError(f"cannot compile {library}")
    pages.compile_templates(f"{library}/templates/compiled")


def modules_of_hits(root: str, door: str) -> dict[str, str]:
    """Return the modules that a program of cgi-bin/ may load, name to file relative to the tree.

    Found in the source: from its handlers along all imports of ours, those inside functions too.
    """
    found: dict[str, str] = {}
    wanted = ["infocluster.web.cgi", *(word.partition(":")[0] for word in handlers(f"{root}/cgi-bin/{door}"))]
    while wanted:
        module = wanted.pop()
        if module in found or module == NO_PART_OF_A_HIT:
            continue
        relative = _source_of(root, module)
        if relative is None:
            continue
        found[module] = relative
        if "." in module:
            wanted.append(module.rpartition(".")[0])
        wanted += imports(f"{root}/{relative}")
    return found


def handlers(door: str) -> Iterator[str]:
    """Yield the handlers that a program of cgi-bin/ or batch/ names, such as ``infocluster.apps.survey:answer``."""
    try:
        tree = _tree(door)
    except (SyntaxError, ValueError):  # somebody else's program in another language
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            word = node.args[0].value
            if isinstance(word, str) and word.startswith("infocluster.") and ":" in word:
                yield word


def _source_of(root: str, module: str) -> str | None:
    base = "lib/" + module.replace(".", "/")
    for relative in (f"{base}/__init__.py", f"{base}.py"):
        if os.path.isfile(f"{root}/{relative}"):
            return relative
    return None


def imports(file: str, everywhere: bool = True) -> list[str]:
    """Return the names that a module's source imports, not counting what only a type checker sees.

    Args:
        file: the source.
        everywhere: also those inside functions.

    Returns:
        Names as ``infocluster.locks`` and ``infocluster.locks.lockfile``, which may name a module or something in it.
    """
    found: list[str] = []
    nodes: list[ast.AST] = [_tree(file)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        nodes += ast.iter_child_nodes(node)
    return found


def _tree(file: str) -> ast.Module:
    return ast.parse(files.read(file), file)


def write_compiled(root: str, prefix: str) -> int:
    """Write the files that hits load their modules from, and their compiled copies; return how many there are.

    Args:
        root: the tree as it is now, DESTDIR included.
        prefix: where it will be used.

    Raises:
        OSError: one cannot be written, and is as it was.
    """
    start = files.read(f"{root}/lib/infocluster/start.py").decode()
    make_directory(f"{root}/{COMPILED}")
    made = compiled_files(root)
    for file, door in made.items():
        modules = modules_of_hits(root, door)
        lines = [
            "# Made by make install (and check-site -compile) out of lib/infocluster/start.py: not to be edited.\n",
            start,
            "\n\nTABLE = {\n",
            *(_entry(root, prefix, module, relative) for module, relative in sorted(modules.items())),
            f"}}\nSERVED = serve(TABLE, {sys.implementation.cache_tag!r})\n",
            f"\n\ndef begin_program():\n    begin(SERVED, {tuple(_start_of(root, door))!r})\n",
        ]
        newest_s = max(int(os.stat(f"{root}/{relative}").st_mtime) for relative in modules.values())
        _replace(f"{root}/{file}", "".join(lines).encode(), 0o644, newest_s)
        compileall.compile_file(f"{root}/{file}", ddir=f"{prefix}/{COMPILED}", quiet=1, force=True)
    for name in os.listdir(f"{root}/{COMPILED}"):
        if name.endswith(".py") and f"{COMPILED}/{name}" not in made:
            os.unlink(f"{root}/{COMPILED}/{name}")
    return len(made)


def compiled_files(root: str) -> dict[str, str]:
    """Return the files that hits load their modules from, relative to the tree, each with its program's name."""
    doors = sorted(name for name in os.listdir(f"{root}/cgi-bin") if any(handlers(f"{root}/cgi-bin/{name}")))
    return {f"{COMPILED}/{_start_module(door)}.py": door for door in doors}


def _start_module(door: str) -> str:
    return re.sub(r"\W", "_", door)


def _entry(root: str, prefix: str, module: str, relative: str) -> str:
    """Return the line of a table for one module."""
    status = os.stat(f"{root}/{relative}")
    place = f"{prefix}/{relative}"
    source = files.read(f"{root}/{relative}")
    # Without docstrings: a hit has no use for them, and they are a fifth of what it reads.
    code = marshal.dumps(compile(source, place, "exec", dont_inherit=True, optimize=2))
    is_package = relative.endswith("/__init__.py")
    return f"    {module!r}: ({place!r}, {status.st_size}, {status.st_mtime_ns}, {is_package}, {code!r}),\n"


def _start_of(root: str, door: str) -> list[str]:
    """Return what a program of cgi-bin/ imports before it knows its request, each module behind those it imports."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(module: str) -> None:
        if module in seen:
            return
        seen.add(module)
        relative = _source_of(root, module)
        if relative is None:
            return
        if "." in module:
            visit(module.rpartition(".")[0])
        for imported in imports(f"{root}/{relative}", everywhere=False):
            visit(imported)
        order.append(module)

    for module in ["infocluster.web.cgi", *(word.partition(":")[0] for word in handlers(f"{root}/cgi-bin/{door}"))]:
        visit(module)
    return order


def manifest(root: str) -> dict[str, Any]:
    """Return what was installed in a tree, or {} where nothing was.

    Raises:
        UsageError: the list is there and is none.
    """
    try:
        listed = json.loads(files.read(f"{root}/{MANIFEST}"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UsageError(f"cannot read {root}/{MANIFEST}: not a list of installed files") from None
    return listed if isinstance(listed, dict) else {}


def mark(path: str) -> str:
    """Return what the list of installed files would say of the content of a file or link.

    Raises:
        OSError: it cannot be read.
    """
    if os.path.islink(path):
        return _mark(os.fsencode(os.readlink(path)), True)
    return _mark(files.read(path), False)


def _mark(content: bytes, is_link: bool) -> str:
    return "-> " + os.fsdecode(content) if is_link else hashlib.sha256(content).hexdigest()


def compiled_from(text: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield what a file that `write_compiled` wrote was made from: source, size in bytes, mtime in ns."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "TABLE":
            for source, size, mtime_ns, _, _ in ast.literal_eval(node.value).values():
                yield source, size, mtime_ns


def remove_installed(root: str, relative: str) -> None:
    """Remove a file that an earlier version installed; one that is gone already is no error."""
    if ".." in relative.split("/") or relative.startswith("/"):
        return
    try:
        os.unlink(f"{root}/{relative}")
    except FileNotFoundError:
        return


if __name__ == "__main__":
    sys.exit(main())
