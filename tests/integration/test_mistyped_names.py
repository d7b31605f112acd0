"""A mistyped name of a network or data set is said after one request to the Hub at most."""

from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants
from tests.support.hub_server import HubServer
from tests.support.photo_folders import noise, save_model

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.main import main
from esvit_hf.common.places import check_model_place, find_path
from esvit_hf.data.shards import find_shards
from esvit_hf.data.sources import load_image_source
from esvit_hf.hub.push import publish

COMMANDS = {
    "evaluate": ["MODEL", "photos"],
    "transfer": ["MODEL", "--report", "report"],
    "features": ["MODEL", "photos", "--output", "rows.parquet"],
    "correspond": ["MODEL", "a.png", "a.png", "--output", "figure.png"],
    "attention": ["MODEL", "a.png", "--query", "1,1", "--output", "figure.png"],
    "neighbors": ["MODEL", "a.png", "photos", "--output", "figure.png"],
    "demo": ["MODEL", "--dataset", "photos"],
    "export": ["MODEL", "network.onnx"],
    "convert": ["MODEL", "teacher.pth", "--to_reference"],
}


def asked(hub: HubServer) -> list[str]:
    """Paths asked for; the library looks for other things of the Hub besides."""
    return [
        path for _, _, path in hub.requests if path.startswith(("/api/models", "/api/datasets"))
    ]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where commands run, with an image and a network."""
    noise(0).save(tmp_path / "a.png")
    save_model(tmp_path / "network")
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "requests", "reason"),
    [
        ("./netwrok", 0, "there is no such folder: did you mean network?"),
        ("esvit_swin_tiny_w7_vrr", 0, "the zoo has esvit_swin_tiny_w7_vr: `esvit zoo build esvit"),
        ("a.png", 0, "which is a file: give the folder of a network"),
        ("./photos", 0, "the folder holds no config.json: give a folder that a run or save_pre"),
        (".", 0, "the folder holds no config.json: did you mean network?"),
        ("no/such-model", 1, "there is no such folder, and the Hub has no such repository"),
    ],
)
def test_networks(
    hub: HubServer,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    requests: int,
    reason: str,
) -> None:
    assert main([command, *(word.replace("MODEL", name) for word in COMMANDS[command])]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("error: ") == 1 and name in said
    assert len(asked(hub)) == requests


def test_data_sets(hub: HubServer, home: Path) -> None:
    for earlier, read in enumerate((load_image_source, find_shards)):
        for name in ("./phtos", str(home / "phtos"), "photos/trian"):
            with pytest.raises(ValueError, match=f"{name} does not exist.*; give a folder"):
                read(name)
        with pytest.raises(ValueError, match=r"phtos does not exist: did you mean \S*photos\?"):
            read("./phtos")
        assert len(asked(hub)) == earlier
        with pytest.raises(ValueError, match="no/such-data .* the Hub has no such repository"):
            read("no/such-data")
        assert len(asked(hub)) == earlier + 1


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", None])
def test_without_the_hub(
    hub: HubServer,
    home: Path,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str | None,
) -> None:
    publish(run_folder, "someone/run", load=False)
    load_backbone("someone/run")
    before = len(hub.requests)
    check_model_place("someone/run")
    assert len(hub.requests) == before
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    if endpoint is None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        reason = "switched off .HF_HUB_OFFLINE., and the cache does not hold it"
        load_backbone("someone/run")
    else:
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        reason = "cannot be reached .*, and the cache does not hold it"
    check_model_place("someone/run")
    with pytest.raises(ValueError, match=reason):
        check_model_place("someone/other")
    with pytest.raises(ValueError, match=reason):
        load_image_source("someone/data")
    assert len(hub.requests) == before


def test_a_fault_of_the_hub_is_left_to_those_who_ask_again(hub: HubServer) -> None:
    hub.fail("info", status=503)
    check_model_place("someone/run")
    hub.heal()
    with pytest.raises(ValueError, match="cannot load a model from 'resnet-50'"):
        check_model_place("resnet-50")


@pytest.mark.parametrize("name", ["./a", "../a", "/a/b", "~/a", "a/b/c", ".", "a.pth", "here/a"])
def test_paths(home: Path, name: str) -> None:
    (home / "here").mkdir()
    assert find_path(name) is not None
    assert find_path("microsoft/swin-tiny") is find_path("resnet-50") is None
