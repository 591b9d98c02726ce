# SPDX-License-Identifier: Apache-2.0
"""Pages: a template of lib/infocluster/templates/ filled with values; owns jinja2.

The rules of a template, each held by a test:

* every value is escaped: autoescape is on and no template can turn it off; what charts.py drew is handed over
  as `picture`, the only text that goes in as it is;
* a value that is missing is an error, never an empty place;
* every address (``href``, ``src``, ``action``) goes through the filter ``address``;
* the stylesheet stands in the page, so that one file is enough, and the page's own Content-Security-Policy
  names its hash: nothing else in it may paint, and nothing may run.

Templates of somebody's own, beside a form's declaration, are held to the first three by `check_own`, and run in
jinja2's sandbox, without the filter ``safe``: what is printed is escaped even where a template turns autoescape off.
They may extend and include ours.

Shape: ``make install`` leaves compiled templates in ``templates/compiled/<digest>/``, a Python module each. The
    digest covers every template, the stylesheet, this module and jinja2's version, so compiled templates are used
    exactly while they are what the sources would compile to; after any change the sources count.

Source: Jinja documentation; Content Security Policy Level 3, 6.6.2 (hashes); RFC 3986 2.2 and 3.1.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from infocluster import files, names
from infocluster.errors import ConfigError, InfoclusterError, reason

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

TEMPLATES_DIR = os.path.dirname(os.path.abspath(__file__)) + "/templates"
COMPILED_DIR = TEMPLATES_DIR + "/compiled"
STYLESHEET = "style.css"
SCHEMES = ("http", "https", "mailto")


def fill(template_name: str, values: Mapping[str, Any]) -> str:
    """Return a page.

    Args:
        template_name: such as ``survey.html``.
        values: what the template names. Text is escaped, and rid of what no page may carry (`names.visible`).

    Raises:
        InfoclusterError: there is no such template, or a value that it names is missing.
    """
    import jinja2

    try:
        return _environment().get_template(template_name).render(values)
    except jinja2.UndefinedError as error:
        raise InfoclusterError(f"cannot fill {template_name}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise InfoclusterError(f"cannot fill {template_name}: {error.message or type(error).__name__}") from error


def fill_own(template_name: str, values: Mapping[str, Any], own_dir: str) -> str:
    """Return a page made of a template of somebody's own.

    Args:
        template_name: a file of `own_dir`.
        values: as for `fill`.
        own_dir: where that and what it includes are.

    Raises:
        ConfigError: ``FILE:LINE: REASON``: it is not as it has to be, or names a value that is missing.
    """
    import jinja2

    try:
        return _own_environment(own_dir).get_template(template_name).render(values)
    except (jinja2.TemplateError, *_FAULTS_OF_A_TEMPLATE) as error:
        raise ConfigError(f"{_place(error, template_name, own_dir)}: {_why(error)}") from error


def check_own(template_name: str, own_dir: str) -> list[str]:
    """Check a template of somebody's own, and what it extends and includes, and return the paths of all these files.

    Raises:
        ConfigError: ``FILE:LINE: REASON``: it does not compile, or puts a value where escaping does not help.
    """
    import jinja2

    from infocluster import markup

    environment = _own_environment(own_dir)
    seen: list[str] = []
    waiting = [template_name]
    while waiting:
        name = waiting.pop()
        path = f"{own_dir}/{name}"
        if path in seen or (name != template_name and is_ours(name)):
            continue
        try:
            text = files.read(path).decode("utf-8")
            tree = environment.parse(text, name, path)
            environment.compile(text, name, path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {reason(error) if isinstance(error, OSError) else 'not UTF-8'}") from error
        except (jinja2.TemplateError, *_FAULTS_OF_A_TEMPLATE) as error:
            raise ConfigError(f"{_place(error, name, own_dir)}: {_why(error)}") from error
        for line, what in markup.misplaced(text):
            raise ConfigError(f"{path}:{line}: {what}")
        seen.append(path)
        for line, needed in _needed(tree):
            if not is_ours(needed) and not os.path.isfile(f"{own_dir}/{needed}"):
                raise ConfigError(f"{path}:{line}: there is no template {needed}")
            waiting.append(needed)
    return seen


def _needed(tree: "jinja2.nodes.Template") -> Iterator[tuple[int, str]]:
    """Yield line and name of what a template extends, includes and imports, where it names it itself."""
    from jinja2 import nodes

    for node in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
        named = getattr(node, "template", None)
        if isinstance(named, nodes.Const) and isinstance(named.value, str) and not getattr(node, "ignore_missing", 0):
            yield node.lineno, named.value


def is_ours(template_name: str) -> bool:
    """Tell whether a template of this name is one of ours."""
    return "/" not in template_name and os.path.exists(f"{TEMPLATES_DIR}/{template_name}")


def picture(svg: str) -> "Markup":
    """Return what charts.py drew as a value that goes into a page as it is."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704 - charts.py escapes what it draws


def address(text: str) -> str:
    """Return an address as an attribute may hold it: relative, or of a scheme that runs nothing.

    Args:
        text: a URL or a path relative to the page. What RFC 3986 does not allow in one is percent-encoded.

    Returns:
        The address; ``#`` for any other scheme, such as ``javascript:``.
    """
    from urllib.parse import quote

    text = names.visible(str(text)).strip()
    scheme, colon, _ = text.partition(":")
    if colon and not set("/?#") & set(scheme) and scheme.lower() not in SCHEMES:
        return "#"
    return quote(text, safe="%:/?#[]@!$&'()*+,;=~")


def compile_templates(target_dir: str = COMPILED_DIR) -> str:
    """Compile all templates, so that a page costs no parsing, and remove what was compiled from older ones.

    Args:
        target_dir: where `fill` of the installed tree looks: its ``lib/infocluster/templates/compiled``.

    Returns:
        The directory the modules are in.

    Raises:
        InfoclusterError: a template does not compile.
        OSError: the directory cannot be written; what was there is still there.
    """
    import compileall
    import py_compile

    import jinja2

    os.makedirs(target_dir, exist_ok=True)
    final = f"{target_dir}/{digest()}"
    if not os.path.isdir(final):
        temporary = f"{target_dir}/{files.temporary_name('templates')}"
        try:
            _made(jinja2.FileSystemLoader(TEMPLATES_DIR)).compile_templates(
                temporary, extensions=["html"], zip=None, ignore_errors=False
            )
            # By hash: the modules stay valid wherever and whenever the tree is copied.
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            compileall.compile_dir(temporary, quiet=2, stripdir=temporary, invalidation_mode=mode)
            for top, _, modules in os.walk(temporary):
                os.chmod(top, 0o755)  # noqa: S103 - read by every user whose program shows a page
                for module in modules:
                    os.chmod(f"{top}/{module}", 0o644)
            os.rename(temporary, final)
        except jinja2.TemplateError as error:
            raise InfoclusterError(f"cannot compile the templates: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for name in os.listdir(target_dir):
        if f"{target_dir}/{name}" != final:
            shutil.rmtree(f"{target_dir}/{name}", ignore_errors=True)
    return final


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    compiled = f"{COMPILED_DIR}/{digest()}"
    sources = jinja2.FileSystemLoader(TEMPLATES_DIR)
    if os.path.isdir(compiled):
        return _made(jinja2.ChoiceLoader([jinja2.ModuleLoader(compiled), sources]))
    return _made(sources)


# What an expression in a template may come to beside an error of jinja2's own.
_FAULTS_OF_A_TEMPLATE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@cache
def _own_environment(own_dir: str) -> "jinja2.Environment":
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup, escape

    def printed(value: Any) -> Markup:
        # Also what is marked up already: a filter may have put values together.
        return Markup(visible(str(escape(value))))  # noqa: S704 - escaped

    # Ours come first: nobody's own stands in for one of them.
    loader = jinja2.ChoiceLoader([jinja2.FileSystemLoader(TEMPLATES_DIR), jinja2.FileSystemLoader(own_dir)])
    environment = _made(loader, ImmutableSandboxedEnvironment)
    environment.finalize = printed
    del environment.filters["safe"]
    return environment


def _place(error: Exception, template_name: str, own_dir: str) -> str:
    """Return where in a template of somebody's own an error is: ``FILE:LINE``, or the file."""
    import jinja2

    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"{error.filename or f'{own_dir}/{template_name}'}:{error.lineno}"
    file, frame = f"{own_dir}/{template_name}", error.__traceback__
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        if path.startswith(own_dir + "/"):
            file = f"{path}:{frame.tb_lineno}"
        frame = frame.tb_next
    return file


def _why(error: Exception) -> str:
    import jinja2

    if isinstance(error, jinja2.TemplateNotFound):
        return f"there is no template {error.name}"
    return names.printable(str(error)) or type(error).__name__


def _made(loader: "jinja2.BaseLoader", kind: "type[jinja2.Environment] | None" = None) -> "jinja2.Environment":
    import base64
    import hashlib

    import jinja2
    from markupsafe import Markup

    environment = (kind or jinja2.Environment)(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_carried,
    )
    style = files.read(f"{TEMPLATES_DIR}/{STYLESHEET}").decode("utf-8")
    mark = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals["stylesheet"] = Markup(style)  # noqa: S704 - a file of ours, not a value
    environment.globals["stylesheet_mark"] = f"'sha256-{mark}'"
    environment.filters["address"] = address
    environment.filters["number"] = _number
    environment.filters["share"] = _share
    return environment


def _carried(value: Any) -> Any:
    """Return a value that is about to be printed without what no page may carry; escaping comes after this.

    Ends of lines and tabs stay: what a person typed into several lines is shown so again.
    """
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return visible(str(value))
    return value


def visible(text: str) -> str:
    """Return a text of several lines as it may be shown, with its tabs (`names.visible`)."""
    return "\n".join("\t".join(map(names.visible, line.split("\t"))) for line in text.split("\n"))


def _number(n: int) -> str:
    return f"{int(n):,}"


def _share(n: int, total: int) -> str:
    return f"{100 * int(n) / int(total):.1f} %" if total else "-"


def digest() -> str:
    """Return a digest of what pages are made with: templates, stylesheet, this module, jinja2's version."""
    import hashlib

    import jinja2

    found = hashlib.sha256(jinja2.__version__.encode())
    sources = [f"{TEMPLATES_DIR}/{name}" for name in sorted(os.listdir(TEMPLATES_DIR))]
    for path in [*sources, os.path.abspath(__file__)]:
        if path.endswith((".html", ".css", ".py")):
            content = files.read(path)
            found.update(f"\n{os.path.basename(path)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:20]
