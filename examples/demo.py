"""Pretrain a small Swin on real images, then compare it with its own random start: `make demo`."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.command_line import report_errors
from esvit_hf.data.sources import load_image_source
from esvit_hf.evaluation.classifiers.linear_probe import linear_probe
from esvit_hf.evaluation.classifiers.nearest_neighbors import knn_accuracy
from esvit_hf.features.extraction import compute_features, shared_labels
from esvit_hf.figures.training_curves import plot_training
from esvit_hf.hub.cards import update_card
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, write_measurements
from esvit_hf.pretraining.build import build_backbone
from esvit_hf.pretraining.checkpoint import complete_checkpoints
from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import read_recipe
from esvit_hf.pretraining.run_folder import dataset_name, make_processor

NEIGHBORS = 20
LEARNING_RATES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Larger than those for wide networks: the features have 96 numbers."""


def evaluate(backbone: RegionBackbone, recipe: Recipe) -> dict[str, float]:
    """Return k-NN and linear-probe top-1 on the test images."""
    accelerator, processor = (
        Accelerator(mixed_precision=recipe.run.mixed_precision),
        make_processor(recipe),
    )
    backbone.to(accelerator.device).eval()
    sources = [
        load_image_source(recipe.data.dataset, split=split)
        for split in (recipe.data.train_split, recipe.run.knn_split)
    ]
    train_labels, test_labels = shared_labels(*sources)
    train, test = (
        compute_features(
            backbone,
            source,
            processor,
            batch_size=500,
            num_workers=recipe.data.num_workers,
            accelerator=accelerator,
        )
        for source in sources
    )
    knn = knn_accuracy(train.values, train_labels, test.values, test_labels, k=(NEIGHBORS,))
    probe = linear_probe(
        train.values, train_labels, test.values, test_labels, learning_rates=LEARNING_RATES
    )
    return {"knn": next(iter(knn.values()))[0], "linear": probe.top1}


def record(recipe: Recipe, row: dict[str, float], random: dict[str, float]) -> None:
    """Put the teacher's numbers, those of the random network and the figure into the card."""
    # A card names no folders of this machine.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = shlex.join(["python", "examples/demo.py", *words])
    write_measurements(
        [
            Measurement(
                task,
                dataset_name(recipe),
                recipe.run.knn_split,
                "top1",
                round(100 * row[name], 2),
                protocol,
                command,
                round(100 * random[name], 2),
            )
            for task, name, protocol in (
                ("k-NN", "knn", f"k = {NEIGHBORS}, T = 0.07"),
                ("linear probe", "linear", "view feature, 100 epochs"),
            )
        ],
        recipe.run.output_dir / MEASUREMENTS_FILE,
    )
    update_card(recipe.run.output_dir)


@report_errors
def main() -> int:
    """Train, evaluate, print the table and write the figure."""
    recipe = read_recipe(["demo", *sys.argv[1:]])
    if complete_checkpoints(recipe.run.output_dir / "checkpoints"):
        print(
            f"{recipe.run.output_dir} holds a demo: it goes on from there (make clean starts anew)"
        )
        recipe = replace(recipe, run=replace(recipe.run, resume=True))
    result = pretrain(recipe)
    if result.interrupted:
        return 128 + result.signal
    set_seed(recipe.run.seed)
    networks = {
        "random network": build_backbone(recipe),
        "teacher": load_backbone(str(recipe.run.output_dir)),
    }
    table = {name: evaluate(backbone, recipe) for name, backbone in networks.items()}
    figure = recipe.run.output_dir / "training.png"
    plot_training(recipe.run.output_dir / "metrics.jsonl", recipe.heads.num_prototypes).save(figure)
    record(recipe, table["teacher"], table["random network"])
    print(
        f"\n{'top-1 on the test images (%)':<30}{f'k-NN (k = {NEIGHBORS})':>16}{'linear probe':>16}"
    )
    for name, row in table.items():
        print(f"{name:<30}{100 * row['knn']:>16.1f}{100 * row['linear']:>16.1f}")
    print(
        f"\nfigure: {figure}\nmodel: {recipe.run.output_dir} (AutoModel.from_pretrained loads it)"
    )
    print(json.dumps(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
