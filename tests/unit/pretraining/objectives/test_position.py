"""Regions of crops that lie at one place of the image, against rectangles compared one by one."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from esvit_hf.pretraining.objectives.position import CropPlaces, match_by_position


def cells(box, mirrored, grid):
    """Rectangles (top, bottom, left, right) of the regions of a crop, in exact numbers."""
    top, left, height, width = (Fraction(int(value)) for value in box)
    rows, columns = grid
    rectangles = []
    for row in range(rows):
        for column in range(columns):
            place = columns - 1 - column if mirrored else column
            vertical = top + height * row / rows, top + height * (row + 1) / rows
            horizontal = left + width * place / columns, left + width * (place + 1) / columns
            rectangles.append((*vertical, *horizontal))
    return rectangles


def overlap(first, second):
    height = min(first[1], second[1]) - max(first[0], second[0])
    width = min(first[3], second[3]) - max(first[2], second[2])
    return max(height, 0) * max(width, 0)


def check(student, teacher):
    index, overlaps = match_by_position(student, teacher)
    for v, (boxes, mirrored) in enumerate(zip(student.boxes, student.mirrored, strict=True)):
        for q in range(len(teacher.boxes)):
            for image in range(len(boxes)):
                own = cells(boxes[image], mirrored[image], student.grid)
                others = cells(teacher.boxes[q, image], teacher.mirrored[q, image], teacher.grid)
                for region, rectangle in enumerate(own):
                    areas = [overlap(rectangle, other) for other in others]
                    assert overlaps[v, q, image, region].item() == (max(areas) > 0)
                    if max(areas) > 0:
                        chosen = areas[index[v, q, image, region]]
                        # Where two overlap equally, a rounding decides.
                        assert float(chosen) == pytest.approx(float(max(areas)), rel=1e-5)
    return index, overlaps


def draw_places(data, views, images, grid):
    side = st.integers(1, 12)
    box = st.tuples(st.integers(0, 8), st.integers(0, 8), side, side)
    boxes = data.draw(st.lists(box, min_size=views * images, max_size=views * images))
    flips = data.draw(st.lists(st.booleans(), min_size=views * images, max_size=views * images))
    shape = views, images
    return CropPlaces(
        torch.tensor(boxes, dtype=torch.float32).view(*shape, 4),
        torch.tensor(flips).view(shape),
        grid,
    )


GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), grid=GRIDS, teacher_grid=GRIDS)
def test_the_region_that_overlaps_most_is_chosen(data, grid, teacher_grid):
    check(draw_places(data, 2, 2, grid), draw_places(data, 1, 2, teacher_grid))


def places(*boxes, mirrored=False, grid=(3, 3)):
    """Views of one image."""
    tensor = torch.tensor(boxes, dtype=torch.float32)[:, None]
    return CropPlaces(tensor, torch.full(tensor.shape[:2], mirrored), grid)


def test_a_crop_matches_itself_and_its_mirror_image():
    box = (3, 5, 31, 17)
    index, overlaps = match_by_position(places(box), places(box))
    assert index.flatten().tolist() == list(range(9)) and overlaps.all()
    index, _ = match_by_position(places(box), places(box, mirrored=True))
    assert index.flatten().tolist() == [2, 1, 0, 5, 4, 3, 8, 7, 6]


def test_crops_that_touch_do_not_overlap():
    first = places((0, 0, 10, 10))
    beside = places((0, 10, 10, 10), (10, 0, 10, 10), (10, 10, 10, 10), (0, 9, 10, 10))
    _, overlaps = check(first, beside)
    assert [view.sum().item() for view in overlaps[0]] == [0, 0, 0, 3]


def test_a_region_that_covers_many_is_matched_to_its_middle():
    index, _ = check(places((0, 0, 30, 30), grid=(1, 1)), places((0, 0, 30, 30), grid=(3, 3)))
    assert index.item() == 4


def test_regions_of_real_crops_show_the_same_part_of_the_image():
    """Pixels that hold their own coordinates are cropped, resized and mirrored, and averaged over
    regions: the match is the region whose coordinates are nearest.
    """
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    image = torch.stack([rows, columns]) + 0.5
    student = places((5, 10, 40, 60), mirrored=True, grid=(4, 4))
    teacher = places((10, 4, 48, 70), grid=(3, 5))

    def coordinates(crop):
        (top, left, height, width), (mirrored,) = crop.boxes[0, 0].int().tolist(), crop.mirrored[0]
        pixels = image[:, top : top + height, left : left + width]
        pixels = F.interpolate(pixels[None], (120, 120), mode="bilinear", antialias=True)[0]
        pixels = pixels.flip(-1) if mirrored else pixels
        return F.adaptive_avg_pool2d(pixels, crop.grid).flatten(1).T

    size = torch.tensor([48 / 3, 70 / 5])
    distance = ((coordinates(student)[:, None] - coordinates(teacher)) / size).abs().amax(dim=2)
    index, overlaps = match_by_position(student, teacher)
    matched = distance.gather(1, index.flatten()[:, None])[overlaps.flatten()]
    assert overlaps.float().mean() > 0.9
    torch.testing.assert_close(matched, distance.amin(dim=1, keepdim=True)[overlaps.flatten()])
