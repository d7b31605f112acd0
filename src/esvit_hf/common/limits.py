"""Limits that settings have by default."""

__all__ = ["MAX_IMAGE_PIXELS"]

MAX_IMAGE_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded, unless another limit is given; it is
that of Pillow.
"""
