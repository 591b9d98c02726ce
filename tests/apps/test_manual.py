# SPDX-License-Identifier: Apache-2.0
"""Man pages: every program has one, groff and man-db read it without a complaint."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from infocluster.apps import forms_declared, manual

ROOT = Path(__file__).resolve().parents[2]


def written(directory: Path) -> dict[str, Path]:
    pages = {}
    for name, content, _ in manual.pages(str(ROOT)):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        pages[path.name] = path
    return pages


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed: .ci/packages installs it"
    return found


def test_every_program_and_format_has_a_page(tmp_path: Path) -> None:
    pages = written(tmp_path)
    for directory in ("cgi-bin", "batch"):
        for program in os.listdir(ROOT / directory):
            assert f"{program}.1" in pages
    assert {"infocluster.toml.5", "infocluster-segment.5", "wwwinstrc.5"} <= set(pages)
    declared = pages["infocluster-form.5"].read_text()
    for keys in (forms_declared.TOP, *forms_declared.SECTIONS.values(), forms_declared.FIELD):
        assert all(f"\\fB{key.name}\\fR" in declared for key in keys)


def test_man_reads_every_page_without_warnings(tmp_path: Path) -> None:
    for path in written(tmp_path).values():
        command = [tool("man"), "--warnings", "-E", "UTF-8", "-l", str(path)]
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "MANWIDTH": "100"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", f"{path.name}: {done.stderr}"


def test_whatis_finds_the_name_and_one_line(tmp_path: Path) -> None:
    for path in written(tmp_path).values():
        if path.read_text().startswith(".so "):
            assert (tmp_path / path.read_text().split()[1]).exists()
            continue
        done = subprocess.run([tool("lexgrog"), str(path)], capture_output=True, text=True, check=False)
        name = path.name.rpartition(".")[0]
        assert f'"{name} - ' in done.stdout, done.stdout


PROGRAM = """tool - do one thing.

Usage: tool [-fast] FILE...

It does what it does. See rename(2).
.dots and 'quotes' at a line's start, a back\\slash, a - dash.

Options:
  -fast       at once,
              without looking
  -slow TIME  later

Steps:
  1. first
  2. then

Exit status: 0; 1 some failed,
  each was told
"""


def rendered(page: manual.Page, aliases: tuple[str, ...] = ()) -> str:
    text = manual.roff(page, "1", 1795384800, aliases)
    command = [tool("groff"), "-K", "utf8", "-man", "-ww", "-T", "ascii", "-P", "-c", "-P", "-b", "-P", "-u"]
    done = subprocess.run(command, input=text, capture_output=True, check=True)
    assert done.stderr == b""
    return " ".join(done.stdout.decode().split())


def test_what_is_written_is_what_is_read() -> None:
    shown = rendered(manual.parse(PROGRAM, "tool"), ("other",))
    assert "NAME tool, other - do one thing SYNOPSIS tool [-fast] FILE... DESCRIPTION It does what it does." in shown
    assert "rename(2). .dots and 'quotes' at a line's start, a back\\slash, a - dash." in shown
    assert "OPTIONS -fast at once, without looking -slow TIME later STEPS 1. first 2. then" in shown
    assert "EXIT STATUS 0; 1 some failed, each was told" in shown


def test_docstring_that_is_no_manual_is_refused() -> None:
    with pytest.raises(ValueError, match="has to begin with 'tool - "):
        manual.parse("Do one thing.", "tool")
