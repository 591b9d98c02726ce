# SPDX-License-Identifier: Apache-2.0
"""Forms: a short form and an upload taken under Apache and mod_cgid, and the same door under gunicorn.

Usage: forms.py TREE   (an installation)

The promise: the median of a short form, fsync on, is at most 1.4 times the least that a Python CGI takes; that of an
upload of 1 MB at most twice a raw copy's time, plus what starting with python-multipart takes; and gunicorn takes at
least 10 times as many short forms a second as CGI does, fsync on.
"""

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from apache import USER
from bench import measure, served, startup
from infocluster import config
from infocluster.apps import forms_compiled, forms_token

ROUNDS = 150
SECONDS = 5.0
SECRET = b"a secret of the bench"
WORKERS = 8
MB = 1 << 20
BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
FORM = """
title = "Bench"
[limits]
per_hour = 0
fill_s = 0
upload_kb = 2048
[[fields]]
name = "name"
label = "Name"
required = true
[[fields]]
name = "entry"
label = "Entry"
rows = 5
length = 2000
required = true
"""
FILE = '[[fields]]\nname = "file"\nlabel = "File"\nkind = "file"\ntypes = ["image/png"]\n'
FLOOR = served.FLOOR
SHORT = "form.cgi, a short form: checked, append, fsync"
COPY = "raw copy of 1 MB, fsync"
STARTED = "python-multipart imported, a header, _exit"
UPLOAD = "form.cgi, an upload of 1 MB, digest, fsync"


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    with served.laid_out("floor.cgi", "copy.cgi") as site:
        for directory in ("etc/forms", "etc/secrets"):
            (site / directory).mkdir()
        conf = site / "etc/infocluster.toml"
        conf.write_text("")
        (site / "etc/forms/short.toml").write_text(FORM)
        (site / "etc/forms/upload.toml").write_text(FORM + FILE)
        (site / "etc/secrets/forms").write_bytes(SECRET)
        config.compile_settings(str(conf))
        forms_compiled.compile_forms(config.load(str(conf)))
        started = (site / "programs/floor.cgi").read_text().splitlines()
        added = [f"import sys; sys.path.append({str(tree / 'lib/site')!r})", "import python_multipart.multipart"]
        (site / "programs/started.cgi").write_text("\n".join([started[0], *added, *started[1:], ""]))
        (site / "programs/started.cgi").chmod(0o755)
        with served.serving(tree, site) as server:
            one_client(server.port)
            cgi = many_clients(lambda: short(server.port))
        wsgi = under_gunicorn(tree, site, conf)
        print(f"{startup.CLIENTS} clients: CGI {cgi:.0f}, gunicorn ({WORKERS} workers) {wsgi:.0f} forms a second")
        print(f"gunicorn / CGI {wsgi / cgi:.1f} (at least 10)")


def token(form: str) -> str:
    return forms_token.issue(form, time.time() - 30, SECRET)


def short(port: int) -> None:
    body = f"form_token={token('short')}&leave_empty=&name=Ann+O%27Brien&entry=Good+morning%0D%0Aand+more".encode()
    send(port, "/cgi-bin/form.cgi/short", "application/x-www-form-urlencoded", body)


def upload(port: int, content: bytes) -> None:
    parts = [("form_token", token("upload")), ("name", "Ann"), ("entry", "Good morning")]
    text = "".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts
    )
    text += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
    body = (text + "Content-Type: image/png\r\n\r\n").encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    send(port, "/cgi-bin/form.cgi/upload", f"multipart/form-data; boundary={BOUNDARY}", body)


def send(port: int, path: str, kind: str, body: bytes, expected: bytes = b"303") -> None:
    """Send one POST on a new connection and read the reply to the end of its head and stated length."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        text = b""
        while b"\r\n\r\n" not in text:
            chunk = connection.recv(65536)
            if not chunk:
                raise ConnectionError(f"no reply to {path}: {text[:200]!r}")
            text += chunk
        if text[9:12] != expected:
            raise ConnectionError(f"{path}: {text[:1000]!r}")


def one_client(port: int) -> None:
    content = b"\x89PNG\r\n\x1a\n" + os.urandom(MB - 8)
    runs: dict[str, Callable[[], object]] = {
        FLOOR: lambda: measure.fetch(port, "/bench/floor.cgi"),
        SHORT: lambda: short(port),
        COPY: lambda: send(port, "/bench/copy.cgi", "application/octet-stream", content),
        STARTED: lambda: measure.fetch(port, "/bench/started.cgi"),
        UPLOAD: lambda: upload(port, content),
    }
    measure.in_turn(runs, 5)
    times = measure.in_turn(runs, ROUNDS)
    served.print_one_client(times, ROUNDS)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"short form / floor {median[SHORT] / median[FLOOR]:.2f} (at most 1.4)")
    allowed = 2 * median[COPY] + median[STARTED] - median[FLOOR]
    print(f"upload / (twice a raw copy + start with python-multipart) {median[UPLOAD] / allowed:.2f} (at most 1)")


def many_clients(hit: Callable[[], None]) -> float:
    """Return how many hits a second several clients get answered."""
    done = [0] * startup.CLIENTS
    end = time.perf_counter() + SECONDS

    def client(number: int) -> None:
        while time.perf_counter() < end:
            hit()
            done[number] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(startup.CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return sum(done) / SECONDS


def under_gunicorn(tree: Path, site: Path, conf: Path) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers",
               str(WORKERS), "--user", USER, "--no-control-socket", "--log-level", "error",
               "infocluster.web.wsgi:application"]  # fmt: skip
    environment = {"PATH": os.defpath, "PYTHONPATH": f"{tree}/lib", "INFOCLUSTER_CONF": str(conf),
                   "SERVER_GATHER": str(site / "gather"), "DOCUMENT_ROOT": str(site / "tree")}  # fmt: skip
    with subprocess.Popen(command, env=environment, cwd=site) as process:
        try:
            end = time.monotonic() + 20
            while True:
                try:
                    short(port)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.05)
            return many_clients(lambda: short(port))
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
