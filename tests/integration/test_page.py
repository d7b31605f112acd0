"""The page of `esvit demo` in headless Chromium: clicks, uploads, the keyboard, a phone, and what
must not happen.

Needs chromium, chromedriver and the extra `demo`: make test-browser.
"""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from tests.support.paths import FASHION_MNIST

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel

pytestmark = pytest.mark.browser

PATIENCE = 60
DESKTOP, PHONE = (1200, 900), (390, 844)
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)

Found = TypeVar("Found")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a small network, served by the command as a user starts it."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder / "model")
    processor = EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dataset = FASHION_MNIST
    words = [
        "demo",
        folder / "model",
        "--dataset",
        dataset,
        "--split",
        "test[:200]",
        "--port",
        port,
    ]
    words += ["--features_folder", folder / "features"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads")}
    with (folder / "output.txt").open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "esvit_hf.commands.main", *map(str, words)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
        )
        try:
            wait_for_server(server, port, folder / "output.txt")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def wait_for_server(server: subprocess.Popen[bytes], port: int, output: Path) -> None:
    for _ in range(10 * PATIENCE):
        assert server.poll() is None, output.read_text()
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"the page does not open: {output.read_text()}")


def program(*names: str) -> str:
    found = next((path for path in map(shutil.which, names) if path), None)
    assert found is not None, (
        f"{names[0]} is not installed: apt-get install chromium chromium-driver"
    )
    return found


@pytest.fixture
def open_page(address: str, tmp_path: Path) -> Iterator[Callable[[tuple[int, int]], Chrome]]:
    """Open the page in a fresh browser; afterwards nothing may have gone wrong or out of this
    machine.
    """
    options = webdriver.ChromeOptions()
    for argument in (*CHROMIUM.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(program("chromedriver")))

    def opened(size: tuple[int, int]) -> Chrome:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(address)
        wait(browser, lambda: picture(browser, "map-2"))
        return browser

    try:
        yield opened
        assert not browser.get_log("browser")
        messages = (
            json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
        )
        requested = [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]
        assert any(url.startswith(address) for url in requested)
        # The browser's own first page, and images that the page holds itself.
        own = (f"{address}/", "chrome://", "data:", "blob:")
        assert [url for url in requested if not url.startswith(own)] == []
    finally:
        browser.quit()


def wait(browser: Chrome, condition: Callable[[], Found]) -> Found:
    return WebDriverWait(browser, PATIENCE, poll_frequency=0.1).until(lambda _: condition())


def picture(browser: Chrome, name: str) -> str:
    """Address of a picture, which is made of its content; empty while there is none."""
    images = browser.find_elements(By.CSS_SELECTOR, f"#{name} img")
    return (images[0].get_attribute("src") or "") if images else ""


def wait_for_change(browser: Chrome, name: str, before: str) -> str:
    return wait(
        browser, lambda: picture(browser, name) not in ("", before) and picture(browser, name)
    )


def point(browser: Chrome) -> tuple[int, int]:
    x, y = (
        int(browser.find_element(By.CSS_SELECTOR, f"#{name} input").get_attribute("value"))
        for name in "xy"
    )
    return x, y


def largest_point(browser: Chrome) -> tuple[int, int]:
    x, y = (
        int(browser.find_element(By.CSS_SELECTOR, f"#{name} input").get_attribute("max"))
        for name in "xy"
    )
    return x, y


def click_share(browser: Chrome, across: float, down: float) -> None:
    """Click the first image at a share of its width and height."""
    image = browser.find_element(By.CSS_SELECTOR, "#picture-1 img")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    wait(browser, lambda: browser.execute_script("return arguments[0].naturalWidth > 0", image))
    width, height = image.rect["width"], image.rect["height"]
    offset = round((across - 0.5) * width), round((down - 0.5) * height)
    ActionChains(browser).move_to_element_with_offset(image, *offset).click().perform()


def upload(browser: Chrome, number: int, path: Path) -> None:
    browser.find_elements(By.CSS_SELECTOR, "input[type=file]")[number - 1].send_keys(str(path))


def open_tab(browser: Chrome, name: str) -> WebElement:
    (tab,) = (
        tab
        for tab in browser.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        if tab.text == name
    )
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", tab)
    tab.click()
    return tab


def text_of(browser: Chrome, selector: str) -> str:
    return " ".join(element.text for element in browser.find_elements(By.CSS_SELECTOR, selector))


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_click_changes_the_pictures(
    size: tuple[int, int], open_page: Callable[..., Chrome]
) -> None:
    browser = open_page(size)
    assert point(browser) == (14, 14)
    assert largest_point(browser) == (27, 27)
    before = {name: picture(browser, name) for name in ("picture-1", "map-1", "map-2")}
    click_share(browser, 0.125, 0.875)
    for name, old in before.items():
        wait_for_change(browser, name, old)
    x, y = point(browser)
    assert (x, y) in {(3, 24), (3, 23), (3, 25), (4, 24), (4, 23)}
    assert f"Point ({x}, {y}) of image 1" in text_of(browser, "[role=status]")
    assert not text_of(browser, "[role=alert]")


def test_every_tab_shows_its_picture(open_page: Callable[..., Chrome]) -> None:
    browser = open_page(DESKTOP)
    names = {
        "Best pairs": "pairs",
        "Attention": "attention",
        "Region colors": "colors-2",
        "Nearest images": "neighbors",
    }
    for tab, name in names.items():
        open_tab(browser, tab)
        image = wait(
            browser, functools.partial(browser.find_elements, By.CSS_SELECTOR, f"#{name} img")
        )[0]
        wait(
            browser,
            functools.partial(
                browser.execute_script, "return arguments[0].naturalWidth > 100", image
            ),
        )
        assert image.get_attribute("alt")


def test_block_and_head(open_page: Callable[..., Chrome]) -> None:
    browser = open_page(DESKTOP)
    open_tab(browser, "Attention")
    mean = wait(browser, lambda: picture(browser, "attention"))
    head, block = (
        browser.find_element(By.CSS_SELECTOR, f"#{name} input") for name in ("head", "layer")
    )
    choose(browser, head, "2")
    second = wait_for_change(browser, "attention", mean)
    choose(browser, block, "1")
    wait_for_change(browser, "attention", second)
    wait(browser, lambda: head.get_attribute("value") == "mean of all heads")
    head.click()
    # The first block has one head.
    assert len(browser.find_elements(By.CSS_SELECTOR, "[role=option]")) == 2


def choose(browser: Chrome, field: WebElement, text: str) -> None:
    """Choose the first label with a text from a list, by the keyboard alone."""
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)
    wait(browser, lambda: text in text_of(browser, "[role=option].active"))
    field.send_keys(Keys.ENTER)


def test_an_upload_has_its_own_coordinates(
    open_page: Callable[..., Chrome], tmp_path: Path
) -> None:
    browser = open_page(DESKTOP)
    pixels = np.random.default_rng(0).integers(0, 256, (500, 1500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    before = picture(browser, "picture-1"), picture(browser, "map-2")
    upload(browser, 1, tmp_path / "wide.png")
    shown = wait_for_change(browser, "picture-1", before[0])
    wait_for_change(browser, "map-2", before[1])
    wait(browser, lambda: largest_point(browser) == (1499, 499))
    click_share(browser, 0.9, 0.2)
    wait_for_change(browser, "picture-1", shown)
    x, y = point(browser)
    # A pixel of the screen is three of the image.
    assert abs(x - 1350) <= 5
    assert abs(y - 100) <= 5


def test_finer_regions(open_page: Callable[..., Chrome]) -> None:
    browser = open_page(DESKTOP)
    before = picture(browser, "picture-1"), picture(browser, "map-1")
    browser.find_element(By.CSS_SELECTOR, "#detail input[value='2x finer']").click()
    wait_for_change(browser, "picture-1", before[0])
    wait_for_change(browser, "map-1", before[1])
    assert point(browser) == (14, 14)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "cannot be read as an image"),
        ("truncated", "cannot be read as an image"),
        ("pixels", "6000 x 5000 pixels: choose one of at most 25 million"),
        ("tiny", "8 x 200 pixels: both sides need at least 16"),
    ],
)
def test_refused_uploads(
    kind: str, message: str, open_page: Callable[..., Chrome], tmp_path: Path
) -> None:
    browser = open_page(DESKTOP)
    path, before = tmp_path / "upload.png", picture(browser, "picture-2")
    if kind == "text":
        path.write_text("no image")
    else:
        size = {"truncated": (300, 300), "pixels": (6000, 5000), "tiny": (8, 200)}[kind]
        Image.new("RGB", size, "orange").save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:120])
    upload(browser, 2, path)
    alert = wait(browser, lambda: text_of(browser, "#message [role=alert]"))
    assert message in alert
    assert "upload.png" not in alert
    assert picture(browser, "picture-2") == before
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "intact.png")
    upload(browser, 2, tmp_path / "intact.png")
    wait_for_change(browser, "picture-2", before)
    wait(browser, lambda: not text_of(browser, "#message [role=alert]"))


def test_an_upload_of_too_many_bytes(open_page: Callable[..., Chrome], tmp_path: Path) -> None:
    browser = open_page(DESKTOP)
    (tmp_path / "large.png").write_bytes(bytes(11 * 2**20))
    upload(browser, 1, tmp_path / "large.png")
    wait(browser, lambda: "exceed the maximum allowed size of 10" in text_of(browser, "body"))


@pytest.mark.parametrize("size", [PHONE, (320, 640), DESKTOP])
def test_nothing_overflows(size: tuple[int, int], open_page: Callable[..., Chrome]) -> None:
    browser = open_page(size)
    for name in ("Similar regions", "Best pairs", "Attention", "Region colors", "Nearest images"):
        open_tab(browser, name)
        time.sleep(0.3)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0], (
            name
        )
    assert browser.find_element(By.CSS_SELECTOR, "#picture-1 img").rect["width"] > 0.6 * min(
        size[0], 400
    )


def test_the_keyboard_is_enough(open_page: Callable[..., Chrome]) -> None:
    """From the top, Tab reaches everything; arrows move the point, Enter and letters choose an
    example and a tab.
    """
    browser = open_page(DESKTOP)
    reached: list[str] = []
    moved = chosen = False
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focused = browser.switch_to.active_element
        if focused.tag_name == "body":
            # A list that closes takes the focus along for one step.
            continue
        label = focused.accessible_name
        assert label, focused.get_attribute("outerHTML")
        reached.append(label)
        if label.startswith("range slider for Point x") and not moved:
            before = picture(browser, "picture-1")
            focused.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
            wait_for_change(browser, "picture-1", before)
            wait(browser, lambda: "Point (16, 14)" in text_of(browser, "[role=status]"))
            moved = True
        if label == "Example for image 2" and not chosen:
            before = picture(browser, "map-2")
            choose(browser, focused, "boot")
            wait_for_change(browser, "map-2", before)
            chosen = True
        if label in ("Best pairs", "Attention"):
            focused.send_keys(Keys.ENTER)
    assert moved, reached
    assert chosen, reached
    names = (
        "Upload image 1",
        "Upload image 2",
        "Example for image 1",
        "number input for Point y",
        "Similar regions",
    )
    for name in names:
        assert any(label.startswith(name) for label in reached), (name, reached)


def status(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(
            Request(url, data=data, headers={"Content-Type": "application/json"})
        ) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_files_of_this_machine_stay_private(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    for path in (secret, "model/config.json", "output.txt", "/etc/hostname"):
        assert status(f"{address}/gradio_api/file={path}")[0] == 403
    dependencies = json.loads(status(f"{address}/config")[1])["dependencies"]
    (event, *_) = (event for event in dependencies if event["targets"][0][1] == "upload")
    session = uuid.uuid4().hex
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    data = [file, *([None] * (len(event["inputs"]) - 1))]
    body = {"data": data, "fn_index": event["id"], "session_hash": session}
    assert status(f"{address}/gradio_api/queue/join", body)[0] == 200
    answer = status(f"{address}/gradio_api/queue/data?session_hash={session}")[1]
    assert '"process_completed"' in answer
    assert '"success":false' in answer
