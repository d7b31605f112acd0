"""What a recipe says about an objective, apart from what computes it, so that a recipe can be read
without PyTorch.
"""

from dataclasses import dataclass

from esvit_hf.common.settings import setting


@dataclass(frozen=True)
class ObjectiveSettings:
    """What every objective takes from the recipe; an objective adds its own in a subclass."""

    weight: float = setting("weight of the objective's loss in the sum", 0.5, above=0)
    start_epoch: int = setting(
        "epoch at which the objective joins; before it the others carry its weight too",
        0,
        at_least=0,
    )
