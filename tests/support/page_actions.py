"""What people do on the page of `esvit demo`, and what they see there."""

import base64
import io

import numpy as np
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from tests.support.browser import wait


def choose(browser: Chrome, side: int, title: str) -> None:
    strip = browser.find_elements(By.CSS_SELECTOR, ".strip")[side]
    tile = strip.find_element(By.CSS_SELECTOR, f"button[title='{title}']")
    browser.execute_script("arguments[0].click()", tile)
    wait_for_picture(browser, side, title)


def wait_for_picture(browser: Chrome, side: int, title: str) -> None:
    def is_there() -> bool:
        image = pictures(browser)[side].find_element(By.TAG_NAME, "img")
        busy = browser.find_elements(By.CSS_SELECTOR, ".picture.busy")
        return image.get_attribute("alt") == title and not busy

    wait(browser, is_there)


def pictures(browser: Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, ".picture")


def move_to(browser: Chrome, number: int, x: float, y: float) -> None:
    """Move the pointer to a place of a picture, in shares of its sides, and wait for the answer."""
    picture = pictures(browser)[number]
    browser.execute_script("arguments[0].scrollIntoView({block: 'nearest'})", picture)
    width, height = picture.rect["width"], picture.rect["height"]
    offset = round((x - 0.5) * width), round((y - 0.5) * height)
    ActionChains(browser).move_to_element_with_offset(picture, *offset).perform()
    next_frame(browser)


def click(browser: Chrome) -> None:
    ActionChains(browser).click().perform()
    next_frame(browser)


def next_frame(browser: Chrome) -> None:
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )


def show(browser: Chrome, view: str) -> None:
    browser.execute_script(f"document.querySelector('input[value={view}]').click()")
    next_frame(browser)


def set_value(browser: Chrome, name: str, value: object) -> None:
    browser.execute_script(
        "const [field, value] = arguments; field.value = value;"
        "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind))",
        browser.find_element(By.ID, name),
        value,
    )
    next_frame(browser)


def answer(browser: Chrome, network: int = 0) -> str:
    answers = browser.execute_script(
        "return [...document.querySelectorAll('.answer')].map((answer) => answer.innerText)"
    )
    return answers[network] if network < len(answers) else ""


def pixels(browser: Chrome, selector: str, number: int = 0) -> np.ndarray:
    """(height, width, 4) of a canvas."""
    address = browser.execute_script(
        "return document.querySelectorAll(arguments[0])[arguments[1]].toDataURL()", selector, number
    )
    content = base64.b64decode(address.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def mark_at(browser: Chrome, selector: str) -> tuple[float, float]:
    """Place of a mark as shares of its picture's sides; the page may draw it anew at any time."""
    left, top = browser.execute_script(
        "const mark = document.querySelector(arguments[0]), box = mark.parentElement;"
        "const { left, top } = getComputedStyle(mark);"
        "return [parseFloat(left) / box.offsetWidth, parseFloat(top) / box.offsetHeight]",
        selector,
    )
    return left, top
