"""Features part by part: the batches of workers, reduced JPEGs, and what is refused."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tests.support.held_images import count_held_images
from tests.support.photo_folders import noise, save_model
from transformers import ViTImageProcessor

from esvit_hf.acceleration.threads import use_threads
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.features import row_features
from esvit_hf.features.extraction import load_image_processor
from esvit_hf.features.row_features import (
    PartBatches,
    PartFeatures,
    RowOptions,
    _Batch,
    _run,
    _SparedThreads,
    compute_parts,
    reduced_side,
)
from esvit_hf.features.rows import RowSource, open_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return str(folder)


@pytest.fixture
def backbone(model: str) -> RegionBackbone:
    return load_backbone(model)


def source(folder: Path, size: tuple[int, int] = (40, 40), count: int = 11) -> RowSource:
    for seed in range(count):
        noise(seed, *size).save(folder / f"{seed:02d}.jpg", quality=95)
    return open_rows(folder)


def compute(
    backbone: RegionBackbone, model: str, rows: RowSource, parts: list[range], **options: int
) -> list[PartFeatures]:
    processor = load_image_processor(model)
    settings = RowOptions(**{"num_workers": 0, **options})  # type: ignore[arg-type]
    return list(compute_parts(lambda: backbone, processor, rows, parts, settings, Accelerator()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parts_hold_the_features_of_their_images(
    num_workers: int, backbone: RegionBackbone, model: str, tmp_path: Path
) -> None:
    rows = source(tmp_path)
    (tmp_path / "03.jpg").write_text("no image")
    (whole,) = compute(backbone, model, rows, [range(11)], batch_size=11)
    assert list(whole.broken) == [3]
    parts = [range(5, 9), range(9, 11), range(0, 5)]
    found = compute(backbone, model, rows, parts, batch_size=2, num_workers=num_workers)
    assert [features.part for features in found] == parts
    assert [features.kept.tolist() for features in found] == [[5, 6, 7, 8], [9, 10], [0, 1, 2, 4]]
    assert [list(features.broken) for features in found] == [[], [], [3]]
    for features in found:
        expected = whole.values[(whole.kept[:, None] == features.kept).any(dim=1)]
        torch.testing.assert_close(features.values, expected, atol=1e-5, rtol=1e-5)


def test_images_are_read_while_the_network_is_loaded(
    backbone: RegionBackbone, model: str, tmp_path: Path
) -> None:
    reading: list[tuple[int, int]] = []

    def load() -> RegionBackbone:
        reading.append((len(multiprocessing.active_children()), torch.get_num_threads()))
        return backbone

    rows, processor = source(tmp_path, count=2), load_image_processor(model)
    options = RowOptions(num_workers=1)
    with use_threads(3):
        list(compute_parts(load, processor, rows, [range(2)], options, Accelerator()))
    assert reading == [(1, 2)]


def test_a_network_leaves_cores_to_workers_unless_they_wait_for_it() -> None:
    with use_threads(4):
        threads = _SparedThreads(2)
    assert threads.number == 2
    threads.judge(computing=0.9, preparing=1.0)
    assert threads.number == 2
    threads.judge(computing=0.4, preparing=1.0)
    assert threads.number == 2
    threads.judge(computing=0.6, preparing=1.0)
    assert threads.number == 4
    threads.judge(computing=0.1, preparing=1.0)
    assert threads.number == 4
    with use_threads(2):
        assert (_SparedThreads(0).number, _SparedThreads(5).number) == (2, 1)


def test_a_network_that_waits_for_a_core_takes_no_further_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait(*_: object) -> tuple[object, None, None, None]:
        time.sleep(0.05)
        return batch, None, None, None

    batch = _Batch(None, torch.empty(0), {}, seconds=0.02)
    monkeypatch.setattr(row_features, "_start", wait)
    with use_threads(4):
        threads = _SparedThreads(2)
        list(_run(None, iter([batch] * 3), RowOptions(), Accelerator(cpu=True), threads))  # type: ignore[arg-type]
    assert threads.number == 2


def test_large_jpegs_are_decoded_reduced(
    backbone: RegionBackbone, model: str, tmp_path: Path
) -> None:
    assert reduced_side(load_image_processor(model)) == 72
    for size, is_exact in (((143, 200), True), ((144, 200), False), ((600, 700), False)):
        rows = source(tmp_path, size, count=3)
        reduced, full = (
            compute(backbone, model, rows, [range(3)], reduce_jpegs=reduce)[0].values
            for reduce in (True, False)
        )
        assert torch.equal(reduced, full) == is_exact
        assert torch.cosine_similarity(reduced, full).min() > 0.99


def test_a_shard_that_cannot_be_read_is_not_the_fault_of_the_processor(
    backbone: RegionBackbone, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(indices: list[int]) -> list[object]:
        raise ValueError("a.parquet cannot be read")

    rows = source(tmp_path, count=2)
    monkeypatch.setattr(rows, "read_encoded", fail)
    with pytest.raises(ValueError, match=r"^a\.parquet cannot be read$"):
        compute(backbone, model, rows, [range(2)])


def test_files_of_phones_are_jpegs(backbone: RegionBackbone, model: str, tmp_path: Path) -> None:
    """With a second picture, such as a preview, in a file."""
    preview = [noise(9)]
    noise(0, 400, 300).save(tmp_path / "0.jpg", "MPO", save_all=True, append_images=preview)
    rows = open_rows(tmp_path)
    reduced, full = (
        compute(backbone, model, rows, [range(1)], reduce_jpegs=reduce)[0].values
        for reduce in (True, False)
    )
    assert not torch.equal(reduced, full)
    assert torch.cosine_similarity(reduced, full).min() > 0.99


def test_torchvision_decodes_for_its_processors(
    backbone: RegionBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, resample=3)
    rows, options = source(tmp_path, count=3), RowOptions(num_workers=0)

    def extract() -> torch.Tensor:
        accelerator = Accelerator()
        (part,) = compute_parts(lambda: backbone, processor, rows, [range(3)], options, accelerator)
        return part.values

    with monkeypatch.context() as patched:
        patched.setattr(row_features, "decode_jpeg_pixels", lambda *_: None)
        expected = extract()
    monkeypatch.setattr(row_features, "finish_image", None)
    assert torch.equal(extract(), expected)


def test_the_decoded_pixels_of_few_images_are_held_at_once(
    backbone: RegionBackbone, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = count_held_images(monkeypatch, row_features)
    compute(backbone, model, source(tmp_path), [range(11)], batch_size=11)
    # One may wait until the next takes its place.
    assert len(held) == 11 and max(held) <= 2


def test_images_beyond_the_limit_of_pixels_are_broken(
    backbone: RegionBackbone, model: str, tmp_path: Path
) -> None:
    rows = source(tmp_path, count=2)
    (found,) = compute(backbone, model, rows, [range(2)], max_image_pixels=1599)
    assert "1600" not in found.broken[0] and "the limit of 1599" in found.broken[0]
    assert not compute(backbone, model, rows, [range(2)], max_image_pixels=1600)[0].broken


def test_features_that_are_not_finite(backbone: RegionBackbone, model: str, tmp_path: Path) -> None:
    rows = source(tmp_path, count=2)
    with torch.no_grad():
        next(backbone.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="the features of 00.jpg are not finite"):
        compute(backbone, model, rows, [range(2)])


def test_images_of_several_sizes(backbone: RegionBackbone, model: str, tmp_path: Path) -> None:
    for seed, size in enumerate(((40, 40), (40, 60))):
        noise(seed, *size).save(tmp_path / f"{seed}.png")
    processor = load_image_processor(model)
    processor.do_center_crop = False  # type: ignore[attr-defined]
    rows, accelerator = open_rows(tmp_path), Accelerator()
    for options, message in (
        (RowOptions(num_workers=1), "cannot batch images 0 to 1"),
        (RowOptions(num_workers=0, batch_size=1, regions=True), r"grids of \(5, 5\) and of"),
    ):
        with pytest.raises(ValueError, match=message):
            list(compute_parts(lambda: backbone, processor, rows, [range(2)], options, accelerator))


def test_each_worker_reads_neighbors() -> None:
    batches = list(PartBatches([range(11), range(20, 23)], RowOptions(batch_size=2, num_workers=2)))
    by_worker = [[place for batch in batches[worker::2] for place in batch] for worker in (0, 1)]
    assert by_worker == [[0, 1, 2, 3, 4, 5, 20, 21], [6, 7, 8, 9, 10, 22]]
