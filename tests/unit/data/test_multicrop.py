"""Batches of crops: the same for any number of workers and processes, after a resume, and around
broken images.
"""

import functools
import io
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.support.paths import FASHION_MNIST

from esvit_hf.data.color import PARAMETER_LAYOUT, augment
from esvit_hf.data.multicrop import (
    CropBatch,
    MultiCropDataset,
    TooManyBrokenImagesError,
    make_multicrop_loader,
)
from esvit_hf.data.sampling import EpochSampler
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.data.views import ViewSpec

VIEWS = [
    ViewSpec(count=2, size=9, scale=(0.05, 0.4)),
    ViewSpec(count=2, size=16, scale=(0.4, 1.0), teacher=True, solarize_probability=0.5),
]
WHOLE = {"scale": (1.0, 1.0), "teacher": True, "flip_probability": 0.0}


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def noise(seed: int, width: int = 24, height: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def source_of(values: Sequence[bytes]) -> ImageSource:
    return ImageSource(Dataset.from_dict({"image": list(values)}))


def colorful(count: int) -> list[bytes]:
    return [encode(Image.fromarray(noise(seed))) for seed in range(count)]


def assert_same(one: CropBatch, other: CropBatch) -> None:
    assert torch.equal(one.buffer, other.buffer)
    assert (one.sizes, one.plans, one.broken) == (other.sizes, other.plans, other.broken)


def test_a_batch_has_the_teachers_views_first() -> None:
    batch = MultiCropDataset(source_of(colorful(5)), VIEWS, seed=0).__getitems__(
        [(0, 4), (0, 1), (3, 1)]
    )
    assert [(tuple(crop.shape), crop.dtype) for crop in batch.crops] == [
        ((3, 3, size, size), torch.uint8) for size in (16, 16, 9, 9)
    ]
    assert (batch.indices.tolist(), batch.indices.dtype, batch.broken) == (
        [4, 1, 1],
        torch.int64,
        [],
    )
    for crops, parameters in zip(batch.crops, batch.parameters, strict=True):
        views = augment(crops, parameters, torch.bfloat16)
        assert (views.shape, views.dtype) == (crops.shape, torch.bfloat16)
        assert torch.isfinite(views).all()
    assert sum(parameters.plan.num_solarized for parameters in batch.parameters[2:]) == 0


def test_color_parameters_survive_the_way_through_the_buffer() -> None:
    # The whole image, gray with certainty, and nothing else: every view is the normalized gray
    # image.
    view = ViewSpec(
        count=2, size=24, jitter_probability=0, gray_probability=1, blur_probability=0, **WHOLE
    )
    pixels = [noise(seed, 24, 24) for seed in range(3)]
    dataset = MultiCropDataset(
        source_of([encode(Image.fromarray(image)) for image in pixels]), [view], seed=0
    )
    batch = pickle.loads(pickle.dumps(dataset.__getitems__([(0, 2), (0, 0)]))).to("cpu")
    for crops, parameters in zip(batch.crops, batch.parameters, strict=True):
        np.testing.assert_array_equal(crops[0].permute(1, 2, 0), pixels[2])
        np.testing.assert_array_equal(crops[1].permute(1, 2, 0), pixels[0])
        gray = augment(crops, parameters, mean=(0, 0, 0), std=(1, 1, 1)) * 255
        expected = pixels[2] @ [0.299, 0.587, 0.114]
        assert np.abs(gray[0].numpy() - expected).max() < 0.1


def test_flips() -> None:
    pixels = noise(0, 24, 24)
    view = ViewSpec(count=1, size=24, **(WHOLE | {"flip_probability": 1.0}))
    batch = MultiCropDataset(
        source_of([encode(Image.fromarray(pixels))]), [view], seed=0
    ).__getitems__([(0, 0)])
    np.testing.assert_array_equal(batch.crops[0][0].permute(1, 2, 0), pixels[:, ::-1])


def test_exif_rotation_is_applied_before_cropping() -> None:
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :32] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(pixels), "JPEG", quality=95, exif=exif.tobytes())
    # Upright, the bright half is on top; the ten tries fail, and the fallback crops the middle.
    view = ViewSpec(count=1, size=16, **WHOLE)
    crop = (
        MultiCropDataset(source_of([data]), [view], seed=0)
        .__getitems__([(0, 0)])
        .crops[0][0]
        .float()
    )
    assert crop[:, :6].mean() > 190
    assert crop[:, -6:].mean() < 10


def test_crops_depend_on_seed_epoch_and_index_alone() -> None:
    source = source_of(colorful(6))
    dataset = MultiCropDataset(source, VIEWS, seed=5)
    keys = [(epoch, index) for epoch in range(2) for index in range(6)]
    together = dataset.__getitems__(keys)
    for place, key in enumerate(keys):
        alone = dataset.__getitems__([key])
        for crops, crop in zip(together.crops, alone.crops, strict=True):
            assert torch.equal(crops[place], crop[0])
        for one, other in zip(together.parameters, alone.parameters, strict=True):
            assert torch.equal(one.coefficients[..., one.places[place]], other.coefficients[..., 0])
            assert one.hue[one.places[place]] == other.hue[0]
    first, second = together.crops[0][:6], together.crops[0][6:]
    assert all(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
    other_seed = MultiCropDataset(source, VIEWS, seed=6).__getitems__(keys)
    assert all(
        not torch.equal(one, other)
        for one, other in zip(together.crops[0], other_seed.crops[0], strict=True)
    )


@pytest.fixture(scope="module")
def parquet_source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    folder = tmp_path_factory.mktemp("data")
    Dataset.from_dict({"image": [*colorful(20), b"damaged", *colorful(3)]}).to_parquet(
        folder / "train.parquet"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        return load_image_source(str(folder))


def batches(source: ImageSource, num_workers: int = 0, **sampling: int) -> list[CropBatch]:
    sampler = EpochSampler(
        len(source), seed=1, **({"batch_size_per_process": 4, "total_steps": 8} | sampling)
    )
    dataset = MultiCropDataset(source, VIEWS, seed=1, max_broken_fraction=0.5)
    return list(make_multicrop_loader(dataset, sampler, num_workers=num_workers))


def test_workers_change_nothing(parquet_source: ImageSource) -> None:
    state = torch.get_rng_state()
    alone, together = batches(parquet_source), batches(parquet_source, num_workers=2)
    assert len(alone) == len(together) == 8
    assert any(batch.broken for batch in alone)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_and_accumulation_change_nothing(parquet_source: ImageSource) -> None:
    alone = batches(parquet_source, batch_size_per_process=8, total_steps=5)
    ranks = [
        batches(parquet_source, batch_size_per_process=4, world_size=2, rank=rank, total_steps=5)
        for rank in (0, 1)
    ]
    accumulated = batches(parquet_source, batch_size_per_process=4, accumulation=2, total_steps=5)
    for step, whole in enumerate(alone):
        for parts in ([ranks[0][step], ranks[1][step]], accumulated[2 * step : 2 * step + 2]):
            assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
            for crops, *split in zip(whole.crops, *(part.crops for part in parts), strict=True):
                assert torch.equal(torch.cat(split), crops)


def test_a_resumed_run_continues_exactly(parquet_source: ImageSource) -> None:
    whole = batches(parquet_source, total_steps=9)
    for one, other in zip(
        whole[7:], batches(parquet_source, start_step=7, total_steps=9), strict=True
    ):
        assert_same(one, other)


def test_a_pickled_dataset_makes_the_same_crops(parquet_source: ImageSource) -> None:
    dataset = MultiCropDataset(parquet_source, VIEWS, seed=0)
    keys = [(0, 3), (1, 7)]
    assert_same(pickle.loads(pickle.dumps(dataset)).__getitems__(keys), dataset.__getitems__(keys))


def test_broken_images_are_replaced_and_reported() -> None:
    values = colorful(10)
    values[3] = values[4] = b"damaged"
    dataset = MultiCropDataset(source_of(values), VIEWS, seed=0, max_broken_fraction=1.0)
    keys = [(epoch, index) for epoch in range(10) for index in (0, 3)]
    batch = dataset.__getitems__(keys)
    assert batch.indices[::2].tolist() == [0] * 10
    chosen = batch.indices[1::2].tolist()
    assert len(set(chosen)) > 2
    assert not {3, 4} & set(chosen)
    assert {index for index, _ in batch.broken} == {3, 4}
    assert {reason for _, reason in batch.broken} == {
        "the bytes are in no image format that Pillow knows"
    }
    again = dataset.__getitems__([(7, 3)])
    assert again.indices[0] == batch.indices[15]
    assert torch.equal(again.crops[0][0], batch.crops[0][15])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_broken_images_stop_with_one_line(num_workers: int) -> None:
    values = colorful(10)
    values[3] = values[4] = b"damaged"
    loader = make_multicrop_loader(
        MultiCropDataset(source_of(values), VIEWS, seed=0, max_broken_fraction=0.05),
        EpochSampler(10, 5, seed=0, total_steps=2),
        num_workers=num_workers,
    )
    iterator = iter(loader)
    with pytest.raises(TooManyBrokenImagesError) as error:
        list(iterator)
    if num_workers:
        # Left to the garbage collector, which closes the pipes first, this would wait five seconds
        # for the worker.
        iterator._shutdown_workers()
    assert re.fullmatch(
        r"2 of 10 images cannot be decoded, more than the allowed share of 0\.05, the last one is "
        r"image [34]: the bytes are in no image format that Pillow knows; repair the data or raise "
        r"--data.max_broken_fraction",
        str(error.value),
    )


def test_one_broken_file_does_not_end_a_run_on_few_images() -> None:
    values = colorful(10)
    values[3] = b"damaged"
    dataset = MultiCropDataset(source_of(values), VIEWS, seed=0)
    for epoch in range(200):
        assert dataset.__getitems__([(epoch, index) for index in range(10)]).num_images == 10
    values[5] = b"damaged"
    dataset.source = source_of(values)
    with pytest.raises(TooManyBrokenImagesError, match="2 of 10 images"):
        dataset.__getitems__([(200, index) for index in range(10)])


def test_broken_files_are_named_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"damaged")
    source = ImageSource(Dataset.from_dict({"image": [str(tmp_path / "broken.png")] * 3}))
    dataset = MultiCropDataset(source, VIEWS, seed=0)
    with pytest.raises(TooManyBrokenImagesError, match=r"image \d \(.*/broken\.png\): the bytes"):
        dataset.__getitems__([(0, 0)])


def test_images_with_too_many_pixels_are_broken() -> None:
    source = source_of(colorful(2))
    small = MultiCropDataset(source, VIEWS, seed=0, max_image_pixels=24 * 20 - 1)
    with pytest.raises(
        TooManyBrokenImagesError, match="24 x 20 pixels are more than the limit of 479"
    ):
        small.__getitems__([(0, 0)])
    assert (
        not MultiCropDataset(source, VIEWS, seed=0, max_image_pixels=480)
        .__getitems__([(0, 0)])
        .broken
    )


def test_the_share_is_judged_even_if_the_last_batch_is_fine() -> None:
    values = colorful(10)
    values[0] = b"damaged"
    dataset = MultiCropDataset(source_of(values), VIEWS, seed=0, max_broken_fraction=0.0)
    dataset.__getitems__([(0, index) for index in range(5)])
    with pytest.raises(TooManyBrokenImagesError, match="image 0: "):
        dataset.__getitems__([(0, index) for index in range(5, 10)])


def test_data_without_a_single_image_stops_at_once() -> None:
    dataset = MultiCropDataset(source_of([b"text"] * 5000), VIEWS, seed=0)
    with pytest.raises(
        TooManyBrokenImagesError,
        match=r"20 images in a row .* check the data and --data.image_column",
    ):
        dataset.__getitems__([(0, 0)])


def test_grayscale_is_known_to_the_device_part() -> None:
    gray = encode(Image.fromarray(noise(0)[:, :, 0]))
    dataset = MultiCropDataset(source_of([gray, *colorful(1)]), VIEWS, seed=0)
    alone = dataset.__getitems__([(0, 0), (1, 0)])
    mixed = dataset.__getitems__([(0, 0), (0, 1)])
    assert all(plan.gray_images for plan in alone.plans)
    assert not any(plan.gray_images for plan in mixed.plans)
    assert all(torch.equal(crops[:, 0], crops[:, 2]) for crops in alone.crops)
    for one, other, parameters, mixed_parameters in zip(
        alone.crops, mixed.crops, alone.parameters, mixed.parameters, strict=True
    ):
        assert torch.equal(one[0], other[0])
        views = augment(one, parameters)[0], augment(other, mixed_parameters)[0]
        torch.testing.assert_close(*views, rtol=0, atol=1e-4)


def test_large_jpegs_are_reduced_while_decoding_and_the_crops_stay_in_place() -> None:
    x, y = np.meshgrid(np.linspace(0, 9, 1203), np.linspace(0, 7, 905))
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2) * 100 + 128
    image = Image.fromarray(pixels.astype(np.uint8))
    views = [ViewSpec(count=3, size=40, scale=(0.3, 1.0), teacher=True)]
    keys = [(epoch, 0) for epoch in range(8)]
    reduced = MultiCropDataset(
        source_of([encode(image, "JPEG", quality=95)]), views, seed=0
    ).__getitems__(keys)
    whole = MultiCropDataset(source_of([encode(image, "PNG")]), views, seed=0).__getitems__(keys)
    for one, other in zip(reduced.crops, whole.crops, strict=True):
        difference = (one.float() - other.float()).abs()
        # A box is rounded to a pixel of the reduced image: up to four of the full one.
        assert difference.max() <= 12
        assert difference.mean() < 2


class PillowImages:
    """A source that hands out one Pillow image, again and again."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __len__(self) -> int:
        return 1

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        return [self.image for _ in indices]


@pytest.mark.parametrize("loaded", [True, False])
def test_pillow_images_of_the_caller_are_cropped_as_they_are(loaded: bool) -> None:
    data = encode(Image.fromarray(noise(0, 640, 480)), "JPEG", quality=95)
    image = Image.open(io.BytesIO(data))
    if loaded:
        image.load()
    views = [ViewSpec(count=2, size=32, scale=(0.9, 1.0), teacher=True)]
    pixels = source_of([encode(Image.open(io.BytesIO(data)))])
    for epoch in range(3):
        one = MultiCropDataset(PillowImages(image), views, seed=0).__getitems__([(epoch, 0)])
        other = MultiCropDataset(pixels, views, seed=0).__getitems__([(epoch, 0)])
        assert torch.equal(one.buffer, other.buffer)
    assert image.size == (640, 480)


@pytest.mark.parametrize("image_format", ["JPEG", "MPO"])
def test_reduced_decoding_can_be_turned_off(image_format: str) -> None:
    image, second = (Image.fromarray(noise(seed, 640, 480)) for seed in (0, 1))
    more = {"save_all": True, "append_images": [second]} if image_format == "MPO" else {}
    data = encode(image, image_format, quality=95, **more)
    assert Image.open(io.BytesIO(data)).format == image_format
    views = [ViewSpec(count=2, size=32, scale=(0.9, 1.0), teacher=True)]
    reduced, whole, pixels = (
        MultiCropDataset(source_of([content]), views, seed=0, reduce_jpegs=reduce)
        .__getitems__([(0, 0)])
        .buffer
        for content, reduce in (
            (data, True),
            (data, False),
            (encode(Image.open(io.BytesIO(data))), True),
        )
    )
    assert torch.equal(whole, pixels)
    assert not torch.equal(reduced, pixels)


def test_all_tensors_of_a_batch_share_one_memory() -> None:
    batch = MultiCropDataset(source_of(colorful(3)), VIEWS, seed=0).__getitems__(
        [(0, 0), (0, 1), (0, 2)]
    )
    tensors = [
        *(batch.indices, batch.boxes, batch.mirrored),
        *batch.crops,
        *(getattr(view, name) for view in batch.parameters for name in PARAMETER_LAYOUT),
    ]
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} == {
        batch.buffer.untyped_storage().data_ptr()
    }
    covered = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert covered == batch.buffer.numel()
    assert batch.to("meta").crops[0].device.type == "meta"


def test_workers_start_with_what_they_are_given(tmp_path: Path) -> None:
    (batch,) = make_multicrop_loader(
        MultiCropDataset(source_of(colorful(2)), VIEWS, seed=0),
        EpochSampler(2, 2, 0, total_steps=1),
        num_workers=1,
        worker_init_fn=functools.partial(leave_a_file, tmp_path),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert batch.num_images == 2


def leave_a_file(folder: Path, worker: int) -> None:
    (folder / str(worker)).touch()


def test_bad_settings_are_named() -> None:
    source = source_of(colorful(2))
    with pytest.raises(ValueError, match="seed is -1"):
        MultiCropDataset(source, VIEWS, seed=-1)
    with pytest.raises(ValueError, match="max_broken_fraction is 1.5"):
        MultiCropDataset(source, VIEWS, seed=0, max_broken_fraction=1.5)
    with pytest.raises(ValueError, match="teacher"):
        MultiCropDataset(source, VIEWS[:1], seed=0)
    dataset, sampler = MultiCropDataset(source, VIEWS, seed=0), EpochSampler(2, 1, 0, total_steps=1)
    with pytest.raises(ValueError, match="num_workers is -1"):
        make_multicrop_loader(dataset, sampler, num_workers=-1)
    with pytest.raises(ValueError, match="prefetch_factor is 0"):
        make_multicrop_loader(dataset, sampler, prefetch_factor=0)
    with pytest.raises(IndexError):
        dataset.__getitems__([(0, 2)])


def test_real_images_in_a_loader() -> None:
    folder = FASHION_MNIST
    source = load_image_source(str(folder), split="test")
    (batch,) = make_multicrop_loader(
        MultiCropDataset(source, VIEWS, seed=0), EpochSampler(2000, 64, 0, total_steps=1)
    )
    assert all(plan.gray_images for plan in batch.plans)
    views = [
        augment(crops, view) for crops, view in zip(batch.crops, batch.parameters, strict=True)
    ]
    # Clothes on black: the mean lies well below that of ImageNet, and no view is empty.
    assert -1.8 < torch.cat([view.mean((1, 2, 3)) for view in views]).mean() < -0.2
    assert min(view.std((1, 2, 3)).min().item() for view in views[:2]) > 0.05


@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("JPEG", {"quality": 95})])
def test_places_say_where_crops_lie(name: str, options: dict[str, int]) -> None:
    # Brightness tells row and column of a pixel; the JPEG is read at a quarter of its size.
    rows, columns = np.mgrid[0:128, 0:160]
    pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    data = encode(Image.fromarray(pixels), name, **options)
    views = [
        ViewSpec(count=4, size=16, scale=(0.4, 0.8), teacher=True),
        ViewSpec(count=4, size=8, scale=(0.2, 0.4)),
    ]
    batch = MultiCropDataset(source_of([data] * 3), views, seed=0).__getitems__(
        [(0, index) for index in range(3)]
    )
    batch = pickle.loads(pickle.dumps(batch)).to("cpu")
    assert batch.boxes.shape == (8, 3, 4) and batch.mirrored.dtype == torch.bool
    assert 0 < batch.mirrored.sum() < 24
    scale = 4 if name == "JPEG" else 1
    for crops, boxes, mirrored in zip(batch.crops, batch.boxes, batch.mirrored, strict=True):
        for crop, box, flip in zip(crops.float(), boxes * scale, mirrored, strict=True):
            top, left, height, width = box.tolist()
            crop = crop.flip(-1) if flip else crop
            assert abs(crop[0].mean() - (top + height / 2)) < 3
            assert abs(crop[1].mean() - (left + width / 2)) < 3
            assert crop[1, :, -1].mean() - crop[1, :, 0].mean() > 0.7 * width
