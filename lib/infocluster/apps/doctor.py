# SPDX-License-Identifier: Apache-2.0
"""What check-site does: look at everything that the promises of this house rest on, and say the mend of each fault.

The promises rest on owners and modes (the server's user writes gather directories and nothing else, the file owner
reads those and writes the rest), on settings and compiled copies that are those of their sources, on programs and
cron entries that are there, and on clocks that agree. Each check yields its faults; a fault has a mend, a command
where one can be named. Nothing is changed, but for one record that is gathered, read back and dropped.

Shape: ``-json`` prints ``{"tree": "/opt/infocluster", "checks": {"users": "ok", "gather": "not checked: ..."},
    "faults": [{"check": "state", "fault": "/var/state is open to everyone: mode 0755", "mend": "chmod 0750 ..."}]}``

Source: inode(7) for set-group-ID and sticky directories, proc_pid_mountinfo(5), crontab(5).
"""

import json
import os
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import cache_from_source, find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from infocluster import config, files, processes
from infocluster.apps import accounts, forms_declared, forms_moderation, installation, queue_check
from infocluster.apps import runbatch as runbatch_cgi
from infocluster.apps.accounts import User
from infocluster.config import Settings
from infocluster.cron.command import Run
from infocluster.errors import InfoclusterError, RefusedError, UnavailableError, reason
from infocluster.gather import drop

APP = "check-site"
SHOWN_FAULTS = 5
CLOCK_LIMIT_S = 300.0
FILE_CLOCK_LIMIT_S = 5.0
PROGRAM_TIMEOUT_S = 60.0
TAIL_BYTES = 1 << 17
# Places where a lock or an SQLite database of one host is not safe from another.
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "coda", "lustre", "gpfs", "beegfs", "glusterfs"}
    | {"fuse.glusterfs", "fuse.sshfs"}
)
if TYPE_CHECKING:
    from infocluster.push.servers import Server

# Programs and Debian packages by what a server's transport needs.
TRANSPORT_PROGRAMS = {
    "ssh": (("rsync", "rsync"), ("ssh", "openssh-client")),
    "daemon": (("rsync", "rsync"),),
    "rdist": (("rdist", "rdist"), ("ssh", "openssh-client")),
}
# What etc/crontab calls the two users.
SAMPLE_OWNER, SAMPLE_SERVER = "wwwowner", "www-data"
PACKAGES = ("filelock", "jinja2", "python_multipart")


class Fault(NamedTuple):
    """One thing that is not as it has to be, and what to do."""

    fault: str
    mend: str


class _NotCheckedError(Exception):
    """A check cannot be made here, or by this user; says why."""


@dataclass(slots=True)
class Place:
    """What is looked at.

    Attributes:
        root: the tree this program is in.
        settings_file: where its settings are.
        settings: what they say.
        installed: the list of what was installed, {} in a checkout.
        gather: this web server's gather directory, "" where it is not known.
        is_web, is_batch: which parts this host plays.
        timetables: files and directories of system crontabs.
        known: accounts that were looked up.
    """

    root: str
    settings_file: str
    settings: Settings
    installed: dict[str, Any]
    gather: str
    is_web: bool
    is_batch: bool
    timetables: tuple[str, ...] = ("/etc/crontab", "/etc/cron.d")
    known: dict[str, User] = field(default_factory=dict)

    @property
    def production(self) -> str:
        """Return the production tree."""
        return str(self.settings["site"]["production_dir"])

    def server(self) -> User:
        """Return the web server's user."""
        return self._account(self.settings["site"]["server_user"])

    def owner(self) -> User:
        """Return the file owner."""
        named = self.settings["site"]["file_owner"]
        if not named:
            try:
                return accounts.by_number(os.stat(self.production).st_uid)
            except OSError:
                raise _NotCheckedError("nobody is named as file owner, and there is no production tree") from None
        return self._account(named)

    def _account(self, name: str) -> User:
        if name not in self.known:
            user = accounts.by_name(name)
            if user is None:
                raise _NotCheckedError(f"there is no user {name}")
            self.known[name] = user
        return self.known[name]


def work(run: Run) -> str:
    """Check this host, or with -compile renew what is compiled; return the summary."""
    settings_file = config.settings_file()
    if run.arguments["compile"]:
        return renew(config.ROOT, settings_file)
    both = not run.arguments["web"] and not run.arguments["batch"]
    place = Place(
        config.ROOT,
        settings_file,
        run.settings,
        installation.manifest(config.ROOT),
        str(run.arguments["gather"] or os.environ.get("SERVER_GATHER", "")),
        bool(run.arguments["web"]) or both,
        bool(run.arguments["batch"]) or both,
    )
    states: dict[str, str] = {}
    listed: list[dict[str, str]] = []
    for name, check in CHECKS.items():
        try:
            faults = list(check(place))
        except _NotCheckedError as error:
            states[name] = f"not checked: {error}"
            continue
        except (RefusedError, UnavailableError) as error:
            states[name] = f"not checked: {error}"
            continue
        except PermissionError as error:
            states[name] = f"not checked: {error.filename} may not be read by {accounts.by_number(os.geteuid()).name}"
            continue
        states[name] = f"{len(faults)} faults" if faults else "ok"
        for fault, mend in faults:
            run.fault(f"{name}: {fault}; mend: {mend}")
            listed.append({"check": name, "fault": fault, "mend": mend})
    if run.arguments["json"]:
        run.say(json.dumps({"tree": place.root, "checks": states, "faults": listed}))
        return ""
    left_out = {name: state for name, state in states.items() if state.startswith("not checked")}
    for name, state in left_out.items():
        run.say(f"{name}: {state}")
    return f"{len(states) - len(left_out)} checks, {len(listed)} fault{'s' * (len(listed) != 1)}"


def renew(root: str, settings_file: str) -> str:
    """Compile the settings and, in an installed tree, what a hit loads; return what was done.

    Raises:
        ConfigError: the settings or a form say something impossible.
        UnavailableError: a compiled copy cannot be written.
    """
    done = [settings_file]
    try:
        config.compile_settings(settings_file)
        if installation.manifest(root):
            installation.compile_modules(root, root)
            installation.write_compiled(root, root)
            done.append(f"{root}/{installation.COMPILED}")
        forms = forms_declared.compile_forms(config.load(settings_file))
        if forms:
            done.append(f"the form{'s' * (len(forms) > 1)} {', '.join(forms)}")
    except OSError as error:
        raise UnavailableError(f"cannot compile {done[-1]}: {reason(error)}") from error
    return f"compiled {' and '.join(done)}"


def users(place: Place) -> Iterator[Fault]:
    """Check that there are two users, and that neither is root."""
    site = place.settings["site"]
    found: list[User] = []
    for what, setting, name, account in (
        ("the web server's user", "server_user", site["server_user"], place.server),
        ("the file owner", "file_owner", site["file_owner"] or "(owner of production_dir)", place.owner),
    ):
        try:
            user = account()
        except _NotCheckedError as error:
            yield Fault(f"{what}: {error}", f"set site.{setting}, or: adduser --system --group {_q(name)}")
            continue
        found.append(user)
        if user.uid == 0:
            yield Fault(f"{what} is root", f"set site.{setting} to a user of its own")
    if len(found) == 2 and found[0].uid == found[1].uid:
        yield Fault(
            f"{found[0].name} is both the web server's user and the file owner: a visitor who breaks a "
            "program changes the pages",
            "set site.file_owner to another user and chown the production tree to it",
        )


def tree(place: Place) -> Iterator[Fault]:
    """Check that the installed tree is what was installed, that its interpreter is there, and who may write it."""
    if not place.installed:
        raise _NotCheckedError("this is a checkout, not an installation")
    again = f"make install PREFIX={_q(place.root)} PYTHON={_q(place.installed['python'])}"
    if place.installed["prefix"] != place.root:
        yield Fault(f"{place.root} was installed to be used as {place.installed['prefix']}", again)
    for path, (mode, mark) in sorted(place.installed["files"].items()):
        try:
            status = os.lstat(f"{place.root}/{path}")
            now = installation.mark(f"{place.root}/{path}")
        except FileNotFoundError:
            yield Fault(f"{place.root}/{path} is missing", again)
            continue
        if now != mark:
            yield Fault(f"{place.root}/{path} is not what was installed", again)
        elif not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) != mode:
            yield Fault(
                f"{place.root}/{path} has mode {stat.S_IMODE(status.st_mode):04o}",
                f"chmod {mode:04o} {_q(f'{place.root}/{path}')}",
            )
    yield from _writable(place, [place.root], {f"{place.root}/var"})
    try:
        found = installation.interpreter(place.installed["python"])
    except InfoclusterError as error:
        yield Fault(f"line 1 of every program: {error}", again)
        return
    if found.tag != place.installed["tag"]:
        yield Fault(f"{found.path} has become {found.tag}; the tree is for {place.installed['tag']}", again)
    sys.path_importer_cache.clear()
    for package in PACKAGES:
        if find_spec(package) is None:
            yield Fault(f"the package {package} is missing in {place.root}/{installation.SITE}", again)


def compiled(place: Place) -> Iterator[Fault]:
    """Check that what is compiled is compiled from what is there: a hit is slow otherwise, and never wrong."""
    if not place.installed:
        raise _NotCheckedError("this is a checkout, not an installation")
    mend = f"{_q(place.root)}/batch/check-site -compile"
    if not config.is_compiled(place.settings_file):
        yield Fault(f"the compiled copy of {place.settings_file} is missing or older than it", mend)
    modules = [f"{place.root}/{path}" for path in installation.compiled_files(place.root)]
    # A module that many of them have is told once.
    changed: set[str] = set()
    for file in modules:
        try:
            text = files.read(file)
        except FileNotFoundError:
            yield Fault(f"{file} is missing", mend)
            continue
        for source, size, mtime_ns in installation.compiled_from(text):
            try:
                status = os.stat(source)
            except FileNotFoundError:
                yield Fault(f"{source} is gone, and {file} still has it", mend)
                continue
            if (status.st_size, status.st_mtime_ns) != (size, mtime_ns) and source not in changed:
                changed.add(source)
                yield Fault(f"{source} was changed after {file} was made", mend)
    for path in place.installed["files"]:
        if path.startswith("lib/") and path.endswith(".py"):
            modules.append(f"{place.root}/{path}")
    for module in modules:
        if os.path.exists(module) and not _is_fresh(module):
            yield Fault(f"{module} has no compiled copy, or an older one", mend)


def _is_fresh(module: str) -> bool:
    try:
        head = files.read(cache_from_source(module))[:16]
        status = os.stat(module)
    except FileNotFoundError:
        return False
    mtime_s, size = int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")
    return mtime_s == int(status.st_mtime) & 0xFFFFFFFF and size == status.st_size & 0xFFFFFFFF


def settings(place: Place) -> Iterator[Fault]:
    """Check who may write the settings and their compiled copy: whoever may, may be anybody here."""
    for path in (place.settings_file, place.settings_file + ".compiled", os.path.dirname(place.settings_file)):
        if os.path.exists(path):
            yield from _by_server_or_all(place, path, os.stat(path))


def forms(place: Place) -> Iterator[Fault]:
    """Check every declared form, that hits find it compiled, and that what it sends back can be signed."""
    declared = forms_declared.all_names(place.settings)
    if not declared:
        raise _NotCheckedError("there are none")
    is_asked = False
    for name in declared:
        try:
            form = forms_declared.read(forms_declared.file_of(name, place.settings), place.settings)
            _try_templates(form, place.settings)
        except InfoclusterError as error:
            yield Fault(str(error), "edit it")
            continue
        except ImportError as error:
            raise _NotCheckedError(f"the package {error.name} is missing") from None
        if place.installed and not forms_declared.is_compiled(name, place.settings):
            yield Fault(
                f"the compiled copy of the form {name} is missing or older than it",
                f"{_q(place.root)}/batch/check-site -compile",
            )
        is_asked = is_asked or (forms_moderation.is_moderated(form) and form["answers"]["mail"] != "never")
    secret = f"{os.path.dirname(place.settings_file)}/secrets/{place.settings['forms']['secret']}"
    if (place.is_web or is_asked) and not os.path.exists(secret):
        yield Fault(
            f"{secret} is missing: "
            + ("no form can be sent" if place.is_web else "letters have no links to publish by"),
            f"(umask 027; openssl rand -hex 32 >{_q(secret)}); chgrp {place.server().name} {_q(secret)}; "
            "the same file on every web server and on the batch host",
        )


def _try_templates(form: dict[str, Any], settings_now: Settings) -> None:
    """Raise ConfigError where a form's own templates cannot be filled; a host without a night's packages does not."""
    try:
        from infocluster.apps import forms_templates
    except ImportError:
        return
    forms_templates.check(form, settings_now)


def secrets(place: Place) -> Iterator[Fault]:
    """Check that secrets are their owner's to write, one group's to read, and nobody else's."""
    directory = os.path.dirname(place.settings_file) + "/secrets"
    if not os.path.isdir(directory):
        raise _NotCheckedError("there are none")
    paths = [directory, *(entry.path for entry in os.scandir(directory))]
    for path in sorted(paths):
        status = os.lstat(path)
        mode = stat.S_IMODE(status.st_mode)
        right = 0o750 if stat.S_ISDIR(status.st_mode) else 0o640
        if mode & ~right:
            yield Fault(f"{path} has mode {mode:04o}", f"chmod {right:04o} {_q(path)}")
        if status.st_uid == place.server().uid:
            yield Fault(f"{path} belongs to the web server's user", f"chown root {_q(path)}")


def state(place: Place) -> Iterator[Fault]:
    """Check the state directory: the file owner's, closed to others, on a local disk."""
    _only(place.is_batch, "batch host")
    directory = place.settings["site"]["state_dir"]
    owner = place.owner()
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        yield Fault(f"{directory} is missing", f"install -d -o {owner.name} -m 0750 {_q(directory)}")
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != owner.uid:
        yield Fault(
            f"{directory} belongs to {accounts.by_number(status.st_uid).name}, not to the file owner",
            f"chown -R {owner.name} {_q(directory)}",
        )
    if mode & 0o007:
        yield Fault(f"{directory} is open to everyone: mode {mode:04o}", f"chmod o-rwx {_q(directory)}")
    if mode & 0o020 and not mode & 0o2000:
        yield Fault(
            f"{directory} is shared with group {accounts.group_name(status.st_gid)}, and what is made in it "
            f"would not be: mode {mode:04o}",
            f"chmod g+s {_q(directory)}",
        )
    kind = file_system(directory)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Fault(
            f"{directory} is on {kind}: locks and databases of two hosts would meet there unseen",
            "set site.state_dir to a directory on a local disk",
        )


def file_system(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system that a path is on, such as ``ext4``, "" where that is not known.

    Source: proc_pid_mountinfo(5).
    """
    path = os.path.realpath(path)
    longest, found = -1, ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                left, _, right = line.partition(" - ")
                point = left.split()[4].encode("latin-1", "replace").decode("unicode_escape")
                # Of two on one point the later one is on top.
                if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= longest:
                    longest, found = len(point), right.split()[0]
    except (OSError, IndexError, UnicodeError):
        return found
    return found


def production(place: Place) -> Iterator[Fault]:
    """Check the production tree: there, the file owner's, and not for the web server's user to write."""
    _only(place.is_batch, "batch host")
    top = place.production
    if not os.path.isdir(top):
        owner = place.settings["site"]["file_owner"] or "OWNER"
        yield Fault(f"{top} is missing", f"install -d -o {_q(owner)} -m 0755 {_q(top)}")
        return
    yield from _writable(place, [top], set())
    for directory in place.settings["site"]["development_dirs"]:
        if not os.path.isdir(directory):
            yield Fault(f"the development tree {directory} is missing", f"install -d -m 2775 {_q(directory)}")


def _all_servers(place: Place) -> "list[Server]":
    from infocluster.push.servers import of_kind  # its node sets need what only the batch host has

    kinds = dict.fromkeys(section["kind"] for section in place.settings["servers"])
    return [server for kind in kinds for server in of_kind(place.settings, kind)]


def destinations(place: Place) -> Iterator[Fault]:
    """Check the servers that are directories of this host: there, and the file owner's to write."""
    _only(place.is_batch, "batch host")
    local = [server for server in _all_servers(place) if server.transport == "local"]
    if not local:
        raise _NotCheckedError("no server is a directory of this host")
    owner = place.owner()
    for server in local:
        directory = server.destination
        try:
            status = os.stat(directory)
        except FileNotFoundError:
            yield Fault(
                f"{directory}, the destination of {server.name}, is missing",
                f"install -d -o {owner.name} -m 0755 {_q(directory)}",
            )
            continue
        if not accounts.may_write(status, owner):
            yield Fault(
                f"{directory}, the destination of {server.name}, is not for {owner.name} to write",
                f"chown -R {owner.name} {_q(directory)}",
            )
        yield from _by_server_or_all(place, directory, status)


def reach(place: Place) -> Iterator[Fault]:
    """Check that the batch host's owner gets to every server by ssh, and may write where the tree lies there."""
    _only(place.is_batch, "batch host")
    far = [server for server in _all_servers(place) if server.transport in ("ssh", "rdist")]
    if not far:
        raise _NotCheckedError("no server is reached by ssh")
    from concurrent.futures import ThreadPoolExecutor

    owner = place.owner()
    if os.getuid() not in (0, owner.uid):
        raise _NotCheckedError(f"only root and {owner.name} can tell")
    with ThreadPoolExecutor(min(len(far), place.settings["push"]["parallel"])) as pool:
        answers = pool.map(lambda server: _reached(server, place.settings, owner), far)
        for server, fault in zip(far, answers, strict=True):
            if fault:
                target = f"{server.user}@{server.name}" if server.user else server.name
                yield Fault(f"{server.name}: {fault}", f"runuser -u {_q(owner.name)} -- ssh {_q(target)}")


def _reached(server: "Server", settings_now: Settings, owner: User) -> str:
    """Return what keeps the owner from pushing to a server, or "": asked of ssh itself, in the owner's place."""
    push = settings_now["push"]
    words = [push["ssh"], "-oBatchMode=yes", f"-oConnectTimeout={int(push['connect_timeout_s'])}"]
    words += ["-F", push["ssh_config"]] if push["ssh_config"] else []
    words += ["-l", server.user] if server.user else []
    words += ["-p", str(server.port)] if server.port else []
    as_owner = [] if os.getuid() == owner.uid else ["/sbin/runuser", "-u", owner.name, "--"]
    test = f"test -d {_q(server.destination)} && test -w {_q(server.destination)} && command -v rsync >/dev/null"
    try:
        outcome = processes.run([*as_owner, *words, "--", server.name, test], push["connect_timeout_s"] + 20)
    except UnavailableError as error:
        return str(error)
    if outcome.status == 0:
        return ""
    said = outcome.errors.decode("utf-8", "replace").strip().splitlines()
    return said[-1] if said else f"{server.destination} is missing or not to be written there, or rsync is missing"


def programs(place: Place) -> Iterator[Fault]:
    """Check that the programs that the settings call for are there."""
    _only(place.is_batch, "batch host")
    wanted: dict[str, str] = {}
    for server in _all_servers(place):
        wanted |= dict(TRANSPORT_PROGRAMS.get(server.transport, ()))
    for program, package in sorted(wanted.items()):
        if shutil.which(program) is None:
            yield Fault(f"the program {program} is missing", f"apt-get install -y {package}")
    mail = place.settings["mail"]
    if mail["transport"] == "sendmail" and not os.access(mail["sendmail"], os.X_OK):
        yield Fault(f"{mail['sendmail']} is missing or no program", 'set mail.sendmail, or mail.transport = "smtp"')


def gather(place: Place) -> Iterator[Fault]:
    """Check this web server's gather directory, with a record that its user writes and the file owner reads."""
    _only(place.is_web, "web server")
    directory = place.gather
    if not directory:
        raise _NotCheckedError("SERVER_GATHER is not set and -gather is not given")
    server = place.server()
    right = f"install -d -o {server.name} -g {accounts.group_name(server.gid)} -m 0755 {_q(directory)}"
    if not directory.startswith("/"):
        yield Fault(f"SERVER_GATHER is {directory!r}, not an absolute path", "set it in etc/apache.conf")
        return
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        yield Fault(f"{directory} is missing", right)
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022 and not mode & 0o1000:
        yield Fault(
            f"{directory} is for others to write: mode {mode:04o}; they could remove what they did not gather",
            f"chmod {'go-w' if status.st_uid == server.uid else '+t'} {_q(directory)}",
        )
    if not accounts.may_write(status, server):
        yield Fault(f"{directory} is not for {server.name} to write: mode {mode:04o}", right)
        return
    yield from _round(place, server)


def folding(place: Place) -> Iterator[Fault]:
    """Check the cluster that counts for the nights, where there is one: it answers, is ours and sees the files."""
    _only(place.is_batch, "batch host")
    if place.settings["gather"]["engine"] == "local":
        return
    from infocluster.apps import agents
    from infocluster.gather import cluster

    try:
        found = cluster.faults(place.settings["gather"], agents.PACKAGES)
    except InfoclusterError as error:
        yield Fault(str(error), 'start scheduler and workers as doc/folding.md says, or set gather.engine = "local"')
        return
    for fault in found:
        yield Fault(
            fault, "install there what is installed here, mount the gather directories, start the worker again"
        )


def runbatch(place: Place) -> Iterator[Fault]:
    """Check what runbatch.cgi may run: programs that are there, somebody who may, and a sudo that lets it."""
    _only(place.is_web, "web server")
    conf = place.settings["runbatch"]
    if not conf["programs"]:
        raise _NotCheckedError("nothing may be run")
    if not runbatch_cgi.is_here(conf["run_on"]):
        raise _NotCheckedError("runbatch.run_on does not name this host")
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
                f"add it to /etc/sudoers.d/infocluster-runbatch, see {_q(place.root)}/etc/sudoers.runbatch: "
                f"{' '.join(wanted[5:])}",
            )


def _round(place: Place, server: User) -> Iterator[Fault]:
    """Send one record the way of all records, and drop it again."""
    directory = place.gather
    try:
        owner = place.owner()
    except _NotCheckedError:
        owner = None
    now = time.time()
    answer = accounts.as_user(server, lambda: _written(place, now))
    if "fault" in answer:
        yield Fault(f"{server.name} cannot gather: {answer['fault']}", f"ls -ld {_q(directory)}; df {_q(directory)}")
        return
    segment = answer["segment"]
    if abs(answer["mtime_s"] - now) > FILE_CLOCK_LIMIT_S:
        yield Fault(
            f"the disk of {directory} is {answer['mtime_s'] - now:+.0f} s off this host's clock",
            "timedatectl set-ntp true, on the file server and here",
        )
    if owner and owner.uid != server.uid and os.geteuid() == 0:
        seen = accounts.as_user(owner, lambda: _seen(segment, answer["id"]))
        if "fault" in seen:
            yield Fault(
                f"{owner.name} cannot read what was gathered: {seen['fault']}",
                f"chmod a+rx {_q(directory)} {_q(f'{directory}/{APP}')}; chmod a+r {_q(segment)}",
            )
        if seen.get("may_write") and owner.uid != 0:
            yield Fault(
                f"{owner.name} can change what was gathered in {segment}",
                f"chmod -R go-w {_q(directory)}",
            )
    accounts.as_user(server, lambda: _dropped(segment))


def _written(place: Place, now: float) -> dict[str, Any]:
    record_id = drop.append(APP, {"time": now, "agent": "check-site"}, place.settings["gather"], place.gather)
    day = time.strftime("%Y-%m-%d", time.gmtime(now))
    segment = f"{place.gather}/{APP}/{day}.jsonl"
    return {"id": record_id, "segment": segment, "mtime_s": os.stat(segment).st_mtime}


def _seen(segment: str, record_id: str) -> dict[str, Any]:
    if not any(json.loads(line)["id"] == record_id for line in files.read(segment).splitlines()):
        return {"fault": f"the record is not in {segment}"}
    directory = os.path.dirname(segment)
    return {"may_write": os.access(segment, os.W_OK) or os.access(directory, os.W_OK)}


def _dropped(segment: str) -> dict[str, Any]:
    os.unlink(segment)
    return {}


def queues(place: Place) -> Iterator[Fault]:
    """Check queues that several users share: each user adds an element, and the next one consumes it."""
    if not place.settings["queues"]:
        raise _NotCheckedError("none is configured")
    for queue in place.settings["queues"]:
        for fault, mend in queue_check.faults(queue["queue_dir"], queue["users"]):
            yield Fault(fault, mend)


def servers(place: Place) -> Iterator[Fault]:
    """Check what the batch host sees of each server's gather directory: there, readable, and no clock ahead."""
    _only(place.is_batch, "batch host")
    settings_now = place.settings["gather"]
    wanted = [server.name for server in _all_servers(place) if server.kind == "web"]
    if not wanted:
        raise _NotCheckedError("no web server is configured")
    owner, now = place.owner(), time.time()
    for server in wanted:
        directory = f"{settings_now['gather_dir']}/{server}/{settings_now['host']}"
        try:
            status = os.stat(directory)
        except FileNotFoundError:
            yield Fault(
                f"{directory} is missing: nothing of {server} will be read",
                f"mount it, or fetch it with {_q(place.root)}/batch/gather-pull",
            )
            continue
        if not accounts.may(status, owner, 0o5):
            yield Fault(f"{directory} is not for {owner.name} to read", f"chmod o+rx {_q(directory)}, on {server}")
        if accounts.may_write(status, owner) and owner.uid != 0:
            yield Fault(
                f"{directory} is for {owner.name} to write: only the web server's user may own what is gathered",
                f"mount it read-only, or: chown -R {place.settings['site']['server_user']} {_q(directory)}",
            )
        newest = newest_record(directory)
        if newest is not None and newest > now + CLOCK_LIMIT_S:
            yield Fault(
                f"the clock of {server} is {newest - now:.0f} s ahead of this host's",
                f"timedatectl set-ntp true, on {server}",
            )


def newest_record(directory: str) -> float | None:
    """Return the time of the last record of any application below a gather directory, None where there is none."""
    newest = None
    for app in os.scandir(directory):
        if not app.is_dir(follow_symlinks=False):
            continue
        segments = sorted(name for name in os.listdir(app.path) if name.endswith(".jsonl"))
        if not segments:
            continue
        with open(f"{app.path}/{segments[-1]}", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        try:
            when = float(json.loads(lines[-1])["time"])
        except (IndexError, KeyError, TypeError, ValueError):
            continue
        newest = when if newest is None else max(newest, when)
    return newest


class CronEntry(NamedTuple):
    """One line of a timetable: who runs what."""

    user: str
    command: str


def cron_entries(text: str, user: str | None) -> Iterator[CronEntry]:
    """Yield the entries of a crontab.

    Args:
        text: its content.
        user: whose it is; None for a system crontab, where the user stands before the command.

    Source: crontab(5).
    """
    for line in text.splitlines():
        words = line.split(None, 5)
        if not words or line.lstrip().startswith("#") or "=" in words[0]:
            continue
        rest = line.split(None, 1)[1:] if words[0].startswith("@") else words[5:]
        if not rest:
            continue
        if user is not None:
            yield CronEntry(user, rest[0])
        else:
            runner, _, command = rest[0].partition(" ")
            yield CronEntry(runner, command.strip())


def cron(place: Place) -> Iterator[Fault]:
    """Check that cron runs what the sample timetable lists, each program as the user it is for."""
    if not place.installed:
        raise _NotCheckedError("this is a checkout, not an installation")
    found = list(_timetables(place))
    sample = _q(f"{place.root}/etc/crontab")
    roles = {SAMPLE_OWNER: (place.is_batch, place.owner), SAMPLE_SERVER: (place.is_web, place.server)}
    for user, command in cron_entries(files.read(f"{place.root}/etc/crontab").decode(), None):
        is_ours, account = roles.get(user, (False, place.owner))
        program = next((word for word in command.split() if word.startswith(f"{place.root}/batch/")), "")
        if not is_ours or not program:
            continue
        runners = {entry.user for entry in found if program in entry.command.split()}
        if not runners:
            yield Fault(f"cron does not run {program}", f"see {sample}; copy its line to /etc/cron.d/infocluster")
        elif account().name not in runners:
            yield Fault(
                f"cron runs {program} as {', '.join(sorted(runners))}",
                f"let it run as {account().name} in /etc/cron.d/infocluster",
            )
    for entry in found:
        for word in entry.command.split():
            if word.startswith(f"{place.root}/batch/") and not os.access(word, os.X_OK):
                yield Fault(f"cron runs {word}, which is missing or no program", "take the line out of the crontab")


def _timetables(place: Place) -> Iterator[CronEntry]:
    paths: list[str] = []
    for named in place.timetables:
        below = sorted(entry.path for entry in os.scandir(named) if entry.is_file()) if os.path.isdir(named) else []
        paths += below or [named] * os.path.isfile(named)
    for path in paths:
        yield from cron_entries(files.read(path).decode("utf-8", "replace"), None)
    if shutil.which("crontab") is None:
        return
    for account in (place.owner, place.server):
        try:
            user = account()
        except _NotCheckedError:
            continue
        if os.geteuid() == 0:
            command = ["crontab", "-u", user.name, "-l"]
        elif os.geteuid() == user.uid:
            command = ["crontab", "-l"]
        else:
            continue
        outcome = processes.run(command, PROGRAM_TIMEOUT_S)
        if outcome.status == 0:
            yield from cron_entries(outcome.output.decode("utf-8", "replace"), user.name)


def _writable(place: Place, tops: list[str], but: set[str]) -> Iterator[Fault]:
    """Yield what the web server's user or everybody may write below directories: the first few, and how many."""
    count = 0
    for path, status in _walk(tops, but):
        for fault in _by_server_or_all(place, path, status):
            count += 1
            if count <= SHOWN_FAULTS:
                yield fault
    if count > SHOWN_FAULTS:
        below = " ".join(map(_q, tops))
        yield Fault(f"{count - SHOWN_FAULTS} more like this below {below}", f"chmod -R go-w {below}")


def _walk(tops: list[str], but: set[str]) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [(top, os.stat(top)) for top in tops]
    while waiting:
        path, status = waiting.pop()
        yield path, status
        if not stat.S_ISDIR(status.st_mode):
            continue
        for entry in os.scandir(path):
            if entry.path not in but and not entry.is_symlink():
                waiting.append((entry.path, entry.stat(follow_symlinks=False)))


def _by_server_or_all(place: Place, path: str, status: os.stat_result) -> Iterator[Fault]:
    server = place.server()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == server.uid:
        yield Fault(f"{path} belongs to {server.name}, the web server's user", f"chown root {_q(path)}")
    elif mode & 0o002:
        yield Fault(f"{path} is for everyone to write: mode {mode:04o}", f"chmod o-w {_q(path)}")
    elif accounts.may_write(status, server):
        yield Fault(
            f"{path} is for {server.name} to write, by its group {accounts.group_name(status.st_gid)}: "
            f"mode {mode:04o}",
            f"chmod g-w {_q(path)}",
        )


def _only(plays: bool, part: str) -> None:
    if not plays:
        raise _NotCheckedError(f"this is no {part}")


def _q(path: str) -> str:
    return shlex.quote(path)


CHECKS: Mapping[str, Callable[[Place], Iterator[Fault]]] = {
    "users": users,
    "tree": tree,
    "compiled": compiled,
    "settings": settings,
    "forms": forms,
    "secrets": secrets,
    "state": state,
    "production": production,
    "destinations": destinations,
    "reach": reach,
    "programs": programs,
    "gather": gather,
    "folding": folding,
    "runbatch": runbatch,
    "queues": queues,
    "servers": servers,
    "cron": cron,
}
