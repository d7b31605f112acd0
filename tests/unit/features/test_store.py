"""Features on disk: reused when everything that decides them is the same, computed again when it is
not.
"""

import importlib.metadata
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import constants
from PIL import Image as PILImage
from safetensors.torch import save_file

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.features.extraction import compute_features, load_image_processor
from esvit_hf.features.store import FeatureStore, default_features_folder


def save_model(folder: Path, *, seed: int = 0, size: int = 32) -> str:
    torch.manual_seed(seed)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    EsvitImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return str(folder)


def source(count: int = 7, *, seed: int = 0, labels: tuple[int, ...] = (0, 1)) -> ImageSource:
    random = np.random.default_rng(seed)
    images = [
        PILImage.fromarray(random.integers(0, 256, (36, 40, 3), dtype=np.uint8))
        for _ in range(count)
    ]
    rows = {"image": images, "label": [labels[index % len(labels)] for index in range(count)]}
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    return ImageSource(Dataset.from_dict(rows, features=features))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def store(folder: Path, model: str, **options: Any) -> FeatureStore:
    return FeatureStore(folder, model, num_workers=0, **options)


def loads_network(store: FeatureStore) -> bool:
    return "backbone" in vars(store)


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("no_warning")
def test_a_second_store_reads_what_the_first_computed(model: str, tmp_path: Path) -> None:
    first = store(tmp_path, model)
    computed = first.features(source(), blocks=3)
    assert loads_network(first)
    expected = compute_features(
        load_backbone(model), source(), load_image_processor(model), blocks=3
    )
    assert torch.equal(computed.values, expected.values)
    assert computed.block_widths == (8, 16, 16)

    second = store(tmp_path, model)
    for blocks in (3, 2, 1):
        found = second.features(source(), blocks=blocks)
        assert torch.equal(found.values, expected.last_blocks(blocks).values)
        assert found.block_widths == (8, 16, 16)[-blocks:]
        assert found.labels is not None and found.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    torch.testing.assert_close(
        second.features(source()).values,
        compute_features(load_backbone(model), source(), load_image_processor(model)).values,
    )
    assert not loads_network(second)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(list(tmp_path.glob("*.json"))) == 1
    index = next(tmp_path.glob("*.json"))
    assert next(tmp_path.glob("*.safetensors")).stat().st_mode == index.stat().st_mode
    assert json.loads(index.read_text())["identity"]["data_fingerprint"] == source().fingerprint


@pytest.mark.usefixtures("no_warning")
def test_an_entry_of_fewer_blocks_is_replaced(model: str, tmp_path: Path) -> None:
    one, two = store(tmp_path, model), store(tmp_path, model)
    one.features(source())
    assert two.features(source(), blocks=2).block_widths == (16, 16)
    assert loads_network(two)
    assert len(list(tmp_path.iterdir())) == 2
    third = store(tmp_path, model)
    third.features(source(), blocks=2)
    assert not loads_network(third)


@pytest.mark.usefixtures("no_warning")
def test_the_place_of_a_model_does_not_matter(model: str, tmp_path: Path) -> None:
    store(tmp_path / "features", model).features(source())
    copied = store(tmp_path / "features", save_model(tmp_path / "copy"))
    copied.features(source())
    assert not loads_network(copied)


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize(
    "change",
    [
        "weights",
        "adapter",
        "configuration",
        "images",
        "labels",
        "count",
        "transform",
        "precision",
    ],
)
def test_what_decides_the_features_makes_a_new_entry(
    change: str, model: str, tmp_path: Path
) -> None:
    store(tmp_path / "features", model).features(source())
    changed_model, images = model, source()
    options: dict[str, Any] = {}
    if change == "weights":
        changed_model = save_model(tmp_path / "other", seed=1)
    elif change == "adapter":
        changed_model = save_model(tmp_path / "other")
        save_file({"a": torch.zeros(1)}, tmp_path / "other" / "adapter_model.safetensors")
    elif change == "configuration":
        changed_model = save_model(tmp_path / "other")
        config = json.loads((tmp_path / "other" / "config.json").read_text())
        (tmp_path / "other" / "config.json").write_text(
            json.dumps({**config, "layer_norm_eps": 0.1})
        )
    elif change == "images":
        images = source(seed=1)
    elif change == "labels":
        images = source(labels=(0, 2))
    elif change == "count":
        images = source(8)
    elif change == "transform":
        options["processor"] = save_model(tmp_path / "other", size=36)
    else:
        AcceleratorState._reset_state(reset_partial_state=True)
        options["accelerator"] = Accelerator(mixed_precision="bf16")
    other = store(tmp_path / "features", changed_model, **options)
    other.features(images)
    assert loads_network(other)
    assert len(list((tmp_path / "features").glob("*.json"))) == 2


def damage(kind: str, index: Path, data: Path) -> None:
    record = json.loads(index.read_text())
    if kind == "one byte of the features":
        content = bytearray(data.read_bytes())
        content[-1] ^= 1
        data.write_bytes(content)
    elif kind == "half of the features":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif kind == "no features":
        data.unlink()
    elif kind == "half of the index":
        index.write_text(index.read_text()[:100])
    elif kind == "a list":
        index.write_text("[1, 2]")
    elif kind == "other images":
        record["identity"]["data_fingerprint"] = "0123"
        index.write_text(json.dumps(record))
    elif kind == "a path as digest":
        index.write_text(json.dumps({**record, "sha256": "../../etc/passwd"}))
    elif kind == "other widths":
        index.write_text(json.dumps({**record, "block_widths": [15]}))
    elif kind == "widths of no kind":
        index.write_text(json.dumps({**record, "block_widths": ["16"]}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("one byte of the features", "damaged file"),
        ("half of the features", "damaged file"),
        ("no features", "has lost its file"),
        ("half of the index", "is unreadable"),
        ("a list", "belongs to other features"),
        ("other images", "belongs to other features"),
        ("a path as digest", "lacks the width of the blocks or the digest"),
        ("other widths", "damaged file"),
        ("widths of no kind", "lacks the width"),
    ],
)
def test_damaged_and_foreign_entries_are_named_and_replaced(
    kind: str, message: str, model: str, tmp_path: Path
) -> None:
    expected = store(tmp_path, model).features(source()).values
    (index,), (data,) = tmp_path.glob("*.json"), tmp_path.glob("*.safetensors")
    damage(kind, index, data)
    with pytest.warns(UserWarning, match=f"{index.name} .*{message}.*computed again"):
        again = store(tmp_path, model).features(source()).values
    assert torch.equal(again, expected)
    third = store(tmp_path, model)
    assert torch.equal(third.features(source()).values, expected)
    assert not loads_network(third)


def test_an_interrupted_write_leaves_nothing_behind(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("esvit_hf.features.store.save_file", full_disk)
    with pytest.warns(UserWarning, match=r"no space left.*make room"):
        kept = store(tmp_path, model).features(source())
    assert kept.values.shape == (7, 16)
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_the_cache_of_the_hub_is_known_by_its_commit(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--network"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    save_model(repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert store(tmp_path / "features", "someone/network").model_revision == commit


def test_models_and_features_below_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_model(tmp_path / "model")
    assert store(Path("~/kept"), "~/model").features(source()).values.shape == (7, 16)
    assert len(list((tmp_path / "kept").glob("*.json"))) == 1
    assert load_image_processor("~/model") is not None


def test_bad_folders_and_models(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="features cannot be kept in .*file.*name another folder"):
        store(tmp_path / "file", model)
    with pytest.raises(ValueError, match="cannot load a model from '/no/such/model'"):
        store(tmp_path, "/no/such/model").features(source())


def test_the_default_folder_is_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_features_folder() == Path("/caches/esvit_hf/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_features_folder() == Path.home() / ".cache" / "esvit_hf" / "features"


@pytest.mark.usefixtures("no_warning")
def test_another_version_of_what_computes_makes_a_new_entry(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, model).features(source())
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.0" if name == "pillow" else version(name)
    )
    other = store(tmp_path, model)
    other.features(source())
    assert loads_network(other)


@pytest.mark.usefixtures("no_warning")
def test_a_replaced_file_is_noticed(model: str, tmp_path: Path) -> None:
    for number in range(200):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 8), (number, 0, 0)).save(path)
    store(tmp_path / "kept", model).features(load_image_source(str(tmp_path / "data")))
    PILImage.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "data" / "a" / "002.png")
    again = store(tmp_path / "kept", model)
    images = load_image_source(str(tmp_path / "data"))
    kept = again.features(images).values
    assert loads_network(again)
    assert torch.equal(kept, compute_features(again.backbone, images, again.processor).values)
