"""The rooms of the package: what stands where, and which room may import which."""

from pathlib import Path

import pytest
from tests.support.imports import imported_modules
from tests.support.paths import ROOT

import esvit_hf

SOURCES = Path(esvit_hf.__file__).parent
BELOW: dict[str, set[str]] = {
    # Imports of rooms further up only, so that no two rooms import each other.
    "acceleration": set(),
    "common": set(),
    "figures": {"common"},
    "models": set(),
    "registration": {"models"},
    "backbones": {"acceleration", "common", "models"},
    "data": {"common", "models"},
    "hub": {"common", "models", "registration"},
    "export": {"common", "models"},
    "features": {"acceleration", "backbones", "common", "data", "models"},
    "regions": {"backbones", "common", "data", "features", "models"},
    "evaluation": {
        *("backbones", "common", "data", "features", "figures", "hub", "models", "regions"),
    },
    "pretraining": {
        *("acceleration", "backbones", "common", "data", "evaluation", "features", "hub"),
        *("models", "registration"),
    },
    # Whose names the heads in the authors' files get.
    "reference": {"common", "hub", "models", "pretraining"},
    "zoo": {"common", "hub", "reference"},
    "page": {"backbones", "common", "data", "features", "figures", "regions"},
}
"""By room, the rooms that it may import. `commands` and the package itself bind all of them."""


def rooms_imported(room: str) -> dict[str, set[str]]:
    """Other rooms that a room's files import, with the files."""
    found: dict[str, set[str]] = {}
    for path in (SOURCES / room).rglob("*.py"):
        for module in imported_modules(path):
            first, *rest = module.split(".")
            if first == "esvit_hf" and rest[:1] != [room]:
                found.setdefault(rest[0] if rest else "esvit_hf", set()).add(path.name)
    return found


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {path.name for path in SOURCES.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {*BELOW, "commands"}
    order = list(BELOW)
    for room, allowed in BELOW.items():
        assert all(order.index(other) < order.index(room) for other in allowed), room


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_those_below_it(room: str) -> None:
    assert {
        other: files for other, files in rooms_imported(room).items() if other not in BELOW[room]
    } == {}


def test_nobody_imports_the_commands_or_the_package_itself() -> None:
    for room in BELOW:
        assert not {"commands", "esvit_hf"} & set(rooms_imported(room)), room


def test_networks_import_files_of_their_folder_by_dots_alone() -> None:
    relative = {
        path.relative_to(SOURCES).as_posix(): module
        for path in SOURCES.rglob("*.py")
        for module in imported_modules(path)
        if module.startswith(".") and path.parent != SOURCES / "models"
    }
    assert relative == {}
    for path in (SOURCES / "models").iterdir():
        assert path.is_file() or path.name == "__pycache__"
        if path.suffix == ".py":
            modules = list(imported_modules(path))
            assert not any(module.startswith(("esvit_hf", "..")) for module in modules), path.name


def test_no_file_stands_outside_a_room() -> None:
    files = {path.name for path in SOURCES.iterdir() if path.is_file()}
    assert files == {"__init__.py", "py.typed"}


def test_no_test_imports_a_benchmark() -> None:
    assert [
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        for module in imported_modules(path)
        if module.split(".")[0] == "benchmarks"
    ] == []
