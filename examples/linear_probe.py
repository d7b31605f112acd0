"""Train a linear classifier on frozen features: `python examples/linear_probe.py MODEL DATASET`."""

from typing import Any, Literal

from accelerate import Accelerator

from esvit_hf.backbones import load_backbone
from esvit_hf.command_line import run
from esvit_hf.data.sources import load_image_source
from esvit_hf.evaluation.features import extract_features, load_image_processor, shared_labels
from esvit_hf.evaluation.linear_probe import LEARNING_RATES, linear_probe


def main(
    model: str,
    dataset: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    blocks: int = 4,
    learning_rates: float | list[float] = list(LEARNING_RATES),  # noqa: B006 - shown by --help, never changed
    epochs: int = 100,
    probe_batch_size: int = 256,
    validation_fraction: float = 0.1,
    seed: int = 0,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any] | None:
    """Linear-probe accuracy of a vision model's features, as in DINO and EsViT but without augmentation.

    Features of the last blocks are computed once; all learning rates are trained on them together; the one that is
    best on a held-out part of the training images is trained on all of them and tested once. The last line of the
    output is a JSON object with accuracies in percent.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        train_split: images to train on, for example train or train[:10%].
        test_split: images to test on.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        blocks: number of last blocks whose pooled features are concatenated; 1 takes the view feature.
        learning_rates: rate for a batch of 256, or several as '[0.01,0.1]'.
        epochs: passes over the features.
        probe_batch_size: features a step of the probe.
        validation_fraction: held-out share of the training images.
        seed: of the probe's initialisation, split and order.
        processor: Hub name or folder whose image processor prepares the images; the model's own if not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once on each device while features are computed.
        num_workers: processes that decode images, for each device.
        mixed_precision: number format of the features' computation.
    """
    accelerator = Accelerator(mixed_precision=mixed_precision)
    sources = [
        load_image_source(
            dataset, split=split, config_name=config_name, image_column=image_column, label_column=label_column
        )
        for split in (train_split, test_split)
    ]
    train_labels, test_labels = shared_labels(*sources)
    backbone = load_backbone(model, revision=revision, trust_remote_code=trust_remote_code)
    image_processor = load_image_processor(processor or model, revision=None if processor else revision)
    train, test = (
        extract_features(
            backbone,
            source,
            image_processor,
            blocks=blocks,
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
        for source in sources
    )
    if not accelerator.is_main_process:
        return None
    result = linear_probe(
        train.values,
        train_labels,
        test.values,
        test_labels,
        learning_rates=learning_rates if isinstance(learning_rates, list) else [learning_rates],
        epochs=epochs,
        batch_size=probe_batch_size,
        validation_fraction=validation_fraction,
        seed=seed,
        device=accelerator.device,
    )
    return {
        "model": model,
        "dataset": dataset,
        "train_images": len(train.values),
        "test_images": len(test.values),
        "top1": round(100 * result.top1, 3),
        "top5": round(100 * result.top5, 3),
        "mean_per_class": round(100 * result.mean_per_class, 3),
        "learning_rate": result.learning_rate,
        "validation_top1": {str(rate): round(100 * top1, 3) for rate, top1 in result.validation.items()},
    }


if __name__ == "__main__":
    run(main)
