"""Swin: the numbers of the reference implementation."""

import math

import pytest
import torch
from torch import Tensor

from esvit_hf import EsvitSwinConfig, EsvitSwinModel
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.reference.from_reference import (
    load_reference_model,
    read_reference_checkpoint,
    split_reference_state_dict,
)

CASES = ["swin_w7_view", "swin_w7_view_region", "swin_w14_view_region"]


def golden_numbers(model: EsvitSwinModel, case) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(case.tensors["crops.0"].float(), output_hidden_states=True)
        blocks = model.pool_hidden_states(output.hidden_states)
    return {
        "features.view": output.pooler_output,
        "features.regions": output.last_hidden_state,
        "features.last4": torch.cat(blocks[-4:], dim=1),
    }


def largest_difference(model: EsvitSwinModel, case) -> float:
    return max(
        float((ours - case.tensors[name]).abs().max())
        for name, ours in golden_numbers(model, case).items()
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
def test_features_equal_reference(golden, name, implementation, device):
    case = golden(name).to(device)
    model = load_reference_model(case.checkpoint).to(device)
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    for key, ours in golden_numbers(model, case).items():
        torch.testing.assert_close(ours, case.tensors[key], atol=1e-5, rtol=0, msg=key)


@pytest.mark.parametrize("given", [True, False], ids=["size given", "size inferred"])
@pytest.mark.parametrize("name", ["swin_w7_72px", "swin_w7_240px"])
def test_grids_with_odd_sides_equal_reference(golden, name, given):
    case = golden(name)
    fields = {"image_size": case.spec["image_size"]} if given else {}
    model = load_reference_model(case.checkpoint, **fields)
    for key, ours in golden_numbers(model, case).items():
        torch.testing.assert_close(ours, case.tensors[key], atol=1e-5, rtol=0, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_attentions_equal_reference(golden, name):
    case = golden(name)
    model = load_reference_model(case.checkpoint)
    with torch.no_grad():
        attentions = model(case.tensors["crops.0"].float(), output_attentions=True).attentions
    assert len(attentions) == sum(model.config.depths)
    first, last = case.tensors["attention.first"], case.tensors["attention.last"]
    torch.testing.assert_close(attentions[0][: len(first)], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(attentions[-1][: len(last)], last, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("weights", "groups"), [("teacher", [(0, 1)]), ("student", [(0, 1), (2, 3)])]
)
@pytest.mark.parametrize("name", CASES)
def test_all_crops_and_heads_equal_reference(golden, name, weights, groups):
    case = golden(name)
    model = load_reference_model(case.checkpoint, weights=weights)
    sizes = {"hidden_dim": 48, "bottleneck_dim": 16}
    parts = dict(
        zip(
            ["view", "region"],
            split_reference_state_dict(reference(case, weights))[1:],
            strict=True,
        )
    )
    assert bool(parts["region"]) == case.spec["dense"]
    heads = {}
    for task, state in parts.items():
        if state:
            heads[task] = ProjectionHead(case.spec["feature_dim"], 64, **sizes).requires_grad_(
                False
            )
            heads[task].load_state_dict(state)
    views, regions, counts = [], [], []
    for group in groups:
        pixels = torch.cat([case.tensors[f"crops.{crop}"] for crop in group]).float()
        with torch.no_grad():
            output = model(pixels)
        assert math.prod(model.region_grid(*pixels.shape[-2:])) == output.last_hidden_state.shape[1]
        views.append(output.pooler_output)
        regions.append(output.last_hidden_state.flatten(0, 1))
        counts.append(output.last_hidden_state.shape[1])
    ours = {"view_logits": heads["view"](torch.cat(views)) @ heads["view"].prototypes().T}
    if "region" in heads:
        ours["region_features"] = torch.cat(regions)
        ours["region_logits"] = (
            heads["region"](ours["region_features"]) @ heads["region"].prototypes().T
        )
        ours["num_regions"] = torch.tensor(counts)
    for key, tensor in ours.items():
        torch.testing.assert_close(
            tensor, case.tensors[f"{weights}.{key}"], atol=1e-5, rtol=0, msg=key
        )


def reference(case, weights: str) -> dict[str, Tensor]:
    return read_reference_checkpoint(case.checkpoint)[weights]


def test_every_weight_matters_to_the_numbers(golden):
    case = golden("swin_w7_view")
    model = load_reference_model(case.checkpoint)
    generator = torch.Generator().manual_seed(3)
    quiet = []
    for name, parameter in model.named_parameters():
        original = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(
                1e-3 * torch.randint(0, 2, parameter.shape, generator=generator).mul(2).sub(1)
            )
            if largest_difference(model, case) <= 1e-5:
                quiet.append(name)
            parameter.copy_(original)
    assert quiet == []
    assert largest_difference(model, case) <= 1e-5


@pytest.mark.parametrize("window_size", [7, 14])
@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_presets_have_the_tensors_of_the_reference(manifest, preset, window_size):
    facts = manifest(f"swin_{preset}_w{window_size}")
    with torch.device("meta"):
        model = EsvitSwinModel(EsvitSwinConfig.from_preset(preset, window_size=window_size))
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == facts["backbone_parameters"]
    )
    for weights in ("student", "teacher"):
        listed = {
            name: torch.empty(shape, device="meta") for name, (shape, _) in facts[weights].items()
        }
        backbone, view_head, region_head = split_reference_state_dict(listed)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in backbone.items()} == expected
        assert view_head["prototype_direction"].shape == (65536, 256)
        assert bool(region_head) == facts["spec"]["dense"]
