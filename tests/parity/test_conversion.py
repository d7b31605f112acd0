"""Conversion through the command line: golden networks, all released architectures, and the way
back.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.full_size import full_size_checkpoint
from tests.support.paths import FASHION_MNIST
from transformers import AutoConfig, AutoModel

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.main import main
from esvit_hf.hub.cards import check_card
from esvit_hf.hub.folder import foreign_code
from esvit_hf.hub.fresh_process import check_loads
from esvit_hf.hub.heads_file import HEADS_FILE, SavedHead, read_heads, write_heads
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.recipe_reading import read_recipe
from esvit_hf.reference.from_reference import load_reference_model, read_reference_checkpoint
from esvit_hf.reference.to_reference import convert_to_reference

# Golden networks, and what their tensors do not show.
FIELDS = {
    "swin_w7_view": [],
    "swin_w7_view_region": [],
    "swin_w14_view_region": [],
    "vil_view_region": [],
    "cvt_view_region": ["--config", "{num_heads: [1,2,3,6], window_size: [7,7,7,7]}"],
    "vit_view_region": ["--config.num_attention_heads", "4"],
}
every_golden = pytest.mark.parametrize("name", FIELDS)
DEFAULT_MANIFESTS = ["swin_tiny_w7", "vil_2262_w7", "cvt_tiny_w7", "deit_small_p16", "resnet50"]
SLOW_MANIFESTS = [
    "swin_tiny_w14",
    "swin_small_w7",
    "swin_small_w14",
    "swin_base_w7",
    "swin_base_w14",
]
Convert = Callable[..., dict[str, Any]]


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Convert:
    """Run `esvit convert` with words; the report on its last line."""

    def program(*words: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["convert", *map(str, words)]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        return report

    return program


def assert_same_names(checkpoint: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare the names of both networks, in their order."""
    for network in ("student", "teacher"):
        # pytest explains unequal lists of this length for minutes.
        assert checkpoint[network].keys() ^ expected[network].keys() == set()
        assert all(
            ours == theirs
            for ours, theirs in zip(checkpoint[network], expected[network], strict=True)
        )


def numbers_of_golden(
    backbone: RegionBackbone, heads_path: Path, case: Any, groups: list[list[int]]
) -> dict[str, Any]:
    """Outputs for some crops through both heads, rows ordered as in the goldens."""
    pooled, regions, counts = [], [], []
    for group in groups:
        features = backbone(torch.cat([case.tensors[f"crops.{crop}"] for crop in group]).float())
        pooled.append(features.pooled)
        regions.append(features.regions.flatten(0, 1))
        counts.append(features.regions.shape[1])
    sizes = {"hidden_dim": 48, "bottleneck_dim": 16}
    outputs = {"num_regions": torch.tensor(counts), "region_features": torch.cat(regions)}
    for task, saved in read_heads(heads_path).items():
        head = ProjectionHead(backbone.feature_dim, 64, **sizes)
        head.load_state_dict(saved.state)
        rows = torch.cat(pooled if task == "view" else regions)
        outputs[f"{task}_logits"] = head(rows) @ head.prototypes().T
    return outputs


@every_golden
@pytest.mark.parametrize(
    ("weights", "groups"), [("teacher", [[0, 1]]), ("student", [[0, 1], [2, 3]])]
)
@torch.no_grad()
def test_goldens_through_the_folder(
    name: str,
    weights: str,
    groups: list[list[int]],
    golden: Callable[[str], Any],
    convert: Convert,
    tmp_path: Path,
) -> None:
    case, output = golden(name), tmp_path / "model"
    report = convert(case.checkpoint, output, "--with_heads", "--weights", weights, *FIELDS[name])
    backbone = load_backbone(str(output))
    tasks = ["view", "region"] if case.spec["dense"] else ["view"]
    assert report == {
        "output": str(output),
        "model_type": backbone.model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "heads": tasks,
    }
    numbers = numbers_of_golden(backbone, output / HEADS_FILE, case, groups)
    expected = {
        key.partition(".")[2]: value
        for key, value in case.tensors.items()
        if key.startswith(f"{weights}.")
    }
    assert expected.keys() >= {"view_logits"}
    for key, value in expected.items():
        torch.testing.assert_close(
            numbers[key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    if weights == "teacher":
        crop = case.tensors["crops.0"].float()
        features = backbone(crop)
        torch.testing.assert_close(
            features.pooled, case.tensors["features.view"], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            features.regions, case.tensors["features.regions"], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            backbone.pooled_blocks(crop, 4), case.tensors["features.last4"], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(
    "name", ["swin_w7_view", "swin_w7_view_region", "swin_w14_view_region", "vit_view_region"]
)
@torch.no_grad()
def test_attentions_of_goldens(
    name: str, golden: Callable[[str], Any], convert: Convert, tmp_path: Path
) -> None:
    case = golden(name)
    convert(case.checkpoint, tmp_path / "model", *FIELDS[name])
    model = AutoModel.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    attentions = model(case.tensors["crops.0"].float(), output_attentions=True).attentions
    last = case.tensors["attention.last"]
    torch.testing.assert_close(attentions[-1][: len(last)], last, rtol=0, atol=1e-6)
    if name.startswith("swin"):
        first = case.tensors["attention.first"]
        torch.testing.assert_close(attentions[0][: len(first)], first, rtol=0, atol=1e-6)


@every_golden
def test_a_folder_goes_back_to_the_reference(
    name: str, golden: Callable[[str], Any], convert: Convert, tmp_path: Path
) -> None:
    case, folder, file = golden(name), tmp_path / "model", tmp_path / "back.pth"
    convert(case.checkpoint, folder, "--with_heads", *FIELDS[name])
    report = convert(folder, file, "--to_reference", "--with_heads")
    original, back = (read_reference_checkpoint(path) for path in (case.checkpoint, file))
    tasks = ["view", "region"] if case.spec["dense"] else ["view"]
    assert report == {"output": str(file), "tensors": len(original["teacher"]), "heads": tasks}
    assert_same_names(back, original)
    for key, tensor in original["teacher"].items():
        assert back["teacher"][key].dtype == tensor.dtype, key
        assert torch.equal(back["teacher"][key], tensor), key
    assert back["dino_loss"].keys() == original["dino_loss"].keys()
    assert all(
        torch.equal(back["dino_loss"][key], tensor) for key, tensor in original["dino_loss"].items()
    )
    convert(file, tmp_path / "again", "--with_heads", *FIELDS[name])
    for part in ("model.safetensors", HEADS_FILE):
        first, second = load_file(folder / part), load_file(tmp_path / "again" / part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_converted_folder_is_ready_for_the_hub(
    golden: Callable[[str], Any], convert: Convert, tmp_path: Path
) -> None:
    for name in ("swin_w7_view_region", "vit_view_region"):
        convert(golden(name).checkpoint, tmp_path / name, "--with_heads", *FIELDS[name])
        check_card(tmp_path / name)
        assert foreign_code(tmp_path / name) == []
    # test_zoo_build does the same for a network of this package.
    check_loads(tmp_path / "vit_view_region")


def test_without_heads_the_reference_gets_the_backbone_alone(
    golden: Callable[[str], Any], tmp_path: Path
) -> None:
    case = golden("swin_w7_view_region")
    load_reference_model(case.checkpoint).save_pretrained(tmp_path)
    back = convert_to_reference(str(tmp_path))
    original = read_reference_checkpoint(case.checkpoint)["teacher"]
    assert list(back["teacher"]) == [key for key in original if not key.startswith("head")]
    assert back["dino_loss"] == {}


CVT = {
    "hidden_sizes": [8, 12],
    "depths": [1, 2],
    "num_heads": [1, 2],
    "patch_sizes": [7, 3],
    "patch_strides": [4, 2],
    "patch_padding": [2, 1],
    "window_size": [3, 4],
    "mlp_ratio": [2.0, 4.0],
    "qkv_kernel_sizes": [3, 5],
    "qkv_bias": [True, False],
}
VIL = {
    "patch_sizes": [4, 2],
    "hidden_sizes": [8, 12],
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}
SWIN = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
RESNET = {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 2]}


@pytest.mark.parametrize(
    ("model_type", "fields", "given"),
    [
        (
            "esvit_swin",
            {**SWIN, "use_absolute_embeddings": True, "qkv_bias": False},
            ["image_size"],
        ),
        ("esvit_cvt", CVT, ["num_heads", "window_size", "patch_strides", "patch_padding"]),
        (
            "esvit_cvt",
            {**CVT, "deep_stem": True, "relative_position_bias": True},
            ["patch_strides", "patch_padding"],
        ),
        ("esvit_vil", {**VIL, "sparse_stages": [True, False], "num_global_tokens": [2, 1]}, []),
        (
            "esvit_vil",
            {**VIL, "sparse_stages": [True, True], "num_global_tokens": [0, 1], "qkv_bias": False},
            [],
        ),
        (
            "esvit_vil",
            {
                **VIL,
                "sparse_stages": [True, False],
                "num_global_tokens": [1, 0],
                "position_embedding": "absolute",
            },
            ["num_heads", "window_size"],
        ),
        (
            "vit",
            {"hidden_size": 192, "num_hidden_layers": 2, "intermediate_size": 8, "qkv_bias": False},
            [],
        ),
        ("resnet", {**RESNET, "layer_type": "bottleneck"}, []),
    ],
)
def test_options_that_no_golden_has_go_there_and_back(
    model_type: str, fields: dict[str, Any], given: list[str], tmp_path: Path
) -> None:
    size = {} if model_type == "resnet" else {"image_size": 64}
    torch.manual_seed(0)
    options = {"add_pooling_layer": False} if model_type == "vit" else {}
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **size, **fields), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    torch.save(convert_to_reference(str(tmp_path)), tmp_path / "checkpoint.pth")
    config_fields = {name: size[name] if name in size else fields[name] for name in given}
    back = load_reference_model(tmp_path / "checkpoint.pth", **config_fields)
    before, after = model.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(
        getattr(back.config, name) in (value, tuple(value) if isinstance(value, list) else value)
        for name, value in fields.items()
    )


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_heads_of_any_depth_go_there_and_back(
    num_layers: int,
    batch_norm: bool,
    golden: Callable[[str], Any],
    convert: Convert,
    tmp_path: Path,
) -> None:
    folder, file = tmp_path / "model", tmp_path / "checkpoint.pth"
    convert(golden("swin_w7_view").checkpoint, folder)
    head = ProjectionHead(
        64, 20, hidden_dim=12, bottleneck_dim=6, num_layers=num_layers, batch_norm=batch_norm
    )
    write_heads({"region": SavedHead(head.state_dict(), torch.rand(20))}, folder / HEADS_FILE)
    convert(folder, file, "--to_reference", "--with_heads")
    checkpoint = read_reference_checkpoint(file)
    first = "mlp.weight" if num_layers == 1 else "mlp.0.weight"
    # Networks with batch norms are wrapped in the reference, to synchronize them.
    wrapped = "module." if batch_norm and num_layers > 1 else ""
    assert f"{wrapped}head_dense.{first}" in checkpoint["teacher"]
    assert convert(file, tmp_path / "again", "--with_heads")["heads"] == ["region"]
    before, after = (load_file(path / HEADS_FILE) for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    head.load_state_dict(read_heads(tmp_path / "again" / HEADS_FILE)["region"].state)


@pytest.mark.parametrize(
    "name",
    [*DEFAULT_MANIFESTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_MANIFESTS)],
)
def test_released_architectures_convert_at_full_size(
    name: str, manifest: Callable[[str], Any], golden: Callable[[str], Any], tmp_path: Path
) -> None:
    expected = manifest(name)
    torch.save(
        full_size_checkpoint(expected, golden, with_heads=False), tmp_path / "checkpoint.pth"
    )
    model = load_reference_model(tmp_path / "checkpoint.pth")
    assert (
        sum(parameter.numel() for parameter in model.parameters())
        == expected["backbone_parameters"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DEFAULT_MANIFESTS, *SLOW_MANIFESTS])
def test_released_architectures_go_there_and_back_with_heads(
    name: str,
    manifest: Callable[[str], Any],
    golden: Callable[[str], Any],
    convert: Convert,
    tmp_path: Path,
) -> None:
    expected = manifest(name)
    original = full_size_checkpoint(expected, golden, with_heads=True)
    torch.save(original, tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "model", "--with_heads")
    back = convert_to_reference(str(tmp_path / "model"), with_heads=True)
    assert_same_names(back, expected)
    for network in ("student", "teacher"):
        for key, tensor in back[network].items():
            assert [list(tensor.shape), str(tensor.dtype)[6:]] == expected[network][key], key
    for key, tensor in original["teacher"].items():
        assert torch.equal(back["teacher"][key], tensor), key
    assert all(
        torch.equal(back["dino_loss"][key], tensor) for key, tensor in original["dino_loss"].items()
    )
    # pytest keeps the folders of several runs.
    shutil.rmtree(tmp_path / "model")


def test_a_converted_checkpoint_continues_pretraining(
    golden: Callable[[str], Any], convert: Convert, tmp_path: Path
) -> None:
    case, folder = golden("swin_w7_view_region"), tmp_path / "model"
    convert(case.checkpoint, folder, "--with_heads")
    words = [
        *(
            "demo",
            "--model.name",
            str(folder),
            "--model.config",
            "{}",
        ),
        *(
            "--heads.num_prototypes",
            "64",
            "--heads.hidden_dim",
            "48",
            "--heads.bottleneck_dim",
            "16",
        ),
        *(
            "--data.dataset",
            str(FASHION_MNIST),
            "--data.train_split",
            "train[:16]",
        ),
        *(
            "--run.output_dir",
            str(tmp_path / "run"),
            "--run.batch_size",
            "8",
            "--schedule.max_steps",
            "1",
            "--schedule.num_epochs",
            "1",
        ),
        *(
            "--optimizer.warmup_epochs",
            "0",
            "--data.num_workers",
            "0",
            "--run.knn_every_epochs",
            "0",
            "--run.trackers",
            "[]",
        ),
    ]
    parts = build_parts(read_recipe(words))
    reference = read_reference_checkpoint(case.checkpoint)
    for task, prefix, center in (
        ("view", "head", "center"),
        ("region", "head_dense", "center_grid"),
    ):
        head = parts.teacher.head(task)
        direction = reference["teacher"][f"{prefix}.last_layer.weight_v"]
        assert torch.equal(head.prototype_direction, direction)
        assert torch.equal(
            parts.centers[task].get_buffer("center"), reference["dino_loss"][center][0]
        )
    assert main(["pretrain", *words]) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| start | weights of `model` |" in card and str(tmp_path) not in card
    before, after = (load_file(path / HEADS_FILE) for path in (folder, tmp_path / "run"))
    assert before.keys() == after.keys()
    # One step of a slow average: near the start, and not the start.
    for key in ("view_head.layers.0.weight", "region_head.layers.4.weight"):
        assert 0 < (after[key] - before[key]).norm() < 0.05 * before[key].norm()
