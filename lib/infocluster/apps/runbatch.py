# SPDX-License-Identifier: Apache-2.0
"""runbatch.cgi: developers run a program of batch/ on a development host, and see what it says while it says it.

A visitor chooses an entry of the settings; no text of his comes near a command line. What he chose is run by
batch/runbatch as the file owner, through sudo (see `running`, which holds the lock and the limit). Its first line
says that it has begun; only then is the answer 200, and from then on what it says is passed on as it comes.

Where the program runs is nothing that a visitor who leaves can end: he takes his answer with him and no more.

No token protects the form: every browser tells with a POST where the form stood (Origin), and where another site lets
its own name lead here, the browser sends no password of ours.

Source: RFC 3875 4.1.11 (REMOTE_USER); RFC 9110 15; sudo(8).
"""

import posix

from infocluster import config
from infocluster.web import cgi
from infocluster.web.request import Request
from infocluster.web.response import HTML, TEXT, HttpError, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from infocluster.processes import Followed

STARTED = "runbatch: started "
FIELD = "program"
BODY_LIMIT_BYTES = 8192
NEVER_KEPT = (("Cache-Control", "no-store"),)
# What may be said before it has begun, and how long that may take in all.
REFUSAL_LIMIT_BYTES = 1 << 16
BEGIN_S = 60.0
SILENCE_S = 3600.0
EX_BUSY = 75


def answer(request: Request) -> Response:
    """Show what may be run, or run it.

    Raises:
        HttpError: 403 not from there, not this user, not from this page, no such entry; 404 not on this host; 405;
            411, 413, 415 no form.
        UnavailableError: sudo cannot be started.
    """
    request.allow("GET", "HEAD", "POST")
    conf = request.settings["runbatch"]
    if not conf["programs"] or not is_here(conf["run_on"]):
        raise HttpError(404, "There is nothing of this name here.")
    user = request.variable("REMOTE_USER")
    if not request.comes_from(conf["hosts"]):
        raise HttpError(403, "Nothing can be run from this address.")
    if not user or user not in conf["users"]:
        raise HttpError(403, "This user may not run anything here.")
    if request.method != "POST":
        return _page(request, conf["programs"])
    request.check_origin()
    chosen = [value for name, value in request.form(BODY_LIMIT_BYTES) if name == FIELD]
    if len(chosen) != 1 or chosen[0] not in conf["programs"]:
        raise HttpError(403, "This is no program that may be run here.")
    # The settings' own text from here on.
    return _run(request, conf["programs"][conf["programs"].index(chosen[0])], user)


def is_here(hosts: "list[str]") -> bool:
    """Tell whether this machine is one of these, in full or up to the first dot; it is where none is named."""
    name = posix.uname().nodename.lower()
    wanted = [host.lower() for host in hosts]
    return not wanted or name in wanted or name.partition(".")[0] in wanted


def _page(request: Request, programs: "list[str]") -> Response:
    import time

    from infocluster import pages

    values = {
        "site": request.settings["site"],
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "host": posix.uname().nodename,
        "user": request.variable("REMOTE_USER"),
        "field": FIELD,
        "programs": programs,
        "limit_s": f"{request.settings['runbatch']['time_limit_s']:g}",
    }
    return Response(pages.fill("runbatch.html", values).encode("utf-8"), HTML, fields=NEVER_KEPT)


def command(entry: str, owner: str, sudo: str, root: str) -> "list[str]":
    """Return the command that runs an entry of the settings as the file owner.

    Args:
        entry: what [runbatch] programs says.
        owner: the file owner's name, or number.
        sudo: the program.
        root: the tree with batch/.
    """
    who = f"#{owner}" if owner.isdigit() else owner
    return [sudo, "-n", "-u", who, "--", f"{root}/batch/runbatch", "--", *entry.split(" ")]


def _run(request: Request, entry: str, user: str) -> Response:
    """Run an entry; the answer begins when the program has, and goes on while it does."""
    import time

    from infocluster import processes
    from infocluster.apps import accounts

    conf, address = request.settings["runbatch"], request.variable("REMOTE_ADDR")
    owner = accounts.file_owner(request.settings["site"]).name
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    environment |= {"REMOTE_USER": user, "REMOTE_ADDR": address}
    program = processes.Followed(command(entry, owner, conf["sudo"], config.ROOT), environment)
    cgi.log(f"{user} from {address} asks for {entry}")
    said, end = b"", time.monotonic() + BEGIN_S
    while (left_s := end - time.monotonic()) > 0 and len(said) < REFUSAL_LIMIT_BYTES:
        chunk = program.heard(left_s)
        if not chunk:
            break
        said += chunk
        if any(line.startswith(STARTED.encode("ascii")) for line in said.split(b"\n")):
            return Response(b"", TEXT, fields=NEVER_KEPT, stream=_told(said, program, entry))
    program.leave()
    if program.status == EX_BUSY:
        return Response(said, TEXT, 503, (("Retry-After", cgi.RETRY_AFTER_S), *NEVER_KEPT))
    last = f"runbatch.cgi: {entry} was not run: {conf['sudo']} {_ended(program)}"
    cgi.log(said.decode("utf-8", "replace") + "\n" + last)
    return Response(said + last.encode() + b"\n", TEXT, 500, NEVER_KEPT)


def _told(said: bytes, program: "Followed", entry: str) -> "Iterator[bytes]":
    """Yield what it said and says, and how it was ended where it cannot say that itself."""
    try:
        yield said
        while (chunk := program.heard(SILENCE_S)) != b"":
            if chunk:
                yield chunk
        if program.status is not None and program.status < 0:
            last = f"runbatch.cgi: {entry}: {_ended(program)}"
            cgi.log(last)
            yield f"\n{last}\n".encode()
    finally:
        program.leave()


def _ended(program: "Followed") -> str:
    if program.status is None:
        return "does not say anything"
    return f"was killed by signal {-program.status}" if program.status < 0 else f"ended with status {program.status}"
