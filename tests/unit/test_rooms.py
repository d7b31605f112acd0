"""Which package may use which: none imports another back."""

import ast
from pathlib import Path

import pytest

import esvit_hf

ROOT = Path(esvit_hf.__file__).parent
MAY_IMPORT = {
    "common": set(),
    "data": {"common", "models"},
    "features": {"backbones", "common", "data", "models"},
    "regions": {"backbones", "common", "data", "features", "models"},
}


def rooms_imported_by(file: Path) -> set[str]:
    names = [
        node.module
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module is not None
    ]
    return {name.split(".")[1] for name in names if name.startswith("esvit_hf.")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_know_only_those_below_them(room: str) -> None:
    files = list((ROOT / room).glob("*.py"))
    assert len(files) > 2
    for file in files:
        assert rooms_imported_by(file) - {room} <= MAY_IMPORT[room], file
