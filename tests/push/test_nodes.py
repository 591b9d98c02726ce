# SPDX-License-Identifier: Apache-2.0
"""push.nodes reads and writes the plain cases itself: they are what ClusterShell makes of them."""

import pytest
from ClusterShell.NodeSet import NodeSet, NodeSetException
from hypothesis import example, given
from hypothesis import strategies as st

from infocluster.errors import ConfigError
from infocluster.names import is_name
from infocluster.push import nodes

NO_GROUPS = {"groups": []}
words = st.sampled_from(["", "web", "web-", "a.b", "-", ".example.edu", "0", "1", "007", "x2", "é", "[1-2]"])
numbers = st.one_of(st.integers(0, 120).map(str), st.sampled_from(["01", "009", "10", "", "x"]))


@given(words, numbers, numbers, words)
@example("web", "9", "11", "")
@example("web1", "1", "3", "")
@example("web", "3", "1", "")
@example("", "1", "3", "")
def test_range_is_unfolded_as_by_the_library(before: str, low: str, high: str, after: str) -> None:
    text = f"{before}[{low}-{high}]{after}"
    try:
        expected = list(NodeSet(text))
    except NodeSetException:
        expected = []
    if expected and all(map(is_name, expected)):
        assert nodes.unfolded(text, NO_GROUPS) == expected
    else:
        with pytest.raises(ConfigError):
            nodes.unfolded(text, NO_GROUPS)


hosts = st.builds(
    "{}{}{}".format, st.sampled_from(["web", "web1-", "db"]), numbers, st.sampled_from(["", ".edu", "b2"])
)


@given(st.sets(hosts, min_size=1))
@example({"web1", "web2", "web3", "web5"})
@example({"web8", "web08"})
@example({"web1.edu", "web2"})
@example({"web", "web1"})
def test_names_are_folded_as_by_the_library(several: set[str]) -> None:
    assert nodes.folded(several) == str(NodeSet.fromlist(list(several)))
    assert sorted(nodes.unfolded(nodes.folded(several), NO_GROUPS)) == sorted(several)
