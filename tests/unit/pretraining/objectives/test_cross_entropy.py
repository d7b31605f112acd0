"""The formula against one pair at a time, and the tiled loss against the formula: odd block sizes,
gains, precisions, repeated passes, and its memory.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from esvit_hf.pretraining.objectives import cross_entropy
from esvit_hf.pretraining.objectives.cross_entropy import (
    matched_cross_entropy,
    plain_cross_entropy,
)

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}


def draw_case(rows, teacher_rows, prototypes, seed, dtype=torch.float64, width=6):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "student": F.normalize(draw(rows, width), dim=1).requires_grad_(),
        "prototypes": draw(prototypes, width).requires_grad_(),
        "gain": (1 + draw(prototypes, 1) / 4).requires_grad_(),
        "teacher": F.normalize(draw(teacher_rows, width), dim=1),
        "teacher_prototypes": draw(prototypes, width),
        "teacher_gain": 1 + draw(prototypes, 1) / 4,
        "center": draw(prototypes) / 10,
        "match": torch.randint(0, teacher_rows, (rows, 2), generator=generator),
        "weight": torch.rand(rows, 2, generator=generator, dtype=dtype),
    }


def variables(case):
    return [case["student"], case["prototypes"], case["gain"]]


def test_the_formula_equals_one_pair_at_a_time():
    case = draw_case(5, 3, 20, seed=0)
    lengths = case["prototypes"].norm(dim=1), case["teacher_prototypes"].norm(dim=1)
    expected = 0.0
    for row in range(5):
        for teacher_row, weight in zip(case["match"][row], case["weight"][row], strict=True):
            cosines = case["teacher_prototypes"] @ case["teacher"][teacher_row] / lengths[1]
            logits = (cosines * case["teacher_gain"][:, 0] - case["center"]) / 0.05
            cosines = case["prototypes"] @ case["student"][row] / lengths[0]
            expected += weight * F.cross_entropy(
                cosines * case["gain"][:, 0] / 0.1, logits.softmax(dim=0)
            )
    torch.testing.assert_close(plain_cross_entropy(**case, **TEMPERATURES), expected)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9),
    teacher_rows=st.integers(1, 5),
    prototypes=st.integers(2, 30),
    columns=st.integers(1, 31),
    tile=st.integers(1, 90),
    seed=st.integers(0, 1000),
)
def test_tiled_loss_and_gradients_equal_the_formula_for_any_blocks(
    rows, teacher_rows, prototypes, columns, tile, seed
):
    case = draw_case(rows, teacher_rows, prototypes, seed)
    expected = plain_cross_entropy(**case, **TEMPERATURES)
    expected_gradients = torch.autograd.grad(expected, variables(case))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CPU_COLUMNS", columns)
        patch.setattr(cross_entropy, "CPU_TILE_ELEMENTS", tile)
        loss = matched_cross_entropy(**case, **TEMPERATURES)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(loss, variables(case)), expected_gradients, rtol=1e-8, atol=1e-9
    )


def test_gradients_pass_the_float64_check():
    case = draw_case(7, 4, 11, seed=0)

    def loss(student, prototypes, gain):
        changed = case | {"student": student, "prototypes": prototypes, "gain": gain}
        return matched_cross_entropy(**changed, **TEMPERATURES, block_elements=30)

    assert torch.autograd.gradcheck(loss, variables(case))


def test_a_graph_can_be_differentiated_twice():
    case = draw_case(5, 3, 20, seed=0)
    loss = matched_cross_entropy(**case, **TEMPERATURES)
    first = torch.autograd.grad(3 * loss, variables(case), retain_graph=True)
    again = torch.autograd.grad(3 * loss, variables(case))
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_prototypes_that_are_frozen_get_no_gradient():
    case = draw_case(5, 3, 20, seed=0)
    expected = torch.autograd.grad(plain_cross_entropy(**case, **TEMPERATURES), case["student"])
    case["prototypes"] = case["prototypes"].detach()
    case["gain"] = case["gain"].detach()
    found = torch.autograd.grad(matched_cross_entropy(**case, **TEMPERATURES), case["student"])
    torch.testing.assert_close(found, expected)


def test_bfloat16_gradients_stay_close_to_float32():
    case = draw_case(40, 16, 300, seed=0, dtype=torch.float32, width=32)
    exact = torch.autograd.grad(matched_cross_entropy(**case, **TEMPERATURES), variables(case))
    with torch.autocast("cpu", torch.bfloat16):
        loss = matched_cross_entropy(**case, **TEMPERATURES)
    for rounded, value in zip(torch.autograd.grad(loss, variables(case)), exact, strict=True):
        assert rounded.dtype == torch.float32
        assert torch.linalg.vector_norm(rounded - value) < 0.03 * torch.linalg.vector_norm(value)


def multiply_as_a_gpu(left, right):
    """A GPU's product of 16-bit matrices: sums in float32, rounded once."""
    return (left.float() @ right.float().T).to(left.dtype)


def float16_errors(case):
    """Relative error of the gradient of each prototype, and of all of the gain's."""
    exact = torch.autograd.grad(matched_cross_entropy(**case, **TEMPERATURES), variables(case))
    with torch.autocast(case["student"].device.type, torch.float16):
        loss = matched_cross_entropy(**case, **TEMPERATURES)
    _, prototypes, gain = torch.autograd.grad(loss, variables(case))
    vector_norm = torch.linalg.vector_norm
    each = vector_norm(prototypes - exact[1], dim=1) / vector_norm(exact[1], dim=1)
    return each, vector_norm(gain - exact[2]) / vector_norm(exact[2])


def weights_of_a_batch(rows, images):
    """Weights of local and global regions with 2 x 49 and 8 x 9 regions an image."""
    regions = torch.tensor([9.0, 49.0]).repeat(rows // 2)
    return (1 / (18 * images * regions))[:, None].expand(-1, 2)


def check_float16_gradients(case, images):
    """Errors of at most half a percent, in the weights of so many images."""
    weight = weights_of_a_batch(len(case["student"]), images).to(case["student"])
    each, gain = float16_errors(case | {"weight": weight})
    assert each.median() < 0.002
    assert each.quantile(0.9) < 0.005
    assert gain < 0.005


@pytest.mark.parametrize("images", [32, 1024])
def test_float16_gradients_are_exact_to_half_a_percent(images, device, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CPU_COLUMNS", 700)
    case = draw_case(64, 32, 2000, seed=0, dtype=torch.float32, width=64)
    check_float16_gradients({name: value.to(device) for name, value in case.items()}, images)


@pytest.mark.parametrize("images", [32, 1024])
def test_float16_gradients_are_exact_with_the_products_of_a_gpu(images, monkeypatch):
    monkeypatch.setattr(cross_entropy, "multiply_transposed", multiply_as_a_gpu)
    check_float16_gradients(draw_case(64, 32, 2000, seed=0, dtype=torch.float32, width=64), images)


@pytest.mark.slow
def test_float16_gradients_at_65536_prototypes(monkeypatch):
    monkeypatch.setattr(cross_entropy, "multiply_transposed", multiply_as_a_gpu)
    monkeypatch.setattr(cross_entropy, "CPU_COLUMNS", 65536)
    monkeypatch.setattr(cross_entropy, "CPU_TILE_ELEMENTS", cross_entropy.BLOCK_ELEMENTS)
    case = draw_case(1536, 512, 65536, seed=0, dtype=torch.float32, width=256)
    check_float16_gradients(case, images=1024)


def test_float16_gradients_keep_their_digits_at_any_weight():
    case = draw_case(20, 8, 300, seed=0, dtype=torch.float32, width=16)
    gradients = {}
    for exponent in (-60, -20, 0, 20):
        scaled = case | {"weight": case["weight"] * 2.0**exponent}
        with torch.autocast("cpu", torch.float16):
            loss = matched_cross_entropy(**scaled, **TEMPERATURES)
        found = torch.autograd.grad(loss, variables(case))
        gradients[exponent] = [gradient * 2.0**-exponent for gradient in found]
    for found in gradients.values():
        torch.testing.assert_close(found, gradients[0], rtol=0, atol=0)


def test_float16_gradients_of_no_weight_are_zero():
    case = draw_case(5, 3, 20, seed=0, dtype=torch.float32)
    with torch.autocast("cpu", torch.float16):
        loss = matched_cross_entropy(**case | {"weight": torch.zeros(5, 2)}, **TEMPERATURES)
    for gradient in torch.autograd.grad(loss, variables(case)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_float16_gradients_do_not_overflow_where_all_rows_choose_one_prototype():
    case = draw_case(600, 2, 20, seed=0, dtype=torch.float32)
    case["student"] = case["student"].detach()[:1].repeat(600, 1).requires_grad_()
    case["gain"] = torch.full((20, 1), 4.0, requires_grad=True)
    each, gain = float16_errors(case | {"weight": torch.full((600, 2), 100.0)})
    assert each.isfinite().all()
    assert gain < 0.005


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest result has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_has_an_element_for_every_row_and_prototype(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CPU_COLUMNS", 64)
    monkeypatch.setattr(cross_entropy, "CPU_TILE_ELEMENTS", 1024)
    rows, prototypes, width = 400, 512, 6
    case = draw_case(rows, 100, prototypes, seed=0, width=width)
    with LargestTensor() as largest:
        matched_cross_entropy(**case, **TEMPERATURES).backward()
    assert largest.elements == max(prototypes * width, rows * width)
    with LargestTensor() as largest:
        plain_cross_entropy(**case, **TEMPERATURES)
    assert largest.elements >= rows * prototypes
