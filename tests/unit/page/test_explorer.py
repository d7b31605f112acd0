"""What the page computes, without the page; the command and the Space up to the server."""

import importlib.resources
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from tests.support.paths import FASHION_MNIST, ROOT
from transformers import ResNetConfig, ResNetModel

import esvit_hf.page
from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.commands.main import main
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.features.store import FeatureStore
from esvit_hf.page.explorer import Explorer
from esvit_hf.regions.attention import query_attention

CLOTHES = FASHION_MNIST
SHIPPED = importlib.resources.files(esvit_hf.page) / "examples.parquet"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("explorer")
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder / "model")
    save_processor(folder / "model")
    return FeatureStore(folder / "features", str(folder / "model"), num_workers=0)


@pytest.fixture(scope="module")
def explorer(store: FeatureStore) -> Explorer:
    return Explorer(
        store, load_image_source(str(SHIPPED)), load_image_source(str(CLOTHES), split="test[:50]")
    )


def save_processor(folder: Path) -> None:
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def test_shipped_examples_are_those_of_the_repository(explorer: Explorer) -> None:
    assert len(explorer.examples) == 20
    assert [label for label, _ in explorer.examples[:3]] == [
        "1. T-shirt/top",
        "2. T-shirt/top",
        "3. Trouser",
    ]
    test_images = load_image_source(str(CLOTHES), split="test")
    assert test_images.labels is not None
    places = [
        int(place)
        for label in range(10)
        for place in np.flatnonzero(test_images.labels == label)[:2]
    ]
    for (label, _), image in zip(explorer.examples, test_images.read(places), strict=True):
        assert isinstance(image, Image.Image)
        assert explorer.example(label).tobytes() == image.tobytes()
    with pytest.raises(ValueError, match="no example '4. Hat'"):
        explorer.example("4. Hat")


def test_examples_without_labels(store: FeatureStore) -> None:
    images = [Image.new("RGB", (20, 20), (number, 0, 0)) for number in range(90)]
    source = ImageSource(
        Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    )
    chosen = Explorer(store, source).examples
    assert len(chosen) == 20
    assert (chosen[0], chosen[-1]) == (("1. image 0", 0), ("20. image 89", 89))


def test_similar_regions_of_two_sizes(explorer: Explorer) -> None:
    first, second = explorer.view(photograph(90, 45), 1), explorer.view(photograph(50, 50), 2)
    assert (first.regions.grid, second.regions.grid) == ((4, 8), (8, 8))
    own, other, matches = explorer.similarity(first, second, (89, 44))
    assert own.size != other.size
    assert len(matches) == 3
    chosen = first.regions.features[3, 7]
    cosines = torch.cosine_similarity(second.regions.features, chosen.expand(8, 8, -1), dim=2)
    assert matches[0].cosine == pytest.approx(float(cosines.max()), abs=1e-6)
    row, column = second.regions.region_at(matches[0].point)
    assert float(cosines[row, column]) == float(cosines.max())
    moved = explorer.similarity(first, second, (0, 0))
    assert moved[0].tobytes() != own.tobytes()
    with pytest.raises(ValueError, match="outside the image"):
        explorer.similarity(first, second, (90, 0))


def test_attention_of_the_region_at_the_point(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explorer.heads == [1, 2, 2]
    asked = []

    def recorded(backbone, pixel_values, point, layer):
        asked.append(
            (
                tuple(pixel_values.shape),
                point,
                query_attention(backbone, pixel_values, point, layer).region,
            )
        )
        return query_attention(backbone, pixel_values, point, layer)

    monkeypatch.setattr("esvit_hf.page.explorer.query_attention", recorded)
    view = explorer.view(photograph(90, 45), 1)
    pictures = [explorer.attention(view, (89, 44), 2, head) for head in (None, 0, 1)]
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert asked[0] == (
        (1, 3, 32, 64),
        pytest.approx((89.5 * 64 / 90, 44.5 * 32 / 45)),
        view.regions.region_at((89, 44)),
    )
    with pytest.raises(ValueError, match="Block 3 has 2 heads"):
        explorer.attention(view, (0, 0), 2, 2)


def test_other_pictures(explorer: Explorer) -> None:
    first, second = (
        explorer.view(photograph(90, 45), 1),
        explorer.view(explorer.example("1. T-shirt/top"), 1),
    )
    assert explorer.pairs(first, second).tobytes() != explorer.pairs(second, first).tobytes()
    colors = explorer.colors(first, second)
    assert [picture.width > picture.height for picture in colors] == [True, False]
    assert explorer.neighbors(first).tobytes() != explorer.neighbors(second).tobytes()


def test_networks_without_attention_and_pages_without_data(tmp_path: Path) -> None:
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(
        tmp_path / "model"
    )
    save_processor(tmp_path / "model")
    bare = Explorer(
        FeatureStore(tmp_path / "features", str(tmp_path / "model")),
        load_image_source(str(SHIPPED)),
    )
    assert bare.heads == []
    view = bare.view(photograph(64, 32), 1)
    assert bare.similarity(view, view, (5, 5))[2][0].cosine == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="start the page with --dataset"):
        bare.neighbors(view)


def test_without_gradio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "esvit_hf.page.app", raising=False)
    assert main(["demo", "any/model"]) == 2
    assert "pip install 'esvit-hf[demo]'" in capsys.readouterr().err


def test_the_space_names_the_missing_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("space", ROOT / "examples" / "space" / "app.py")
    assert spec is not None and spec.loader is not None
    space = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(space)
    monkeypatch.delenv("ESVIT_MODEL", raising=False)
    with pytest.raises(ValueError, match="ESVIT_MODEL is not set"):
        space.main()
    called: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(
        space, "show_page", lambda model, **options: called.append((model, options))
    )
    monkeypatch.setenv("ESVIT_MODEL", "some/model")
    space.main()
    assert called == [("some/model", {"dataset": None, "split": "train", "host": "0.0.0.0"})]
