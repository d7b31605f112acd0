"""Fine-tune a vision model to classify images, with the Trainer: `python examples/fine_tune.py
MODEL DATASET`.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from esvit_hf.commands.command_line import run
from esvit_hf.data.cropping import sample_crop_box
from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.evaluation.command_words import flag
from esvit_hf.evaluation.metrics import load_metric
from esvit_hf.features.extraction import load_image_processor, shared_labels
from esvit_hf.hub.classifier_card import write_classifier_card
from esvit_hf.hub.push import check_target, prepare_repository, push_result


class LabeledImages(Dataset[dict[str, Any]]):
    """Images as the model takes them, randomly cropped and mirrored for training."""

    def __init__(
        self, source: ImageSource, labels: Tensor, processor: Any, *, augment: bool
    ) -> None:
        self.source, self.labels, self.processor, self.augment = source, labels, processor, augment
        size = dict(processor.crop_size or processor.size)
        self.crop_size = [
            int(size.get(side) or size["shortest_edge"]) for side in ("width", "height")
        ]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.source.read([index])[0]
        if isinstance(image, BrokenImage):
            raise ValueError(
                f"image {image.index} of {self.source.description} cannot be decoded: "
                f"{image.reason}"
            )
        settings = {}
        if self.augment:
            # Trainer seeds torch in every worker, so crops differ between workers and epochs.
            generator = random.Random(int(torch.randint(2**31, ())))
            top, left, height, width = sample_crop_box(generator, *image.size, scale=(0.25, 1.0))
            image = image.crop((left, top, left + width, top + height)).resize(
                self.crop_size, Image.Resampling.BICUBIC
            )
            if generator.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            settings = {"do_resize": False, "do_center_crop": False}
        pixels = self.processor(image, return_tensors="pt", **settings)["pixel_values"][0]
        return {"pixel_values": pixels, "labels": int(self.labels[index])}


def predicted_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (images, 1) classes for (images, classes) logits, which would fill the memory."""
    return logits.argmax(dim=-1, keepdim=True)


def measure(evaluation: EvalPrediction) -> dict[str, float]:
    """Return accuracies in percent."""
    predicted, labels = np.asarray(evaluation.predictions), np.asarray(evaluation.label_ids)
    top1 = load_metric("top_k_accuracy").compute(predictions=predicted, references=labels)
    mean = load_metric("mean_per_class_accuracy").compute(
        predictions=predicted[:, 0], references=labels
    )
    shares = {"top1": top1["top_k_accuracy"], "mean_per_class": mean["mean_per_class_accuracy"]}
    return {name: round(100 * share, 3) for name, share in shares.items()}


def main(
    model: str,
    dataset: str,
    *,
    output_dir: Path = Path("outputs/fine_tuned"),
    train_split: str = "train",
    test_split: str = "test",
    image_column: str | None = None,
    label_column: str | None = None,
    epochs: float = 30,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    gradient_checkpointing: bool = False,
    bf16: bool = False,
    num_workers: int = 2,
    seed: int = 0,
    push_to_hub: bool = False,
    hub_model_id: str | None = None,
    hub_private_repo: bool = False,
) -> dict[str, Any] | None:
    """Fine-tune all weights of a vision model on labeled images; the last line of the output is one
    JSON object.

    Args:
        model: Hub name or folder; a classifier of other classes gets a new last layer.
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        output_dir: where the classifier and its image processor are saved.
        train_split: images to train on, for example train or train[:10%].
        test_split: images to test on.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        epochs: passes over the training images.
        batch_size: images a step on each device.
        learning_rate: peak; it rises over a tenth of the steps, then falls linearly to 0.
        gradient_checkpointing: compute activations twice to save memory.
        bf16: train in bfloat16 mixed precision.
        num_workers: processes that decode images, for each device.
        seed: of new weights, order and crops.
        push_to_hub: publish the classifier on the Hub, with the login of huggingface_hub or
            HF_TOKEN.
        hub_model_id: NAME/MODEL to publish.
        hub_private_repo: make the repository private.
    """
    decisive = {
        **{"train_split": train_split, "test_split": test_split},
        **{"image_column": image_column, "label_column": label_column},
        **{"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate},
        **{"bf16": bf16, "seed": seed},
    }
    repo_id = check_target(output_dir, hub_model_id) if push_to_hub else None
    train, test = (
        load_image_source(
            dataset, split=split, image_column=image_column, label_column=label_column
        )
        for split in (train_split, test_split)
    )
    train_labels, test_labels = shared_labels(train, test)
    names = list(train.class_names or ())
    if int(test_labels.max()) >= len(names):
        raise ValueError(
            f"{test.description}: it has classes that the training images lack; choose other splits"
        )
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.05,
        warmup_steps=0.1,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=num_workers,
        seed=seed,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
    )
    if repo_id is not None and arguments.process_index == 0:
        prepare_repository(repo_id, private=hub_private_repo)
    set_seed(seed)
    processor: Any = load_image_processor(model)
    numbers = {name: number for number, name in enumerate(names)}
    classifier = AutoModelForImageClassification.from_pretrained(
        model, id2label=dict(enumerate(names)), label2id=numbers, ignore_mismatched_sizes=True
    )
    if gradient_checkpointing:
        classifier.gradient_checkpointing_enable()
    trainer = Trainer(
        model=classifier,
        args=arguments,
        train_dataset=LabeledImages(train, train_labels, processor, augment=True),
        eval_dataset=LabeledImages(test, test_labels, processor, augment=False),
        processing_class=processor,
        compute_metrics=measure,
        preprocess_logits_for_metrics=predicted_classes,
    )
    loss = trainer.train().training_loss
    results = trainer.evaluate()
    trainer.save_model()
    accuracies = {name: results[f"eval_{name}"] for name in ("top1", "mean_per_class")}
    if not trainer.is_world_process_zero():
        return None
    write_classifier_card(
        output_dir,
        classifier.config,
        accuracies,
        source=model,
        task="fine-tuning",
        dataset=dataset,
        split=test_split,
        protocol=(
            f"{epochs:g} epochs of AdamW at rate {learning_rate:g}, {batch_size} images a step of "
            f"each device"
        ),
        settings={name: value for name, value in decisive.items() if value is not None}
        | {"devices": trainer.args.world_size},
        command=[
            *("python", "examples/fine_tune.py", model, dataset),
            *(word for name, value in decisive.items() for word in flag(name, value, None)),
        ],
    )
    report = {
        "model": model,
        "dataset": dataset,
        "output_dir": str(output_dir),
        "train_loss": loss,
        **accuracies,
    }
    if repo_id is not None:
        report["pushed_to"] = push_result(output_dir, repo_id, private=hub_private_repo)
    return report


if __name__ == "__main__":
    run(main)
