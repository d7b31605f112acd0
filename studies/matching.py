"""In which regime, and with which matching, does the region loss pay? Pretrains a small Swin whose
last map has 36 regions, by one change at a time, and measures classes, places and segments.

`python -m studies.matching run` trains and measures what is not finished yet and continues what was
stopped; `table` prints what was found, with paired tests, and writes studies/results/matching.json.
"""

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.run import describe_machine
from jsonargparse import auto_cli

from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.figures.training_curves import read_metrics
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import read_recipe
from studies.matching_table import DECISION, SCREENING, table
from studies.reproduction import (
    Usage,
    Variant,
    choose_variants,
    measure_image,
    recipe_words,
    train,
)

OUTPUT = Path("outputs/matching")
RECIPE = "tiny_imagenet_regions"
UNWATCHED = {"run.knn_every_epochs": 0, "run.trackers": []}
# Both have the same learning rate a step.
BATCHES_OF_64 = {"run.batch_size": 64, "optimizer.learning_rate": 3.0e-3}
BATCHES_OF_32 = {"run.batch_size": 32, "optimizer.learning_rate": 6.0e-3}
GLOBAL_REGIONS = 36
SIGNALS = ("region_image_share", "region_place_share", "region_effective_dimensions")


def view(epochs: int = 5, fields: dict[str, Any] | None = None) -> Variant:
    """Make a variant without region loss; its epochs take the processor time of the others'.

    Args:
        epochs: passes over the images.
        fields: other fields of the recipe, for example of another network.
    """
    return _variant({"view": {"weight": 1.0}}, epochs, fields)


def both(
    matching: dict[str, Any] | None = None,
    *,
    epochs: int = 4,
    fields: dict[str, Any] | None = None,
    **region: Any,
) -> Variant:
    """Make a variant with both losses.

    Args:
        matching: settings of the matching that are not the paper's.
        epochs: passes over the images.
        fields: other fields of the recipe, for example of another network.
        region: settings of the region objective that are not the paper's.
    """
    settings = {"weight": 0.5, **region} | ({"matching": matching} if matching else {})
    objectives = {"view": {"weight": 1.0 - settings["weight"]}, "region": settings}
    return _variant(objectives, epochs, fields)


def _variant(objectives: dict[str, Any], epochs: int, fields: dict[str, Any] | None) -> Variant:
    own = {"objectives": objectives, "schedule.num_epochs": epochs}
    return Variant(UNWATCHED | BATCHES_OF_64 | own | (fields or {}), recipe=RECIPE)


POSITION = {"rule": "position"}
# With batches of 64, 4 epochs take about a quarter more processor time than 5 of V.
MORE: dict[str, Any] = {"weight": 0.7, "num_prototypes": 1024}
BEST: dict[str, Any] = {"weight": 0.85, "num_prototypes": 1024}
GLOBAL_ONLY = {"min_regions": GLOBAL_REGIONS}
# Half of the images is half of the processor time.
HALF = {"data.train_split": "train[:50%]"}
# As the Swin: maps of 12 x 12 and 6 x 6 tokens, of 6 x 6 and 3 x 3 for small crops, and windows
# that divide them.
CVT = HALF | {
    "model.name": "esvit_cvt",
    "model.config": {
        "image_size": 48,
        "hidden_sizes": [48, 96],
        "depths": [1, 2],
        "num_heads": [2, 4],
        "patch_sizes": [7, 3],
        "patch_strides": [4, 2],
        "patch_padding": [2, 1],
        "window_size": [3, 3],
        "mlp_ratio": [4, 4],
        "qkv_kernel_sizes": [3, 3],
        "qkv_bias": [True, True],
        "drop_path_rate": 0.0,
    },
}
VIL = HALF | {
    "model.name": "esvit_vil",
    "model.config": {
        "image_size": 48,
        "patch_sizes": [4, 2],
        "hidden_sizes": [48, 96],
        "depths": [1, 2],
        "num_heads": [2, 4],
        "window_size": 3,
        "sparse_stages": [True, False],
        "num_global_tokens": [1, 0],
        "drop_path_rate": 0.0,
    },
}
VARIANTS = {
    "V": view(),
    "V+R": both(),
    "falling": both(weight_end=0.0, weight_shape="linear"),
    "position": both(POSITION),
    "image center": both({"image_center": 0.5}),
    "centered features": both({"center_features": True}),
    "global crops": both(GLOBAL_ONLY),
    "position, falling": both(POSITION, weight_end=0.0, weight_shape="linear"),
    "position, global crops": both(POSITION | GLOBAL_ONLY),
    "mixture": both({"rule": "mixture"}),
    "weight 0.2": both(weight=0.2),
    "more prototypes": both(num_prototypes=1024),
    "softer targets": both(teacher_temperature=0.06),
    "CvT V": view(fields=CVT),
    "CvT position": both(POSITION, fields=CVT),
    "position, weight 0.7": both(POSITION, weight=0.7),
    "position, weight 0.85": both(POSITION, weight=0.85),
    "position, weight 0.7, 1024 prototypes": both(POSITION, **MORE),
    "ViL V": view(fields=VIL),
    "ViL position": both(POSITION, fields=VIL),
    "ViL position, weight 0.7, 1024 prototypes": both(POSITION, fields=VIL, **MORE),
    "small batches V": view(6, BATCHES_OF_32),
    "small batches position": both(POSITION, fields=BATCHES_OF_32, **BEST),
    "small batches position, weight 0.7": both(POSITION, fields=BATCHES_OF_32, **MORE),
    "long V": view(12, BATCHES_OF_32),
    "long position": both(POSITION, epochs=8, fields=BATCHES_OF_32, **BEST),
    "small batches ViL V": view(6, VIL | BATCHES_OF_32),
    "small batches ViL position": both(POSITION, epochs=5, fields=VIL | BATCHES_OF_32, **MORE),
    "random": Variant(training="none", recipe=RECIPE),
}


@dataclass(frozen=True)
class Splits:
    """What a network is measured on.

    Attributes:
        train: labeled images to learn from.
        test: labeled images to classify.
        places: images whose regions have to find their places.
        segments: images with masks to segment.
    """

    train: str
    test: str
    places: str
    segments: str


SCREENING_SPLITS = Splits("train[:50%]", "train[50%:]", "train[:2000]", "validation")
DECISION_SPLITS = Splits("train", "validation", "validation", "test")


def measure(folder: Path, dataset: str, dense_dataset: str, splits: Splits) -> dict[str, float]:
    """Measure a network by tasks of `esvit evaluate`.

    Args:
        folder: of the network.
        dataset: labeled images.
        dense_dataset: images with masks.
        splits: of both.

    Returns:
        Shares in percent.
    """

    def tasks(source: str, names: str, **settings: Any) -> dict[str, Any]:
        report = evaluate(
            folder,
            source,
            tasks=names,
            features_folder=folder / "features",
            num_workers=0,
            **settings,
        )
        assert report is not None
        found: dict[str, Any] = report["tasks"]
        return found

    classes = tasks(
        dataset,
        "knn,linear",
        train_split=splits.train,
        test_split=splits.test,
        knn={"k": [20]},
        linear={"blocks": [1]},
    )
    places = tasks(dataset, "correspondence", test_split=splits.places)
    segments = tasks(
        dense_dataset,
        "dense",
        test_split=splits.segments,
        dense={"image_size": 144, "void": [11], "bank_size": 30_000},
    )
    return {
        "knn": classes["knn"]["accuracies"][0]["top1"],
        "linear": classes["linear"]["top1"],
        **{row["protocol"]: row["accuracy"] for row in places["correspondence"]["protocols"]},
        **{name: segments["dense"][name] for name in ("miou_retrieval", "miou_linear")},
    }


def result_name(decide: bool) -> str:
    """Name the file of a measurement."""
    return DECISION if decide else SCREENING


def finish(
    variant: str, recipe: Recipe, dataset: str, dense_dataset: str, *, decide: bool
) -> dict[str, Any]:
    """Measure a run that has been trained, and write its result."""
    folder = recipe.run.output_dir
    usage, metrics = Usage.read(folder), folder / "metrics.jsonl"
    last = read_metrics(metrics)[-1] if metrics.exists() else {}
    result = {
        "variant": variant,
        "seed": recipe.run.seed,
        "epochs": recipe.schedule.num_epochs,
        "steps": last.get("step", 0),
        "processor_seconds": usage.processor_seconds,
        **{name: last[name] for name in SIGNALS if name in last},
        **measure(folder, dataset, dense_dataset, DECISION_SPLITS if decide else SCREENING_SPLITS),
        "machine": describe_machine(),
    }
    (folder / result_name(decide)).write_text(json.dumps(result, indent=2) + "\n")
    return result


def run(
    dataset: str,
    dense_dataset: str,
    *,
    variants: list[str] | None = None,
    seeds: list[int] = [0],  # noqa: B006 - shown by --help, never changed
    decide: bool = False,
    output: Path = OUTPUT,
    fields: list[str] | None = None,
) -> None:
    """Train and measure all runs that have no result yet, seed by seed; several processes share the
    work if each has its own variants or seeds.

    Args:
        dataset: Hub name or path of the images to pretrain on, with labels for the measures alone.
        dense_dataset: Hub name or path of images with masks, 11 where a pixel does not count.
        variants: names of variants; all by default.
        seeds: of weights, order and crops; variants of one seed start from the same weights.
        decide: test on validation and test images. Without it, one half of the training images is
            classified by the other.
        output: folder of the runs.
        fields: fields of the recipe to change in all variants, as on the command line.

    Raises:
        ValueError: for an unknown variant.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    chosen = choose_variants(variants, VARIANTS)
    for seed in seeds:
        for name, variant in chosen.items():
            folder = (output / f"{name.replace(' ', '_')}-seed{seed}").resolve()
            if not (folder / result_name(decide)).exists():
                words = recipe_words(variant, dataset, "validation", seed, folder, fields or [])
                recipe = read_recipe(words)
                if not (folder / result_name(not decide)).exists():
                    train(variant, words, recipe)
                finish(name, recipe, dataset, dense_dataset, decide=decide)
            print(folder / result_name(decide), flush=True)


def time(
    dataset: str, *, variants: list[str] | None = None, steps: int = 20, rounds: int = 2
) -> None:
    """Print the processor time of an image in training, variant by variant, in turns.

    Args:
        dataset: Hub name or path of the images.
        variants: names of variants; all by default.
        steps: optimizer steps of the shorter of two runs.
        rounds: times that each variant is measured.
    """
    for _ in range(rounds):
        for name, variant in choose_variants(variants, VARIANTS).items():
            if variant.training == "none":
                continue
            seconds = measure_image(variant, dataset, "validation", steps, [])
            print(f"{1000 * seconds:6.2f} ms  {name}", flush=True)


if __name__ == "__main__":
    auto_cli({"run": run, "table": table, "time": time}, as_positional=False)
