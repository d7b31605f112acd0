"""The notebooks of docs/notebooks: `python docs/notebooks.py` runs them and keeps what they show.

For the site, `render` turns a notebook into a page and pictures.
"""

import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"


def run(notebook: dict[str, Any], folder: Path) -> None:
    """Run all cells in a folder where `examples` and `src` are those of the repository.

    Args:
        notebook: its outputs are replaced.
        folder: empty.
    """
    for name in ("examples", "src"):
        (folder / name).symlink_to(ROOT / name)
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells, start=1):
            cell["execution_count"] = number
            cell["outputs"] = _run_cell("".join(cell["source"]), names)
    finally:
        os.chdir(before)


def _run_cell(code: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    pictures: list[bytes] = []

    def display(picture: Any) -> None:
        """Show a Pillow image, or a figure of the package."""
        content = io.BytesIO()
        if hasattr(picture, "figure"):
            picture.figure.savefig(content, format="png", dpi=100)
        else:
            picture.save(content, "PNG")
        pictures.append(content.getvalue())

    names["display"] = display
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(code, "cell", "exec"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        # Where the clone lies is of no use to readers.
        lines = printed.getvalue().replace(f"{ROOT}/", "").splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    for picture in pictures:
        data = {"image/png": base64.b64encode(picture).decode()}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    return outputs


def render(path: Path) -> tuple[str, dict[str, bytes]]:
    """Turn a notebook into Markdown and pictures.

    Args:
        path: of the notebook.

    Returns:
        The text, and the pictures by the names that the text uses.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
                continue
            name = f"{path.stem}_{len(pictures)}.png"
            pictures[name] = base64.b64decode(output["data"]["image/png"])
            parts.append(f"![What the cell shows]({name})")
    return "\n\n".join(parts) + "\n", pictures


def main() -> None:
    """Run all notebooks, or those that are named, and write their outputs."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with TemporaryDirectory() as place:
            run(notebook, Path(place))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
