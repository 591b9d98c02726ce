# SPDX-License-Identifier: Apache-2.0
"""Node sets and groups become hosts, each once, and none whose name could be anything but a host's."""

import pytest

from infocluster.errors import ConfigError, UsageError
from infocluster.push import nodes, servers


def settings(*sections: dict[str, object], groups: dict[str, str] | None = None) -> dict[str, object]:
    usual = {"kind": "web", "transport": "ssh", "destination": "/srv/%h", "user": "", "port": 0, "skeleton": ""}
    return {
        "site": {"production_dir": "/www"},
        "servers": [usual | section for section in sections],
        "groups": [{"name": name, "nodes": nodes} for name, nodes in (groups or {}).items()],
    }


def test_node_sets_and_groups_are_unfolded_in_order() -> None:
    conf = settings(
        {"name": "@front!web2"}, {"name": "a[08-10].example.edu", "port": 2222}, groups={"front": "web[1-3]"}
    )
    found = servers.of_kind(conf, "web")
    assert [server.name for server in found] == [
        "web1",
        "web3",
        "a08.example.edu",
        "a09.example.edu",
        "a10.example.edu",
    ]
    assert found[0].destination == "/srv/web1"
    assert found[-1].port == 2222
    assert nodes.folded(server.name for server in found[2:]) == "a[08-10].example.edu"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("web[1-", "node set"),
        ("@nobody", "no host"),
        ("-oProxyCommand=x", "not a host name"),
        ("web 1", "not a host name"),
        ("web1;reboot", "not a host name"),
        ("a/b", "not a host name"),
        ("web1,web[1-2]x,web1", ""),
    ],
)
def test_what_is_no_set_of_hosts_is_refused(name: str, said: str) -> None:
    if not said:
        assert len(servers.of_kind(settings({"name": name}), "web")) == 3
        return
    with pytest.raises(ConfigError, match=said):
        servers.of_kind(settings({"name": name}), "web")


def test_host_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"web2.*twice"):
        servers.of_kind(settings({"name": "web[1-3]"}, {"name": "web2"}), "web")


def test_servers_are_chosen_by_a_node_set_of_those_there_are() -> None:
    conf = settings({"name": "web[1-9]"}, groups={"some": "web[2-3]"})
    every = servers.of_kind(conf, "web")
    assert [server.name for server in servers.chosen(every, "@some,web9", conf)] == ["web2", "web3", "web9"]
    with pytest.raises(UsageError, match="web10"):
        servers.chosen(every, "web10", conf)
