"""Which objectives there are, and how a run gets its own."""

import pytest

from esvit_hf.pretraining.objectives.base import Objective
from esvit_hf.pretraining.objectives.registry import (
    OBJECTIVES,
    build_objectives,
    default_objectives,
    objective_settings,
    register_objective,
)
from esvit_hf.pretraining.objectives.settings import ObjectiveSettings


def test_objectives_of_a_run_have_one_order_however_the_recipe_names_them():
    settings = {"region": ObjectiveSettings(0.25, 3), "view": ObjectiveSettings(0.75)}
    objectives = build_objectives(settings)
    assert list(objectives) == ["view", "region"]
    assert objectives["region"].settings.start_epoch == 3
    assert list(build_objectives({"region": settings["region"]})) == ["region"]


@pytest.mark.parametrize("name", ["view", "two words", "", "a.b"])
def test_a_name_that_cannot_be_is_refused(name):
    class Other(Objective):
        pass

    Other.name = name
    with pytest.raises(ValueError, match=f"Other has the name '{name}'.*give it another"):
        register_objective(Other)
    assert list(OBJECTIVES) == ["view", "region"]


def test_a_recipe_that_names_none_has_those_of_the_paper(monkeypatch):
    class Other(Objective):
        name = "other"

    monkeypatch.setitem(OBJECTIVES, "other", Other)
    assert list(default_objectives()) == ["view", "region"]
    assert list(objective_settings()) == ["view", "region", "other"]
