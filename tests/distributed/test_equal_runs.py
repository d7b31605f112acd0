"""Seven steps of whole runs: two processes equal one, and accumulated batches equal whole ones."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.support.chaos import differences, final_state
from tests.support.double_precision import pretrain_in_double_precision
from tests.support.paths import FASHION_MNIST
from tests.support.process_group import run_on_processes
from tests.support.small_runs import VIEWS

NETWORKS = {
    "esvit_swin": {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
    }
    | {"drop_path_rate": 0.0},
    "esvit_cvt": {
        "image_size": 32,
        "patch_sizes": [7, 3],
        "patch_strides": [4, 2],
        "patch_padding": [2, 1],
    }
    | {
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": [4, 4],
        "mlp_ratio": [4.0, 4.0],
    }
    | {"qkv_kernel_sizes": [3, 3], "qkv_bias": [True, True], "drop_path_rate": 0.0},
    "resnet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}


NETWORKS["random"] = NETWORKS["esvit_swin"] | {"drop_path_rate": 0.3}


def words(output_dir, network, batch_size, accumulation_steps, *overrides):
    """The command line of a run; 101 images are three steps of 32 and five left over, so epochs end
    within it.
    """
    fields = {
        "data.dataset": FASHION_MNIST,
        "data.train_split": "train[:101]",
        "data.views": VIEWS,
        "model.name": "esvit_swin" if network == "random" else network,
        "model.config": json.dumps(NETWORKS[network]),
        "heads.num_prototypes": 32,
        "heads.hidden_dim": 16,
        "heads.bottleneck_dim": 8,
        "run.batch_size": batch_size,
        "run.accumulation_steps": accumulation_steps,
        "schedule.num_epochs": 5,
        "schedule.max_steps": 7,
        "data.num_workers": 0,
        "run.logging_steps": 1,
        "run.knn_every_epochs": 0,
        "run.mixed_precision": "no",
        "run.trackers": "[]",
        "run.output_dir": output_dir,
    }
    recipe = "demo"
    return [
        recipe,
        *(word for name, value in fields.items() for word in (f"--{name}", str(value))),
        *overrides,
    ]


# In this order: some runs go on where another number of processes has stopped.
RUNS = [
    (
        1,
        [
            ("swin_32", "esvit_swin", 32, 1),
            ("swin_4x8", "esvit_swin", 8, 4),
            ("cvt_32", "esvit_cvt", 32, 1),
            ("resnet_32", "resnet", 32, 1),
            ("swin_1_then_2", "esvit_swin", 32, 1, "--schedule.max_steps", "4"),
        ],
    ),
    (
        2,
        [
            ("swin_2x16", "esvit_swin", 16, 1),
            ("swin_2x2x8", "esvit_swin", 8, 2),
            ("cvt_2x16", "esvit_cvt", 16, 1),
            ("resnet_2x16", "resnet", 16, 1),
            ("random_whole", "random", 16, 1),
            ("random_parts", "random", 16, 1, "--schedule.max_steps", "4"),
            ("random_parts", "random", 16, 1, "--run.resume", "true"),
            ("swin_1_then_2", "esvit_swin", 16, 1, "--run.resume", "true"),
            ("swin_2_then_1", "esvit_swin", 16, 1, "--schedule.max_steps", "4"),
        ],
    ),
    (1, [("swin_2_then_1", "esvit_swin", 32, 1, "--run.resume", "true")]),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for processes, wanted in RUNS:
        plan = [words(folder / name, *settings) for name, *settings in wanted]
        run_on_processes(processes, pretrain_in_double_precision, plan)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("swin_32", "swin_4x8"),
        ("swin_32", "swin_2x16"),
        ("swin_32", "swin_2x2x8"),
        ("swin_32", "swin_1_then_2"),
        ("swin_32", "swin_2_then_1"),
        ("cvt_32", "cvt_2x16"),
        ("resnet_32", "resnet_2x16"),
    ],
)
def test_runs_are_equal_however_they_are_spread(runs, one, other):
    lines = [
        [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        for name in (one, other)
    ]
    assert len(lines[0]) == 7
    for left, right in zip(*lines, strict=True):
        for name in ("step", "loss", "view_loss", "region_loss", "gradient_norm", "learning_rate"):
            assert left[name] == pytest.approx(right[name], rel=1e-6, abs=1e-6), name
    compared = 0
    for file in (
        "model.safetensors",
        "pretraining_heads.safetensors",
        *(
            f"checkpoints/step-000000007/{name}.safetensors"
            for name in ("student", "teacher", "centers", "optimizer")
        ),
    ):
        left, right = (load_file(runs / name / file) for name in (one, other))
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            torch.testing.assert_close(
                right[name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: name + text
            )
            compared += 1
    assert compared > 60


@pytest.mark.distributed
def test_two_processes_resume_exactly(runs):
    assert differences(final_state(runs / "random_whole"), final_state(runs / "random_parts")) == []
