# SPDX-License-Identifier: Apache-2.0
"""Kill mail-report before each step that can be seen on the disk, and let others and the next run go on.

Usage: crash_report.py DIRECTORY SMTP_PORT

Each run gets a state directory of its own, DIRECTORY/N, and is killed with SIGKILL before its Nth opening, renaming
or removing of a file there, or connecting. Then another program delivers what waits, a new finding is left, and the
next run goes to its end. Prints how many runs were killed.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.realpath(__file__ + "/../../../lib"))
from infocluster import letters, pages, settings
from infocluster.apps import mail_report
from infocluster.cron import progress
from infocluster.cron.command import Run
from infocluster.report import findings

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "socket.connect")


def child(work: Callable[[], None]) -> int:
    """Run in a process of its own and return how that ended."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def killed_before(step: int, state_dir: str, work: Callable[[], None]) -> Callable[[], None]:
    left = step

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "socket.connect" or (event in STEPS and str(arguments[0]).startswith(state_dir)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    def killed() -> None:
        sys.addaudithook(look)
        work()

    return killed


def main(directory: str, port: int) -> None:
    conf = f"{directory}/infocluster.toml"
    with open(conf, "w", encoding="utf-8") as file:
        file.write(f'[mail]\nsmtp_host = "127.0.0.1"\nsmtp_port = {port}\n')
    values = {"subject": "", "site": "", "url": "", "faults": [], "findings": []}
    pages.fill("mail.html", values)  # loaded once, not in each child
    step, ended = 0, -1
    while ended != 0:
        state_dir = f"{directory}/{step}"
        conf_now = settings.read(conf)
        conf_now["site"]["state_dir"] = state_dir
        arguments = {"show": False}

        def work(conf_now: Any = conf_now, arguments: Any = arguments) -> None:
            mail_report.work(Run("mail-report", conf_now, arguments, progress.bar))

        for name in "ab":
            findings.leave(state_dir, "job", {"title": f"finding-{step}-{name}"})
        ended = child(killed_before(step, state_dir, work))
        assert ended in (0, signal.SIGKILL), ended
        letters.deliver(state_dir, conf_now["mail"])
        findings.leave(state_dir, "job", {"title": f"finding-{step}-c"})
        assert child(work) == 0
        step += 1
    print(step - 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
