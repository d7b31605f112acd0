"""Shares of variance and dimensions of regions made for the purpose."""

import pytest
import torch

from esvit_hf.pretraining.objectives.region_signals import (
    effective_dimensions,
    image_share,
    place_share,
)

IMAGES, PLACES, CHANNELS = 40, 30, 12


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def balanced(regions):
    """Take out what chance gives the means of images and places."""
    regions = regions - regions.mean(dim=1, keepdim=True)
    return regions - regions.mean(dim=0, keepdim=True)


def test_shares_are_those_that_were_put_in():
    image, place = draw(IMAGES, 1, CHANNELS), draw(1, PLACES, CHANNELS)
    image, place = image - image.mean(dim=0), place - place.mean(dim=1, keepdim=True)
    content = balanced(draw(IMAGES, PLACES, CHANNELS))
    parts = [part / part.square().mean().sqrt() for part in (image, place, content)]
    regions = 7 + 3 * (parts[0] + 2 * parts[1] + 4 * parts[2])
    assert image_share(regions).item() == pytest.approx(1 / 21, rel=1e-4)
    assert place_share(regions).item() == pytest.approx(4 / 21, rel=1e-4)


def test_regions_without_variance_have_no_share():
    regions = torch.ones(4, 3, 2)
    assert image_share(regions) == place_share(regions) == effective_dimensions(regions) == 0


@pytest.mark.parametrize(("images", "channels"), [(50, 6), (2, 200)])
def test_dimensions_are_those_of_the_eigenvalues(images, channels):
    regions = draw(images, 5, channels) * torch.linspace(0.1, 2, channels)
    rows = regions.flatten(0, 1).double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(rows.T))
    expected = eigenvalues.sum().square() / eigenvalues.square().sum()
    found = effective_dimensions(regions)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert effective_dimensions(regions) == found


def test_dimensions_of_a_line_and_of_a_ball():
    line = draw(IMAGES, PLACES, 1) * draw(1, 1, CHANNELS)
    assert effective_dimensions(line).item() == pytest.approx(1, rel=1e-4)
    assert effective_dimensions(draw(IMAGES, PLACES, CHANNELS)).item() > 0.95 * CHANNELS


def test_half_precision_is_computed_in_float32():
    regions = draw(IMAGES, PLACES, CHANNELS).half()
    for signal in (image_share, place_share, effective_dimensions):
        assert signal(regions) == signal(regions.float())
