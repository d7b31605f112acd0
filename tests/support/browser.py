"""Headless Chromium on a page of this machine, where nothing may go wrong or out."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE = 60
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
# Chromium reports an answer of 400, which is how the server refuses.
_REFUSED = "status of 400"

Found = TypeVar("Found")


@contextmanager
def running_browser(profile: Path) -> Iterator[Chrome]:
    """Start a browser."""
    options = webdriver.ChromeOptions()
    for argument in (*CHROMIUM.split(), f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(_program("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def new_tab(browser: Chrome, address: str) -> Iterator[None]:
    """Work in a tab that knows nothing of those before; it must log no fault and ask nothing of
    other machines.
    """
    before = browser.current_window_handle
    browser.switch_to.new_window("tab")
    everything = {"origin": address, "storageTypes": "all"}
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", everything)
    try:
        yield
        faults = [entry["message"] for entry in browser.get_log("browser")]
        assert [fault for fault in faults if _REFUSED not in fault] == []
        # The browser's own first page, and pictures that the page holds itself.
        own = ("http://127.0.0.1:", "chrome://", "data:", "blob:")
        assert [url for url in requested(browser) if not url.startswith(own)] == []
    finally:
        browser.close()
        browser.switch_to.window(before)


def requested(browser: Chrome) -> list[str]:
    """Addresses that were asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def resize(browser: Chrome, size: tuple[int, int]) -> None:
    """Give the page a size in pixels, as on a screen of that size."""
    metrics: dict[str, Any] = {"width": size[0], "height": size[1]}
    metrics |= {"deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(browser: Chrome, condition: Callable[[], Found]) -> Found:
    """Wait until a condition holds, and return what it gave; what the page replaces meanwhile is
    asked again.
    """
    ignored = (StaleElementReferenceException,)
    waiting = WebDriverWait(browser, PATIENCE, poll_frequency=0.05, ignored_exceptions=ignored)
    return waiting.until(lambda _: condition())


def _program(*names: str) -> str:
    found = next((path for path in map(shutil.which, names) if path), None)
    assert found is not None, (
        f"{names[0]} is not installed: apt-get install chromium chromium-driver"
    )
    return found
