# SPDX-License-Identifier: Apache-2.0
"""Checks of a host with the others: what is gathered and read, what is pushed where, who counts, who is reached."""

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from infocluster import files, processes
from infocluster.apps import accounts
from infocluster.apps.accounts import User
from infocluster.apps.checks import Fault, NotCheckedError, Place, by_server_or_all, only, quoted
from infocluster.config import Settings
from infocluster.errors import InfoclusterError
from infocluster.gather import collect, drop

APP = "check-site"
CLOCK_LIMIT_S = 300.0
FILE_CLOCK_LIMIT_S = 5.0
TAIL_BYTES = 1 << 17
if TYPE_CHECKING:
    from infocluster.push.servers import Server
# Programs and Debian packages by what a server's transport needs.
TRANSPORT_PROGRAMS = {
    "ssh": (("rsync", "rsync"), ("ssh", "openssh-client")),
    "daemon": (("rsync", "rsync"),),
    "rdist": (("rdist", "rdist"), ("ssh", "openssh-client")),
}


def _all_servers(place: Place) -> "list[Server]":
    from infocluster.push.servers import of_kind  # its node sets need what only the batch host has

    kinds = dict.fromkeys(section["kind"] for section in place.settings["servers"])
    return [server for kind in kinds for server in of_kind(place.settings, kind)]


def destinations(place: Place) -> Iterator[Fault]:
    """Check the servers that are directories of this host: there, and the file owner's to write."""
    only(place.is_batch, "batch host")
    local = [server for server in _all_servers(place) if server.transport == "local"]
    if not local:
        raise NotCheckedError("no server is a directory of this host")
    owner = place.owner()
    for server in local:
        directory = server.destination
        try:
            status = os.stat(directory)
        except FileNotFoundError:
            yield Fault(
                f"{directory}, the destination of {server.name}, is missing",
                f"install -d -o {owner.name} -m 0755 {quoted(directory)}",
            )
            continue
        if not accounts.may_write(status, owner):
            yield Fault(
                f"{directory}, the destination of {server.name}, is not for {owner.name} to write",
                f"chown -R {owner.name} {quoted(directory)}",
            )
        yield from by_server_or_all(place, directory, status)


def reach(place: Place) -> Iterator[Fault]:
    """Check that the batch host's owner gets to every server and push host, and may write the tree there."""
    only(place.is_batch, "batch host")
    from concurrent.futures import ThreadPoolExecutor

    from infocluster.push import shares

    far = [server for server in _all_servers(place) if server.transport != "local"]
    far += shares.push_hosts(place.settings)
    if not far:
        raise NotCheckedError("every server is a directory of this host")
    owner = place.owner()
    if os.getuid() not in (0, owner.uid):
        raise NotCheckedError(f"only root and {owner.name} can tell")
    with ThreadPoolExecutor(min(len(far), place.settings["push"]["parallel"])) as pool:
        answers = pool.map(lambda server: _reached(server, place.settings, owner), far)
        for server, fault in zip(far, answers, strict=True):
            if fault:
                target = f"{server.user}@{server.name}" if server.user else server.name
                way = ["ssh", target] if server.transport != "daemon" else ["rsync", _in_module(server)]
                mend = f"runuser -u {quoted(owner.name)} -- {way[0]} {quoted(way[1])}"
                yield Fault(f"{server.name}: {fault}", mend)


def _reached(server: "Server", settings_now: Settings, owner: User) -> str:
    """Return what keeps the owner from pushing to a server, or "": asked of its transport, in the owner's place."""
    from infocluster.push import handover, shares

    push = settings_now["push"]
    as_owner = [] if os.getuid() == owner.uid else ["/sbin/runuser", "-u", owner.name, "--"]
    is_push_host = server.kind == shares.KIND
    if server.transport == "daemon":
        # Asked to write nothing: it refuses where it would refuse a file.
        limit = f"--contimeout={max(1, round(push['connect_timeout_s']))}"
        words = [push["rsync"], "--dry-run", "--files-from=/dev/null", limit, "--no-motd", "--", "/"]
        words.append(_in_module(server))
    else:
        words = [push["ssh"], "-oBatchMode=yes", f"-oConnectTimeout={int(push['connect_timeout_s'])}"]
        words += ["-F", push["ssh_config"]] if push["ssh_config"] else []
        words += ["-l", server.user] if server.user else []
        words += ["-p", str(server.port)] if server.port else []
        program = "rdistd" if server.transport == "rdist" else "rsync"
        directory = quoted(server.destination)
        test = f"test -d {directory} && test -w {directory} && command -v {program} >/dev/null"
        # A relay says who it is before it finds that nobody is there.
        test += f" && {{ {shares.relay_command(settings_now)} </dev/null; true; }}" if is_push_host else ""
        words += ["--", server.name, test]
    try:
        outcome = processes.run([*as_owner, *words], push["connect_timeout_s"] + 20)
        said = outcome.errors.decode("utf-8", "replace").strip().splitlines()
        if is_push_host and outcome.output:
            handover.check_version(handover.read(outcome.output.partition(b"\n")[0]))
        if outcome.status == 0 and (outcome.output or not is_push_host):
            return ""
    except InfoclusterError as error:
        return str(error)
    if server.transport == "daemon":
        return said[0] if said else f"rsync ended with status {outcome.status}"
    needed = f"{program}, or wwwpush," if is_push_host else program
    return said[-1] if said else f"{server.destination} is missing or not to be written there, or {needed} is missing"


def _in_module(server: "Server") -> str:
    """Return the destination on an rsync daemon as rsync is told it; it has to be there."""
    from infocluster.push import rsync

    return f"{rsync.address(server)}{server.destination}/."


def programs(place: Place) -> Iterator[Fault]:
    """Check that the programs that the settings call for are there."""
    only(place.is_batch, "batch host")
    wanted: dict[str, str] = {}
    transports = {server.transport for server in _all_servers(place)} | {"ssh" for _ in place.settings["push_hosts"]}
    for transport in transports:
        wanted |= dict(TRANSPORT_PROGRAMS.get(transport, ()))
    for program, package in sorted(wanted.items()):
        if shutil.which(program) is None:
            yield Fault(f"the program {program} is missing", f"apt-get install -y {package}")
    mail = place.settings["mail"]
    if mail["transport"] == "sendmail" and not os.access(mail["sendmail"], os.X_OK):
        yield Fault(f"{mail['sendmail']} is missing or no program", 'set mail.sendmail, or mail.transport = "smtp"')


def gather(place: Place) -> Iterator[Fault]:
    """Check this web server's gather directory, with a record that its user writes and the file owner reads."""
    only(place.is_web, "web server")
    directory = place.gather
    if not directory:
        raise NotCheckedError("SERVER_GATHER is not set and -gather is not given")
    server = place.server()
    right = f"install -d -o {server.name} -g {accounts.group_name(server.gid)} -m 0755 {quoted(directory)}"
    if not directory.startswith("/"):
        yield Fault(f"SERVER_GATHER is {directory!r}, not an absolute path", "set it in etc/apache.conf")
        return
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        yield Fault(f"{directory} is missing", right)
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022 and not mode & 0o1000:
        yield Fault(
            f"{directory} is for others to write: mode {mode:04o}; they could remove what they did not gather",
            f"chmod {'go-w' if status.st_uid == server.uid else '+t'} {quoted(directory)}",
        )
    if not accounts.may_write(status, server):
        yield Fault(f"{directory} is not for {server.name} to write: mode {mode:04o}", right)
        return
    yield from _round(place, server)


def folding(place: Place) -> Iterator[Fault]:
    """Check the cluster that counts for the nights, where there is one: it answers, is ours and sees the files."""
    only(place.is_batch, "batch host")
    if place.settings["gather"]["engine"] == "local":
        return
    from infocluster.apps import agents
    from infocluster.gather import cluster

    try:
        found = cluster.faults(place.settings["gather"], agents.PACKAGES)
    except InfoclusterError as error:
        yield Fault(str(error), 'start scheduler and workers as doc/folding.md says, or set gather.engine = "local"')
        return
    for fault in found:
        yield Fault(
            fault, "install there what is installed here, mount the gather directories, start the worker again"
        )


def _round(place: Place, server: User) -> Iterator[Fault]:
    """Send one record the way of all records, and drop it again."""
    directory = place.gather
    try:
        owner = place.owner()
    except NotCheckedError:
        owner = None
    now = time.time()
    answer = accounts.as_user(server, lambda: _written(place, now))
    if "fault" in answer:
        yield Fault(
            f"{server.name} cannot gather: {answer['fault']}", f"ls -ld {quoted(directory)}; df {quoted(directory)}"
        )
        return
    segment = answer["segment"]
    if abs(answer["mtime_s"] - now) > FILE_CLOCK_LIMIT_S:
        yield Fault(
            f"the disk of {directory} is {answer['mtime_s'] - now:+.0f} s off this host's clock",
            "timedatectl set-ntp true, on the file server and here",
        )
    if owner and owner.uid != server.uid and os.geteuid() == 0:
        seen = accounts.as_user(owner, lambda: _seen(segment, answer["id"]))
        if "fault" in seen:
            yield Fault(
                f"{owner.name} cannot read what was gathered: {seen['fault']}",
                f"chmod a+rx {quoted(directory)} {quoted(f'{directory}/{APP}')}; chmod a+r {quoted(segment)}",
            )
        if seen.get("may_write") and owner.uid != 0:
            yield Fault(
                f"{owner.name} can change what was gathered in {segment}",
                f"chmod -R go-w {quoted(directory)}",
            )
    accounts.as_user(server, lambda: _dropped(segment))


def _written(place: Place, now: float) -> dict[str, Any]:
    record_id = drop.append(APP, {"time": now, "agent": "check-site"}, place.settings["gather"], place.gather)
    day = time.strftime("%Y-%m-%d", time.gmtime(now))
    segment = f"{place.gather}/{APP}/{day}.jsonl"
    return {"id": record_id, "segment": segment, "mtime_s": os.stat(segment).st_mtime}


def _seen(segment: str, record_id: str) -> dict[str, Any]:
    if not any(json.loads(line)["id"] == record_id for line in files.read(segment).splitlines()):
        return {"fault": f"the record is not in {segment}"}
    directory = os.path.dirname(segment)
    return {"may_write": os.access(segment, os.W_OK) or os.access(directory, os.W_OK)}


def _dropped(segment: str) -> dict[str, Any]:
    os.unlink(segment)
    return {}


def servers(place: Place) -> Iterator[Fault]:
    """Check what the batch host sees of each server's gather directory: there, readable, and no clock ahead."""
    only(place.is_batch, "batch host")
    settings_now = place.settings["gather"]
    wanted = [server.name for server in _all_servers(place) if server.kind == "web"]
    if not wanted:
        raise NotCheckedError("no web server is configured")
    owner, now = place.owner(), time.time()
    for server in wanted:
        directory = f"{settings_now['gather_dir']}/{server}/{settings_now['host']}"
        try:
            status = os.stat(directory)
        except FileNotFoundError:
            yield Fault(
                f"{directory} is missing: nothing of {server} will be read",
                f"mount it, or fetch it with {quoted(place.root)}/batch/gather-pull",
            )
            continue
        if not accounts.may(status, owner, 0o5):
            yield Fault(
                f"{directory} is not for {owner.name} to read", f"chmod o+rx {quoted(directory)}, on {server}"
            )
        if accounts.may_write(status, owner) and owner.uid != 0:
            yield Fault(
                f"{directory} is for {owner.name} to write: only the web server's user may own what is gathered",
                f"mount it read-only, or: chown -R {place.settings['site']['server_user']} {quoted(directory)}",
            )
        newest = newest_record(directory)
        if newest is not None and newest > now + CLOCK_LIMIT_S:
            yield Fault(
                f"the clock of {server} is {newest - now:.0f} s ahead of this host's",
                f"timedatectl set-ntp true, on {server}",
            )


def newest_record(directory: str) -> float | None:
    """Return the time of the last record of any application below a gather directory, None where there is none."""
    newest = None
    for app in os.scandir(directory):
        if not app.is_dir(follow_symlinks=False):
            continue
        segments = sorted(
            entry.name
            for entry in os.scandir(app.path)
            if collect.is_segment(entry.name) and entry.is_file(follow_symlinks=False)
        )
        if not segments:
            continue
        with open(f"{app.path}/{segments[-1]}", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        try:
            when = float(json.loads(lines[-1])["time"])
        except (IndexError, KeyError, TypeError, ValueError):
            continue
        newest = when if newest is None else max(newest, when)
    return newest
