"""Every block of code of docs/features.md runs as it stands, one after the other."""

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from tests.support.paths import ROOT
from tests.support.process_group import run_on_processes

from esvit_hf.commands.main import main

PAGE = ROOT / "docs" / "features.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LAUNCH = "accelerate launch --num_processes 2 -m"


def run_module(words: list[str]) -> None:
    """As a launcher does in each process."""
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def run_shell(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if line.startswith(LAUNCH):
            run_on_processes(2, run_module, words[len(LAUNCH.split()) :])
        elif words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
        else:
            assert words[0] == "esvit"
            assert main(words[1:]) == 0


@pytest.mark.distributed
def test_every_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "photos" / "small").mkdir(parents=True)
    for path in (ROOT / "src/esvit_hf/page/photographs").glob("*.jpg"):
        image = Image.open(path).resize((120, 80))
        image.save(tmp_path / "photos" / path.name)
    image.resize((100, 70)).save(tmp_path / "photos" / "small" / path.name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "shards").mkdir()
    encoded = [
        {"bytes": path.read_bytes(), "path": path.name} for path in Path("photos").glob("*.*g")
    ]
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded}), "shards/train-0.parquet")
    names: dict[str, Any] = {}
    for language, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        capsys.readouterr()
        if language == "python":
            exec(compile(block, PAGE, "exec"), names)
            for expected in re.findall(r"# (\[.*\])$", block, re.MULTILINE):
                assert expected in capsys.readouterr().out
        else:
            run_shell(block, monkeypatch)
            printed = capsys.readouterr().out
    assert f"{Path('small') / path.name}" in printed.split("outliers")[0]
    one = pyarrow.parquet.read_table("photos.parquet")
    assert one.num_rows == 13
    shards = sorted(Path("shared").iterdir())
    assert [path.name for path in shards] == [f"features-{n:05d}.parquet" for n in range(4)]
    many = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in shards])
    assert many["file"].to_pylist() == one["file"].to_pylist()
    assert {path.name for path in Path("look").iterdir()} == {"duplicates.png", "outliers.png"}
