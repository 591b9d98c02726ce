# SPDX-License-Identifier: Apache-2.0
"""Every setting there is: its type, default, unit and reason; and what is wrong with a file that sets them.

The table below is the only list. `sample` prints etc/infocluster.toml from it, `read` checks a file against
it, and a test holds the sample in etc/ equal to the table.

Relative directories count from the tree that holds etc/ (the checkout, or PREFIX), so that an installation
works within itself until somebody names real places.

Source: TOML v1.0.0.
"""

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infocluster import names
from infocluster.errors import ConfigError, UsageError, reason


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value has to be: words for the message, and a test."""

    expected: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(*words: str) -> Kind:
    return Kind("one of " + ", ".join(f'"{word}"' for word in words), lambda value: value in words)


def _whole(least: int, most: int) -> Kind:
    return Kind(f"a whole number from {least} to {most}", lambda value: _is_whole(value) and least <= value <= most)


def _seconds(least: float, most: float) -> Kind:
    return Kind(
        f"a number of seconds from {least:g} to {most:g}",
        lambda value: (_is_whole(value) or isinstance(value, float)) and least <= value <= most,
    )


def _fits_tree_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and names.tree_path(value) == value
    except UsageError:
        return False


TEXT = Kind("a text in one line", lambda value: isinstance(value, str) and value.isprintable())
NAME = Kind("a name of A-Z a-z 0-9 . _ -", lambda value: isinstance(value, str) and names.is_name(value))
DIRECTORY = Kind("a directory", lambda value: isinstance(value, str) and value.isprintable() and value != "")
PROGRAM = Kind("the path of a program", DIRECTORY.fits)
TREE_PATH = Kind("a path below the trees, such as world/survey", _fits_tree_path)
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))


def _list_of(kind: Kind) -> Kind:
    return Kind(
        f"a list, each {kind.expected}",
        lambda value: isinstance(value, list) and all(kind.fits(item) for item in value),
    )


def _fits_grant(value: Any) -> bool:
    group, blank, path = value.partition(" ") if isinstance(value, str) else ("", "", "")
    return names.is_name(group) and bool(blank) and (path == "*" or _fits_tree_path(path))


GRANT = Kind('a group, a blank and a path below the trees or *, such as "webdev world/sample"', _fits_grant)


def _fits_network(value: Any) -> bool:
    import ipaddress

    try:
        return isinstance(value, str) and bool(ipaddress.ip_network(value))
    except ValueError:
        return False


def _fits_scheduler(value: Any) -> bool:
    scheme, found, place = value.partition("://") if isinstance(value, str) else ("", "", "")
    host, colon, port = place.rpartition(":")
    is_port = bool(found and colon) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    return scheme in ("tcp", "tls") and is_port and host.isprintable() and not set(host) & set("/@ ") and host != ""


def _fits_core_filer(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= names.NAME_LIMIT and value.isprintable()


def _fits_url(value: Any) -> bool:
    scheme, _, place = value.partition("://") if isinstance(value, str) else ("", "", "")
    is_plain = place.isprintable() and " " not in place
    return scheme in ("http", "https") and is_plain and place.partition("/")[0] != ""


def _fits_address(value: Any) -> bool:
    """Tell whether a letter may be from or to this; `letters` looks again, and closer."""
    text = value if isinstance(value, str) and value.isprintable() else ""
    place = text.partition("<")[2].removesuffix(">") if text.endswith(">") else text
    return all(place.split("@")) and place.count("@") < 2 and not set(place) & set(" ,;<>")


URL = Kind('an address such as "https://www.example.org/"', _fits_url)
ADDRESS = Kind('an address such as "www@example.org" or "Web <www@example.org>"', _fits_address)
NETWORK = Kind('an address or network, such as "192.0.2.7" or "192.0.2.0/24"', _fits_network)
SCHEDULER = Kind('an address such as "tls://batch.example.edu:8786", or tcp://', _fits_scheduler)


def _fits_batch_call(value: Any) -> bool:
    words = value.split(" ") if isinstance(value, str) and value.isprintable() else [""]
    return names.is_name(words[0]) and all(words)


BATCH_CALL = Kind(
    'a program of batch/ and what it is called with, a blank between, such as "forms-nightly -render"',
    _fits_batch_call,
)
CORE_FILER = Kind(f"a name of at most {names.NAME_LIMIT} printable characters", _fits_core_filer)
_UMASKS = frozenset(f"{mode:0{width}o}" for mode in range(0o1000) for width in (3, 4))
DIRECTORIES = _list_of(DIRECTORY)
TEXTS = _list_of(TEXT)
OCTAL = Kind('an octal umask such as "007"', lambda value: isinstance(value, str) and value in _UMASKS)


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the settings file."""

    section: str
    name: str
    kind: Kind
    default: Any
    why: str


SECTIONS = {
    "site": "Where this cluster keeps what.",
    "gather": "What visitors and machines send, in files on the server that took it.",
    "survey": "The browser survey: cgi-bin/survey.cgi and batch/survey-nightly.",
    "forms": "Forms declared in files: cgi-bin/form.cgi and batch/forms-nightly.",
    "publish": "Results of batch jobs on their way into the production tree.",
    "install": "Development trees on their way into the production tree: wwwdinst and wwwuinst.",
    "push": "The production tree on its way to the servers.",
    "mail": "Letters: batch/mail-report and the notices of the other programs.",
    "poll": "The polling agent: cgi-bin/poll.cgi and batch/backup-watch, on the host that a storage cluster polls.",
    "aggregate": "Reports of nodes: cgi-bin/report.cgi, request.cgi, batch/controller, batch/node-report on a node.",
    "runbatch": "On development hosts: cgi-bin/runbatch.cgi, which runs batch programs that are being developed.",
    "accounting": "An example of feeding SSM2's outgoing directory: batch/accounting-nightly.",
    "push_hosts": "Hosts that get what is pushed first and then push it on, each to a share of the servers. "
    "One whose own settings have [[servers]] serves those alone, so keep them equal to these.",
    "groups": "Names for sets of servers. Repeat the section for each.",
    "servers": "One section a server, or a set of equal ones. Repeat it for each.",
    "queues": "Directory queues that several users share by a group, for check-site. Repeat the section for each.",
    "core_filers": "Core filers whose backups the polling agent looks after. Repeat the section for each; every "
    "backend has an example in lib/infocluster/poll/backends/.",
}

REPEATED = frozenset({"push_hosts", "groups", "servers", "queues", "core_filers"})

# A setting's type, default and reason stand together.
# fmt: off
TABLE = (
    Setting("site", "name", TEXT, "infocluster", "What the site is called, on pages and in letters."),
    Setting("site", "url", URL, "http://localhost/", "Where visitors find it; letters link to it."),
    Setting(
        "site", "cgi_url", TEXT, "/cgi-bin/",
        "Where the programs of cgi-bin/ are, on that site or as a whole address; pages and letters link to them.",
    ),
    Setting(
        "site", "production_dir", DIRECTORY, "var/www",
        "The one production tree, on the batch host. Its subdirectories (world, ...) are the access trees.",
    ),
    Setting(
        "site", "development_dirs", DIRECTORIES, ["var/wwwdev", "var/wwwudev"],
        "The development trees, wwwdinst's first, wwwuinst's second. Their .wwwinstrc protects what jobs publish.",
    ),
    Setting(
        "site", "state_dir", DIRECTORY, "var/state",
        "What the file owner's programs remember: databases, journals, locks, letters. On a local disk, not NFS.",
    ),
    Setting(
        "site", "server_user", NAME, "www-data",
        "Who the web server runs as: the owner of the gather directories, and of nothing else here.",
    ),
    Setting(
        "site", "file_owner", TEXT, "",
        "Who owns the production tree and runs the batch jobs. \"\" stands for the owner of PRODUCTION_DIR.",
    ),
    Setting(
        "gather", "gather_dir", DIRECTORY, "var/gather",
        "Where the batch host sees the servers' gather directories, as GATHER_DIR/SERVER/HOST/APP.",
    ),
    Setting(
        "gather", "pull_from", TEXT, "",
        "Where there is no NFS: the directory on each server of the kind web that holds HOST/APP, such as /gather, "
        "or \".\" where the key's command gives one directory only; %h is the server's name. See gather-pull(1).",
    ),
    Setting(
        "gather", "pull_user", TEXT, "",
        "Who gather-pull is on the servers: somebody who may read there and no more. \"\" is the user of pushes.",
    ),
    Setting("gather", "host", NAME, "www", "The HOST part of that path: the web service whose visitors are read."),
    Setting(
        "gather", "durable", BOOLEAN, True,
        "Whether a record is on the disk before its visitor is answered. false spares an fsync (0.2 to 10 ms a hit) "
        "and may lose the last seconds to a power cut.",
    ),
    Setting(
        "gather", "lock_timeout_s", _seconds(0.1, 300), 10,
        "Seconds a hit waits for the lock of its application before it answers 503.",
    ),
    Setting(
        "gather", "limit_bytes", _whole(256, 1 << 24), 65536,
        "Bytes a record may have as a line. A longer one is refused: a segment is read in memory-sized parts.",
    ),
    Setting(
        "gather", "marks", TREE_PATH, "gather/marks",
        "Where in the production tree the night leaves how far it has read, for gather-sweep on the servers. "
        "Keep it in a tree that is pushed but not served.",
    ),
    Setting(
        "gather", "keep_days", _whole(0, 3650), 7,
        "Days a server keeps a segment after its day has ended and the batch host has read all of it.",
    ),
    Setting(
        "gather", "processes", _whole(0, 1024), 0,
        "Processes that read gathered records at once; 0 means one a core.",
    ),
    Setting(
        "gather", "engine", _one_of("local", "dask"), "local",
        "Where gathered records are counted: in PROCESSES of this host, or by the workers of a Dask cluster, which "
        "have to see GATHER_DIR as this host does; doc/folding.md has the rest.",
    ),
    Setting(
        "gather", "scheduler", SCHEDULER, "tcp://localhost:8786",
        'The address of the cluster\'s scheduler, for engine = "dask". It runs whatever whoever reaches it sends: '
        "tls:// with certificates, or a network that is yours alone.",
    ),
    Setting(
        "gather", "scheduler_timeout_s", _seconds(1, 3600), 30,
        "Seconds the scheduler has to answer, and the cluster may be without a worker, before a night gives up; the "
        "next one does it all.",
    ),
    Setting("survey", "app", NAME, "survey", "The application's name below the gather directories."),
    Setting(
        "survey", "store", _one_of("segments", "queue"), "segments",
        "What keeps its records there: a file a day, or a directory queue, which other programs can consume too.",
    ),
    Setting(
        "survey", "directory", TREE_PATH, "world/survey",
        "Where the night publishes, and where on a web server the CGI finds what it shows.",
    ),
    Setting(
        "survey", "agent_limit_bytes", _whole(16, 8192), 512,
        "Bytes of a User-Agent that are kept; longer ones are cut. Apache itself takes at most 8190.",
    ),
    Setting("survey", "top", _whole(1, 1000), 12, "Rows a table or a picture shows by name; the rest is summed up."),
    Setting(
        "forms", "forms_dir", DIRECTORY, "etc/forms",
        "Where the declarations are, NAME.toml for form.cgi/NAME; the same on batch host and web servers.",
    ),
    Setting(
        "forms", "secret", NAME, "forms",
        "The file in etc/secrets that signs what a form sends back; the same on all servers, for their user to read.",
    ),
    Setting(
        "forms", "directory", TREE_PATH, "world/forms",
        "Where thanks and published answers go, in NAME/ below it. Everything else stays in STATE_DIR/forms/NAME.",
    ),
    Setting(
        "publish", "lock_timeout_s", _seconds(0, 86400), 3600,
        "Seconds a job waits for the path locks of installs and pushes before it gives up until its next run.",
    ),
    Setting(
        "install", "groups", _list_of(GRANT), [],
        "Who may install what: members of a group, below a path. None lets everybody install what he may write in "
        "the development tree, which is asked for in any case. The file owner may install everything.",
    ),
    Setting(
        "install", "sudo", TEXT, "",
        "The program by which a developer's run goes on as the file owner, such as \"/usr/bin/sudo\"; etc/sudoers "
        "shows what it has to allow. None: it goes on as the developer, by group permissions.",
    ),
    Setting("install", "lock_timeout_s", _seconds(0, 86400), 3600, "Seconds an install waits for its path locks."),
    Setting("install", "make", PROGRAM, "/usr/bin/make", "The program that reads a .wwwinstmk."),
    Setting("install", "make_timeout_s", _seconds(1, 86400), 600, "Seconds it may take in one directory."),
    Setting(
        "install", "ignore", TEXTS, [".git", ".svn", ".hg", "CVS", "*~", "#*#", ".#*", ".*.sw[a-p]"],
        "Names that are left alone in every directory, with the wildcards of .wwwinstrc. RCS and *,v always are.",
    ),
    Setting(
        "install", "undo_count", _whole(0, 10000), 50,
        "Installs that can be undone: what they replaced is kept in STATE_DIR/install/undo.",
    ),
    Setting("install", "undo_mb", _whole(0, 1 << 30), 1024, "MB that may take, in all; the oldest goes first."),
    Setting("install", "log_count", _whole(1, 1000000), 1000, "Installs that -log remembers."),
    Setting(
        "push", "slots", _whole(1, 1000), 4,
        "Pushes that run on this host at once; each serves many servers. May change while pushes run.",
    ),
    Setting("push", "parallel", _whole(1, 1000), 16, "Servers that one push updates at once."),
    Setting("push", "server_timeout_s", _seconds(1, 86400), 3600, "Seconds one server may take, tries included."),
    Setting("push", "connect_timeout_s", _seconds(1, 300), 10, "Seconds a server may take to answer a connection."),
    Setting("push", "retries", _whole(0, 20), 2, "Times a server that could not be reached is tried again."),
    Setting(
        "push", "retry_pause_s", _seconds(0, 600), 2,
        "Seconds before the first such try; each later one waits twice as long.",
    ),
    Setting("push", "ssh", PROGRAM, "/usr/bin/ssh", "The program that reaches servers, for ssh and rdist."),
    Setting(
        "push", "ssh_config", TEXT, "",
        "A configuration file for it, with keys and known hosts; by default its own ones.",
    ),
    Setting(
        "push", "ssh_keep_s", _seconds(0, 86400), 600,
        "Seconds a connection to a server is kept open for the next push; 0 opens a new one each time.",
    ),
    Setting(
        "push", "push_host_command", TEXT, "",
        "The program wwwpush on the push hosts; by default called as here.",
    ),
    Setting("push", "rsync", PROGRAM, "/usr/bin/rsync", "The program behind transport = \"ssh\" and \"daemon\"."),
    Setting("push", "rdist", PROGRAM, "/usr/bin/rdist", "The program behind transport = \"rdist\"."),
    Setting(
        "mail", "transport", _one_of("smtp", "sendmail"), "smtp",
        "How letters leave: over SMTP, or through a program that takes sendmail's options.",
    ),
    Setting("mail", "smtp_host", TEXT, "localhost", "The mail server."),
    Setting("mail", "smtp_port", _whole(1, 65535), 25, "Its port."),
    Setting("mail", "timeout_s", _seconds(1, 600), 30, "Seconds to wait for an answer of the mail server."),
    Setting("mail", "sendmail", PROGRAM, "/usr/sbin/sendmail", "The program for transport = \"sendmail\"."),
    Setting("mail", "from", ADDRESS, "www-mgmt@localhost", "Who the letters are from."),
    Setting("mail", "to", _list_of(ADDRESS), ["www-mgmt@localhost"], "Who gets the night's report."),
    Setting(
        "poll", "state_dir", TEXT, "",
        "Where the states are: on a local disk, the server's user's own. \"\" means $SERVER_GATHER/poll.",
    ),
    Setting(
        "poll", "allow", _list_of(NETWORK), [],
        "Who may ask: the cluster's addresses, and those of people and backups that report. None lets all ask.",
    ),
    Setting(
        "poll", "token", TEXT, "",
        "The file in etc/secrets that holds the token every poll has to bring, as in poll.cgi?token=... None: none.",
    ),
    Setting(
        "poll", "age_s", _whole(0, 31622400), 86400, "Seconds that a target time may lie in the past when it is new.",
    ),
    Setting("poll", "horizon_s", _whole(0, 31622400), 691200, "Seconds that it may lie in the future then."),
    Setting(
        "poll", "keep_days", _whole(1, 3650), 30,
        "Days that a state is kept, and answered, after its target time is no longer taken as a new one: what was "
        "released stays so.",
    ),
    Setting(
        "poll", "states_limit", _whole(1, 1000000), 5000,
        "States of one core filer at once; a poll for one more is answered 503.",
    ),
    Setting("poll", "poll_s", _seconds(1, 86400), 10, "Seconds between polls; status.cgi tells when one is overdue."),
    Setting("poll", "follow_s", _seconds(0.1, 3600), 5, "Seconds between two rounds of backup-watch -follow."),
    Setting("poll", "start_timeout_s", _seconds(0.1, 3600), 60, "Seconds that starting a backup may take."),
    Setting("poll", "ask_timeout_s", _seconds(0.1, 3600), 30, "Seconds that asking how it stands may take."),
    Setting("aggregate", "app", NAME, "reports", "The queue of reports below the gather directories."),
    Setting(
        "aggregate", "aggregators", TEXTS, ["FileProcessor", "Counters", "NodeHealth"],
        "Classes that the controller runs, with what they depend on.",
    ),
    Setting(
        "aggregate", "collectors", TEXTS, ["FileCollector", "CounterCollector", "HealthCollector"],
        "Classes that node-report runs on a node.",
    ),
    Setting(
        "aggregate", "module_dirs", DIRECTORIES, [],
        "Where module files are beside the built-in ones. Only their owner, who is root or who runs them, may write.",
    ),
    Setting(
        "aggregate", "directory", TREE_PATH, "world/nodes",
        "Where the controller publishes, and where on a web server request.cgi and status.cgi find it.",
    ),
    Setting("aggregate", "limit_bytes", _whole(1024, 1 << 24), 4194304, "Bytes that the body of a report may have."),
    Setting(
        "aggregate", "clock_s", _seconds(1, 86400), 300,
        "Seconds by which the clocks of a node and of the web server may differ.",
    ),
    Setting(
        "aggregate", "period_s", _whole(1, 2678400), 180,
        "Seconds that a node may be silent before it is shown gray; node-report says it in each report.",
    ),
    Setting("aggregate", "update_period_s", _seconds(0.1, 86400), 5, "Seconds between two updates."),
    Setting("aggregate", "look_s", _seconds(0.05, 3600), 1, "Seconds between two looks of controller -serve."),
    Setting(
        "aggregate", "call_limit_s", _seconds(0.1, 3600), 10,
        "Seconds that an aggregator or a collector may take at once, or its file to be loaded.",
    ),
    Setting("aggregate", "updates_count", _whole(1, 100000), 200, "Updates that are kept for those who missed some."),
    Setting(
        "aggregate", "updates_limit_bytes", _whole(0, 1 << 28), 2097152,
        "Bytes that they may have together; the newest is kept whatever it has. Where there is no socket, "
        "request.cgi reads all of them for each ?updates.",
    ),
    Setting(
        "aggregate", "keep_days", _whole(1, 3650), 30,
        "Days that a report may be late, and that its id is remembered so that it takes effect once.",
    ),
    Setting("aggregate", "aside_count", _whole(1, 100000), 1000, "Reports set aside that are kept."),
    Setting(
        "aggregate", "socket", TEXT, "",
        "The Unix socket at which controller -serve answers request.cgi, where both are on one host. None: none.",
    ),
    Setting(
        "aggregate", "answer_limit_s", _seconds(0.1, 30), 2,
        "Seconds that request.cgi waits there before it answers from what was published.",
    ),
    Setting("aggregate", "files_dir", DIRECTORY, "var/state/files", "Where FileProcessor keeps the nodes' files."),
    Setting("aggregate", "file_limit_bytes", _whole(1, 1 << 24), 1048576, "Bytes that one of them may have."),
    Setting("aggregate", "files_limit", _whole(1, 100000), 100, "How many of them a node may have."),
    Setting("aggregate", "counters_limit", _whole(1, 10000), 100, "How many counters a node may have."),
    Setting(
        "aggregate", "metrics_file", TEXT, "",
        "A file for a textfile collector of others' monitoring, such as \"/var/lib/metrics/infocluster.prom\".",
    ),
    Setting(
        "aggregate", "push", BOOLEAN, False, "Whether the controller calls wwwpush after a publication that changed.",
    ),
    Setting("aggregate", "node", TEXT, "", "On a node: its name. \"\" stands for its host name up to the first dot."),
    Setting(
        "aggregate", "report_url", TEXT, "",
        "On a node: where reports go, such as \"https://www.example.org/cgi-bin/report.cgi\".",
    ),
    Setting("aggregate", "spool_dir", DIRECTORY, "var/state/spool", "On a node: where reports wait."),
    Setting("aggregate", "spool_limit", _whole(1, 1000000), 10000, "How many may wait; the oldest go first."),
    Setting("aggregate", "send_timeout_s", _seconds(0.1, 600), 20, "Seconds that handing one in may take."),
    Setting(
        "aggregate", "files", TEXTS, [],
        "On a node: files that FileCollector hands in, with wildcards; of several that share a name, the first.",
    ),
    Setting(
        "aggregate", "counters", TEXTS, ["/proc/net/dev", "/proc/stat"],
        "On a node: what CounterCollector reads: these two, and files with a line \"NAME NUMBER\" for each counter.",
    ),
    Setting("aggregate", "disks", TEXTS, ["/"], "On a node: directories whose file systems are looked at."),
    Setting("aggregate", "queues", TEXTS, [], "On a node: simple directory queues whose lengths it tells."),
    Setting(
        "runbatch", "programs", _list_of(BATCH_CALL), [],
        "What may be run, each also named in etc/sudoers.runbatch. None: there is no runbatch.cgi, it answers 404.",
    ),
    Setting("runbatch", "hosts", _list_of(NETWORK), [], "Addresses that may ask for it. None lets nobody."),
    Setting("runbatch", "users", TEXTS, [], "Who may, as the web server authenticated them. None lets nobody."),
    Setting(
        "runbatch", "run_on", TEXTS, [],
        "Host names, in full or up to the first dot, of the machines it works on, where several have these settings. "
        "None: it works on each that has them.",
    ),
    Setting("runbatch", "sudo", PROGRAM, "/usr/bin/sudo", "The program by which it goes on as the file owner."),
    Setting(
        "runbatch", "time_limit_s", _seconds(1, 86400), 600,
        "Seconds a program may take; then it is ended, with all that it started.",
    ),
    Setting(
        "accounting", "queue_dir", DIRECTORY, "var/outgoing",
        "SSM2's outgoing directory, usually /var/spool/apel/outgoing.",
    ),
    Setting("accounting", "site", TEXT, "", "What the site is called in messages, in ASCII; by default site.name."),
    Setting("accounting", "umask", OCTAL, "007", "Of what is added: 007 lets a group share the queue with ssmsend."),
    Setting(
        "accounting", "limit_bytes", _whole(1024, 1 << 30), 983616,
        "Bytes of a message; larger ones are split. A broker takes 1 MB, signature included.",
    ),
    Setting("queues", "queue_dir", DIRECTORY, None, "The queue's top directory. Required."),
    Setting(
        "queues", "users", TEXTS, None,
        "Who adds to it and consumes it, such as [\"www-data\", \"apel\"]; all are in its group. Required.",
    ),
    Setting(
        "push_hosts", "name", TEXT, None,
        "The host name of a push host, or several as a node set: \"push[1-2].example.edu\". Required.",
    ),
    Setting(
        "push_hosts", "directory", TEXT, "",
        "The production tree's directory there, its own PRODUCTION_DIR; by default called as here.",
    ),
    Setting("push_hosts", "user", TEXT, "", "Who to be there, by ssh; by default who runs the push."),
    Setting("push_hosts", "port", _whole(0, 65535), 0, "Port of its sshd; 0 means the usual one."),
    Setting("groups", "name", NAME, None, "What the group is called: @NAME in servers.name. Required."),
    Setting("groups", "nodes", TEXT, None, "Its servers, as a node set such as \"web[1-8],ftp1\". Required."),
    Setting(
        "servers", "name", TEXT, None,
        "The server's host name, or several as a node set: \"web[1-40].example.edu\", \"@web\". Required.",
    ),
    Setting("servers", "kind", NAME, "web", "Its family: wwwpush serves \"web\", ftppush \"ftp\"."),
    Setting(
        "servers", "transport", _one_of("local", "ssh", "daemon", "rdist"), "local",
        "How files get there. local: the destination is a directory on this host. ssh: rsync over ssh. daemon: an "
        "rsync daemon, the destination's first part is its module. rdist: rdist over ssh.",
    ),
    Setting(
        "servers", "destination", DIRECTORY, None,
        "The production tree's directory on that server; %h stands for the server's name. Required.",
    ),
    Setting(
        "servers", "user", TEXT, "",
        "Who to be on that server, with ssh, daemon or rdist; by default who runs the push.",
    ),
    Setting("servers", "port", _whole(0, 65535), 0, "Port of its ssh or rsync daemon; 0 means the usual one."),
    Setting(
        "servers", "skeleton", TEXT, "",
        "The distfile skeleton of this kind of server, in etc/, e.g. \"distfile.web.skel\": it says what is not sent "
        "there. None sends everything.",
    ),
    Setting(
        "core_filers", "name", CORE_FILER, None,
        "The core filer's administrative name, as the cluster sends it in mass. Required.",
    ),
    Setting(
        "core_filers", "backend", NAME, None,
        "How its backup is started and asked: \"command\", \"marker\", \"url\", \"systemd\", \"snapshots\" (restic, "
        "borg), \"callback\", or a module of your own in lib/infocluster/poll/backends/. Required.",
    ),
    Setting(
        "core_filers", "on_failure", _one_of("hold", "release"), "hold",
        "What becomes of a backup that failed or expired. hold: the cluster is never told to go on. release: it is, "
        "hold_s after its first poll, without a backup; the operator gets a letter.",
    ),
    Setting("core_filers", "hold_s", _seconds(0, 2678400), 3600, "Seconds after the first poll, for on_failure."),
    Setting(
        "core_filers", "limit_s", _seconds(1, 2678400), 43200,
        "Seconds after target time and first poll until a backup that is not complete has expired.",
    ),
    Setting(
        "core_filers", "start", TEXTS, [],
        "The command that starts the backup and returns; in its arguments %m is the core filer, %t the target time, "
        "%r the run, %j the job. For all backends but url and systemd; only command needs one.",
    ),
    Setting(
        "core_filers", "status", TEXTS, [],
        "command: the command that ends with 0 when the backup is complete, 75 while it runs. snapshots: one that "
        "lists snapshots as JSON.",
    ),
    Setting(
        "core_filers", "secret", TEXT, "",
        "A file in etc/secrets. callback: the key of its tokens. url: what is sent as Authorization.",
    ),
    Setting(
        "core_filers", "marker", TEXT, "",
        "marker: the file that the backup touches; %m, %t, %r, %j as above. Without %t here or in marker_text, a "
        "late backup releases the next target time too.",
    ),
    Setting("core_filers", "marker_age_s", _seconds(0, 86400), 0, "marker: seconds since it was touched last."),
    Setting("core_filers", "marker_text", TEXT, "", "marker: a line that has to stand in it, such as \"done %t\"."),
    Setting("core_filers", "unit", TEXT, "", "systemd: the unit, such as \"backup@%m.service\"."),
    Setting("core_filers", "systemctl", PROGRAM, "/usr/bin/systemctl", "systemd: the program that is asked."),
    Setting("core_filers", "list_pointer", TEXT, "", "snapshots: JSON pointer to the list; \"\" is the whole."),
    Setting("core_filers", "time_pointer", TEXT, "/time", "snapshots: JSON pointer from an item to its time."),
    Setting("core_filers", "start_url", TEXT, "", "url: the address of the POST that starts the backup."),
    Setting("core_filers", "job_pointer", TEXT, "", "url: JSON pointer to the job in the reply; \"\" means none."),
    Setting("core_filers", "status_url", TEXT, "", "url: the address of the GET that says how it stands."),
    Setting("core_filers", "state_pointer", TEXT, "/state", "url: JSON pointer to the word that says so."),
    Setting("core_filers", "complete_words", TEXTS, ["complete"], "url: words there that say it is complete."),
    Setting("core_filers", "failed_words", TEXTS, ["failed"], "url: words there that say it failed."),
    Setting("core_filers", "progress_pointer", TEXT, "", "url: JSON pointer to how far it is; \"\" means none."),
)
# fmt: on

_DIRECTORIES = (
    "production_dir",
    "state_dir",
    "gather_dir",
    "development_dirs",
    "forms_dir",
    "destination",
    "sendmail",
    "module_dirs",
    "files_dir",
    "spool_dir",
    "queue_dir",
)


def read(file: str, root: str | None = None) -> dict[str, Any]:
    """Return the settings of a TOML file, checked, with defaults filled in.

    Args:
        file: path of the TOML file.
        root: the tree that relative directories count from; by default the one that holds the file's directory.

    Returns:
        A dictionary by section; a repeated section is a list of dictionaries.

    Raises:
        ConfigError: ``FILE:LINE: SECTION.NAME = VALUE: expected WHAT``.
    """
    try:
        with open(file, "rb") as stream:
            text = stream.read().decode("utf-8")
        written = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read the settings {file}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the settings {file}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"cannot read the settings {file}: {error}") from error
    return _Checked(file, text, root or os.path.dirname(os.path.dirname(os.path.abspath(file)))).settings(written)


def sample() -> str:
    """Return etc/infocluster.toml: every setting commented out with its default, what it has to be and why."""
    lines = [
        '# Settings of infocluster. A line that begins with "#name =" shows a default; remove the # to change it.',
        "# Relative directories count from the directory that holds etc/.",
        "# After a change, batch/check-site says whether all is well, and check-site -compile makes hits fast again.",
    ]
    for section, about in SECTIONS.items():
        lines += ["", *_wrapped(about)]
        repeated = section in REPEATED
        lines.append(f"#[[{section}]]" if repeated else f"[{section}]")
        for setting in TABLE:
            if setting.section == section:
                lines += [*_wrapped(f"{setting.why} ({setting.kind.expected})")]
                is_list = setting.default is None and setting.kind is TEXTS
                lines.append(f"#{setting.name} = {'[]' if is_list else toml(setting.default)}")
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width=108, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def toml(value: Any) -> str:
    """Return a setting's value as it is written in the file; a required one's as an empty text."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return str(value)


class _Checked:
    """One file being checked: its name and text, so that a fault is told with its line."""

    def __init__(self, file: str, text: str, root: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self.root = root

    def settings(self, written: dict[str, Any]) -> dict[str, Any]:
        for section in written:
            if section not in SECTIONS:
                raise self.fault(section, None, f"unknown section; expected one of {', '.join(SECTIONS)}")
        result: dict[str, Any] = {}
        for section in SECTIONS:
            if section in REPEATED:
                items = written.get(section, [])
                if not isinstance(items, list):
                    raise self.fault(section, None, f"expected [[{section}]], once for each")
                result[section] = [self.section(section, item, place) for place, item in enumerate(items)]
                self.refuse_twice(section, result[section])
            else:
                result[section] = self.section(section, written.get(section, {}))
        return result

    def section(self, section: str, written: Any, place: int = 0) -> dict[str, Any]:
        if not isinstance(written, dict):
            raise self.fault(section, None, f"expected a section [{section}]")
        known = {setting.name: setting for setting in TABLE if setting.section == section}
        for name in written:
            if name not in known:
                raise self.fault(section, name, f"unknown setting; expected one of {', '.join(known)}", place)
        result = {}
        for name, setting in known.items():
            value = written.get(name, setting.default)
            if value is None:
                raise self.fault(section, name, "has to be set", place)
            if not setting.kind.fits(value):
                raise self.fault(section, name, f"{toml(value)}: expected {setting.kind.expected}", place)
            result[name] = self.absolute(value) if value and name in _DIRECTORIES else value
        return result

    def refuse_twice(self, section: str, items: list[dict[str, Any]]) -> None:
        """Refuse a second section of one name; a host may be a server of several kinds."""
        seen = set()
        for place, item in enumerate(items):
            name = item.get("name"), item.get("kind")
            if name[0] is not None and name in seen:
                raise self.fault(section, "name", f"{toml(name[0])}: expected a name of its own", place)
            seen.add(name)

    def absolute(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.absolute(item) for item in value]
        return os.path.normpath(os.path.join(self.root, value))

    def fault(self, section: str, name: str | None, what: str, place: int = 0) -> ConfigError:
        line = self.line(section, name, place)
        subject = section if name is None else f"{section}.{name}"
        return ConfigError(f"{self.file}:{line}: {subject}: {what}")

    def line(self, section: str, name: str | None, place: int) -> int:
        """Return the line that a fault is about, or the section's, or 1: found by eye, as a person would."""
        found, inside, seen = 1, False, -1
        for number, line in enumerate(self.lines, 1):
            words = line.split("#")[0].strip()
            if words.startswith("["):
                inside = words.strip("[] ") == section
                seen += inside
                if inside and seen <= place:
                    found = number
            elif inside and seen == place and name is not None and words.split("=")[0].strip().strip("\"'") == name:
                return number
        return found
