"""Segmentation by frozen regions, on colored blocks that regions tell apart without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Array2D, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from sklearn.metrics import jaccard_score
from tests.support.process_group import run_on_processes
from tests.support.shades import save_small_swin

from esvit_hf.evaluation.dense_measuring import score_confusion
from esvit_hf.evaluation.dense_regions import class_shares, upsampled_classes
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.evaluation.masks import decode_mask

COLORS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], dtype=np.uint8)
OPTIONS: dict[str, Any] = {"image_size": 64, "k": 3, "epochs": 10, "void": [9]}


def blocks(count: int, *, seed: int, size: tuple[int, int] = (64, 80)) -> list[np.ndarray]:
    """Masks of three vertical bands, each of another class."""
    random = np.random.default_rng(seed)
    bands = [size[1] // 3, size[1] // 3, size[1] - 2 * (size[1] // 3)]
    masks = []
    for _ in range(count):
        row = np.repeat(random.permutation(3), bands)
        masks.append(np.tile(row, (size[0], 1)).astype(np.uint8))
    return masks


def rows(
    masks: list[np.ndarray], *, shown: list[np.ndarray] | None = None, arrays: bool = False
) -> Dataset:
    """Images in the colors of `shown` (by default of the masks), with masks."""
    images = [PILImage.fromarray(COLORS[np.minimum(mask, 2)]) for mask in shown or masks]
    stored = masks if arrays else [PILImage.fromarray(mask) for mask in masks]
    kind = Array2D(masks[0].shape, "uint8") if arrays else Image()
    return Dataset.from_dict(
        {"image": images, "mask": stored}, features=Features({"image": Image(), "mask": kind})
    )


def splits(**options: Any) -> DatasetDict:
    return DatasetDict(
        train=rows(blocks(6, seed=0), **options), test=rows(blocks(5, seed=1), **options)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_small_swin(folder)
    return folder


def measure(model: Path, data: Any, **options: Any) -> Any:
    found = evaluate(model, data, tasks="dense", num_workers=0, dense=OPTIONS | options)
    assert found is not None
    return found["tasks"]["dense"]


def test_both_protocols_solve_colored_blocks(model: Path, tmp_path: Path) -> None:
    found = evaluate(model, splits(), tasks="dense", num_workers=0, report=tmp_path, dense=OPTIONS)
    assert found is not None
    assert "classes" not in found
    numbers = found["tasks"]["dense"]
    # Borders between bands are finer than the regions.
    assert min(numbers["miou_retrieval"], numbers["miou_linear"]) > 90
    assert {path.name for path in tmp_path.iterdir()} >= {"segmentations.png", "class_iou.png"}


def test_blocks_of_whole_regions_are_solved_to_the_pixel(model: Path) -> None:
    masks = [np.full((64, 64), number % 3, dtype=np.uint8) for number in range(6)]
    data = DatasetDict(train=rows(masks), test=rows(masks))
    with pytest.warns(UserWarning, match="training images too"):
        numbers = measure(model, data)
    assert numbers["miou_retrieval"] == numbers["miou_linear"] == 100
    assert numbers["pixel_accuracy_linear"] == 100


def test_masks_as_arrays_give_the_same(model: Path) -> None:
    assert measure(model, splits()) == measure(model, splits(arrays=True))


def test_several_layers_and_odd_sizes(model: Path) -> None:
    data = DatasetDict(
        train=rows(blocks(4, seed=0, size=(51, 77)) + blocks(3, seed=3, size=(90, 61))),
        test=rows(blocks(3, seed=1, size=(83, 57))),
    )
    assert measure(model, data, layers=[0, -1])["miou_linear"] > 80
    with pytest.raises(ValueError, match="layer 9 asked for"):
        measure(model, data, layers=[9])


def test_void_pixels_do_not_count(model: Path) -> None:
    masks = blocks(5, seed=1)
    plain = measure(model, DatasetDict(train=rows(blocks(6, seed=0)), test=rows(masks)))
    for mask in masks:
        mask[:, 20:60] = 9
    voided = rows(masks, shown=blocks(5, seed=1))
    found = measure(model, DatasetDict(train=rows(blocks(6, seed=0)), test=voided))
    # What is left lies far from borders.
    assert found["pixel_accuracy_linear"] == 100 > plain["pixel_accuracy_linear"]


def test_wrong_values_are_named(model: Path) -> None:
    data = splits()
    masks = blocks(5, seed=1)
    masks[3][0, 0] = 7
    data["test"] = rows(masks)
    with pytest.raises(ValueError, match="mask of image 3 of split test holds the value 7"):
        measure(model, data)
    with pytest.raises(ValueError, match=r"--mask_column to one of: image, classes"):
        evaluate(model, data.rename_column("mask", "classes"), tasks="dense", dense=OPTIONS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (PILImage.new("RGB", (2, 2)), "mode RGB: store one class number a pixel"),
        ([[0.5]], "type float64: store one integer a pixel"),
        (b"no image", "cannot be decoded"),
    ],
)
def test_what_is_no_mask(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_mask(value)


def test_a_mask_of_too_many_pixels(model: Path) -> None:
    data = splits()
    large = np.zeros((200, 200), dtype=np.uint8)
    data["test"] = rows([*blocks(4, seed=1), large], shown=blocks(5, seed=1))
    with pytest.raises(ValueError, match=r"mask of image 4 .* \(max_image_pixels\)\): repair"):
        evaluate(model, data, tasks="dense", dense=OPTIONS, max_image_pixels=200 * 200 - 1)


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 4, 500), random.integers(0, 3, 500)
    confusion = torch.zeros(6, 6, dtype=torch.int64)
    for pair in zip(truth, predicted, strict=True):
        confusion[pair] += 1
    scores = score_confusion(confusion)
    expected = jaccard_score(truth, predicted, average=None)
    assert scores.class_iou[:4] == pytest.approx(expected)
    assert scores.class_iou[4:] == [None, None]
    assert scores.mean_iou == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert scores.pixel_accuracy == pytest.approx((truth == predicted).mean())


def test_upsampling_is_bilinear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esvit_hf.evaluation.dense_regions._SCORES_AT_ONCE", 200)
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(scores.permute(2, 0, 1)[None], (17, 23), mode="bilinear")
    assert torch.equal(upsampled_classes(scores, (17, 23)), expected[0].argmax(dim=0))


def test_shares_of_the_classes() -> None:
    classes = torch.tensor([[0, 0, 1, -1], [0, 1, 1, -1]])
    assert class_shares(classes, (1, 2), 2).tolist() == [[0.75, 0.25], [0, 0.5]]
    assert (
        class_shares(torch.tensor([[0, 1]]), (2, 4), 2).argmax(dim=1).tolist() == [0, 0, 1, 1] * 2
    )


def work(model: str, folder: str, output: str) -> None:
    found = evaluate(
        model,
        folder,
        tasks="dense",
        num_workers=0,
        batch_size=2,
        dense=OPTIONS | {"bank_size": 60},
    )
    if found is not None:
        Path(output).write_text(json.dumps(found["tasks"]))


def test_two_processes_give_the_numbers_of_one(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, data in splits().items():
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    outputs = [tmp_path / f"{processes}.json" for processes in (1, 2)]
    work(str(model), str(folder), str(outputs[0]))
    run_on_processes(2, work, str(model), str(folder), str(outputs[1]))
    one, two = (json.loads(output.read_text()) for output in outputs)
    assert one == two
    assert one["dense"]["regions_kept"] == 60
