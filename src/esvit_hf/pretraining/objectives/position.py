"""Which regions of two crops of an image lie at the same place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class CropPlaces:
    """Where views of one size lie in their images, and how they are cut into regions.

    Attributes:
        boxes: (V_g, B, 4) float: top, left, height and width of each crop in pixels of its image,
            at any scale that all crops of an image share.
        mirrored: (V_g, B) bool: whether left and right of the crop change places.
        grid: rows and columns of regions.
    """

    boxes: Tensor
    mirrored: Tensor
    grid: tuple[int, int]

    def first(self, views: int) -> "CropPlaces":
        """Return the places of so many views."""
        return CropPlaces(self.boxes[:views], self.mirrored[:views], self.grid)


class CropBoxes(NamedTuple):
    """Where the views of all sizes lie in their images.

    Attributes:
        boxes: (V, B, 4) float, as those of `CropPlaces`.
        mirrored: (V, B) bool.
    """

    boxes: Tensor
    mirrored: Tensor

    def by_size(self, views: Sequence[int], grids: Sequence[tuple[int, int]]) -> list[CropPlaces]:
        """Group the views of one size.

        Args:
            views: number of views of each group, in view order.
            grids: rows and columns of regions of each group.
        """
        groups = zip(
            self.boxes.split(list(views)), self.mirrored.split(list(views)), grids, strict=True
        )
        return [CropPlaces(*group) for group in groups]


class _Axis(NamedTuple):
    """Crops along one axis of their images, cut into cells; tensors (V_g, Q_g, B, 1)."""

    start: Tensor
    length: Tensor
    mirrored: Tensor
    cells: int


def match_by_position(student: CropPlaces, teacher: CropPlaces) -> tuple[Tensor, Tensor]:
    """Find for each student region the teacher region that overlaps it most in the image.

    PixPro (arXiv 2011.10043) and VICRegL (arXiv 2210.01571) pair by place in this way. The regions
    of a crop are of one size, so the one that overlaps most is the one whose middle is nearest.

    Args:
        student: places of V_g student views.
        teacher: places of Q_g teacher views of the same images.

    Returns:
        Indices (V_g, Q_g, B, N) into the teacher's regions, int64, and whether they overlap at all
        (V_g, Q_g, B, N), bool.
    """
    rows, columns = _axes(student, view_axis=0)
    teacher_rows, teacher_columns = _axes(teacher, view_axis=1)
    row, row_overlaps = _nearest_cells(rows, teacher_rows)
    column, column_overlaps = _nearest_cells(columns, teacher_columns)
    index = row[..., None] * teacher_columns.cells + column[..., None, :]
    overlaps = row_overlaps[..., None] & column_overlaps[..., None, :]
    return index.flatten(-2), overlaps.flatten(-2)


def _axes(places: CropPlaces, view_axis: int) -> tuple[_Axis, _Axis]:
    """Return the vertical and the horizontal axis, with the views at 0 (V_g) or 1 (Q_g)."""
    top, left, height, width = places.boxes.unsqueeze(1 - view_axis).unsqueeze(-1).unbind(-2)
    mirrored = places.mirrored.unsqueeze(1 - view_axis).unsqueeze(-1)
    rows, columns = places.grid
    return (
        _Axis(top, height, torch.zeros_like(mirrored), rows),
        _Axis(left, width, mirrored, columns),
    )


def _nearest_cells(student: _Axis, teacher: _Axis) -> tuple[Tensor, Tensor]:
    """Find for each student cell the teacher cell with the nearest middle (V_g, Q_g, B, cells), and
    whether the student cell overlaps the teacher's crop.
    """
    cell = torch.arange(student.cells, device=student.start.device)
    cell = torch.where(student.mirrored, student.cells - 1 - cell, cell)
    # In units in which a student cell is as long as its crop in pixels: whole numbers, compared
    # exactly.
    start = student.start * student.cells + cell * student.length
    teacher_start, teacher_length = (
        value * student.cells for value in (teacher.start, teacher.length)
    )
    overlaps = (start < teacher_start + teacher_length) & (start + student.length > teacher_start)
    middle = start + student.length / 2
    place = (middle - teacher_start) * teacher.cells / teacher_length
    nearest = place.floor().clamp(0, teacher.cells - 1).long()
    return torch.where(teacher.mirrored, teacher.cells - 1 - nearest, nearest), overlaps
