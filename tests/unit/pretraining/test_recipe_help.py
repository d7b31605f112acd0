"""The help of `esvit pretrain` tells every field in its group."""

import re

import pytest

from esvit_hf.commands.main import main
from esvit_hf.common.settings import list_settings
from esvit_hf.data.views import ViewSpec
from esvit_hf.pretraining.recipe import Recipe


@pytest.fixture
def groups(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The text of each group, on lines that are joined."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["pretrain", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    parts = re.split(r"^(\S[^\n]*):\n", text, flags=re.MULTILINE)
    return {
        name: " ".join(body.split()) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_every_field_is_in_the_group_of_its_section(groups: dict[str, str]) -> None:
    for each in list_settings(Recipe):
        name = re.sub(r"^objectives\.\w+", "objectives.NAME", each.name)
        assert f"--{name} " in groups[name.partition(".")[0]], each.name
        assert each.help in groups[name.partition(".")[0]], each.name
    for each in list_settings(ViewSpec):
        assert f"{each.name}: " in groups["an entry of data.views"]


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("data", "--data.dataset TEXT Hub name, folder"),
        (
            "heads",
            "--heads.num_prototypes INTEGER|auto prototypes K of each head (default: 65536;",
        ),
        ("heads", "(default: 0.9; from 0 to 1)"),
        ("optimizer", "--optimizer.learning_rate NUMBER|auto peak"),
        ("optimizer", "--optimizer.clip_mode parameter|global"),
        ("run", "(default: [auto])"),
        ("run", "seed of weights, order and crops (default: 0; 0 or more)"),
        ("hub", "--hub.private true|false make the repository private"),
        ("an entry of data.views", "scale: [...]"),
        ("recipe", "RECIPE name of a shipped recipe (auto, demo, "),
    ],
)
def test_a_field_has_its_values_default_and_range(
    group: str, line: str, groups: dict[str, str]
) -> None:
    assert line in groups[group]
