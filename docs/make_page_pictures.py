"""Makes the pictures of the page: `docs/page.webp`, which moves, and `docs/page_phone.webp`.

Run it as `PYTHONPATH=. python docs/make_page_pictures.py`. It needs chromium, chromedriver,
selenium, and the extra `demo`.
"""

import io
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from tests.support.browser import resize, running_browser, wait

from esvit_hf.commands.command_line import run

FOLDER = Path(__file__).parent
MODEL = FOLDER.parent / "examples" / "checkpoints" / "esvit_swin_tiny_imagenet"
PHONE = (390, 844)
ANIMATION_SIZE = (1160, 628)
ANIMATION_WIDTH = 928
QUALITY, STILL_QUALITY = 45, 85
FRAME_MILLISECONDS = 110
REST_MILLISECONDS = 1200
PATIENCE_SECONDS = 120

Frame = tuple[Image.Image, int]


def make_pictures(*, model: Path = MODEL) -> None:
    """Take the pictures of the page of a model.

    Args:
        model: Hub name or folder.
    """
    with (
        _page_of(model) as address,
        tempfile.TemporaryDirectory() as profile,
        running_browser(Path(profile)) as browser,
    ):
        _open(browser, address, PHONE)
        _move(browser, 0.42, 0.5)
        _screenshot(browser).save(FOLDER / "page_phone.webp", quality=STILL_QUALITY, method=6)
        _open(browser, address, ANIMATION_SIZE)
        _save_animation(list(_scenes(browser)), FOLDER / "page.webp")


def _scenes(browser: Chrome) -> Iterator[Frame]:
    path = [(0.22, 0.52), (0.42, 0.5), (0.5, 0.66), (0.36, 0.2), (0.8, 0.25), (0.7, 0.85)]
    for start, end in zip(path, path[1:], strict=False):
        for step in range(6):
            _move(browser, *(a + (b - a) * step / 6 for a, b in zip(start, end, strict=True)))
            yield _screenshot(browser), FRAME_MILLISECONDS
        yield _screenshot(browser), 3 * FRAME_MILLISECONDS
    _show(browser, "segment")
    _move(browser, 0.42, 0.5)
    for percent in range(60, 14, -5):
        _set(browser, "threshold", percent / 100)
        yield _screenshot(browser), FRAME_MILLISECONDS
    yield _screenshot(browser), REST_MILLISECONDS
    _set(browser, "threshold", 0.5)
    _show(browser, "matches")
    _leave(browser)
    yield _screenshot(browser), REST_MILLISECONDS
    for x, y in ((0.25, 0.5), (0.45, 0.52), (0.5, 0.85), (0.9, 0.2)):
        _move(browser, x, y)
        yield _screenshot(browser), 4 * FRAME_MILLISECONDS
    _show(browser, "colors")
    for percent in range(0, 75, 15):
        _set(browser, "blend", percent / 100)
        yield _screenshot(browser), FRAME_MILLISECONDS
    yield _screenshot(browser), REST_MILLISECONDS
    _set(browser, "threshold", 0.4)
    _set(browser, "compare", 1)
    _wait(browser)
    yield _screenshot(browser), REST_MILLISECONDS
    _show(browser, "similarity")
    for step in range(8):
        _move(browser, 0.25 + 0.025 * step, 0.5)
        yield _screenshot(browser), FRAME_MILLISECONDS
    yield _screenshot(browser), REST_MILLISECONDS


def _save_animation(frames: list[Frame], path: Path) -> None:
    images = []
    for image, _ in frames:
        height = round(image.height * ANIMATION_WIDTH / image.width)
        images.append(image.resize((ANIMATION_WIDTH, height), Image.Resampling.LANCZOS))
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=[milliseconds for _, milliseconds in frames],
        loop=0,
        quality=QUALITY,
        method=6,
    )


@contextmanager
def _page_of(model: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "esvit_hf.commands.main", "demo", str(model), "--port", str(port)]
    server = subprocess.Popen([sys.executable, *words])
    try:
        for _ in range(10 * PATIENCE_SECONDS):
            with socket.socket() as client:
                if server.poll() is None and client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise ValueError(f"the page of {model} does not open: see its output above")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _open(browser: Chrome, address: str, size: tuple[int, int]) -> None:
    resize(browser, size)
    browser.get(address)
    _wait(browser)


def _wait(browser: Chrome) -> None:
    """Wait for all answers, and for the frame that shows them."""
    wait(
        browser,
        lambda: (
            all(answer.text for answer in browser.find_elements(By.CSS_SELECTOR, ".answer"))
            and not browser.find_elements(By.CSS_SELECTOR, ".picture.busy")
        ),
    )
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )


def _move(browser: Chrome, x: float, y: float) -> None:
    picture = browser.find_element(By.CSS_SELECTOR, ".picture")
    width, height = picture.rect["width"], picture.rect["height"]
    offset = round((x - 0.5) * width), round((y - 0.5) * height)
    ActionChains(browser, duration=0).move_to_element_with_offset(picture, *offset).perform()
    _wait(browser)


def _leave(browser: Chrome) -> None:
    ActionChains(browser).move_to_element(browser.find_element(By.ID, "hint")).perform()
    _wait(browser)


def _show(browser: Chrome, view: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"input[value={view}] + span").click()
    _wait(browser)


def _set(browser: Chrome, name: str, value: float) -> None:
    browser.execute_script(
        "const [field, value] = arguments; field.value = value;"
        "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind))",
        browser.find_element(By.ID, name),
        value,
    )
    _wait(browser)


def _screenshot(browser: Chrome) -> Image.Image:
    return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


if __name__ == "__main__":
    run(make_pictures)
