"""The trained network in the repository still does what was measured: a fault that leaves shapes intact shows here."""

import torch
from benchmarks.measure import ROOT
from transformers import AutoModel

from esvit_hf.evaluation.jobs import measure_knn
from esvit_hf.zoo.entries import find_entry

ENTRY = find_entry("esvit_cvt_tiny_imagenet")
FOLDER = ROOT / "examples" / "checkpoints" / ENTRY.name
LARGEST_BYTES = 8_000_000
EXPECTED_TOP1 = 73.4
EXPECTED_FEATURE = (-0.3413, -0.3465, 0.3057, -0.5795)


def test_it_is_the_zoo_entry() -> None:
    model = AutoModel.from_pretrained(FOLDER)
    assert sum(parameter.numel() for parameter in model.parameters()) == ENTRY.architecture.parameters
    found = {name: getattr(model.config, name) for name in ENTRY.architecture.fields}
    assert found == ENTRY.architecture.fields
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= LARGEST_BYTES


def test_a_feature_is_as_it_was() -> None:
    pixels = torch.linspace(-2, 2, 3 * 48 * 48).view(1, 3, 48, 48)
    with torch.no_grad():
        feature = AutoModel.from_pretrained(FOLDER).eval()(pixels).pooler_output[0, :4]
    torch.testing.assert_close(feature, torch.tensor(EXPECTED_FEATURE), atol=1e-3, rtol=0)


def test_its_features_classify_a_small_sample_as_measured() -> None:
    images = str(ROOT / "examples" / "data" / "fashion_mnist")
    splits = {"train_split": "train[:1000]", "test_split": "test[:500]"}
    measured = measure_knn(str(FOLDER), images, **splits, k=20, num_workers=0)
    assert measured is not None
    # Two images more or less, as processors round differently.
    assert abs(measured["knn"][0]["top1"] - EXPECTED_TOP1) <= 0.4
