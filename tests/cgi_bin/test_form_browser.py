# SPDX-License-Identifier: Apache-2.0
"""A person with a browser fills the sample forms, errs, corrects, and sees thanks; the night publishes."""

import shutil
import time
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import browser
import mailserver
from cgi_bin import form_site
from cgi_bin.form_site import records
from conftest import ROOT, Site
from infocluster.web import devserver

PNG = (form_site.BODIES / "303-safari-multipart.body").read_bytes()


def fill(page: Chrome, **values: str) -> None:
    for name, value in values.items():
        place = page.find_element(By.NAME, name)
        if place.get_attribute("type") != "file":
            place.clear()
        place.send_keys(value)


def submit(page: Chrome, check: bool = True) -> None:
    """Press the button; without `check` as a browser does that asks nothing by itself."""
    form = page.find_element(By.TAG_NAME, "form")
    if not check:
        page.execute_script("arguments[0].noValidate = true", form)
    before = page.find_element(By.TAG_NAME, "html")
    page.find_element(By.CSS_SELECTOR, "form button").click()
    WebDriverWait(page, browser.WAIT_S).until(lambda _: page.find_element(By.TAG_NAME, "html") != before)


def text(page: Chrome) -> str:
    return page.find_element(By.TAG_NAME, "main").text


def wait_a_moment(page: Chrome) -> None:
    """A person takes longer than fill_s: the age that the page's own token has."""
    stamp = page.find_element(By.NAME, "form_token").get_attribute("value")
    assert stamp
    while time.time() < int(stamp.partition(".")[0], 16) + 2.01:
        time.sleep(0.05)


def faults(page: Chrome) -> list[str]:
    return [one.text for one in page.find_elements(By.CSS_SELECTOR, "p.fault")]


@pytest.mark.slow
def test_person_fills_the_sample_forms_and_the_night_publishes_what_was_marked(site: Site, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "etc/forms", site.root / "etc/forms", ignore=shutil.ignore_patterns("*.compiled"))
    (site.root / "etc/secrets").mkdir()
    (site.root / "etc/secrets/forms").write_bytes(form_site.SECRET)
    picture = tmp_path / 'my "best" day.png'
    at = PNG.index(b"\x89PNG")
    picture.write_bytes(PNG[at : PNG.index(b"IEND") + 8])
    variables = {"SERVER_GATHER": str(site.gather()), "INFOCLUSTER_CONF": str(site.conf_file)}
    # As if the production tree were pushed: this server serves it.
    place = devserver.Site(str(ROOT / "cgi-bin"), str(site.production / "world"), variables)
    with (
        mailserver.running() as mail,
        devserver.serving(place) as url,
        browser.chromium(tmp_path / "profile") as page,
    ):
        site.configure(
            f'[site]\nname = "Example"\nurl = "{url}/"\n[mail]\nsmtp_host = "127.0.0.1"\nsmtp_port = {mail.port}\n'
            'from = "www@example.org"\n'
        )
        assert site.batch("forms-nightly", "-render").returncode == 0

        page.get(f"{url}/cgi-bin/form.cgi/signup")
        assert page.title.startswith("Sign up")
        assert not page.find_elements(By.TAG_NAME, "script")
        assert page.find_element(By.NAME, "leave_empty").location["x"] < -1000
        wait_a_moment(page)
        fill(page, name="Ann <b>", email="not an address")
        submit(page, check=False)
        assert faults(page) == ["This is no e-mail address. Please write it as in ann@example.org.",
                                "Please tick this, it is needed."]  # fmt: skip
        assert page.find_element(By.NAME, "name").get_attribute("value") == "Ann <b>"
        fill(page, email="ann@example.org")
        for label in page.find_elements(By.CSS_SELECTOR, "label.choice"):
            if label.text in ("Jobs", "Research") or label.text.startswith("I agree"):
                label.click()
        submit(page)
        assert "Thank you. The next letter goes to you too." in text(page)
        assert page.current_url == f"{url}/forms/signup/thanks.html"

        page.get(f"{url}/cgi-bin/form.cgi/feedback")
        wait_a_moment(page)
        fill(page, text="first line\nsecond line <i>", marks="9")
        submit(page, check=False)
        assert faults(page) == ["Please choose.", "This has to be 5 or less."]
        assert page.find_element(By.NAME, "text").get_attribute("value") == "first line\nsecond line <i>"
        page.find_element(By.CSS_SELECTOR, "input[value='Something missing']").click()
        fill(page, marks="4")
        submit(page)
        assert "Somebody will read it" in text(page)

        page.get(f"{url}/cgi-bin/form.cgi/guestbook")
        wait_a_moment(page)
        wrong = tmp_path / "wrong.png"
        wrong.write_text("no picture")
        fill(page, name="Bea", entry="Good\nmorning", picture=str(wrong))
        submit(page)
        assert faults(page) == ["This is no file of a type that is taken: image/png, image/jpeg, image/webp."]
        fill(page, picture=str(picture))
        submit(page)
        assert "Your entry appears" in text(page)

        (signup,), (feedback,), (entry,) = (records(site, name) for name in ("signup", "feedback", "guestbook"))
        assert (signup["email"], signup["topics"], signup["consent"]) == (
            "ann@example.org",
            ["Research", "Jobs"],
            True,
        )
        assert (feedback["about"], feedback["marks"]) == ("Something missing", "4")
        assert entry["picture"][0]["name"] == 'my "best" day.png'

        done = site.batch("forms-nightly")
        assert done.returncode == 0, done.stderr
        page.get(f"{url}/forms/guestbook/")
        assert "Nothing is here yet." in text(page)
        letters = {str(letter["Subject"]): letter for _, letter in mail.taken}
        assert len(letters) == 3
        letter = letters["Example: Guest book: 1 answer"]
        html = letter.get_body(("html",))
        assert html
        shown = tmp_path / "letter.html"
        shown.write_text(html.get_content())
        page.get(shown.as_uri())
        cells = [cell.text for cell in page.find_elements(By.TAG_NAME, "td")]
        assert cells[:4] == ["Your name", "Bea", "Your entry", "Good\nmorning"]
        page.find_element(By.LINK_TEXT, "Publish it, or not").click()
        page.find_element(By.CSS_SELECTOR, "button[value=shown]").send_keys(Keys.ENTER)
        # What is found may be of the page that is just being left.
        wait = WebDriverWait(page, browser.WAIT_S, ignored_exceptions=[StaleElementReferenceException])
        wait.until(lambda _: "Noted: it is published" in text(page))
        assert site.batch("forms-nightly").returncode == 0
        page.get(f"{url}/forms/guestbook/")
        assert "Good\nmorning" in text(page) and "Bea" in text(page)
        image = page.find_element(By.TAG_NAME, "img")
        assert page.execute_script("return arguments[0].naturalWidth", image) == 1
        page.set_window_size(500, 900)
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

        attached = {part.get_filename(): part.get_payload(decode=True) for part in letter.iter_attachments()}
        assert picture.read_bytes() in attached.values() and "guestbook.csv" in attached
