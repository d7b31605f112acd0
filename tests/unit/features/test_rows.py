"""Sources of rows: which images they hold, and what identifies each."""

import io
import tarfile
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from tests.support.photo_folders import noise
from tests.support.range_server import serve

from esvit_hf.data.decoding import decode_image
from esvit_hf.data.shards import write_index
from esvit_hf.features.rows import RowSource, StreamRows, TableRows, file_name, open_rows, row_name

IMAGES = 7


def dataset() -> Dataset:
    columns = {
        "image": [{"bytes": _png(seed), "path": f"{seed}.png"} for seed in range(IMAGES)],
        "label": [seed % 2 for seed in range(IMAGES)],
        "place": [f"P{seed}" for seed in range(IMAGES)],
    }
    kinds = {
        "image": ImageFeature(),
        "label": ClassLabel(names=["even", "odd"]),
        "place": Value("string"),
    }
    return Dataset.from_dict(columns, features=Features(kinds))


def _png(seed: int) -> bytes:
    content = io.BytesIO()
    noise(seed, 20, 20).save(content, "PNG")
    return content.getvalue()


def identities(source: RowSource, start: int, stop: int) -> dict[str, list[object]]:
    return {name: values.to_pylist() for name, values in source.identify(start, stop).items()}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards with row groups of two images; the last one of each is smaller."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, rows in enumerate((range(3), range(3, IMAGES))):
        path = folder / f"train-{number:05d}-of-00002.parquet"
        dataset().select(rows).to_parquet(path, batch_size=2)
    return folder


def test_a_stream_says_what_a_table_says(shards: Path) -> None:
    table = open_rows(dataset(), id_column="place")
    for place in (str(shards / "*.parquet"), str(shards / "train-{00000..00001}-of-00002.parquet")):
        stream = open_rows(place, id_column="place")
        assert isinstance(table, TableRows) and isinstance(stream, StreamRows)
        assert stream.columns == table.columns
        assert len(stream) == len(table) == IMAGES
        for start, stop in ((0, IMAGES), (1, 2), (2, 6)):
            assert identities(stream, start, stop) == identities(table, start, stop)
        order = [6, 0, 3, 2]
        assert stream.read_encoded(order) == table.read_encoded(order)
    assert identities(stream, 2, 4) == {
        "index": [2, 3],
        "file": ["2.png", "3.png"],
        "id": ["P2", "P3"],
        "label": [0, 1],
        "class_name": ["even", "odd"],
    }
    assert row_name(stream, 5) == "5.png"


def test_addresses_are_streamed_and_folders_on_request(shards: Path) -> None:
    with serve(shards) as served:
        rows = open_rows(f"{served.url}/train-00001-of-00002.parquet")
        assert isinstance(rows, StreamRows)
        assert identities(rows, 0, 2)["file"] == ["3.png", "4.png"]
    assert isinstance(open_rows(shards), TableRows)
    assert isinstance(open_rows(shards, streaming=True), StreamRows)
    assert isinstance(open_rows(shards / "train-00000-of-00002.parquet"), TableRows)


def test_tar_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for seed in range(3):
            for name, content in (("png", _png(seed)), ("cls", f"{seed}".encode())):
                member = tarfile.TarInfo(f"{seed}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    write_index(str(tmp_path / "a.tar"), tmp_path / "index.json")
    rows = open_rows(tmp_path / "index.json", label_column="cls")
    assert identities(rows, 1, 3) == {"index": [1, 2], "label": ["1", "2"]}
    assert decode_image(rows.read_encoded([2])[0]).tobytes() == noise(2, 20, 20).tobytes()
    assert row_name(rows, 2) == "image 2"


def test_fingerprints_tell_sources_apart(shards: Path) -> None:
    both, first = (
        open_rows(str(shards / pattern)).fingerprint for pattern in ("*.parquet", "*0-of*.parquet")
    )
    assert both == open_rows(str(shards / "*.parquet")).fingerprint != first


def test_a_file_system_that_is_not_installed() -> None:
    with pytest.raises(ValueError, match="needs one more package"):
        open_rows("gdrive://photos/*.parquet")


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "photos", Path("photos")):
        assert file_name(f"{tmp_path}/photos/a/1.jpg", root) == "a/1.jpg"
        assert file_name(f"{tmp_path}/photos2/1.jpg", root) == "1.jpg"
        assert file_name("a/1.jpg", root) == "a/1.jpg"
    assert file_name(f"{tmp_path}/1.jpg", None) == f"{tmp_path}/1.jpg"
