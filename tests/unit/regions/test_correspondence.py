"""Correspondence: known warps, geometry of the views, chance, equal grids, settings."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from torch import Tensor, nn

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.input_format import InputFormat, read_input_format
from esvit_hf.regions.correspondence import (
    Matches,
    find_matches,
    find_region_pairs,
    measure_correspondence,
    resample_regions,
    score_matches,
)
from esvit_hf.regions.view_pairs import ViewPairs, make_view_pairs

CELL = 8


def processor(side: int) -> EsvitImageProcessor:
    return EsvitImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def source(images: list[PILImage.Image]) -> ImageSource:
    return ImageSource(Dataset.from_dict({"image": images}, features=Features({"image": Image()})))


def noise_images(count: int, size: tuple[int, int] = (80, 60)) -> list[PILImage.Image]:
    random = np.random.default_rng(0)
    return [
        PILImage.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def ramps(width: int, height: int) -> PILImage.Image:
    """An image whose red and green are the coordinates."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return PILImage.fromarray(
        np.rint(np.stack([x, y, np.full_like(x, 128)], axis=2)).astype(np.uint8)
    )


class PatchNetwork(nn.Module):
    """The centered pixels of each patch are its features: nothing is lost, and brightness and
    contrast do not matter.
    """

    def layer_regions(
        self, pixel_values: Tensor, layer: int | None
    ) -> tuple[Tensor, tuple[int, int]]:
        assert layer is None
        patches = F.unfold(pixel_values, CELL, stride=CELL).transpose(1, 2)
        grid = (pixel_values.shape[-2] // CELL, pixel_values.shape[-1] // CELL)
        return patches - patches.mean(dim=2, keepdim=True), grid


class PlaceNetwork(nn.Module):
    """Reads the coordinates out of `ramps`; the nearest place has the highest cosine."""

    def __init__(self, input_format: InputFormat) -> None:
        super().__init__()
        self.input_format = input_format

    def layer_regions(
        self, pixel_values: Tensor, layer: int | None
    ) -> tuple[Tensor, tuple[int, int]]:
        colors = self.input_format.restore(pixel_values).float()
        places = F.avg_pool2d(colors, CELL)[:, :2] / 255
        features = torch.cat([places.cos(), places.sin()], dim=1)
        return features.flatten(2).transpose(1, 2), (places.shape[2], places.shape[3])


class RandomNetwork(nn.Module):
    def layer_regions(
        self, pixel_values: Tensor, layer: int | None
    ) -> tuple[Tensor, tuple[int, int]]:
        return torch.randn(len(pixel_values), 49, 64), (7, 7)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_identity_network_on_a_shift_of_whole_cells(mirrored: bool) -> None:
    """5 x 6 cells, the second view two rows lower and one column further: 3 x 5 of them are in
    both.
    """
    colors = torch.rand(1, 3, 7, 7) * 255
    first, second = colors[:, :, :5, :6], colors[:, :, 2:, 1:]
    scale, offset = [1.0, 1.0], [-2 / 5, -1 / 6]
    if mirrored:
        second = second.flip(-1)
        scale[1], offset[1] = -1.0, 1 + 1 / 6
    views = [F.interpolate(view, scale_factor=CELL) for view in (first, second)]
    pairs = ViewPairs(
        *views,
        torch.tensor([scale], dtype=torch.float64),
        torch.tensor([offset], dtype=torch.float64),
    )
    regions = [F.avg_pool2d(view, CELL).flatten(2).transpose(1, 2) for view in views]
    (tally,) = score_matches(find_matches(*regions), pairs, (5, 6))
    assert tally.matches == 15
    assert tally.sums[0] == tally.sums[1] == 15
    assert tally.sums[2] == pytest.approx(0, abs=1e-9)
    assert tally.sums[6] == pytest.approx(0, abs=1e-9)


def test_identity_network_on_mirrored_gray_jittered_copies() -> None:
    """Black and white cells that are their own mirror images: jitter and gray change them by one
    factor and shift.
    """
    random = np.random.default_rng(0)
    images = []
    for _ in range(4):
        half = random.integers(0, 2, (3, CELL, 3, CELL // 2))
        cells = np.concatenate([half, half[..., ::-1]], axis=3).reshape(3 * CELL, 3 * CELL)
        images.append(PILImage.fromarray((cells * 255).astype(np.uint8)).convert("RGB"))
    result = measure_correspondence(
        PatchNetwork(), source(images), processor(3 * CELL), protocol="mirror"
    )  # type: ignore[arg-type]
    assert (result.protocol, result.layer, result.grid, result.images, result.matches) == (
        "mirror",
        None,
        (3, 3),
        4,
        36,
    )
    assert (result.accuracy, result.accuracy_within_one) == (1, 1)
    assert result.error == pytest.approx(0, abs=1e-9)
    assert result.smallest_error == pytest.approx(0, abs=1e-9)
    # All 9 regions count, so chance is a plain mean over all pairs of cells.
    assert result.chance_accuracy == pytest.approx(1 / 9)
    cells = list(itertools.product(range(3), repeat=2))
    pairs = list(itertools.product(cells, repeat=2))
    near = [max(abs(a - c), abs(b - d)) <= 1 for (a, b), (c, d) in pairs]
    assert result.chance_accuracy_within_one == pytest.approx(sum(near) / 81)
    assert result.chance_error == pytest.approx(
        sum(CELL * math.dist(one, other) for one, other in pairs) / 81
    )


def test_only_the_ten_most_similar_pairs_count_in_the_mirror_protocol() -> None:
    regions, other = torch.randn(2, 16, 5), torch.randn(2, 16, 5)
    mirror = torch.tensor([[1.0, -1.0]] * 2).double(), torch.tensor([[0.0, 1.0]] * 2).double()
    pairs = ViewPairs(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32), *mirror)
    tallies = score_matches(find_matches(regions, other), pairs, (4, 4), most_similar=10)
    for image, tally in enumerate(tallies):
        similarity = F.cosine_similarity(regions[image, :, None], other[image, None], dim=2)
        best, hits, distance = similarity.amax(dim=1).argsort(descending=True)[:10], 0, 0.0
        for region in best.tolist():
            row, column = divmod(int(similarity[region].argmax()), 4)
            true = region // 4, 3 - region % 4
            hits += (row, column) == true
            distance += CELL * math.dist((row, column), true)
        assert tally.matches == 10
        assert tally.sums[0] == hits
        assert tally.sums[2] == pytest.approx(distance)


@pytest.mark.parametrize("size", [(90, 60), (40, 200)])
def test_crops_show_each_place_where_the_geometry_says(size: tuple[int, int]) -> None:
    """Coordinates in the colors: the second view has the color of the first where `to_second`
    points.
    """
    input_format = read_input_format(processor(56))
    count = 40
    pairs = make_view_pairs(
        [ramps(*size)] * count,
        list(range(count)),
        protocol="crops",
        processor=processor(56),
        input_format=input_format,
        seed=1,
    )
    mirrored = pairs.scale[:, 1] < 0
    assert 10 < mirrored.sum() < 30
    centers = (torch.cartesian_prod(torch.arange(7), torch.arange(7)) + 0.5).double() / 7
    places = pairs.to_second(centers)
    colors = []
    for view, positions in ((pairs.first, centers.expand(count, -1, -1)), (pairs.second, places)):
        grid = (2 * positions.flip(2) - 1)[:, None].float()
        colors.append(
            F.grid_sample(view.float(), grid, align_corners=False, padding_mode="border")[:, :2, 0]
        )
    # Away from the border, where resampling has neighbors on both sides.
    inner = ((places > 0.05) & (places < 0.95)).all(dim=2)
    assert inner.sum() > 500
    difference = (colors[0] - colors[1]).abs().amax(dim=1)[inner]
    assert difference.max() < 2
    # A place that the geometry puts inside is there; the middle always is.
    assert ((places[:, 24] >= 0) & (places[:, 24] < 1)).all()


def test_the_nearest_place_in_crops() -> None:
    images = [ramps(100 + 7 * number, 90) for number in range(12)]
    input_format = read_input_format(processor(56))
    result = measure_correspondence(PlaceNetwork(input_format), source(images), processor(56))  # type: ignore[arg-type]
    assert result.grid == (7, 7)
    # What is left is the rounding of colors, for places on the edge between two cells.
    assert result.accuracy > 0.97
    assert result.accuracy_within_one == 1
    assert result.smallest_error <= result.error < 1.02 * result.smallest_error
    assert result.error < 4 < 15 < result.chance_error


@pytest.mark.parametrize("protocol", ["crops", "mirror"])
def test_random_features_are_at_chance(protocol: Any) -> None:
    result = measure_correspondence(
        RandomNetwork(), source(noise_images(60)), processor(56), protocol=protocol
    )  # type: ignore[arg-type]
    # The 10 most similar pairs of each image, or all that both crops show.
    assert result.matches == 600 if protocol == "mirror" else result.matches > 600
    for found, chance in (
        (result.accuracy, result.chance_accuracy),
        (result.accuracy_within_one, result.chance_accuracy_within_one),
    ):
        deviation = math.sqrt(chance * (1 - chance) / result.matches)
        assert abs(found - chance) < 4 * deviation
    # No distance in a view of 56 pixels deviates by more than 20 from the mean, in the mean.
    assert abs(result.error - result.chance_error) < 4 * 20 / math.sqrt(result.matches)
    assert result.chance_accuracy == pytest.approx(1 / 49)
    assert result.smallest_error < 4 * math.sqrt(2)


def test_chance_and_smallest_error_of_a_view_by_hand() -> None:
    """In 20 x 40 pixels and 2 x 2 cells, the place (0.3, 0.9) is (6, 36), in the cell with center
    (5, 30).
    """
    pairs = ViewPairs(
        torch.zeros(1, 3, 20, 40),
        torch.zeros(1, 3, 20, 40),
        torch.tensor([[0.0, 0.0]]).double(),
        torch.tensor([[0.3, 0.9]], dtype=torch.float64),
    )
    matches = Matches(torch.tensor([[1, 0, 2, 3]]), torch.zeros(1, 4))
    (tally,) = score_matches(matches, pairs, (2, 2))
    distances = [math.dist((6, 36), center) for center in ((5, 10), (5, 30), (15, 10), (15, 30))]
    assert tally.matches == 4
    expected = [1, 4, sum(distances), 1, 4, sum(distances), 4 * distances[1]]
    assert tally.sums == pytest.approx(expected)


def test_views_depend_on_seed_and_index_alone() -> None:
    images = noise_images(5)
    settings: dict[str, Any] = {
        "processor": processor(24),
        "input_format": read_input_format(processor(24)),
    }
    for protocol in ("crops", "mirror"):
        together = make_view_pairs(images, list(range(5)), protocol=protocol, seed=3, **settings)
        alone = make_view_pairs(images[2:4], [2, 3], protocol=protocol, seed=3, **settings)
        other = make_view_pairs(images[2:4], [2, 3], protocol=protocol, seed=4, **settings)
        for field in ("first", "second", "scale", "offset"):
            torch.testing.assert_close(
                getattr(together, field)[2:4], getattr(alone, field), atol=1e-3, rtol=0
            )
        assert not torch.equal(alone.second, other.second)


def test_four_of_five_mirrored_copies_are_jittered() -> None:
    image = PILImage.fromarray(np.random.default_rng(0).integers(60, 190, (8, 8, 3), np.uint8))
    views = processor(8)
    pairs = make_view_pairs(
        [image] * 500,
        range(500),
        protocol="mirror",
        processor=views,
        input_format=read_input_format(views),
        seed=0,
    )
    plain = np.asarray(image.convert("L").transpose(PILImage.Transpose.FLIP_LEFT_RIGHT))
    away = (pairs.second[:, 0] - torch.from_numpy(plain.copy())).abs().amax(dim=(1, 2))
    assert float((away > 2).float().mean()) == pytest.approx(0.8, abs=0.05)
    assert float((away < 1).float().mean()) == pytest.approx(0.2, abs=0.05)


def test_mirrored_copies_are_gray_and_mirrored() -> None:
    ramp = np.arange(0, 240, 6, dtype=np.uint8)
    images = [PILImage.fromarray(np.tile(ramp[None, :, None], (40, 1, 3)))]
    pairs = make_view_pairs(
        images,
        [0],
        protocol="mirror",
        processor=processor(40),
        input_format=read_input_format(processor(40)),
        seed=0,
    )
    assert torch.equal(pairs.first[0], torch.from_numpy(np.array(images[0])).permute(2, 0, 1))
    assert torch.equal(pairs.second[0, 0], pairs.second[0, 2])
    assert pairs.second.min() >= 0
    # Values grow to the right, so those of the copy grow to the left, by another factor.
    steps = pairs.second[0, 0].diff(dim=1)
    assert (steps <= 1e-3).all()
    assert steps.min() < -1
    assert (steps.min() + 6).abs() > 0.1


def test_equal_grids() -> None:
    regions = torch.randn(2, 49, 3)
    assert resample_regions(regions, (7, 7), (7, 7)) is regions
    rows = torch.arange(14.0)[:, None].expand(14, 14)
    coarse = resample_regions(torch.stack([rows, rows.T]).flatten(1).T[None], (14, 14), (7, 7))
    coarse_rows = coarse[0, :, 0].view(7, 7)
    torch.testing.assert_close(coarse_rows, coarse[0, :, 1].view(7, 7).T)
    torch.testing.assert_close(coarse_rows[1:-1, 0], 2 * torch.arange(1.0, 6) + 0.5)
    constant = resample_regions(torch.full((1, 15, 2), 3.0), (3, 5), (7, 7))
    torch.testing.assert_close(constant, torch.full((1, 49, 2), 3.0))


@pytest.fixture(scope="module")
def swin() -> RegionBackbone:
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    return RegionBackbone(EsvitSwinModel(config))


def test_batches_workers_and_mode_make_no_difference(swin: RegionBackbone) -> None:
    images = source(noise_images(7))
    swin.train()
    one = measure_correspondence(swin, images, processor(32), grid=4, batch_size=7)
    assert swin.training
    other = measure_correspondence(
        swin.eval(), images, processor(32), grid=4, batch_size=2, num_workers=1
    )
    assert one == other
    assert measure_correspondence(swin, images, processor(32), grid=4, seed=1) != one


def test_layers_and_grids(swin: RegionBackbone) -> None:
    images = source(noise_images(3))
    grids = [
        measure_correspondence(swin, images, processor(32), protocol="mirror", layer=layer).grid
        for layer in (0, 1, 2, -1, None)
    ]
    assert grids == [(8, 8), (8, 8), (4, 4), (4, 4), (4, 4)]
    counts = {
        measure_correspondence(swin, images, processor(32), layer=layer).matches
        for layer in (0, None)
    }
    assert len(counts) == 1
    with pytest.raises(ValueError, match="reports 4 hidden states: choose 0 to 3"):
        measure_correspondence(swin, images, processor(32), layer=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "paper"}, "protocol is 'paper': choose one of crops, mirror"),
        ({"grid": 0}, "grid is 0"),
        ({"batch_size": 0}, "batch_size is 0: give 1 or more"),
        ({"num_workers": -1}, "num_workers is -1: give 0 or more"),
    ],
)
def test_bad_settings(swin: RegionBackbone, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_correspondence(swin, source(noise_images(2)), processor(32), **settings)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_images_are_named(swin: RegionBackbone, num_workers: int) -> None:
    rows = source(noise_images(5)).read_encoded(range(5))
    encoded = [
        {"bytes": bytes(row[:60]) if index in (1, 4) else row, "path": None}
        for index, row in enumerate(rows)
    ]  # type: ignore[index]
    broken = Dataset.from_dict(
        {"image": encoded}, features=Features({"image": Image(decode=False)})
    )
    batches: list[object] = []
    with (
        swin.model.register_forward_hook(lambda *call: batches.append(call)),
        pytest.raises(ValueError, match="^2 of 5 images cannot be decoded.*image 1: .*image 4: "),
    ):
        measure_correspondence(
            swin, ImageSource(broken), processor(32), batch_size=2, num_workers=num_workers
        )
    assert not batches


def test_features_that_are_not_finite() -> None:
    class Broken(RandomNetwork):
        def layer_regions(
            self, pixel_values: Tensor, layer: int | None
        ) -> tuple[Tensor, tuple[int, int]]:
            regions, grid = super().layer_regions(pixel_values, layer)
            return regions * torch.nan, grid

    with pytest.raises(ValueError, match="regions are not finite"):
        measure_correspondence(Broken(), source(noise_images(2)), processor(32))  # type: ignore[arg-type]


class PlainNetwork(nn.Module):
    """Regions are the mean colors of 8 x 8 pixels."""

    def layer_regions(
        self, pixel_values: Tensor, layer: int | None
    ) -> tuple[Tensor, tuple[int, int]]:
        cells = nn.functional.avg_pool2d(pixel_values, 8)
        return cells.flatten(2).transpose(1, 2), (cells.shape[2], cells.shape[3])


def test_pairs_of_two_images() -> None:
    torch.manual_seed(0)
    first = nn.functional.interpolate(torch.rand(1, 3, 2, 3) - 0.5, scale_factor=8)
    second = first.flip(-1)
    pairs = find_region_pairs(PlainNetwork(), first, second, count=4)  # type: ignore[arg-type]
    assert len(pairs.first) == len(pairs.second) == 4
    torch.testing.assert_close(pairs.second[:, 0], 24 - pairs.first[:, 0])
    torch.testing.assert_close(pairs.second[:, 1], pairs.first[:, 1])
    torch.testing.assert_close(pairs.similarity, torch.ones(4))
    everything = find_region_pairs(PlainNetwork(), first, second, count=100)  # type: ignore[arg-type]
    assert {tuple(point) for point in everything.first.tolist()} == {
        (x, y) for x in (4, 12, 20) for y in (4, 12)
    }
    with pytest.raises(ValueError, match="count is 0: give 1 or more"):
        find_region_pairs(PlainNetwork(), first, second, count=0)  # type: ignore[arg-type]
