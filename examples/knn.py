"""Classify test images by their nearest training images: `python examples/knn.py MODEL DATASET`."""

from typing import Any, Literal

from accelerate import Accelerator

from esvit_hf.backbones import load_backbone
from esvit_hf.command_line import run
from esvit_hf.data.sources import load_image_source
from esvit_hf.evaluation.features import extract_features, load_image_processor, shared_labels
from esvit_hf.evaluation.knn import knn_accuracy


def main(
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

    Every test image votes with the labels of its k most similar training images (cosine), weighted by exp(cos / T).
    The last line of the output is a JSON object with top-1 and top-5 accuracy in percent for each k and temperature.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        train_split: labelled images to search, for example train or train[:10%].
        test_split: images to classify.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        k: number of neighbours, or several as '[10,20]'.
        temperature: temperature T of the votes, or several as '[0.05,0.07]'.
        processor: Hub name or folder whose image processor prepares the images; the model's own if not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
        mixed_precision: number format of the computation.
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
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
        for source in sources
    )
    if not accelerator.is_main_process:
        return None
    accuracies = knn_accuracy(
        train.values,
        train_labels,
        test.values,
        test_labels,
        k=k if isinstance(k, list) else [k],
        temperature=temperature if isinstance(temperature, list) else [temperature],
        device=accelerator.device,
    )
    rows = [
        {"k": count, "temperature": value, "top1": round(100 * top1, 3), "top5": round(100 * top5, 3)}
        for (count, value), (top1, top5) in accuracies.items()
    ]
    return {
        "model": model,
        "dataset": dataset,
        "train_images": len(train.values),
        "test_images": len(test.values),
        "knn": rows,
    }


if __name__ == "__main__":
    run(main)
