# SPDX-License-Identifier: Apache-2.0
"""node-report: what the collectors see, into the spool, and from there to a web server, in order.

Shape: ``aggregate.spool_dir`` holds ``queue/``, a simple directory queue of messages; ``refused/``, likewise, of
    those that a server will never take; ``kept.msgpack``, what the collectors keep through saveData; ``lock``, held
    by the one run that there is at a time. It is all that a node needs to write, whoever runs this there.

A report leaves the spool when a web server said that it has it. Where one is not taken now, it and all behind it wait
for the next run: a server gets them in the order they were made in.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from infocluster import files, names
from infocluster.aggregate import base, calls, modules, signing, wire
from infocluster.cron.command import Run
from infocluster.errors import ConfigError, InfoclusterError, UnavailableError, reason
from infocluster.locks import lockfile
from infocluster.queue.simple import Simple

REFUSED_LIMIT = 100
# What a server says of a message that it will never take.
NEVER = frozenset({400, 413})
MODE = 0o700

Told = list[tuple[str, bytes]]


def work(run: Run) -> str:
    """Collect, spool, hand in; go on with -follow.

    Raises:
        ConfigError: the node has no key, or there is nowhere to send reports to.
        UnavailableError: the spool cannot be written, or another run is at it.
    """
    own = run.settings["aggregate"]
    node = names.name(own["node"] or os.uname().nodename.partition(".")[0], "the name of this node")
    clock = calls.Clock(own["call_limit_s"])
    if run.arguments["show"]:
        return _shown(run, clock, node)
    key = signing.key(node)
    if key is None:
        raise ConfigError(f"cannot report as {node}: {signing.key_file(node)} is missing")
    if not own["report_url"]:
        raise ConfigError("cannot report: aggregate.report_url is not set")
    spool = _Spool(run.settings)
    lock = lockfile.alone(spool.top + "/lock")
    try:
        collectors = _collectors(run, clock, spool)
        while True:
            began = time.monotonic()
            made = 0 if run.arguments["resend"] else _collect(run, clock, node, spool, collectors)
            sent, left = _hand_in(run, node, key, spool)
            if not run.arguments["follow"]:
                return f"{made} reports made, {sent} handed in, {left} left"
            run.faults.clear()
            time.sleep(max(0.0, own["period_s"] / 3 - (time.monotonic() - began)))
    finally:
        lock.release()


class _Spool:
    """The node's own directory."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.top = settings["aggregate"]["spool_dir"]
        try:
            files.make_directories(os.path.dirname(self.top))
            files.make_directories(self.top, MODE)
            self.kept: dict[str, Any] = self._read()
        except OSError as error:
            raise UnavailableError(f"cannot use the spool {self.top}: {reason(error)}") from error
        self.queue = Simple(self.top + "/queue", umask=0o077, durable=True)
        self.refused = Simple(self.top + "/refused", umask=0o077)

    def _read(self) -> dict[str, Any]:
        try:
            found = msgspec.msgpack.decode(files.read(self.top + "/kept.msgpack"))
        except (FileNotFoundError, msgspec.DecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def save(self, name: str, part: str, data: Any) -> None:
        """Keep what a collector gives."""
        self.kept[f"{name}:{part}"] = data
        files.replace(self.top + "/kept.msgpack", msgspec.msgpack.encode(self.kept), 0o600)

    def restore(self, name: str, part: str, default: Any) -> Any:
        """Return what was kept last."""
        return self.kept.get(f"{name}:{part}", default)

    def parts(self, name: str) -> list[str]:
        """Return the parts that a collector kept."""
        parts = (key.removeprefix(name + ":") for key in self.kept if key.startswith(name + ":"))
        return sorted(part for part in parts if part)


def _collectors(run: Run, clock: calls.Clock, spool: _Spool | None) -> list[base.Collector]:
    own = run.settings["aggregate"]
    loaded = modules.load(own["module_dirs"], own["collectors"], base.Collector, clock)
    for line in loaded.faults:
        run.fault(line)
    found: list[base.Collector] = []
    others: dict[str, base.Module] = {}
    for made in loaded.classes:
        instance = made.__new__(made)
        instance.settings, instance._tell = run.settings, run.fault
        instance._others = others
        if spool:
            instance._save, instance._restore, instance._parts = spool.save, spool.restore, spool.parts
        try:
            clock.call(instance.__init__)  # type: ignore[misc] # a new instance's own
        except calls.CallError as error:
            run.fault(f"cannot make {made.__name__}: {error}")
            continue
        others[made.__name__] = instance
        if isinstance(instance, base.Collector):
            found.append(instance)
    return found


def _reports(run: Run, clock: calls.Clock, collectors: list[base.Collector]) -> Iterator[tuple[base.Collector, Told]]:
    """Yield what each collector has to tell; one that raises or hangs is told, and the others are asked."""
    for one in collectors:
        try:
            yield one, clock.call(_told, one)
        except calls.CallError as error:
            run.fault(f"cannot collect by {type(one).__name__}: {error}")


def _told(one: base.Collector) -> Told:
    pairs = base.pairs(one.getReport(time.time()))
    return [(kind, what if isinstance(what, bytes) else bytes(what.SerializeToString())) for kind, what in pairs]


def _collect(run: Run, clock: calls.Clock, node: str, spool: _Spool, collectors: list[base.Collector]) -> int:
    """Put what the collectors see into the spool and return how many reports that is."""
    made = 0
    # All are asked first: what the spool holds is told by one of them, and is not to count what this run puts there.
    for one, told in list(_reports(run, clock, collectors)):
        added: Told = []
        for kind, data in told:
            try:
                content = wire.content(_message(run, node, kind, data))
            except wire.BadMessageError as error:
                run.fault(f"cannot report what {type(one).__name__} collected: {error}")
                continue
            spool.queue.add(content)
            added.append((kind, data))
        made += len(added)
        try:
            if added:
                clock.call(one.delivered, added)
        except calls.CallError as error:
            run.fault(f"cannot tell {type(one).__name__} that it was heard: {error}")
    return made


def _message(run: Run, node: str, kind: str, data: bytes) -> wire.Message:
    now = time.time()
    fields = {"date": str(int(now)), "period": str(run.settings["aggregate"]["period_s"])}
    return wire.Message("REPORT", f"{int(now * 1e6):014x}-{os.urandom(4).hex()}", node, kind, data, fields)


def _shown(run: Run, clock: calls.Clock, node: str) -> str:
    count = 0
    for one, told in _reports(run, clock, _collectors(run, clock, None)):
        for kind, data in told:
            run.say(f"{type(one).__name__}: {kind}, {len(data)} bytes")
            count += 1
    return f"{count} reports would be made by {node}"


def _hand_in(run: Run, node: str, key: bytes, spool: _Spool) -> tuple[int, int]:
    """Send what is in the spool, in order, until one is not taken; return how many were, and how many are left."""
    own = run.settings["aggregate"]
    over = spool.queue.count() - own["spool_limit"]
    sent = 0
    sender = _Sender(own["report_url"], own["send_timeout_s"])
    try:
        for name in spool.queue:
            # Not locked: no other run is at it, and the lock of one that was killed would let the next overtake.
            path = f"{spool.queue.path}/{name}"
            try:
                content = files.read(path)
            except OSError as error:
                run.fault(f"cannot read {path}: {reason(error)}")
                break
            if over > 0:
                over -= 1
                run.fault(f"cannot keep report {name}: over {own['spool_limit']} wait, the oldest goes")
            else:
                try:
                    sent += _send(run, sender, node, key, content, spool, name)
                except UnavailableError as error:
                    run.fault(str(error))
                    break
            os.unlink(path)
    finally:
        sender.close()
    spool.queue.purge()
    return sent, spool.queue.count()


def _send(run: Run, sender: "_Sender", node: str, key: bytes, content: bytes, spool: _Spool, name: str) -> bool:
    """Send one report, or set it aside; return whether it was taken.

    Raises:
        UnavailableError: it was not taken now.
    """
    try:
        message_id = wire.parse(content).id
    except InfoclusterError as error:
        run.fault(f"cannot send report {name}: {error}")
        spool.refused.add(content)
        return False
    date = int(time.time())
    headers = {
        "Content-Type": "application/x-seer",
        "X-Seer-Node": node,
        "X-Seer-Id": message_id,
        "X-Seer-Date": str(date),
        "X-Seer-Signature": signing.sign(key, "POST", sender.path, node, message_id, date, content),
    }
    status, said = sender.post(content, headers)
    if status == 200 and said.split(" ")[0] in ("stored", "duplicate") and said.rstrip().endswith(" " + message_id):
        return True
    line = f"cannot hand in report {message_id}: {sender.url} answers {status} {said.strip()[:200]}"
    if status in NEVER:
        run.fault(line + "; it is set aside")
        spool.refused.add(content)
        for number, old in enumerate(reversed(list(spool.refused))):
            if number >= REFUSED_LIMIT and spool.refused.lock(old):
                spool.refused.remove(old)
        return False
    raise UnavailableError(line)


class _Sender:
    """One connection to a web server, opened anew where it was lost."""

    def __init__(self, url: str, timeout_s: float) -> None:
        from urllib.parse import urlsplit

        self.url = url
        self._timeout_s = timeout_s
        parts = urlsplit(url)
        self.path = parts.path or "/"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"cannot report to {names.shown(url)}: expected http:// or https://")
        self._is_secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._connection: Any = None

    def post(self, content: bytes, headers: dict[str, str]) -> tuple[int, str]:
        """Send a body and return the status and the text of the answer.

        Raises:
            UnavailableError: no answer came.
        """
        import http.client

        for is_last in (False, True):
            was_open = self._connection is not None
            if not was_open:
                kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
                self._connection = kind(self._host, self._port, timeout=self._timeout_s)
            try:
                self._connection.request("POST", self.path, content, headers)
                reply = self._connection.getresponse()
                return reply.status, reply.read(4096).decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A server closes a connection that was idle: that is no answer, and no fault.
                if is_last or not was_open:
                    why = reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
                    raise UnavailableError(f"cannot reach {self.url}: {why}") from error
        raise UnavailableError(f"cannot reach {self.url}")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
