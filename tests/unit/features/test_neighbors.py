"""Nearest images of a data set and `esvit neighbors`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from tests.support.paths import FASHION_MNIST

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.main import main
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.features.extraction import Features as ImageFeatures
from esvit_hf.features.extraction import compute_features, load_image_processor
from esvit_hf.features.neighbors import Neighbor, class_name, nearest_images, view_feature

CLOTHES = FASHION_MNIST


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clothes() -> ImageSource:
    return load_image_source(str(CLOTHES), split="test[:60]")


def test_agrees_with_scikit_learn(model: str, clothes: ImageSource) -> None:
    backbone, processor = load_backbone(model), load_image_processor(model)
    features = compute_features(backbone, clothes, processor)
    (image,) = load_image_source(str(CLOTHES), split="train[7:8]").read([0])
    assert isinstance(image, Image.Image)
    query = view_feature(backbone, processor, image)
    found = nearest_images(query, clothes, features, 5)
    search = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(
        features.values.double().numpy()
    )
    distances, places = search.kneighbors(query[None].double().numpy())
    assert [neighbor.index for neighbor in found] == places[0].tolist()
    assert [neighbor.cosine for neighbor in found] == pytest.approx(
        (1 - distances[0]).tolist(), abs=1e-5
    )
    expected = clothes.read(places[0].tolist())
    assert [np.asarray(neighbor.image).tolist() for neighbor in found] == [
        np.asarray(image).tolist() for image in expected
    ]
    assert clothes.labels is not None and clothes.class_names is not None
    assert [neighbor.class_name for neighbor in found] == [
        clothes.class_names[clothes.labels[place]] for place in places[0]
    ]


def test_an_image_of_the_data_set_finds_itself(model: str, clothes: ImageSource) -> None:
    backbone, processor = load_backbone(model), load_image_processor(model)
    features = compute_features(backbone, clothes, processor)
    (image,) = clothes.read([13])
    assert isinstance(image, Image.Image)
    query = view_feature(backbone, processor, image)
    torch.testing.assert_close(query, features.values[13], atol=1e-5, rtol=1e-4)
    first = nearest_images(query, clothes, features, 1)[0]
    assert first.index == 13
    assert first.cosine == pytest.approx(1, abs=1e-5)


def test_more_neighbors_than_images() -> None:
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    source = ImageSource(
        Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    )
    found = nearest_images(
        torch.tensor([1.0, 0.1, 0.0]), source, ImageFeatures(torch.eye(3), None, (3,)), 10
    )
    assert [neighbor.index for neighbor in found] == [0, 1, 2]
    assert {neighbor.class_name for neighbor in found} == {None}


def test_class_names() -> None:
    def source(label: ClassLabel | None) -> ImageSource:
        columns = {"image": [Image.new("RGB", (8, 8))], "label": [1]}
        dataset = Dataset.from_dict(columns)
        return ImageSource(
            dataset.cast_column("label", label) if label else dataset, image_column="image"
        )

    assert class_name(source(ClassLabel(names=["cat", "dog"])), 0) == "dog"
    assert class_name(source(None), 0) == "1"


def test_what_stands_beside_a_neighbor() -> None:
    image = Image.new("RGB", (8, 8))
    assert Neighbor(7, "image 7 (x.png)", image, 0.5, "cat").label == "cat"
    assert Neighbor(7, "image 7 (x.png)", image, 0.5, None).label == "image 7 (x.png)"


def test_a_file_that_broke_meanwhile_is_named(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    images = load_image_source(str(tmp_path))
    features = ImageFeatures(torch.eye(3), None, (3,))
    assert nearest_images(torch.eye(3)[1], images, features, 1)[0].name.endswith("/1.png)")
    (tmp_path / "1.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"image 1 \(.*/1\.png\) can no longer be decoded \(the b"):
        nearest_images(torch.eye(3)[1], images, features, 1)


def test_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image,) = load_image_source(str(CLOTHES), split="test[:1]").read([0])
    assert isinstance(image, Image.Image)
    image.save(tmp_path / "query.png")
    words = [
        "neighbors",
        model,
        tmp_path / "query.png",
        CLOTHES,
        "--output",
        tmp_path / "out.png",
        "--count",
        "3",
    ]
    words += [
        "--split",
        "test[:40]",
        "--num_workers",
        "0",
        "--features_folder",
        tmp_path / "features",
    ]
    for _ in range(2):
        assert main([str(word) for word in words]) == 0
        report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert report["output"] == str(tmp_path / "out.png")
        assert report["neighbors"][0] == {
            "index": 0,
            "name": "image 0",
            "class": "Ankle boot",
            "cosine": 1.0,
        }
        assert len(report["neighbors"]) == 3
    assert (tmp_path / "out.png").stat().st_size > 5000
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == 1


def test_command_names_files(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, color in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (32, 32), color).save(photos / name)
    words = ["neighbors", model, photos / "blue.png", photos, "--output", tmp_path / "out.png"]
    words += ["--num_workers", "0", "--features_folder", tmp_path / "features"]
    assert main([str(word) for word in words]) == 0
    # Without --count, all images of a folder that has fewer than nine.
    found, _ = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["neighbors"]
    assert found["name"] == f"image 0 ({photos / 'blue.png'})"
    assert found["class"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--count": "0"}, "--count is 0: choose 1 to 40"),
        ({"--count": "41"}, "--count is 41: choose 1 to 40"),
        ({"--output": "out.gif"}, ".png or .pdf"),
        ({"--split": "validation"}, "validation"),
        ({"image": "no.png"}, "no image file 'no.png'"),
    ],
)
def test_wrong_words(
    change: dict[str, str],
    message: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "query.png")
    image = change.pop("image", str(tmp_path / "query.png"))
    options = {
        "--output": str(tmp_path / "out.png"),
        "--split": "test[:40]",
        "--features_folder": str(tmp_path / "features"),
        **change,
    }
    words = [
        "neighbors",
        model,
        image,
        str(CLOTHES),
        *(word for pair in options.items() for word in pair),
    ]
    assert main(words) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]
    assert not (tmp_path / "out.png").exists()
