# SPDX-License-Identifier: Apache-2.0
"""Foreign code, called with an end: what it raises and how long it takes is its caller's to know.

A call that takes too long gets an exception by SIGALRM, which comes again until it is heard. Code that does not
return to the interpreter at all (a loop in C) is not ended by it; the whole process has to be.

Source: signal(7), setitimer(2).
"""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from infocluster.errors import InfoclusterError

AGAIN_S = 0.2


class CallError(Exception):
    """A call that failed; the text says why, in one line.

    Attributes:
        is_late: whether it took too long.
    """

    def __init__(self, why: str, is_late: bool = False) -> None:
        super().__init__(why)
        self.is_late = is_late


class _LateError(BaseException):
    """The time of a call is over. Not an `Exception`: what catches those has not been asked."""


class Clock:
    """Calls functions, each for so many seconds at most; in the main thread, which alone has signals."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._is_running = False
        signal.signal(signal.SIGALRM, self._ring)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns.

        Raises:
            CallError: it raised, or took too long.
        """
        try:
            self._is_running = True
            try:
                signal.setitimer(signal.ITIMER_REAL, self.limit_s, AGAIN_S)
                return function(*arguments)
            finally:
                self._is_running = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _LateError:
            # RACE: it may have come in the `finally` above, before the timer was stopped.
            self._is_running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise CallError(f"not done after {self.limit_s:g} s", is_late=True) from None
        except Exception as error:  # foreign code: whatever it raises is its fault, and is told
            raise CallError(told(error)) from error
        except SystemExit:
            raise CallError("it wants to leave") from None

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_running:
            raise _LateError


def told(error: BaseException) -> str:
    """Return an error in one line: a sentence of ours as it is, of others name, text and where it was raised."""
    import traceback

    if isinstance(error, InfoclusterError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"
