# SPDX-License-Identifier: Apache-2.0
"""What request.cgi and the controller say to each other: the document of updates, and the Unix socket.

Shape: updates.json is ``{"format": "infocluster updates 1", "epoch": "5f0c2a9be7d1", "revision": 12, "oldest": 3,
    "made": 1795384800.5, "nodes": {"node1": [1795384799.0, 180.0]}, "updates": [{"revision": 12, "type": "FileList",
    "time": 1795384800.1, "data": {...}, "pb": "CgUKA..."}]}``: a node's last report and its period; ``pb`` is a
    message Update of messages.proto in base64, left out where the update has no such form.
    What is answered to ``?updates&since=REV`` is the same with the newer updates alone, without ``pb``, and with
    ``"reset": true`` where some that the client has not seen are no longer kept, or the epoch is another one.

    On the socket a request is one message, ``SEER/1.0 GET`` with a header for each name of the query; its Type is
    what is asked for, ``Updates`` for updates. The answer is a line of JSON, ``{"status": 200, "json": 17,
    "pb": -1}``, and behind it so many bytes of JSON and of protobuf (-1: none).

Source: Protocol Buffers encoding, "last one wins" and the concatenation of repeated fields; unix(7).
"""

import json
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from infocluster import secrets
from infocluster.aggregate import wire
from infocluster.errors import ConfigError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:  # a web server has nothing of what the store needs
    from infocluster.aggregate.store import Node, Update

FORMAT = "infocluster updates 1"
UPDATES = "Updates"
REQUEST_LIMIT_BYTES = 8192
READ_S = 1.0
WAITING = 64
# Those who wait are answered for so long at least, also where there is no time to wait for others.
ANSWERS_S = 0.2

Asked = Callable[[dict[str, str]], "tuple[int, bytes, bytes | None]"]


def document(epoch: str, span: tuple[int, int], nodes: "list[Node]", now: float) -> dict[str, Any]:
    """Return the document of updates, without any yet.

    Args:
        epoch: of the controller's database.
        span: the oldest and the newest revision that it has.
        nodes: all nodes.
        now: Unix time, s.
    """
    return {
        "format": FORMAT,
        "epoch": epoch,
        "revision": span[1],
        "oldest": span[0],
        "made": round(now, 3),
        "nodes": {node.name: [round(node.last, 3), node.period] for node in nodes},
        "updates": [],
    }


def update(one: "Update") -> dict[str, Any]:
    """Return an update as the document has it."""
    found = {"revision": one.revision, "type": one.type, "time": one.time, "data": json.loads(one.json)}
    if one.pb is not None:
        import base64

        from infocluster.aggregate import messages_pb2

        messages: Any = messages_pb2
        message = messages.Update(revision=one.revision, type=one.type, time=one.time, data=one.pb)
        found["pb"] = base64.b64encode(message.SerializeToString()).decode("ascii")
    return found


def place(whole: dict[str, Any], since: str, epoch: str) -> tuple[int, bool]:
    """Return the last revision that a client has, 0 for one that begins anew, and whether it has to.

    Args:
        whole: the document.
        since: what the client gives; what is no number is 0.
        epoch: the epoch that it was of, "" where the client does not say.
    """
    last = int(since) if since.isascii() and since.isdigit() and len(since) < 19 else 0
    is_other = bool(epoch) and epoch != whole["epoch"]
    is_reset = is_other or last > whole["revision"] or (whole["oldest"] > 0 and last + 1 < whole["oldest"])
    return (0, True) if is_reset else (last, False)


def updates(
    whole: dict[str, Any], since: str, epoch: str = "", wants_protobuf: bool = True
) -> tuple[bytes, bytes | None]:
    """Return the updates behind a revision, as JSON and, where that is wanted, as protobuf (a message Updates).

    Args:
        whole: the document, with these updates at least.
        since: the last revision that the client has.
        epoch: the epoch that it was of.
        wants_protobuf: whether the second form is wanted.
    """
    last, is_reset = place(whole, since, epoch)
    newer = [one for one in whole["updates"] if one["revision"] > last]
    told = {name: value for name, value in whole.items() if name not in ("updates", "format")}
    told["reset"] = is_reset
    told["updates"] = [{name: value for name, value in one.items() if name != "pb"} for one in newer]
    text = json.dumps(told).encode("ascii")
    if not wants_protobuf:
        return text, None
    import base64

    head = _field(1, whole["revision"]) + _bytes(2, whole["epoch"].encode()) + _field(3, whole["oldest"])
    head += _field(4, int(is_reset))
    parts = [_bytes(6, base64.b64decode(one["pb"])) for one in newer if "pb" in one]
    return text, head + b"".join(parts)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def etag(content: bytes) -> str:
    """Return the entity tag of an answer."""
    return f'"{secrets.sha256(content).hex()[:24]}"'


def ask(path: str, query: dict[str, str], limit_s: float) -> "tuple[int, bytes, bytes | None] | None":
    """Return status, JSON and protobuf of the controller's answer, or None where it gives none in time.

    Args:
        path: of the socket.
        query: names and values; ``type`` is what is asked for.
        limit_s: seconds to wait.
    """
    fields = {name: value for name, value in query.items() if name != "type"}
    try:
        message = wire.content(wire.Message("GET", "x", "cgi", query["type"], fields=fields))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(limit_s)
            end = time.monotonic() + limit_s
            connection.connect(path)
            connection.sendall(message)
            text = bytearray()
            while chunk := connection.recv(1 << 16):
                text += chunk
                connection.settimeout(max(0.001, end - time.monotonic()))
        head, _, rest = bytes(text).partition(b"\n")
        told = json.loads(head)
        sizes = told["json"], max(told["pb"], 0)
        if len(rest) != sum(sizes):
            return None
        return told["status"], rest[: sizes[0]], None if told["pb"] < 0 else rest[sizes[0] :]
    except (OSError, ValueError, KeyError, TypeError, wire.BadMessageError):
        return None


class Listener:
    """The socket that requests come to; without a path, only the passing of time.

    Args:
        path: of the socket; its directory decides who may ask.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        if not path:
            return
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            # What a controller that was killed has left: another one cannot run, it holds the lock of this program.
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)
            self._socket.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 - whoever may enter its directory may ask what the page shows
            self._socket.listen(WAITING)
        except OSError as error:
            raise ConfigError(f"cannot listen at {path}: {reason(error)}") from error

    def serve(self, wait_s: float, asked: Asked) -> None:
        """Answer what comes within so many seconds; who comes later waits for the next call."""
        if self._socket is None:
            time.sleep(wait_s)
            return
        now = time.monotonic()
        end, last = now + wait_s, now + max(wait_s, ANSWERS_S)
        while now < last:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, end - now))
            if not ready:
                return
            try:
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(READ_S)
                    self._answer(connection, asked)
            except OSError:  # it left, or was too slow: it answers from what was published
                pass
            now = time.monotonic()

    def _answer(self, connection: socket.socket, asked: Asked) -> None:
        text = b""
        end = time.monotonic() + READ_S
        while b"\n\n" not in text and len(text) <= REQUEST_LIMIT_BYTES and time.monotonic() < end:
            chunk = connection.recv(REQUEST_LIMIT_BYTES)
            if not chunk:
                return
            text += chunk
        try:
            message = wire.parse(text, 0)
            query = {**message.fields, "type": message.type}
            if message.kind != "GET":
                raise wire.BadMessageError("cannot answer a message that is no GET")
        except wire.BadMessageError as error:
            status, found, pb = 400, json.dumps({"error": str(error)}).encode("ascii"), None
        else:
            status, found, pb = asked(query)
        head = json.dumps({"status": status, "json": len(found), "pb": -1 if pb is None else len(pb)})
        connection.sendall(head.encode("ascii") + b"\n" + found + (pb or b""))

    def close(self) -> None:
        """Close the socket and remove it."""
        if self._socket is not None:
            self._socket.close()
            with suppress(FileNotFoundError):
                os.unlink(self._path)
