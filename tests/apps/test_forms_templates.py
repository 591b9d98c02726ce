# SPDX-License-Identifier: Apache-2.0
"""A form's own templates: what is wrong with one is told with file and line before a visitor or a night meets it."""

import email
import email.policy
import os
import re
from pathlib import Path

import pytest

from cgi_bin.form_site import GUESTBOOK, declare, post, records, token
from conftest import ROOT, Site

PAGE = """{% extends "form.html" %}
{% block lead %}<h1>Write to us</h1><p>{{ form.title }}</p>{% endblock %}
"""
OWN_PAGE = """<!doctype html>
<title>{{ form.title }}</title>
{% for fault in faults %}<p>{{ fault.name }}: {{ fault.text }}</p>{% endfor %}
<form method="post" enctype="multipart/form-data">
<input name="{{ trap.token }}" value="{{ token }}" type="hidden"><input name="{{ trap.name }}" hidden>
{% for field in fields %}
<label>{{ field.label }} <input name="{{ field.name }}" value="{{ field.places[0] }}"
  {% if field.kind == "file" %} type="file"{% endif %}></label>
{% endfor %}
<button>Go</button></form>
"""


def with_template(site: Site, which: str, text: str, name: str = "own.html") -> Path:
    declare(site, text=GUESTBOOK.replace("[limits]", f'[templates]\n{which} = "{name}"\n[limits]'))
    path = site.root / "etc/forms" / name
    path.write_text(text)
    return path


def shown(site: Site) -> str:
    return site.cgi("form.cgi", PATH_INFO="/guestbook").body.decode()


def told(site: Site) -> str:
    """Return what check-site says of forms, which is what forms-nightly says and what keeps it from publishing."""
    lines = site.batch("check-site").stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("check-site: forms: ") and "secrets" not in line]
    said = line.removeprefix("check-site: forms: ").partition("; mend: ")[0]
    done = site.batch("forms-nightly")
    assert (done.returncode, done.stderr) == (1, f"forms-nightly: {said}\n")
    assert not (site.production / "world/forms").exists()
    return said


@pytest.mark.parametrize(
    ("which", "text", "line", "what"),
    [
        ("thanks", "\n{{ form.title", 2, "unexpected end of template"),
        (
            "thanks",
            '{% extends "form_thanks.html" %}\n{% block lead %}{{ from.title }}{% endblock %}',
            2,
            "'from' is undefined",
        ),
        (
            "published",
            "\n\n{% for a in answers %}{{ a.fields.email.text }}{% endfor %}",
            3,
            "has no attribute 'email'",
        ),
        (
            "published",
            "{% for a in answers %}\n<a href='{{ a.fields.name.text }}'>x</a>{% endfor %}",
            2,
            "filter address",
        ),
        ("published", "{{ answers[0].time }}", 1, "has no element 0"),
        ("mail", "{% for answer in answers %}\n{{ answer.name }}{% endfor %}", 2, "has no attribute 'name'"),
        ("mail", "\n{{ subject | safe }}", 2, "No filter named 'safe'"),
        ("page", OWN_PAGE.replace("{{ fault.text }}", "{{ fault.what }}"), 3, "has no attribute 'what'"),
    ],
)
def test_template_that_is_wrong_is_told_with_its_line(
    site: Site, which: str, text: str, line: int, what: str
) -> None:
    path = with_template(site, which, text)
    found = told(site)
    assert found.startswith(f"{path}:{line}: ") and what in found, found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (OWN_PAGE.replace("{{ trap.token }}", "token"), "expected an input called form_token"),
        (
            OWN_PAGE.replace("{% for field in fields %}", "{% for field in fields[1:] %}"),
            "expected an input called name",
        ),
        (OWN_PAGE.replace(' method="post"', ""), 'expected one <form method="post">'),
        (OWN_PAGE.replace(' enctype="multipart/form-data"', ""), 'expected enctype="multipart/form-data"'),
        (OWN_PAGE.replace("<button>", "{{ token }}<button>"), "expected the value token once"),
    ],
)
def test_page_that_cannot_be_answered_is_told(site: Site, text: str, what: str) -> None:
    path = with_template(site, "page", text)
    assert told(site).startswith(f"{path}: {what}")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nosuch.html", '"nosuch.html": there is no such file beside the declaration'),
        ("base.html", "expected the name of a file NAME.html beside the declaration, and none of ours"),
        ("../own.html", "expected the name of a file"),
        ("own.txt", "expected the name of a file"),
    ],
)
def test_template_that_is_not_there_or_not_beside_is_told(site: Site, name: str, what: str) -> None:
    with_template(site, "thanks", "x")
    declaration = declare(site, text=GUESTBOOK.replace("[limits]", f'[templates]\nthanks = "{name}"\n[limits]'))
    found = told(site)
    assert found.startswith(f"{declaration}:5: templates.thanks: ") and what in found


@pytest.mark.parametrize("text", [PAGE, OWN_PAGE])
def test_own_page_is_shown_filled_again_and_answered(site: Site, text: str) -> None:
    with_template(site, "page", text)
    page = shown(site)
    assert ("Write to us" in page) == (text == PAGE) and "Guest &lt;b&gt;book&lt;/b&gt;" in page
    wrong = post(site, f"form_token={token()}&name=%3Ci%3E&entry=".encode())
    again = wrong.body.decode()
    assert wrong.status == 422 and 'value="&lt;i&gt;"' in again and "Please fill this in." in again
    kept = re.search(r'name="form_token" value="([^"]+)"', again)
    assert kept and post(site, f"form_token={kept[1]}&name=Ann&entry=x".encode()).status == 303
    assert len(records(site)) == 1


def test_template_that_changed_counts_at_once_where_the_form_is_compiled(site: Site) -> None:
    path = with_template(site, "page", '{% include "part.html" %}' + OWN_PAGE)
    part = path.with_name("part.html")
    part.write_text("<p>first</p>")
    compiled = site.root / "etc/forms/guestbook.toml.compiled"
    for text in ("first", "second", "third"):
        part.write_text(f"<p>{text}</p>")
        os.utime(part, ns=(0, len(text) + 10**9))
        assert text in shown(site)
        assert site.batch("check-site", "-compile").returncode == 0
        before = compiled.read_bytes()
        assert text in shown(site) and text.encode() in before


def test_thanks_published_page_and_letter_are_the_forms_own(site: Site) -> None:
    parts = {
        "thanks": "<p>Own thanks, {{ form.name }}, {{ site.name }}</p>",
        "published": "{% for a in answers %}<q>{{ a.fields.entry.text }}</q>{{ a.parts | length }}{% endfor %}",
        "mail": "{% for a in answers %}{{ a.id }}{% for p in a.parts %} {{ p.name }}:{{ p.text }}{% endfor %}.\n"
        "{% endfor %}",
    }
    declared = "".join(f'{which} = "own-{which}.html"\n' for which in parts)
    text = GUESTBOOK.replace("[limits]", f"[templates]\n{declared}[limits]").replace(
        "moderate = true", "moderate = false"
    )
    for which, template in parts.items():
        with_template(site, which, template, f"own-{which}.html")
    declare(site, text=text)
    assert post(site, f"form_token={token()}&name=Ann&entry=%3Cb%3E&email=ann%40example.org".encode()).status == 303
    assert (
        "Own thanks, guestbook, infocluster"
        in site.cgi("form.cgi", PATH_INFO="/guestbook", QUERY_STRING="thanks").body.decode()
    )
    site.batch("forms-nightly")
    top = site.production / "world/forms/guestbook"
    assert (top / "thanks.html").read_text() == "<p>Own thanks, guestbook, infocluster</p>"
    # The address is not published, so the template does not even have it.
    assert (top / "index.html").read_text() == "<q>&lt;b&gt;</q>2"
    (letter,) = (site.state / "letters").glob("*.eml")
    html = email.message_from_bytes(letter.read_bytes(), policy=email.policy.default).get_body(("html",))
    (record,) = records(site)
    assert html and f"{record['id']} name:Ann email:ann@example.org entry:&lt;b&gt;." in html.get_content()


def test_sample_template_shows_an_entry_and_its_picture(site: Site) -> None:
    text = (ROOT / "etc/forms/guestbook.toml").read_text().replace("moderate = true", "moderate = false")
    declare(site, text=text)
    (site.root / "etc/forms/guestbook.html").write_text((ROOT / "etc/forms/guestbook.html").read_text())
    assert post(site, f"form_token={token()}&name=Ann&entry=one%0Atwo".encode()).status == 303
    done = site.batch("forms-nightly")
    page = (site.production / "world/forms/guestbook/index.html").read_text()
    assert "Ann wrote on <time>" in page and "<dd>one\ntwo</dd>" in page, done.stderr
