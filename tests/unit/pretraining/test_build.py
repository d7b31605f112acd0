"""What a recipe builds, where the pretraining tests do not look."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from esvit_hf import EsvitSwinConfig, EsvitSwinModel
from esvit_hf.pretraining import build
from esvit_hf.pretraining.build import build_backbone, build_parts, checkpoint_blocks
from esvit_hf.pretraining.optimizer import build_optimizer
from esvit_hf.pretraining.recipe import ModelSettings
from esvit_hf.pretraining.recipe_reading import load_recipe


def test_the_first_blocks_alone_are_computed_again():
    torch.manual_seed(0)
    shape = {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
    }
    config = EsvitSwinConfig(**shape, drop_path_rate=0.0)
    plain = EsvitSwinModel(config).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_blocks(checkpointed, 2)
    runs = {"plain": [0, 0, 0], "checkpointed": [0, 0, 0]}
    for name, model in (("plain", plain), ("checkpointed", checkpointed)):
        blocks = [module for module in model.modules() if type(module).__name__ == "EsvitSwinBlock"]
        for number, block in enumerate(blocks):
            block.attention.register_forward_hook(
                lambda *_, name=name, number=number: runs[name].__setitem__(
                    number, runs[name][number] + 1
                )
            )
        model(torch.ones(1, 3, 32, 32)).last_hidden_state.square().sum().backward()
    assert runs == {"plain": [1, 1, 1], "checkpointed": [2, 2, 1]}
    for expected, found in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_a_network_without_such_blocks_is_refused():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    with pytest.raises(ValueError, match="checkpointed_blocks is 1, but ResNetModel has 0 blocks"):
        checkpoint_blocks(ResNetModel(config), 1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_of_a_network_can_be_chosen(tmp_path, implementation):
    shape = {"image_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTModel(ViTConfig(**shape)).save_pretrained(tmp_path)
    chosen = {"attn_implementation": implementation}
    for model, fields in (("vit", shape | chosen), (str(tmp_path), chosen)):
        recipe = load_recipe(
            {},
            {
                "data.dataset": "images",
                "run.output_dir": tmp_path,
                "model.name": model,
                "model.config": fields,
            },
        )
        assert build_backbone(recipe).model.config._attn_implementation == implementation


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("esvit_swim", "'esvit_swim' is no folder and no model type: did you mean esvit_swin?"),
        ("outputs/dmeo", "did you mean outputs/demo?"),
        ("outputs/else", "there is no such folder"),
        ("/no/such/model", "there is no such folder"),
    ],
)
def test_a_mistyped_model_is_said_without_asking_the_hub(tmp_path, monkeypatch, name, message):
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def ask(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(HfApi, "model_info", ask)
    with pytest.raises(ValueError, match=re.escape(message)):
        build.build_backbone(load_recipe("demo", {"model.name": name, "model.config": {}}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_float32_whatever_the_folder_holds(tmp_path, dtype):
    shape = {"image_size": 32, "embed_dim": 8, "depths": [1], "num_heads": [1], "window_size": 4}
    saved = EsvitSwinModel(EsvitSwinConfig(**shape)).to(dtype)
    saved.save_pretrained(tmp_path)
    heads = {"num_prototypes": 8, "hidden_dim": 8, "bottleneck_dim": 4}
    recipe = load_recipe({"data": {"dataset": "none"}, "heads": heads})
    recipe = replace(recipe, model=ModelSettings(str(tmp_path)))
    parts = build_parts(recipe)
    optimizer = build_optimizer(parts.student)
    trained = [each for group in optimizer.param_groups for each in group["params"]]
    for parameter in (*parts.student.parameters(), *parts.teacher.parameters(), *trained):
        assert parameter.dtype == torch.float32
    for name, weight in parts.teacher.backbone.model.state_dict().items():
        assert torch.equal(weight, saved.state_dict()[name].float())


def test_weights_for_three_channels_serve_five(tmp_path):
    torch.manual_seed(0)
    shape = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    EsvitSwinModel(EsvitSwinConfig(**shape, window_size=4)).save_pretrained(tmp_path)
    model = {"name": str(tmp_path), "config": {"num_channels": 5}, "inflate": True}
    recipe = load_recipe({"data": {"dataset": "x"}, "model": model})
    wide, narrow = build_backbone(recipe), EsvitSwinModel.from_pretrained(tmp_path)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = wide(image[:, [0, 1, 2, 0, 1]]).pooled
        expected = narrow(image).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_inflating_needs_weights_and_a_number_of_channels():
    model = {"name": "esvit_swin", "config": {"num_channels": 5}, "inflate": True}
    with pytest.raises(ValueError, match="'esvit_swin' is a type without weights"):
        build_backbone(load_recipe({"data": {"dataset": "x"}, "model": model}))
    with pytest.raises(ValueError, match="model.inflate needs model.config.num_channels"):
        load_recipe({"data": {"dataset": "x"}, "model": {"inflate": True}})
