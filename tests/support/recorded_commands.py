"""What `recorded_numbers` runs: recipes, command lines and what of the printed results counts."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMAGES = "src/esvit_hf/recipes/fashion_mnist"
CHECKPOINTS = (
    "examples/checkpoints/esvit_swin_tiny_imagenet",
    "examples/checkpoints/esvit_cvt_tiny_imagenet",
)
# With the configuration fields that the tensors do not show.
GOLDENS: dict[str, list[str]] = {
    "swin_w7_view_region": [],
    "cvt_view_region": ["num_heads=[1,2,3,6]", "window_size=[7,7,7,7]"],
    "vil_view_region": [],
    "vit_view_region": ["num_attention_heads=4"],
}
ESVIT = ("-m", "esvit_hf.commands.main")
MODEL_FILE, HEADS_FILE, METRICS_FILE = (
    "model.safetensors",
    "pretraining_heads.safetensors",
    "metrics.jsonl",
)
TIMES = frozenset({"images_per_second", "training_seconds", "training time"})

# 500 images are 15 steps of 32, so that the second epoch begins inside the run: there the
# prototypes thaw, and the region loss joins if it starts late.
COMMON_FIELDS: dict[str, Any] = {
    "data.dataset": IMAGES,
    "data.train_split": "train[:500]",
    "heads.num_prototypes": 64,
    "heads.hidden_dim": 32,
    "heads.bottleneck_dim": 16,
    "data.views": [
        {"count": 2, "size": 32, "scale": [0.4, 1.0], "teacher": True, "solarize_probability": 0.2},
        {"count": 2, "size": 16, "scale": [0.1, 0.4]},
    ],
    "schedule.warmup_teacher_temperature": 0.04,
    "schedule.teacher_temperature": 0.06,
    "schedule.warmup_teacher_temperature_epochs": 2,
    "schedule.teacher_momentum": 0.98,
    "schedule.num_epochs": 4,
    "schedule.max_steps": 30,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_epochs": 1,
    "data.num_workers": 0,
    "run.logging_steps": 1,
    "run.trackers": [],
    "data.eval_resize_ratio": 1.0,
    "run.knn_every_epochs": 1,
    "run.knn_split": "test[:200]",
}
SWIN_FIELDS: dict[str, Any] = {
    "model.name": "esvit_swin",
    "model.config": {
        "image_size": 32,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "run.mixed_precision": "bf16",
}
NETWORK_FIELDS: dict[str, dict[str, Any]] = {
    "swin": SWIN_FIELDS,
    "cvt": {
        "model.name": "esvit_cvt",
        "model.config": {
            "image_size": 32,
            "patch_sizes": [7, 3],
            "patch_strides": [4, 2],
            "patch_padding": [2, 1],
            "hidden_sizes": [16, 32],
            "depths": [1, 2],
            "num_heads": [1, 2],
            "window_size": [4, 4],
            "mlp_ratio": [4.0, 4.0],
            "qkv_kernel_sizes": [3, 3],
            "qkv_bias": [True, True],
        },
        "objectives": {"view": {"weight": 0.5}, "region": {"weight": 0.5, "start_epoch": 1}},
    },
    "vil": {
        "model.name": "esvit_vil",
        "model.config": {
            "image_size": 32,
            "patch_sizes": [4, 2],
            "hidden_sizes": [16, 32],
            "depths": [1, 2],
            "num_heads": [1, 2],
            "sparse_stages": [True, False],
            "num_global_tokens": [1, 0],
            "window_size": 4,
        },
        "optimizer.clip_mode": "global",
        "run.checkpointed_blocks": 1,
    },
    "vit": {
        "model.name": "vit",
        "model.config": {
            "image_size": 32,
            "patch_size": 4,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        "objectives": {"view": {"weight": 1.0}},
        "heads.batch_norm": True,
        "heads.train_prototype_gain": False,
        "schedule.teacher_temperature": 0.07,
        "schedule.warmup_teacher_temperature": 0.07,
        "optimizer.learning_rate": 1e-2,
    },
}
TOTAL_BATCH = 32
ACCUMULATION_STEPS = {"cvt": 2}
SHORT_RUN: dict[str, Any] = {
    **COMMON_FIELDS,
    **SWIN_FIELDS,
    "schedule.max_steps": 2,
    "run.batch_size": TOTAL_BATCH,
}
DATA = (IMAGES, "--train_split", "train[:1000]", "--test_split", "test[:300]", "--num_workers", "0")
FEW_DATA = (
    IMAGES,
    "--train_split",
    "train[:500]",
    "--test_split",
    "test[:300]",
    "--num_workers",
    "0",
)


def pretraining_fields(network: str, processes: int) -> dict[str, Any]:
    """The recipe of a run whose steps take as many images on any number of processes."""
    accumulation_steps = ACCUMULATION_STEPS.get(network, 1)
    batch = {
        "run.accumulation_steps": accumulation_steps,
        "run.batch_size": TOTAL_BATCH // (processes * accumulation_steps),
    }
    return {**COMMON_FIELDS, **NETWORK_FIELDS[network], **batch}


def pretrain_words(recipe: Path, output_dir: Path) -> list[str]:
    return ["pretrain", str(recipe), "--run.output_dir", str(output_dir)]


def evaluate_words(model: str, report: Path, features: Path) -> list[str]:
    tasks = "knn,linear,logistic,few_shot,correspondence,attention"
    output = ("--report", str(report), "--features_folder", str(features))
    return ["evaluate", model, *DATA, "--tasks", tasks, "--linear.epochs", "20", *output]


def knn_words(model: str, features: Path) -> list[str]:
    options = ("--knn.k", "[5,20]", "--knn.temperature", "[0.05,0.07]")
    return [
        "evaluate",
        model,
        *DATA,
        "--tasks",
        "knn",
        *options,
        "--features_folder",
        str(features),
    ]


def linear_probe_words(model: str, features: Path) -> list[str]:
    options = ("--linear.blocks", "[1,4]", "--linear.epochs", "20")
    kept = ("--features_folder", str(features))
    return ["evaluate", model, *DATA, "--tasks", "linear", *options, *kept]


def augmented_probe_words(model: str, classifier: Path, features: Path) -> list[str]:
    options = (
        "--linear.augment",
        "true",
        "--linear.blocks",
        "[1]",
        "--linear.epochs",
        "3",
        "--linear.learning_rates",
        "[0.01,0.1]",
        "--linear.output_dir",
        str(classifier),
    )
    kept = ("--features_folder", str(features))
    return ["evaluate", model, *FEW_DATA, "--tasks", "linear", *options, *kept]


def features_words(model: str, blocks: int, output: Path) -> list[str]:
    options = ("--split", "test[:300]", "--blocks", str(blocks), "--num_workers", "0")
    return ["features", model, IMAGES, *options, "--output", str(output)]


def convert_words(checkpoint: Path, folder: Path, fields: list[str]) -> list[str]:
    return [
        "convert",
        str(checkpoint),
        str(folder),
        "--with_heads",
        *(f"--config.{field}" for field in fields),
    ]


def convert_back_words(folder: Path, checkpoint: Path) -> list[str]:
    return ["convert", str(folder), str(checkpoint), "--with_heads", "--to_reference"]


def push_words(folder: Path, repo_id: str, *, dry_run: bool) -> list[str]:
    return ["push", str(folder), repo_id, *(["--dry_run"] if dry_run else [])]


def knn_numbers(printed: dict[str, Any]) -> Any:
    """What `knn_words` prints, without names of models, data and folders."""
    return printed["tasks"]["knn"]["accuracies"]


def linear_probe_numbers(printed: dict[str, Any]) -> Any:
    """What the linear probes print, without names of models, data and folders."""
    return printed["tasks"]["linear"]
