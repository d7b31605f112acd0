"""The task `linear` with its options: augmented images, and what its sentences say."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.shades import save_small_swin, write_shades

from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.hub.measurements import read_measurements


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_an_augmented_probe_learns_from_crops(tmp_path: Path) -> None:
    save_small_swin(tmp_path / "model")
    write_shades(tmp_path / "shades", "train", 194)
    write_shades(tmp_path / "shades", "test", 60, seed=1)
    words: dict[str, Any] = {
        "model": tmp_path / "model",
        "dataset": tmp_path / "shades",
        "tasks": "linear",
        "features_folder": tmp_path / "features",
        "num_workers": 0,
    }
    options: dict[str, Any] = {"blocks": [1, 2], "epochs": 2, "learning_rates": [0.3, 3.0]}
    plain, first = (
        evaluate(report=tmp_path / str(place), linear={"augment": augment, **options}, **words)
        for place, augment in enumerate((False, True))
    )
    again = evaluate(linear={"augment": True, **options}, **words)
    assert plain is not None and first is not None and again is not None
    assert first["tasks"] == again["tasks"]
    assert first["tasks"]["linear"]["validation"] != plain["tasks"]["linear"]["validation"]
    for place, said in enumerate(("no augmentation", "random crops and flips")):
        record = read_measurements(tmp_path / str(place) / "measurements.json")[0]
        assert said in record.protocol
        # Of 194 images 18: the first of a class stays to learn from.
        assert "chosen on a held-out 9.3 % of the training images" in record.protocol
        assert said in (tmp_path / str(place) / "report.md").read_text()
