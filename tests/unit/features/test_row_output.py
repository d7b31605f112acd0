"""Where rows go: names of files, and what a stopped run leaves."""

from pathlib import Path

import pyarrow
import pytest

from esvit_hf.features.row_output import RowOutput

SETTINGS = {"model_revision": "a", "blocks": 1}


def table(*values: float) -> pyarrow.Table:
    feature = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values, pyarrow.float32()), 1)
    return pyarrow.table({"index": range(len(values)), "feature": feature})


def open_output(output: str | Path, *, overwrite: bool = False) -> RowOutput:
    return RowOutput(output, regions=False, overwrite=overwrite)


@pytest.mark.parametrize(
    ("output", "shard"),
    [
        ("rows", "rows/features-00012.parquet"),
        ("rows.v2/", "rows.v2/features-00012.parquet"),
        ("there.v3", "there.v3/features-00012.parquet"),
        ("rows/{shard}.csv", "rows/12.csv"),
        ("a/b/rows-{shard:03d}-x.npy", "a/b/rows-012-x.npy"),
    ],
)
def test_names_of_shards(
    output: str, shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.v3").mkdir()
    rows = open_output(output)
    rows.begin(SETTINGS)
    rows.write_part(12, table(1), {})
    assert Path(shard).is_file()
    assert rows.is_kept(12) and not rows.is_kept(11)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    first = open_output(path)
    first.begin(SETTINGS)
    first.write_part(1, table(3), {"a.jpg": "broken"})
    second = open_output(path)
    second.begin(SETTINGS)
    assert [second.is_kept(number) for number in range(3)] == [False, True, False]
    second.write_part(0, table(1, 2), {})
    second.write_part(2, None, {"b.jpg": "broken"})
    paths, records = second.finish(3)
    assert paths == [path]
    assert pyarrow.parquet.read_table(path)["feature"].to_pylist() == [[1], [2], [3]]
    assert [(record.rows, record.dimension) for record in records] == [(2, 1), (1, 1), (0, 0)]
    assert [list(record.broken) for record in records] == [[], ["a.jpg"], ["b.jpg"]]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["rows.parquet", "rows-{shard}.parquet"])
def test_a_run_with_other_settings_does_not_go_on(name: str, tmp_path: Path) -> None:
    first = open_output(tmp_path / name)
    first.begin(SETTINGS)
    first.write_part(0, table(1), {})
    first.write_part(1, table(2), {})
    second = open_output(tmp_path / name)
    with pytest.raises(ValueError, match="begun with another blocks and another regions: call it"):
        second.check({**SETTINGS, "blocks": 2, "regions": True})
    second.check(SETTINGS)
    anew = open_output(tmp_path / name, overwrite=True)
    anew.check({**SETTINGS, "blocks": 2})
    assert second.is_kept(1) and not anew.is_kept(1)
    anew.begin({**SETTINGS, "blocks": 2})
    assert not second.is_kept(1)
    assert [path.name for path in tmp_path.iterdir()] == [anew.state.name]


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path, beside = tmp_path / "rows-7.npy", tmp_path / "rows-x.npy"
    for kept in (path, tmp_path / "rows-7.npy.rows.csv", beside):
        kept.write_text("kept")
    for output in (path, tmp_path / "rows-{shard}.npy"):
        with pytest.raises(ValueError, match=r"rows-7.npy.* is there already: .* --overwrite"):
            open_output(output)
    open_output(path, overwrite=True).begin(SETTINGS)
    assert path.read_text() == "kept"
    open_output(tmp_path / "rows-{shard}.npy", overwrite=True).begin(SETTINGS)
    assert beside.is_file() and not path.exists()


def test_nothing_is_left_beside_a_part_that_could_not_be_written(tmp_path: Path) -> None:
    output = open_output(tmp_path / "rows" / "{shard}.csv")
    output.begin(SETTINGS)
    (tmp_path / "rows" / "0.csv").mkdir()
    with pytest.raises(OSError, match=r"0\.csv"):
        output.write_part(0, table(1), {})
    assert not output.is_kept(0)
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {"0.csv", output.state.name}
