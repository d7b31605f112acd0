"""No file of the package reads pickles that could run code, and pickles are written in one place
only.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import esvit_hf

SOURCES = Path(esvit_hf.__file__).parent
# The reference's format.
WRITES_PICKLES = {"reference/folders.py"}


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield node


def unsafe_loads(code: str) -> list[int]:
    """Lines that load with torch, or Accelerate's wrapper of it, without saying
    weights_only=True.
    """
    tree = ast.parse(code)
    return [
        call.lineno
        for call in calls(tree, "torch.load", "load")
        if not any(
            word.arg == "weights_only" and ast.unparse(word.value) == "True"
            for word in call.keywords
        )
    ]


def modules(code: str) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    return imported


@pytest.mark.parametrize(
    "path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.relative_to(SOURCES).as_posix()
)
def test_nothing_loaded_can_run(path: Path) -> None:
    code = path.read_text()
    assert unsafe_loads(code) == []
    # Accelerate would read and write pickles.
    assert not {"save_state", "load_state"} & {
        node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)
    }
    # pickle.UnpicklingError is the name of an error, and the one use of the module.
    uses = code.replace("pickle.UnpicklingError", "")
    assert "pickle." not in uses and not {"cPickle", "dill", "joblib", "cloudpickle"} & modules(
        code
    )
    if path.relative_to(SOURCES).as_posix() not in WRITES_PICKLES:
        assert not list(calls(ast.parse(code), "torch.save"))


def test_the_check_itself_finds_what_it_looks_for() -> None:
    assert unsafe_loads(
        "import torch\ntorch.load(f)\ntorch.load(f, weights_only=False)\nload(f, weights_only=True)"
    ) == [2, 3]
