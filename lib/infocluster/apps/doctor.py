# SPDX-License-Identifier: Apache-2.0
"""What check-site does: look at everything that the promises of this house rest on, and say the mend of each fault.

The promises rest on owners and modes (the server's user writes gather directories and nothing else, the file owner
reads those and writes the rest), on settings and compiled copies that are those of their sources, on programs and
cron entries that are there, and on clocks that agree. Each check yields its faults; a fault has a mend, a command
where one can be named. Nothing is changed, but for one record that is gathered, read back and dropped.

Shape: ``-json`` prints ``{"tree": "/opt/infocluster", "checks": {"users": "ok", "gather": "not checked: ..."},
    "faults": [{"check": "state", "fault": "/var/state is open to everyone: mode 0755", "mend": "chmod 0750 ..."}]}``
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from infocluster import config, names
from infocluster.apps import accounts, checks_apps, checks_cluster, checks_host, forms_compiled, installation
from infocluster.apps.checks import Fault, NotCheckedError, Place, quoted
from infocluster.cron.command import Run
from infocluster.errors import RefusedError, UnavailableError, reason


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
            # Two secrets may have one directory that is closed.
            faults = list(dict.fromkeys(check(place)))
        except NotCheckedError as error:
            states[name] = f"not checked: {error}"
            continue
        except (RefusedError, UnavailableError) as error:
            states[name] = f"not checked: {error}"
            continue
        except PermissionError as error:
            states[name] = f"not checked: {error.filename} may not be read by {accounts.by_number(os.geteuid()).name}"
            continue
        except OSError as error:
            path = str(error.filename)
            faults = [Fault(f"cannot look at {names.printable(path)}: {reason(error)}", f"ls -ld {quoted(path)}")]
        states[name] = _counted(faults) if faults else "ok"
        for fault, mend in faults:
            run.fault(f"{name}: {fault}; mend: {mend}")
            listed.append({"check": name, "fault": fault, "mend": mend})
    if run.arguments["json"]:
        run.say(json.dumps({"tree": place.root, "checks": states, "faults": listed}))
        return ""
    left_out = {name: state for name, state in states.items() if state.startswith("not checked")}
    for name, state in left_out.items():
        run.say(f"{name}: {state}")
    return f"{len(states) - len(left_out)} checks, {_counted(listed)}"


def _counted(faults: Sequence[object]) -> str:
    return f"{len(faults)} fault{'s' * (len(faults) != 1)}"


def renew(root: str, settings_file: str) -> str:
    """Compile the settings and, in an installed tree, what a hit loads; return what was done.

    Raises:
        ConfigError: the settings or a form say something impossible.
        UnavailableError: a compiled copy cannot be written.
    """
    done = [settings_file]
    os.umask(installation.UMASK)
    try:
        config.compile_settings(settings_file)
        if installation.manifest(root):
            installation.compile_modules(root, root)
            installation.write_compiled(root, root)
            done.append(f"{root}/{installation.COMPILED}")
        forms = forms_compiled.compile_forms(config.load(settings_file))
        if forms:
            done.append(f"the form{'s' * (len(forms) > 1)} {', '.join(forms)}")
    except OSError as error:
        raise UnavailableError(f"cannot compile {done[-1]}: {reason(error)}") from error
    return f"compiled {' and '.join(done)}"


CHECKS: Mapping[str, Callable[[Place], Iterator[Fault]]] = {
    check.__name__: check
    for check in (
        checks_host.users,
        checks_host.tree,
        checks_host.compiled,
        checks_host.settings,
        checks_host.secrets,
        checks_host.state,
        checks_host.production,
        checks_apps.forms,
        checks_cluster.destinations,
        checks_cluster.reach,
        checks_cluster.programs,
        checks_cluster.gather,
        checks_cluster.folding,
        checks_cluster.servers,
        checks_apps.queues,
        checks_apps.polling,
        checks_apps.nodes,
        checks_apps.runbatch,
        checks_host.cron,
    )
}
