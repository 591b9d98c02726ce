# SPDX-License-Identifier: Apache-2.0
"""Installing: batch/wwwdinst and batch/wwwuinst, from their arguments to an install and what is told of it.

Who does what: a developer calls the program. As himself he has permissions repaired and makefiles run
(`publish.prepare`); then, where [install] sudo names a program, the same program goes on as the file owner by that,
with ``-made`` and, by ``-leave``, what failed so far; else it goes on as the developer, who then needs to be in the
group that may write the production tree. What a developer may install is checked by whoever does it: [install]
groups, and whether the developer may write the paths in the development tree.

The file owner knows the developer by SUDO_UID, which sudo sets and nobody else can hand him.
"""

import contextlib
import gc
import grp
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from infocluster import config, files, names, trees
from infocluster.apps import accounts
from infocluster.apps.accounts import User
from infocluster.cron.command import Run
from infocluster.errors import RefusedError, UnavailableError, UsageError, reason
from infocluster.locks import pathlocks, tickets
from infocluster.names import printable
from infocluster.publish import development, install, prepare, undo
from infocluster.publish.development import Tree

FLAGS = ("show", "delete", "undo", "log", "rules", "json", "quiet", "push")


def work(run: Run) -> str:
    """Install, remove, undo or tell, as the arguments say, and return the summary.

    Raises:
        UsageError: the arguments do not go together.
        RefusedError: this user may not install these paths.
        InfoclusterError: as `install.install`, `install.put_back` and `undo.log`.
    """
    # There are no rings of objects in a listing; to look for them, again and again, is a tenth of a run.
    gc.disable()
    arguments, conf = run.arguments, run.settings
    given = arguments["path"] if isinstance(arguments["path"], list) else []
    tree = install.forest(run.program, conf)[0]
    _check_flags(run, given)
    paths = development.checked(given) if given else []
    if arguments["rules"]:
        return _rules(run, given)
    owner = accounts.file_owner(conf["site"])
    is_handed_on = bool(conf["install"]["sudo"]) and os.geteuid() != owner.uid
    left = _left() if arguments["leave"] else {}
    changes = not (arguments["log"] or arguments["undo"])
    of: undo.Record | None = None
    caller = _caller(owner)
    if changes:
        every = [names.tree_path(path) for path in given]
        install.check(every, tree, conf["site"]["production_dir"], bool(arguments["delete"]))
        check_rights(every, tree, caller, owner, conf["install"]["groups"])
    elif not arguments["log"]:
        of = undo.last(conf["site"]["state_dir"], run.program, caller.uid, paths) if not is_handed_on else None
        check_rights(of["paths"] if of else [], tree, caller, owner, conf["install"]["groups"])
    if is_handed_on:
        if changes and not arguments["delete"] and not arguments["made"]:
            part = prepare.Part(True, bool(arguments["show"]), os.geteuid(), os.geteuid() == 0)
            left = prepare.ready(tree, paths, left, part, conf)[1]
        _hand_on(run, owner, paths, left)
    if arguments["log"]:
        return _log(run, paths)
    if os.geteuid() == 0 and owner.uid != 0:
        raise RefusedError(f"cannot install as root: call it as yourself, or as the file owner {owner.name}")
    return _installed(run, paths, caller, owner, left, of)


def _check_flags(run: Run, given: Sequence[str]) -> None:
    arguments = run.arguments
    apart = [f"-{name}" for name in ("delete", "undo", "log", "rules") if arguments[name]]
    if len(apart) > 1:
        raise UsageError(f"cannot do {' and '.join(apart)} at once")
    if not given and not arguments["log"] and not arguments["undo"]:
        raise UsageError("cannot go on: PATH is missing")


def _installed(
    run: Run, paths: list[str], caller: User, owner: User, left: Mapping[str, str], of: undo.Record | None
) -> str:
    """Do it under this user, and push what is in place."""
    arguments, conf = run.arguments, run.settings
    show, is_plain = bool(arguments["show"]), not arguments["json"] and not arguments["quiet"]
    is_guarded = os.geteuid() in (0, owner.uid)
    made = bool(arguments["made"])
    # In the part of the file owner, a repair would reach what is the developer's.
    part = prepare.Part(not made, show, caller.uid if made else os.geteuid(), is_guarded)
    request = install.Request(
        run.program, paths, caller.name, caller.uid, part, bool(arguments["delete"]), show, left
    )
    told: list[install.Told] = []

    def tell(one: install.Told) -> None:
        told.append(one)
        if one.is_fault and not is_plain:
            run.fault(str(one))
        elif one.is_fault:
            run.faults.append(str(one))
        if is_plain:
            run.say(str(one))

    say = run.say if is_plain else _aside if arguments["json"] else _nothing
    _check_writable(of["paths"] if of else paths, conf["site"]["production_dir"])
    if of is not None:
        record = install.put_back(of, request, conf, tell, say, run.progress)
    else:
        record = install.install(request, conf, tell, say, run.progress)
    if arguments["json"]:
        changes = [{"verb": one.verb, "path": one.path, "reason": one.reason, "fault": one.is_fault} for one in told]
        run.say(json.dumps(record | {"show": show, "changes": changes}))
    summary = _summary(record)
    if arguments["push"]:
        if is_plain:
            run.say(f"{run.program}: {summary}")
            summary = ""
        _push(run, record["paths"], show)
    return summary if is_plain else ""


def _summary(record: undo.Record) -> str:
    counts = [f"{verb} {record[verb]}" for verb in ("install", "update", "remove", "skip") if record[verb]]
    done = ", ".join(counts) or "nothing to do"
    undone = f", undoing {record['undoes']}" if record["undoes"] else ""
    return f"{pathlocks.listed(record['paths'])}{undone}: {done}"


def _push(run: Run, paths: Sequence[str], show: bool) -> None:
    """Become wwwpush for the same paths, or say what to type."""
    options = [f"-{name}" for name in ("json", "quiet") if run.arguments[name]]
    if not all("/" in path for path in paths):
        options.append("-all")
    command = " ".join(["wwwpush", *options, *(shlex.quote(printable(path)) for path in paths)])
    say = run.fault if run.arguments["quiet"] else _aside if run.arguments["json"] else run.say
    if show:
        say(f"would push: {command}")
    elif run.faults:
        say(f"not pushed, because not everything was installed; to push what was, type: {command}")
    else:
        _become([*_interpreter(), f"{config.ROOT}/batch/wwwpush", *options, "--", *paths])


def _interpreter() -> list[str]:
    """Return this interpreter with the options that it was called with."""
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]]


def _hand_on(run: Run, owner: User, paths: Sequence[str], left: Mapping[str, str]) -> NoReturn:
    """Go on as the file owner."""
    options = [f"-{name}" for name in FLAGS if run.arguments[name]]
    if left:
        # Not an argument: that may have 128 KiB.
        options.append("-leave")
        fd = os.memfd_create("left")
        files.write_all(fd, json.dumps(dict(left)).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        os.dup2(fd, 0)
    program = f"{config.ROOT}/batch/{run.program}"
    _become([run.settings["install"]["sudo"], "-u", owner.name, "--", program, "-made", *options, "--", *paths])


def _become(command: list[str]) -> NoReturn:
    try:
        os.execv(command[0], command)  # noqa: S606 (no shell is wanted)
    except OSError as error:
        raise UnavailableError(f"cannot run {command[0]}: {reason(error)}") from error


def _left() -> dict[str, str]:
    try:
        return {str(path): str(why) for path, why in json.load(sys.stdin).items()}
    except (ValueError, AttributeError):
        raise UsageError("cannot leave what stands on the standard input: expected a JSON object") from None


def _caller(owner: User) -> User:
    """Return who asks: the file owner, and root, believe what sudo told them."""
    uid, called_by = os.geteuid(), os.environ.get("SUDO_UID", "")
    if uid in (0, owner.uid) and called_by.isdecimal():
        uid = int(called_by)
    user = accounts.by_number(uid)
    if uid != os.geteuid():
        return user
    return user._replace(groups=user.groups | frozenset(os.getgroups()) | {os.getegid()})


def check_rights(paths: Sequence[str], tree: Tree, caller: User, owner: User, grants: Sequence[str]) -> None:
    """Refuse what a user may not install.

    Args:
        paths: tree paths in their one form.
        tree: the development tree.
        caller: who asks.
        owner: the file owner; he and root may install everything.
        grants: [install] groups.

    Raises:
        RefusedError: he is in no group that may install a path, or may not write it in the development tree.
        UnavailableError: it cannot be looked at.
    """
    if caller.uid in (0, owner.uid):
        return
    for path in paths:
        if grants and not any(_grants(grant, path, caller) for grant in grants):
            allowed = ", ".join(sorted({grant.partition(" ")[0] for grant in grants if _covers(grant, path)}))
            who = f"the members of {allowed} may" if allowed else "nobody but the file owner may"
            raise RefusedError(f"cannot install {printable(path)} as {caller.name}: {who}; see install.groups")
        if not _may_write(path, tree, caller):
            place = printable(f"{tree.root}/{path}")
            raise RefusedError(f"cannot install {printable(path)} as {caller.name}: {place} is not yours to write")


def _grants(grant: str, path: str, caller: User) -> bool:
    try:
        return _covers(grant, path) and grp.getgrnam(grant.partition(" ")[0]).gr_gid in caller.groups
    except KeyError:
        return False


def _covers(grant: str, path: str) -> bool:
    top = grant.partition(" ")[2]
    return top in ("*", path) or path.startswith(top + "/")


def _may_write(path: str, tree: Tree, caller: User) -> bool:
    """Tell whether a user may write a directory, or a file or the directory it is in.

    What RCS keeps is read-only until it is locked, and what is gone can be asked of its directory alone.
    """
    found = tree.status(path)
    if found is not None and not stat.S_ISLNK(found.st_mode) and accounts.may_write(found, caller):
        return True
    if found is not None and stat.S_ISDIR(found.st_mode):
        return False
    above: os.stat_result | None = None
    while above is None and path:
        path = path.rpartition("/")[0]
        above = tree.status(path) if path else os.stat(tree.root)
    return above is not None and stat.S_ISDIR(above.st_mode) and accounts.may_write(above, caller)


def _check_writable(paths: Sequence[str], production_dir: str) -> None:
    """Refuse what this process could not do anyway, before anything is changed."""
    for path in paths:
        there, fd = path.rpartition("/")[0], -1
        while fd < 0:
            try:
                fd = trees.open_directory(production_dir, there)
            except (FileNotFoundError, NotADirectoryError, RefusedError):
                # Missing, or what makes way for a directory: it is the one above that is written.
                if not there:
                    raise UnavailableError(f"cannot open {production_dir}: there is no such directory") from None
                there = there.rpartition("/")[0]
            except OSError as error:
                place = printable(f"{production_dir}/{there}".rstrip("/"))
                raise UnavailableError(f"cannot open {place}: {reason(error)}") from error
        try:
            may = os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True)
        finally:
            os.close(fd)
        if not may:
            user, place = accounts.by_number(os.geteuid()).name, printable(f"{production_dir}/{there}".rstrip("/"))
            raise RefusedError(
                f"cannot install {printable(path)} as {user}: {place} is not for {user} to write; see install.sudo"
            )


def _rules(run: Run, given: Sequence[str]) -> str:
    """Say for each path which lines of which files protect it."""
    answers = []
    for text in given:
        path = names.tree_path(text)
        lines = []
        for tree in install.forest(run.program, run.settings):
            roots = (tree.root, run.settings["site"]["production_dir"])
            found = tree.protecting(path, text.endswith("/") or _is_directory(roots, path))
            if found is not None:
                part, why = found
                lines.append(f"{tree.program}: {printable(part)} is {why}")
        answers.append({"path": path, "rules": lines})
        if not run.arguments["json"]:
            for line in lines or ["no line protects it"]:
                run.say(f"{printable(path)}: {line}")
    if run.arguments["json"]:
        run.say(json.dumps(answers))
    return ""


def _is_directory(roots: Iterable[str], path: str) -> bool:
    """Tell what a path is in the first tree that has it; in one where it leads through a link, it is nothing."""
    for root in roots:
        with contextlib.suppress(RefusedError):
            there = development.status(root, path)
            if there is not None:
                return stat.S_ISDIR(there.st_mode)
    return False


def _log(run: Run, paths: Sequence[str]) -> str:
    """List who installed what, when; the oldest first."""
    records = undo.log(run.settings["site"]["state_dir"], run.fault, paths)
    if run.arguments["json"]:
        run.say(json.dumps(records))
        return ""
    for record in records:
        try:
            what = "" if record["what"] == "install" else f" -{record['what']}"
            end = "" if record["state"] == undo.DONE else f" ({record['state']})"
            when = tickets.local(record["started"])
            run.say(f"{when} {record['user']} {record['program']}{what} {_counted(record)}{end}")
        except (KeyError, TypeError) as error:
            run.fault(f"cannot read the record {record['id']} of an install: {error}")
    return "" if records else "no install is remembered"


def _counted(record: undo.Record) -> str:
    return _summary({"install": 0, "update": 0, "remove": 0, "skip": 0} | record)


def _aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _nothing(_line: str) -> None:
    return
