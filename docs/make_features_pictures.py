"""The pictures of docs/features.md: `python docs/make_features_pictures.py`.

A folder holds the photographs of the page, copies of two of them, and a shop's pictures of
sneakers, among which some other goods were put by mistake.
"""

import runpy
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import load_dataset
from PIL import Image

import esvit_hf

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT / "src/esvit_hf/page/photographs"
CLOTHES = ROOT / "src/esvit_hf/recipes/fashion_mnist"
MODEL = ROOT / "examples/checkpoints/esvit_swin_tiny_imagenet"
SNEAKERS = 100
OTHER_GOODS = ("Bag", "Trouser")


def write_photographs(folder: Path) -> None:
    """Photographs, one of them small as well, another one cropped."""
    for path in PHOTOGRAPHS.glob("*.jpg"):
        shutil.copy(path, folder)
    otters, lake = (Image.open(PHOTOGRAPHS / f"{name}.jpg") for name in ("otters", "lake"))
    otters.resize((otters.width // 2, otters.height // 2)).save(folder / "otters_small.jpg")
    lake.crop((20, 15, lake.width - 25, lake.height - 10)).save(folder / "lake_cropped.png")


def write_sneakers(folder: Path) -> None:
    """Sneakers, and other goods among them."""
    clothes = load_dataset("parquet", data_files=str(CLOTHES / "test-*.parquet"), split="train")
    names = clothes.features["label"].names
    wanted = {"Sneaker": SNEAKERS} | dict.fromkeys(OTHER_GOODS, 1)
    for row in clothes:
        name = names[row["label"]]
        if wanted.get(name, 0):
            wanted[name] -= 1
            number = SNEAKERS - wanted["Sneaker"] if name == "Sneaker" else 500 + wanted[name]
            row["image"].save(folder / f"{name.lower()}_{number}.png")


def main() -> None:
    """Write both pictures."""
    for name, write in (("duplicates", write_photographs), ("outliers", write_sneakers)):
        with TemporaryDirectory() as place:
            folder = Path(place) / "photos"
            folder.mkdir()
            write(folder)
            features = Path(place) / "photos.parquet"
            esvit_hf.extract_features(MODEL, folder, output=features)
            example = ROOT / "examples/duplicates_and_outliers.py"
            sys.argv = [example.name, str(features), str(folder), "--output", place]
            runpy.run_path(str(example), run_name="__main__")
            picture = Image.open(Path(place) / f"{name}.png").convert("RGB")
            picture.save(ROOT / "docs" / f"features_{name}.webp", quality=85)


if __name__ == "__main__":
    main()
