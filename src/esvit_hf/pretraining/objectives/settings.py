"""What a recipe says about an objective, apart from what computes it, so that a recipe can be read
without PyTorch.
"""

from dataclasses import dataclass
from typing import Literal

from esvit_hf.common.settings import check_settings, setting


@dataclass(frozen=True)
class ObjectiveSettings:
    """What every objective takes from the recipe; an objective adds its own in a subclass."""

    weight: float = setting("weight of the objective's loss in the sum", 0.5, at_least=0)
    start_epoch: int = setting(
        "epoch at which the objective joins; before it the others carry its weight too",
        0,
        at_least=0,
    )
    weight_end: float | None = setting(
        "weight at the end of the run, if it changes; the others carry what is given up, and at 0 "
        "the objective takes no part",
        None,
        at_least=0,
    )
    weight_shape: Literal["linear", "cosine", "switch"] = setting(
        "how the weight changes: on a line, on half a cosine, or at once", "cosine"
    )
    weight_hold_epochs: int = setting(
        "epochs of the run after which the weight begins to change", 0, at_least=0
    )
    num_prototypes: int | None = setting(
        "prototypes K of this objective, if not heads.num_prototypes", None, above=0
    )
    student_temperature: float | None = setting(
        "temperature of the student, if not heads.student_temperature", None, above=0
    )
    teacher_temperature: float | None = setting(
        "temperature of the teacher after its warm-up, if not schedule.teacher_temperature",
        None,
        above=0,
    )
    center_momentum: float | None = setting(
        "share of the old center that is kept, if not heads.center_momentum",
        None,
        at_least=0,
        at_most=1,
    )


@dataclass(frozen=True)
class RegionMatching:
    """How a student region finds what it learns from; the defaults are EsViT's.

    Raises:
        SettingsError: a value has the wrong type or is out of range; all such problems together.

    Source: EsViT section 3.2 for features; PixPro (arXiv 2011.10043) for positions; VICRegL (arXiv
    2210.01571) for both.
    """

    rule: Literal["feature", "position", "mixture"] = setting(
        "which region of the teacher it is: the one whose backbone feature is most similar, the "
        "one that overlaps most in the image (where crops overlap at all), or both",
        "feature",
    )
    position_share: float = setting(
        "share of the match by position in a mixture; a region that overlaps none is matched by "
        "feature alone",
        0.5,
        above=0,
        at_most=1,
    )
    center_features: bool = setting(
        "compare features less the mean of their image, so that what all regions of an image share "
        "makes no two of them similar",
        False,
    )
    image_center: float = setting(
        "share of the teacher's center that is the mean logit of the image's own regions; the rest "
        "is the moving center of all images; at 1 regions that are all alike have uniform targets",
        0.0,
        at_least=0,
        at_most=1,
    )
    min_regions: int = setting("crops with fewer regions take no part", 1, above=0)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class RegionSettings(ObjectiveSettings):
    """What the objective of regions takes."""

    matching: RegionMatching = RegionMatching()
