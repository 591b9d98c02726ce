# SPDX-License-Identifier: Apache-2.0
"""A whole cluster of one web server for reports: an installation, its Apache, a controller, and nodes that report."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apache import USER, Apache, apache
from infocluster.aggregate import signing, wire

ROOT = Path(__file__).resolve().parents[2]
KEY = b"a key of sixteen bytes and more"
# The seed's class as it was written for an older Python: changed are its imports, the bytes of files, print and raise
# syntax, and nothing else.
SEED = '''
import logging
import os
from infocluster.aggregate import messages_pb2 as messages
from infocluster.aggregate.base import Aggregator


class FileProcessor(Aggregator):
    """ Processor that deals with FileList and File messages """
    reporttype = 'FileOutput'
    updatetype = 'FileList'
    requesttypes = 'File', 'FileList',
    storagedir = '@storagedir@'

    def __init__(self):
        self.newfiles = []
        if not os.path.isdir(self.storagedir):
            os.makedirs(self.storagedir)

    def processReport(self, msg):
        """ Handle new file given to us from the experiment """
        data = messages.Files()
        data.ParseFromString(msg.data)
        for f in data.files:
            fp = open(os.path.join(self.storagedir, f.name), 'wb')
            fp.write(f.data)
            fp.close()
            self.newfiles.append(f.name)

    def processREQUEST(self, msg):
        """ Get/Gather FileList or File """
        if msg.type == 'FileList':
            return self.getFileList(False)
        elif msg.type == 'File':
            return self.getFileData(msg.filename)

    def getUpdateMessage(self):
        """ Send update FileList if something changed """
        if len(self.newfiles) <= 0:
            return None
        self.newfiles = []
        return self.getFileList(True)

    def getFileList(self, adddata):
        data = messages.Files()
        for f in sorted(os.listdir(self.storagedir)):
            file = data.files.add()
            file.name = f
            file.modtime = os.path.getmtime(os.path.join(self.storagedir, file.name))
            if adddata:
                try:
                    fp = open(os.path.join(self.storagedir, file.name), 'rb')
                    file.data = fp.read()
                    fp.close()
                except IOError as error:
                    logging.warning("Failed open/read %s: %s" % (f, error))
        return data.SerializeToString()

    def getFileData(self, name):
        try:
            fp = open(os.path.join(self.storagedir, name), 'rb')
            data = messages.Files()
            file = data.files.add()
            file.name = name
            file.modtime = os.path.getmtime(os.path.join(self.storagedir, name))
            file.data = fp.read()
            fp.close()
        except IOError as error:
            logging.warning("Failed open/read %s: %s" % (name, error))
            return None
        return data.SerializeToString()
'''


@dataclass
class Cluster:
    """A running one. The batch host sees the server's gather directory as web1's, and both share the tree."""

    top: Path
    server: Apache

    @property
    def url(self) -> str:
        return f"{self.server.url}/cgi-bin/"

    def settings(self, name: str) -> Path:
        return self.top / name / "etc/infocluster.toml"

    def node(self, name: str, more: str = "") -> None:
        """Make a node: its settings, its key there and on the server."""
        etc = self.top / name / "etc"
        for directory in (etc / "secrets/nodes", self.top / "infocluster/etc/secrets/nodes"):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(KEY + name.encode() + b"\n")
        (etc / "infocluster.toml").write_text(
            f'[aggregate]\nnode = "{name}"\nreport_url = "{self.url}report.cgi"\n{more}'
        )
        subprocess.run(["chown", "-R", f"root:{USER}", str(self.top / "infocluster/etc/secrets")], check=True)

    def run(self, program: str, *arguments: str, conf: str = "infocluster") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "batch" / program), *arguments]
        return subprocess.run(
            command, env=self.environment(conf), capture_output=True, text=True, timeout=120, check=False
        )

    def environment(self, conf: str = "infocluster") -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "INFOCLUSTER_CONF": str(self.settings(conf)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, str(ROOT / "batch/controller"), "-serve"]
        with subprocess.Popen(command, env=self.environment(), stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.terminate()
                self.told = process.communicate(timeout=30)[1]

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request(
                "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
            )
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def ask(self, query: str) -> Any:
        status, _, body = self.get(f"/cgi-bin/request.cgi?{query}")
        assert status == 200, (status, body)
        return json.loads(body)

    def report(self, message: wire.Message, **changed: str) -> tuple[int, str]:
        """Hand in a message as a node does; `changed` overrides a header."""
        body = wire.content(message)
        date = int(time.time())
        key = KEY + message.src.encode()
        headers = {
            "X-Seer-Node": message.src,
            "X-Seer-Id": message.id,
            "X-Seer-Date": str(date),
            "X-Seer-Signature": signing.sign(key, "POST", "/cgi-bin/report.cgi", message.src, message.id, date, body),
            **{"X-Seer-" + name.title(): value for name, value in changed.items()},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request("POST", "/cgi-bin/report.cgi", body, headers)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        finally:
            connection.close()


@contextmanager
def cluster(top: Path, more: str = "", has_socket: bool = True) -> Iterator[Cluster]:
    """Install, configure and start one below an empty directory that others can enter."""
    prefix = top / "infocluster"
    for path in ("www/world/nodes", "wwwdev/world/nodes", "gather/web1", "modules"):
        (top / path).mkdir(parents=True)
    gather = top / "own"
    gather.mkdir()
    (top / "gather/web1/www").symlink_to(gather)
    (top / "wwwdev/world/nodes/.wwwinstrc").write_text("*\n")
    for directory, _, _ in os.walk(top):
        os.chmod(directory, 0o755)
    (prefix / "etc").mkdir(parents=True)
    socket = f'socket = "{top}/controller.sock"' if has_socket else ""
    (prefix / "etc/infocluster.toml").write_text(
        f'[site]\nproduction_dir = "{top}/www"\ndevelopment_dirs = ["{top}/wwwdev"]\nstate_dir = "{top}/state"\n'
        f'[gather]\ngather_dir = "{top}/gather"\n[aggregate]\nmodule_dirs = ["{top}/modules"]\n'
        f'files_dir = "{top}/files"\nlook_s = 0.1\nupdate_period_s = 0.5\n{socket}\n{more}\n'
    )
    command = [sys.executable, "-m", "infocluster.apps.installation", "--prefix", str(prefix), "--extras", ""]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "lib")}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    (prefix / "etc/secrets").chmod(0o750)
    shutil.chown(prefix / "etc/secrets", "root", USER)
    with apache(prefix, top / "www/world", gather, top / "run") as server:
        yield Cluster(top, server)


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
