"""The one look of all figures: legible in print and for the color-blind."""

import errno
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from esvit_hf.common.files import check_writable, write_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "COLOR_MAP",
    "FORMATS",
    "Picture",
    "check_picture_path",
    "new_picture",
    "shrink",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which white paper swallows."""

COLOR_MAP = "cividis"
"""Dark to light for values: the same order for every kind of color vision, and in gray."""

FORMATS = (".png", ".pdf")

_LARGEST_SIDE = 1000
_INSTALL_HINT = "figures need matplotlib: pip install 'esvit-hf[plots]'"

_LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

# Typed loosely: the names of matplotlib's settings are a closed list of its own.
_STYLE: Any = {
    "font.family": "sans-serif",
    # Comes with matplotlib, so that a figure looks the same on every machine.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "image.cmap": COLOR_MAP,
    "image.interpolation": "nearest",
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    # Type 42 keeps the text of a PDF searchable.
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Picture:
    """A finished figure.

    Attributes:
        figure: matplotlib's figure, without a window or global state.
    """

    figure: "Figure"

    def save(self, path: Path) -> None:
        """Write the figure, making the folders above it.

        Args:
            path: file that ends in .png or .pdf.

        Raises:
            ValueError: another ending, or the file cannot be written.
        """
        check_picture_path(path)
        import matplotlib

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with matplotlib.rc_context(_STYLE), write_aside(path) as aside:
                self.figure.savefig(aside)
        except OSError as error:
            raise ValueError(
                f"cannot write {path} ({error.strerror}): choose another file"
            ) from error


def check_picture_path(path: Path) -> None:
    """Check that a picture can be drawn and saved, before anything is computed for it.

    Args:
        path: file to write.

    Raises:
        ValueError: it does not end in one of `FORMATS`, cannot be written, or matplotlib is
            missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"the picture {str(path)!r} must end in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(_INSTALL_HINT)
    try:
        check_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): choose another file") from error


@contextmanager
def new_picture(width: float, height: float) -> Iterator[Picture]:
    """Draw in the project's look: what is added to the figure inside the `with` block follows it.

    Lines take `COLORS` in order, each with a dash pattern of its own.

    Args:
        width: inches; a page of text is 6.3 wide.
        height: inches.

    Yields:
        An empty picture.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.rcsetup import cycler
    except ImportError as error:
        raise ImportError(_INSTALL_HINT) from error
    lines = cycler(color=COLORS) + cycler(linestyle=_LINE_STYLES)
    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": lines}):
        yield Picture(Figure(figsize=(width, height)))


def shrink(image: Image.Image) -> Image.Image:
    """Make a photograph no larger than a figure can show.

    Args:
        image: stays as it is.

    Returns:
        A copy of at most 1000 pixels a side.
    """
    shown = image.copy()
    shown.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return shown
