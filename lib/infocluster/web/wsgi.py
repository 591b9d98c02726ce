# SPDX-License-Identifier: Apache-2.0
"""The doors of cgi-bin/ as one WSGI application, where a process a hit no longer serves.

``gunicorn infocluster.web.wsgi:application`` or mod_wsgi's ``WSGIScriptAlias`` run it. A request for
``/cgi-bin/NAME/...`` is answered by the handler that ``cgi-bin/NAME`` names; there is no second list. The same
variables count as for a CGI program; what the server does not set of SERVER_GATHER and DOCUMENT_ROOT is taken from
the environment of the process. A change of settings or declarations takes effect at the next request.

Source: PEP 3333; RFC 3875.
"""

import ast
import os
import posix
from collections.abc import Callable, Iterable
from typing import Any

from infocluster import config, files, names
from infocluster.config import Settings
from infocluster.errors import InfoclusterError
from infocluster.web import cgi
from infocluster.web.request import Request
from infocluster.web.response import PHRASES, Response, error_page

PREFIX = "/cgi-bin/"
_FROM_PROCESS = (b"SERVER_GATHER", b"DOCUMENT_ROOT")

Start = Callable[[str, list[tuple[str, str]]], Any]


def application(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    """Answer one request.

    Args:
        environ: as PEP 3333 has it.
        start_response: likewise.
    """
    program, script, path_info = _split(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))
    handler = HANDLERS.get(program)
    request = Request(_variables(environ, script, path_info), _settings(), environ["wsgi.input"].read)
    if handler is None:
        response = error_page(404, "There is nothing of this name here.")
    else:
        response = cgi.answer(handler, request)
    request.drain()
    return _said(response, request.method == "HEAD", start_response)


def _settings() -> Settings | None:
    """Return the settings, read again when their file changed; None where they cannot be: the handler says why."""
    file = config.settings_file()
    try:
        status = posix.stat(file)
        key = (file, status.st_size, status.st_mtime_ns)
        if key not in _KEPT:
            found = config.load(file)
            _KEPT.clear()
            _KEPT[key] = found
        return _KEPT.get(key)
    except (OSError, InfoclusterError):
        return None


def _said(response: Response, is_head: bool, start_response: Start) -> Iterable[bytes]:
    fields = [
        ("Content-Type", response.content_type),
        ("X-Content-Type-Options", "nosniff"),
        *response.fields,
    ]
    if response.stream is None:
        fields.append(("Content-Length", str(len(response.body))))
    start_response(f"{response.status} {PHRASES[response.status]}", fields)
    # A stream is handed over as it is, so that the server can close it when the visitor has gone.
    return [b"" if is_head else response.body] if response.stream is None or is_head else response.stream


def _split(path: str) -> tuple[str, str, str]:
    """Return the program's name, the address it has, and what stands behind that."""
    above, found, rest = path.partition(PREFIX)
    name, slash, info = rest.partition("/")
    return (name, above + found + name, slash + info) if found else ("", "", path)


def _variables(environ: dict[str, Any], script: str, path_info: str) -> dict[bytes, bytes]:
    """Return the variables of RFC 3875; PEP 3333 has their bytes as Latin-1."""
    variables = {name: posix.environ[name] for name in _FROM_PROCESS if name in posix.environ}
    for name, value in environ.items():
        if isinstance(value, str) and "." not in name:
            variables[name.encode("latin-1", "replace")] = value.encode("latin-1", "replace")
    variables[b"SCRIPT_NAME"] = script.encode("latin-1", "replace")
    variables[b"PATH_INFO"] = path_info.encode("latin-1", "replace")
    return variables


def _handlers(directory: str) -> dict[str, str]:
    """Return what the programs of cgi-bin/ name, by the program's name."""
    found = {}
    for name in sorted(os.listdir(directory)):
        if not names.is_name(name) or not os.path.isfile(f"{directory}/{name}"):
            continue
        for node in ast.walk(ast.parse(files.read(f"{directory}/{name}"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                word = node.args[0].value
                if isinstance(word, str) and word.startswith("infocluster.") and ":" in word:
                    found[name] = word
    return found


# The settings as they were read last, by file, size and mtime.
_KEPT: dict[tuple[str, int, int], Settings] = {}
HANDLERS = _handlers(config.ROOT + "/cgi-bin")
