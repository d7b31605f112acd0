"""What a new user does first, with the installed package alone: `python -I wheel_smoke.py`.

Runs in an empty folder outside of the repository, and stops at the first thing that fails.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import load_dataset
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import esvit_hf

PACKAGE = Path(esvit_hf.__file__).parent
BROKEN = "broken.jpg"
NAMES = ["animals/Tür 1.png", "cat.jpg", "drawing.gif", "lake.jpg"]


def esvit(folder: Path, *words: str) -> str:
    """Run a command in a folder; its last line of output."""
    print("esvit", *words, flush=True)
    program = Path(sysconfig.get_path("scripts")) / "esvit"
    done = subprocess.run([program, *words], cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"esvit {' '.join(words)} ended with {done.returncode}")
    return done.stdout.splitlines()[-1]


def write_photos(folder: Path) -> None:
    """Photographs, other kinds of images in folders, a damaged one, and a file that is none."""
    (folder / "animals").mkdir(parents=True)
    for name in ("cat.jpg", "lake.jpg"):
        shutil.copy(PACKAGE / "page" / "photographs" / name, folder)
    Image.new("RGBA", (50, 80), (200, 30, 30, 128)).save(folder / "animals" / "Tür 1.png")
    Image.new("P", (40, 30)).save(folder / "drawing.gif")
    (folder / BROKEN).write_bytes((folder / "cat.jpg").read_bytes()[:5000])
    (folder / "notes.txt").write_text("no image")


def main(folder: Path) -> None:
    """Install check, quick start, features of a folder with odd files."""
    found = esvit(folder, "--version")
    assert version("esvit-hf") in found, found
    assert PACKAGE.is_relative_to(sysconfig.get_path("purelib")), PACKAGE
    quick = ["--schedule.max_steps", "3", "--run.knn_every_epochs", "0"]
    esvit(folder, "pretrain", "demo", *quick, "--run.output_dir", "outputs/first")
    write_photos(folder / "photos")
    words = ["features", "outputs/first", "photos", "--output", "new/photos.parquet"]
    report = json.loads(esvit(folder, *words))
    assert (report["rows"], list(report["broken"])) == (len(NAMES), [BROKEN]), report
    rows = load_dataset(
        "parquet",
        data_files=str(folder / "new" / "photos.parquet"),
        split="train",
        cache_dir=str(folder / "cache"),
    )
    assert sorted(rows["file"]) == NAMES, rows["file"][:]
    model = AutoModel.from_pretrained(folder / "outputs" / "first").eval()
    processor = AutoImageProcessor.from_pretrained(folder / "outputs" / "first")
    image = Image.open(folder / "photos" / "animals" / "Tür 1.png")
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).pooler_output[0]
    kept = torch.tensor(rows["feature"][rows["file"][:].index(NAMES[0])])
    torch.testing.assert_close(kept, expected, atol=1e-4, rtol=1e-3)
    words = ["neighbors", "outputs/first", "photos/lake.jpg", "photos/animals", "--count", "1"]
    report = json.loads(esvit(folder, *words, "--output", "neighbors.png"))
    assert report["neighbors"][0]["name"].endswith("Tür 1.png)"), report
    splits = ["--train_split", "train[:300]", "--test_split", "test[:100]"]
    data = str(PACKAGE / "recipes" / "fashion_mnist")
    report = json.loads(esvit(folder, "evaluate", "outputs/first", data, "--tasks", "knn", *splits))
    assert report["tasks"]["knn"]["accuracies"], report
    print("the wheel works")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
