# SPDX-License-Identifier: Apache-2.0
"""The settings of this host, as fast as a hit needs them.

`settings.py` knows every setting, reads TOML and says what is wrong with it. That costs a hit as much as two
interpreters, so ``make install`` and ``check-site -compile`` leave a compiled copy beside the file:

Shape: ``infocluster.toml.compiled`` is one marshalled tuple, such as
    ``("infocluster 1", 1834, 1763800000000000000, {"site": {"name": ...}, ...})``
    a format mark, the size in bytes and the mtime in ns of the file it was made from, all settings.
    It is used only while size and mtime are the file's own.
"""

import marshal
import posix

from infocluster import files

TYPE_CHECKING = False  # typing itself costs a hit more than the rest of this module
if TYPE_CHECKING:
    from typing import Any

ROOT = __file__.rpartition("/lib/")[0]
FORMAT = "infocluster 1"

Settings = dict[str, "Any"]


def settings_file() -> str:
    """Return the settings file: what INFOCLUSTER_CONF names, or etc/infocluster.toml of this tree."""
    named = posix.environ.get(b"INFOCLUSTER_CONF")
    return named.decode("utf-8", "surrogateescape") if named else ROOT + "/etc/infocluster.toml"


def load(file: str | None = None) -> Settings:
    """Return all settings by section, defaults filled in, relative directories made absolute.

    Args:
        file: the TOML file; by default what `settings_file` finds.

    Returns:
        ``{"site": {"production_dir": "/www", ...}, "servers": [{"name": "web1", ...}], ...}``

    Raises:
        ConfigError: the file cannot be read, or says something impossible: file, line, name, what was expected.
    """
    file = file or settings_file()
    return _compiled(file) or _parsed(file)


def is_compiled(file: str) -> bool:
    """Tell whether the compiled copy of a settings file is there and up to date."""
    return _compiled(file) is not None


def compile_settings(file: str, root: str | None = None) -> None:
    """Leave the compiled copy beside a settings file.

    Args:
        file: the TOML file.
        root: the tree that relative directories will count from; by default the one that holds the file.

    Raises:
        ConfigError: the file says something impossible.
        OSError: the directory cannot be written.
    """
    status = posix.stat(file)
    content = marshal.dumps((FORMAT, status.st_size, status.st_mtime_ns, _parsed(file, root)))
    files.replace(file + ".compiled", content)


def _compiled(file: str) -> Settings | None:
    try:
        content = files.read(file + ".compiled")
        status = posix.stat(file)
        mark, size, mtime_ns, settings = marshal.loads(content)  # noqa: S302 (ours: check-site says who may write it)
    except (OSError, ValueError, EOFError, TypeError):
        return None
    if (mark, size, mtime_ns) != (FORMAT, status.st_size, status.st_mtime_ns):
        return None
    result: Settings = settings
    return result


def _parsed(file: str, root: str | None = None) -> Settings:
    from infocluster import settings

    return settings.read(file, root)
