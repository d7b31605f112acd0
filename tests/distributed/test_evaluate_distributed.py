"""Every task and the augmented probe on two processes give the numbers of one, from one store."""

import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from tests.support.process_group import run_on_processes

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.evaluation.classifiers import logistic_regression
from esvit_hf.evaluation.evaluate import evaluate

TASKS = "knn,linear,logistic,few_shot,correspondence,attention"
# Uneven: 41 and 13 images in batches of 4, the last of one image, an odd number of batches, on two
# processes.
TRAIN_IMAGES, TEST_IMAGES, BATCH_SIZE = 41, 13, 4
# Fewer fits than the protocol has: what may differ between processes is the features and who does
# what.
FEWER_FITS = partial(logistic_regression.logistic_probe, strengths=(0.01, 1.0, 100.0), halvings=0)


def prepare(folder: Path) -> None:
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder / "model")
    processor = EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(names=["dark", "middle", "light"])})
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        labels = [index % 3 for index in range(count)]
        pixels = [
            random.integers(60 * label, 60 * label + 130, (32, 32, 3), dtype=np.uint8)
            for label in labels
        ]
        rows = {"image": [PILImage.fromarray(image) for image in pixels], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(
            folder / "data" / f"{split}-00000-of-00001.parquet"
        )


def measure(folder: Path, name: str) -> dict[str, Any] | None:
    """Evaluate twice, the second time on kept features, and train an augmented probe; None but on
    the first process.
    """
    kept = folder / name / "features"
    settings: dict[str, Any] = {
        "model": folder / "model",
        "dataset": folder / "data",
        "features_folder": kept,
        "batch_size": BATCH_SIZE,
        "num_workers": 0,
    }
    tasks: dict[str, Any] = {"knn": {"k": [1, 7]}, "linear": {"blocks": [1, 2], "epochs": 4}}
    few_shot = {"draws": 2, "shots": [1, 5]}
    with patch.object(logistic_regression, "logistic_probe", FEWER_FITS):
        first = evaluate(
            **settings, tasks=TASKS, report=folder / name / "report", few_shot=few_shot, **tasks
        )
    written = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    second = evaluate(**settings, tasks="knn,linear", **tasks)
    assert written == {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    if first is not None and second is not None:
        assert second["tasks"] == {task: first["tasks"][task] for task in ("knn", "linear")}
    linear = {"augment": True, "blocks": [1, 2], "epochs": 3}
    probe = evaluate(**settings, tasks="linear", linear=linear)
    return None if first is None else {"evaluate": first, "augmented probe": probe}


def work(folder: Path) -> None:
    """What each of the two processes runs."""
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    numbers = measure(folder, "two")
    assert (numbers is None) != accelerator.is_main_process
    if numbers is not None:
        (folder / "two.json").write_text(json.dumps(numbers))
    accelerator.end_training()


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    prepare(tmp_path)
    run_on_processes(2, work, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = measure(tmp_path, "one")
    finally:
        torch.set_num_threads(threads)
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(json.dumps(expected))
    assert (
        expected is not None and expected["evaluate"]["tasks"]["knn"]["accuracies"][0]["top1"] > 40
    )
    for name in ("report.json", "measurements.json", "report.md", "model_card_block.md"):
        assert (tmp_path / "one" / "report" / name).read_text() == (
            tmp_path / "two" / "report" / name
        ).read_text()
    # The name of a file of features carries the digest of its content.
    stored = [
        sorted(path.name for path in (tmp_path / name / "features").iterdir())
        for name in ("one", "two")
    ]
    assert stored[0] == stored[1]
    assert len(stored[0]) == 4
