# SPDX-License-Identifier: Apache-2.0
"""Files that nodes hand in: FileProcessor keeps them, FileCollector sends those that changed.

Shape: below ``aggregate.files_dir`` a directory a node, in it the node's files under their own names, each whole. A
    name is one component: what walks, hides or steers is refused, and the whole report with it. A report
    that came before the one by which a file is known changes nothing of it, whenever it is delivered.
"""

import glob
import math
import os
import stat
import time
from collections.abc import Iterable
from typing import Any

from infocluster import files, names, secrets
from infocluster.aggregate import answers, messages_pb2
from infocluster.aggregate.base import Aggregator, Collector
from infocluster.aggregate.wire import Message
from infocluster.errors import BadInputError

# Made at its import, so that no type checker knows what is in it.
messages: Any = messages_pb2

UPDATE_DATA_BYTES = 16384
PAGE_ROWS = 200
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class FileProcessor(Aggregator):
    """Keeps files by node and name, lists them, and tells which are new."""

    reporttype = "FileOutput"
    updatetype = "FileList"
    requesttypes = "File", "FileList"

    def __init__(self) -> None:
        own = self.settings["aggregate"]
        self.storagedir: str = own["files_dir"]
        self.file_limit_bytes: int = own["file_limit_bytes"]
        self.files_limit: int = own["files_limit"]
        files.make_directories(self.storagedir, 0o750)
        # By node: by name [modtime, size, digest, when the report came]; a database may be of before the last two.
        self.known: dict[str, dict[str, list[Any]]] = {
            node: {name: [*one, "", 0.0][:4] for name, one in self.restoreData({}, node).items()}
            for node in self.savedParts()
        }
        self.newfiles: list[list[str]] = self.restoreData([])
        self._changed: set[str] = set()

    def processReport(self, msg: Message) -> None:
        """Keep the files of a report, all of them or none.

        Raises:
            BadInputError: one has a name that is none, is too large, or there would be too many.
        """
        node = names.name(msg.src, "the name of a node")
        told = answers.parsed("Files", msg.data)
        known = self.known.get(node, {})
        came = msg.came or time.time()
        wanted = {plain(file.name): file for file in told.files}
        for name, file in wanted.items():
            if len(file.data) > self.file_limit_bytes:
                raise BadInputError(
                    f"cannot keep {names.shown(name)}: {len(file.data)} bytes, at most {self.file_limit_bytes}"
                )
        if len(known.keys() | wanted.keys()) > self.files_limit:
            raise BadInputError(f"cannot keep the files of {node}: over {self.files_limit}")
        files.make_directories(f"{self.storagedir}/{node}", 0o750)
        for name, file in wanted.items():
            if name in known and came < known[name][3]:
                continue  # it was set aside, or its server was out of reach: newer is known
            path = f"{self.storagedir}/{node}/{name}"
            when = file.modtime if math.isfinite(file.modtime) and 0 < file.modtime < 1e11 else time.time()
            files.replace(path, file.data, 0o640)
            os.utime(path, (when, when))
            known[name] = [when, len(file.data), secrets.sha256(file.data).hex()[:16], came]
            if [node, name] not in self.newfiles:
                self.newfiles.append([node, name])
        self.known[node] = known
        self._changed.add(node)

    def keep(self) -> None:
        """Keep what changed."""
        for node in self._changed:
            self.saveData(self.known[node], node)
        if self._changed:
            self.saveData(self.newfiles)
        self._changed.clear()

    def processREQUEST(self, msg: Message) -> bytes | None:
        """Return the list of all files, or one file with what it holds."""
        if msg.type == "FileList":
            return self.getFileList(
                [[node, name] for node in sorted(self.known) for name in sorted(self.known[node])]
            )
        if msg.type == "File":
            return self.getFileData(msg.fields.get("node", ""), msg.fields.get("name") or msg.filename)
        return None

    def getUpdateMessage(self) -> bytes | None:
        """Return the files that came since it was asked last, small ones with what they hold."""
        if not self.newfiles:
            return None
        told = self.getFileList(self.newfiles, UPDATE_DATA_BYTES)
        self.newfiles = []
        self.saveData(self.newfiles)
        return told

    def getFileList(self, wanted: list[list[str]], data_bytes: int = 0) -> bytes:
        """Return the list of these files, as (node, name)."""
        data = messages.Files()
        for node, name in wanted:
            when, size, *_ = self.known[node][name]
            file = data.files.add(name=name, node=node, modtime=when, size=int(size))
            if 0 < size <= data_bytes:
                file.data = self._read(node, name) or b""
        return bytes(data.SerializeToString())

    def getFileData(self, node: str, name: str) -> bytes | None:
        """Return one file, None where there is none; the node may be left out where one alone has such a file."""
        having = [node] if node else [other for other, known in self.known.items() if name in known]
        if len(having) != 1 or name not in self.known.get(having[0], {}):
            return None
        content = self._read(having[0], name)
        if content is None:
            return None
        when = self.known[having[0]][name][0]
        data = messages.Files()
        data.files.add(name=name, node=having[0], modtime=when, size=len(content), data=content)
        return bytes(data.SerializeToString())

    def published(self) -> Iterable[dict[str, str]]:
        """Return the list, and each file: with what tells that it is still the same."""
        yield {"type": "FileList"}
        for node, known in self.known.items():
            for name, (when, _, digest, _) in known.items():
                yield {"type": "File", "node": node, "name": name, "": f"{when} {digest}"}

    def sections(self, now: float) -> Iterable[dict[str, Any]]:
        """Return the table of files, the newest first."""
        every = sorted(
            ((one[0], node, name, one[1]) for node, known in self.known.items() for name, one in known.items()),
            reverse=True,
        )
        rows = [
            [(name, _address(node, name)), node, f"{size:,.0f}", moment(when)] for when, node, name, size in every
        ]
        more = f"{len(rows) - PAGE_ROWS} older ones are not shown." if len(rows) > PAGE_ROWS else ""
        head = ["Name", "Node", "Bytes", "Of"]
        yield {"id": "files", "title": "Files", "head": head, "rows": rows[:PAGE_ROWS], "text": more}

    def metrics(self, now: float) -> Iterable[tuple[str, str, dict[str, str], float]]:
        """Return how many files each node has."""
        for node, known in sorted(self.known.items()):
            yield "node_files", "Files that a node handed in.", {"node": node}, len(known)

    def _read(self, node: str, name: str) -> bytes | None:
        try:
            fd = os.open(f"{self.storagedir}/{node}/{name}", _FLAGS)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(self.file_limit_bytes) if stat.S_ISREG(os.fstat(fd).st_mode) else None


class FileCollector(Collector):
    """Hands in the files that ``aggregate.files`` names, when they changed.

    A file goes by its name without its directory: of several that share one, the first is handed in. The others, what
    is too large, and what has a name that no aggregator takes, are told when they changed.
    """

    def __init__(self) -> None:
        # By path [mtime and ctime in ns, size], and why where it was not handed in.
        self.told: dict[str, list[Any]] = self.restoreData({})
        self.next: dict[str, list[Any]] = {}
        self.there: set[str] = set()

    def getReport(self, now: float) -> Any:
        """Return a report for each file that changed since it was told last."""
        found = []
        self.next, self.there = {}, set()
        paths: dict[str, str] = {}
        for pattern in self.settings["aggregate"]["files"]:
            for path in sorted(glob.glob(pattern)):
                report = self._changed(path, paths) if path not in paths.values() else None
                if report is not None:
                    found.append(("FileOutput", report))
        return found

    def delivered(self, report: Any) -> None:
        """Remember what was told, of files that are still there."""
        self.told = {path: mark for path, mark in (self.told | self.next).items() if path in self.there}
        self.saveData(self.told)

    def _changed(self, path: str, paths: dict[str, str]) -> bytes | None:
        """Return the report of a file, None where there is none to make; note its path by its name."""
        try:
            opened = open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115
        except OSError:  # a directory, or not ours to read
            return None
        with opened as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            name = os.path.basename(path)
            first = paths.setdefault(name, path)
            limit = self.settings["aggregate"]["file_limit_bytes"]
            why = f"it has {status.st_size} bytes, at most {limit}" if status.st_size > limit else ""
            why = f"{names.printable(first)} goes by the same name" if first != path else why
            why = why if names.is_component(name) else "its name is not plain"
            mark = [*_mark(status), why] if why else _mark(status)
            # What is kept is text: a name that is not UTF-8 would not be.
            key = path.encode("utf-8", "backslashreplace").decode()
            self.there.add(key)
            if self.told.get(key) == mark:
                return None
            if why:
                self.fault(f"cannot hand in {names.printable(path)}: {why}")
                self.told[key] = mark
                self.saveData(self.told)
                return None
            content = file.read(limit)
            if _mark(os.fstat(file.fileno())) != mark or len(content) != status.st_size:
                return None  # it is being written: the next run finds it
        self.next[key] = mark
        data = messages.Files()
        data.files.add(name=name, modtime=status.st_mtime, data=content)
        return bytes(data.SerializeToString())


def _mark(status: os.stat_result) -> list[int]:
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size]


def plain(name: str) -> str:
    """Return a name that is one component of a path.

    Raises:
        BadInputError: it is anything else: it walks, is hidden, has control characters, is over 255 bytes.
    """
    if not names.is_component(name):
        raise BadInputError(f"cannot keep a file: {names.shown(name)} is no plain name")
    return name


def moment(when: float) -> str:
    """Return a time as the page shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))


def _address(node: str, name: str) -> str:
    from urllib.parse import urlencode

    return "?" + urlencode({"type": "File", "node": node, "name": name, "format": "raw"})
