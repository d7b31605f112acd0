"""A linear probe in plain PyTorch: `python examples/linear_probe.py MODEL DATASET`.

`esvit evaluate --tasks linear` also chooses blocks and learning rate on held-out images.
"""

import argparse
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torch import Tensor, nn
from transformers import AutoImageProcessor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone

BATCH_SIZE, MOMENTUM = 256, 0.9


@torch.no_grad()
def view_features(backbone: RegionBackbone, processor: Any, rows: Dataset) -> Tensor:
    """Return the view features (N, C) of the column 'image'."""
    batches = (
        [image.convert("RGB") for image in rows["image"][start : start + 64]]
        for start in range(0, len(rows), 64)
    )
    return torch.cat(
        [backbone(**processor(batch, return_tensors="pt")).pooled for batch in batches]
    )


def train(features: Tensor, labels: Tensor, epochs: int, learning_rate: float) -> nn.Linear:
    """Train a classifier by SGD on a cosine schedule."""
    classifier = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=learning_rate, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(classifier(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return classifier


def main() -> None:
    """Train on one split and print the accuracy on another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="Hub name or folder of any vision network")
    parser.add_argument("dataset", help="Hub name or folder, with columns 'image' and 'label'")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    words = parser.parse_args()
    torch.manual_seed(0)
    backbone = load_backbone(words.model)
    processor = AutoImageProcessor.from_pretrained(words.model)
    splits = [load_dataset(words.dataset, split=s) for s in (words.train_split, words.test_split)]
    train_features, test_features = (view_features(backbone, processor, rows) for rows in splits)
    train_labels, test_labels = (torch.tensor(rows["label"][:]) for rows in splits)
    classifier = train(train_features, train_labels, words.epochs, words.learning_rate)
    accuracy = (classifier(test_features).argmax(dim=1) == test_labels).float().mean().item()
    print(f"top-1 on {words.test_split}: {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
