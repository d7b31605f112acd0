"""Makes docs/reports, the pictures of docs/analysis.md and those of the cards.

Run it in a clone as `python docs/make_reports.py`.
"""

import io
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from esvit_hf import EsvitImageProcessor, evaluate
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.command_line import run
from esvit_hf.commands.main import main as esvit
from esvit_hf.features.extraction import load_image_processor
from esvit_hf.figures.neighbors import plot_image_rows
from esvit_hf.regions.similarity import region_colors
from esvit_hf.regions.whole_images import WholeImages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CHECKPOINTS = Path("examples/checkpoints")
PHOTOGRAPHS = ROOT / "src/esvit_hf/page/photographs"
MODEL = CHECKPOINTS / "esvit_swin_tiny_imagenet"
RANDOM = Path("outputs/random_network")
DATA = "src/esvit_hf/recipes/fashion_mnist"
TASKS = "knn,linear,logistic,few_shot,correspondence,attention"
SPLITS = {"train_split": "train[:1000]", "test_split": "test[:1000]"}
SHOWN = ("otters", "lake", "raccoon", "dahlia")
DETAIL = 5
QUALITY = 70


def make_random_network(model: Path) -> None:
    """Save a network of the same architecture with random weights."""
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(model)).save_pretrained(RANDOM)
    AutoImageProcessor.from_pretrained(model).save_pretrained(RANDOM)


def make_clothes_report(model: Path, **options: Any) -> None:
    """Evaluate a network on Fashion-MNIST."""
    make_report(model.name, model, DATA, tasks=TASKS, **SPLITS, **options)


def make_street_reports(camvid: Path) -> None:
    """Segment the street scenes of docs/dense.md by the regions of both networks."""
    options = {"tasks": "dense", "dense": {"void": [11], "image_size": 288}, "test_split": "test"}
    for network in ("swin", "cvt"):
        model = CHECKPOINTS / f"esvit_{network}_tiny_imagenet"
        make_report(f"camvid_{network}", model, camvid, compare_random=True, **options)


def make_report(name: str, model: Path, data: str | Path, **options: Any) -> None:
    """Evaluate a network, and keep the page and its figures."""
    folder = Path("docs/reports") / name
    shutil.rmtree(folder, ignore_errors=True)
    evaluate(model, data, report=folder, **options)
    for path in folder.iterdir():
        if path.suffix == ".json" or path.name == "model_card_block.md":
            path.unlink()
        elif path.suffix == ".png":
            Image.open(path).convert("RGB").quantize().save(path, optimize=True)


def make_analysis_pictures(model: Path) -> None:
    """Match a photograph with a mirrored part of it, and look at attention."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        size = {"size": {"shortest_edge": 192}, "crop_size": {"height": 192, "width": 192}}
        EsvitImageProcessor(**size).save_pretrained(folder / "processor_192")
        image = Image.open(PHOTOGRAPHS / "otters.jpg")
        ImageOps.mirror(image.crop((120, 0, 720, 364))).save(folder / "mirrored.jpg")
        finer = ["--processor", str(folder / "processor_192"), "--output", str(folder / "it.png")]
        pair = [str(PHOTOGRAPHS / "otters.jpg"), str(folder / "mirrored.jpg")]
        look = [str(PHOTOGRAPHS / "raccoon.jpg"), "--query", "200,150"]
        for command, words in (("correspond", pair), ("attention", look)):
            assert esvit([command, str(model), *words, *finer]) == 0
            name = {"correspond": "correspondence"}.get(command, command)
            save_small(Image.open(folder / "it.png"), DOCS / f"analysis_{name}.webp")


def make_card_picture(model: Path) -> None:
    """Color the regions of photographs by their principal components."""
    network = WholeImages(load_backbone(str(model)).eval(), load_image_processor(str(model)))
    images = [Image.open(PHOTOGRAPHS / f"{name}.jpg").convert("RGB") for name in SHOWN]
    regions = [network.regions(image, detail=DETAIL) for image in images]
    colors = [
        Image.fromarray((255 * color).byte().numpy()).resize(image.size)
        for color, image in zip(region_colors(regions), images, strict=True)
    ]
    picture = plot_image_rows([[(each, "") for each in row] for row in (images, colors)])
    content = io.BytesIO()
    picture.figure.savefig(content, dpi=120)
    save_small(Image.open(content), ROOT / "model_cards" / f"{model.name}.webp")


def save_small(picture: Image.Image, path: Path) -> None:
    """Save a picture as WebP."""
    picture.convert("RGB").save(path, quality=QUALITY, method=6)
    print(path.relative_to(ROOT), path.stat().st_size, "bytes")


def make_everything(*, model: Path = MODEL, camvid: Path | None = None) -> None:
    """Make reports and pictures.

    Args:
        model: folder of the network of the report on Fashion-MNIST and of docs/analysis.md.
        camvid: folder of parquet files with the images and masks of docs/dense.md; without it, the
            reports on them stay as they are.
    """
    for folder in sorted(CHECKPOINTS.iterdir()):
        make_card_picture(folder)
    make_analysis_pictures(model)
    make_random_network(model)
    make_clothes_report(RANDOM)
    make_clothes_report(model, compare_random=True)
    if camvid is not None:
        make_street_reports(camvid)


if __name__ == "__main__":
    run(make_everything)
