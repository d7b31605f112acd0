"""What browsers get of arrays."""

import base64

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from esvit_hf.page.packing import pack_maps, pack_regions
from esvit_hf.regions.whole_images import ImageRegions


@pytest.mark.parametrize("channels", [3, 192, 1024])
def test_cosines_survive(channels: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 5, channels) * torch.logspace(-3, 3, 5)[:, None]
    answer = pack_regions(ImageRegions(features, (40, 50)))
    assert (answer["grid"], answer["channels"]) == ([4, 5], channels)
    signed = np.frombuffer(base64.b64decode(answer["features"]), dtype=np.int8)
    rows = F.normalize(torch.from_numpy(signed.astype(np.float32)).view(20, channels), dim=1)
    expected = F.normalize(features.view(20, channels), dim=1)
    torch.testing.assert_close(rows @ rows.T, expected @ expected.T, atol=0.01, rtol=0)


def test_a_region_without_features_stays_zero() -> None:
    answer = pack_regions(ImageRegions(torch.zeros(1, 1, 4), (16, 16)))
    assert base64.b64decode(answer["features"]) == bytes(4)


def test_maps() -> None:
    maps = torch.tensor([[[0.0, 0.1]], [[0.2, 0.05]]])
    answer = pack_maps(maps)
    assert (answer["grid"], answer["count"]) == ([1, 2], 2)
    assert answer["largest"] == pytest.approx(0.2)
    assert list(base64.b64decode(answer["values"])) == [0, 128, 255, 64]
