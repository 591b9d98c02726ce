# SPDX-License-Identifier: Apache-2.0
"""Node sets: host names in one word, such as ``web[1-40].example.edu``, ``@web``, ``web[1-8]!web3``.

They are ClusterShell's, and are unfolded and folded here and nowhere else. A group is a section [[groups]]. Single
names and one plain range, which is what most settings have, are read and written here: to load ClusterShell takes
longer than to send a page.

Source: ClusterShell, node sets and node groups.
"""

import re
from collections.abc import Iterable, Iterator

from infocluster import names
from infocluster.config import Settings
from infocluster.errors import ConfigError

# Numbers without padding, and with no other digit beside them.
_NUMBER = r"0|[1-9]\d{0,8}"
_RANGE = re.compile(rf"(?P<before>.*\D|)\[(?P<low>{_NUMBER})-(?P<high>{_NUMBER})\](?P<after>\D.*|)", re.ASCII)
_NUMBERED = re.compile(rf"(?P<before>\D*)(?P<number>{_NUMBER})(?P<after>\D*)", re.ASCII)


def unfolded(text: str, settings: Settings) -> list[str]:
    """Return the hosts of a node set, each once, in its order.

    Raises:
        ConfigError: it cannot be read, names an unknown group or no host, or one that is no plain name.
    """
    hosts = _plain(text) or _by_library(text, settings)
    if not hosts:
        raise ConfigError(f"cannot push to {names.shown(text)}: it names no host")
    for host in hosts:
        if not names.is_name(host):
            raise ConfigError(f"cannot push to {names.shown(host)}: not a host name")
    return hosts


def folded(several: Iterable[str]) -> str:
    """Return host names in one word, such as ``web[1-3]``."""
    hosts = set(several)
    plain = _range(hosts)
    if plain is not None:
        return plain
    from ClusterShell.NodeSet import NodeSet

    return str(NodeSet.fromlist(list(hosts)))


def _plain(text: str) -> list[str]:
    """Return the hosts of a name, or of a name with one range such as ``[1-40]``; none of anything else."""
    if names.is_name(text):
        return [text]
    found = _RANGE.fullmatch(text)
    if not found or not names.is_name(f"{found['before']}0{found['after']}"):
        return []
    numbers = range(int(found["low"]), int(found["high"]) + 1)
    return [f"{found['before']}{number}{found['after']}" for number in numbers]


def _by_library(text: str, settings: Settings) -> list[str]:
    from ClusterShell.NodeSet import NodeSet, NodeSetException
    from ClusterShell.NodeUtils import GroupResolver, GroupSource

    groups = {group["name"]: group["nodes"] for group in settings["groups"]}
    try:
        return list(NodeSet(text, resolver=GroupResolver(GroupSource("settings", groups))))
    except NodeSetException as error:
        raise ConfigError(f"cannot read the node set {names.shown(text)}: {error}") from error


def _range(hosts: set[str]) -> str | None:
    """Return one word for a single name, or for names with one plain number in the same place; else None."""
    if len(hosts) == 1:
        return min(hosts)
    found = [_NUMBERED.fullmatch(host) for host in hosts]
    parts = [part for part in found if part]
    around = {(part["before"], part["after"]) for part in parts}
    if len(parts) < len(found) or len(around) > 1:
        return None
    before, after = around.pop()
    return f"{before}[{','.join(_runs(sorted(int(part['number']) for part in parts)))}]{after}"


def _runs(numbers: list[int]) -> Iterator[str]:
    first = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number == last + 1:
            last = number
            continue
        yield f"{first}-{last}" if last > first else str(first)
        first = last = number
