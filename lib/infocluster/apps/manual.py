# SPDX-License-Identifier: Apache-2.0
"""Man pages, made from the docstrings of the programs and of the modules that own a file format.

A program's docstring is its manual: ``NAME - what it does.``, then paragraphs and sections. A section begins with
a word at the left margin, a capital and a colon (``Usage:``, ``Exit status:``); what hangs under it stands to the
right. Lines with two columns, two blanks or more apart, become a list; other indented lines stay as they are.

Shape: ``(name, content, mtime)``, such as ``("man1/wwwpush.1", b".TH WWWPUSH 1 ...", 1795384800)``.

Source: man(7), man-pages(7).
"""

import ast
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import infocluster
from infocluster import config, files, settings
from infocluster.apps import forms_declared

TITLES = {"Usage": "SYNOPSIS", "See also": "SEE ALSO"}
# Sections in the order of man-pages(7); what is not named here stands where it was written, after DESCRIPTION.
FIRST = ("SYNOPSIS", "DESCRIPTION")
LAST = ("READS", "WRITES", "ENVIRONMENT", "EXIT STATUS", "SOURCE", "SEE ALSO")
_HEADING = re.compile(r"([A-Z][a-z]+(?: [a-z]+)?):(?: +(.*))?$")
_COLUMNS = re.compile(r"(\S.*?)(?: {2,})(\S.*)$")
_REFERENCE = re.compile(r"\b([a-z0-9][\w.+-]*)\((\d)\)")

# A format's page: its name, the section of TITLES it fills, the module that specifies it, and one line.
FORMATS = (
    ("infocluster-segment", "lib/infocluster/gather/drop.py", "what a visitor or machine sent, a JSON object a line"),
    ("wwwinstrc", "lib/infocluster/publish/instrc.py", "what an install must leave alone"),
    ("infocluster-distfile", "lib/infocluster/push/skeleton.py", "which files a kind of server gets"),
    ("infocluster-marks", "lib/infocluster/gather/marks.py", "how far the batch host has read, for gather-sweep"),
    ("infocluster-finding", "lib/infocluster/report/findings.py", "what a nightly job has to tell, for mail-report"),
    ("infocluster-letter", "lib/infocluster/letters.py", "a letter until a mail server has taken it"),
    ("infocluster-journal", "lib/infocluster/publish/place.py", "what a job publishes, until all of it is in place"),
    ("infocluster-ticket", "lib/infocluster/locks/tickets.py", "a request for a path lock or a slot"),
    ("infocluster-push", "lib/infocluster/push/record.py", "what is kept of a push"),
    ("infocluster-compiled", "lib/infocluster/config.py", "the settings as a hit reads them"),
)


@dataclass(slots=True)
class Page:
    """A manual in sections: titles to lines as they were written, without the margin."""

    name: str
    about: str
    sections: dict[str, list[str]] = field(default_factory=dict)


def pages(source: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield every man page: path below doc/man, content, mtime in whole seconds (its source's).

    Args:
        source: the tree with cgi-bin/, batch/ and lib/.

    Raises:
        ValueError: a program has no docstring of the form above.
    """
    for directory in ("cgi-bin", "batch"):
        programs = _programs(f"{source}/{directory}")
        for name, aliases in programs.items():
            path = f"{source}/{directory}/{name}"
            mtime_s = int(os.stat(path).st_mtime)
            yield f"man1/{name}.1", roff(parse(docstring(path), name), "1", mtime_s, aliases), mtime_s
            for alias in aliases:
                yield f"man1/{alias}.1", f".so man1/{name}.1\n".encode(), mtime_s
    for name, relative, about in FORMATS:
        path = f"{source}/{relative}"
        if os.path.exists(path):
            mtime_s = int(os.stat(path).st_mtime)
            page = parse(f"{name} - {about}\n\n{_of_users(docstring(path))}", name)
            yield f"man5/{name}.5", roff(page, "5", mtime_s), mtime_s
    for relative, page in (("settings.py", settings_page()), ("apps/forms_declared.py", form_page())):
        mtime_s = int(os.stat(f"{source}/lib/infocluster/{relative}").st_mtime)
        yield f"man5/{page.name}.5", roff(page, "5", mtime_s), mtime_s


def _programs(directory: str) -> dict[str, list[str]]:
    """Return the programs of a directory, each with the names of the links to it."""
    names = [name for name in sorted(os.listdir(directory)) if os.path.isfile(f"{directory}/{name}")]
    programs: dict[str, list[str]] = {
        name: [] for name in names if not name.startswith(".") and not os.path.islink(f"{directory}/{name}")
    }
    for name in names:
        if os.path.islink(f"{directory}/{name}"):
            programs[os.path.basename(os.readlink(f"{directory}/{name}"))].append(name)
    return programs


def docstring(file: str) -> str:
    """Return the docstring of a program or module, "" where it has none."""
    return ast.get_docstring(ast.parse(files.read(file), file)) or ""


def _of_users(text: str) -> str:
    """Return what a module's docstring says to users of its format: without a title of its own, and without races."""
    first, *others = text.split("\n\n")
    paragraphs = [] if _HEADING.match(first) else [first]
    paragraphs += [part for part in others if not part.startswith("RACE:")]
    return re.sub(r"::$", ":", "\n\n".join(paragraphs), flags=re.MULTILINE)


def parse(text: str, name: str) -> Page:
    """Return a docstring as a page.

    Args:
        text: the docstring.
        name: the program's name, which the first line has to begin with; names of links may follow it.

    Raises:
        ValueError: the first line is not ``NAME - what it does.``
    """
    first, _, rest = text.partition("\n")
    named, dash, about = first.partition(" - ")
    if named.partition(",")[0].strip() != name or not dash or not about:
        raise ValueError(f"the docstring of {name} has to begin with '{name} - ...'")
    page = Page(name, about.rstrip("."))
    title, after_blank = "DESCRIPTION", True
    for line in rest.split("\n"):
        heading = _HEADING.match(line)
        if heading:
            title = TITLES.get(heading[1], heading[1].upper())
            page.sections.setdefault(title, [])
            if heading[2]:
                page.sections[title].append(heading[2])
        else:
            if after_blank and line and not line.startswith(" "):
                # A paragraph at the margin hangs under no section.
                title = "DESCRIPTION"
                page.sections.setdefault(title, []).append("")
            page.sections.setdefault(title, []).append(line)
        after_blank = not line
    return page


def roff(page: Page, section: str, mtime_s: int, aliases: Sequence[str] = ()) -> bytes:
    """Return a page in the language of man(7).

    Args:
        page: what it says.
        section: the manual's section, "1" or "5".
        mtime_s: the day of the page, Unix time.
        aliases: other names of the program.
    """
    day = time.strftime("%Y-%m-%d", time.gmtime(mtime_s))
    lines = [
        '.\\" Made by make man from the source: not to be edited.',
        f'.TH "{_text(page.name.upper())}" "{section}" "{day}" "infocluster {infocluster.__version__}" "infocluster"',
        ".SH NAME",
        f"{_text(', '.join([page.name, *aliases]))} \\- {_text(page.about)}",
    ]
    middle = [title for title in page.sections if title not in FIRST + LAST]
    for title in (*FIRST, *middle, *LAST):
        body = page.sections.get(title)
        if body and any(line.strip() for line in body):
            lines += [f".SH {_text(title)}", *_body(title, body)]
    return ("\n".join(lines) + "\n").encode()


def _body(title: str, body: list[str]) -> list[str]:
    lines: list[str] = []
    # Commands stand as they are written, one below the other.
    as_is = title in ("SYNOPSIS", "EXAMPLE", "EXAMPLES")
    for paragraph in _paragraphs(body):
        if lines:
            lines.append(".PP")
        indented = textwrap.dedent("\n".join(paragraph)).split("\n")
        if as_is:
            lines += [".nf", *(_line(line) for line in indented), ".fi"]
        elif all(line.startswith(" ") for line in paragraph) and not any(map(_is_listed, indented)):
            lines += [".RS 4", ".nf", *(_line(line) for line in indented), ".fi", ".RE"]
        else:
            lines += _filled(paragraph)
    return lines


def _paragraphs(body: list[str]) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in [*body, ""]:
        if line.strip():
            paragraph.append(line.rstrip())
        elif paragraph:
            yield paragraph
            paragraph = []


def _is_listed(line: str) -> bool:
    return bool(re.match(r"(?:\d+\.|\*) ", line) or (_COLUMNS.match(line) and not line.startswith(" ")))


def _filled(paragraph: list[str]) -> list[str]:
    """Return running text, its list items as such: ``-name VALUE  what it does``, ``1. step``, ``* point``."""
    lines: list[str] = []
    item_margin = -1
    for line in paragraph:
        margin = len(line) - len(line.lstrip())
        text = line.strip()
        numbered = re.match(r"(\d+\.|\*) +(.*)", text)
        columns = _COLUMNS.match(text) if margin else None
        if numbered:
            lines += [f".IP {_text(numbered[1])} 4" if numbered[1] != "*" else ".IP \\(bu 2", _line(numbered[2])]
            item_margin = margin
        elif columns and (item_margin < 0 or margin <= item_margin):
            lines += [".TP", f"\\fB{_text(columns[1])}\\fR", _line(columns[2])]
            item_margin = margin
        else:
            if item_margin >= 0 and margin <= item_margin:
                lines.append(".PP")
                item_margin = -1
            lines.append(_line(text))
    return lines


def _line(text: str) -> str:
    result = _REFERENCE.sub(lambda found: f"\\fB{found[1]}\\fR({found[2]})", _text(text))
    # A control character at the left margin would be read as a request.
    return "\\&" + result if result[:1] in (".", "'") else result


def _text(text: str) -> str:
    text = text.replace("`", "").replace("\\", "\\e").replace("-", "\\-")
    return text.replace('"', "\\(dq").replace("'", "\\(aq").replace("^", "\\(ha").replace("~", "\\(ti")


def settings_page() -> Page:
    """Return infocluster.toml(5), from the table of settings."""
    page = Page("infocluster.toml", "settings of infocluster")
    page.sections["DESCRIPTION"] = [
        "One TOML file, etc/infocluster.toml of the tree, or the one that INFOCLUSTER_CONF names. Every setting has",
        "a default. Relative directories count from the directory that holds etc/. A name that is not listed here, a",
        "value of the wrong type and an impossible value stop every program, which names file, line and setting.",
        "check-site -compile leaves a compiled copy beside the file, which is used while the file is as it was.",
    ]
    for section, about in settings.SECTIONS.items():
        title = f"[[{section}]]" if section in settings.REPEATED else f"[{section}]"
        page.sections[title] = [about, ""]
        for setting in settings.TABLE:
            if setting.section == section:
                page.sections[title].append(f" {setting.name}  {setting.why} {_is(setting)}")
    page.sections["SEE ALSO"] = ["check-site(1)"]
    return page


def form_page() -> Page:
    """Return infocluster-form(5), from the table of a declaration's keys."""
    page = Page("infocluster-form", "the declaration of a form")
    page.sections["DESCRIPTION"] = [
        "One TOML file a form, NAME.toml in forms.forms_dir, for form.cgi/NAME: keys, then sections, then a section",
        "[[fields]] for each field. A fault is told with file, line and key. doc/forms.md says what the keys are",
        "for; after a change, forms-nightly -render publishes their pages, check-site -compile makes hits fast.",
        "",
        *_keys(forms_declared.TOP),
    ]
    for section, keys in forms_declared.SECTIONS.items():
        page.sections[f"[{section}]"] = _keys(keys)
    page.sections["[[fields]]"] = _keys(forms_declared.FIELD)
    page.sections["SEE ALSO"] = ["form.cgi(1), forms-nightly(1), check-site(1)"]
    return page


def _keys(keys: Sequence[forms_declared.Key]) -> list[str]:
    only = forms_declared.ONLY
    return [
        f" {key.name}  {_is(key)}" + (f" Only of {' and '.join(sorted(only[key.name]))}." if key.name in only else "")
        for key in keys
    ]


def _is(one: settings.Setting | forms_declared.Key) -> str:
    """Return what a setting or a key has to be, and what it is where nobody gives it."""
    given = "" if one.default is None else f" Default: {settings.toml(one.default)}."
    return f"It is {one.kind.expected}.{given}"


def main(arguments: list[str]) -> int:
    """Write every page below a directory and return the exit status."""
    if len(arguments) != 1:
        print("usage: python -m infocluster.apps.manual DIRECTORY", file=sys.stderr)
        return 64
    count = 0
    for name, content, mtime_s in pages(config.ROOT):
        path = f"{arguments[0]}/{name}"
        files.make_directories(os.path.dirname(os.path.abspath(path)))
        files.replace(path, content, durable=False)
        os.utime(path, (mtime_s, mtime_s))
        count += 1
    print(f"{count} man pages in {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
