"""What the page asks of a network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.page import save_small_network
from tests.support.paths import FASHION_MNIST
from transformers import ResNetConfig, ResNetModel

from esvit_hf.data.sources import load_image_source
from esvit_hf.features.store import FeatureStore
from esvit_hf.page.network import PageNetwork, page_networks
from esvit_hf.regions.attention import query_attention

CLOTHES = FASHION_MNIST


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_network_takes_the_next_number_of_regions(store: FeatureStore) -> None:
    network = PageNetwork("small", store)
    assert network.own_rows == 4
    assert [network.detail(rows) for rows in (1, 4, 5, 8, 14)] == [1, 1, 2, 2, 4]
    regions = network.regions(noise(90, 45), 7)
    assert (regions.grid, regions.image_size) == ((8, 16), (45, 90))


def test_untrained_weights_are_others_and_always_the_same(store: FeatureStore) -> None:
    trained, untrained = page_networks([store])
    assert (trained.name, untrained.name) == ("small", "untrained weights")
    state = torch.random.get_rng_state()
    weights = untrained.backbone.state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    again = PageNetwork("again", store, untrained=True).backbone.state_dict()
    name = next(key for key in weights if weights[key].ndim == 2)
    assert torch.equal(weights[name], again[name])
    assert not torch.equal(weights[name], trained.backbone.state_dict()[name])
    assert not untrained.backbone.training


def test_a_second_model_comes_last(store: FeatureStore, tmp_path: Path) -> None:
    save_small_network(tmp_path / "other", seed=2)
    other = FeatureStore(tmp_path / "features", str(tmp_path / "other"))
    names = [network.name for network in page_networks([store, other])]
    assert names == ["small", "untrained weights", "other"]


def test_attention_of_the_region_at_a_place(store: FeatureStore) -> None:
    network = PageNetwork("small", store)
    assert network.heads == [1, 2, 2]
    image = noise(90, 45)
    maps = network.attention(image, 8, (0.99, 0.5), 2)
    assert maps.shape == (2, 8, 16)
    pixel_values = network._whole_images.pixel_values(image, detail=2)
    expected = query_attention(network.backbone, pixel_values, (0.99 * 128, 0.5 * 64), 2)
    assert torch.equal(maps, expected.maps)
    assert expected.region == (4, 15)
    with pytest.raises(ValueError, match="block 3 asked for"):
        network.attention(image, 8, (0.5, 0.5), 3)
    with pytest.raises(ValueError, match="outside"):
        network.attention(image, 8, (1.0, 0.5), 2)


def test_networks_without_attention(tmp_path: Path) -> None:
    save_small_network(tmp_path / "resnet")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    network = PageNetwork(
        "resnet", FeatureStore(tmp_path / "features", str(tmp_path / "resnet"), num_workers=0)
    )
    assert network.heads == []
    assert network.regions(noise(64, 32), 4).features.shape[2] == 8


def test_neighbors_of_trained_and_untrained_weights(store: FeatureStore) -> None:
    source = load_image_source(str(CLOTHES), split="test[:30]")
    (image,) = source.read([7])
    assert isinstance(image, Image.Image)
    for network in page_networks([store]):
        found = network.neighbors(image, source, 3)
        assert [len(found), found[0].index] == [3, 7]
        assert found[0].cosine == pytest.approx(1, abs=1e-4)
        assert found[0].class_name
