"""Rows of a whole source: what was written before a stop is not computed again, and memory holds a
part.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.support.feature_memory import FEW, MANY, ROW_BYTES
from tests.support.paths import ROOT
from tests.support.photo_folders import noise, save_model

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


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.feature_memory", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 0.25 * (MANY - FEW) * ROW_BYTES
