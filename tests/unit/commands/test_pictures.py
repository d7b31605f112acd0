"""`esvit correspond` and `esvit attention`: pictures from files, and one line for whatever is
wrong.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.commands.main import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `esvit` with words; its exit code, stdout and stderr without progress bars."""

    def program(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        output, errors = capsys.readouterr()
        return (
            code,
            output,
            "\n".join(line for line in errors.splitlines() if "it/s]" not in line and line.strip()),
        )

    return program


def refused(result: tuple[int, str, str]) -> str:
    """The one line that an error must be."""
    code, output, errors = result
    assert code == 2
    assert not output
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: ")
    return errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32-pixel images, and two photographs twice as large; one is lying on its side."""
    folder = tmp_path_factory.mktemp("analysis")
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder / "model")
    processor = EsvitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (72, 108, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "b.jpg", exif=exif)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "text.jpg").write_text("no image")
    Image.new("1", (10000, 9000)).save(folder / "huge.png")
    return folder


def last_line(output: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return report


def test_correspond(call: Call, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pictures" / "lines.png"
    code, printed, _ = call(
        "correspond",
        folder / "model",
        folder / "a.png",
        folder / "b.jpg",
        "--output",
        output,
        "--count",
        "5",
    )
    assert code == 0
    with Image.open(output) as picture:
        assert picture.width == 1260
    report = last_line(printed)
    assert report["output"] == str(output)
    assert len(report["pairs"]) == 5
    similarities = [pair["similarity"] for pair in report["pairs"]]
    assert similarities == sorted(similarities, reverse=True)
    for pair in report["pairs"]:
        # 64 of 72 x 108 pixels are kept, from (22, 4) on; b is upright with 72 x 108.
        (x, y), (other_x, other_y) = pair["first"], pair["second"]
        assert min(abs(x - 22 - step) for step in (8, 24, 40, 56)) < 1.5
        assert min(abs(y - 4 - step) for step in (8, 24, 40, 56)) < 1.5
        assert 4 < other_x < 68
        assert 22 < other_y < 86


def test_an_image_corresponds_to_itself(call: Call, folder: Path, tmp_path: Path) -> None:
    words = [
        "correspond",
        folder / "model",
        folder / "a.png",
        folder / "a.png",
        "--output",
        tmp_path / "lines.pdf",
    ]
    code, printed, _ = call(*words, "--layer", "0")
    assert code == 0
    for pair in last_line(printed)["pairs"]:
        assert pair["first"] == pair["second"]
        assert pair["similarity"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("layer", "heads"), [("-1", 2), ("0", 1)])
def test_attention(call: Call, folder: Path, tmp_path: Path, layer: str, heads: int) -> None:
    output = tmp_path / "attention.png"
    words = [
        "attention",
        folder / "model",
        folder / "a.png",
        "--query",
        "40,30",
        "--output",
        output,
    ]
    code, printed, _ = call(*words, "--layer", layer)
    assert code == 0
    assert output.is_file()
    assert last_line(printed) == {"output": str(output), "attention_on_image": [1.0] * heads}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("missing.png", "there is no image file"),
        ("broken.png", "broken.png cannot be used"),
        ("text.jpg", "no image format"),
        ("huge.png", "10000 x 9000 pixels are more than the limit"),
        ("model", "there is no image file"),
    ],
)
def test_images_that_cannot_be_used(
    call: Call, folder: Path, tmp_path: Path, image: str, reason: str
) -> None:
    output, model = tmp_path / "figure.png", folder / "model"
    assert reason in refused(
        call("correspond", model, folder / "a.png", folder / image, "--output", output)
    )
    assert reason in refused(
        call("attention", model, folder / image, "--query", "1,1", "--output", output)
    )
    assert not output.exists()


def test_the_limit_of_pixels_is_a_setting(call: Call, folder: Path, tmp_path: Path) -> None:
    model, a, output = folder / "model", folder / "a.png", tmp_path / "new" / "figure.png"
    small = ("--output", output, "--max_image_pixels", "7775")
    for words in (
        ("correspond", model, a, a),
        ("attention", model, a, "--query", "40,30"),
        ("neighbors", model, a, folder),
    ):
        assert "a.png cannot be used (108 x 72 pixels are more than the limit of 7775" in refused(
            call(*words, *small)
        )
    # A command that fails leaves no folder behind.
    assert not output.parent.exists()
    assert call("correspond", model, a, a, *small[:3], "7776")[0] == 0


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("108,10", "outside .*a.png, which has 108 x 72 pixels"),
        ("10,-1", "outside .*a.png, which has 108 x 72 pixels"),
        ("nan,3", "outside"),
        ("5,30", "what the image processor keeps .*choose x from 22 to 86 and y from 4 to 68"),
        ("5", "give a point as x,y"),
        ("a,b", "give a point as x,y"),
        ("1,2,3", "give a point as x,y"),
    ],
)
def test_points_that_cannot_be_used(
    call: Call, folder: Path, tmp_path: Path, query: str, reason: str
) -> None:
    words = [
        "attention",
        folder / "model",
        folder / "a.png",
        "--query",
        query,
        "--output",
        tmp_path / "figure.png",
    ]
    assert re.search(reason, refused(call(*words)))


def test_settings_that_cannot_be_used(call: Call, folder: Path, tmp_path: Path) -> None:
    model, a, output = folder / "model", folder / "a.png", tmp_path / "figure.png"
    pair = ["correspond", model, a, a, "--output"]
    assert "must end in .png or .pdf" in refused(call(*pair, tmp_path / "figure.jpg"))
    assert "choose 0 to 3" in refused(call(*pair, output, "--layer", "9"))
    assert "count is 0: give 1 or more" in refused(call(*pair, output, "--count", "0"))
    assert "cannot load a model" in refused(
        call("correspond", folder / "none", a, a, "--output", output)
    )
    for unwritable in ("/proc/figure.png", folder / "a.png" / "figure.png"):
        said = refused(call("correspond", folder / "none", a, a, "--output", unwritable))
        assert "cannot write" in said
    single = ["attention", model, a, "--query", "40,30", "--output"]
    assert "has 3 blocks with attention" in refused(call(*single, output, "--layer", "3"))
    assert "cannot write" in refused(call(*single, folder / "a.png" / "figure.png"))
