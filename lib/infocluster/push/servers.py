# SPDX-License-Identifier: Apache-2.0
"""The servers of a push: the sections [[servers]] with their node sets unfolded, one object a host.

Source: documentation of wwwpush.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

from infocluster import names
from infocluster.config import Settings
from infocluster.errors import ConfigError, UsageError
from infocluster.push import nodes


class Server(NamedTuple):
    """One host that is pushed to.

    Attributes:
        name: its host name, a plain name.
        kind: its family, ``web`` or ``ftp``.
        transport: how files get there.
        destination: the production tree's directory there.
        user: who to be there, "" for the default.
        port: of its ssh or rsync daemon, 0 for the usual one.
        skeleton: name of its skeleton in etc/, "" for none.
    """

    name: str
    kind: str
    transport: str
    destination: str
    user: str = ""
    port: int = 0
    skeleton: str = ""


def of_kind(settings: Settings, kind: str) -> list[Server]:
    """Return the servers of a family, in the order of the settings.

    Raises:
        ConfigError: a node set cannot be read, a group is unknown, a host is given twice, there is no server of
            this family, or destinations of this host overlap each other or the production tree.
    """
    result: dict[str, Server] = {}
    for section in settings["servers"]:
        if section["kind"] != kind:
            continue
        for name in nodes.unfolded(section["name"], settings):
            if name in result:
                raise ConfigError(f"cannot push to {name}: [[servers]] names it twice")
            result[name] = Server(
                name,
                kind,
                section["transport"],
                section["destination"].replace("%h", name),
                section["user"],
                section["port"],
                section["skeleton"],
            )
    if not result:
        raise ConfigError(f'cannot push: the settings have no [[servers]] with kind = "{kind}"')
    _refuse_overlaps(result.values(), settings["site"]["production_dir"])
    return list(result.values())


def chosen(servers: list[Server], wanted: str, settings: Settings) -> list[Server]:
    """Return those servers that a node set names.

    Raises:
        UsageError: it cannot be read, or names a host that is no server.
    """
    try:
        hosts = nodes.unfolded(wanted, settings)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    known = {server.name: server for server in servers}
    for host in hosts:
        if host not in known:
            raise UsageError(f"cannot push to {names.shown(host)}: no such server in the settings")
    return [known[host] for host in hosts]


def _refuse_overlaps(servers: Iterable[Server], production_dir: str) -> None:
    """No destination on this host may be the tree that is pushed, nor another server's."""
    taken = {os.path.realpath(production_dir): "the production tree"}
    for server in servers:
        if server.transport != "local":
            continue
        destination = os.path.realpath(server.destination)
        for other, whose in taken.items():
            if os.path.commonpath([destination, other]) in (destination, other):
                raise ConfigError(f"cannot push to {server.name}: its destination {destination} overlaps {whose}")
        taken[destination] = f"that of {server.name}"
