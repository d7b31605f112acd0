"""Our networks where users of transformers put them: pipelines, Trainer, UperNet, device maps, half
precision.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors import safe_open
from tests.support.paths import EXAMPLES
from tests.support.small_networks import SMALL_NETWORKS, WITHOUT_EFFECT
from transformers import (
    CONFIG_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PretrainedConfig,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from esvit_hf import EsvitImageProcessor

every_network = pytest.mark.parametrize("name", SMALL_NETWORKS)


def make_config(name: str, **fields: Any) -> PretrainedConfig:
    return AutoConfig.for_model(
        name, image_size=32, drop_path_rate=0.0, **SMALL_NETWORKS[name], **fields
    )


def make_processor() -> EsvitImageProcessor:
    return EsvitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(autouse=True)
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved folders carry code; with the package installed, nobody is asked whether to run it."""
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail(f"asked: {prompt}"))


@pytest.fixture
def image() -> Image.Image:
    return Image.effect_noise((50, 40), 90).convert("RGB")


@pytest.fixture(scope="module")
def dark_and_bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of dark (label 0) and bright (label 1) noise."""
    folder = tmp_path_factory.mktemp("dark_and_bright")
    random = np.random.default_rng(0)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["dark", "bright"])})
    for split, count in (("train", 32), ("test", 12)):
        labels = [index % 2 for index in range(count)]
        pixels = [
            random.integers(140 * label, 140 * label + 100, (32, 32, 3), dtype=np.uint8)
            for label in labels
        ]
        rows = {"image": [Image.fromarray(values) for values in pixels], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    return folder


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_network_of_the_package_is_covered() -> None:
    assert {name for name in CONFIG_MAPPING if name.startswith("esvit_")} == set(SMALL_NETWORKS)


@every_network
def test_feature_extraction_pipeline(name: str, image: Image.Image, tmp_path: Path) -> None:
    model = AutoModel.from_config(make_config(name)).eval()
    model.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**make_processor()(image, return_tensors="pt"))
    regions = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")(image)
    pooled = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu", pool=True)(
        image
    )
    torch.testing.assert_close(torch.tensor(regions), expected.last_hidden_state)
    torch.testing.assert_close(torch.tensor(pooled), expected.pooler_output)


@every_network
def test_classification_pipeline(name: str, image: Image.Image, tmp_path: Path) -> None:
    labels = {0: "cat", 1: "dog", 2: "owl"}
    model = AutoModelForImageClassification.from_config(
        make_config(name, id2label=labels, initializer_range=0.5)
    )
    model.eval().save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**make_processor()(image, return_tensors="pt")).logits.softmax(-1)[0]
    found = pipeline("image-classification", model=str(tmp_path), device="cpu")(image)
    ranked = expected.argsort(descending=True).tolist()
    assert [row["label"] for row in found] == [labels[number] for number in ranked]
    assert [row["score"] for row in found] == pytest.approx(
        [float(expected[number]) for number in ranked], abs=1e-5
    )


@every_network
def test_fine_tuning_example_learns_and_saves_what_it_measured(
    name: str, dark_and_bright: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = AutoModel.from_config(make_config(name))
    start.save_pretrained(tmp_path / "start")
    make_processor().save_pretrained(tmp_path / "start")
    report = load_example("fine_tune").main(
        str(tmp_path / "start"),
        str(dark_and_bright),
        output_dir=tmp_path / "tuned",
        epochs=4,
        batch_size=8,
        learning_rate=3e-3,
        gradient_checkpointing=True,
        num_workers=0,
    )
    json.dumps(report)
    assert report["top1"] == report["mean_per_class"] == 100
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned").eval()
    assert model.config.id2label == {0: "dark", 1: "bright"}
    assert model.config.label2id == {"dark": 0, "bright": 1}
    before = dict(start.named_parameters())
    unchanged = [
        key for key, value in model.network.named_parameters() if torch.equal(value, before[key])
    ]
    assert all(key.endswith(WITHOUT_EFFECT) for key in unchanged)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tuned")
    assert processor.crop_size == {"height": 32, "width": 32}
    classify = pipeline(
        "image-classification", model=model, image_processor=processor, device="cpu"
    )
    for brightness, label in ((30, "dark"), (220, "bright")):
        assert classify(Image.new("RGB", (32, 32), (brightness,) * 3))[0]["label"] == label


@every_network
def test_trainer_with_gradient_checkpointing_takes_the_same_steps(
    name: str, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    examples = [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": n % 2}
        for n in range(8)
    ]
    torch.manual_seed(0)
    start = AutoModelForImageClassification.from_config(
        make_config(name, num_labels=2)
    ).state_dict()
    losses, weights = [], []
    for checkpointing in (False, True):
        model = AutoModelForImageClassification.from_config(make_config(name, num_labels=2))
        model.load_state_dict(start)
        if checkpointing:
            model.gradient_checkpointing_enable()
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            max_grad_norm=0,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        losses.append(
            Trainer(model=model, args=arguments, train_dataset=examples).train().training_loss
        )
        weights.append(model.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-5)
        trained = value.is_floating_point() and not key.endswith(WITHOUT_EFFECT)
        assert not trained or not torch.equal(value, start[key]), key


@every_network
def test_upernet_trains_our_backbone(name: str) -> None:
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=make_config(name, out_features=["stage1", "stage2"]),
        use_auxiliary_head=False,
        hidden_size=16,
    )
    config.num_labels = 2
    model = UperNetForSemanticSegmentation(config).train()
    assert type(model.backbone) is AutoBackbone._model_mapping[CONFIG_MAPPING[name]]
    pixels = torch.randn(2, 3, 40, 32)
    masks = (pixels.mean(1) > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        output = model(pixel_values=pixels, labels=masks)
        output.loss.backward()
        losses.append(output.loss.item())
        optimizer.step()
    assert output.logits.shape == (2, 2, 40, 32)
    assert losses[-1] < losses[0]
    for key, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0 or key.endswith(WITHOUT_EFFECT), key


@every_network
def test_segmentation_example_starts_from_the_pretrained_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(make_config(name))
    model.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    example = load_example("segmentation_backbone")
    loaded = example.load_backbone(str(tmp_path), pretrained=True).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
    masks = [np.tile(np.arange(40) >= border, (32, 1)).astype(np.uint8) for border in (8, 16, 24)]
    masks[0][:4] = 255
    rows = Dataset.from_dict(
        {
            "image": [Image.fromarray(mask * 200).convert("RGB") for mask in masks],
            "mask": [Image.fromarray(mask) for mask in masks],
        },
        features=Features({"image": ImageFeature(), "mask": ImageFeature()}),
    )
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    report = example.main(
        str(tmp_path), str(tmp_path / "data"), image_size=32, max_steps=60, batch_size=2
    )
    assert json.loads(json.dumps(report)) == report
    assert report["classes"] == 2
    assert report["pretrained"]["miou_after"] > 75 > report["pretrained"]["miou_before"]
    assert 0 <= report["random"]["miou_after"] <= 100


@every_network
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_map(name: str, device_map: Any, tmp_path: Path) -> None:
    model = AutoModel.from_config(make_config(name)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map=device_map).eval()
    pixels = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        found = loaded(pixels.to(loaded.device)).pooler_output.cpu()
        torch.testing.assert_close(found, model(pixels).pooler_output)


@every_network
def test_layers_spread_over_devices_stay_whole(name: str, tmp_path: Path) -> None:
    model = AutoModel.from_config(make_config(name)).eval()
    model.save_pretrained(tmp_path)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    loaded = AutoModel.from_pretrained(
        tmp_path,
        device_map="auto",
        max_memory={"cpu": int(size * 0.7)},
        offload_folder=tmp_path / "offloaded",
    ).eval()
    assert {"cpu", "disk"} == {str(device) for device in loaded.hf_device_map.values()}
    pixels = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).pooler_output, model(pixels).pooler_output)


@every_network
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_round_trip(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = AutoModel.from_config(make_config(name)).eval()
    model.to(dtype).save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert saved.keys() == model.state_dict().keys()
    assert all(value.dtype == dtype for value in saved.values() if value.is_floating_point())
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.dtype == dtype
    pixels = torch.randn(2, 3, 32, 32, dtype=dtype)
    with torch.no_grad():
        found, expected = loaded(pixels).pooler_output, model(pixels).pooler_output
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    widened = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            found.float(), widened(pixels.float()).pooler_output, rtol=0, atol=0.1
        )
