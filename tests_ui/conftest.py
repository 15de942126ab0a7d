"""Chromium for every test here. `make test-ui` runs them; plain pytest doesn't collect this folder."""

import json
import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService


def program(name: str) -> str:
    path = shutil.which(name)
    # An error, not a skip: who runs these tests wants to know whether the pages work.
    assert path, f"{name} is not installed: 'sudo apt install chromium chromium-driver'"
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = program("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it can't be had as root, in a container; every page here is our own
        "--disable-dev-shm-usage",
        "--window-size=1400,1200",
        "--no-proxy-server",
        # Nothing beyond this machine can be reached, so a page that needs a network shows it.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(program("chromedriver")))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


def read_log(browser: Chrome) -> tuple[list[str], list[str]]:
    """Return what the browser complained of and which addresses it asked for, since the last call."""
    complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return complaints, asked
