# SPDX-License-Identifier: Apache-2.0
"""A web server for one machine without one: serves a document root and runs the real CGI programs as processes.

For development, the demo and tests on loopback. A real host runs Apache (etc/apache.conf).

A request for ``/cgi-bin/NAME...`` starts ``CGI_DIR/NAME`` with the variables of RFC 3875; anything else is a file
below the document root, a directory its index.html, a symbolic link whose text is a URL a redirect.

Source: RFC 3875; RFC 9110; http.server documentation.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from urllib.parse import unquote

from infocluster import names, processes
from infocluster.errors import InfoclusterError, UsageError

CGI_PREFIX = "/cgi-bin/"
BODY_LIMIT_BYTES = 64 << 20
PROGRAM_TIMEOUT_S = 60.0
_HEAD_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Site:
    """One web server's directories, as Apache's configuration would name them.

    Attributes:
        cgi_dir: where the programs are.
        document_root: what is served.
        variables: further variables for the programs, such as SERVER_GATHER.
    """

    cgi_dir: str
    document_root: str
    variables: dict[str, str]


class Server(ThreadingHTTPServer):
    """A listening server; its address is ``http://127.0.0.1:{server_port}/``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, site: Site, port: int = 0) -> None:
        self.site = site
        super().__init__(("127.0.0.1", port), _Handler)


@contextmanager
def serving(site: Site, port: int = 0) -> Iterator[str]:
    """Serve a site in a thread while the context is open, and give its URL, without a slash at the end."""
    with Server(site, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "infocluster-dev"
    disable_nagle_algorithm = True
    timeout = 30
    server: Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith(CGI_PREFIX):
            self._run_program(path, query)
        elif self.command in ("GET", "HEAD"):
            self._send_file(path)
        else:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests that went well; programs write their own errors."""

    def _run_program(self, path: str, query: str) -> None:
        try:
            name, slash, info = path.removeprefix(CGI_PREFIX).partition("/")
            program = f"{self.server.site.cgi_dir}/{names.name(unquote(name), 'a program')}"
        except UsageError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        if not os.access(program, os.X_OK):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        length = self.headers.get("Content-Length", "")
        if length and not (length.isascii() and length.isdigit() and int(length[:20]) <= BODY_LIMIT_BYTES):
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(int(length or 0))
        variables = self._variables(program, name, slash + unquote(info), query, length)
        try:
            outcome = processes.run([program], PROGRAM_TIMEOUT_S, body, variables)
        except InfoclusterError as error:
            self.send_error(HTTPStatus.GATEWAY_TIMEOUT, explain=str(error))
            return
        if outcome.errors:
            os.write(2, outcome.errors)
        self._send_reply(outcome.output)

    def _variables(self, program: str, name: str, info: str, query: str, length: str) -> dict[str, str]:
        result = {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_SOFTWARE": self.server_version,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(self.server.server_port),
            "SERVER_PROTOCOL": self.request_version,
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": CGI_PREFIX + name,
            "SCRIPT_FILENAME": program,
            "PATH_INFO": info,
            "QUERY_STRING": query,
            "REMOTE_ADDR": self.client_address[0],
            "DOCUMENT_ROOT": self.server.site.document_root,
            "PATH": os.environ.get("PATH", os.defpath),
            **self.server.site.variables,
        }
        if length:
            result["CONTENT_LENGTH"] = length
        if content_type := self.headers.get("Content-Type"):
            result["CONTENT_TYPE"] = content_type
        for field, value in self.headers.items():
            # "Proxy" would become HTTP_PROXY, which programs take for a setting of theirs (httpoxy).
            if field.lower() not in ("content-type", "content-length", "proxy"):
                # http.server reads fields as Latin-1; surrogateescape gives programs the bytes that came.
                text = value.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
                result["HTTP_" + field.upper().replace("-", "_")] = text.replace("\0", "")
        return result

    def _send_reply(self, output: bytes) -> None:
        end = _HEAD_END.search(output)
        if not end:
            self.send_error(HTTPStatus.BAD_GATEWAY, "the program ended before its headers did")
            return
        head, body = output[: end.start()], output[end.end() :]
        fields = [line.partition(":")[::2] for line in head.decode("latin-1").splitlines()]
        status = next((value.strip() for name, value in fields if name.lower() == "status"), "200 OK")
        self.send_response(int(status[:3]), status[4:])
        for name, value in fields:
            if name.lower() not in ("status", "content-length"):
                self.send_header(name, value.strip())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, path: str) -> None:
        root = self.server.site.document_root
        try:
            wanted = f"{root}/{names.tree_path(unquote(path).strip('/'))}" if path.strip("/") else root
        except UsageError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        if os.path.islink(wanted) and "://" in (target := os.readlink(wanted)):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if os.path.isdir(wanted):
            wanted += "/index.html"
        real = os.path.realpath(wanted)
        if not real.startswith(os.path.realpath(root) + "/"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            with open(real, "rb") as file:
                body = file.read()
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        media_type = guess_type(real)[0] or "application/octet-stream"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", media_type + ("; charset=utf-8" if media_type.startswith("text/") else ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
