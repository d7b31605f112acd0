"""Real runs on a GPU: that they agree with the CPU, never wait for the device, resume, and train in
shards.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from tests.support.paths import EXAMPLES, FASHION_MNIST
from tests.support.small_networks import SMALL_NETWORKS
from tests.support.small_runs import assert_equal_runs, read_metrics, small_run

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import load_image_source
from esvit_hf.features.extraction import compute_features, load_image_processor
from esvit_hf.pretraining.loop import Pretraining, pretrain

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_convolutions")]


def network(model_type, drop_path_rate=0.0):
    fields = SMALL_NETWORKS[model_type] | {"image_size": 32, "drop_path_rate": drop_path_rate}
    return "--model.name", model_type, "--model.config", json.dumps(fields)


def losses(output_dir):
    return [line["loss"] for line in read_metrics(output_dir) if "loss" in line]


def start(launcher, output_dir, like, **environment):
    """Repeat a run in processes of its own."""
    words = [
        str(EXAMPLES / "pretrain.py"),
        str(like / "recipe.yaml"),
        "--run.output_dir",
        str(output_dir),
    ]
    done = subprocess.run(
        launcher + words, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("model_type", SMALL_NETWORKS)
def test_a_run_agrees_with_the_cpu(tmp_path, model_type):
    pretrain(
        small_run(
            tmp_path / "gpu",
            *network(model_type),
            "--run.logging_steps",
            "1",
            "--data.num_workers",
            "2",
        )
    )
    start([sys.executable], tmp_path / "cpu", tmp_path / "gpu", ACCELERATE_USE_CPU="true")
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)
    images, processor = (
        load_image_source(str(FASHION_MNIST), split="test[:100]"),
        load_image_processor(str(tmp_path / "gpu")),
    )
    backbone = load_backbone(str(tmp_path / "gpu"))
    ours = compute_features(backbone, images, processor, batch_size=32).values
    assert next(backbone.parameters()).is_cuda
    with torch.no_grad():
        pixels = processor(images.read(range(100)), return_tensors="pt").pixel_values
        expected = backbone.cpu().eval()(pixels).pooled
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_step_never_waits_for_the_gpu(tmp_path, monkeypatch, precision):
    train_step = Pretraining.train_step

    def watched(run, batches, bar):
        torch.cuda.set_sync_debug_mode("error" if 2 <= run.progress.step < 5 else "default")
        try:
            train_step(run, batches, bar)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Pretraining, "train_step", watched)
    pretrain(small_run(tmp_path, "--run.mixed_precision", precision, "--run.logging_steps", "6"))


# Not ViL: on a GPU the gradients of a token's copies are added in no fixed order.
@pytest.mark.parametrize("model_type", ["esvit_swin", "esvit_cvt"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, model_type):
    words = (*network(model_type, drop_path_rate=0.3), "--run.mixed_precision", "bf16")
    pretrain(small_run(tmp_path / "whole", *words))
    pretrain(small_run(tmp_path / "parts", *words, "--schedule.max_steps", "4"))
    pretrain(small_run(tmp_path / "parts", *words, "--run.resume", "true"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("shards", ["fsdp2_zero2", "fsdp2_zero3"])
def test_a_run_in_shards_agrees_with_a_plain_one(tmp_path, shards):
    pretrain(small_run(tmp_path / "plain", *network("esvit_swin"), "--run.logging_steps", "1"))
    configuration = str(EXAMPLES / "accelerate" / f"{shards}.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", configuration]
    start([*launcher, "--num_processes", "1"], tmp_path / "shards", tmp_path / "plain")
    assert losses(tmp_path / "shards") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
