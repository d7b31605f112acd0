"""Evaluations from a model's and a data set's name to a report, as command lines run them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.evaluation.knn import knn_accuracy
from esvit_hf.evaluation.linear_probe import LEARNING_RATES, linear_probe
from esvit_hf.evaluation.probe_classifier import check_probe_fits, save_probe
from esvit_hf.evaluation.random_crops import AugmentedFeatures
from esvit_hf.evaluation.splits import load_splits
from esvit_hf.features.extraction import extract_features, load_image_processor
from esvit_hf.features.search import check_neighbors
from esvit_hf.hub.classifier_card import write_classifier_card
from esvit_hf.hub.push import check_target, prepare_repository, push_result

__all__ = ["measure_knn", "measure_linear_probe"]


def measure_knn(
    model: str,
    dataset: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    k: int | list[int] = [10, 20, 100, 200],  # noqa: B006 - shown by --help, never changed
    temperature: float | list[float] = 0.07,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any] | None:
    """Weighted k-NN accuracy of a vision model's features, the protocol of DINO and EsViT.

    Every test image votes with the labels of its k most similar training images (cosine), weighted
    by exp(cos / T). The last line of the output is a JSON object with top-1 and top-5 accuracy in
    percent for each k and temperature.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        train_split: labeled images to search, for example train or train[:10%].
        test_split: images to classify.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        k: number of neighbors, or several as '[10,20]'.
        temperature: temperature T of the votes, or several as '[0.05,0.07]'.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
        mixed_precision: number format of the computation.

    Returns:
        The accuracies and the number of images; None on processes but the first.

    Raises:
        ValueError: the model, its image processor, the data or a setting does not work; the message
            names the remedy.
    """
    accelerator = Accelerator(mixed_precision=mixed_precision)
    splits = load_splits(
        dataset,
        train_split=train_split,
        test_split=test_split,
        config_name=config_name,
        image_column=image_column,
        label_column=label_column,
    )
    counts = k if isinstance(k, list) else [k]
    check_neighbors(max(counts, default=0), len(splits.train))
    backbone, image_processor = _load(model, processor, revision, trust_remote_code)
    train, test = (
        extract_features(
            backbone,
            source,
            image_processor,
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
        for source in (splits.train, splits.test)
    )
    if not accelerator.is_main_process:
        return None
    accuracies = knn_accuracy(
        train.values,
        splits.train_labels,
        test.values,
        splits.test_labels,
        k=counts,
        temperature=temperature if isinstance(temperature, list) else [temperature],
        device=accelerator.device,
    )
    rows = [
        {
            "k": count,
            "temperature": value,
            "top1": round(100 * top1, 3),
            "top5": round(100 * top5, 3),
        }
        for (count, value), (top1, top5) in accuracies.items()
    ]
    return {
        "model": model,
        "dataset": dataset,
        "train_images": len(train.values),
        "test_images": len(test.values),
        "knn": rows,
    }


def measure_linear_probe(
    model: str,
    dataset: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    blocks: int | list[int] = 4,
    learning_rates: float | list[float] = list(LEARNING_RATES),  # noqa: B006 - shown by --help, never changed
    epochs: int = 100,
    augment: bool = False,
    probe_batch_size: int = 256,
    validation_fraction: float = 0.1,
    seed: int = 0,
    output_dir: Path | None = None,
    push_to_hub: bool = False,
    hub_model_id: str | None = None,
    hub_private_repo: bool = False,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any] | None:
    """Linear-probe accuracy of a vision model's features, as in DINO and EsViT.

    Classifiers for all learning rates and numbers of last blocks are trained together; the one that
    is best on a held-out part of the training images is tested. Features are computed once, unless
    images are augmented as in the papers: then they are computed in every epoch. The last line of
    the output is a JSON object with accuracies in percent.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        train_split: images to train on, for example train or train[:10%].
        test_split: images to test on.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        blocks: number of last blocks whose pooled features are concatenated, or several to choose
            from as '[1,4]'; 1 takes the view feature.
        learning_rates: rate for a batch of 256, or several to choose from as '[0.01,0.1]'.
        epochs: passes over the training images.
        augment: crop and mirror the training images at random in every epoch, which takes the
            epochs times as long.
        probe_batch_size: features a step of the probe.
        validation_fraction: held-out share of the training images.
        seed: of the probe's initialization, split, order and crops.
        output_dir: new folder for network and probe as one classifier; with `blocks` 1, for
            networks of this package.
        push_to_hub: publish that folder on the Hub, with the login of huggingface_hub or HF_TOKEN.
        hub_model_id: NAME/MODEL to publish.
        hub_private_repo: make the repository private.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once on each device while features are computed.
        num_workers: processes that decode images, for each device.
        mixed_precision: number format of the features' computation.

    Returns:
        The accuracies, the chosen setting, the number of images; None on processes but the first.

    Raises:
        ValueError: the model, its image processor, the data or a setting does not work; the message
            names the remedy.
    """
    accelerator = Accelerator(mixed_precision=mixed_precision)
    splits = load_splits(
        dataset,
        train_split=train_split,
        test_split=test_split,
        config_name=config_name,
        image_column=image_column,
        label_column=label_column,
    )
    counts = blocks if isinstance(blocks, list) else [blocks]
    options: dict[str, Any] = {
        "blocks": max(counts),
        "batch_size": batch_size,
        "num_workers": num_workers,
    }
    backbone, image_processor = _load(model, processor, revision, trust_remote_code)
    if output_dir is not None:
        check_probe_fits(backbone.model, counts, output_dir)
    if push_to_hub:
        repo_id = check_target(output_dir, hub_model_id)
        if accelerator.is_main_process:
            prepare_repository(repo_id, private=hub_private_repo)
    augmented = None
    if augment:
        augmented = AugmentedFeatures(
            backbone, splits.train, image_processor, seed=seed, accelerator=accelerator, **options
        )
    train, test = (
        extract_features(backbone, source, image_processor, accelerator=accelerator, **options)
        for source in (splits.train, splits.test)
    )
    # The features of augmented images are every process's work, epoch by epoch.
    if not accelerator.is_main_process and augmented is None:
        return None
    result = linear_probe(
        train.values,
        splits.train_labels,
        test.values,
        splits.test_labels,
        block_widths=train.block_widths,
        blocks=counts,
        learning_rates=learning_rates if isinstance(learning_rates, list) else [learning_rates],
        epochs=epochs,
        batch_size=probe_batch_size,
        validation_fraction=validation_fraction,
        seed=seed,
        device=accelerator.device,
        augmented=augmented,
        progress=accelerator.is_main_process,
    )
    if not accelerator.is_main_process:
        return None
    shares = {"top1": result.top1, "top5": result.top5, "mean_per_class": result.mean_per_class}
    accuracies = {name: round(100 * share, 3) for name, share in shares.items()}
    saved: dict[str, Any] = {}
    if output_dir is not None:
        protocol = (
            f"one linear layer on the view feature, {epochs} epochs of SGD at rate "
            f"{result.learning_rate:g}"
        )
        config = save_probe(output_dir, backbone.model, image_processor, result, splits.class_names)
        write_classifier_card(
            output_dir,
            config,
            accuracies,
            source=model,
            task="linear probe",
            dataset=dataset,
            split=test_split,
            protocol=protocol,
            command=[
                "esvit",
                "linear-probe",
                model,
                dataset,
                "--test_split",
                test_split,
                "--blocks",
                "1",
            ],
        )
        saved["output_dir"] = str(output_dir)
    if push_to_hub and output_dir is not None:
        saved["pushed_to"] = push_result(output_dir, repo_id, private=hub_private_repo)
    return {
        "model": model,
        "dataset": dataset,
        "train_images": len(train.values),
        "test_images": len(test.values),
        **accuracies,
        **saved,
        "blocks": result.blocks,
        "learning_rate": result.learning_rate,
        "validation": [
            {"blocks": count, "learning_rate": rate, "top1": round(100 * top1, 3)}
            for (count, rate), top1 in result.validation.items()
        ],
    }


def _load(
    model: str, processor: str | None, revision: str | None, trust_remote_code: bool
) -> tuple[RegionBackbone, Callable[..., Any]]:
    backbone = load_backbone(model, revision=revision, trust_remote_code=trust_remote_code)
    image_processor = load_image_processor(
        processor or model,
        revision=None if processor else revision,
        trust_remote_code=trust_remote_code,
    )
    return backbone, image_processor
