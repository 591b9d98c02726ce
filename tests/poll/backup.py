#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""A backup that takes a moment, for the tests: it keeps a log of its own, and says in its own way that it is done.

Usage: backup.py start KIND DIRECTORY     start it and return (CORE_FILER, TARGET_TIME, RUN_ID in the environment)
       backup.py status KIND DIRECTORY    as the backends command and snapshots ask
       systemctl show|restart ... UNIT    as the backend systemd asks, by a link of that name; DIRECTORY is beside it

The log DIRECTORY/log has a line for each start, ``start KEY TIME``, and for each end, ``done KEY TIME``.
"""

import datetime
import json
import os
import sys
import time

TAKES_S = 1.0


def log(directory: str, word: str, key: str) -> None:
    fd = os.open(f"{directory}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{word} {key} {time.time()}\n".encode())
    os.close(fd)


def detach(directory: str) -> bool:
    """Return True in a child that nobody waits for."""
    if os.fork():
        return False
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    return True


def key() -> str:
    return f"{os.environ['CORE_FILER']}/{os.environ['TARGET_TIME']}"


def start(kind: str, directory: str) -> None:
    log(directory, "start", key())
    begun = time.time()
    print("job", os.environ["RUN_ID"])
    sys.stdout.flush()
    if not detach(directory):
        return
    time.sleep(TAKES_S)
    log(directory, "done", key())
    name = key().replace("/", "_")
    if kind == "callback":
        tell(directory)
    else:
        with open(f"{directory}/{name}.new", "w") as file:
            file.write(f"complete {os.environ['TARGET_TIME']}\n{begun}\n")
        os.rename(f"{directory}/{name}.new", f"{directory}/{name}")


def tell(directory: str) -> None:
    import http.client
    import urllib.parse
    import urllib.request

    with open(f"{directory}/address") as file:
        address = file.read().strip()
    arguments = {
        "mass": os.environ["CORE_FILER"],
        "targetTime": os.environ["TARGET_TIME"],
        "done": os.environ["DONE_TOKEN"],
    }
    end = time.monotonic() + 30
    while True:
        try:
            return urllib.request.urlopen(f"{address}?{urllib.parse.urlencode(arguments)}").close()
        except (OSError, http.client.HTTPException):  # the server is restarting
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def status(kind: str, directory: str) -> int:
    marker = f"{directory}/{key().replace('/', '_')}"
    is_done = os.path.exists(marker)
    if kind == "snapshots":
        times = ["2020-01-01T00:00:00Z", "not a time"]
        if is_done:
            with open(marker) as file:
                begun = float(file.read().split()[-1])
            times.append(datetime.datetime.fromtimestamp(begun, datetime.UTC).isoformat())
        print(json.dumps({"archives": [{"start": one} for one in times]}))
        return 0
    print("all of it" if is_done else "half of it")
    return 0 if is_done else 75


def systemctl(arguments: list[str]) -> int:
    directory = os.path.dirname(os.path.abspath(sys.argv[0]))
    unit = f"{directory}/{arguments[-1]}"
    if arguments[0] == "restart":
        log(directory, "start", key())
        with open(f"{unit}.begun", "w") as file:
            file.write(f"{os.urandom(16).hex()} {time.time()}")
        if detach(directory):
            time.sleep(TAKES_S)
            log(directory, "done", key())
            with open(f"{unit}.ended", "w") as file:
                file.write("")
        return 0
    begun = ended = ""
    if os.path.exists(f"{unit}.begun"):
        with open(f"{unit}.begun") as file:
            begun = file.read().split(" ")[0]
    ended = "exited" if os.path.exists(f"{unit}.ended") else "start"
    active = ("active" if ended == "exited" else "activating") if begun else "inactive"
    print(f"ActiveState={active}\nSubState={ended if begun else 'dead'}\nResult=success\nInvocationID={begun}")
    print("LoadState=loaded\nStatusText=")
    return 0


if os.path.basename(sys.argv[0]) == "systemctl":
    sys.exit(systemctl(sys.argv[1:]))
elif sys.argv[1] == "start":
    start(sys.argv[2], sys.argv[3])
else:
    sys.exit(status(sys.argv[2], sys.argv[3]))
