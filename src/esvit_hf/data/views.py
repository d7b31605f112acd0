"""What the views of an image look like: how many, how large, how much of the image, and which color
operations.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from esvit_hf.common.settings import SettingsError, check_settings, setting

if TYPE_CHECKING:
    from esvit_hf.data.color import ColorSample
    from esvit_hf.data.cropping import Crop


class ViewSample(NamedTuple):
    """One random view of one image.

    Attributes:
        crop: what it shows.
        color: what happens to its colors.
    """

    crop: "Crop"
    color: "ColorSample"


@dataclass(frozen=True)
class ViewSpec:
    """Random views of one kind.

    Raises:
        SettingsError: a value has the wrong type or is out of range; all such problems together.

    Source: EsViT section 4 and its reference code (the augmentation of DINO).
    """

    count: int = setting("views of this kind an image", above=0)
    size: int = setting("side of the view in pixels", above=0)
    scale: tuple[float, float] = setting(
        "smallest and largest share of the image's area", above=0, at_most=1
    )
    teacher: bool = setting("whether the teacher sees these views too (the global views)", False)
    blur_probability: float = setting("of a Gaussian blur", 0.5, at_least=0, at_most=1)
    solarize_probability: float = setting(
        "of inverting all values from 128 on", 0.0, at_least=0, at_most=1
    )
    flip_probability: float = setting("of mirroring left and right", 0.5, at_least=0, at_most=1)
    jitter: tuple[float, float, float, float] = setting(
        "strength of brightness, contrast, saturation and hue jitter; hue at most 0.5",
        (0.4, 0.4, 0.2, 0.1),
        at_least=0,
    )
    jitter_probability: float = setting("of any color jitter", 0.8, at_least=0, at_most=1)
    gray_probability: float = setting("of removing the colors", 0.2, at_least=0, at_most=1)
    blur_sigma: tuple[float, float] = setting(
        "smallest and largest standard deviation of the blur in pixels of the view",
        (0.1, 2.0),
        above=0,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        problems = [
            f"{name} must have the smallest first; it is {low, high}"
            for name, (low, high) in (("scale", self.scale), ("blur_sigma", self.blur_sigma))
            if low > high
        ]
        if self.jitter[3] > 0.5:
            problems.append(f"jitter[3], of the hue, must be at most 0.5; it is {self.jitter[3]}")
        if problems:
            raise SettingsError(problems)

    def sample(self, generator: random.Random, width: int, height: int) -> ViewSample:
        """Sample one view of an image.

        Args:
            generator: source of randomness.
            width: of the image, in pixels.
            height: of the image, in pixels.

        Returns:
            The view; its crop lies within the image.
        """
        # It needs PyTorch, which what describes a view does without.
        from esvit_hf.data.cropping import sample_crop

        crop = sample_crop(
            generator,
            width,
            height,
            scale=self.scale,
            flip_probability=self.flip_probability,
        )
        return ViewSample(crop, self.sample_color(generator))

    def sample_color(self, generator: random.Random) -> "ColorSample":
        """Sample the color operations on one view.

        Args:
            generator: source of randomness.

        Returns:
            The operations.
        """
        from esvit_hf.data.color import JITTER_ORDERS, ColorSample

        sample = ColorSample()
        if generator.random() < self.jitter_probability:
            brightness, contrast, saturation, hue = self.jitter
            sample = ColorSample(
                order=int(generator.random() * len(JITTER_ORDERS)),
                brightness=generator.uniform(max(0.0, 1 - brightness), 1 + brightness),
                contrast=generator.uniform(max(0.0, 1 - contrast), 1 + contrast),
                saturation=generator.uniform(max(0.0, 1 - saturation), 1 + saturation),
                hue=generator.uniform(-hue, hue),
            )
        return sample._replace(
            grayscale=generator.random() < self.gray_probability,
            blur_sigma=generator.uniform(*self.blur_sigma)
            if generator.random() < self.blur_probability
            else 0.0,
            solarize=generator.random() < self.solarize_probability,
        )


def dino_views(
    *,
    global_size: int = 224,
    local_size: int = 96,
    local_count: int = 8,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
) -> list[ViewSpec]:
    """Give the views of the paper: two global ones for student and teacher, and local ones for the
    student.

    Args:
        global_size: side of the global views in pixels.
        local_size: side of the local views in pixels.
        local_count: number of local views; 0 for none.
        global_scale: smallest and largest share of the image's area in a global view.
        local_scale: smallest and largest share of the image's area in a local view.

    Returns:
        One specification each for the first global, the second global and the local views.

    Raises:
        ValueError: a value is out of range.

    Source: EsViT section 4 and its reference code (the augmentation of DINO).
    """
    first = ViewSpec(
        count=1, size=global_size, scale=global_scale, teacher=True, blur_probability=1.0
    )
    second = replace(first, blur_probability=0.1, solarize_probability=0.2)
    if local_count == 0:
        return [first, second]
    return [
        first,
        second,
        ViewSpec(count=local_count, size=local_size, scale=local_scale, blur_probability=0.5),
    ]


def expand_views(views: Sequence[ViewSpec]) -> list[ViewSpec]:
    """List every single view of an image, the teacher's first.

    Args:
        views: specifications, each with its count.

    Returns:
        Specifications with count 1, in the order in which views appear in a batch.

    Raises:
        ValueError: no view is for the teacher.
    """
    if not any(view.teacher for view in views):
        raise ValueError(
            f"none of the {len(views)} views is for the teacher; set teacher=True for the global "
            f"views"
        )
    single = [replace(view, count=1) for view in views for _ in range(view.count)]
    return sorted(single, key=lambda view: not view.teacher)
