# SPDX-License-Identifier: Apache-2.0
"""A state file holds its state or is none: torn, foreign, older and newer ones never pass for one."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infocluster.errors import UnavailableError
from infocluster.poll import agent, state
from infocluster.poll.state import BadStateError, State


def one(mass: str = "cf-one", target: int = 1795384800, name: str = "running") -> State:
    made = State(mass, target, "5f0c2a9be7d14c33", name, 1795384801.25, 1795384802.5)
    made.progress, made.job, made.why = "42%", "4711", "no reason"
    return made


def fields(found: State) -> dict[str, object]:
    return {name: getattr(found, name) for name in State.__slots__ if name != "polled"}


@given(
    st.text(min_size=1, max_size=64).filter(str.isprintable),
    st.text(max_size=999),
    st.sampled_from(sorted(state.STATES)),
)
def test_what_is_written_is_what_is_read(mass: str, words: str, name: str) -> None:
    made = one(mass, name=name)
    made.why, made.progress = state.clean(words), state.clean(words, 10)
    assert fields(state.parse(state.content(made))) == fields(made)


def test_every_other_length_and_every_flipped_bit_is_no_state() -> None:
    whole = state.content(one(name="complete"))
    for length in range(len(whole)):
        with pytest.raises(BadStateError):
            state.parse(whole[:length])
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            with pytest.raises(BadStateError):
                state.parse(bytes(changed))
    with pytest.raises(BadStateError):
        state.parse(whole + whole)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a state file"),
        (b"garbage\n", "not a state file"),
        (b"wait3\n", "not a state file"),
        (state.content(one()).replace(b"poll 1\n", b"poll 2\n"), "another version"),
        (state.content(one()).replace(b"poll 1\n", b"poll 0\n"), "another version"),
        (state.content(one("cf-two")), "another core filer"),
        (state.content(one(target=1)), "another core filer"),
        (b"x" * 100_000, "not a state file"),
    ],
)
def test_foreign_file_is_told_apart(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "1795384800.state"
    path.write_bytes(content)
    with pytest.raises(BadStateError, match=why):
        state.read(str(path), "cf-one", 1795384800)


def test_what_is_no_plain_file_is_no_state(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.write_bytes(state.content(one(name="complete")))
    (tmp_path / "link").symlink_to(whole)
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "directory", "pipe"):
        with pytest.raises(BadStateError):
            state.read(str(tmp_path / name), "cf-one", 1795384800)


def test_first_state_of_a_key_is_made_once(tmp_path: Path) -> None:
    path = state.file(str(tmp_path / "states"), "cf-one", 5)
    assert state.create(path, one(target=5, name="new"), 100)
    assert not state.create(path, one(target=5, name="released"), 100)
    found = state.read(path, "cf-one", 5)
    assert found and found.state == "new"
    assert os.listdir(os.path.dirname(path)) == ["5.state"]
    # The file owner shows it on the nodes' page.
    assert os.stat(path).st_mode & 0o777 == 0o644
    state.replace(path, found)
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_limit_counts_states_alone(tmp_path: Path) -> None:
    for target in (1, 2):
        assert state.create(state.file(str(tmp_path), "cf-one", target), one(target=target), 2)
        state.leave(state.file(str(tmp_path), "cf-one", target, state.DONE_SUFFIX), "done")
    last = state.file(str(tmp_path), "cf-one", 3)
    with pytest.raises(UnavailableError):
        state.create(last, one(target=3), 2)
    assert state.create(last, one(target=3), 3)


def test_name_of_a_core_filer_is_no_part_of_a_path() -> None:
    places = {state.file("/s", name, 5) for name in ("../../etc", "a/b", "", ".", "A", "a", "\ud800")}
    assert len(places) == 7
    assert all(len(place) == len("/s/0123456789abcdef/5.state") and place.count("/") == 3 for place in places)


@pytest.mark.parametrize("name", sorted(state.STATES))
def test_phrase_is_in_the_text_of_what_is_complete_alone(name: str) -> None:
    found = one(f"x {agent.RELEASE}", name=name)
    found.why = found.progress = f"it says {agent.RELEASE}"
    assert agent.text(found).count(agent.RELEASE) == (name in {"complete", "released"})


def test_text_says_what_a_person_wants_to_know() -> None:
    assert "has been running since 2026-11-22 22:00:02 UTC: 42%." in agent.text(one())
    failed = one(name="failed")
    failed.why = "the disk is full"
    assert "failed at 2026-11-22 22:00:02 UTC: the disk is full." in agent.text(failed)
    assert "has been starting since" in agent.text(one(name="new"))
