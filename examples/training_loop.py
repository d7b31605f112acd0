"""The view loss and the region loss in a loop of your own: `python examples/training_loop.py
DATASET OUTPUT_DIR`.

`esvit pretrain` adds the paper's schedules and colors, checkpoints and several processes.
"""

import argparse
import copy
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor, nn
from torchvision.transforms import v2

from esvit_hf import EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.pretraining.ema import update_teacher
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.objectives.region import region_loss
from esvit_hf.pretraining.objectives.view import view_loss

HEAD: dict[str, Any] = {"num_prototypes": 1024, "hidden_dim": 256, "bottleneck_dim": 64}
TEMPERATURES: dict[str, Any] = {"student_temperature": 0.1, "teacher_temperature": 0.04}
# Number, size and scale of the large views, which the teacher sees too, and of the small ones.
VIEWS = ((2, 32, (0.4, 1.0)), (4, 16, (0.1, 0.4)))


class Network(nn.Module):
    """A backbone with a head for views and one for regions."""

    def __init__(self) -> None:
        super().__init__()
        config = EsvitSwinConfig(
            image_size=32, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4
        )
        self.backbone = RegionBackbone(EsvitSwinModel(config))
        self.view_head = ProjectionHead(self.backbone.feature_dim, **HEAD)
        self.region_head = ProjectionHead(self.backbone.feature_dim, **HEAD)

    def forward(self, groups: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Turn groups of views (V_g, B, 3, H, W) into view bottlenecks (V, B, D), region
        bottlenecks (V_g, B, N_g, D) and regions (V_g, B, N_g, C).
        """
        features = [(self.backbone(group.flatten(0, 1)), group.shape[:2]) for group in groups]
        pooled = torch.cat([found.pooled.unflatten(0, shape) for found, shape in features])
        regions = [found.regions.unflatten(0, shape) for found, shape in features]
        return self.view_head(pooled), [self.region_head(group) for group in regions], regions


def crop(images: list[Any], count: int, size: int, scale: tuple[float, float]) -> Tensor:
    """Return random views (count, B, 3, size, size)."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4),
            v2.PILToTensor(),
        ]
    )
    views = [torch.stack([transform(image) for image in images]) for _ in range(count)]
    return torch.stack(views) / 127.5 - 1


def main() -> None:
    """Train, print the loss, and save the teacher's backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="Hub name or folder, with a column 'image'")
    parser.add_argument("output_dir", help="folder for the network")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=64)
    words = parser.parse_args()
    torch.manual_seed(0)
    images = load_dataset(words.dataset, split="train")["image"]
    student = Network()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.04)
    view_center, region_center = torch.zeros(2, HEAD["num_prototypes"])
    for step in range(words.steps):
        places = torch.randint(len(images), (words.batch_size,)).tolist()
        chosen = [images[place].convert("RGB") for place in places]
        groups = [crop(chosen, *view) for view in VIEWS]
        targets, region_targets, target_features = teacher(groups[:1])
        views, regions, features = student(groups)
        prototypes, target_prototypes = (
            (network.view_head.prototypes(), network.region_head.prototypes())
            for network in (student, teacher)
        )
        of_views = view_loss(
            *(views, prototypes[0], targets, target_prototypes[0], view_center), **TEMPERATURES
        )
        of_regions = region_loss(
            *(regions, features, prototypes[1]),
            *(region_targets, target_features, target_prototypes[1], region_center),
            **TEMPERATURES,
        )
        loss = 0.5 * of_views + 0.5 * of_regions
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        # The centers follow the teacher's mean logits, and the teacher follows the student.
        view_center.lerp_(targets.mean((0, 1)) @ target_prototypes[0].T, 0.1)
        region_center.lerp_(region_targets[0].mean((0, 1, 2)) @ target_prototypes[1].T, 0.1)
        update_teacher(teacher.parameters(), student.parameters(), momentum=0.99)
        print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    teacher.backbone.model.save_pretrained(words.output_dir)


if __name__ == "__main__":
    main()
