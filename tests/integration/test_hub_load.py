"""Models from the Hub: by name, revision and pull request, without this package, offline, and the
pretraining heads.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from PIL import Image
from safetensors.torch import load_file
from tests.support.hub_server import TOKEN, HubServer
from tests.support.small_networks import export_small_run
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import esvit_hf
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.hub.heads_file import HEADS_FILE, find_heads, read_heads
from esvit_hf.hub.push import publish

REPO = "someone/model"

# To look for garbage takes a quarter of the time of programs that import much and end soon.
BY_NAME = """
import gc, json, sys
gc.disable()
sys.modules["esvit_hf"] = None
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel
image, results = Image.open("image.png"), {}
for revision in json.loads(sys.argv[2]):
    pinned = {"revision": revision, "trust_remote_code": True}
    processor = AutoImageProcessor.from_pretrained(sys.argv[1], **pinned)
    model = AutoModel.from_pretrained(sys.argv[1], **pinned).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        results[revision] = model(**processor(image, return_tensors="pt")).pooler_output
save_file(results, "results.safetensors")
"""


def features(folder: Path, image: Image.Image) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pooled: torch.Tensor = model(
            **AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
        ).pooler_output
    return pooled


def change_weights(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.save_pretrained(folder)


def test_a_fresh_process_without_this_package_loads_any_revision(
    hub: HubServer, run_folder: Path, tmp_path: Path
) -> None:
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    image.save(tmp_path / "image.png")
    first = publish(run_folder, REPO, load=False)
    assert first.commit is not None
    expected = {first.commit: features(run_folder, image)}
    change_weights(run_folder)
    publish(run_folder, REPO, load=False)
    expected["main"] = features(run_folder, image)
    change_weights(run_folder)
    publish(run_folder, REPO, create_pr=True, load=False)
    expected["refs/pr/1"] = features(run_folder, image)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))
    }
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-I", "-c", BY_NAME, REPO, json.dumps(list(expected))]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "results.safetensors")
    assert len({tuple(pooled.flatten().tolist()) for pooled in expected.values()}) == 3
    for revision, pooled in expected.items():
        assert torch.equal(found[revision], pooled), revision


def test_what_is_in_the_cache_loads_offline(
    hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(run_folder, REPO, load=False).commit
    before = load_backbone(str(run_folder)).model.state_dict()
    heads = read_heads(run_folder / HEADS_FILE)
    for revision in (None, first):
        load_backbone(REPO, revision=revision)
        assert find_heads(REPO, revision) is not None
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, first):
        backbone = load_backbone(REPO, revision=revision)
        assert type(backbone.model) is esvit_hf.EsvitSwinModel
        for name, tensor in backbone.model.state_dict().items():
            assert torch.equal(tensor, before[name])
        path = find_heads(REPO, revision)
        assert path is not None
        found = read_heads(path)
        assert found.keys() == heads.keys() == {"view", "region"}
        for task in heads:
            assert torch.equal(found[task].center, heads[task].center)
    assert len(hub.requests) == asked


def test_heads_are_never_lost_silently(
    hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_folder / HEADS_FILE).unlink()
    publish(run_folder, "someone/headless", load=False)
    assert find_heads("someone/headless") is None
    export_small_run("esvit_swin", run_folder)
    publish(run_folder, REPO, load=False)
    load_backbone(REPO)
    hub.fail("resolve", status=403)
    with pytest.raises(ValueError, match="not known without the Hub"):
        find_heads(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # The cache remembers what is not there.
    assert find_heads("someone/headless") is None
    with pytest.raises(ValueError, match="hf download someone/model"):
        find_heads(REPO)


@pytest.mark.parametrize(
    ("fault", "name", "revision"),
    [
        (None, "someone/absent", None),
        (None, REPO, "no-such-branch"),
        (None, "someone/hidden", None),
        pytest.param({"status": 500}, REPO, None, marks=pytest.mark.slow),
        ({"status": 403}, REPO, None),
        ({"cut": "request"}, REPO, None),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    hub: HubServer,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict | None,
    name: str,
    revision: str | None,
) -> None:
    publish(run_folder, REPO, load=False)
    HfApi().create_repo("someone/hidden", private=True)
    monkeypatch.delenv("HF_TOKEN")
    if fault:
        hub.fail("resolve", **fault)
    with pytest.raises(ValueError, match=f"cannot load a model from '{name}'") as refusal:
        load_backbone(name, revision=revision)
    assert "\n" not in str(refusal.value)


def test_a_private_model_needs_the_login(
    hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run_folder, REPO, private=True, load=False)
    assert AutoConfig.from_pretrained(REPO).model_type == "esvit_swin"
    assert TOKEN not in (run_folder / "config.json").read_text()
