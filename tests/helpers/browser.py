"""A real, headless Chromium, for tests of the pages that people see.

Driven through WebDriver (Selenium) with the distribution's own pair of chromium and
chromedriver, which always fit each other.  Nothing is downloaded.

    def test_page(browser, tmp_path):
        browser.open(page)                       # a file, or an address
        browser.find("#go").click()
        browser.wait(lambda: browser.find("#scores").is_displayed())
        browser.screenshot(tmp_path / "page.png")
        assert browser.complaints() == []
"""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PROGRAMS = ("chromium", "chromedriver")
DESKTOP = (1280, 900)
PHONE = (390, 844)
"""Width and height of a window, in CSS pixels."""


class Browser:
    """What a test of a page needs of a browser; `driver` has the rest."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.width = DESKTOP[0]

    def open(self, page: Path | str) -> None:
        """Open a file or an address, in a desktop window and light; forgets earlier logs."""
        self.look()
        self.complaints()
        self.requests()
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)

    def look(self, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
        """Take the size of a screen, and its owner's wish for light or dark."""
        self.width, height = size
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1}
        metrics["mobile"] = size == PHONE
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> Sequence[WebElement]:
        """All elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: object) -> object:
        """What a script returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Wait until a condition holds; it may fail to find an element meanwhile."""
        WebDriverWait(self.driver, seconds).until(lambda _: condition())

    def complaints(self) -> list[str]:
        """Errors and warnings on the console since last asked, scripts' and the network's."""
        logged = self.driver.get_log("browser")
        return [f"{e['level']}: {e['message']}" for e in logged if e["level"] != "INFO"]

    def requests(self) -> list[str]:
        """Addresses asked for since last asked, data: ones left out."""
        events = [
            json.loads(e["message"])["message"] for e in self.driver.get_log("performance")
        ]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        addresses = [params["request"]["url"] for params in sent]
        return [address for address in addresses if not address.startswith("data:")]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        page = "document.documentElement"
        wide, shown = (
            int(str(self.run(f"return {page}.{w}Width"))) for w in ("scroll", "client")
        )
        return max(0, wide - min(shown, self.width))

    def screenshot(self, path: Path) -> Path:
        """The whole page, from top to bottom, as a PNG file."""
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
        )
        path.write_bytes(base64.b64decode(shot["data"]))
        return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a Chromium with a profile of its own, and end it; skips where there is none."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"no {' and no '.join(missing)} here, so no page was looked at; "
            "`apt-get install chromium chromium-driver`"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--disable-dev-shm-usage",  # containers have little of it
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # root cannot have one
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()
