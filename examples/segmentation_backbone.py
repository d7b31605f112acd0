"""One training step of UperNet on our feature maps: `python examples/segmentation_backbone.py
MODEL`.

The masks are made up: a pixel counts as clothing if it is brighter than the black background of
Fashion-MNIST.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import esvit_hf  # noqa: F401 - registers the networks
from esvit_hf.commands.command_line import run
from esvit_hf.data.sources import load_image_source

IMAGES = Path(__file__).parents[1] / "src" / "esvit_hf" / "recipes" / "fashion_mnist"
BACKGROUND_BRIGHTNESS = 0.1


def load_pretrained_backbone(model: str) -> Any:
    """Load a model so that it returns the feature maps of all its stages."""
    config = AutoConfig.from_pretrained(model)
    stages = [name for name in config.stage_names if name != "stem"]
    config = AutoConfig.from_pretrained(model, out_features=stages)
    # AutoBackbone.from_pretrained looks for local folders on the Hub; the class that it stands for
    # does not.
    return type(AutoBackbone.from_config(config)).from_pretrained(model, config=config)


def main(
    model: str, *, batch_size: int = 4, learning_rate: float = 1e-4, seed: int = 0
) -> dict[str, Any]:
    """Put a pretrained backbone into UperNet and take one training step, on images of this
    repository.

    The masks are made up (bright pixels). The last line of the output is a JSON object with the
    loss before and after the step and the shapes of the feature maps.

    Args:
        model: Hub name or folder of one of this project's models.
        batch_size: images of the step, at least 2.
        learning_rate: of the step.
        seed: of UperNet's own weights.
    """
    torch.manual_seed(seed)
    backbone = load_pretrained_backbone(model)
    config = UperNetConfig(
        backbone_config=backbone.config, use_auxiliary_head=False, hidden_size=64
    )
    config.num_labels = 2
    network = UperNetForSemanticSegmentation(config)
    network.backbone = backbone

    processor = AutoImageProcessor.from_pretrained(model)
    images = load_image_source(str(IMAGES), split=f"test[:{batch_size}]").read(
        list(range(batch_size))
    )
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    brightness = processor(images, do_normalize=False, return_tensors="pt")["pixel_values"].mean(
        dim=1
    )
    masks = (brightness > BACKGROUND_BRIGHTNESS).long()

    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    before = network.train()(pixel_values=pixel_values, labels=masks).loss
    before.backward()
    gradient = torch.nn.utils.get_total_norm(
        [p.grad for p in backbone.parameters() if p.grad is not None]
    )
    optimizer.step()
    with torch.no_grad():
        after = network(pixel_values=pixel_values, labels=masks).loss
        maps = backbone.eval()(pixel_values).feature_maps
    return {
        "model": model,
        "loss": round(before.item(), 4),
        "loss_after_step": round(after.item(), 4),
        "backbone_gradient_norm": round(gradient.item(), 6),
        "feature_maps": {
            name: list(m.shape) for name, m in zip(backbone.out_features, maps, strict=True)
        },
        "masks": "made up: pixels brighter than the background",
    }


if __name__ == "__main__":
    run(main)
