# SPDX-License-Identifier: Apache-2.0
"""What gather-sweep does: on a web server, drop the segments that the batch host has read."""

import os
import time

from infocluster import files
from infocluster.cron.command import Run
from infocluster.errors import BadInputError, ConfigError, reason
from infocluster.gather import marks, sweep


def work(run: Run) -> str:
    """Sweep every application that there are marks for, and return the summary.

    Raises:
        ConfigError: SERVER_GATHER names no directory, or the marks cannot be read.
    """
    directory = os.environ.get("SERVER_GATHER", "")
    if not directory.startswith("/"):
        raise ConfigError(
            "cannot sweep: SERVER_GATHER names no directory; set it in the crontab as for the web server"
        )
    gather, site = run.settings["gather"], run.settings["site"]
    marks_dir = str(run.arguments["marks"] or f"{site['production_dir']}/{gather['marks']}")
    dropped = 0
    try:
        documents = sorted(name for name in os.listdir(marks_dir) if name.endswith(".json"))
    except OSError as error:
        raise ConfigError(f"cannot read the marks in {marks_dir}: {reason(error)}") from error
    for name in documents:
        path = f"{marks_dir}/{name}"
        try:
            app, read = marks.parse(files.read(path), path)
        except BadInputError as error:
            run.fault(str(error))
            continue
        except OSError as error:
            run.fault(f"cannot read {path}: {reason(error)}")
            continue
        now, keep_days, wait_s = time.time(), gather["keep_days"], gather["lock_timeout_s"]
        dropped += sweep.sweep(directory, app, read, keep_days, now, wait_s, run.say, run.fault)
    swept = _sweep_reports(run, directory, marks_dir)
    if swept:
        run.say(f"drop {swept} report{'s' * (swept != 1)}")
    return f"{dropped} segment{'s' * (dropped != 1)} dropped"


def _sweep_reports(run: Run, directory: str, marks_dir: str) -> int:
    """Drop the reports that the controller has read; return how many."""
    from infocluster.aggregate import reports

    app = run.settings["aggregate"]["app"]
    path = f"{marks_dir}/{app}.queue"
    try:
        keep_s = run.settings["aggregate"]["clock_s"]
        return reports.sweep(f"{directory}/{app}", files.read(path), path, time.time(), keep_s, run.fault)
    except FileNotFoundError:  # no controller reads reports of this cluster
        return 0
    except BadInputError as error:
        run.fault(str(error))
    except OSError as error:
        run.fault(f"cannot read {path}: {reason(error)}")
    return 0
