"""The trained networks in the repository still do what was measured: a fault that leaves shapes
intact shows here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.support.paths import FASHION_MNIST, ROOT
from transformers import AutoImageProcessor, AutoModel

from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.hub.cards import check_card
from esvit_hf.hub.folder import check_files, foreign_code
from esvit_hf.zoo.entries import find_entry

CHECKPOINTS = ROOT / "examples" / "checkpoints"
LARGEST_BYTES = 8_000_000
EXPECTED = {
    "esvit_cvt_tiny_imagenet": (73.4, (-0.3413, -0.3465, 0.3057, -0.5795)),
    "esvit_swin_tiny_imagenet": (69.4, (0.1358, 0.8593, -0.0155, 2.7684)),
}
# To look for garbage takes a quarter of the time of programs that import much and end soon.
WITHOUT_THE_PACKAGE = """
import gc, sys
gc.disable()
sys.modules["esvit_hf"] = None
from safetensors.torch import save_file

def keep(name):
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    image.save(f"{sys.argv[1]}/{name}.png")
    tensors = {"pooled": outputs.pooler_output, "regions": outputs.last_hidden_state}
    tensors = {kind: tensor.contiguous() for kind, tensor in tensors.items()}
    save_file(tensors, f"{sys.argv[1]}/{name}.safetensors")

"""


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_the_zoo_entry(name: str) -> None:
    architecture = find_entry(name).architecture
    model = AutoModel.from_pretrained(CHECKPOINTS / name)
    assert sum(parameter.numel() for parameter in model.parameters()) == architecture.parameters
    found = {field: getattr(model.config, field) for field in architecture.fields}
    assert found == architecture.fields
    assert sum(path.stat().st_size for path in (CHECKPOINTS / name).iterdir()) <= LARGEST_BYTES


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_ready_for_the_hub_as_it_stands(name: str) -> None:
    folder = CHECKPOINTS / name
    assert foreign_code(folder) == [], "run `make cards`"
    check_files(folder)
    check_card(folder)
    card = (ROOT / "model_cards" / f"{name}.md").read_bytes()
    assert (folder / "README.md").read_bytes() == card, "run `make cards`"


def test_the_first_blocks_of_their_cards_compute_the_same_without_this_package(
    tmp_path: Path,
) -> None:
    program = WITHOUT_THE_PACKAGE
    for name in EXPECTED:
        card = (CHECKPOINTS / name / "README.md").read_text()
        use, _, count_operations = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        program += f"{use}keep({name!r})\n{count_operations}"
    # With as many threads as here, which round alike.
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path)],
        cwd=CHECKPOINTS,
        env=kept | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    operations = [find_entry(name).architecture.operations for name in EXPECTED]
    assert [int(line) for line in done.stdout.split()] == operations
    for name in EXPECTED:
        image = Image.open(tmp_path / f"{name}.png")
        pixels = AutoImageProcessor.from_pretrained(CHECKPOINTS / name)(image, return_tensors="pt")
        # With gradients, as in the card: without them attention rounds otherwise.
        outputs = AutoModel.from_pretrained(CHECKPOINTS / name).eval()(**pixels)
        found = load_file(tmp_path / f"{name}.safetensors")
        assert torch.equal(found["pooled"], outputs.pooler_output)
        assert torch.equal(found["regions"], outputs.last_hidden_state)


@pytest.mark.parametrize(
    ("name", "expected"), [(name, feature) for name, (_, feature) in EXPECTED.items()]
)
def test_a_feature_is_as_it_was(name: str, expected: tuple[float, ...]) -> None:
    pixels = torch.linspace(-2, 2, 3 * 48 * 48).view(1, 3, 48, 48)
    with torch.no_grad():
        feature = AutoModel.from_pretrained(CHECKPOINTS / name).eval()(pixels).pooler_output[0, :4]
    torch.testing.assert_close(feature, torch.tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"), [(name, top1) for name, (top1, _) in EXPECTED.items()]
)
def test_its_features_classify_a_small_sample_as_measured(
    name: str, expected: float, tmp_path: Path
) -> None:
    measured = evaluate(
        CHECKPOINTS / name,
        FASHION_MNIST,
        train_split="train[:1000]",
        test_split="test[:500]",
        tasks="knn",
        knn={"k": [20]},
        features_folder=tmp_path,
        num_workers=0,
    )
    assert measured is not None
    # Two images more or less, as processors round differently.
    assert abs(measured["tasks"]["knn"]["accuracies"][0]["top1"] - expected) <= 0.4
