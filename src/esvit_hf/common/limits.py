"""Limits of settings."""

__all__ = ["MAX_IMAGE_PIXELS", "check_least"]

MAX_IMAGE_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded, unless another limit is given; it is
that of Pillow.
"""


def check_least(**settings: tuple[int, int]) -> None:
    """Refuse settings that are too small, before anything is computed.

    Args:
        settings: by their names, what each is and what it must be at least.

    Raises:
        ValueError: one is smaller; all such problems together.
    """
    wrong = [
        f"{name} is {value}: give {least} or more"
        for name, (value, least) in settings.items()
        if value < least
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
