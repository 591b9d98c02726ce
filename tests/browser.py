# SPDX-License-Identifier: Apache-2.0
"""A real browser without a screen, for tests of what people see and do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

WAIT_S = 20


@contextmanager
def chromium(profile: Path, width: int = 1000, height: int = 1400) -> Iterator[Chrome]:
    """Run Chromium while the context is open.

    Args:
        profile: a directory for what it writes.
        width: of the window, in pixels.
        height: likewise.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program and driver, "chromium and chromium-driver are not installed: .ci/packages installs them"
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en",
                     f"--user-data-dir={profile}", f"--window-size={width},{height}"):  # fmt: skip
        options.add_argument(argument)
    browser = Chrome(options=options, service=Service(driver))
    try:
        browser.set_page_load_timeout(WAIT_S)
        yield browser
    finally:
        browser.quit()
