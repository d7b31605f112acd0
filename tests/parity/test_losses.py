"""The losses against the reference's numbers and against the formula written out plainly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from esvit_hf.pretraining.centering import TeacherCenter, mean_bottleneck
from esvit_hf.pretraining.objectives import cross_entropy
from esvit_hf.pretraining.objectives.region import region_loss
from esvit_hf.pretraining.objectives.view import view_loss
from esvit_hf.pretraining.schedules import linear_schedule


def teacher_temperature(spec):
    return linear_schedule(
        spec["warmup_teacher_temp"], spec["teacher_temp"], spec["warmup_teacher_temp_epochs"]
    )


def test_view_loss_equals_reference(golden):
    case = golden("loss_view")
    spec, tensors = case.spec, case.tensors
    identity = torch.eye(spec["out_dim"])
    center = TeacherCenter(spec["out_dim"], spec["center_momentum"])
    for call, epoch in enumerate(spec["epochs"]):
        student = (
            tensors[f"{call}.student.view_logits"]
            .unflatten(0, (spec["num_crops"], -1))
            .requires_grad_()
        )
        teacher = tensors[f"{call}.teacher.view_logits"].unflatten(0, (2, -1))
        loss = view_loss(
            student,
            identity,
            teacher,
            identity,
            center.center,
            student_temperature=spec["student_temp"],
            teacher_temperature=teacher_temperature(spec)(epoch),
        )
        loss.backward()
        center.update_center([mean_bottleneck([teacher])], identity)
        torch.testing.assert_close(loss, tensors[f"{call}.loss"][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(
            student.grad.flatten(0, 1),
            tensors[f"{call}.student.view_logits.grad"],
            atol=1e-6,
            rtol=0,
        )
        torch.testing.assert_close(
            center.center[None], tensors[f"{call}.center_view"], atol=1e-6, rtol=0
        )


def region_groups(rows, spec, views):
    """Split rows by view size: two global views, then the local ones."""
    sizes = [(2, spec["batch"], spec["regions_global"])]
    if views > 2:
        sizes.append((views - 2, spec["batch"], spec["regions_local"]))
    blocks = rows.split([a * b * c for a, b, c in sizes])
    return [block.unflatten(0, size) for block, size in zip(blocks, sizes, strict=True)]


def test_view_and_region_loss_equal_reference(golden):
    case = golden("loss_view_region")
    spec, tensors = case.spec, case.tensors
    identity = torch.eye(spec["out_dim"])
    view_center, region_center = (
        TeacherCenter(spec["out_dim"], spec["center_momentum"]) for _ in range(2)
    )
    views = spec["num_crops"]
    for call, epoch in enumerate(spec["epochs"]):
        student_view = tensors[f"{call}.student.view_logits"].clone().requires_grad_()
        student_region = tensors[f"{call}.student.region_logits"].clone().requires_grad_()
        teacher_view = tensors[f"{call}.teacher.view_logits"]
        teacher_region = tensors[f"{call}.teacher.region_logits"]
        temperatures = {
            "student_temperature": spec["student_temp"],
            "teacher_temperature": teacher_temperature(spec)(epoch),
        }
        first = view_loss(
            student_view.unflatten(0, (views, -1)),
            identity,
            teacher_view.unflatten(0, (2, -1)),
            identity,
            view_center.center,
            **temperatures,
        )
        second = region_loss(
            region_groups(student_region, spec, views),
            region_groups(tensors[f"{call}.student.region_features"], spec, views),
            identity,
            region_groups(teacher_region, spec, 2),
            region_groups(tensors[f"{call}.teacher.region_features"], spec, 2),
            identity,
            region_center.center,
            **temperatures,
        )
        loss = 0.5 * first + 0.5 * second
        loss.backward()
        for center, logits in ((view_center, teacher_view), (region_center, teacher_region)):
            center.update_center([mean_bottleneck([logits])], identity)
        close = {"atol": 1e-6, "rtol": 0}
        torch.testing.assert_close(loss, tensors[f"{call}.loss"][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(
            student_view.grad, tensors[f"{call}.student.view_logits.grad"], **close
        )
        torch.testing.assert_close(
            student_region.grad, tensors[f"{call}.student.region_logits.grad"], **close
        )
        torch.testing.assert_close(
            view_center.center[None], tensors[f"{call}.center_view"], **close
        )
        torch.testing.assert_close(
            region_center.center[None], tensors[f"{call}.center_region"], **close
        )


def plain_region_loss(
    student, student_features, teacher, teacher_features, prototypes, teacher_prototypes, center
):
    """The formula of the paper, one pair of views and one image at a time, on lists of views (B, N,
    .).
    """
    total, pairs = 0.0, 0
    for q, (target, target_features) in enumerate(zip(teacher, teacher_features, strict=True)):
        for v, (source, source_features) in enumerate(zip(student, student_features, strict=True)):
            if v == q:
                continue
            pairs += 1
            for image in range(source.shape[0]):
                similarity = F.cosine_similarity(
                    source_features[image][:, None], target_features[image][None], dim=-1
                )
                nearest = similarity.argmax(dim=1)
                probabilities = F.softmax(
                    (target[image] @ teacher_prototypes.T - center) / 0.05, dim=-1
                )[nearest]
                log_student = F.log_softmax(source[image] @ prototypes.T / 0.1, dim=-1)
                total = total - (probabilities * log_student).sum(dim=-1).mean() / source.shape[0]
    return total / pairs


@settings(deadline=None, max_examples=40)
@given(
    groups=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=3),
    teacher_groups=st.integers(1, 2),
    images=st.integers(1, 3),
    prototypes=st.integers(2, 30),
    block_elements=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_region_loss_and_gradients_equal_plain_formula(
    groups, teacher_groups, images, prototypes, block_elements, seed
):
    if sum(views for views, _ in groups) < 2:
        groups = [(2, groups[0][1])]
    generator = torch.Generator().manual_seed(seed)
    shapes = [(views, images, regions) for views, regions in groups]
    targets = shapes[:teacher_groups]

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student = [F.normalize(draw(*shape, 6), dim=-1).requires_grad_() for shape in shapes]
    student_features = [draw(*shape, 4) for shape in shapes]
    teacher = [F.normalize(draw(*shape, 6), dim=-1) for shape in targets]
    teacher_features = [draw(*shape, 4) for shape in targets]
    matrix = draw(prototypes, 6).requires_grad_()
    teacher_matrix, center = draw(prototypes, 6), draw(prototypes)

    expected = plain_region_loss(
        [view for group in student for view in group],
        [view for group in student_features for view in group],
        [view for group in teacher for view in group],
        [view for group in teacher_features for view in group],
        matrix,
        teacher_matrix,
        center,
    )
    expected_gradients = torch.autograd.grad(expected, [matrix, *student], materialize_grads=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "BLOCK_ELEMENTS", block_elements)
        loss = region_loss(
            student,
            student_features,
            matrix,
            teacher,
            teacher_features,
            teacher_matrix,
            center,
            student_temperature=0.1,
            teacher_temperature=0.05,
        )
    gradients = torch.autograd.grad(loss, [matrix, *student])
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_bfloat16_autocast_stays_close_to_float32():
    generator = torch.Generator().manual_seed(0)
    student = F.normalize(torch.randn(2, 8, 16, generator=generator), dim=-1).requires_grad_()
    teacher = F.normalize(torch.randn(2, 8, 16, generator=generator), dim=-1)
    prototypes = F.normalize(torch.randn(50, 16, generator=generator), dim=-1)
    arguments = {"student_temperature": 0.1, "teacher_temperature": 0.07}
    exact = view_loss(student, prototypes, teacher, prototypes, torch.zeros(50), **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = view_loss(student, prototypes, teacher, prototypes, torch.zeros(50), **arguments)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=5e-3, atol=0)
