# SPDX-License-Identifier: Apache-2.0
"""A site with forms: a secret, declarations, tokens that are valid, bodies out of files."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from apache import USER
from conftest import ROOT, Reply, Site
from infocluster.apps import forms_token

SECRET = b"a secret of tests"
BODIES = Path(__file__).resolve().parent / "bodies"
STORES = ("segment", "entries", "queue")
GUESTBOOK = """
title = "Guest <b>book</b>"
thanks = "Thank you."
[limits]
body_kb = 8
upload_kb = 2
fill_s = 10
per_hour = 0
[answers]
publish = true
moderate = true
mail = "night"
to = ["www-mgmt@localhost"]
[[fields]]
name = "name"
label = "Your name"
length = 80
required = true
published = true
[[fields]]
name = "email"
label = "Address?"
kind = "email"
[[fields]]
name = "entry"
label = "Your entry"
rows = 5
length = 2000
required = true
published = true
[[fields]]
name = "picture"
label = "A picture"
kind = "file"
types = ["image/png"]
published = true
"""


def declare(site: Site, name: str = "guestbook", text: str = GUESTBOOK) -> Path:
    """Declare a form and give the site its secret."""
    forms = site.root / "etc/forms"
    forms.mkdir(exist_ok=True)
    (site.root / "etc/secrets").mkdir(exist_ok=True)
    (site.root / "etc/secrets/forms").write_bytes(SECRET + b"\n")
    (forms / f"{name}.toml").write_text(text)
    return forms / f"{name}.toml"


def installed(top: Path) -> Path:
    """Return a tree that is installed below a directory, with a form; its server's gather is gather/web1/www."""
    prefix = top / "infocluster"
    command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(prefix)]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    for path in (prefix / "etc/forms").iterdir():
        path.unlink()
    (prefix / "etc/forms/guestbook.toml").write_text(GUESTBOOK.replace('mail = "night"', 'mail = "never"'))
    (prefix / "etc/secrets/forms").write_bytes(SECRET)
    for path in (prefix / "etc/secrets", prefix / "etc/secrets/forms"):
        shutil.chown(path, group=USER)
        path.chmod(0o640 if path.is_file() else 0o750)
    for directory in ("tree", "www/world/forms", "gather/web1/www", "state", "dev"):
        (top / directory).mkdir(parents=True)
    (prefix / "etc/infocluster.toml").write_text(
        f'[site]\nproduction_dir = "{top}/www"\nstate_dir = "{top}/state"\ndevelopment_dirs = ["{top}/dev"]\n'
        f'[gather]\ngather_dir = "{top}/gather"\nkeep_days = 0\n'
    )
    subprocess.run([prefix / "batch/check-site", "-compile"], check=True, capture_output=True)
    return prefix


def token(name: str = "guestbook", age_s: float = 30, now: float | None = None) -> str:
    return forms_token.issue(name, (now or time.time()) - age_s, SECRET)


def body_of(file: Path, with_token: str) -> tuple[dict[str, str], bytes]:
    """Return the variables and the body that a file of bodies holds."""
    head, _, body = file.read_bytes().partition(b"\n\n")
    if head.startswith(b"\n") or not head:
        head, body = b"", file.read_bytes()[1:]
    for place in (b"@TOKEN@", b"%40TOKEN%40"):
        body = body.replace(place, with_token.encode())
    variables = {"CONTENT_LENGTH": str(len(body))}
    for line in head.decode("utf-8", "surrogateescape").splitlines():
        name, _, value = line.partition(": ")
        variables[name.upper().replace("-", "_").rstrip(":")] = value
    if not variables["CONTENT_LENGTH"]:
        del variables["CONTENT_LENGTH"]
    return variables, body


def post(site: Site, body: bytes, name: str = "guestbook", server: str = "web1", **variables: str) -> Reply:
    """Send a form as a browser does."""
    told = {"CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": str(len(body)), **variables}
    return site.cgi("form.cgi", "POST", body, server, PATH_INFO=f"/{name}", **told)


def records(site: Site, name: str = "guestbook", server: str = "web1") -> list[dict[str, Any]]:
    """Return what was gathered, in order, in whichever store."""
    top = site.gather(server) / f"form-{name}"
    found = sorted(path for path in top.rglob("*") if path.is_file())
    return [json.loads(line) for path in found for line in path.read_bytes().splitlines()]


def stored_as(store: str, text: str = GUESTBOOK) -> str:
    """Return a declaration whose answers go into a store."""
    return text.replace("[answers]", f'[answers]\nstore = "{store}"')


def uploads(site: Site, name: str = "guestbook", server: str = "web1") -> list[Path]:
    directory = site.gather(server) / f"form-{name}.files"
    return sorted(directory.iterdir()) if directory.exists() else []
