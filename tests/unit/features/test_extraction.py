"""Feature extraction: placement, workers, precision, broken images, shared label numbers."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from tests.support.held_images import count_held_images
from transformers import ViTConfig, ViTModel

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.features import extraction
from esvit_hf.features.extraction import compute_features, load_image_processor, shared_labels

PROCESSOR = EsvitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def source(count: int, *, broken: tuple[int, ...] = (), labeled: bool = True) -> ImageSource:
    random = np.random.default_rng(0)
    images = [
        png(random.integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)) for index in range(count)
    ]
    for index in broken:
        images[index] = images[index][:50]
    columns: dict[str, Any] = {"image": [{"bytes": image, "path": None} for image in images]}
    features: dict[str, Any] = {"image": Image(decode=False)}
    if labeled:
        columns["label"] = [index % 3 for index in range(count)]
        features["label"] = ClassLabel(names=["a", "b", "c"])
    return ImageSource(Dataset.from_dict(columns, features=Features(features)))


@pytest.fixture(scope="module")
def backbone() -> RegionBackbone:
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    return RegionBackbone(EsvitSwinModel(config)).eval()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("blocks", [1, 3])
def test_every_row_is_the_feature_of_its_image(
    backbone: RegionBackbone, num_workers: int, blocks: int
) -> None:
    images = source(11)
    features = compute_features(
        backbone, images, PROCESSOR, blocks=blocks, batch_size=4, num_workers=num_workers
    )
    assert features.values.dtype == torch.float32 and features.values.shape == (
        11,
        {1: 16, 3: 8 + 16 + 16}[blocks],
    )
    assert features.labels is not None and features.labels.tolist() == [
        index % 3 for index in range(11)
    ]
    with torch.no_grad():
        for index in range(11):
            pixels = PROCESSOR(images.read([index]), return_tensors="pt")["pixel_values"]
            row = backbone(pixels).pooled if blocks == 1 else backbone.pooled_blocks(pixels, blocks)
            torch.testing.assert_close(features.values[index], row[0])


def test_unlabeled_images(backbone: RegionBackbone) -> None:
    assert compute_features(backbone, source(2, labeled=False), PROCESSOR).labels is None


def test_stochastic_depth_is_off_and_the_mode_comes_back(backbone: RegionBackbone) -> None:
    backbone.train()
    first, again = (compute_features(backbone, source(5), PROCESSOR).values for _ in range(2))
    assert backbone.training
    assert torch.equal(first, again)
    assert torch.equal(first, compute_features(backbone.eval(), source(5), PROCESSOR).values)
    assert not backbone.training


def test_mixed_precision_comes_from_the_accelerator(backbone: RegionBackbone) -> None:
    exact = compute_features(backbone, source(5), PROCESSOR).values
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16")
    mixed = compute_features(backbone, source(5), PROCESSOR, accelerator=accelerator).values
    AcceleratorState._reset_state(reset_partial_state=True)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_images_are_named_and_refused(backbone: RegionBackbone, num_workers: int) -> None:
    batches: list[object] = []
    with (
        backbone.register_forward_hook(lambda *call: batches.append(call)),
        pytest.raises(
            ValueError, match=r"^3 of 9 images cannot be decoded.*image 3: .*image 4: .*image 8: "
        ) as caught,
    ):
        compute_features(
            backbone, source(9, broken=(4, 3, 8)), PROCESSOR, batch_size=2, num_workers=num_workers
        )
    assert "\n" not in str(caught.value)
    # The others are read for the message, and no time is lost in the network.
    assert len(batches) == 1


def test_many_broken_images_are_counted(backbone: RegionBackbone) -> None:
    with pytest.raises(ValueError, match=r"^8 of 8 images.*and 3 more"):
        compute_features(backbone, source(8, broken=tuple(range(8))), PROCESSOR, batch_size=2)


def test_broken_files_are_named_by_their_path(backbone: RegionBackbone, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"damaged")
    files = ImageSource(Dataset.from_dict({"image": [str(tmp_path / "broken.png")]}))
    with pytest.raises(ValueError, match=r"^1 of 1 images .*image 0 \(.*/broken\.png\): the bytes"):
        compute_features(backbone, files, PROCESSOR)


def test_features_that_are_not_finite() -> None:
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=8
        )
    )
    backbone = RegionBackbone(model)
    torch.nn.init.constant_(model.embeddings.cls_token, torch.inf)
    with pytest.raises(ValueError, match="4 of 4 images are not finite, the first is image 0"):
        compute_features(backbone, source(4), PROCESSOR)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_processor_that_keeps_sizes(backbone: RegionBackbone, num_workers: int) -> None:
    keeps_sizes = EsvitImageProcessor(do_resize=False, do_center_crop=False)
    with pytest.raises(ValueError, match="cannot batch image 0 to image 1 .*fixed size") as caught:
        compute_features(backbone, source(4), keeps_sizes, batch_size=2, num_workers=num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"blocks": 0}, {"num_workers": -1}])
def test_bad_settings(backbone: RegionBackbone, setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is (-1|0): give (0|1) or more"):
        compute_features(backbone, source(2), PROCESSOR, **setting)  # type: ignore[arg-type]


def named(labels: list[int], names: list[str] | None) -> ImageSource:
    feature = ClassLabel(names=names) if names else Value("int64")
    image = {"bytes": png(np.zeros((2, 2), np.uint8)), "path": None}
    return ImageSource(
        Dataset.from_dict(
            {"image": [image] * len(labels), "label": labels},
            features=Features({"image": Image(decode=False), "label": feature}),
        )
    )


def test_labels_are_matched_by_class_name() -> None:
    train, test = shared_labels(
        named([0, 1, 2], ["cat", "dog", "owl"]), named([0, 1, 2], ["owl", "bee", "cat"])
    )
    assert (train.tolist(), test.tolist()) == ([0, 1, 2], [2, 3, 0])
    train, test = shared_labels(named([4, 5], None), named([5, 6], None))
    assert (train.tolist(), test.tolist()) == ([0, 1], [1, 2])
    train, test = shared_labels(named([0, 1], ["cat", "dog"]), named([1, 0], None))
    assert (train.tolist(), test.tolist()) == ([0, 1], [1, 0])


def test_labels_are_needed() -> None:
    with pytest.raises(ValueError, match="--label_column"):
        shared_labels(source(3), source(3, labeled=False))


def test_processor_of_a_model(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="no image processor.*--processor"):
        load_image_processor(str(tmp_path))
    PROCESSOR.save_pretrained(tmp_path)
    loaded = load_image_processor(str(tmp_path))
    images = source(1).read([0])
    assert torch.equal(
        loaded(images, return_tensors="pt")["pixel_values"],
        PROCESSOR(images, return_tensors="pt")["pixel_values"],
    )


def test_the_decoded_pixels_of_few_images_are_held_at_once(
    backbone: RegionBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = count_held_images(monkeypatch, extraction)
    compute_features(backbone, source(11), PROCESSOR, batch_size=11, num_workers=0)
    # The last of those read before may wait until the next takes its place.
    assert len(held) == 11 and max(held) <= extraction._READ_AT_ONCE + 1
