"""Does the region loss help? Pretrains what the paper compares, and evaluates it.

`python -m studies.reproduction run` trains and evaluates what is not finished yet and continues
what was stopped, so that it may be killed and started again at any time; `table` makes tables and
a figure; `regions` says what the regions of the networks tell apart; `time` measures what an image
costs, from which the epochs of a budget follow.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]
import torch
from accelerate.utils import set_seed
from benchmarks.measure import MEBIBYTE, ROOT
from benchmarks.run import describe_machine
from jsonargparse import auto_cli
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import load_image_source
from esvit_hf.evaluation.classifiers.linear_probe import linear_probe
from esvit_hf.evaluation.classifiers.nearest_neighbors import knn_accuracy
from esvit_hf.features.extraction import (
    Features,
    compute_features,
    load_image_processor,
    shared_labels,
)
from esvit_hf.figures.training_curves import read_metrics
from esvit_hf.pretraining.build import build_backbone
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import read_recipe
from esvit_hf.pretraining.run_folder import dataset_name, make_processor
from esvit_hf.regions.correspondence import measure_correspondence
from studies.regions import regions
from studies.table import RESULT, table

CVT_RECIPE, SWIN_RECIPE = "tiny_imagenet_cvt", "tiny_imagenet"
OUTPUT = Path("outputs/reproduction")
NEIGHBORS, TEMPERATURE = 20, 0.07
# The coarsest grid of the networks at the recipe's size; that of the ViT is finer, and finer grids
# are harder to match.
REGION_GRID = 3
USAGE = "usage.json"
SAMPLING_SECONDS = 1.0


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Attributes:
        fields: fields of the recipe that differ.
        training: by self-distillation, by cross-entropy with the labels, or not at all.
        recipe: name of the recipe.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    training: Literal["distillation", "labels", "none"] = "distillation"
    recipe: str = CVT_RECIPE


VIEW_LOSS = {"objectives": {"view": {"weight": 1.0}}}
# As many operations for an image as the networks of the recipes, and a single stage.
VIT = {
    "model.name": "vit",
    "model.config": {
        "image_size": 48,
        "patch_size": 8,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 384,
        # PyTorch's fused attention, which our networks leave out by themselves, makes a step half
        # as long again here.
        "attn_implementation": "eager",
    },
}
# Crops of 24 pixels are 3 x 3 tokens of the Swin, which merging pads to 4 x 4; crops of 32 are 4 x
# 4.
EVEN_GRIDS = {
    "data.views": [
        {"count": 2, "size": 48, "scale": [0.4, 1.0], "teacher": True, "blur_probability": 0.0},
        {"count": 4, "size": 32, "scale": [0.15, 0.4], "blur_probability": 0.0},
    ]
}
# The Swin's tokens and channels. Chunks of 2 x 2 leave the tokens of 48 pixels some that they do
# not attend to.
VIL = {
    "model.name": "esvit_vil",
    "model.config": {
        "image_size": 48,
        "patch_sizes": [8, 2],
        "hidden_sizes": [96, 192],
        "depths": [2, 2],
        "num_heads": [3, 6],
        "window_size": 2,
        "sparse_stages": [True, False],
        "num_global_tokens": [1, 0],
        "drop_path_rate": 0.0,
    },
}
# As the recipe was when these were run.
SWIN = {"run.batch_size": 64, "optimizer.learning_rate": 3e-3, "schedule.num_epochs": 26}
BOTH_LOSSES = {"objectives": {"view": {"weight": 0.5}, "region": {"weight": 0.5}}}
# The epochs give every variant the processor time of V+R's 18, by what `time` printed, or for ViL
# by half of them.
VARIANTS = {
    "V+R": Variant(),
    "V": Variant(VIEW_LOSS | {"schedule.num_epochs": 21}),
    "R": Variant({"objectives": {"region": {"weight": 1.0}}}),
    "V then V+R": Variant({"schedule.num_epochs": 20, "objectives.region.start_epoch": 13}),
    "Swin V+R": Variant(SWIN | BOTH_LOSSES | {"schedule.num_epochs": 18}, recipe=SWIN_RECIPE),
    "Swin V": Variant(SWIN, recipe=SWIN_RECIPE),
    "Swin 32 V+R": Variant(
        SWIN | EVEN_GRIDS | BOTH_LOSSES | {"schedule.num_epochs": 18}, recipe=SWIN_RECIPE
    ),
    "Swin 32 V": Variant(SWIN | EVEN_GRIDS | {"schedule.num_epochs": 21}, recipe=SWIN_RECIPE),
    "ViL 32 V+R": Variant(
        SWIN | EVEN_GRIDS | VIL | BOTH_LOSSES | {"schedule.num_epochs": 15}, recipe=SWIN_RECIPE
    ),
    "ViL 32 V": Variant(SWIN | EVEN_GRIDS | VIL | {"schedule.num_epochs": 17}, recipe=SWIN_RECIPE),
    "ViT V": Variant(VIT | VIEW_LOSS | {"schedule.num_epochs": 24}),
    "random": Variant(training="none"),
    "supervised": Variant({"schedule.num_epochs": 64}, training="labels"),
}


@dataclass(frozen=True)
class Usage:
    """What the training of a run has cost, over all its starts.

    Attributes:
        processor_seconds: of the process and its workers, on all cores together.
        peak_mebibytes: largest resident memory of the process, without its workers.
        gpu: that did the work, so that the processor's part of it says little; None if there was
            none.
    """

    processor_seconds: float = 0.0
    peak_mebibytes: float = 0.0
    gpu: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "Usage":
        path = folder / USAGE
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        partial = folder / f"{USAGE}.partial"
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(folder / USAGE)

    def measure(self, process: psutil.Process, before: "Usage") -> "Usage":
        """Return the usage with what a process has used since its start, if the starts before it
        took `before`.
        """
        seconds = sum(process.cpu_times()[:4])
        for worker in process.children(recursive=True):
            try:
                seconds += sum(worker.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        memory = process.memory_info().rss / MEBIBYTE
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else before.gpu
        return Usage(before.processor_seconds + seconds, max(self.peak_mebibytes, memory), gpu)


def recipe_words(
    variant: Variant, dataset: str, test_split: str, seed: int, folder: Path, fields: Sequence[str]
) -> list[str]:
    """Return the command line of a run: the recipe, the variant's fields, then those given."""
    changed = {
        "data.dataset": dataset,
        "run.knn_split": test_split,
        "run.seed": seed,
        "run.output_dir": str(folder),
    }
    words = [variant.recipe]
    for name, value in (variant.fields | changed).items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return [*words, *fields]


def training_command(variant: Variant, words: list[str], recipe: Recipe) -> list[str]:
    """Return the command that trains a run, or continues it."""
    folder = recipe.run.output_dir
    if variant.training == "distillation":
        resume = str((folder / "recipe.yaml").exists()).lower()
        return [
            sys.executable,
            str(ROOT / "examples" / "pretrain.py"),
            *words,
            "--run.resume",
            resume,
        ]
    epochs: float = recipe.schedule.num_epochs
    if recipe.schedule.max_steps is not None:
        images = len(load_image_source(recipe.data.dataset, split=recipe.data.train_split))
        epochs = min(epochs, recipe.schedule.max_steps * recipe.run.batch_size / images)
    settings = {
        "output_dir": folder,
        "train_split": recipe.data.train_split,
        "test_split": recipe.run.knn_split,
        "epochs": epochs,
        "batch_size": recipe.run.batch_size,
        "bf16": str(recipe.run.mixed_precision == "bf16").lower(),
        "num_workers": recipe.data.num_workers,
        "seed": recipe.run.seed,
    }
    command = [
        sys.executable,
        str(ROOT / "examples" / "fine_tune.py"),
        str(folder / "start"),
        recipe.data.dataset,
    ]
    return command + [
        word for name, value in settings.items() for word in (f"--{name}", str(value))
    ]


def save_random_network(recipe: Recipe, folder: Path) -> None:
    """Write the network of a recipe as it is before training, with its image processor."""
    set_seed(recipe.run.seed)
    build_backbone(recipe).model.save_pretrained(folder)
    make_processor(recipe).save_pretrained(folder)


def train(variant: Variant, words: list[str], recipe: Recipe) -> None:
    """Train a run to its end in a process of its own, and keep account of what that costs.

    Raises:
        RuntimeError: with the end of the run's log.
    """
    folder = recipe.run.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if variant.training == "none":
        save_random_network(recipe, folder)
        return
    if variant.training == "labels":
        if (folder / "model.safetensors").exists():
            return
        save_random_network(recipe, folder / "start")
    before = Usage.read(folder)
    log_path = folder / "log.txt"
    with log_path.open("a") as log:
        child = subprocess.Popen(training_command(variant, words, recipe), stdout=log, stderr=log)
    process, usage = psutil.Process(child.pid), before
    try:
        while child.poll() is None:
            try:
                usage = usage.measure(process, before)
                child.wait(SAMPLING_SECONDS)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, subprocess.TimeoutExpired):
                continue
            finally:
                usage.write(folder)
    finally:
        # A run that is stopped saves a checkpoint first.
        child.terminate()
        child.wait()
    if child.returncode:
        raise RuntimeError(
            f"{folder} ended with {child.returncode}:\n{log_path.read_text()[-2000:]}"
        )


def count_operations(backbone: RegionBackbone, recipe: Recipe) -> int:
    """Count the floating-point operations of one image in the network; a multiplication and
    addition are two.
    """
    size = max(view.size for view in recipe.data.views)
    # The counter knows PyTorch's own linear layers, which ours are under autocast, and attention by
    # plain products.
    plain = sdpa_kernel(SDPBackend.MATH)
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        plain,
        FlopCounterMode(display=False) as counter,
    ):
        backbone(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Splits:
    """Labeled images.

    Attributes:
        dataset: Hub name or path.
        train: split to learn from.
        test: split to test on.
    """

    dataset: str
    train: str
    test: str

    def features(
        self, backbone: RegionBackbone, processor: Callable[..., Any], num_workers: int
    ) -> tuple[Features, torch.Tensor, Features, torch.Tensor]:
        """Return features and labels of both splits."""
        sources = [
            load_image_source(self.dataset, split=split) for split in (self.train, self.test)
        ]
        train, test = (
            compute_features(backbone, source, processor, batch_size=256, num_workers=num_workers)
            for source in sources
        )
        train_labels, test_labels = shared_labels(*sources)
        return train, train_labels, test, test_labels


def evaluate(
    backbone: RegionBackbone,
    processor: Callable[..., Any],
    own: Splits,
    transfer: Splits,
    num_workers: int,
) -> dict[str, float]:
    """Measure a network with the library's protocols; shares are in percent."""
    train, train_labels, test, test_labels = own.features(backbone, processor, num_workers)
    knn = knn_accuracy(
        train.values,
        train_labels,
        test.values,
        test_labels,
        k=(NEIGHBORS,),
        temperature=(TEMPERATURE,),
    )
    shares = {
        "knn": next(iter(knn.values()))[0],
        "linear": linear_probe(
            train.values, train_labels, test.values, test_labels, progress=False
        ).top1,
    }
    train, train_labels, test, test_labels = transfer.features(backbone, processor, num_workers)
    shares["transfer"] = linear_probe(
        train.values, train_labels, test.values, test_labels, progress=False
    ).top1
    source = load_image_source(own.dataset, split=own.test)
    for protocol in ("mirror", "crops"):
        matched = measure_correspondence(
            backbone,
            source,
            processor,
            protocol=protocol,
            grid=REGION_GRID,
            num_workers=num_workers,
        )
        shares |= {protocol: matched.accuracy, f"{protocol}_chance": matched.chance_accuracy}
    return {name: 100 * share for name, share in shares.items()}


def finish(variant: str, recipe: Recipe, transfer: Splits) -> dict[str, Any]:
    """Evaluate a run that has been trained, and write its result."""
    folder = recipe.run.output_dir
    usage, metrics = Usage.read(folder), folder / "metrics.jsonl"
    backbone = load_backbone(str(folder))
    images = read_metrics(metrics)[-1]["step"] * recipe.run.batch_size if metrics.exists() else 0
    comparable = usage.processor_seconds > 0 and usage.gpu is None
    result = {
        "variant": variant,
        "seed": recipe.run.seed,
        "dataset": dataset_name(recipe),
        "epochs": recipe.schedule.num_epochs,
        "prototypes": recipe.heads.num_prototypes,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "operations": count_operations(backbone, recipe),
        "trained_on": usage.gpu or "processor",
        "processor_minutes": usage.processor_seconds / 60 if comparable else None,
        "images_per_processor_second": images / usage.processor_seconds
        if comparable and images
        else None,
        "peak_mebibytes": usage.peak_mebibytes if comparable else None,
        **evaluate(
            backbone,
            load_image_processor(str(folder)),
            Splits(recipe.data.dataset, recipe.data.train_split, recipe.run.knn_split),
            transfer,
            recipe.data.num_workers,
        ),
        "machine": describe_machine(),
    }
    partial = folder / f"{RESULT}.partial"
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(folder / RESULT)
    return result


def choose_variants(
    names: Sequence[str] | None, variants: Mapping[str, Variant] = VARIANTS
) -> dict[str, Variant]:
    """Look up variants by name, all of them by default.

    Raises:
        ValueError: for an unknown name.
    """
    unknown = sorted(set(names or ()) - set(variants))
    if unknown:
        raise ValueError(
            f"there is no variant {', '.join(unknown)}: choose from {', '.join(variants)}"
        )
    return {name: variants[name] for name in names or variants}


def measure_image(
    variant: Variant, dataset: str, test_split: str, steps: int, fields: Sequence[str]
) -> float:
    """Measure the processor time of an image in training.

    Two short runs are subtracted from each other, so that starting, exporting and evaluating do not
    count. They are too short for a region loss that joins later: such a variant costs what its two
    parts cost.

    Args:
        variant: what to train.
        dataset: Hub name or path of the images.
        test_split: split to test on.
        steps: optimizer steps of the shorter run; the longer one has three times as many.
        fields: fields of the recipe to change, as on the command line.

    Returns:
        Seconds.
    """
    seconds = []
    for length in (steps, 3 * steps):
        with tempfile.TemporaryDirectory() as folder:
            short = ["--run.knn_every_epochs", "0", "--schedule.max_steps", str(length)]
            words = recipe_words(variant, dataset, test_split, 0, Path(folder), [*fields, *short])
            recipe = read_recipe(words)
            train(variant, words, recipe)
            seconds.append(Usage.read(Path(folder)).processor_seconds)
    return (seconds[1] - seconds[0]) / (2 * steps * recipe.run.batch_size)


def run(
    dataset: str,
    transfer_dataset: str,
    *,
    test_split: str = "validation",
    transfer_train_split: str = "train",
    transfer_test_split: str = "test",
    variants: list[str] | None = None,
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - shown by --help, never changed
    output: Path = OUTPUT,
    fields: list[str] | None = None,
) -> None:
    """Train and evaluate all runs that have no result yet, one after the other; seed by seed, so
    that pairs come first.

    Several processes share the work if each has its own variants or seeds.

    Args:
        dataset: Hub name or path of the images to pretrain on; their labels serve the evaluation
            alone.
        transfer_dataset: Hub name or path of labeled images for the transfer by linear probe.
        test_split: split of the data set to test on.
        transfer_train_split: split of the transfer data to fit the probe on.
        transfer_test_split: split of the transfer data to test on.
        variants: names of variants; all by default.
        seeds: of weights, order and crops.
        output: folder of the runs.
        fields: fields of the recipe to change in all variants, as on the command line.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    chosen = choose_variants(variants)
    transfer = Splits(transfer_dataset, transfer_train_split, transfer_test_split)
    for seed in seeds:
        for name, variant in chosen.items():
            folder = (output / f"{name.replace(' ', '_')}-seed{seed}").resolve()
            if (folder / RESULT).exists():
                print(f"{folder}: finished before", flush=True)
                continue
            words = recipe_words(variant, dataset, test_split, seed, folder, fields or [])
            recipe = read_recipe(words)
            train(variant, words, recipe)
            result = finish(name, recipe, transfer)
            print(
                f"{folder}: k-NN {result['knn']:.1f} %, linear {result['linear']:.1f} %", flush=True
            )


def time(
    dataset: str,
    *,
    test_split: str = "validation",
    variants: list[str] | None = None,
    steps: int = 20,
    minutes: float = 60.0,
    fields: list[str] | None = None,
) -> None:
    """Print the processor time of an image in training, and the epochs that fit into a budget of
    processor time.

    Args:
        dataset: Hub name or path of the images.
        test_split: split to test on.
        variants: names of variants; all that are trained by default.
        steps: optimizer steps of the shorter of two runs.
        minutes: processor time of a whole run.
        fields: fields of the recipe to change in all variants, as on the command line.
    """
    print("| variant | ms an image | epochs |\n|---|---:|---:|")
    for name, variant in choose_variants(variants).items():
        if variant.training == "none":
            continue
        an_image = measure_image(variant, dataset, test_split, steps, fields or [])
        words = recipe_words(variant, dataset, test_split, 0, Path(), fields or [])
        images = len(load_image_source(dataset, split=read_recipe(words).data.train_split))
        print(
            f"| {name} | {1000 * an_image:.2f} | {60 * minutes / (an_image * images):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    auto_cli({"run": run, "time": time, "table": table, "regions": regions}, as_positional=False)
