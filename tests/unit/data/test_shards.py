"""Shards: found, indexed and read again exactly, and named in one line where they are wrong."""

import io
import json
import pickle
import re
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from esvit_hf.data.decoding import UndecodableImageError, decode_image
from esvit_hf.data.shard_files import TAR_CHUNK_IMAGES
from esvit_hf.data.shards import (
    ShardIndex,
    UnreadableShardError,
    find_shards,
    open_index,
    write_index,
)
from esvit_hf.data.sources import ImageSource
from esvit_hf.data.streaming import StreamSource, open_stream


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value % 256, value // 256, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def labeled(first: int, count: int) -> Dataset:
    features = Features({"label": ClassLabel(names=["a", "b"]), "image": ImageFeature()})
    rows = [{"bytes": png(i), "path": f"{i}.png"} for i in range(first, first + count)]
    return Dataset.from_dict(
        {"label": [i % 2 for i in range(count)], "image": rows}, features=features
    )


def write_parquet(folder: Path, sizes: list[int], group: int = 10) -> None:
    first = 0
    for shard, size in enumerate(sizes):
        labeled(first, size).to_parquet(
            folder / f"train-{shard:05d}-of-{len(sizes):05d}.parquet", batch_size=group
        )
        first += size


def write_tar(path: Path, first: int, count: int, **fields: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            for field, content in {"cls": b"1", "png": png(number), **fields}.items():
                # A long name takes headers of its own.
                folder = "long/" * 30 if number % 3 == 0 else "./"
                member = tarfile.TarInfo(f"{folder}{number:06d}.{field}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def stream(place: Path | str, **settings: object) -> StreamSource:
    return open_stream(str(place), **({"shuffle_buffer": 16} | settings))  # type: ignore[arg-type]


def test_parquet_shards_read_as_the_indexed_data_set(tmp_path: Path) -> None:
    write_parquet(tmp_path, [25, 7, 30])
    source = stream(tmp_path)
    assert source.index.sizes.tolist() == [10, 10, 5, 7, 10, 10, 10]
    indexed = ImageSource(labeled(0, 62))
    order = np.random.default_rng(0).permutation(62).tolist()
    assert source.read_encoded(order) == indexed.read_encoded(order)
    assert source.image_column == "image"
    assert len(source) == 62
    assert "62 images in 3 shards" in source.description
    assert source.describe(24).endswith("image 24 of " + source.index.urls[0])
    assert source.describe(41).endswith("image 9 of " + source.index.urls[2])
    for index in (-1, 62):
        with pytest.raises(IndexError):
            source.read_encoded([index])


@pytest.mark.parametrize(
    "form",
    ["{folder}", "{folder}/train-*.parquet", "{folder}/train-{{00000..00002}}-of-00003.parquet"],
)
def test_shards_are_found_in_order(tmp_path: Path, form: str) -> None:
    write_parquet(tmp_path, [3, 4, 5])
    (tmp_path / "README.md").write_text("about the data")
    found = find_shards(form.format(folder=tmp_path))
    assert [Path(url).name for url in found] == [
        f"train-{i:05d}-of-00003.parquet" for i in range(3)
    ]


def test_splits_of_a_folder(tmp_path: Path) -> None:
    labeled(0, 6).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    labeled(9, 2).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert len(stream(tmp_path)) == 6
    assert stream(tmp_path, split="test").read_encoded([1]) == [png(10)]
    with pytest.raises(
        ValueError, match="no split 'train.:3.' to stream; streaming takes whole splits: "
    ):
        stream(tmp_path, split="train[:3]")


def test_tar_shards_read_as_they_were_written(tmp_path: Path) -> None:
    counts = [TAR_CHUNK_IMAGES + 3, 5]
    write_tar(tmp_path / "a-000.tar", 0, counts[0], json=b"{}")
    write_tar(tmp_path / "a-001.tar", counts[0], counts[1])
    result = write_index(str(tmp_path / "a-*.tar"), tmp_path / "index.json")
    assert result == {"output": str(tmp_path / "index.json"), "shards": 2, "images": sum(counts)}
    source = stream(tmp_path / "index.json")
    assert source.index.sizes.tolist() == [TAR_CHUNK_IMAGES, 3, 5]
    assert source.image_column == "png"
    order = np.random.default_rng(0).permutation(sum(counts)).tolist()
    assert source.read_encoded(order) == [png(number) for number in order]


def test_an_index_moves_with_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "data").mkdir(parents=True)
    write_parquet(tmp_path / "here" / "data", [4, 4])
    write_index(str(tmp_path / "here" / "data"), tmp_path / "here" / "index.json")
    (tmp_path / "here").rename(tmp_path / "there")
    assert stream(tmp_path / "there" / "index.json").read_encoded([5]) == [png(5)]
    monkeypatch.chdir(tmp_path / "there")
    assert stream("index.json").read_encoded([5]) == [png(5)]
    write_index("data", tmp_path / "elsewhere" / "index.json")
    assert stream(tmp_path / "elsewhere" / "index.json").read_encoded([5]) == [png(5)]


def test_a_sample_without_an_image_is_broken_and_formats_can_be_mixed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", 0, 2)
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        for name, content in {"x.txt": b"no image", "y.jpg": b"other"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    write_index(str(tmp_path / "a.tar"), tmp_path / "index.json")
    assert stream(tmp_path / "index.json").read_encoded([0, 2, 3]) == [png(0), None, None]
    assert stream(tmp_path / "index.json", image_column="jpg;png").read_encoded([0, 3]) == [
        png(0),
        b"other",
    ]
    with pytest.raises(
        ValueError, match="no column 'jpeg'; set --image_column to one of: cls, png"
    ):
        stream(tmp_path / "index.json", image_column="jpeg")


def test_few_chunks_stay_in_memory(tmp_path: Path) -> None:
    write_parquet(tmp_path, [200], group=10)
    source = stream(tmp_path, shuffle_buffer=30)
    for first in range(0, 200, 7):
        source.read_encoded(range(first, min(200, first + 7)))
        assert sum(len(values) for values in source._cache.values()) <= 50
    # A batch larger than the buffer is read all the same.
    assert source.read_encoded(range(200)) == [png(number) for number in range(200)]
    assert sum(len(values) for values in source._cache.values()) <= 50


def test_chunks_in_memory_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path, [60], group=10)
    source, read = stream(tmp_path, shuffle_buffer=30), list[int]()
    original = ShardIndex.read

    def note(index: ShardIndex, chunk: int, column: str) -> list[object]:
        read.append(chunk)
        return original(index, chunk, column)

    monkeypatch.setattr(ShardIndex, "read", note)
    block = np.random.default_rng(0).permutation(30).reshape(6, 5)
    for batch in [*block, *(block + 30)]:
        source.read_encoded(batch.tolist())
    assert sorted(read) == [0, 1, 2, 3, 4, 5]


def test_a_stream_travels_to_other_processes(tmp_path: Path) -> None:
    write_parquet(tmp_path, [40])
    source = stream(tmp_path)
    assert pickle.loads(pickle.dumps(source)).read_encoded([7, 33]) == [png(7), png(33)]


def test_binary_columns_hold_images_too(tmp_path: Path) -> None:
    table = pyarrow.table({"picture": [png(1), png(2)], "number": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert stream(tmp_path, image_column="picture").read_encoded([1]) == [png(2)]


def test_shards_may_hold_paths(tmp_path: Path) -> None:
    for value in (1, 2):
        (tmp_path / f"{value}.png").write_bytes(png(value))
    images = [
        {"bytes": None, "path": str(tmp_path / "1.png")},
        {"bytes": png(2), "path": "in the shard"},
        {"bytes": None, "path": str(tmp_path / "absent.png")},
    ]
    schema = pyarrow.schema(
        {"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})}
    )
    pyarrow.parquet.write_table(pyarrow.table({"image": images}, schema), tmp_path / "a.parquet")
    first, second, absent = stream(tmp_path / "a.parquet").read_encoded([0, 1, 2])
    assert [decode_image(each).getpixel((0, 0)) for each in (first, second)] == [
        (1, 0, 0),
        (2, 0, 0),
    ]
    with pytest.raises(UndecodableImageError, match="absent.png"):
        decode_image(absent)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path, [20, 20])
    shard = tmp_path / "train-00001-of-00002.parquet"
    source, whole = stream(tmp_path), shard.read_bytes()
    shard.write_bytes(b"\0" * (len(whole) // 2) + whole[len(whole) // 2 :])
    with pytest.raises(
        UnreadableShardError, match="train-00001-of-00002.parquet cannot be read"
    ) as error:
        source.read_encoded([20])
    assert "\n" not in str(error.value)
    shard.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="train-00001-of-00002.parquet cannot be read"):
        stream(f"{tmp_path}/train-*")
    with pytest.raises(UnreadableShardError, match="cannot be read"):
        shard.unlink()
        source.read_encoded([39])


def test_damaged_tars_are_named_at_every_cut(tmp_path: Path) -> None:
    path, index = tmp_path / "a.tar", tmp_path / "index.json"
    write_tar(path, 0, 6)
    whole = path.read_bytes()
    write_index(str(path), index)
    with tarfile.open(path) as archive:
        headers = [member.offset for member in archive]
    # From the last header on, what is missing is the end mark alone or unused space.
    for cut in range(0, 6 * 512, 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.tar") as error:
            write_index(str(path), tmp_path / "other.json")
            stream(index).read_encoded([5])
        assert "\n" not in str(error.value)
    for place in headers:
        path.write_bytes(whole[:place] + b"x" + whole[place + 1 :])
        with pytest.raises(
            ValueError, match="damaged header|bad checksum|has . images where its index says 6"
        ):
            write_index(str(path), tmp_path / "other.json")
            stream(index).read_encoded([5])


def test_a_changed_shard_is_noticed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", 0, 6)
    write_index(str(tmp_path / "a.tar"), tmp_path / "index.json")
    source = stream(tmp_path / "index.json")
    write_tar(tmp_path / "a.tar", 0, 5)
    with pytest.raises(
        UnreadableShardError, match="has 5 images where its index says 6: run esvit index again"
    ):
        source.read_encoded([0])


def test_shards_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tar(tmp_path / "a0.tar", 0, 2)
    write_tar(tmp_path / "a1.tar", 2, 3)
    write_index("~/a{0..1}.tar", Path("~/index.json"))
    assert len(stream("~/index.json")) == 5
    assert find_shards("~/a*.tar") == [str(tmp_path / "a0.tar"), str(tmp_path / "a1.tar")]


def test_wrong_places_are_one_line_with_a_remedy(tmp_path: Path) -> None:
    for name in ("pictures", "both", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(1))
    write_tar(tmp_path / "both" / "a.tar", 0, 1)
    labeled(0, 1).to_parquet(tmp_path / "both" / "a.parquet")
    pyarrow.parquet.write_table(labeled(0, 1).data.table.slice(0, 0), tmp_path / "none.parquet")
    for name in ("a.tar.gz", "a.zip"):
        (tmp_path / name).write_bytes(b"")
    for name, text in {
        "words": "no json",
        "other": "{}",
        "list": "[1]",
        "bad": '{"shards": [{"url": "a.tar"}]}',
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "odd.json").write_text(
        json.dumps({"shards": [{"url": "a.tar", "chunks": [[0, -1]]}]})
    )
    cases = {
        "nowhere/at all": "does not exist; give a folder, shards, an index",
        str(tmp_path / "no-*.parquet"): "no file matches",
        str(tmp_path / "no-{0..1}.parquet"): "no-0.parquet cannot be read",
        str(
            tmp_path / "pictures"
        ): r"files such as .*a.png, and shards are .* files: such files need no index and are read "
        "without streaming$",
        str(tmp_path / "a.tar.gz"): "uncompressed .tar files: decompress it$",
        str(tmp_path / "a.zip"): "files: write shards with esvit repack$",
        str(tmp_path / "both" / "*"): "both parquet and tar",
        str(tmp_path / "both" / "a.tar"): "run 'esvit index .*a.tar index.json' once",
        str(tmp_path / "none.parquet"): "holds no image",
        str(tmp_path / "empty"): "cannot be loaded",
        **{
            str(tmp_path / f"{name}.json"): "is not a readable index of shards"
            for name in ("words", "other", "list", "bad", "odd", "missing")
        },
    }
    for place, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            open_index(place)
        assert "\n" not in str(error.value), place
    with pytest.raises(ValueError, match=r"output .* must end with .json"):
        write_index(str(tmp_path / "both" / "a.tar"), tmp_path / "index")


def number(value: str) -> str:
    return f'{{"shards": [{{"url": "a.parquet", "chunks": [[0, {value}]]}}]}}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (number("1" + "0" * 30), "int"),
        (number("9" * 5000), "digits"),
        (number(str(2**62)), "more than 1099511627776 images"),
        (number("1e999"), "infinity|convert|range"),
        (number("NaN"), "NaN"),
        (number('"x"'), "x"),
        (number("[1]"), "sequence|list"),
        ('{"shards": ' + "[" * 100_000, "recursion|depth"),
        ('{"shards": [{"url": "/etc/passwd", "chunks": [[0, 1]]}]}', "/etc/passwd is neither"),
        ('{"shards": {"url": "a.tar"}}', "indices"),
        ("[]", "indices"),
        ("\x00", "Expecting value"),
    ],
)
def test_hostile_indexes_are_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match="is not a readable index of shards") as error:
        open_index(str(tmp_path / "index.json"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert re.search(reason, str(error.value))


@pytest.mark.parametrize("chunk", [[99, 10], [2**62, 10], [0, 2**39]])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_an_index_of_another_shard_is_one_line(tmp_path: Path, kind: str, chunk: list[int]) -> None:
    write_parquet(tmp_path, [10])
    write_tar(tmp_path / "a.tar", 0, 10)
    url = "train-00000-of-00001.parquet" if kind == "parquet" else "a.tar"
    text = json.dumps({"shards": [{"url": url, "chunks": [chunk]}]})
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=f"{url} (cannot be read|has 10 images)") as error:
        stream(tmp_path / "index.json").read_encoded([0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere://host/a.parquet", "cannot be read .*nowhere"),
        ("nowhere://host/*.parquet", "cannot be listed .*nowhere"),
        ("http://[bad/*.parquet", "cannot be listed"),
        ("http://[bad/a.parquet", "cannot be read"),
        ("http://host:port/*.parquet", "cannot be listed"),
        ("file:///nowhere/a.parquet", "cannot be read"),
        ("file:///nowhere/*.parquet", "no file matches"),
    ],
)
def test_addresses_of_no_form_are_one_line(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        open_index(address)
    assert "\n" not in str(error.value)
