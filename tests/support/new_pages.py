"""Pages of memory that a process gets from the system."""

import resource

from PIL import Image


def pages_of_a_photograph() -> int:
    """Make the pixels of a photograph, and return the pages that the process got for them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    image = Image.new("RGB", (2560, 1708))
    pixels = bytearray(image.tobytes())
    del image, pixels
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
