"""The notebooks run, and hold what they showed when they were last run."""

import json
import runpy
from pathlib import Path

import pytest
from tests.support.paths import ROOT

PROGRAM = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# A shorter run shows as many outputs.
LONG, SHORT = 'max_steps\\": 60', 'max_steps\\": 4'


def test_there_is_one_for_each_job() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = path.read_text(encoding="utf-8")
    if path.stem == "pretrain_on_your_images":
        assert LONG in content
    notebook = json.loads(content.replace(LONG, SHORT))

    def shown() -> list[list[str]]:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return [[output["output_type"] for output in cell["outputs"]] for cell in cells]

    kept = shown()
    assert any(kept)
    (tmp_path / "work").mkdir()
    PROGRAM["run"](notebook, tmp_path / "work")
    assert shown() == kept
    text, pictures = PROGRAM["render"](path)
    assert all(f"({name})" in text for name in pictures)
