"""A headless Chromium, for tests of pages."""

import shutil
from contextlib import contextmanager

import pytest

needs_browser = pytest.mark.skipif(not shutil.which("chromedriver"), reason="no Chromium: apt-get install chromium chromium-driver")
FLAGS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync window-size=1200,800"


@contextmanager
def browser(profile):
    """A browser with the profile folder `profile`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS.split(), f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()
