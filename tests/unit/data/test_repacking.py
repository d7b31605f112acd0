"""Packs of the reference as parquet: every sound row once, what is broken named, and safe to
interrupt.
"""

import base64
import io
import json
import zipfile
import zlib
from pathlib import Path

import datasets
import pytest
from PIL import Image

from esvit_hf.data import repacking
from esvit_hf.data.loading import load_dataset_split
from esvit_hf.data.packs import TsvPack
from esvit_hf.data.repacking import repack
from esvit_hf.data.sources import ImageSource
from esvit_hf.data.streaming import open_stream


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_zip(
    folder: Path, count: int, more: dict[str, bytes] | None = None, lines: str = ""
) -> Path:
    """A pack whose image i has label i % 3."""
    names = [f"n{i % 3:08d}/n{i % 3:08d}_{i}.JPEG" for i in range(count)]
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, png(i))
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    (folder / "train_map.txt").write_text(
        "".join(f"{name}\t{i % 3}\n" for i, name in enumerate(names)) + lines
    )
    return folder / "train.zip"


def tsv_line(key: str, label: str, image: bytes) -> bytes:
    return f"{key}\t{label}\t".encode() + base64.b64encode(image) + b"\n"


def contents(output: Path) -> dict[int, int | str]:
    """Label of each image, by its red value."""
    rows = load_dataset_split(str(output), split="train")
    images = ImageSource(rows).read(range(len(rows)))
    red = [image.getpixel((0, 0))[0] for image in images]
    assert len(red) == len(set(red))
    return dict(zip(red, rows["label"][:], strict=True))


def test_zip_with_its_map(tmp_path: Path) -> None:
    result = repack(write_zip(tmp_path, 25), tmp_path / "out", shard_size=10)
    assert result == {"output": str(tmp_path / "out"), "shards": 3, "images": 25, "left_out": 0}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"train-{shard:05d}-of-00003.parquet" for shard in range(3)
    ]
    assert contents(tmp_path / "out") == {i: i % 3 for i in range(25)}
    row = datasets.load_dataset(str(tmp_path / "out"), split="train").with_format("arrow")[0]
    assert row["image"].to_pylist()[0]["path"].endswith(".JPEG")
    assert len(open_stream(str(tmp_path / "out"), shuffle_buffer=8)) == 25


def test_rows_are_shuffled_by_the_seed_or_not_at_all(tmp_path: Path) -> None:
    pack = write_zip(tmp_path, 25)
    orders = {}
    for name, seed in {"a": 0, "b": 0, "c": 1, "d": None}.items():
        repack(pack, tmp_path / name, shard_size=100, shuffle_seed=seed)
        orders[name] = list(contents(tmp_path / name))
    assert orders["a"] == orders["b"] != orders["c"]
    assert orders["d"] == sorted(orders["a"]) == list(range(25))


def test_map_with_the_name_of_the_zip_file(tmp_path: Path) -> None:
    pack = write_zip(tmp_path, 3)
    path = tmp_path / "train_map.txt"
    path.write_text(
        "".join(f"train.zip@/{line}\r\n" for line in path.read_text().splitlines()) + "\n"
    )
    repack(pack, tmp_path / "out")
    assert contents(tmp_path / "out") == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize("with_index", [False, True])
def test_tsv_files_with_numbers(tmp_path: Path, with_index: bool) -> None:
    (tmp_path / "pack").mkdir()
    for file, (first, last) in {"a": (0, 7), "b": (7, 12)}.items():
        lines = [tsv_line(f"key_{i}", str(i % 3), png(i)) for i in range(first, last)]
        (tmp_path / "pack" / f"{file}.tsv").write_bytes(b"".join(lines))
        if with_index:
            starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
            (tmp_path / "pack" / f"{file}.lineidx").write_text(
                "".join(f"{start}\n" for start in starts)
            )
    repack(tmp_path / "pack", tmp_path / "out")
    assert contents(tmp_path / "out") == {i: i % 3 for i in range(12)}


def test_tsv_with_names_of_classes(tmp_path: Path) -> None:
    labels = [json.dumps([{"class": name, "rect": [0, 0, 1, 1]}]) for name in ("dog", "ape", "dog")]
    lines = [tsv_line(f"k{i}", label, png(i)) for i, label in enumerate(labels)]
    (tmp_path / "train.tsv").write_bytes(b"".join(lines))
    repack(tmp_path / "train.tsv", tmp_path / "out")
    assert contents(tmp_path / "out") == {0: "dog", 1: "ape", 2: "dog"}


def test_broken_rows_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "gone.JPEG\t1\nno tab\nn00000000/n00000000_0.JPEG\tcat\ntext.JPEG\t0\nbomb.JPEG\t2\n"
    bomb = bytearray(png(9))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    pack = write_zip(tmp_path, 5, {"text.JPEG": b"no image", "bomb.JPEG": bytes(bomb)}, lines)
    for _ in range(2):
        # The second time nothing is written, and the same is said.
        result = repack(pack, tmp_path / "out", shard_size=4)
        assert (result["images"], result["left_out"]) == (5, 5)
        printed = capsys.readouterr().out
        assert "line 6 of " in printed and "gone.JPEG is not in the zip file" in printed
        assert "line 7 of " in printed and "not 'path<TAB>class number'" in printed
        assert "line 8 of " in printed and "the label 'cat' is no class number" in printed
        assert "line 9 of " in printed and "no image format" in printed
        assert "line 10 of " in printed and "limit" in printed
    assert contents(tmp_path / "out") == {i: i % 3 for i in range(5)}


def test_broken_tsv_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        *(tsv_line("a", "0", png(0)), b"only\ttwo\n", b"b\t1\t***\n", tsv_line("c", "[]", png(2))),
        *(
            b"\xff\xfe\t1\t" + base64.b64encode(png(3)) + b"\n",
            tsv_line("d", '[{"class": "ape"}]', png(4)),
        ),
        tsv_line("e", "1", png(5)).rstrip(b"\n")[:-9],
    ]
    (tmp_path / "train.tsv").write_bytes(b"".join(lines))
    result = repack(tmp_path / "train.tsv", tmp_path / "out", shuffle_seed=None)
    assert (result["images"], result["left_out"]) in {(1, 6), (2, 5)}
    printed = capsys.readouterr().out
    for reason in (
        "2 columns",
        "not base64",
        "has no class",
        "not UTF-8",
        "another kind than the others",
    ):
        assert reason in printed


def test_damaged_zip_members_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = write_zip(tmp_path, 4)
    data = bytearray(pack.read_bytes())
    place = data.find(png(2))
    data[place + 20] ^= 0xFF
    pack.write_bytes(data)
    assert repack(pack, tmp_path / "out")["images"] == 3
    assert "cannot be unpacked (Bad CRC-32" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, output = write_zip(tmp_path, 25), tmp_path / "out"
    original, calls = repacking.open_image, 0

    def interrupt(data: object, **limits: int) -> object:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return original(data, **limits)

    monkeypatch.setattr(repacking, "open_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        repack(pack, output, shard_size=10)
    first = output / "train-00000-of-00003.parquet"
    assert [path for path in output.iterdir() if not path.name.startswith(".")] == [first]
    written = first.stat().st_mtime_ns
    assert repack(pack, output, shard_size=10)["images"] == 25
    assert first.stat().st_mtime_ns == written
    assert not list(output.glob(".*"))
    assert contents(output) == {i: i % 3 for i in range(25)}


def test_packs_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pack = write_zip(tmp_path, 3)
    assert repack(Path("~") / pack.name, Path("~/out"))["images"] == 3
    assert len(contents(tmp_path / "out")) == 3


def test_what_cannot_be_packed_is_refused_in_one_line(tmp_path: Path) -> None:
    pack = write_zip(tmp_path, 4)
    repack(pack, tmp_path / "out")
    (tmp_path / "lonely.zip").write_bytes(pack.read_bytes())
    (tmp_path / "cut.zip").write_bytes(pack.read_bytes()[:-30])
    (tmp_path / "cut_map.txt").write_text("a\t0\n")
    (tmp_path / "none.tsv").write_text("")
    (tmp_path / "bad.tsv").write_text("a\nb\n")
    (tmp_path / "text.tsv").write_bytes(tsv_line("a", "0", b"text"))
    (tmp_path / "index.tsv").write_bytes(tsv_line("a", "0", png(0)))
    (tmp_path / "index.lineidx").write_text("zero\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    cases = [
        (tmp_path / "lonely.zip", "a", {}, "needs .*lonely_map.txt beside it"),
        (tmp_path / "cut.zip", "a", {}, "cannot be read as a zip file"),
        (tmp_path / "none.tsv", "a", {}, "has no rows"),
        (tmp_path / "bad.tsv", "a", {}, "no row of the pack can be read"),
        (tmp_path / "text.tsv", "a", {}, "no row of train-00000-of-00001.parquet holds an image"),
        (tmp_path / "index.tsv", "a", {}, "index.lineidx must hold a number a line"),
        (tmp_path / "folder", "a", {}, "is no pack"),
        (tmp_path / "nowhere", "a", {}, "is no pack"),
        (pack, "a", {"shard_size": 0}, "shard_size is 0"),
        (
            pack,
            "out",
            {"shuffle_seed": 1},
            "was written with .* and not with .*: give another output folder",
        ),
        (pack, "strange", {}, "was not written by esvit repack"),
    ]
    for source, output, options, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            repack(source, tmp_path / output, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").glob("*.parquet"))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("0 5000", "does not belong to .*a.tsv, which has {size} bytes: remove it"),
        ("0", "does not belong"),
        ("", "does not belong"),
        ("{second} 0", "does not belong"),
        ("0 0", "does not belong"),
        ("-5 {second}", "does not belong"),
        ("0 99999999999999999999", "must hold a number a line"),
        ("0 1.5", "must hold a number a line"),
        ("zero", "must hold a number a line"),
    ],
)
def test_a_damaged_index_is_one_line(tmp_path: Path, index: str, message: str) -> None:
    lines = [tsv_line(f"k{number}", str(number), png(number)) for number in range(2)]
    (tmp_path / "a.tsv").write_bytes(b"".join(lines))
    known = {"second": len(lines[0]), "size": sum(map(len, lines))}
    (tmp_path / "a.lineidx").write_text(index.format(**known))
    with pytest.raises(ValueError, match=message.format(**known)) as error:
        repack(tmp_path / "a.tsv", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_index_into_the_middle_of_a_line_is_a_broken_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [tsv_line(f"k{number}", str(number), png(number)) for number in range(2)]
    (tmp_path / "a.tsv").write_bytes(b"".join(lines) + b"\n")
    (tmp_path / "a.lineidx").write_text(f"0 {len(lines[0]) + 2}")
    assert repack(tmp_path / "a.tsv", tmp_path / "out")["left_out"] == 1
    assert "no line starts at byte" in capsys.readouterr().out
    assert TsvPack([tmp_path / "a.tsv"]).describe(1) == f"line 2 of {tmp_path / 'a.tsv'}"
