"""The notebooks run, and hold what they showed when they were last run."""

import json
import runpy
from pathlib import Path

import pytest
from tests.support.paths import ROOT

PROGRAM = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# A shorter run on fewer images shows as many outputs.
SHORTER = {
    'max_steps\\": 60': 'max_steps\\": 4',
    "train[:500]": "train[:100]",
    "train[:1000]": "train[:100]",
    "test[:200]": "test[:40]",
    "test[:500]": "test[:40]",
}


def test_there_is_one_for_each_job() -> None:
    assert len(NOTEBOOKS) == 3
    contents = [path.read_text(encoding="utf-8") for path in NOTEBOOKS]
    assert all(any(long in content for content in contents) for long in SHORTER)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = path.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        content = content.replace(long, short)
    notebook = json.loads(content)

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
