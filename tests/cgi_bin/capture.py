#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""capture.py - write what the browsers of this host send for a form into tests/cgi_bin/bodies.

Usage: capture.py [DIRECTORY]

A form is filled by a script of its page and sent as the browser sends it; the program is told by the User-Agent that
it gives. Browsers that are not here are left out: chromium, firefox-esr, MiniBrowser of WebKitGTK by xvfb-run, curl.
Files that are in DIRECTORY already are replaced. @TOKEN@ stands where a visit's token does, also as %40TOKEN%40.

Safari's bodies cannot be captured here: 303-safari-multipart.body was written by hand, in the form of WebKit's.
"""

import json
import queue
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WAIT_S = 60
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
FIELDS = {
    "form_token": "@TOKEN@",
    "leave_empty": "",
    "name": "Ann O'Brien-M\u00fcller \U0001f600 <b>",
    "email": "ann+list@example.org",
    "entry": 'Good & new; 100 % = "all"\nsecond line\n\n\u65e5\u672c\u8a9e, a+b \\ end',
}
# Kind of body to the type of the form and the name of the file that is chosen: None for a form without such a field.
CASES = {
    "urlencoded": (URLENCODED, None),
    "multipart": (MULTIPART, 'my "best" d\u00e5y, 50%.png'),
    "multipart-no-file-chosen": (MULTIPART, ""),
    "multipart-name-with-backslashes": (MULTIPART, "C:\\pictures\\me.png"),
}
WEBKIT = "/usr/lib/*/webkit2gtk-4*/MiniBrowser"


def png() -> bytes:
    """Return a picture of one pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(5))) + chunk(b"IEND", b"")


def page(kind: str, file_name: str | None) -> bytes:
    """Return a form that fills and sends itself."""
    inputs = "".join(
        f'<textarea name="{name}"></textarea>' if "\n" in value else f'<input name="{name}">'
        for name, value in FIELDS.items()
    )
    if file_name is not None:
        inputs += '<input type="file" name="picture">'
    choose = ""
    if file_name:
        content = b64encode(png()).decode()
        choose = f"""
const bytes = Uint8Array.from(atob("{content}"), one => one.charCodeAt(0)), chosen = new DataTransfer();
chosen.items.add(new File([bytes], {json.dumps(file_name)}, {{type: "image/png"}}));
form.elements.picture.files = chosen.files;"""
    text = f"""<!doctype html><meta charset="utf-8"><form method="post" enctype="{kind}">{inputs}</form><script>
const form = document.forms[0];
for (const [name, value] of Object.entries({json.dumps(FIELDS)})) form.elements[name].value = value;{choose}
form.submit();</script>"""
    return text.encode()


class Handler(BaseHTTPRequestHandler):
    """Shows the form of a case, and keeps what is sent."""

    caught: "queue.Queue[tuple[str, str, bytes]]" = queue.Queue()

    def do_GET(self) -> None:
        case = CASES.get(self.path.strip("/"))
        self.reply(page(*case) if case else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(b"<!doctype html>taken")
        self.caught.put((self.headers["Content-Type"], self.headers["User-Agent"], body))

    def reply(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def curl(url: str, case: str, top: Path) -> list[str]:
    """Return the command that sends a case."""
    kind, file_name = CASES[case]
    if kind == URLENCODED:
        return [
            "curl",
            "-s",
            url,
            *(word for item in FIELDS.items() for word in ("--data-urlencode", "=".join(item))),
        ]
    words = [word for item in FIELDS.items() for word in ("--form-string", "=".join(item))]
    if file_name:
        (top / "picture.png").write_bytes(png())
        quoted = file_name.replace("\\", "\\\\").replace('"', '\\"')
        words += ["-F", f'picture=@{top}/picture.png;type=image/png;filename="{quoted}"']
    return ["curl", "-s", url, *words]


def browsers() -> Iterator[tuple[str, list[str]]]:
    """Yield the browsers that are here: their names, and the words before the address."""
    if shutil.which("chromium"):
        yield "chromium", ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir={profile}"]
    if shutil.which("firefox-esr"):
        yield "firefox", ["firefox-esr", "--headless", "--no-remote", "--profile", "{profile}"]
    for program in sorted(Path("/").glob(WEBKIT[1:])):
        if shutil.which("xvfb-run"):
            yield "webkitgtk", ["xvfb-run", "-a", str(program)]
    if shutil.which("curl"):
        yield "curl", []


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "bodies"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, words in browsers():
        for case in CASES:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as top:
                url = f"http://127.0.0.1:{server.server_port}/{case}"
                command = (
                    [word.format(profile=top) for word in words] + [url] if words else curl(url, case, Path(top))
                )
                with subprocess.Popen(command, start_new_session=True, stdout=-3, stderr=-3) as process:
                    try:
                        kind, agent, body = Handler.caught.get(timeout=WAIT_S)
                    except queue.Empty:
                        print(f"{name}: {case}: nothing was sent", file=sys.stderr)
                        continue
                    finally:
                        subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)
            head = f"Content-Type: {kind}\nUser-Agent: {agent}\n\n".encode()
            (target / f"303-{name}-{case}.body").write_bytes(head + body)
            print(f"{name}: {case}: {len(body)} bytes of {agent}")


if __name__ == "__main__":
    main()
