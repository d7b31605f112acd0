"""Classifiers for the Hub: a linear probe and a fine-tuned network, saved with card and
published.
"""

import json
from pathlib import Path

import pytest
import torch
from esvit_hf.evaluation.jobs import measure_linear_probe
from huggingface_hub import ModelCard
from tests.support.hub_server import OWNER, HubServer
from tests.support.paths import FASHION_MNIST
from tests.support.small_networks import export_small_run
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetModel,
)

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import load_image_source
from esvit_hf.features.extraction import extract_features
from esvit_hf.hub.push import publish

SPLITS = {"train_split": "train[:300]", "test_split": "test[:60]", "num_workers": 0, "epochs": 8}
REPO = f"{OWNER}/probe"


@pytest.mark.parametrize(
    "network",
    [
        "esvit_swin",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("esvit_vil", "esvit_cvt")),
    ],
)
def test_a_saved_probe_classifies_as_it_was_measured(
    hub: HubServer, tmp_path: Path, network: str
) -> None:
    export_small_run(network, tmp_path / "run")
    folder = tmp_path / "probe"
    report = measure_linear_probe(
        str(tmp_path / "run"), str(FASHION_MNIST), **SPLITS, blocks=1, output_dir=folder
    )
    assert report is not None and report["output_dir"] == str(folder)
    classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    test = load_image_source(str(FASHION_MNIST), split=SPLITS["test_split"])
    features = extract_features(
        load_backbone(str(tmp_path / "run")), test, processor, num_workers=0
    )
    with torch.no_grad():
        pixels = processor(test.read(list(range(len(test)))), return_tensors="pt")["pixel_values"]
        logits = classifier(pixels).logits
        expected = classifier.classifier(features.values)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    share = (logits.argmax(dim=1) == features.labels).float().mean()
    assert 100 * float(share) == pytest.approx(report["top1"], abs=1e-3)
    assert [classifier.config.id2label[number] for number in range(10)] == test.class_names
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert str(tmp_path) not in str(card)
    assert publish(folder, REPO, load=False).files
    assert {"model.safetensors", "measurements.json"} <= set(hub.files(REPO))


def test_what_cannot_become_a_classifier_is_said_before_computing(
    hub: HubServer, tmp_path: Path
) -> None:
    export_small_run("esvit_swin", tmp_path / "run")
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", image_size=32
    )
    ResNetModel(resnet).save_pretrained(tmp_path / "resnet")
    AutoImageProcessor.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "resnet")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for model, blocks, fields, message in (
        ("run", 4, {"output_dir": tmp_path / "new"}, "set blocks to 1"),
        ("resnet", 1, {"output_dir": tmp_path / "new"}, "ResNetModel is not one linear layer"),
        ("run", 1, {"output_dir": taken}, "not an empty folder"),
        ("run", 1, {"push_to_hub": True, "hub_model_id": REPO}, "needs an output_dir"),
        ("run", 1, {"push_to_hub": True, "output_dir": tmp_path / "new"}, "hub_model_id"),
        (
            "run",
            1,
            {"push_to_hub": True, "output_dir": tmp_path / "new", "hub_model_id": "x"},
            "has no owner",
        ),
        (
            "run",
            1,
            {"push_to_hub": True, "output_dir": tmp_path / "new", "hub_model_id": "other/x"},
            "403",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            measure_linear_probe(
                str(tmp_path / model), str(FASHION_MNIST), **SPLITS, blocks=blocks, **fields
            )
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_probe_is_pushed_or_says_how(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_small_run("esvit_swin", tmp_path / "run")
    for fault, name in (({"status": 500}, "first"), (None, "second")):
        hub.heal()
        if fault:
            hub.fail("commit", **fault)
        report = measure_linear_probe(
            str(tmp_path / "run"),
            str(FASHION_MNIST),
            **SPLITS,
            blocks=1,
            output_dir=tmp_path / name,
            push_to_hub=True,
            hub_model_id=REPO,
        )
        assert report is not None and report["top1"] > 10
        said = capsys.readouterr().out
        if fault:
            assert report["pushed_to"] is None and f"esvit push {tmp_path / name} {REPO}" in said
        else:
            assert report["pushed_to"] == f"{hub.url}/{REPO}"
            config = json.loads(hub.files(REPO)["config.json"])
            assert config["architectures"] == ["EsvitSwinForImageClassification"]


@pytest.mark.slow
def test_a_fine_tuned_network_is_pushed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FASHION_MNIST.parents[1]))
    from fine_tune import main

    export_small_run("esvit_swin", tmp_path / "run")
    report = main(
        str(tmp_path / "run"),
        str(FASHION_MNIST),
        output_dir=tmp_path / "tuned",
        train_split="train[:200]",
        test_split="test[:50]",
        epochs=1,
        num_workers=0,
        push_to_hub=True,
        hub_model_id=REPO,
    )
    assert report is not None and report["pushed_to"] == f"{hub.url}/{REPO}"
    assert "training_args.bin" not in hub.files(REPO)
    assert (
        ModelCard(hub.files(REPO)["README.md"].decode()).data.pipeline_tag == "image-classification"
    )
