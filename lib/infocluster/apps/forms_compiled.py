# SPDX-License-Identifier: Apache-2.0
"""Declared forms by name: where they are, and a form as fast as a hit needs it.

`forms_declared` reads ``NAME.toml``, says what is wrong with it and renders its pages. A hit has no time for that, so
``forms-nightly -render`` and ``check-site -compile`` leave a compiled copy beside each declaration:

Shape: ``signup.toml.compiled`` is one marshalled tuple, such as
    ``("infocluster form 2", 812, 1763800000000000000, {"name": "signup", "fields": [...], ...})``
    a format mark, the size in bytes and the mtime in ns of the file it was made from, and the form as
    `forms_declared` describes it. It is used only while size and mtime are the file's own, and those of the templates
    that it names.
"""

import marshal
import posix

from infocluster import files, names
from infocluster.errors import ConfigError, UnavailableError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from infocluster.config import Settings

    Form = dict[str, Any]

FORMAT = "infocluster form 2"
SUFFIX = ".toml"


def all_names(settings: "Settings") -> "list[str]":
    """Return the names of all declared forms.

    Raises:
        ConfigError: the directory of declarations cannot be read; one that is missing holds none.
    """
    directory = settings["forms"]["forms_dir"]
    try:
        found = posix.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read the forms in {directory}: {reason(error)}") from error
    stems = sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX))
    return [stem for stem in stems if names.is_name(stem)]


def file_of(name: str, settings: "Settings") -> str:
    """Return where the declaration of a form is."""
    return f"{settings['forms']['forms_dir']}/{name}{SUFFIX}"


def load(name: str, settings: "Settings") -> "Form | None":
    """Return a form, or None where there is none of this name.

    Args:
        name: what the visitor asked for; anything.
        settings: all settings.

    Raises:
        ConfigError: its declaration says something impossible: file, line, what was expected.
    """
    if not names.is_name(name):
        return None
    file = file_of(name, settings)
    try:
        status = posix.stat(file)
    except OSError:
        return None
    return compiled(file, status) or _read(file, settings)


def compiled(file: str, status: "posix.stat_result") -> "Form | None":
    """Return the form of a declaration from its compiled copy, or None where that is missing or older."""
    try:
        mark, size, mtime_ns, form = marshal.loads(files.read(file + ".compiled"))  # noqa: S302 (ours, as settings are)
    except (OSError, ValueError, EOFError, TypeError):
        return None
    if (mark, size, mtime_ns) != (FORMAT, status.st_size, status.st_mtime_ns):
        return None
    for path, size, mtime_ns in form["sources"]:
        try:
            status = posix.stat(path)
        except OSError:
            return None
        if (size, mtime_ns) != (status.st_size, status.st_mtime_ns):
            return None
    result: Form = form
    return result


def write(file: str, form: "Form", status: "posix.stat_result") -> None:
    """Leave the compiled copy beside a declaration.

    Args:
        file: the declaration.
        form: what it says.
        status: of the file, from before it was read.

    Raises:
        OSError: the directory cannot be written.
    """
    files.replace(file + ".compiled", marshal.dumps((FORMAT, status.st_size, status.st_mtime_ns, form)))


def compile_form(name: str, settings: "Settings") -> None:
    """Leave a compiled copy beside one declaration.

    Raises:
        ConfigError: it says something impossible.
        UnavailableError: the directory cannot be written.
    """
    file = file_of(name, settings)
    try:
        status = posix.stat(file)
        write(file, _read(file, settings), status)
    except OSError as error:
        raise UnavailableError(f"cannot compile {file}: {reason(error)}") from error


def compile_forms(settings: "Settings") -> "list[str]":
    """Leave a compiled copy beside every declaration, and return their names.

    Raises:
        ConfigError: one of them says something impossible; those before it are compiled.
        UnavailableError: the directory cannot be written.
    """
    found = all_names(settings)
    for name in found:
        compile_form(name, settings)
    return found


def is_compiled(name: str, settings: "Settings") -> bool:
    """Tell whether the compiled copy of a form is there and up to date."""
    file = file_of(name, settings)
    return compiled(file, posix.stat(file)) is not None


def _read(file: str, settings: "Settings") -> "Form":
    from infocluster.apps import forms_declared

    return forms_declared.read(file, settings)
