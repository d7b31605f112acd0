"""Pretraining runs of seconds, as command lines and as functions, and what they leave behind."""

import json

import torch
from safetensors.torch import load_file
from tests.support.paths import FASHION_MNIST, ROOT

from esvit_hf.pretraining.recipe_reading import read_recipe

VIEWS = (
    "[{count: 2, size: 32, scale: [0.15, 1.0], teacher: true, blur_probability: 0.0}, "
    "{count: 2, size: 16, scale: [0.08, 0.3], blur_probability: 0.0}]"
)
"""Global and local crops for the images of the demo, which itself has no local ones."""

TIMES = {"images_per_second", "training_seconds"}
"""Numbers of `metrics.jsonl` that no two runs have in common."""


def small_run(output_dir, *overrides):
    """Arguments of a run of seconds: the demo's data, a tiny network, six steps of sixteen
    images.
    """
    return read_recipe(
        [
            "demo",
            *("--data.dataset", str(FASHION_MNIST), "--data.views", VIEWS),
            *("--run.output_dir", str(output_dir)),
            *(
                "--model.config",
                '{"image_size": 32, "embed_dim": 8, "depths": [1, 2], '
                '"num_heads": [1, 2], "window_size": 4}',
            ),
            *(
                "--heads.num_prototypes",
                "32",
                "--heads.hidden_dim",
                "16",
                "--heads.bottleneck_dim",
                "8",
            ),
            *("--objectives", "{view: {weight: 0.5}, region: {weight: 0.5}}"),
            *("--optimizer", "{learning_rate: 2e-3, warmup_epochs: 1}"),
            *("--schedule.freeze_last_layer_epochs", "1"),
            *(
                "--run.batch_size",
                "16",
                "--schedule.max_steps",
                "6",
                "--schedule.num_epochs",
                "1",
                "--data.num_workers",
                "0",
            ),
            *(
                "--run.logging_steps",
                "2",
                "--run.knn_every_epochs",
                "0",
                "--run.mixed_precision",
                "no",
                "--run.trackers",
                "[]",
            ),
            *overrides,
        ]
    )


def read_metrics(output_dir):
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def networks(output_dir):
    """Everything a run exports, and the tensors of its last checkpoint."""
    tensors = load_file(output_dir / "model.safetensors") | load_file(
        output_dir / "pretraining_heads.safetensors"
    )
    last = sorted((output_dir / "checkpoints").iterdir())[-1]
    return tensors | {
        f"{file.name}/{name}": value
        for file in last.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def assert_equal_runs(first, second):
    left, right = networks(first), networks(second)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def command(output_dir, *overrides):
    return [
        *(str(ROOT / "examples" / "pretrain.py"), "demo"),
        *(
            "--data.dataset",
            str(FASHION_MNIST),
            "--data.views",
            VIEWS,
            "--run.output_dir",
            str(output_dir),
            "--data.num_workers",
            "1",
        ),
        *(
            "--run.knn_every_epochs",
            "0",
            "--run.trackers",
            "[]",
            "--run.batch_size",
            "16",
            "--schedule.num_epochs",
            "1",
            *overrides,
        ),
    ]
