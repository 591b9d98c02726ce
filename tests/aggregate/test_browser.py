# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: what comes is seen without a reload; without scripts; by keyboard; light, dark, small.

Screenshots are kept in build/screenshots.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aggregate.cluster import ROOT, Cluster, cluster, until

SHOTS = ROOT / "build/screenshots"
SIZES = ((1280, 900), (390, 844))
MORE = """collectors = ["FileCollector", "CounterCollector", "HealthCollector"]
files = ["{top}/out-{name}/*"]
counters = ["{top}/counters-{name}"]
period_s = {period}
"""
# Parts that hold more than they show, and do not show that they do.
CUT = """return [...document.querySelectorAll("main, main *")].filter((part) => {
  const style = getComputedStyle(part);
  const is_shown = style.overflowX !== "auto" || style.backgroundImage.includes("gradient");
  return part.scrollWidth > part.clientWidth && !is_shown;
}).length"""


@contextmanager
def browser(profile: Path, *, has_scripts: bool = True, is_dark: bool = False) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program and driver, "chromium is not installed: .ci/packages installs it"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    if not has_scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(driver, env={**os.environ, "HOME": str(profile)})
    shown = webdriver.Chrome(options=options, service=service)
    try:
        scheme = "dark" if is_dark else "light"
        shown.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        yield shown
    finally:
        shown.quit()


def set_size(shown: Any, width: int, height: int) -> None:
    shown.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )


def text(shown: Any, selector: str) -> str:
    from selenium.common.exceptions import StaleElementReferenceException

    while True:
        try:
            return "\n".join(one.text for one in shown.find_elements("css selector", selector))
        except StaleElementReferenceException:
            continue


def count(site: Cluster, name: str, value: int) -> None:
    (site.top / f"counters-{name}").write_text(f"widgets made {value}\n")
    done = site.run("node-report", conf=name)
    assert done.returncode == 0, done.stderr


@pytest.mark.root
@pytest.mark.slow
def test_what_comes_is_seen_without_a_reload(open_dir: Path) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with cluster(open_dir) as site:
        # The one is soon missed, the other is not.
        for name, period in (("node1", 4), ("node2", 600)):
            site.node(name, MORE.format(top=open_dir, name=name, period=period))
            (open_dir / f"out-{name}").mkdir()
            count(site, name, 100)
        with site.serving() as controller, browser(open_dir / "profile") as shown:
            until(lambda: site.get("/nodes/")[0] == 200)
            shown.get(f"{site.server.url}/nodes/")
            shown.execute_script("window.stays = true")
            # A file arrives, a counter grows.
            (open_dir / "out-node1/result.txt").write_text("forty-two\n")
            count(site, "node1", 1234)
            until(lambda: "result.txt" in text(shown, "#files"))
            until(lambda: "1,234" in text(shown, "#counters"))
            assert "1,134" in text(shown, "#counters") and "of what" not in text(shown, "#live")
            # A node turns gray, and comes back.
            until(lambda: "silent" in text(shown, "#node-node1") and "reporting" in text(shown, "#node-node2"))
            assert shown.find_element("id", "node-node1").get_attribute("class") == "node gray"
            count(site, "node1", 1300)
            until(lambda: "reporting" in text(shown, "#node-node1"))
            # Updates that were missed, and a controller that was killed and started anew, end in the same page.
            controller.send_signal(signal.SIGKILL)
            controller.wait(10)
            count(site, "node2", 777)
            with site.serving():
                until(lambda: "777" in text(shown, "#counters"))
            assert shown.execute_script("return window.stays") is True
            assert "It follows what comes." in text(shown, "#live")
            # Nothing that its policy forbids was tried, and nothing failed.
            told = [one["message"] for one in shown.get_log("browser") if "favicon" not in one["message"]]
            assert not told
            # By keyboard: the first stop leads to the content, the next ones to every link and table.
            shown.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
            from selenium.webdriver.common.keys import Keys

            stops = []
            for _ in range(12):
                shown.switch_to.active_element.send_keys(Keys.TAB)
                active = shown.switch_to.active_element
                stops.append(
                    active.get_attribute("href") or active.get_attribute("aria-labelledby") or active.tag_name
                )
            assert stops[0].endswith("#main") and any("result.txt" in stop for stop in stops)
            assert "nodes-title" in stops
        for is_dark in (False, True):
            with browser(open_dir / f"profile-{is_dark}", is_dark=is_dark) as shown:
                for width, height in SIZES:
                    set_size(shown, width, height)
                    shown.get(f"{site.server.url}/nodes/")
                    until(lambda: "It follows" in text(shown, "#live"))
                    shot = SHOTS / f"nodes-{'dark' if is_dark else 'light'}-{width}.png"
                    size = {"x": 0, "y": 0, "width": width, "height": 1600 if width > 500 else 2400, "scale": 1}
                    import base64

                    taken = shown.execute_cdp_cmd(
                        "Page.captureScreenshot", {"clip": size, "captureBeyondViewport": True}
                    )
                    shot.write_bytes(base64.b64decode(taken["data"]))
                    for path in ("/cgi-bin/status.cgi", "/nodes/"):
                        shown.get(f"{site.server.url}{path}")
                        wide = shown.execute_script("return document.documentElement.scrollWidth")
                        assert wide <= width and shown.execute_script(CUT) == 0, f"{path}: {wide} px of {width}"
                paper = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
                assert (paper == "rgb(17, 21, 28)") is is_dark
                if is_dark:
                    # A page that is published no more does not say that it follows.
                    updates = open_dir / "www/world/nodes/updates.json"
                    published = json.loads(updates.read_text())
                    updates.write_text(json.dumps({**published, "made": published["made"] - 400}))
                    until(lambda: "The controller has told nothing for" in text(shown, "#live"))
        with browser(open_dir / "profile-plain", has_scripts=False) as shown:
            shown.get(f"{site.server.url}/nodes/")
            assert "result.txt" in text(shown, "#files") and "777" in text(shown, "#counters")
            assert "node1" in text(shown, "#nodes") and not text(shown, "#live")
            assert shown.find_elements("css selector", "#health svg")
            shown.find_element("link text", "result.txt").click()  # kept, not shown: the page stays
            assert shown.current_url.endswith("/nodes/")
