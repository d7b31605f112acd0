"""Rows of a whole source: what was written before a stop is not computed again, and memory holds a
part.
"""

import json
import multiprocessing
import signal
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.support.paths import ROOT
from tests.support.photo_folders import noise, save_model
from tests.support.process_group import start_program

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands import main as commands
from esvit_hf.features import store as feature_store
from esvit_hf.features.row_features import RowOptions
from esvit_hf.features.row_output import RowOutput
from esvit_hf.features.row_writing import write_features
from esvit_hf.features.rows import TableRows, open_rows
from esvit_hf.features.store import FeatureStore


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("name", ["rows.parquet", "rows-{shard}.parquet"])
def test_what_was_written_before_a_stop_is_not_computed_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for seed in range(9):
        noise(seed).save(tmp_path / "photos" / f"{seed}.jpg")
    (tmp_path / "photos" / "1.jpg").write_text("no image")
    store = FeatureStore(tmp_path / "kept", str(tmp_path / "model"), num_workers=0)
    rows = open_rows(tmp_path / "photos")
    assert isinstance(rows, TableRows)
    read: list[int] = []
    stop_at: list[int] = [8]
    encoded = rows.read_encoded

    def read_encoded(indices: list[int]) -> list[object]:
        if set(indices) & set(stop_at):
            raise _StoppedError
        read.extend(indices)
        return encoded(indices)

    monkeypatch.setattr(rows, "read_encoded", read_encoded)

    def write(folder: str) -> list[dict[str, object]]:
        output = RowOutput(tmp_path / folder / name, regions=False, overwrite=False)
        report = write_features(store, rows, output, RowOptions(batch_size=2, num_workers=0), 3)
        assert report is not None
        assert (report["rows"], list(report["broken"])) == (8, ["1.jpg"])
        tables = [pyarrow.parquet.read_table(path) for path in report["output"]]
        return pyarrow.concat_tables(tables).to_pylist()

    with pytest.raises(_StoppedError):
        write("stopped")
    read.clear()
    stop_at.clear()
    with pytest.warns(UserWarning, match="1 of 9 images cannot be decoded"):
        found = write("stopped")
    assert read == [6, 7, 8]
    with pytest.warns(UserWarning, match="1 of 9 images cannot be decoded"):
        assert write("whole") == found


def test_images_are_read_while_the_network_is_loaded_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    noise(0).save(tmp_path / "photos" / "0.png")
    folder = tmp_path / "features"
    workers: list[int] = []

    def load(*words: object, **options: object) -> RegionBackbone:
        assert not folder.exists()
        workers.append(len(multiprocessing.active_children()))
        return load_backbone(str(tmp_path / "model"))

    monkeypatch.setattr(feature_store, "load_backbone", load)
    store = FeatureStore(tmp_path / "kept", str(tmp_path / "model"))
    output = RowOutput(folder / "rows.parquet", regions=False, overwrite=False)
    write_features(store, open_rows(tmp_path / "photos"), output, RowOptions(num_workers=1), 1)
    assert workers == [1]
    assert [path.name for path in folder.iterdir()] == ["rows.parquet"]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    few, many, width = 1000, 5000, 8192
    program = [str(ROOT / "benchmarks" / "features_memory.py"), "--rows", f"[{few}, {many}]"]
    program += ["--width", str(width), "--rows_per_shard", "200"]
    process = start_program(program, tmp_path / "output.txt")
    process.join()
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 0, output
    first, second = json.loads(output.splitlines()[-1])
    assert second["peak"] - first["peak"] < 0.25 * (many - few) * 4 * width / 2**20


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed by `kill -9` between two parts or within one, it ends with the rows of a whole run."""
    save_model(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for seed in range(100):
        noise(seed, 36, 36).save(tmp_path / "photos" / f"{seed:03d}.png")
    monkeypatch.chdir(tmp_path)
    words = ["features", "model", "photos", "--rows_per_shard", "1", "--num_workers", "0"]
    program = [commands.__file__, *words, "--output", "stopped/"]
    process = start_program(program, tmp_path / "output.txt")
    shards = tmp_path / "stopped"
    while process.is_alive() and not (shards / "features-00003.parquet").exists():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    state = shards / ".features-_shard_05d_.parquet.parts"
    before = {path.stem: path.stat().st_mtime_ns for path in state.glob("0*.json")}
    written = {path: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert 3 <= len(before) < 100
    for output in ("stopped/", "whole.parquet"):
        assert commands.main([*words, "--output", output]) == 0
    kept = [path for path in written if path.stem[-5:] in before]
    assert all(path.stat().st_mtime_ns == written[path] for path in kept)
    assert {path.name for path in shards.iterdir()} == {
        f"features-{number:05d}.parquet" for number in range(100)
    }
    found = pyarrow.concat_tables([pyarrow.parquet.read_table(p) for p in sorted(shards.iterdir())])
    whole = pyarrow.parquet.read_table(tmp_path / "whole.parquet")
    assert found.to_pylist() == whole.to_pylist()
