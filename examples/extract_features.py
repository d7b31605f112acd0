"""Features of all images of a data set, in plain PyTorch: `python examples/extract_features.py
MODEL DATASET`.

`esvit features` does it on several processes, with workers that decode.
"""

import argparse

import torch
from datasets import load_dataset
from safetensors.torch import save_file
from transformers import AutoImageProcessor

from esvit_hf.backbones.loading import load_backbone


@torch.no_grad()
def main() -> None:
    """Save view features (N, C) and the mean of the regions (N, C)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="Hub name or folder of any vision network")
    parser.add_argument("dataset", help="Hub name or folder, with a column 'image'")
    parser.add_argument("--split", default="train")
    parser.add_argument("--output", default="features.safetensors")
    words = parser.parse_args()
    backbone = load_backbone(words.model)
    processor = AutoImageProcessor.from_pretrained(words.model)
    images = load_dataset(words.dataset, split=words.split)["image"]
    pooled, regions = [], []
    for start in range(0, len(images), 64):
        batch = [image.convert("RGB") for image in images[start : start + 64]]
        features = backbone(**processor(batch, return_tensors="pt"))
        pooled.append(features.pooled)
        regions.append(features.regions.mean(dim=1))
    save_file({"pooled": torch.cat(pooled), "regions": torch.cat(regions)}, words.output)
    print(f"{words.output}: {len(images)} rows of {backbone.feature_dim} channels")


if __name__ == "__main__":
    main()
