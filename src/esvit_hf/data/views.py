"""What the views of an image look like: how many, how large, how much of the image, and which color
operations.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from esvit_hf.data.color import JITTER_ORDERS, ColorSample
from esvit_hf.data.cropping import Crop, sample_crop


class ViewSample(NamedTuple):
    """One random view of one image.

    Attributes:
        crop: what it shows.
        color: what happens to its colors.
    """

    crop: Crop
    color: ColorSample


@dataclass(frozen=True)
class ViewSpec:
    """Random views of one kind.

    Args:
        count: views of this kind an image.
        size: side of the view in pixels.
        scale: smallest and largest share of the image's area.
        teacher: whether the teacher sees these views too (the global views).
        blur_probability: of a Gaussian blur.
        solarize_probability: of inverting all values from 128 on.
        flip_probability: of mirroring left and right.
        jitter: strength of brightness, contrast, saturation and hue jitter; hue at most 0.5.
        jitter_probability: of any color jitter.
        gray_probability: of removing the colors.
        blur_sigma: smallest and largest standard deviation of the blur in pixels of the view.

    Raises:
        ValueError: a value is out of range.

    Source: EsViT section 4 and its reference code (the augmentation of DINO).
    """

    count: int
    size: int
    scale: tuple[float, float]
    teacher: bool = False
    blur_probability: float = 0.5
    solarize_probability: float = 0.0
    flip_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        for field in ("count", "size"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _bad_value(field, value, "a whole number from 1 on")
        for field in ("blur", "solarize", "flip", "jitter", "gray"):
            value = getattr(self, f"{field}_probability")
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise _bad_value(f"{field}_probability", value, "a number from 0 to 1")
        self._check_numbers("scale", 2, "two numbers with 0 < smallest <= largest <= 1")
        self._check_numbers("blur_sigma", 2, "two numbers with 0 < smallest <= largest")
        self._check_numbers(
            "jitter",
            4,
            "four numbers from 0 on: brightness, contrast, saturation, hue (at most 0.5)",
        )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise _bad_value("scale", self.scale, "two numbers with 0 < smallest <= largest <= 1")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise _bad_value(
                "blur_sigma", self.blur_sigma, "two numbers with 0 < smallest <= largest"
            )
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise _bad_value(
                "jitter", self.jitter, "four numbers from 0 on, the last (hue) at most 0.5"
            )

    def _check_numbers(self, field: str, length: int, remedy: str) -> None:
        """Check a sequence of numbers, and make it a tuple: recipes hold lists."""
        value = getattr(self, field)
        if (
            not isinstance(value, (tuple, list))
            or len(value) != length
            or not all(isinstance(number, (int, float)) for number in value)
        ):
            raise _bad_value(field, value, remedy)
        object.__setattr__(self, field, tuple(float(number) for number in value))

    def sample(self, generator: random.Random, width: int, height: int) -> ViewSample:
        """Sample one view of an image.

        Args:
            generator: source of randomness.
            width: of the image, in pixels.
            height: of the image, in pixels.

        Returns:
            The view; its crop lies within the image.
        """
        crop = sample_crop(
            generator,
            width,
            height,
            scale=self.scale,
            flip_probability=self.flip_probability,
        )
        return ViewSample(crop, self.sample_color(generator))

    def sample_color(self, generator: random.Random) -> ColorSample:
        """Sample the color operations on one view.

        Args:
            generator: source of randomness.

        Returns:
            The operations.
        """
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


def _bad_value(field: str, value: object, remedy: str) -> ValueError:
    return ValueError(f"{field} of a view is {value!r}; set it to {remedy}")
