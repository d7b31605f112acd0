"""What every network of the project promises, run over all of them."""

import copy
import math
import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file, save_file
from tests.support.networks import (
    NETWORKS_AND_OPTIONS,
    SIZE,
    build,
    features,
    gradients,
    images,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    UperNetConfig,
)
from transformers import UperNetForSemanticSegmentation as UperNet

with_options = pytest.mark.parametrize(
    "network", NETWORKS_AND_OPTIONS.values(), ids=NETWORKS_AND_OPTIONS
)

# Outputs


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (64, 40), (37, 51), (96, 96), (8, 20)])
def test_regions_and_view_of_any_size(network, shape):
    model = build(network.model, network.config())
    with torch.no_grad():
        output = model(images(2, 3, *shape), output_hidden_states=True)
    grid = model.region_grid(*shape)
    assert output.last_hidden_state.shape == (2, math.prod(grid), model.config.hidden_size)
    assert output.pooler_output.shape == (2, model.config.hidden_size)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(dim=1))
    assert len(output.hidden_states) == sum(model.config.depths) + 1
    assert torch.isfinite(output.last_hidden_state).all()


def test_an_image_does_not_see_the_others_of_its_batch(network):
    model = build(network.model, network.config())
    pixels = images(3, 3, 40, 24)
    together, alone = (
        features(model, pixels),
        torch.cat([features(model, image[None]) for image in pixels]),
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_hidden_states_are_the_unnormalized_blocks(network):
    model = build(network.model, network.config())
    pixels = images(2, 3, SIZE, SIZE)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
        pooled = model.pool_hidden_states(output.hidden_states)
        chosen = model(pixels, output_hidden_states=[-1])
    torch.testing.assert_close(model.norm(output.hidden_states[-1]), output.last_hidden_state)
    assert [row.shape[0] for row in pooled] == [2] * sum(model.config.depths)
    assert [row.shape[1] for row in pooled] == [
        state.shape[-1] for state in output.hidden_states[1:]
    ]
    torch.testing.assert_close(pooled[-1], output.pooler_output)
    torch.testing.assert_close(model.pool_hidden_states(chosen.hidden_states), pooled[-1:])
    with pytest.raises(ValueError, match="hidden states"):
        model.pool_hidden_states(output.hidden_states[1:])


def test_attentions_of_every_block_are_distributions(network):
    model = build(network.model, network.config())
    with torch.no_grad():
        attentions = model(images(2, 3, SIZE, SIZE), output_attentions=True).attentions
    assert len(attentions) == sum(model.config.depths)
    stages = zip(model.config.num_heads, model.config.depths, strict=True)
    heads = [number for number, depth in stages for _ in range(depth)]
    for probabilities, number in zip(attentions, heads, strict=True):
        assert probabilities.shape[1] == number
        torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(probabilities.shape[:-1]))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", [(32, 32), (36, 44)])
def test_attentions_and_hidden_states_have_gradients(network, implementation, shape):
    model = build(network.classifier, network.config(num_labels=3))
    model.set_attn_implementation(implementation)
    output = model(images(2, 3, *shape), output_attentions=True, output_hidden_states=True)
    seen = [*output.attentions, *output.hidden_states]
    for tensor in seen:
        tensor.retain_grad()
    output.logits[:, 0].sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in seen)


@pytest.mark.parametrize("shape", [(32, 32), (40, 52)])
def test_eager_equals_sdpa(network, shape):
    model = build(network.model, network.config())
    pixels = images(2, 3, *shape)
    outputs, derivatives = {}, {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        outputs[implementation], derivatives[implementation] = (
            features(model, pixels),
            gradients(model, pixels),
        )
    torch.testing.assert_close(outputs["sdpa"], outputs["eager"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(derivatives["sdpa"], derivatives["eager"], atol=1e-5, rtol=1e-4)


def test_tuples_and_recorded_outputs_do_not_change_the_features(network):
    model = build(network.model, network.config())
    pixels = images(2, 3, SIZE, SIZE)
    with torch.no_grad():
        plain = model(pixels)
        recorded = model(pixels, output_hidden_states=True, output_attentions=True)
        regions, view = model(pixels, return_dict=False)
    torch.testing.assert_close(
        recorded.last_hidden_state, plain.last_hidden_state, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(regions, plain.last_hidden_state)
    assert torch.equal(view, plain.pooler_output)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(1, 1, 32, 32), torch.zeros(3, 32, 32), torch.zeros(1, 3, 2, 32)]
)
def test_images_of_the_wrong_shape_are_named(network, pixels):
    model = network.model(network.config())
    with pytest.raises(ValueError, match="pixel_values"):
        model(pixels)


# Training


@pytest.mark.parametrize("kind", ["model", "classifier"])
def test_every_parameter_gets_a_gradient(network, kind):
    model = build(getattr(network, kind), network.config(num_labels=3)).train()
    if kind == "model":
        found = gradients(model, images(2, 3, SIZE, SIZE))
    else:
        model(images(2, 3, SIZE, SIZE), labels=torch.tensor([0, 2])).loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    still = [
        name.removeprefix("network.") for name, gradient in found.items() if not gradient.any()
    ]
    assert still == list(network.idle)


def test_gradient_checkpointing_changes_nothing_but_memory(network):
    plain = build(network.model, network.config()).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    assert checkpointed.is_gradient_checkpointing
    pixels = images(2, 3, SIZE, SIZE)
    torch.testing.assert_close(gradients(checkpointed, pixels), gradients(plain, pixels))
    torch.testing.assert_close(dict(checkpointed.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("kind", ["model", "classifier", "backbone"])
def test_input_embeddings_are_the_first_convolution(network, kind):
    model = build(getattr(network, kind), network.config())
    found = model.get_input_embeddings()
    assert isinstance(found, nn.Conv2d)
    assert found.in_channels == 3
    model.set_input_embeddings(replacement := copy.deepcopy(found))
    assert model.get_input_embeddings() is replacement


def test_adapters_train_behind_frozen_weights_with_reentrant_checkpointing(network):
    model = build(network.classifier, network.config(num_labels=3)).train().requires_grad_(False)
    trained = [
        parameter.requires_grad_()
        for name, parameter in model.named_parameters()
        if name.endswith("attention.projection.weight")
    ]
    assert len(trained) == 3
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model(images(2, 3, SIZE, SIZE), labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)


def test_stochastic_depth_acts_in_training_alone(network):
    model = build(network.model, network.config(drop_path_rate=0.9))
    pixels = images(4, 3, SIZE, SIZE)
    assert torch.equal(features(model, pixels), features(model, pixels))
    model.train()
    torch.manual_seed(0)
    first = features(model, pixels)
    torch.manual_seed(0)
    assert torch.equal(features(model, pixels), first)
    assert not torch.equal(features(model, pixels), first)


def test_evaluation_before_training_leaves_nothing_behind(network):
    model, fresh = (build(network.model, network.config()) for _ in range(2))
    pixels = images(2, 3, 40, 32)
    with torch.inference_mode():
        model(pixels)
    torch.testing.assert_close(gradients(model, pixels), gradients(fresh, pixels))
    with torch.no_grad():
        for own, other in zip(model.parameters(), fresh.parameters(), strict=True):
            own.data.mul_(1.5)  # leaves the version of the parameter as it was
            other.mul_(1.5)
    torch.testing.assert_close(features(model, pixels), features(fresh, pixels))


@with_options
def test_bfloat16_agrees_roughly(network):
    model = build(network.model, network.config())
    pixels = images(2, 3, 40, 24)
    exact, derivatives = features(model, pixels), gradients(model, pixels)
    half = copy.deepcopy(model).to(torch.bfloat16)
    rounded = features(half, pixels.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(model, pixels)
    for name, derivative in derivatives.items():
        assert (mixed[name] - derivative).norm() < 0.2 * derivative.norm() + 1e-3, name


# Saving and loading


@pytest.mark.parametrize("kind", ["model", "classifier", "backbone"])
def test_saved_and_loaded_is_the_same_network(network, kind, tmp_path):
    config = network.config(num_labels=3, out_features=["stem", "stage2"])
    model = build(getattr(network, kind), config)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(
        dict(loaded.named_buffers()), dict(model.named_buffers()), atol=0, rtol=0
    )
    pixels = images(2, 3, 36, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(pixels).to_tuple(), model(pixels).to_tuple(), atol=0, rtol=0
        )


@with_options
def test_auto_classes_find_the_network(network, tmp_path):
    model = build(network.model, network.config())
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    assert config.architectures == [network.model.__name__]
    auto = AutoModel.from_pretrained(tmp_path)
    assert type(auto) is network.model
    pixels = images(1, 3, SIZE, SIZE)
    assert torch.equal(features(auto, pixels), features(model, pixels))
    classifier, report = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert type(classifier) is network.classifier
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    assert torch.equal(features(classifier.network, pixels), features(model, pixels))
    backbone = network.backbone.from_pretrained(tmp_path)
    assert type(AutoBackbone.from_config(model.config)) is network.backbone
    with torch.no_grad():
        last = backbone(pixels).feature_maps[-1]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), features(model, pixels)[:, :-1])


@pytest.mark.parametrize("kind", ["model", "classifier", "backbone"])
def test_heads_may_be_left_over_and_nothing_else(network, kind, tmp_path):
    config = network.config(num_labels=3, out_features=["stem", "stage2"])
    saved = build(getattr(network, kind), config)
    saved.save_pretrained(tmp_path / "whole")
    for other in (network.model, network.classifier, network.backbone):
        other.from_pretrained(tmp_path / "whole")
        with pytest.raises(ValueError, match=r"have no place in this .*stages\.0\.blocks\.1"):
            other.from_pretrained(tmp_path / "whole", depths=[1, 1])
    with pytest.raises(ValueError, match="tensors have no place"):
        AutoModel.from_pretrained(tmp_path / "whole", depths=[1, 1])
    saved.save_pretrained(
        tmp_path / "more", state_dict=saved.state_dict() | {"stages.0.scale": torch.ones(1)}
    )
    with pytest.raises(ValueError, match=r"1 tensors have no place.*'stages\.0\.scale'"):
        type(saved).from_pretrained(tmp_path / "more")


@pytest.mark.parametrize("half", [0, 1])
def test_missing_weights_start_as_in_a_new_network(network, half, tmp_path):
    model = build(network.model, network.config())
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {
        name: tensor
        for index, (name, tensor) in enumerate(sorted(load_file(file).items()))
        if index % 2 == half
    }
    save_file(kept, file, metadata={"format": "pt"})
    loaded = network.model.from_pretrained(tmp_path)
    fresh = network.model(model.config)
    for name, tensor in loaded.state_dict().items():
        if name in kept:
            assert torch.equal(tensor, kept[name]), name
        elif tensor.is_floating_point() and tensor.numel() > 100:
            new = fresh.state_dict()[name]
            torch.testing.assert_close(tensor.std(), new.std(), atol=1e-6, rtol=0.4, msg=name)
            torch.testing.assert_close(tensor.mean(), new.mean(), atol=0.02, rtol=0.1, msg=name)
        else:
            assert torch.isfinite(tensor).all(), name
    for name, buffer in loaded.named_buffers():
        if name not in loaded.state_dict():
            assert torch.equal(buffer, fresh.get_buffer(name)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saved_type_is_the_loaded_type(network, dtype, tmp_path):
    build(network.model, network.config()).to(dtype).save_pretrained(tmp_path)
    assert network.model.from_pretrained(tmp_path).dtype == dtype
    assert network.model.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", ["model", "classifier", "backbone"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_weights_may_wait_elsewhere(network, kind, place, tmp_path):
    config = network.config(num_labels=3, out_features=["stem", "stage2"])
    model = build(getattr(network, kind), config)
    pixels, cpu = images(2, 3, 36, 40), torch.device("cpu")
    with torch.no_grad():
        expected = model(pixels).to_tuple()
        if place == "memory":
            cpu_offload(model, execution_device=cpu)
        else:
            disk_offload(model, str(tmp_path), execution_device=cpu)
        assert all(parameter.device.type == "meta" for parameter in model.parameters())
        torch.testing.assert_close(model(pixels).to_tuple(), expected, atol=0, rtol=0)


def test_copies_and_pickles_are_independent_networks(network):
    model = build(network.model, network.config())
    pixels = images(1, 3, SIZE, SIZE)
    expected = features(model, pixels)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in copies:
        assert torch.equal(features(other, pixels), expected)


# Backbone, compiler


@with_options
def test_feature_maps_of_every_stage(network):
    names = ["stem", "stage1", "stage2"]
    model = build(network.backbone, network.config(out_features=names))
    pixels = images(2, 3, 32, 48)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    assert [maps.shape[:2] for maps in output.feature_maps] == [
        (2, channels) for channels in model.channels
    ]
    assert [tuple(maps.shape[2:]) for maps in output.feature_maps] == [(8, 12), (8, 12), (4, 6)]
    assert len(output.hidden_states) == sum(model.config.depths) + 1


def test_upernet_trains_through_the_backbone(network):
    torch.manual_seed(0)
    config = network.config(out_features=["stage1", "stage2"])
    sizes = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": 3}
    model = UperNet(UperNetConfig(backbone_config=config, **sizes))
    model(images(2, 3, SIZE, SIZE), labels=torch.randint(0, 3, (2, SIZE, SIZE))).loss.backward()
    assert isinstance(model.backbone, network.backbone)
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


def test_upernet_takes_the_backbone_of_a_folder(network, tmp_path):
    model = build(network.model, network.config())
    model.save_pretrained(tmp_path / "model")
    backbone = network.backbone.from_pretrained(
        tmp_path / "model", out_features=["stage1", "stage2"]
    )
    sizes = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": 3}
    segmenter = UperNet(UperNetConfig(backbone_config=backbone.config, **sizes)).eval()
    segmenter.backbone = backbone
    pixels = images(1, 3, SIZE, SIZE)
    with torch.no_grad():
        maps = segmenter.backbone(pixels).feature_maps
        torch.testing.assert_close(
            maps[-1].flatten(2).transpose(1, 2), model(pixels).last_hidden_state
        )
        segmenter.save_pretrained(tmp_path / "segmenter")
        again = UperNet.from_pretrained(tmp_path / "segmenter")
        torch.testing.assert_close(again(pixels).logits, segmenter(pixels).logits)


def test_every_linear_layer_is_found_by_tools(network):
    model = build(network.model, network.config())
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert {type(module) for module in linear} == {nn.Linear}
    pixels, counted = images(2, 3, SIZE, SIZE), []

    def count(module, inputs, output):
        counted.append(2 * output.numel() * module.in_features)

    for module in linear:
        module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels)
    found = counter.get_flop_counts()["Global"]
    products = sum(found.get(name, 0) for name in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert products == sum(counted) > 0


def test_dynamic_quantization_takes_every_linear_layer(network):
    model = build(network.classifier, network.config(num_labels=3))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linear
    for name in linear:
        assert isinstance(quantized.get_submodule(name), nn.quantized.dynamic.Linear), name
    pixels = images(2, 3, 36, 40)
    with torch.no_grad():
        exact, rounded = model(pixels).logits, quantized(pixels).logits
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_forward_mode_derivatives_are_those_of_small_differences(network, implementation):
    model = build(network.model, network.config()).double()
    model.set_attn_implementation(implementation)
    pixels, direction = (images(2, 3, 36, 40, seed=seed).double() for seed in (1, 2))

    def view(values):
        return model(values).pooler_output

    values, derivative = torch.func.jvp(view, (pixels,), (direction,))
    with torch.no_grad():
        step = 1e-5 * direction
        expected = (view(pixels + step) - view(pixels - step)) / 2e-5
        torch.testing.assert_close(values, view(pixels))
    torch.testing.assert_close(derivative, expected, atol=1e-7, rtol=1e-6)


def test_compiles_into_one_graph(network):
    model = build(network.model, network.config())
    pixels = images(2, 3, 32, 40)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).pooler_output, model(pixels).pooler_output)


def test_exports_with_a_free_batch_size(network):
    model = build(network.model, network.config())
    sizes = {"pixel_values": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        exported = torch.export.export(
            model, (images(2, 3, SIZE, SIZE),), dynamic_shapes=sizes
        ).module()
        pixels = images(5, 3, SIZE, SIZE)
        torch.testing.assert_close(features(exported, pixels), features(model, pixels))
        torch.testing.assert_close(features(model, pixels), features(copy.deepcopy(model), pixels))
