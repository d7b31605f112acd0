"""What `esvit push` adds to a plain folder, and whose code it runs to check that the folder
loads.
"""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tests.support.hub_server import OWNER, HubServer
from tests.support.small_networks import SMALL_NETWORKS
from transformers import AutoConfig, AutoModel, SwinConfig, SwinModel

import esvit_hf
from esvit_hf.commands.main import main
from esvit_hf.hub.push import publish

REPO = f"{OWNER}/plain"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """What save_pretrained leaves of a network."""
    config = AutoConfig.for_model("esvit_swin", image_size=32, **SMALL_NETWORKS["esvit_swin"])
    AutoModel.from_config(config).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_plain_folder_is_completed_and_said(
    hub: HubServer, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in plain.iterdir()}
    publish(plain, REPO, load=False)
    said = capsys.readouterr().out
    assert {path.name for path in plain.iterdir()} == before
    sent = hub.files(REPO)
    added = {"README.md", "preprocessor_config.json", "image_processing_esvit.py"}
    assert set(sent) == before | added
    processor = json.loads(sent["preprocessor_config.json"])
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    assert "center crop of 32 x 32 pixels, colors by the mean and deviation of ImageNet" in said
    assert "README.md is added" in said
    card = ModelCard(sent["README.md"].decode())
    assert "# plain" in card.text and f'from_pretrained("{REPO}"' in card.text
    assert "## Training" not in card.text


@pytest.mark.parametrize("kind", ["ImageClassification", "Backbone"])
def test_other_heads_are_completed_too(hub: HubServer, tmp_path: Path, kind: str) -> None:
    config = AutoConfig.for_model(
        "esvit_swin", image_size=(32, 64), num_labels=3, **SMALL_NETWORKS["esvit_swin"]
    )
    made = {
        "ImageClassification": esvit_hf.EsvitSwinForImageClassification,
        "Backbone": esvit_hf.EsvitSwinBackbone,
    }[kind]
    made(config).save_pretrained(tmp_path / "plain")
    publish(tmp_path / "plain", REPO, load=False)
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert ("each of the 3 classes" in card.text) == (kind == "ImageClassification")
    processor = json.loads(hub.files(REPO)["preprocessor_config.json"])
    assert processor["crop_size"] == {"height": 32, "width": 64}


def test_code_that_is_missing_is_added(hub: HubServer, plain: Path) -> None:
    publish(plain, REPO, load=False)
    whole = hub.files(REPO)
    for path in plain.glob("*.py"):
        path.unlink()
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads(whole[name])
        assert values.pop("auto_map")
        (plain / name).write_text(json.dumps(values))
    publish(plain, REPO, load=False)
    bare = hub.files(REPO)
    assert bare.keys() == whole.keys()
    for name, content in bare.items():
        if name in ("config.json", "preprocessor_config.json"):
            assert json.loads(content) == json.loads(whole[name])
        else:
            assert content == whole[name], name


def test_a_network_of_transformers_is_completed(hub: HubServer, tmp_path: Path) -> None:
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=4
    )
    SwinModel(config).save_pretrained(tmp_path / "swin")
    publish(tmp_path / "swin", REPO)
    assert "image_processing_esvit.py" in hub.files(REPO)
    config.num_channels = 5
    SwinModel(config).save_pretrained(tmp_path / "five")
    with pytest.raises(ValueError, match="5 channels .* with their mean and deviation"):
        publish(tmp_path / "five", REPO)


def spy_on(folder: Path, record: Path) -> None:
    """Let the code of a folder write down the environment that it runs in."""
    code = folder / "modeling_esvit_common.py"
    code.write_text(
        f"import json as _json, os as _os\n"
        f"_place = _os.sep + _os.sep.join({list(record.parts[1:])})\n"
        f"open(_place, 'w').write(_json.dumps(dict(_os.environ)))\n" + code.read_text()
    )


def test_code_of_others_runs_on_request_alone_and_sees_no_secret(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "GITHUB_TOKEN", "SOME_PASSWORD")
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    plain = tmp_path / "classifier"
    config = AutoConfig.for_model("esvit_swin", image_size=32, **SMALL_NETWORKS["esvit_swin"])
    esvit_hf.EsvitSwinForImageClassification(config).save_pretrained(plain)
    spy_on(plain, tmp_path / "seen.json")
    assert main(["push", str(plain), REPO]) == 2
    said = capsys.readouterr().err
    assert "modeling_esvit_common.py" in said and "--trust_remote_code" in said
    assert not (tmp_path / "seen.json").exists() and REPO not in hub.repositories
    assert main(["push", str(plain), REPO, "--trust_remote_code"]) == 0
    assert "its code (" in capsys.readouterr().out
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert not {"HF_TOKEN", *secrets} & seen.keys() and "secret" not in seen.values()
    assert seen["HF_HUB_OFFLINE"] == "1"
    # That of the check itself, which was empty.
    assert seen["HOME"] != os.environ["HOME"] and not Path(seen["HOME"]).exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "processor.json"])
def test_code_from_another_place_is_code_of_others(
    hub: HubServer, plain: Path, tmp_path: Path, name: str
) -> None:
    publish(plain, REPO, load=False)
    for file in ("config.json", "preprocessor_config.json"):
        (plain / file).write_bytes(hub.files(REPO)[file])
    path = plain / name
    values = json.loads(path.read_text()) if path.exists() else {"image_processor": {}}
    (values if path.exists() else values["image_processor"])["auto_map"] = {
        "AutoModel": "other/code--modeling.Model"
    }
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="other/code--modeling.Model"):
        publish(plain, REPO)
