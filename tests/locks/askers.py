# SPDX-License-Identifier: Apache-2.0
"""Processes that ask for path locks or slots, told what to do over a pipe."""

import json
import subprocess
import sys
from pathlib import Path

from infocluster.locks import pathlocks

LIB = str(Path(pathlocks.__file__).parents[2])

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import contextlib, json, os
from infocluster.errors import InfoclusterError
from infocluster.locks import pathlocks

if len(sys.argv) > 3:
    # All is imported: another user need not be able to read the checkout.
    user, group = map(int, sys.argv[3:])
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    os.umask(0o077)

def tell(line):
    print(line, flush=True)

def asked(paths, timeout_s):
    return pathlocks.hold(paths, timeout_s, directory=sys.argv[2], say=tell)

held = []
for line in sys.stdin:
    order = json.loads(line)
    if order is None:
        held.pop().close()
        tell("left")
        continue
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(asked(order["paths"], order["timeout_s"]))
        held.append(stack)
        tell("held")
    except InfoclusterError as error:
        tell(f"{type(error).__name__}: {error}")
while held:
    held.pop().close()
"""

# There are as many slots as the file beside their directory says.
SLOTS_CODE = CODE.replace("pathlocks", "slots").replace(
    """    return slots.hold(paths, timeout_s, directory=sys.argv[2], say=tell)
""",
    """
    def limit():
        with open(sys.argv[2] + ".limit") as file:
            text = file.read()
        if not text.isdecimal():
            raise InfoclusterError("cannot read the settings")
        return int(text)

    return slots.hold(limit, directory=sys.argv[2], say=tell, timeout_s=timeout_s)
""",
)


class Asker:
    """One process; what it says is read line by line, so that a test waits for what happens, not for a time."""

    code = CODE

    def __init__(self, directory: Path, *user_and_group: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", self.code, LIB, str(directory), *map(str, user_and_group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def asks(self, *paths: str, timeout_s: float | None = None) -> "Asker":
        """Send a request and do not wait for what becomes of it."""
        self._order({"paths": paths, "timeout_s": timeout_s})
        return self

    def says(self) -> str:
        """Return the next line: ``waiting for ...``, ``held``, ``left``, or an error; "" at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def holds(self, *paths: str) -> "Asker":
        """Get paths that are free."""
        assert self.asks(*paths, timeout_s=0).says() == "held"
        return self

    def waits(self, *paths: str) -> "Asker":
        """Ask for paths that are not free, and be seen waiting."""
        line = self.asks(*paths).says()
        assert line.startswith("waiting for "), line
        return self

    def leaves(self) -> None:
        """Let go of what was got last."""
        self._order(None)
        assert self.says() == "left"

    def dies(self) -> None:
        """Be killed, and be gone."""
        self.process.kill()
        self.process.wait()

    def ends(self) -> None:
        """Let go of all and exit."""
        self.process.communicate()
        assert self.process.returncode == 0

    def _order(self, order: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()


class SlotAsker(Asker):
    """One process that asks for slots, without paths."""

    code = SLOTS_CODE
