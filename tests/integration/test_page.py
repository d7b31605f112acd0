"""The page of `esvit demo` in headless Chromium: answers on the pictures, the keyboard, a phone,
and what must not happen.

Needs chromium, chromedriver and the extra `demo`: make test-browser.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from tests.support.browser import (
    PATIENCE,
    new_tab,
    requested,
    resize,
    running_browser,
    wait,
)
from tests.support.page import save_small_network
from tests.support.page_actions import (
    answer,
    choose,
    click,
    mark_at,
    move_to,
    next_frame,
    pictures,
    pixels,
    set_value,
    show,
    wait_for_picture,
)
from tests.support.paths import FASHION_MNIST, ROOT

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.features.extraction import load_image_processor
from esvit_hf.page.pictures import PHOTOGRAPHS
from esvit_hf.regions.similarity import region_colors, similarity_map
from esvit_hf.regions.whole_images import ImageRegions, WholeImages

pytestmark = pytest.mark.browser

TRAINED = ROOT / "examples" / "checkpoints" / "esvit_swin_tiny_imagenet"
LAPTOP, PHONE, NARROW = (1280, 720), (390, 844), (320, 640)
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}

OpenPage = Callable[..., Chrome]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a trained network, served by the command as a user starts it."""
    folder = tmp_path_factory.mktemp("page")
    save_small_network(folder / "other")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dataset = FASHION_MNIST
    words = ["demo", TRAINED, "--compare", folder / "other", "--port", port]
    words += ["--dataset", dataset, "--split", "test[:200]"]
    words += ["--features_folder", folder / "features"]
    with (folder / "output.txt").open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "esvit_hf.commands.main", *map(str, words)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with running_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def open_page(address: str, browser: Chrome) -> Iterator[OpenPage]:
    """Open the page with two photographs chosen."""
    with new_tab(browser, address):

        def opened(
            size: tuple[int, int], first: str = "Pavilion", second: str = "Colosseum"
        ) -> Chrome:
            resize(browser, size)
            browser.get(address)
            wait(browser, lambda: answer(browser))
            choose(browser, 0, first)
            choose(browser, 1, second)
            return browser

        yield opened


def test_a_moving_pointer_is_answered_without_the_server(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    requested(browser)
    seen, said = [], set()
    for x, y in ((0.4, 0.5), (0.8, 0.3), (0.2, 0.9)):
        move_to(browser, 0, x, y)
        assert mark_at(browser, ".point") == pytest.approx((x, y), abs=0.01)
        seen.append([pixels(browser, ".layer", side) for side in (0, 1)])
        said.add(answer(browser))
    for earlier, later in zip(seen, seen[1:], strict=False):
        for before, after in zip(earlier, later, strict=True):
            assert (before != after).any()
    assert len(said) == 3
    assert requested(browser) == []


def test_either_picture_can_be_asked(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    move_to(browser, 0, 0.4, 0.5)
    assert "in picture 2" in answer(browser)
    move_to(browser, 1, 0.4, 0.5)
    assert "in picture 1" in answer(browser)
    marks = [picture.find_elements(By.CSS_SELECTOR, ".point") for picture in pictures(browser)]
    assert [len(found) for found in marks] == [0, 1]


def python_regions(name: str, detail: int) -> ImageRegions:
    whole_images = WholeImages(
        load_backbone(str(TRAINED)).eval(), load_image_processor(str(TRAINED))
    )
    image = Image.open(PHOTOGRAPHS / f"{name}.jpg").convert("RGB")
    return whole_images.regions(image, detail=detail)


def test_numbers_are_those_of_the_package(open_page: OpenPage) -> None:
    """Cosines at a region's center, pairs and colors, computed by the page and by the package."""
    browser = open_page(LAPTOP)
    found: dict[str, Any] = browser.execute_async_script(
        """
        const done = arguments[0];
        const [{ regionsOf }, math] = await Promise.all(
          [import("./static/state.js"), import("./static/regions.js")]
        );
        const [first, second] = [0, 1].map((side) => regionsOf(0, side));
        const feature = math.featureAt(first, 9.5 / first.columns, 7.5 / first.rows);
        done({
          grid: [second.rows, second.columns],
          cosines: [...math.cosines(second, feature)],
          mean: math.meanCosine(first, second),
          matches: math.mutualMatches(first, second),
          colors: math.regionColors([first, second]).map((colors) => [...colors]),
        });
        """
    )
    first, second = python_regions("pavilion", 5), python_regions("colosseum", 5)
    assert tuple(found["grid"]) == second.grid
    expected = similarity_map(first, first.center(7, 9), second)
    cosines = torch.tensor(found["cosines"]).view(second.grid)
    torch.testing.assert_close(cosines, expected, atol=0.01, rtol=0)
    rows = [
        torch.nn.functional.normalize(regions.features.flatten(0, 1), dim=1)
        for regions in (first, second)
    ]
    similarity = rows[0] @ rows[1].T
    assert found["mean"] == pytest.approx(float(similarity.mean()), abs=0.003)
    best = similarity.argmax(dim=1)
    mutual = similarity.argmax(dim=0)[best] == torch.arange(len(best))
    assert len(found["matches"]) == pytest.approx(int(mutual.sum()), rel=0.1)
    assert found["matches"][0]["cosine"] == pytest.approx(float(similarity.max()), abs=0.01)
    own = torch.cat([torch.tensor(colors).view(-1, 3) for colors in found["colors"]])
    package = torch.cat([colors.view(-1, 3) for colors in region_colors([first, second])])
    for component in range(3):
        pair = torch.stack([own[:, component], package[:, component]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) > 0.97


def test_a_click_holds_the_point_until_the_next(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    move_to(browser, 0, 0.4, 0.5)
    click(browser)
    held = mark_at(browser, ".point.held")
    move_to(browser, 0, 0.8, 0.2)
    assert mark_at(browser, ".point.held") == held
    click(browser)
    assert mark_at(browser, ".point:not(.held)") == pytest.approx((0.8, 0.2), abs=0.01)
    move_to(browser, 0, 0.3, 0.3)
    assert mark_at(browser, ".point") == pytest.approx((0.3, 0.3), abs=0.01)


def test_the_threshold_segments(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    show(browser, "segment")
    move_to(browser, 0, 0.4, 0.5)
    kept = []
    for threshold in (0.2, 0.4, 0.6):
        set_value(browser, "threshold", threshold)
        kept.append([(pixels(browser, ".layer", side)[..., 3] == 0).mean() for side in (0, 1)])
        assert f"{100 * kept[-1][0]:.0f}"[0] in answer(browser)
    for side in (0, 1):
        shares = [share[side] for share in kept]
        assert 0.9 > shares[0] > shares[1] > shares[2]
    assert kept[2][0] > 0


@pytest.mark.parametrize("view", ["similarity", "segment", "matches"])
def test_nothing_similar_is_said(view: str, open_page: OpenPage) -> None:
    browser = open_page(LAPTOP, "Dahlia", "Blue flowers")
    show(browser, view)
    if view == "matches":
        set_value(browser, "threshold", 1)
    move_to(browser, 0, 0.5, 0.4)
    assert "othing similar" in answer(browser)
    assert pictures(browser)[1].find_element(By.CSS_SELECTOR, ".note").text == "Nothing similar"
    assert browser.find_elements(By.CSS_SELECTOR, ".match") == []


def test_matches_are_lines_between_the_pictures(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    show(browser, "matches")
    ActionChains(browser).move_to_element(browser.find_element(By.ID, "hint")).perform()
    next_frame(browser)
    drawn = pixels(browser, "#lines")[..., 3] > 0
    gap = drawn.shape[1] // 2
    assert drawn[:, gap - 4 : gap + 4].any(axis=1).sum() > 20
    pairs = answer(browser)
    move_to(browser, 0, 0.5, 0.5)
    fewer = pixels(browser, "#lines")[..., 3] > 0
    assert 0 < fewer.sum() < drawn.sum()
    assert answer(browser) != pairs


def test_colors_are_blended_over_the_photograph(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    show(browser, "colors")
    for blend, opacity in ((0, 0), (0.5, 128), (1, 255)):
        set_value(browser, "blend", blend)
        layer = pixels(browser, ".layer", 1)
        assert np.abs(layer[..., 3].astype(int) - opacity).max() <= 1
    assert layer[..., :3].std(axis=(0, 1)).min() > 20


def test_attention_by_block_and_head(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    show(browser, "attention")
    move_to(browser, 0, 0.4, 0.5)
    wait(browser, lambda: "% of the attention" in answer(browser))
    mean = pixels(browser, ".layer", 0)
    assert not pixels(browser, ".layer", 1)[..., 3].any()
    heads = browser.find_elements(By.CSS_SELECTOR, "#head option")
    assert [option.text for option in heads] == ["mean", *"123456"]
    set_value(browser, "head", 2)
    assert (pixels(browser, ".layer", 0) != mean).any()
    set_value(browser, "block", 0)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#head option")) == 4


def test_networks_side_by_side(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    names = [option.text for option in browser.find_elements(By.CSS_SELECTOR, "#compare option")]
    assert names == ["nothing", "untrained weights", "other"]
    for number, name in ((1, "untrained weights"), (2, "other")):
        set_value(browser, "compare", number)
        wait(browser, lambda: answer(browser, 1))
        shown = [label.text for label in browser.find_elements(By.CSS_SELECTOR, ".name")]
        assert shown == ["esvit_swin_tiny_imagenet", name]
        move_to(browser, 0, 0.4, 0.5)
        assert answer(browser, 0) != answer(browser, 1)
        assert len(browser.find_elements(By.CSS_SELECTOR, ".point")) == 2
    set_value(browser, "compare", "")
    assert len(pictures(browser)) == 2


def test_finer_regions(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    move_to(browser, 0, 0.4, 0.5)
    coarse = pixels(browser, ".layer", 1)
    set_value(browser, "rows", 21)
    wait(browser, lambda: not browser.find_elements(By.CSS_SELECTOR, ".picture.busy"))
    next_frame(browser)
    assert (pixels(browser, ".layer", 1) != coarse).any()


def test_nearest_images_have_names(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    choose(browser, 0, "Trouser")
    show(browser, "nearest")
    found = wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".found figcaption"))
    assert len(found) == 12
    assert found[0].text.startswith("Trouser\nimage ")
    assert found[0].text.endswith(", 1.00")
    assert not pictures(browser)[1].is_displayed()
    show(browser, "similarity")
    assert pictures(browser)[1].is_displayed()
    assert browser.find_elements(By.CSS_SELECTOR, ".found") == []


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("size", [LAPTOP, PHONE, NARROW])
def test_pictures_and_answer_share_the_first_screen(
    size: tuple[int, int], networks: int, open_page: OpenPage
) -> None:
    browser = open_page(size)
    if networks == 2:
        set_value(browser, "compare", 1)
        wait(browser, lambda: answer(browser, 1))
    browser.execute_script("window.scrollTo(0, 0)")
    boxes = [picture.rect for picture in pictures(browser)]
    side_by_side = size == LAPTOP or networks == 2
    assert (boxes[0]["x"] < boxes[1]["x"]) == side_by_side
    assert (boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]) != side_by_side
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    texts = [line.rect for line in browser.find_elements(By.CSS_SELECTOR, ".words")]
    if size != NARROW:
        for box in (*boxes, *texts):
            assert box["y"] + box["height"] <= size[1]
    for box in boxes:
        assert box["width"] > 0.4 * size[0] / (2 if networks == 2 else 1)


def test_a_finger_moves_the_point(open_page: OpenPage) -> None:
    browser = open_page(PHONE)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    for number, x in ((0, 0.3), (1, 0.6)):
        box = browser.execute_script(
            "return arguments[0].getBoundingClientRect()", pictures(browser)[number]
        )
        place = {"x": box["x"] + x * box["width"], "y": box["y"] + 0.5 * box["height"]}
        for kind, points in (("touchStart", [place]), ("touchEnd", [])):
            browser.execute_cdp_cmd(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": points}
            )
        touched = pytest.approx((x, 0.5), abs=0.02)
        wait(browser, lambda: mark_at(browser, ".point") == touched)  # noqa: B023
        assert f"in picture {2 - number}" in answer(browser)


def background(browser: Chrome) -> int:
    color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return int(color.removeprefix("rgb(").split(",")[0])


def test_light_and_dark(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    assert background(browser) > 200
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
    browser.refresh()
    wait(browser, lambda: answer(browser))
    assert background(browser) < 60
    button = browser.find_element(By.ID, "theme")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert background(browser) > 200
    browser.refresh()
    wait(browser, lambda: answer(browser))
    assert background(browser) > 200


def test_the_keyboard_is_enough(open_page: OpenPage) -> None:
    """Tab reaches everything; arrows move the point by regions, Enter holds it, letters and arrows
    work the controls.
    """
    browser = open_page(LAPTOP)
    labels: list[str] = []
    for _ in range(80):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focused = browser.switch_to.active_element
        if focused.tag_name == "body":
            break
        label = focused.accessible_name
        assert label, focused.get_attribute("outerHTML")
        labels.append(label)
        if label.startswith("Picture 2, Colosseum"):
            focused.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
            next_frame(browser)
            x, y = mark_at(browser, ".point")
            # From the center of 15 x 27 regions to the center of the next.
            assert (x, y) == (pytest.approx(14.5 / 27, abs=0.01), pytest.approx(8.5 / 15, abs=0.01))
            assert "in picture 1" in answer(browser)
            wait(
                browser,
                lambda: (
                    browser.find_element(By.ID, "spoken").get_attribute("textContent")
                    == answer(browser)
                ),
            )
            focused.send_keys(Keys.ENTER)
            next_frame(browser)
            assert browser.find_elements(By.CSS_SELECTOR, ".point.held")
            focused.send_keys(Keys.ESCAPE)
            next_frame(browser)
            assert not browser.find_elements(By.CSS_SELECTOR, ".point.held")
        if label == "Threshold":
            before = answer(browser)
            focused.send_keys(Keys.END)
            next_frame(browser)
            assert answer(browser) != before
    expected = (
        "Compare with",
        "Regions",
        "Dark colors",
        "Similarity",
        "Blend",
        "Picture 1, Pavilion",
        "Upload picture 1",
        "Picture 1: Osprey",
        "Upload picture 2",
        "Picture 2: Trouser",
    )
    for name in expected:
        assert any(label.startswith(name) for label in labels), (name, labels)


def upload(browser: Chrome, side: int, path: Path) -> None:
    browser.find_elements(By.CSS_SELECTOR, "input[type=file]")[side].send_keys(str(path))


def message(browser: Chrome) -> str:
    return browser.find_element(By.CSS_SELECTOR, "[role=alert]").text


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_an_upload_takes_its_place(kind: str, open_page: OpenPage, tmp_path: Path) -> None:
    browser = open_page(LAPTOP)
    noise = np.random.default_rng(0).integers(0, 256, (500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"wide.{kind}")
    upload(browser, 0, tmp_path / f"wide.{kind}")
    wait_for_picture(browser, 0, "Your picture")
    box = pictures(browser)[0].rect
    assert box["width"] / box["height"] == pytest.approx(3, abs=0.03)
    move_to(browser, 0, 0.9, 0.2)
    assert answer(browser)
    assert message(browser) == ""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text", "cannot be read as an image"),
        ("truncated", "cannot be read as an image"),
        ("pixels", "6000 x 5000 pixels: choose one of at most 25 million"),
        ("tiny", "8 x 200 pixels: both sides need at least 16"),
        ("bytes", "The file has 11.0 MB: choose one of at most 10 MB."),
    ],
)
def test_refused_uploads(kind: str, expected: str, open_page: OpenPage, tmp_path: Path) -> None:
    browser = open_page(LAPTOP)
    path = tmp_path / "upload.png"
    if kind == "text":
        path.write_text("no image")
    elif kind == "bytes":
        path.write_bytes(bytes(11 * 2**20))
    else:
        size = {"truncated": (300, 300), "pixels": (6000, 5000), "tiny": (8, 200)}[kind]
        Image.new("RGB", size, "orange").save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:120])
    upload(browser, 1, path)
    wait(browser, lambda: expected in message(browser))
    assert "upload.png" not in message(browser)
    wait_for_picture(browser, 1, "Colosseum")
    choose(browser, 1, "Cat")
    assert message(browser) == ""


def test_a_server_that_stopped_is_named(open_page: OpenPage) -> None:
    browser = open_page(LAPTOP)
    browser.execute_script("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    strip = browser.find_elements(By.CSS_SELECTOR, ".strip")[0]
    strip.find_element(By.CSS_SELECTOR, "button[title='Cat']").click()
    wait(browser, lambda: "The server does not answer" in message(browser))
    move_to(browser, 0, 0.4, 0.5)
    assert "in picture 2" in answer(browser)
