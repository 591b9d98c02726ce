# SPDX-License-Identifier: Apache-2.0
"""The gateway round every program of batch/, seen from outside: real processes, their output and exit status."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from infocluster.cron import command

LIB = str(Path(command.__file__).parents[2])
DOOR = '''"""job - a program of this test.

Usage: job [-show] [-limit N] [NAME...]

The end of the manual.
"""
import sys
sys.path[:0] = [{lib!r}, {here!r}]
from infocluster.cron import command
command.run("handler:work", alone={alone})
'''
WAIT = "    run.say('in')\n    sys.stdin.readline()\n"


@dataclass
class Job:
    """A program with a handler, and a settings file, in a directory of their own."""

    root: Path

    def write(self, body: str = "", alone: bool = True) -> "Job":
        (self.root / "etc").mkdir(exist_ok=True)
        (self.root / "etc/infocluster.toml").touch()
        (self.root / "job").write_text(DOOR.format(lib=LIB, here=str(self.root), alone=alone))
        head = "import os, signal, sys\nfrom infocluster import errors\n\n\ndef work(run):\n"
        (self.root / "handler.py").write_text(head + body + "\n    return 'all done'\n")
        return self

    def start(self, *arguments: str, shell: str = "", conf: str = "", **options: object) -> "subprocess.Popen[str]":
        words = [sys.executable, str(self.root / "job"), *arguments]
        if shell:
            words = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *words]
        pipes: dict[str, object] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            words,
            text=True,
            cwd=self.root,
            env={"INFOCLUSTER_CONF": conf or str(self.root / "etc/infocluster.toml"), "PYTHONDONTWRITEBYTECODE": "1"},
            **(pipes | options),  # type: ignore[call-overload]
        )

    def run(self, *arguments: str, shell: str = "", conf: str = "") -> tuple[int, str, str]:
        with self.start(*arguments, shell=shell, conf=conf) as process:
            output, errors = process.communicate(timeout=30)
        return process.returncode, output, errors


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("argument", "status", "output", "errors"),
    [
        ("-help", 0, "job - a program of this test.\n\nUsage: job [-show]", ""),
        ("--help", 0, "The end of the manual.\n", ""),
        ("-h", 0, "The end of the manual.\n", ""),
        ("-version", 0, "job (infocluster) 0.", ""),
        ("--version", 0, "job (infocluster) 0.", ""),
        (
            "-shw",
            64,
            "",
            "job: cannot use '-shw': there is no such option\nUsage: job [-show] [-limit N] [NAME...]\n",
        ),
    ],
)
def test_help_version_and_wrong_arguments_are_answered_before_anything_is_loaded(
    job: Job, argument: str, status: int, output: str, errors: str
) -> None:
    job.write("    raise AssertionError")
    (job.root / "handler.py").write_text("raise AssertionError('the handler was imported')")
    found = job.run(argument, conf="/nonexistent/settings.toml")
    assert found[0] == status
    assert output in found[1] and bool(output) == bool(found[1])
    assert found[2] == errors
    # -I and -S: what this interpreter's own start-up files load is not ours.
    with subprocess.Popen(
        [sys.executable, "-IS", "-X", "importtime", str(job.root / "job"), argument],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        trace = process.communicate(timeout=30)[1]
    loaded = set(re.findall(r"\| +(\S+)$", trace, re.MULTILINE))
    assert "infocluster.cron.command" in loaded
    heavy = {"argparse", "rich", "sqlite3", "re", "typing", "tomllib", "filelock", "handler", "traceback", "signal"}
    assert not loaded & (heavy | {"infocluster.config", "infocluster.settings", "infocluster.cron.progress"})


def test_the_handler_gets_its_arguments_and_its_summary_is_said(job: Job) -> None:
    job.write("    run.say(repr((run.program, run.arguments, run.settings['mail']['smtp_port'])))")
    status, output, errors = job.run("-limit", "3", "a", "b")
    arguments = {"show": False, "limit": "3", "name": ["a", "b"]}
    assert (status, errors) == (0, "")
    assert output == f"{('job', arguments, 25)!r}\njob: all done\n"


def test_no_summary_prints_nothing(job: Job) -> None:
    assert job.write("    return ''").run() == (0, "", "")


@pytest.mark.parametrize(
    ("body", "status", "errors"),
    [
        ("    run.fault('cannot read web3: gone')", 1, "job: cannot read web3: gone\n"),
        ("    raise errors.UnavailableError('cannot go on: full')", 75, "job: cannot go on: full\n"),
        ("    raise errors.UsageError('cannot use x: no')", 64, "job: cannot use x: no\n"),
        ("    run.fault('one'); raise errors.ConfigError('two')", 78, "job: one\njob: two\n"),
        ("    run.fault('a\\x1b]b\\nc')", 1, "job: a\\x1b]b\\x0ac\n"),
    ],
)
def test_what_failed_is_one_line_and_the_exit_status(job: Job, body: str, status: int, errors: str) -> None:
    found = job.write(body).run()
    assert (found[0], found[2]) == (status, errors)
    assert found[1] == ("job: all done\n" if status == 1 else "")


def test_a_fault_of_ours_is_told_with_its_traceback(job: Job) -> None:
    status, output, errors = job.write("    return {}['key']").run()
    assert (status, output) == (70, "")
    assert errors.startswith("job: Traceback") and "KeyError: 'key'" in errors


def test_unreadable_settings_exit_78(job: Job) -> None:
    status, _, errors = job.write().run(conf="/nonexistent/settings.toml")
    assert status == 78
    assert errors == "job: cannot read the settings /nonexistent/settings.toml: No such file or directory\n"


def test_a_second_run_leaves_at_once_and_names_the_first(job: Job) -> None:
    job.write(WAIT)
    with job.start() as first:
        assert said(first) == "in"
        status, output, errors = job.run()
        assert first.communicate("\n", timeout=30) == ("job: all done\n", "")
    assert (status, output) == (75, "")
    assert re.fullmatch(rf"job: cannot lock \S+/locks/job\.lock: held by pid {first.pid} \(.+\)\n", errors)
    assert job.write().run()[0] == 0


def test_programs_that_need_not_be_alone_run_side_by_side(job: Job) -> None:
    job.write(WAIT, alone=False)
    with job.start() as first, job.start() as second:
        assert said(first) == said(second) == "in"
        for process in (first, second):
            process.communicate("\n", timeout=30)
            assert process.returncode == 0


def test_state_directory_is_made_for_its_owner_alone_and_what_is_above_it_for_all(job: Job) -> None:
    job.write()
    before = os.umask(0o022)
    try:
        assert job.run()[0] == 0
    finally:
        os.umask(before)
    modes = [(job.root / path).stat().st_mode & 0o777 for path in ("var", "var/state", "var/state/locks")]
    assert modes == [0o755, 0o750, 0o750]


@pytest.mark.root
def test_root_leaves_nothing_in_the_state_directory_of_another(job: Job) -> None:
    state = job.root / "var/state"
    state.mkdir(parents=True)
    os.chown(state, 65534, 65534)
    status, output, errors = job.write().run()
    assert (status, output) == (77, "") and f"{state} is another's; type: sudo -u '#65534' " in errors
    assert list(state.iterdir()) == []
    assert job.write(alone=False).run()[0] == 0


TIDY = (
    "    try:\n        run.say('in')\n        sys.stdin.readline()\n"
    "    finally:\n        open('tidied', 'w').close()\n"
)  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_quietly_after_what_is_open_was_closed(job: Job, number: signal.Signals) -> None:
    with job.write(TIDY).start() as process:
        assert said(process) == "in"
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + number
    assert (job.root / "tidied").exists()


def test_a_signal_that_was_ignored_from_the_start_stays_so(job: Job) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with job.write(WAIT).start(preexec_fn=ignore) as process:
        assert said(process) == "in"
        process.send_signal(signal.SIGHUP)
        assert process.communicate("\n", timeout=30) == ("job: all done\n", "")
    assert process.returncode == 0


def test_a_signal_to_a_forked_child_ends_the_child_alone(job: Job) -> None:
    body = (
        "    ready, theirs = os.pipe()\n    child = os.fork()\n    if child == 0:\n        os.write(theirs, b'x')\n"
        "        while True: signal.pause()\n"
        "    os.read(ready, 1)\n    os.kill(child, 15)\n    run.say(str(os.waitpid(child, 0)[1]))"
    )
    assert job.write(body).run() == (0, "15\njob: all done\n", "")


def test_the_work_goes_on_when_nobody_reads_what_it_says(job: Job) -> None:
    job.write("    sys.stdin.readline()\n    for n in range(9): run.say('x')\n    open('done', 'w').close()")
    with job.start() as process:
        assert process.stdout and process.stdin and process.stderr
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        process.wait(30)
    assert process.returncode == 0
    assert (job.root / "done").exists()


def test_a_program_that_prints_by_itself_ends_quietly_when_nobody_reads(job: Job) -> None:
    job.write("    sys.stdin.readline()\n    while True: print('x' * 999)")
    with job.start() as process:
        assert process.stdout and process.stdin and process.stderr
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        process.wait(30)
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_pipe_that_breaks_elsewhere_is_not_taken_for_the_output(job: Job) -> None:
    status, _, errors = job.write("    raise BrokenPipeError(32, 'elsewhere')").run()
    assert status == 70
    assert "BrokenPipeError: [Errno 32] elsewhere" in errors


def test_output_that_cannot_be_written_is_a_fault(job: Job) -> None:
    status, _, errors = job.write("    open('done', 'w').close()").run(shell=">/dev/full")
    assert (status, errors) == (1, "job: cannot write to the standard output: No space left on device\n")
    assert (job.root / "done").exists()


def test_a_closed_output_is_not_replaced_by_the_first_file_that_is_opened(job: Job) -> None:
    job.write("    with open('result', 'w') as file:\n        run.say('in')\n        run.fault('out')")
    assert job.run(shell="<&- >&- 2>&-")[0] == 1
    assert (job.root / "result").read_text() == ""
