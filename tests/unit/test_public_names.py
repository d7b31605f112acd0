"""The names of the package: there at run time, for type checkers, and in the documentation."""

import ast
import importlib.metadata
import inspect
from pathlib import Path

import pytest

import esvit_hf
from esvit_hf.commands.main import COMMANDS

VERBS = {
    *("convert_checkpoint", "evaluate", "extract_features", "list_checkpoints"),
    *("load_backbone", "pretrain", "push", "transfer"),
}
OF_COMMANDS = {
    "convert": "convert_checkpoint",
    "evaluate": "evaluate",
    "features": "extract_features",
    "push": "push",
    "transfer": "transfer",
}


def names_for_type_checkers() -> dict[str, str]:
    """Names that the block for type checkers imports, with their modules."""
    tree = ast.parse(Path(esvit_hf.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        name.asname or name.name: node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }


def test_all_names_are_there() -> None:
    assert set(esvit_hf.__all__) <= set(dir(esvit_hf))
    assert {name for name in esvit_hf.__all__ if name[0].islower()} == VERBS
    for name in esvit_hf.__all__:
        assert getattr(esvit_hf, name) is not None
    assert esvit_hf.__version__ == importlib.metadata.version("esvit-hf")
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        _ = esvit_hf.pretrian  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    assert names_for_type_checkers() == esvit_hf._MODULES


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_verb_says_what_it_takes(verb: str) -> None:
    function = getattr(esvit_hf, verb)
    text = inspect.getdoc(function) or ""
    assert "Args:" in text and "Returns:" in text
    for name, parameter in inspect.signature(function).parameters.items():
        assert f"    {name}: " in text.replace("**", "")
        assert parameter.annotation is not parameter.empty


def test_commands_are_verbs() -> None:
    for command, verb in OF_COMMANDS.items():
        module, _, name = COMMANDS[command].function.partition(":")
        assert (module, name) == (esvit_hf._MODULES[verb], verb)
