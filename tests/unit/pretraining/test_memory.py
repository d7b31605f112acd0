"""The memory that a run will need, and what to change where there is less."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.small_runs import small_run

from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.machine import Machine
from esvit_hf.pretraining.memory import MemoryNeed, estimate_memory, memory_warning

GIGABYTE = 10**9
NEED = MemoryNeed(weights=2 * GIGABYTE, activations=GIGABYTE, views=0, saved=0)
MACHINE = Machine("cpu", 20 * GIGABYTE, 20 * GIGABYTE, 4, 1, True, True)


def test_networks_are_counted_and_stay_as_they_are(tmp_path: Path) -> None:
    words = ("--model.name", "resnet", "--heads.batch_norm", "true")
    fields = "{embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}"
    recipe = small_run(tmp_path, *words, "--model.config", fields)
    parts = build_parts(recipe)
    before = {name: value.clone() for name, value in parts.student.state_dict().items()}
    parameters = sum(each.numel() for each in parts.student.parameters())
    state = torch.random.get_rng_state()
    need = estimate_memory(recipe, parts)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in parts.student.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert need.weights >= 20 * parameters
    assert need.saved == 16 * parameters
    assert need.views == 3 * (2 * 32**2 + 2 * 16**2)


def test_activations_are_counted_by_hand(tmp_path: Path) -> None:
    """A perceptron of a head keeps its input, two hidden layers before and after the activation,
    and the bottleneck before and after the norm.
    """
    wide, narrow = (small_run(tmp_path, "--heads.hidden_dim", str(width)) for width in (1016, 16))
    grown = (
        estimate_memory(wide, build_parts(wide)).activations
        - estimate_memory(narrow, build_parts(narrow)).activations
    )
    # 4 views, and regions of 4 x 4 and 2 x 2 from patches of 4 pixels and two stages.
    rows = 4 + 2 * 4 * 4 + 2 * 2 * 2
    by_hand = rows * 1000 * 2 * 2 * 4
    assert grown == pytest.approx(1.25 * by_hand, rel=0.01)


def test_blocks_that_are_computed_again_need_less(tmp_path: Path) -> None:
    kept = small_run(tmp_path)
    again = small_run(tmp_path, "--run.checkpointed_blocks", "3")
    least, most = (estimate_memory(each, build_parts(each)).activations for each in (again, kept))
    assert least < 0.7 * most


def test_nothing_is_said_where_it_fits(tmp_path: Path) -> None:
    assert memory_warning(small_run(tmp_path), NEED, MACHINE) is None


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--run.batch_size", "64"], "it fits with run.batch_size 16, run.accumulation_steps 4"),
        (["--run.batch_size", "24"], "it fits with run.batch_size 12, run.accumulation_steps 2"),
        (["--data.num_workers", "30"], "it fits with data.num_workers 4"),
    ],
)
def test_what_to_change_is_said(words: list[str], remedy: str, tmp_path: Path) -> None:
    recipe = small_run(tmp_path, "--run.batch_size", "12", *words)
    warning = memory_warning(recipe, NEED, MACHINE)
    assert warning is not None and warning.endswith(remedy), warning
    assert "but 20.0 GB are free" in warning


def test_a_network_that_is_too_large_for_one_image(tmp_path: Path) -> None:
    need = replace(NEED, weights=30 * GIGABYTE)
    warning = memory_warning(small_run(tmp_path), need, MACHINE)
    assert warning is not None and "choose a smaller network" in warning


def test_a_gpu_has_memory_of_its_own(tmp_path: Path) -> None:
    machine = Machine("cuda", 10 * GIGABYTE, 4 * GIGABYTE, 16, 1, True, True)
    recipe = small_run(tmp_path, "--run.batch_size", "8", "--data.num_workers", "2")
    warning = memory_warning(recipe, NEED, machine)
    assert warning is not None and "on cuda, where 10.0 GB are free" in warning
    assert "it fits with run.batch_size 4, run.accumulation_steps 2" in warning
    assert memory_warning(recipe, NEED, replace(machine, device_memory=12 * GIGABYTE)) is None
    many = small_run(tmp_path, "--run.batch_size", "4", "--data.num_workers", "16")
    warning = memory_warning(many, NEED, replace(machine, cores=4))
    assert warning is not None and warning.endswith("it fits with data.num_workers 4")
