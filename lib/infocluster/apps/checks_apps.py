# SPDX-License-Identifier: Apache-2.0
"""Checks of applications: forms, queues, polls, reports of nodes, and what a development host may run."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from infocluster import files, names, processes
from infocluster.aggregate import modules, signing
from infocluster.apps import accounts, forms_compiled, forms_declared, forms_moderation, queue_check
from infocluster.apps import runbatch as runbatch_cgi
from infocluster.apps.accounts import User
from infocluster.apps.checks import PROGRAM_TIMEOUT_S, Fault, NotCheckedError, Place, only, quoted
from infocluster.config import Settings
from infocluster.errors import InfoclusterError
from infocluster.poll import state as states
from infocluster.poll.backends import base


def forms(place: Place) -> Iterator[Fault]:
    """Check every declared form, that hits find it compiled, and that what it sends back can be signed."""
    declared = forms_compiled.all_names(place.settings)
    if not declared:
        raise NotCheckedError("there are none")
    is_asked = False
    for name in declared:
        try:
            form = forms_declared.read(forms_compiled.file_of(name, place.settings), place.settings)
            _try_templates(form, place.settings)
        except InfoclusterError as error:
            yield Fault(str(error), "edit it")
            continue
        except ImportError as error:
            raise NotCheckedError(f"the package {error.name} is missing") from None
        if place.installed and not forms_compiled.is_compiled(name, place.settings):
            yield Fault(
                f"the compiled copy of the form {name} is missing or older than it",
                f"{quoted(place.root)}/batch/check-site -compile",
            )
        yield from _refused(form, place)
        is_asked = is_asked or (forms_moderation.is_moderated(form) and form["answers"]["mail"] != "never")
    secret = f"{_secrets_dir(place)}/{place.settings['forms']['secret']}"
    # Of a host that is both, one user owns it and the other one has the group.
    readers = [(place.server, "chgrp")] * place.is_web + [(place.owner, "chown")] * (place.is_batch and is_asked)
    try:
        os.stat(secret)
    except PermissionError:
        return  # the check of secrets tells; a web author has come for his forms
    except FileNotFoundError:
        if not readers:
            return
        yield Fault(
            f"{secret} is missing: "
            + ("no form can be sent" if place.is_web else "letters have no links to publish by"),
            f"(umask 027; openssl rand -hex 32 >{quoted(secret)}); the same file on every web server and on the "
            "batch host; then check-site again, for who may read it",
        )
        return
    for reader, change in readers:
        with suppress(NotCheckedError):  # nobody is of that name: the check of users tells
            yield from _read_by(secret, reader(), change)


def _refused(form: dict[str, Any], place: Place) -> Iterator[Fault]:
    """Yield what a form promises to take, and something else does not."""
    text_bytes = form["limits"]["body_kb"] * 1024
    body_bytes = text_bytes + form["limits"]["upload_kb"] * 1024 * form["has_files"]
    limit_bytes = place.settings["gather"]["limit_bytes"]
    if text_bytes > limit_bytes:
        yield Fault(
            f"the form {form['name']} takes texts of {text_bytes} bytes, and a record may have {limit_bytes}",
            f"raise gather.limit_bytes in {place.settings_file}, or lower limits.body_kb",
        )
    apache = f"{place.root}/etc/apache.conf"
    if place.is_web and os.path.exists(apache):
        found = re.search(r"^\s*Define BODY_LIMIT (\d+)", files.read(apache).decode("utf-8", "replace"), re.M)
        if found and body_bytes > int(found[1]):
            yield Fault(
                f"the form {form['name']} takes {body_bytes} bytes with its files, and {apache} lets {found[1]} pass",
                "raise BODY_LIMIT there, or lower limits.upload_kb",
            )


def _try_templates(form: dict[str, Any], settings_now: Settings) -> None:
    """Raise ConfigError where a form's own templates cannot be filled; a host without a night's packages does not."""
    try:
        from infocluster.apps import forms_templates
    except ImportError:
        return
    forms_templates.check(form, settings_now)


def queues(place: Place) -> Iterator[Fault]:
    """Check queues that several users share: each user adds an element, and the next one consumes it."""
    if not place.settings["queues"]:
        raise NotCheckedError("none is configured")
    for queue in place.settings["queues"]:
        for fault, mend in queue_check.faults(queue["queue_dir"], queue["users"]):
            yield Fault(fault, mend)


def runbatch(place: Place) -> Iterator[Fault]:
    """Check what runbatch.cgi may run: programs that are there, somebody who may, and a sudo that lets it."""
    only(place.is_web, "web server")
    conf = place.settings["runbatch"]
    if not conf["programs"]:
        raise NotCheckedError("nothing may be run")
    if not runbatch_cgi.is_here(conf["run_on"]):
        raise NotCheckedError("runbatch.run_on does not name this host")
    for setting, what in (("hosts", "address"), ("users", "user")):
        if not conf[setting]:
            yield Fault(
                f"runbatch.{setting} is empty: no {what} may run anything", "set it, or runbatch.programs = []"
            )
    runnable = []
    for entry in conf["programs"]:
        program = f"{place.root}/batch/{entry.partition(' ')[0]}"
        if not os.path.isfile(program) or not os.access(program, os.X_OK):
            yield Fault(
                f"runbatch.programs has {entry}, and {program} is missing or no program", "take it out, or chmod"
            )
        else:
            runnable.append(entry)
    if not os.access(conf["sudo"], os.X_OK):
        yield Fault(f"{conf['sudo']} is missing or no program", "apt-get install -y sudo")
        return
    server, owner = place.server(), place.owner()
    # Nobody else can ask what sudo lets him run.
    for entry in runnable if os.geteuid() in (0, server.uid) else ():
        wanted = runbatch_cgi.command(entry, owner.name, conf["sudo"], place.root)
        # -l before the command only asks whether it would be run.
        asked = [wanted[0], "-l", *wanted[1:]]
        as_server = [] if os.geteuid() == server.uid else ["/sbin/runuser", "-u", server.name, "--"]
        if processes.run([*as_server, *asked], PROGRAM_TIMEOUT_S).status != 0:
            yield Fault(
                f"sudo does not let {server.name} run {entry} as {owner.name}",
                f"add it to /etc/sudoers.d/infocluster-runbatch, see {quoted(place.root)}/etc/sudoers.runbatch: "
                f"{' '.join(wanted[5:])}",
            )


def polling(place: Place) -> Iterator[Fault]:
    """Check what the polling agent works with: whose its states are, backends, their programs, secrets."""
    only(place.is_web, "web server")
    poll, filers = place.settings["poll"], place.settings["core_filers"]
    if not filers:
        raise NotCheckedError("no core filer is configured")
    server = place.server()
    for filer in filers:
        try:
            base.made(filer, poll, poll["state_dir"])
        except InfoclusterError as error:
            yield Fault(str(error), f"set it in {place.settings_file}")
            continue
        for setting in ("start", "status"):
            program = (filer[setting] or [""])[0]
            if program and shutil.which(program) is None:
                yield Fault(
                    f"{filer['name']}: core_filers.{setting} names {program}, which is missing or no program",
                    "install it, or name it by its whole path",
                )
        told = filer["marker"] + filer["marker_text"]
        if filer["backend"] == "marker" and not any(word in told for word in ("%t", "%r")):
            yield Fault(
                f"{filer['name']}: core_filers.marker is that of any target time: a late backup releases the next",
                "put %t into marker or marker_text, and have the backup write it",
            )
    state_dir = poll["state_dir"] or (place.gather and f"{place.gather}/poll")
    for path in [state_dir, *(states.place(state_dir, filer["name"]) for filer in filers)] if state_dir else ():
        try:
            is_right = os.stat(path).st_uid == server.uid
        except (FileNotFoundError, NotADirectoryError):
            if path == poll["state_dir"]:
                yield Fault(f"poll.state_dir {path} is missing", f"install -d -o {server.name} {quoted(path)}")
            continue  # the first poll makes it
        if not is_right:
            yield Fault(
                f"{path} is not {server.name}'s: polls are answered 503", f"chown -R {server.name} {quoted(path)}"
            )
    wanted = {name for name in (poll["token"], *(filer["secret"] for filer in filers)) if name}
    for name in sorted(wanted):
        yield from _read_by(f"{_secrets_dir(place)}/{name}", server)


def nodes(place: Place) -> Iterator[Fault]:
    """Check what reports of nodes need: keys that are keys, for the server to read, and modules that may be run."""
    directory = f"{_secrets_dir(place)}/nodes"
    own = place.settings["aggregate"]
    try:
        listed = sorted(os.listdir(directory))
    except FileNotFoundError:
        listed = []
    if not (listed or own["module_dirs"]):
        raise NotCheckedError("no node has a key")
    for name in listed:
        path = f"{directory}/{name}"
        if not names.is_name(name):
            yield Fault(f"{names.visible(path)} is the key of no node: no node has such a name", "rename it")
        elif len(files.read(path).strip()) < signing.LEAST_BYTES:
            yield Fault(
                f"{path} is no key: a key has {signing.LEAST_BYTES} bytes at least",
                f"openssl rand -hex 32 >{quoted(path)}; the same file on the node",
            )
        elif place.is_web:
            yield from _read_by(path, place.server())
    if place.is_batch:
        for fault in modules.faults(own["module_dirs"], place.owner().uid):
            yield Fault(fault, "mend it, or take the directory out of aggregate.module_dirs")


def _secrets_dir(place: Place) -> str:
    return os.path.dirname(place.settings_file) + "/secrets"


def _read_by(path: str, user: User, change: str = "chgrp") -> Iterator[Fault]:
    """Yield what keeps a user from reading a secret: its own mode, or that of a directory above it."""
    part, wanted, mode = path, 0o4, "0640"
    to = user.name if change == "chown" else accounts.group_name(user.gid)
    while True:
        try:
            status = os.stat(part)
        except FileNotFoundError:
            yield Fault(f"{part} is missing", f"(umask 027; openssl rand -hex 32 >{quoted(part)})")
            return
        if not accounts.may(status, user, wanted):
            yield Fault(
                f"{part} is not for {user.name} to read", f"{change} {to} {quoted(part)}; chmod {mode} {quoted(part)}"
            )
        if os.path.basename(part) == "secrets":
            return
        part, wanted, mode = os.path.dirname(part), 0o1, "0750"
