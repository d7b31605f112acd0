"""Fine-tune UperNet on our feature maps, pretrained against random:
`python examples/segmentation_backbone.py MODEL DATASET`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import esvit_hf  # noqa: F401 - registers the networks
from esvit_hf.commands.command_line import run
from esvit_hf.evaluation.dense_measuring import score_confusion
from esvit_hf.evaluation.masks import load_masks
from esvit_hf.evaluation.splits import load_splits
from esvit_hf.features.input_format import read_input_format

IGNORED = 255


def load_backbone(model: str, *, pretrained: bool) -> Any:
    """Load a network so that it returns the feature maps of all its stages."""
    config = AutoConfig.from_pretrained(model)
    stages = [name for name in config.stage_names if name != "stem"]
    config = AutoConfig.from_pretrained(model, out_features=stages)
    backbone = AutoBackbone.from_config(config)
    # AutoBackbone.from_pretrained looks for local folders on the Hub; the class that it stands for
    # does not.
    return type(backbone).from_pretrained(model, config=config) if pretrained else backbone


def load_pairs(images: Any, masks: Any, input_format: Any, size: int, void: int) -> list[Any]:
    """Resize images and masks to squares; masks take the nearest neighbor."""
    pairs = []
    for index, image in enumerate(images.read(range(len(images)))):
        pixels = torch.from_numpy(np.array(image.resize((size, size)))).permute(2, 0, 1)[None]
        mask = torch.from_numpy(masks.read(index))
        mask = interpolate(mask[None, None].float(), (size, size), mode="nearest-exact").long()[0]
        pairs.append((input_format.normalize(pixels), mask.where(mask != void, IGNORED)))
    return pairs


@torch.no_grad()
def mean_iou(network: Any, pairs: list[tuple[Tensor, Tensor]], classes: int) -> float:
    """Measure the mean IoU in percent."""
    network.eval()
    confusion = torch.zeros(classes**2, dtype=torch.int64)
    for pixel_values, mask in pairs:
        predicted = network(pixel_values=pixel_values).logits.argmax(dim=1)
        counted = mask != IGNORED
        places = mask[counted] * classes + predicted[counted]
        confusion += places.bincount(minlength=classes**2)
    return round(100 * score_confusion(confusion.view(classes, classes)).mean_iou, 2)


def main(
    model: str,
    dataset: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    void: int = IGNORED,
    image_size: int = 224,
    max_steps: int = 200,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Fine-tune UperNet on a pretrained and on a random backbone, its own weights being the same.

    The last line of the output is a JSON object with the mean IoU before and after.

    Args:
        model: Hub name or folder of one of this project's models.
        dataset: Hub name or folder, with columns 'image' and 'mask'.
        train_split: images to learn from; they are held in memory.
        test_split: images to test on.
        void: value of mask pixels that do not count.
        image_size: height and width of images and masks.
        max_steps: steps of each training.
        batch_size: images of a step, at least 2.
        learning_rate: of AdamW.
        seed: of weights and order.
    """
    images: dict[str, Any] = {
        "dataset": dataset,
        "train_split": train_split,
        "test_split": test_split,
    }
    splits, masks = load_splits(**images, labels=False), load_masks("mask", **images)
    input_format = read_input_format(AutoImageProcessor.from_pretrained(model))
    train, test = (
        load_pairs(source, source_masks, input_format, image_size, void)
        for source, source_masks in zip((splits.train, splits.test), masks, strict=True)
    )
    largest = max(int(mask.where(mask != IGNORED, 0).max()) for _, mask in train + test)
    classes = largest + 1
    report: dict[str, Any] = {"model": model, "classes": classes}
    for name in ("pretrained", "random"):
        torch.manual_seed(seed)
        backbone = load_backbone(model, pretrained=name == "pretrained")
        torch.manual_seed(seed)
        config = UperNetConfig(
            backbone_config=backbone.config, use_auxiliary_head=False, hidden_size=64
        )
        config.num_labels = classes
        network = UperNetForSemanticSegmentation(config)
        network.backbone = backbone
        before = mean_iou(network, test, classes)
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        network.train()
        for _ in range(max_steps):
            chosen = [train[index] for index in torch.randperm(len(train))[:batch_size].tolist()]
            pixel_values, labels = (torch.cat(part) for part in zip(*chosen, strict=True))
            network(pixel_values=pixel_values, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        report[name] = {"miou_before": before, "miou_after": mean_iou(network, test, classes)}
    return report


if __name__ == "__main__":
    run(main)
