"""The report in headless Chromium, opened from the disk; needs Debian's chromium and chromium-driver."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser
LIGHT, DARK = {"prefers-color-scheme": "light"}, {"prefers-color-scheme": "dark"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a network, at a screen's size."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.fail("the browser tests need chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_network_conditions(offline=True, latency=0, throughput=0)
    yield opened
    opened.quit()


@pytest.fixture
def look(browser: Any, written: Path) -> Callable[..., Any]:
    """Gives a function that opens the page in a width and a colour scheme, and returns the browser."""

    def opened(width: int = 1200, height: int = 900, media: dict[str, str] = LIGHT) -> Any:
        features = [{"name": name, "value": value} for name, value in media.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(written.as_uri())
        return browser

    return opened


def pixels(browser: Any, folder: Path) -> np.ndarray[Any, Any]:
    """Returns what the window shows, (height, width, 3)."""
    file = folder / "shot.png"
    file.write_bytes(base64.b64decode(browser.get_screenshot_as_base64()))
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_page_draws_its_charts_and_asks_for_nothing(look: Callable[..., Any]):
    browser = look()
    for log in ("browser", "performance"):
        browser.get_log(log)
    look()
    assert browser.get_log("browser") == []  # no error, no warning, nothing that the page's own policy refused
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(address.startswith(("file:", "data:")) for address in asked)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => "
        "p.querySelectorAll('svg .scatterlayer path, svg .barlayer path, svg .heatmaplayer image').length)"
    )
    assert len(drawn) >= 10
    assert min(drawn) > 0


def test_hover_shows_values(look: Callable[..., Any]):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser = look()
    point = browser.find_element(By.CSS_SELECTOR, "#plot-decides .scatterlayer .trace .points path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    shown = WebDriverWait(browser, 10).until(
        lambda driver: driver.find_element(By.CSS_SELECTOR, "#plot-decides .hoverlayer .hovertext").text
    )
    assert "mart, full data" in shown
    assert "PGD-2-1 0.15" in shown


@pytest.mark.parametrize("width", [360, 768, 1200, 2400])
def test_nothing_is_wider_than_the_window(look: Callable[..., Any], width: int):
    browser = look(width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => [p.clientWidth, p.querySelector('svg').clientWidth])"
    )
    assert all(abs(box - svg) <= 1 and box > 200 for box, svg in plots)


def test_no_label_of_a_chart_is_cut(look: Callable[..., Any]):
    for width in (360, 1200):
        browser = look(width)
        cut = browser.execute_script(
            "return [...document.querySelectorAll('.plot')].flatMap(p => { const box = p.getBoundingClientRect();"
            "return [...p.querySelectorAll('.xtitle, .ytitle, .xtick text, .ytick text, .annotation-text')]"
            ".filter(t => { const r = t.getBoundingClientRect(); return r.width && (r.left < box.left - 1 ||"
            " r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1); })"
            ".map(t => p.id + ': ' + t.textContent); })"
        )
        assert cut == []


def test_light_and_dark(look: Callable[..., Any], tmp_path: Path):
    axis = "return getComputedStyle(document.querySelector('#plot-decides .xtick text')).fill"
    browser = look(media=LIGHT)
    light, light_axis = pixels(browser, tmp_path), browser.execute_script(axis)
    assert np.median(light) > 240
    features = [{"name": name, "value": value} for name, value in DARK.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})  # the open page follows
    dark, dark_axis = pixels(browser, tmp_path), browser.execute_script(axis)
    assert np.median(dark) < 40
    assert light_axis == "rgb(87, 96, 106)"
    assert dark_axis == "rgb(163, 173, 184)"


def test_print_is_light_and_whole_even_from_a_dark_screen(look: Callable[..., Any]):
    browser = look(media=DARK)
    browser.execute_script(
        "addEventListener('beforeprint', () => { window.printed = {"
        "ticks: getComputedStyle(document.querySelector('#plot-decides .xtick text')).fill,"
        "widths: [...document.querySelectorAll('.plot svg.main-svg')].map(s => +s.getAttribute('width')),"
        "closed: document.querySelectorAll('details:not([open])').length}; })"
    )
    options = {"preferCSSPageSize": True, "printBackground": True}
    printed = browser.execute_cdp_cmd("Page.printToPDF", options)
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    found = browser.execute_script("return window.printed")
    assert found["ticks"] == "rgb(87, 96, 106)"
    assert max(found["widths"]) <= 703  # A4 without its margins, in CSS pixels
    assert found["closed"] == 0
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
    axis = "return getComputedStyle(document.querySelector('#plot-decides .xtick text')).fill"
    assert browser.execute_script(axis) == "rgb(163, 173, 184)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    size = {"width": 703, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide = "return [...document.querySelectorAll('table, pre, p')].filter(e => e.getBoundingClientRect().right > 704)"
    assert browser.execute_script(f"{wide}.map(e => e.textContent)") == []  # Chromium would shrink every page
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_javascript_the_tables_are_there(look: Callable[..., Any]):
    browser = look()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    look()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    text = browser.find_element("tag name", "body").text
    assert "The charts need JavaScript; the tables do not." in text
    assert "mart, adv-glister 30" in text
