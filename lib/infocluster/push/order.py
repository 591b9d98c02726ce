# SPDX-License-Identifier: Apache-2.0
"""What a transport is asked for, and how it went: the words between a push and its transports."""

import threading
from typing import TYPE_CHECKING, NamedTuple

from infocluster import trees
from infocluster.config import Settings
from infocluster.errors import UnavailableError

if TYPE_CHECKING:
    from infocluster.push.skeleton import Skeleton


class UnreachableError(UnavailableError):
    """A server could not be reached, or the connection to it broke: it may work when it is tried again."""


class Order(NamedTuple):
    """What is asked of a transport.

    Attributes:
        settings: all settings.
        paths: the tree paths that are pushed, none below another; what the listing has is below them.
        show: whether to change nothing and only tell what would be done.
        atomic: whether each pushed directory has to switch over in one step.
        end: when the time is over, as `time.monotonic` has it, s.
        stopped: set when the whole push is to end.
        keep: whether a generated distfile is kept.
        skeleton: what the server's skeleton says; None where it has none.
    """

    settings: Settings
    paths: list[str]
    show: bool
    atomic: bool
    end: float
    stopped: threading.Event
    keep: bool = False
    skeleton: "Skeleton | None" = None


# The reason of an action that was begun, and not told to be done.
BEGUN = "begun"


class Outcome:
    """How it went on one server.

    ``changes`` has what was installed, updated and removed, in that order of events; ``faults`` a line for each
    thing that went wrong; ``was_unreachable`` tells that nothing but the connection was at fault. ``begun`` has what
    may have been done besides: it was being done when the connection broke, or whoever did it was lost.
    """

    __slots__ = ("begun", "changes", "duration_s", "faults", "server", "was_unreachable")

    def __init__(
        self,
        server: str,
        changes: list[trees.Action] | None = None,
        faults: list[str] | None = None,
        duration_s: float = 0.0,
        was_unreachable: bool = False,
    ) -> None:
        self.server = server
        self.changes = changes or []
        self.begun: list[trees.Action] = []
        self.faults = faults or []
        self.duration_s = duration_s
        self.was_unreachable = was_unreachable
