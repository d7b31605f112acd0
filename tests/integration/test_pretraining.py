"""Real runs on real images: what they leave behind, that they resume exactly, and what they
refuse.
"""

import json

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file
from tests.support.paths import FASHION_MNIST
from tests.support.process_group import start_program
from tests.support.small_networks import SMALL_NETWORKS
from tests.support.small_runs import (
    TIMES,
    assert_equal_runs,
    command,
    read_metrics,
    small_run,
)
from transformers import AutoImageProcessor, AutoModel

import esvit_hf
from esvit_hf import EsvitSwinBackbone
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.hub.cards import check_card
from esvit_hf.hub.network_rows import count_operations, describe_time
from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.recipe_reading import load_recipe, read_recipe


def test_a_run_leaves_a_loadable_teacher(tmp_path):
    result = pretrain(
        small_run(
            tmp_path,
            *("--run.knn_every_epochs", "1", "--optimizer.warmup_epochs", "0"),
            *("--run.knn_train_split", "train[:100]", "--run.knn_split", "test[:50]"),
        )
    )
    assert result.steps == 6 and not result.interrupted
    lines = read_metrics(tmp_path)
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    for line in logged:
        assert line["loss"] == pytest.approx(
            0.5 * line["view_loss"] + 0.5 * line["region_loss"], rel=1e-5
        )
    assert [line["step"] for line in lines if "knn20_top1" in line] == [0, 6]
    processor, model = (
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path).eval(),
    )
    image = load_dataset(str(FASHION_MNIST), split="test")[0]["image"]
    output = model(**processor(image, return_tensors="pt"))
    assert output.pooler_output.shape == (1, 16)
    backbone = EsvitSwinBackbone.from_pretrained(tmp_path, out_features=["stage1", "stage2"])
    maps = backbone(**processor(image, return_tensors="pt")).feature_maps
    assert [tuple(feature_map.shape[1:]) for feature_map in maps] == [(8, 8, 8), (16, 4, 4)]
    card = (tmp_path / "README.md").read_text()
    assert "AutoModel.from_pretrained" in card and "knn20_top1" in card and "embed_dim: 8" in card
    seconds = [line["training_seconds"] for line in logged]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert f"| training time | {describe_time(seconds[2])} on 1 x cpu |" in card
    operations = count_operations(model, (3, 32, 32))
    assert operations is not None and f"| {operations / 1e9:.2g} GFLOP |" in card
    assert str(tmp_path) not in card
    check_card(tmp_path)
    repeated = read_recipe([str(tmp_path / "recipe.yaml")])
    assert repeated.data.views == small_run(tmp_path).data.views


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    drop_path = ("--model.config.drop_path_rate", "0.3")
    pretrain(small_run(tmp_path / "whole", *drop_path))
    pretrain(small_run(tmp_path / "parts", *drop_path, "--schedule.max_steps", "4"))
    pretrain(small_run(tmp_path / "parts", *drop_path, "--run.resume", "true"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    numbers = [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(tmp_path / "parts")
    ]
    expected = [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(tmp_path / "whole")
    ]
    assert numbers == expected
    seconds = [line["training_seconds"] for line in read_metrics(tmp_path / "parts")]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.parametrize(
    ("overrides", "losses"),
    [
        (("--objectives", "{view: {weight: 1}}"), {"view_loss"}),
        (("--objectives", "{region: {weight: 1}}"), {"region_loss"}),
        (
            (
                "--optimizer.clip_mode",
                "global",
                "--run.accumulation_steps",
                "2",
                "--heads.batch_norm",
                "true",
            ),
            {"view_loss", "region_loss"},
        ),
        (
            ("--run.mixed_precision", "bf16", "--run.checkpointed_blocks", "2"),
            {"view_loss", "region_loss"},
        ),
        (
            ("--data.views", '[{"count": 2, "size": 32, "scale": [0.5, 1.0], "teacher": true}]'),
            {"view_loss", "region_loss"},
        ),
    ],
)
def test_variants_of_the_task_run(tmp_path, overrides, losses):
    pretrain(small_run(tmp_path, "--schedule.max_steps", "2", *overrides))
    line = read_metrics(tmp_path)[-1]
    assert {name for name in line if name in ("view_loss", "region_loss")} == losses
    assert line["gradient_norm"] > 0


def test_the_region_loss_joins_at_its_epoch(tmp_path):
    steps = (
        "--data.train_split",
        "train[:32]",
        "--schedule.num_epochs",
        "2",
        "--schedule.max_steps",
        "4",
        "--run.logging_steps",
        "1",
    )
    views = ("--data.views", '[{"count": 2, "size": 8, "scale": [0.5, 1.0], "teacher": true}]')
    pretrain(
        small_run(
            tmp_path,
            *steps,
            *views,
            "--objectives.region.start_epoch",
            "1",
            "--run.checkpoint_steps",
            "2",
        )
    )
    lines = read_metrics(tmp_path)
    assert ["region_loss" in line for line in lines] == [False, False, True, True]
    assert lines[0]["loss"] == pytest.approx(lines[0]["view_loss"])
    before = load_file(tmp_path / "checkpoints" / "step-000000002" / "student.safetensors")
    after = load_file(tmp_path / "checkpoints" / "step-000000004" / "student.safetensors")
    name = "heads.region.layers.0.weight"
    assert not torch.equal(before[name], after[name])


def test_pretraining_continues_from_a_run_with_its_heads(tmp_path):
    pretrain(small_run(tmp_path / "first"))
    fields = (
        "--model.name",
        str(tmp_path / "first"),
        "--optimizer.learning_rate",
        "1e-12",
        "--model.config",
        "{}",
    )
    pretrain(small_run(tmp_path / "second", *fields, "--schedule.max_steps", "1"))
    first, second = (
        load_file(tmp_path / run / "pretraining_heads.safetensors") for run in ("first", "second")
    )
    for name in first:
        if "center" not in name:
            torch.testing.assert_close(first[name], second[name])
    with pytest.raises(ValueError, match="view head does not fit the recipe"):
        pretrain(small_run(tmp_path / "third", *fields, "--heads.num_prototypes", "64"))


ANY_NETWORK = {name: fields | {"image_size": 32} for name, fields in SMALL_NETWORKS.items()} | {
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    | {"image_size": 32, "patch_size": 4},
    "dinov2": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "resnet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
}


@pytest.mark.parametrize("model", ANY_NETWORK)
def test_any_network_pretrains_and_is_probed(tmp_path, model):
    pretrain(
        small_run(tmp_path, "--model.name", model, "--model.config", json.dumps(ANY_NETWORK[model]))
    )
    logged = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert all(line["view_loss"] > 0 and line["region_loss"] > 0 for line in logged)
    splits = {"train_split": "train[:200]", "test_split": "test[:50]", "num_workers": 0}
    report = evaluate(
        tmp_path,
        FASHION_MNIST,
        **splits,
        tasks="linear",
        linear={"blocks": [2], "epochs": 5},
        features_folder=tmp_path / "features",
    )
    assert 0 <= report["tasks"]["linear"]["top1"] <= 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--data.dataset", "no/such/folder"), "no/such/folder"),
        (("--data.image_column", "picture"), "'picture'; set --data.image_column to one of"),
        (("--data.train_split", "training"), "check .*, --data.train_split and --data.config_name"),
        (("--run.batch_size", "20000"), "20000"),
        (("--run.resume", "true"), "no complete checkpoint"),
        (("--model.config.image_size", "30"), "image_size"),
        (("--model.config.embed_dims", "8"), "embed_dims"),
        (("--model.name", "no/such/model"), "no/such/model"),
        (("--objectives", "{}"), "objectives must name"),
        (("--run.batch_size", "0"), "batch_size"),
        (("--run.checkpointed_blocks", "4"), "has 3 blocks"),
        (("--learning_rates", "1"), "learning_rates"),
        (("--learning_rat", "1"), "learning_rat"),
        (("--run.batch_size", "many"), "batch_size"),
        (
            ("--data.views", '[{"count": 1, "size": 32, "scale": [0.5, 1.0], "teacher": true}]'),
            "views",
        ),
        (
            ("--data.views", '[{"count": 2, "size": 32, "scale": [0.5, 2.0], "teacher": true}]'),
            "scale",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        pretrain(small_run(tmp_path / "out", *overrides))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_an_unlabeled_folder_with_a_broken_file(tmp_path, capsys):
    folder = tmp_path / "photographs"
    folder.mkdir()
    modes = ("L", "RGB", "CMYK", "RGBA", "I;16", "P")
    for number, row in enumerate(load_dataset(str(FASHION_MNIST), split="test").select(range(48))):
        mode = modes[number % len(modes)]
        image = row["image"]
        image = (
            Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
            if mode == "I;16"
            else image.convert(mode)
        )
        image.save(folder / f"{number:02d}.{'jpg' if mode == 'CMYK' else 'png'}")
    (folder / "48.jpg").write_bytes(b"not an image")
    run = ("--data.dataset", str(folder), "--schedule.num_epochs", "3", "--schedule.max_steps", "9")
    pretrain(small_run(tmp_path / "out", *run, "--data.max_broken_fraction", "0.1"))
    assert read_metrics(tmp_path / "out")[-1]["broken_images"] >= 2
    assert f"image 48 ({folder / '48.jpg'}) cannot be decoded" in capsys.readouterr().out
    with pytest.raises(ValueError, match="max_broken_fraction"):
        pretrain(small_run(tmp_path / "strict", *run, "--data.max_broken_fraction", "0"))


def test_a_diverged_run_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    diverging = (
        "--optimizer.learning_rate",
        "1e30",
        "--optimizer.warmup_epochs",
        "0",
        "--run.logging_steps",
        "1",
        "--run.checkpoint_steps",
        "1",
    )
    with pytest.raises(
        FloatingPointError, match="lower optimizer.learning_rate.*there is no good checkpoint"
    ):
        pretrain(small_run(tmp_path, *diverging))
    lines = read_metrics(tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    # Its weights are finite, but no loss was finite with them.
    assert kept and kept[-1] == f"step-{lines[-1]['step'] - 1:09d}"


def test_the_online_knn_is_shown_and_may_use_another_data_set(tmp_path, capfd):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    labeled = ("--run.knn_dataset", str(FASHION_MNIST), "--run.knn_train_split", "train[:100]")
    words = ("--data.dataset", str(photos), "--schedule.max_steps", "1", *labeled)
    asked = ("--run.knn_every_epochs", "1", "--run.knn_split", "test[:50]")
    result = pretrain(small_run(tmp_path / "run", *words, *asked))
    said, shown = capfd.readouterr()
    share = result.metrics["knn20_top1"]
    assert f"step 1: knn20_top1 {share:.1%}" in said and "step 0: knn20_top1" in said
    assert f"k-NN={share:.1%}" in shown


def test_tensorboard_is_written_if_it_is_installed(tmp_path):
    pretrain(small_run(tmp_path, "--schedule.max_steps", "2", "--run.trackers", "[auto]"))
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_a_wrong_key_is_a_line_not_a_traceback(tmp_path):
    said = tmp_path / "output.txt"
    process = start_program(command(tmp_path, "--batchsize", "3"), said)
    process.join(timeout=100)
    assert process.exitcode == 2
    assert "batchsize" in said.read_text() and "Traceback" not in said.read_text()


def test_the_verb_takes_a_name_and_changes_and_chooses_its_precision_again(tmp_path):
    small = {
        "model.config": {
            "image_size": 32,
            "embed_dim": 8,
            "depths": [1, 2],
            "num_heads": [1, 2],
            "window_size": 4,
        },
        "heads": {"num_prototypes": 32, "hidden_dim": 16, "bottleneck_dim": 8},
        "run.batch_size": 16,
        "run.knn_every_epochs": 0,
        "run.trackers": [],
        "data.num_workers": 0,
        "schedule.max_steps": 1,
    }
    for precision in ("bf16", "no"):
        output = tmp_path / precision
        changes = {**small, "run.output_dir": str(output), "run.mixed_precision": precision}
        assert esvit_hf.pretrain("demo", changes).output_dir == output
        assert AutoModel.from_pretrained(output).config.embed_dim == 8
    loaded = load_recipe("demo", {**small, "run.output_dir": str(tmp_path / "loaded")})
    assert esvit_hf.pretrain(loaded, {"run.seed": 1}).steps == 1
    assert load_recipe(tmp_path / "loaded" / "recipe.yaml").run.seed == 1
