"""The k-NN of the teacher while it trains."""

from pathlib import Path

import pytest
from accelerate import Accelerator
from tests.support.photo_folders import noise
from tests.support.small_runs import small_run

from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.images import load_training_images
from esvit_hf.pretraining.online_knn import OnlineKnn


def test_broken_images_are_left_out_and_named_once(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in "ab":
        (photos / name).mkdir(parents=True)
    for number in range(8):
        noise(number).save(photos / "ab"[number % 2] / f"{number}.png")
    (photos / "a" / "0.jpg").write_text("no image")
    (photos / "b" / "0.gif").touch()
    # Every image is its own nearest neighbor, if labels go with their images.
    words = ("--run.knn_every_epochs", "1", "--run.knn_split", "train", "--run.knn_neighbors", "1")
    recipe = small_run(tmp_path / "run", "--data.dataset", str(photos), *words)
    knn = OnlineKnn(recipe, load_training_images(recipe), Accelerator(cpu=True))
    teacher = build_parts(recipe).teacher
    said = r"the k-NN leaves out .*: 2 of 10 images cannot be decoded \(.*a/0.jpg.*b/0.gif"
    with pytest.warns(UserWarning, match=said):
        assert knn.measure(teacher) == {"knn1_top1": 1.0}
    assert knn.measure(teacher) == {"knn1_top1": 1.0}


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ("test", "has no split 'test'; set --run.knn_split to one of: train"),
        ("train", "name the column with the labels .--data.label_column., or give each class"),
    ],
)
def test_images_without_classes_do_without_it(tmp_path: Path, split: str, reason: str) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        noise(number).save(tmp_path / "photos" / f"{number}.png")
    words = ("--run.knn_every_epochs", "1", "--run.knn_split", split)
    recipe = small_run(tmp_path / "run", "--data.dataset", str(tmp_path / "photos"), *words)
    with pytest.raises(ValueError, match=f"{reason}.*; or .* with --run.knn_every_epochs 0"):
        OnlineKnn(recipe, load_training_images(recipe), Accelerator(cpu=True))
