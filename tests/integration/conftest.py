"""Fixtures of whole programs: a Hub on this machine, and a folder to put there."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests.support.hub_server import TOKEN, HubServer, running_hub
from tests.support.small_networks import export_small_run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub that this process talks to, logged in, with a cache of its own."""
    with running_hub() as server:
        # What the library reads from the environment when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pretraining run leaves, with by-products, without the run; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "small_run"
    export_small_run("esvit_swin", folder)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (folder / "recipe.yaml").write_text(f"run: {{output_dir: {folder}}}\n")
    (folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    (folder / "checkpoints" / "step-000000001" / "optimizer.safetensors").write_bytes(b"tensors")
    return folder


@pytest.fixture
def run_folder(exported_run: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(exported_run, tmp_path / "small_run"))
