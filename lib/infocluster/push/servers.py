# SPDX-License-Identifier: Apache-2.0
"""The servers of a push: the sections [[servers]] with their node sets unfolded, one object a host.

Names and groups are written in ClusterShell's notation: ``web[1-40].example.edu``, ``@web``, ``web[1-8]!web3``. A
group is a section [[groups]]; node sets are unfolded here and nowhere else.

Source: ClusterShell, node sets and node groups.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.NodeUtils import GroupResolver, GroupSource

from infocluster import names
from infocluster.config import Settings
from infocluster.errors import ConfigError, UsageError


@dataclass(frozen=True, slots=True)
class Server:
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


class _Groups(GroupSource):  # type: ignore[misc]
    """The sections [[groups]] as a source of node groups."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("settings", {group["name"]: group["nodes"] for group in settings["groups"]})


def of_kind(settings: Settings, kind: str) -> list[Server]:
    """Return the servers of a family, in the order of the settings.

    Raises:
        ConfigError: a node set cannot be read, a group is unknown, a host is given twice, there is no server of
            this family, or destinations of this host overlap each other or the production tree.
    """
    result: dict[str, Server] = {}
    resolver = GroupResolver(_Groups(settings))
    for section in settings["servers"]:
        if section["kind"] != kind:
            continue
        for name in _unfolded(section["name"], resolver):
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


def folded(several: Iterable[str]) -> str:
    """Return server names in one word, such as ``web[1-3]``."""
    return str(NodeSet.fromlist(list(several)))


def chosen(servers: list[Server], wanted: str, settings: Settings) -> list[Server]:
    """Return those servers that a node set names.

    Raises:
        UsageError: it cannot be read, or names a host that is no server.
    """
    try:
        hosts = _unfolded(wanted, GroupResolver(_Groups(settings)))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    known = {server.name: server for server in servers}
    for host in hosts:
        if host not in known:
            raise UsageError(f"cannot push to {names.shown(host)}: no such server in the settings")
    return [known[host] for host in hosts]


def _unfolded(text: str, resolver: GroupResolver) -> list[str]:
    try:
        hosts = list(NodeSet(text, resolver=resolver))
    except NodeSetException as error:
        raise ConfigError(f"cannot read the node set {names.shown(text)}: {error}") from error
    if not hosts:
        raise ConfigError(f"cannot push to {names.shown(text)}: it names no host")
    for host in hosts:
        if not names.is_name(host):
            raise ConfigError(f"cannot push to {names.shown(host)}: not a host name")
    return hosts


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
