"""Compiled blocks: one graph for all of one form, none after the first step, the same numbers and
the same names.
"""

import copy

import pytest
import torch
from tests.support.small_networks import SMALL_NETWORKS
from tests.support.waits import refuse_waits
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModel, PreTrainedModel

from esvit_hf.pretraining.compilation import compile_blocks

SIZES = (64, 32)
SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1, 4], "num_heads": [1, 2], "window_size": 8}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def make_network(model_type: str = "esvit_swin", **fields: object) -> PreTrainedModel:
    torch.manual_seed(0)
    network: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(model_type, **fields))
    return network.train()


def step(network: nn.Module) -> list[Tensor]:
    """Outputs for two sizes, and all gradients."""
    generator = torch.Generator().manual_seed(0)
    outputs = [
        network(torch.randn(3, 3, side, side, generator=generator)).last_hidden_state
        for side in SIZES
    ]
    network.zero_grad()
    sum((each.square().mean() for each in outputs), start=torch.zeros(())).backward()
    return [
        *(each.detach() for each in outputs),
        *(each.grad.clone() for each in network.parameters() if each.grad is not None),
    ]


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_blocks_of_one_form_share_a_graph_for_each_size(monkeypatch):
    student = make_network(**SWIN, drop_path_rate=0.3)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    for network in (student, teacher):
        compile_blocks(network, backend="eager")
    seen = []
    for _ in range(2):
        step(student)
        after_student = graphs()
        with torch.inference_mode():
            teacher(torch.zeros(3, 3, 64, 64))
        seen.append((after_student, graphs()))
    # Of five blocks the first has no stochastic depth; the others are one form.
    assert seen[0] == (2 * len(SIZES), 2 * len(SIZES) + 2)
    assert seen[1] == (seen[0][1], seen[0][1])
    assert not counters["graph_break"]
    with refuse_waits(monkeypatch):
        step(student)


def test_the_commonest_blocks_alone_are_compiled_where_asked():
    network = make_network(**SWIN, drop_path_rate=0.0)
    compiled = copy.deepcopy(network)
    compile_blocks(compiled, backend="eager", commonest_only=True)
    for _ in range(2):
        for found, expected in zip(step(compiled), step(network), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # The four blocks of the last stage, not the one of the first.
        assert graphs() == len(SIZES)


@pytest.mark.parametrize(
    ("model_type", "backend"),
    [("esvit_swin", "aot_eager"), ("esvit_cvt", "eager"), ("esvit_vil", "eager")],
)
def test_numbers_and_names_are_those_of_the_network_itself(model_type, backend):
    network = make_network(
        model_type, **SMALL_NETWORKS[model_type] | {"image_size": 64, "drop_path_rate": 0.0}
    )
    compiled = copy.deepcopy(network)
    compile_blocks(compiled, backend=backend)
    assert compiled.state_dict().keys() == network.state_dict().keys()
    assert [name for name, _ in compiled.named_modules()] == [
        name for name, _ in network.named_modules()
    ]
    for found, expected in zip(step(compiled), step(network), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_as_often_and_keeps_the_mean():
    network = make_network(**SWIN, drop_path_rate=0.5)
    compile_blocks(network, backend="eager")
    depth = network.get_submodule("stages.1.blocks.3.stochastic_depth")
    scaled = depth(torch.ones(4000, 2, 3))
    assert scaled.unique().tolist() == [0.0, 2.0]
    assert abs(float(scaled.mean()) - 1) < 0.1
    assert torch.equal(scaled, scaled[:, :1, :1].expand_as(scaled))
    assert torch.equal(depth.eval()(torch.ones(9, 2)), torch.ones(9, 2))


def test_a_network_without_blocks_is_compiled_as_a_whole():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    expected = network(torch.ones(2, 3))
    compile_blocks(network, backend="aot_eager")
    torch.testing.assert_close(network(torch.ones(2, 3)), expected)
    assert graphs() == 1
