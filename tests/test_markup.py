# SPDX-License-Identifier: Apache-2.0
"""Markup: a value of a template is found wherever escaping does not help it, and nowhere else."""

from pathlib import Path

import pytest

from infocluster import markup, pages


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("\n<{{ x }}>", 2, "name an element"),
        ("</{{ x }}>", 1, "name an element"),
        ("\n<b\n {{ x }}>", 2, "between the quotes"),
        ("<b title={{ x }}>", 1, "between the quotes"),
        ("<b title=a{{ x }}>", 1, "between the quotes"),
        ("<b data-{{ x }}='1'>", 1, "between the quotes"),
        ("<p>\n<b onclick=\"f('{{ x }}')\">", 2, "attribute onclick"),
        ("<b style='color: {{ x }}'>", 1, "attribute style"),
        ('<a href="{{ x }}">', 1, "attribute href has to go through the filter address"),
        ('<a href="{{ a ~ x | address }}">', 1, "filter address"),
        ('<a href="{{ a if b else x | address }}">', 1, "filter address"),
        ("<img src='/a/{{ x }}'>", 1, "filter address"),
        ("{# a\nb #}{% if a\n %}<a href='{{ x }}'>{% endif %}", 3, "filter address"),
        ("<script>\nf('{{ x }}')</script>", 1, "in <script>"),
        ("<b style='color: {{ 'red' if a else x }}'>", 1, "attribute style"),
        ("<style>b { color: {{ x }} }</style>", 1, "in <style>"),
    ],
)
def test_value_where_escaping_does_not_help_is_found(text: str, line: int, told: str) -> None:
    (found,) = markup.misplaced(text)
    assert found[0] == line and told in found[1], found


@pytest.mark.parametrize(
    "text",
    [
        "<b title=\"{{ x }}\" lang='{{ y }}'{% if z %} hidden{% endif %}>{{- x -}}</b>",
        '<a href="{{ x | address }}" rel=next>{{ x }}</a>',
        "<a href='?a=b&amp;q={{ x.y | default('') | address }}&amp;c={{ (a ~ b) | address }}'>",
        "<style>{{ stylesheet }}</style><!-- {{ x }} --><textarea>{{ x }}</textarea><title>{{ x }}</title>",
        "<b style=\"color: {{ 'red' if a > 3 else 'green' }}\"><a href=\"#f-{{ x }}\">",
    ],
)
def test_value_where_escaping_helps_is_none(text: str) -> None:
    assert not list(markup.misplaced(text))


@pytest.mark.parametrize("path", sorted(Path(pages.TEMPLATES_DIR).glob("*.html")), ids=lambda path: path.name)
def test_templates_of_ours_have_none(path: Path) -> None:
    assert not list(markup.misplaced(path.read_text()))
