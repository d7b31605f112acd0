"""Pretrain a small Swin on real images, then compare it with its own random start: `make demo`."""

import json
import shlex
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.command_line import report_errors
from esvit_hf.data.sources import load_image_source
from esvit_hf.evaluation.classifiers.linear_probe import linear_probe
from esvit_hf.evaluation.classifiers.nearest_neighbors import knn_accuracy
from esvit_hf.features.extraction import extract_features, shared_labels
from esvit_hf.figures.training_curves import plot_training
from esvit_hf.hub.cards import update_card
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, write_measurements
from esvit_hf.pretraining import PretrainingArguments, parse_arguments, pretrain
from esvit_hf.pretraining.build import build_backbone
from esvit_hf.pretraining.checkpoint import complete_checkpoints
from esvit_hf.pretraining.run_folder import dataset_name, make_processor

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
NEIGHBORS = 20


def evaluate(backbone: RegionBackbone, arguments: PretrainingArguments) -> dict[str, float]:
    """Return k-NN and linear-probe top-1 on the test images."""
    accelerator, processor = (
        Accelerator(mixed_precision=arguments.mixed_precision),
        make_processor(arguments),
    )
    backbone.to(accelerator.device).eval()
    sources = [
        load_image_source(arguments.dataset, split=split)
        for split in (arguments.train_split, arguments.knn_split)
    ]
    train_labels, test_labels = shared_labels(*sources)
    train, test = (
        extract_features(
            backbone,
            source,
            processor,
            batch_size=500,
            num_workers=arguments.num_workers,
            accelerator=accelerator,
        )
        for source in sources
    )
    knn = knn_accuracy(train.values, train_labels, test.values, test_labels, k=(NEIGHBORS,))
    probe = linear_probe(train.values, train_labels, test.values, test_labels)
    return {"knn": next(iter(knn.values()))[0], "linear": probe.top1}


def record(arguments: PretrainingArguments, row: dict[str, float]) -> None:
    """Put the teacher's numbers and figure into its folder's card."""
    # A card names no folders of this machine.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = shlex.join(["python", "examples/demo.py", *words])
    write_measurements(
        [
            Measurement(
                task,
                dataset_name(arguments),
                arguments.knn_split,
                "top1",
                round(100 * row[name], 2),
                protocol,
                command,
            )
            for task, name, protocol in (
                ("k-NN", "knn", f"k = {NEIGHBORS}, T = 0.07"),
                ("linear probe", "linear", "view feature, 100 epochs"),
            )
        ],
        arguments.output_dir / MEASUREMENTS_FILE,
    )
    update_card(arguments.output_dir)


@report_errors
def main() -> int:
    """Train, evaluate, print the table and write the figure."""
    arguments = parse_arguments([str(RECIPE), *sys.argv[1:]])
    if complete_checkpoints(arguments.output_dir / "checkpoints"):
        print(
            f"{arguments.output_dir} holds a demo: it goes on from there (make clean starts anew)"
        )
        arguments.resume = True
    result = pretrain(arguments)
    if result.interrupted:
        return 128 + result.signal
    set_seed(arguments.seed)
    networks = {
        "random network": build_backbone(arguments),
        "teacher": load_backbone(str(arguments.output_dir)),
    }
    table = {name: evaluate(backbone, arguments) for name, backbone in networks.items()}
    figure = arguments.output_dir / "training.png"
    plot_training(arguments.output_dir / "metrics.jsonl", arguments.num_prototypes).save(figure)
    record(arguments, table["teacher"])
    print(
        f"\n{'top-1 on the test images (%)':<30}{f'k-NN (k = {NEIGHBORS})':>16}{'linear probe':>16}"
    )
    for name, row in table.items():
        print(f"{name:<30}{100 * row['knn']:>16.1f}{100 * row['linear']:>16.1f}")
    print(f"\nfigure: {figure}\nmodel: {arguments.output_dir} (AutoModel.from_pretrained loads it)")
    print(json.dumps(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
