"""Classifiers for the Hub: a linear probe and a fine-tuned network, saved with card and
published.
"""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from tests.support.hub_server import OWNER, HubServer
from tests.support.paths import EXAMPLES, FASHION_MNIST
from tests.support.small_networks import export_small_run
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetModel,
)

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import load_image_source
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.features.extraction import compute_features
from esvit_hf.hub.push import check_target, publish

SPLITS = {"train_split": "train[:300]", "test_split": "test[:60]"}
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
    report = evaluate(
        tmp_path / "run",
        FASHION_MNIST,
        **SPLITS,
        tasks="linear",
        linear={"blocks": [1], "epochs": 8, "output_dir": folder},
        features_folder=tmp_path / "features",
        num_workers=0,
    )
    assert report is not None
    classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    test = load_image_source(str(FASHION_MNIST), split=SPLITS["test_split"])
    features = compute_features(
        load_backbone(str(tmp_path / "run")), test, processor, num_workers=0
    )
    with torch.no_grad():
        pixels = processor(test.read(list(range(len(test)))), return_tensors="pt")["pixel_values"]
        logits = classifier(pixels).logits
        expected = classifier.classifier(features.values)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    share = (logits.argmax(dim=1) == features.labels).float().mean()
    assert 100 * float(share) == pytest.approx(report["tasks"]["linear"]["top1"], abs=1e-3)
    assert [classifier.config.id2label[number] for number in range(10)] == test.class_names
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert str(tmp_path) not in str(card)
    assert "esvit evaluate run fashion_mnist --tasks linear" in str(card)
    assert publish(folder, REPO, load=False).files
    assert {"model.safetensors", "measurements.json"} <= set(hub.files(REPO))


def test_what_cannot_become_a_classifier_is_said_before_computing(tmp_path: Path) -> None:
    export_small_run("esvit_swin", tmp_path / "run")
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", image_size=32
    )
    ResNetModel(resnet).save_pretrained(tmp_path / "resnet")
    AutoImageProcessor.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "resnet")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for model, blocks, folder, message in (
        ("run", 4, "new", "set linear.blocks to \\[1\\]"),
        ("resnet", 1, "new", "ResNetModel is not one linear layer"),
        ("run", 1, "taken", "not an empty folder"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(
                tmp_path / model,
                FASHION_MNIST,
                **SPLITS,
                tasks="linear",
                linear={"blocks": [blocks], "output_dir": tmp_path / folder},
                features_folder=tmp_path / "features",
            )
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "features").exists()


def test_a_probe_of_a_network_in_memory_names_no_base_model(tmp_path: Path) -> None:
    export_small_run("esvit_swin", tmp_path / "run")
    evaluate(
        AutoModel.from_pretrained(tmp_path / "run"),
        FASHION_MNIST,
        **SPLITS,
        tasks="linear",
        linear={"blocks": [1], "epochs": 1, "output_dir": tmp_path / "probe"},
        processor=tmp_path / "run",
        num_workers=0,
    )
    card = ModelCard.load(tmp_path / "probe" / "README.md")
    assert card.data.base_model is None
    assert "in-memory EsvitSwinModel" in str(card)


def test_where_to_push_is_checked() -> None:
    for folder, repo_id, message in (
        (None, REPO, "needs an output_dir"),
        (Path("new"), None, "hub_model_id"),
        (Path("new"), "x", "has no owner"),
    ):
        with pytest.raises(ValueError, match=message):
            check_target(folder, repo_id)


@pytest.mark.slow
def test_a_fine_tuned_network_is_pushed_or_says_how(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from fine_tune import main

    export_small_run("esvit_swin", tmp_path / "run")
    for fault, name in (({"status": 500}, "first"), (None, "second")):
        hub.heal()
        if fault:
            hub.fail("commit", **fault)
        report = main(
            str(tmp_path / "run"),
            str(FASHION_MNIST),
            output_dir=tmp_path / name,
            train_split="train[:200]",
            test_split="test[:50]",
            epochs=1,
            num_workers=0,
            push_to_hub=True,
            hub_model_id=REPO,
        )
        said = capsys.readouterr().out
        assert report is not None
        if fault:
            assert report["pushed_to"] is None and f"esvit push {tmp_path / name} {REPO}" in said
        else:
            assert report["pushed_to"] == f"{hub.url}/{REPO}"
    assert "training_args.bin" not in hub.files(REPO)
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert card.data.pipeline_tag == "image-classification"
