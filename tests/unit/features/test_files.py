"""The verb `extract_features`: a row an image, in every format, from every kind of source."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tests.support.photo_folders import BROKEN, PHOTOS, noise, save_model, write_photos

import esvit_hf
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.main import main
from esvit_hf.features.extraction import load_image_processor

BROKEN_WARNING = "1 of 6 images cannot be decoded and are left out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    save_model(folder / "model")
    write_photos(folder / "photos")
    return folder


def extract(folder: Path, output: Path | None, data: Any = None, **options: Any) -> Any:
    data = folder / "photos" if data is None else data
    options = {"num_workers": 0, **options}
    return esvit_hf.extract_features(folder / "model", data, output=output, **options)


def expected_features(folder: Path, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """View features and regions, by the network itself."""
    backbone = load_backbone(str(folder / "model"))
    processor = load_image_processor(str(folder / "model"))
    with torch.no_grad():
        features = backbone(processor(images=images, return_tensors="pt")["pixel_values"])
    return features.pooled.numpy(), features.regions.numpy()


def photos(folder: Path) -> list[Image.Image]:
    return [Image.open(folder / "photos" / name).convert("RGB") for name in PHOTOS]


def test_a_folder_with_odd_files(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folders" / "photos.parquet"
    with pytest.warns(UserWarning, match=rf"{BROKEN_WARNING} \({BROKEN}: "):
        report = extract(folder, output)
    assert report["output"] == [str(output)]
    assert (report["rows"], report["dimension"]) == (5, 16)
    assert list(report["broken"]) == [BROKEN]
    assert [path.name for path in output.parent.iterdir()] == ["photos.parquet"]
    rows = load_dataset("parquet", data_files=str(output), split="train", cache_dir=tmp_path)
    assert rows.features["feature"] == List(Value("float32"), length=16)
    assert sorted(rows["file"]) == sorted(PHOTOS)
    assert sorted({*range(6)} - {*rows["index"]}) == [sorted([*PHOTOS, BROKEN]).index(BROKEN)]
    by_name = dict(zip(rows["file"], rows.with_format("numpy")["feature"], strict=True))
    expected, _ = expected_features(folder, photos(folder))
    for name, feature in zip(PHOTOS, expected, strict=True):
        np.testing.assert_allclose(by_name[name], feature, atol=1e-5, err_msg=name)


def test_every_format_holds_the_same(folder: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=BROKEN_WARNING):
        rows = extract(folder, None)
    features = np.asarray(rows.with_format("numpy")["feature"])
    with pytest.warns(UserWarning, match=BROKEN_WARNING):
        for ending in ("safetensors", "npy", "csv"):
            extract(folder, tmp_path / f"rows.{ending}")
    tensors = load_file(tmp_path / "rows.safetensors")
    assert np.array_equal(tensors["features"].numpy(), features)
    with safe_open(tmp_path / "rows.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["esvit_hf"])["model"] == "model"
    assert np.array_equal(np.load(tmp_path / "rows.npy"), features)
    for name in ("rows.npy", "rows.safetensors"):
        with (tmp_path / f"{name}.rows.csv").open(newline="") as lines:
            found = list(csv.DictReader(lines))
        assert [line["file"] for line in found] == rows["file"][:]
        assert [int(line["index"]) for line in found] == rows["index"][:]
    with (tmp_path / "rows.csv").open(newline="") as lines:
        found = list(csv.DictReader(lines))
    assert [line["file"] for line in found] == rows["file"][:]
    numbers = [[float(line[f"feature_{place}"]) for place in range(16)] for line in found]
    assert np.array_equal(np.array(numbers, dtype=np.float32), features)


@pytest.mark.filterwarnings("ignore:1 of 6 images")
def test_a_folder_of_shards(folder: Path, tmp_path: Path) -> None:
    report = extract(folder, tmp_path / "rows", rows_per_shard=2)
    names = [f"features-{number:05d}.parquet" for number in range(3)]
    assert report["output"] == [str(tmp_path / "rows" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == names
    rows = load_dataset(str(tmp_path / "rows"), split="train", cache_dir=tmp_path / "cache")
    assert rows["file"][:] == extract(folder, None)["file"][:]
    report = extract(folder, tmp_path / "part-{shard}.npy", rows_per_shard=3)
    assert [Path(path).name for path in report["output"]] == ["part-0.npy", "part-1.npy"]
    parts = np.concatenate([np.load(path) for path in report["output"]])
    assert np.allclose(parts, rows.with_format("numpy")["feature"], atol=1e-6)


@pytest.mark.filterwarnings("ignore:1 of 6 images")
def test_regions(folder: Path, tmp_path: Path) -> None:
    extract(folder, tmp_path / "rows.parquet", regions=True, rows_per_shard=2)
    rows = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    assert set(map(tuple, rows["grid"])) == {(4, 4)}
    assert rows.features["regions"] == List(List(Value("float32"), length=16), length=16)
    view, regions = expected_features(folder, photos(folder))
    order = [PHOTOS.index(name) for name in rows["file"]]
    rows = rows.with_format("numpy")
    np.testing.assert_allclose(np.stack(rows["regions"]), regions[order], atol=1e-5)
    np.testing.assert_allclose(np.stack(rows["feature"]), view[order], atol=1e-5)
    extract(folder, tmp_path / "rows.safetensors", regions=True)
    tensors = load_file(tmp_path / "rows.safetensors")
    assert tensors["grid"].tolist() == [4, 4]
    np.testing.assert_allclose(tensors["regions"].numpy(), regions[order], atol=1e-5)


def test_blocks(folder: Path) -> None:
    (rows,) = extract(folder, None, [folder / "photos" / PHOTOS[0]], blocks=2)
    backbone = load_backbone(str(folder / "model"))
    processor = load_image_processor(str(folder / "model"))
    pixels = processor(images=photos(folder)[:1], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = backbone.pooled_blocks(pixels, 2)[0]
    np.testing.assert_allclose(rows["feature"], expected.numpy(), atol=1e-6)


def test_image_files(folder: Path) -> None:
    paths = [folder / "photos" / name for name in (PHOTOS[3], PHOTOS[0])]
    rows = extract(folder, None, paths)
    assert rows["file"][:] == [str(path) for path in paths]
    assert extract(folder, None, paths[0])["feature"][0] == pytest.approx(rows["feature"][0])


def test_rows_in_memory_with_labels_and_ids(folder: Path, tmp_path: Path) -> None:
    columns = {
        "image": [noise(seed) for seed in range(3)],
        "label": [1, -1, 0],
        "number": ["x7", "x8", "x9"],
    }
    features = Features(
        {
            "image": ImageFeature(),
            "label": ClassLabel(names=["cat", "dog"]),
            "number": Value("string"),
        }
    )
    data = Dataset.from_dict(columns, features=features)
    extract(folder, tmp_path / "rows.parquet", data, id_column="number")
    rows = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows.select_columns(["index", "id", "label", "class_name"])[:] == {
        "index": [0, 1, 2],
        "id": ["x7", "x8", "x9"],
        "label": [1, -1, 0],
        "class_name": ["dog", None, "cat"],
    }
    extract(folder, tmp_path / "rows.safetensors", data)
    assert load_file(tmp_path / "rows.safetensors")["labels"].tolist() == [1, -1, 0]
    with safe_open(tmp_path / "rows.safetensors", framework="pt") as file:
        made_from = json.loads(file.metadata()["esvit_hf"])
    assert made_from["class_names"] == ["cat", "dog"]


@pytest.mark.filterwarnings("ignore:1 of 6 images")
def test_every_call_chooses_its_precision(folder: Path) -> None:
    exact, half, again = (
        np.asarray(extract(folder, None, mixed_precision=precision)["feature"])
        for precision in ("no", "bf16", "no")
    )
    assert np.array_equal(exact, again)
    assert 1e-5 < np.abs(exact - half).max() < 0.2


@pytest.mark.filterwarnings("ignore:1 of 6 images")
def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["features", str(folder / "model"), str(folder / "photos"), "--num_workers", "2"]
    output = tmp_path / "rows.parquet"
    assert main([*words, "--output", str(output), "--batch_size", "2"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["rows"], report["output"]) == (5, [str(output)])
    metadata = pyarrow.parquet.read_schema(output).metadata
    assert json.loads(metadata[b"esvit_hf"])["model"] == "model"
    before = output.read_bytes()
    assert main([*words, "--output", str(output)]) == 2
    assert f"{output} is there already" in capsys.readouterr().err
    assert main([*words, "--output", str(output), "--broken", "refuse", "--overwrite"]) == 2
    assert f"{BROKEN} cannot be decoded" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert main([*words[:2], str(folder / "photos" / "a.jpg"), "--output", str(output)]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "rows.txt"}, "rows.txt: give a name that ends in .parquet, .safetensors"),
        ({"output": "rows.csv", "regions": True}, "cannot hold regions"),
        ({"output": "rows-{part}.npy"}, r"number the files by \{shard\}"),
        ({"output": "rows-{shard:x5y}.npy"}, r"number the files by \{shard\}"),
        ({"output": "file/rows.csv"}, "nothing can be written to"),
        ({"regions": True, "blocks": 2}, "leave one of them out"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rows_per_shard": 0}, "rows_per_shard is 0"),
        ({"id_column": "name"}, "no column 'name'; set --id_column to one of: image"),
        ({"dataset": ["a.jpg", "no.jpg"]}, "a.jpg is no image file"),
        ({"dataset": "no folder"}, "no folder does not exist"),
        ({"dataset": "*.parquet"}, r"no file matches"),
    ],
)
def test_what_does_not_work_is_refused(
    options: dict[str, Any],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    options = {"output": "rows.csv", "dataset": folder / "photos", "num_workers": 0, **options}
    with pytest.raises(ValueError, match=message):
        esvit_hf.extract_features(folder / "model", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("output", ["file/rows.csv", "file/rows/", "/proc/rows.csv", "rows.txt"])
def test_an_output_is_tested_before_the_model_is_loaded(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ValueError, match=r"--output is .*(rows\.csv|rows\.txt|shard:05d)"):
        esvit_hf.extract_features("no model", "no images", output=output)


def test_a_folder_without_an_image_that_can_be_decoded(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    file = tmp_path / "photos" / "a.jpg"
    file.write_text("no image")
    # The network would fail if it were loaded.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for data in (file.parent, [file]):
        with pytest.raises(ValueError, match=r"none of the images can be opened.* \S*a.jpg \("):
            esvit_hf.extract_features(tmp_path / "model", data, output=tmp_path / "rows.csv")
    noise(0).save(file)
    with pytest.raises(ValueError, match="cannot load a model"):
        esvit_hf.extract_features(
            *(tmp_path / "model", file.parent),
            output=tmp_path / "new" / "rows.csv",
            processor=folder / "model",
        )
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"none of the images can be decoded.* a.jpg \("):
        extract(folder, tmp_path / "rows.csv", tmp_path / "photos")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos"]
