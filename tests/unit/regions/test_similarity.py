"""Regions of whole images: places, sizes, similarity, principal components, and what their figures
show.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.layouts import BackboneFeatures
from esvit_hf.regions.similarity import region_colors, similarity_map
from esvit_hf.regions.whole_images import ImageRegions, WholeImages

CELL = 8


class MeanColors(nn.Module):
    """A network whose region features are the mean input of each 8 x 8 cell."""

    model = SimpleNamespace(device="cpu")

    def forward(self, pixel_values: Tensor) -> BackboneFeatures:
        means = F.avg_pool2d(pixel_values, CELL)
        regions = means.flatten(2).transpose(1, 2)
        return BackboneFeatures(regions, regions.mean(dim=1), (means.shape[2], means.shape[3]))


def processor(side: int) -> EsvitImageProcessor:
    return EsvitImageProcessor(
        size={"shortest_edge": side + 8}, crop_size={"height": side, "width": side}
    )


def regions(features: Tensor, image_size: tuple[int, int] = (40, 60)) -> ImageRegions:
    return ImageRegions(features, image_size)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    image_size=st.tuples(st.integers(9, 3000), st.integers(9, 3000)),
    share=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_regions_divide_the_image_evenly(
    grid: tuple[int, int], image_size: tuple[int, int], share: tuple[float, float]
) -> None:
    image = regions(torch.zeros(*grid, 1), image_size)
    x, y = share[0] * image_size[1], share[1] * image_size[0]
    row, column = image.region_at((x, y))
    center = image.center(row, column)
    assert image.region_at(center) == (row, column)
    assert abs(center[0] - x) <= image_size[1] / grid[1] / 2 + 1e-6
    assert abs(center[1] - y) <= image_size[0] / grid[0] / 2 + 1e-6


def test_places_by_hand() -> None:
    image = regions(torch.zeros(2, 3, 1), (40, 60))
    assert image.grid == (2, 3)
    assert [image.region_at(point) for point in ((0, 0), (19.9, 19.9), (20, 20), (59, 39))] == [
        (0, 0),
        (0, 0),
        (1, 1),
        (1, 2),
    ]
    assert image.center(1, 2) == (50, 30)
    for point in ((60, 0), (0, 40), (-1, 0), (0, -0.1)):
        with pytest.raises(ValueError, match="outside the image of 60 x 40 pixels"):
            image.region_at(point)


@pytest.mark.parametrize(
    ("image_size", "detail", "expected"),
    [
        ((64, 64), 1, (32, 32)),
        ((64, 64), 3, (96, 96)),
        ((28, 28), 1, (32, 32)),
        ((100, 200), 1, (32, 64)),
        ((300, 200), 2, (96, 64)),
        ((10, 4000), 1, (32, 128)),
        ((4000, 10), 1, (128, 32)),
        ((33, 47), 1, (32, 48)),
    ],
)
def test_input_sizes(image_size: tuple[int, int], detail: int, expected: tuple[int, int]) -> None:
    whole_images = WholeImages(MeanColors(), processor(32))
    assert whole_images.input_size(image_size, detail=detail) == expected


@pytest.mark.parametrize("size", [(120, 60), (33, 71), (500, 20)])
def test_a_colored_place_is_found_at_its_region(size: tuple[int, int]) -> None:
    """Click coordinates are exact: what lies in the left upper ninth of the image changes the
    regions there alone.
    """
    whole_images = WholeImages(MeanColors(), processor(48))
    plain, marked = Image.new("RGB", size, (90, 90, 90)), Image.new("RGB", size, (90, 90, 90))
    marked.paste((250, 20, 20), (0, 0, size[0] // 3, size[1] // 3))
    difference = (
        (whole_images.regions(marked).features - whole_images.regions(plain).features)
        .abs()
        .sum(dim=2)
    )
    image = whole_images.regions(marked)
    assert image.image_size == (size[1], size[0])
    row, column = image.region_at((size[0] / 6, size[1] / 6))
    assert difference[row, column] > 1
    rows, columns = image.grid
    # Bicubic weights reach two pixels of the larger grid into the neighboring cell.
    assert difference[rows // 2 + 1 :].max() < 1e-6
    assert difference[:, columns // 2 + 1 :].max() < 1e-6


def test_pixels_are_those_of_the_processor() -> None:
    """An image of the input's size and shape is normalized as the processor does it."""
    plain = EsvitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    whole_images = WholeImages(MeanColors(), plain)
    expected = torch.as_tensor(plain(images=[image], return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(whole_images.pixel_values(image), expected, atol=1e-5, rtol=0)
    assert torch.equal(whole_images.resized(image), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["swin", "vit", "resnet"])
def test_any_network_and_shape(kind: str) -> None:
    torch.manual_seed(0)
    networks = {
        "swin": lambda: EsvitSwinModel(
            EsvitSwinConfig(
                image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
            )
        ),
        "vit": lambda: ViTModel(
            ViTConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
                image_size=32,
                patch_size=8,
            ),
            add_pooling_layer=False,
        ),
        "resnet": lambda: ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        ),
    }
    backbone = RegionBackbone(networks[kind](), image_size=32).eval()
    image = WholeImages(backbone, processor(32)).regions(
        Image.new("RGB", (90, 45), (200, 10, 10)), detail=2
    )
    assert image.grid == (8, 16)
    assert image.features.shape == (8, 16, backbone.feature_dim)
    assert image.features.dtype == torch.float32


def test_a_network_of_one_size_says_so() -> None:
    class OnlySquare(MeanColors):
        def forward(self, pixel_values: Tensor) -> BackboneFeatures:
            if pixel_values.shape[2] != pixel_values.shape[3]:
                raise RuntimeError("mat1 and mat2\ncannot be multiplied")
            return super().forward(pixel_values)

    whole_images = WholeImages(OnlySquare(), processor(32))
    with pytest.raises(ValueError, match=r"32 x 64 pixels \(mat1 and mat2 cannot be multiplied\)"):
        whole_images.regions(Image.new("RGB", (128, 64)))


def test_similarity_by_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    query = regions(torch.randn(3, 4, 5, generator=generator), (30, 40))
    other = regions(torch.randn(2, 6, 5, generator=generator), (20, 60))
    similarities = similarity_map(query, (25.5, 11.5), other)
    chosen = query.features[1, 2].double()
    for row in range(2):
        for column in range(6):
            feature = other.features[row, column].double()
            expected = float(chosen @ feature / (chosen.norm() * feature.norm()))
            assert float(similarities[row, column]) == pytest.approx(expected, abs=1e-6)
    own = similarity_map(query, (25.5, 11.5), query)
    assert float(own[1, 2]) == pytest.approx(1)
    assert float(own.max()) == float(own[1, 2])


def test_colors_are_principal_components() -> None:
    """Directions and stretch agree with an eigendecomposition; images share both."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(4, 5, 7, generator=generator),
        torch.randn(3, 3, 7, generator=generator),
    )
    colors = region_colors([regions(first), regions(second)])
    assert [tuple(values.shape) for values in colors] == [(4, 5, 3), (3, 3, 3)]
    rows = F.normalize(torch.cat([first.flatten(0, 1), second.flatten(0, 1)]).double(), dim=1)
    centered = rows - rows.mean(dim=0)
    _, directions = torch.linalg.eigh(centered.T @ centered)
    projected = centered @ directions.flip(1)[:, :3]
    found = torch.cat([values.flatten(0, 1) for values in colors]).double()
    for component in range(3):
        expected = projected[:, component]
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        # The sign of a direction is free.
        differences = [
            (found[:, component] - values).abs().max() for values in (expected, 1 - expected)
        ]
        assert min(differences) < 1e-5


def test_colors_of_few_or_equal_regions() -> None:
    assert torch.equal(region_colors([regions(torch.ones(2, 2, 4))])[0], torch.full((2, 2, 3), 0.5))
    assert region_colors([regions(torch.randn(1, 1, 4))])[0].tolist() == [[[0.5, 0.5, 0.5]]]
    two = region_colors([regions(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))])[0]
    assert sorted(two[0, :, 0].tolist()) == [0, 1]
    assert torch.equal(two[0, :, 2], torch.full((2,), 0.5))
