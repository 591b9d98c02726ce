# SPDX-License-Identifier: Apache-2.0
"""The compiled copy of the settings: used while it is the file's, never a moment longer."""

import marshal
import os
from pathlib import Path

import pytest

from infocluster import config
from infocluster.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/infocluster.toml"
    path.write_text('[site]\nname = "one"\n')
    return str(path)


def name(file: str) -> object:
    return config.load(file)["site"]["name"]


def plant(file: str, planted: str) -> None:
    """Change the name in the compiled copy alone, so that one can see which of the two was read."""
    mark, size, mtime_ns, settings = marshal.loads(Path(file + ".compiled").read_bytes())
    settings["site"]["name"] = planted
    Path(file + ".compiled").write_bytes(marshal.dumps((mark, size, mtime_ns, settings)))


def test_compiled_copy_says_the_same_and_is_used(file: str) -> None:
    parsed = config.load(file)
    config.compile_settings(file)
    assert config.is_compiled(file) and config.load(file) == parsed
    plant(file, "from the copy")
    assert name(file) == "from the copy"


def test_change_of_size_or_time_takes_effect_at_once(file: str) -> None:
    config.compile_settings(file)
    status = os.stat(file)
    Path(file).write_text('[site]\nname = "another"\n')
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not config.is_compiled(file) and name(file) == "another"
    config.compile_settings(file)
    status = os.stat(file)
    Path(file).write_text('[site]\nname = "onother"\n')
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not config.is_compiled(file) and name(file) == "onother"


@pytest.mark.parametrize("content", [b"", b"\x00", b"torn", marshal.dumps(("other", 1)), marshal.dumps(7)])
def test_copy_that_is_torn_or_foreign_is_passed_over(file: str, content: bytes) -> None:
    Path(file + ".compiled").write_bytes(content)
    assert name(file) == "one"


def test_copy_of_another_format_is_passed_over(file: str) -> None:
    config.compile_settings(file)
    _, size, mtime_ns, settings = marshal.loads(Path(file + ".compiled").read_bytes())
    settings["site"]["name"] = "of old"
    Path(file + ".compiled").write_bytes(marshal.dumps(("infocluster 0", size, mtime_ns, settings)))
    assert name(file) == "one"


def test_settings_that_are_wrong_are_not_compiled(file: str) -> None:
    config.compile_settings(file)
    before = Path(file + ".compiled").read_bytes()
    Path(file).write_text("[site]\nname = 3\n")
    with pytest.raises(ConfigError, match=r":2: site\.name: 3: expected"):
        config.compile_settings(file)
    assert Path(file + ".compiled").read_bytes() == before
    with pytest.raises(ConfigError):
        config.load(file)


def test_environment_names_another_file(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.settings_file() == config.ROOT + "/etc/infocluster.toml"
    # posix.environ is what the process was started with: a child sees it.
    pid = os.fork()
    if pid == 0:
        environment = {**os.environ, "INFOCLUSTER_CONF": file, "PYTHONPATH": config.ROOT + "/lib"}
        program = "from infocluster import config; raise SystemExit(config.load()['site']['name'] != 'one')"
        os.execvpe("python3", ["python3", "-c", program], environment)
    assert os.waitpid(pid, 0)[1] == 0
