"""Folders on the Hub: what is sent, what is refused; every failure leaves all or nothing and says
what to do.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from tests.support.hub_server import READER_TOKEN, TOKEN, HubServer

from esvit_hf.commands.main import main
from esvit_hf.common.command_line import parse_function
from esvit_hf.hub.fresh_process import check_loads
from esvit_hf.hub.push import publish
from esvit_hf.hub.push import push as push_verb

REPO = "someone/model"
SENT = {
    "README.md",
    "config.json",
    "configuration_esvit_common.py",
    "configuration_esvit_swin.py",
    "image_processing_esvit.py",
    "metrics.jsonl",
    "model.safetensors",
    "modeling_esvit_common.py",
    "modeling_esvit_swin.py",
    "modeling_esvit_windows.py",
    "preprocessor_config.json",
    "recipe.yaml",
    "pretraining_heads.safetensors",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def push(*words: str | Path) -> int:
    return main(["push", *map(str, words)])


def test_a_run_is_pushed_whole_and_checked(
    hub: HubServer, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run_folder)
    assert push(run_folder, REPO) == 0
    output, errors = capsys.readouterr()
    (commit,) = hub.history(REPO)
    result = json.loads(output.splitlines()[-1])
    assert result == {
        "url": f"{hub.url}/{REPO}",
        "commit": commit.oid,
        "files": sorted(SENT),
        "left_out": ["checkpoints"],
    }
    sent = hub.files(REPO)
    assert set(sent) == SENT
    assert all(sent[name] == before[name] for name in SENT - {"README.md", "recipe.yaml"})
    assert b"output_dir: small_run\n" in sent["recipe.yaml"]
    # Weights took the road of large files.
    assert commit.files["model.safetensors"].large and hub.routes().count("lfs_upload") == 2
    card = ModelCard(sent["README.md"].decode())
    assert f'from_pretrained("{REPO}"' in card.text and "# small_run" in card.text
    assert "the card states no license: give one with `esvit push --license`" in output + errors
    assert contents(run_folder) == before
    assert TOKEN not in output + errors + repr(hub.requests) + repr(sent)
    # Once more: nothing has changed, nothing is committed.
    assert publish(run_folder, REPO, load=False).commit == commit.oid
    assert len(hub.history(REPO)) == 1


def test_a_dry_run_sends_nothing(
    hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert set(publish(run_folder, REPO, dry_run=True, load=False).files) == SENT
    assert hub.requests == []


def test_small_files_travel_inside_the_commit(hub: HubServer, run_folder: Path) -> None:
    hub.large_files = False
    publish(run_folder, REPO, load=False)
    assert set(hub.files(REPO)) == SENT and "lfs_batch" not in hub.routes()


def test_words_of_the_command() -> None:
    flags = ["--private", "--create_pr", "--dry_run", "--trust_remote_code", "--revision", "v1"]
    flags += ["--license", "mit"]
    assert parse_function(push_verb, ["folder", REPO, *flags], program="esvit push") == {
        "folder": "folder",
        "repo_id": REPO,
        "private": True,
        "create_pr": True,
        "dry_run": True,
        "trust_remote_code": True,
        "revision": "v1",
        "license": "mit",
    }


@pytest.mark.parametrize(
    "repo_id", ["model", "a/b/c", "someone/mod el", "someone/-x", "someone/x--y", "datasets/a/b"]
)
def test_names_are_checked_before_anything_else(
    hub: HubServer, repo_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(tmp_path / "there is no such folder", repo_id) == 2
    assert repo_id in capsys.readouterr().err
    assert hub.requests == []


def test_a_branch_is_made_and_main_stays(hub: HubServer, run_folder: Path) -> None:
    publish(run_folder, REPO, revision="v1.0/small", load=False)
    assert set(hub.files(REPO, "v1.0/small")) == SENT
    assert hub.files(REPO) == {}


def test_a_pull_request_leaves_main_and_may_come_from_anyone(
    hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run_folder, REPO, load=False)
    (run_folder / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    with pytest.raises(ValueError, match="403.*pull request"):
        publish(run_folder, REPO, load=False)
    made = publish(run_folder, REPO, create_pr=True, load=False)
    assert made.url == f"{hub.url}/{REPO}/discussions/1"
    assert b'"step": 1' in hub.files(REPO)["metrics.jsonl"]
    assert b'"step": 2' in hub.files(REPO, "refs/pr/1")["metrics.jsonl"]


def test_private_means_private(hub: HubServer, run_folder: Path) -> None:
    publish(run_folder, "someone/hidden", private=True, load=False)
    assert hub.repositories["someone/hidden"].private
    HfApi().create_repo(REPO)
    with pytest.raises(ValueError, match="is public"):
        publish(run_folder, REPO, private=True, load=False)
    assert hub.history(REPO) == []


def test_what_does_not_belong_on_the_hub_is_refused(hub: HubServer, run_folder: Path) -> None:
    secret = "hf_" + "x1Y2" * 9
    weights = load_file(run_folder / "model.safetensors")
    config = json.loads((run_folder / "config.json").read_text())
    card = (run_folder / "README.md").read_text()
    for name, content, message in (
        ("pytorch_model.bin", b"pickle", "does not belong"),
        ("train.parquet", b"PAR1", "does not belong"),
        ("images/1.png", b"", "does not belong"),
        ("config.json", json.dumps(config | {"note": [secret]}).encode(), "token"),
        (
            "config.json",
            json.dumps(config | {"source": "/home/me/runs/first"}).encode(),
            "/home/me/runs/first",
        ),
        (
            "config.json",
            json.dumps(config | {"source": "C:\\Users\\me"}).encode(),
            "of this machine",
        ),
        ("config.json", b"{", "not readable"),
        ("README.md", (card + f"\n`{secret}`\n").encode(), "token"),
        ("README.md", (card + "\n`esvit evaluate /scratch/me/run`\n").encode(), "/scratch/me/run"),
        ("README.md", card.replace("library_name", "library").encode(), "library_name"),
        ("README.md", b"# No metadata", "metadata"),
        ("model.safetensors", b"not tensors", "not readable"),
        ("config.json", None, "has no config.json"),
    ):
        path = run_folder / name
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(message)) as refusal:
            publish(run_folder, REPO, load=False)
        assert secret not in str(refusal.value) and "/tmp/tmp" not in str(refusal.value)
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
        elif path.parent != run_folder:
            path.parent.rmdir()
    save_file(
        weights,
        run_folder / "model.safetensors",
        metadata={"format": "pt", "from": "/home/me/runs/first"},
    )
    with pytest.raises(ValueError, match="model.safetensors contains the path"):
        publish(run_folder, REPO, load=False)
    assert hub.requests == []


def test_figures_and_web_addresses_pass(hub: HubServer, run_folder: Path) -> None:
    (run_folder / "loss.png").write_bytes(b"\x89PNG")
    card = run_folder / "README.md"
    card.write_text(
        card.read_text()
        + "\nhttps://arxiv.org/abs/2106.09785 and/or Swin/ViL, 1/2, [file](./config.json)\n"
    )
    publish(run_folder, REPO, load=False, license_name="cc-by-nc-4.0")
    # The card of this package shows the figures of the folder, and the license.
    sent = hub.files(REPO)["README.md"].decode()
    assert "![loss.png](loss.png)" in sent
    assert "\nlicense: cc-by-nc-4.0\n" in sent and "| license | cc-by-nc-4.0 |" in sent
    card.write_text("---\nlicense: mit\n---\n# By hand\n")
    with pytest.raises(ValueError, match="was not written by esvit-hf: write 'license: mit' into"):
        publish(run_folder, REPO, load=False, license_name="mit")


# Faults that stay: (route, fault, what the message says).
LASTING = [
    ("create", {"status": 401}, "401.*hf auth login"),
    ("create", {"status": 403}, "403.*write access"),
    ("create", {"status": 409}, "404.*name"),
    ("create", {"status": 500}, "500.*in some minutes"),
    ("create", {"cut": "request"}, "connection.*check the network"),
    ("validate", {"status": 500}, "500.*in some minutes"),
    ("preupload", {"status": 403}, "403.*write access"),
    ("preupload", {"status": 404}, "404.*name"),
    ("lfs_batch", {"status": 403}, "403.*write access"),
    ("lfs_upload", {"status": 403}, "403.*write access"),
    ("commit", {"status": 401}, "401.*hf auth login"),
    ("commit", {"status": 403}, "403.*write access"),
    ("commit", {"status": 404}, "404.*name"),
    ("commit", {"status": 409}, "409.*wait a moment"),
    ("commit", {"status": 412}, "412.*in the meantime"),
    pytest.param(
        "commit",
        {"status": 429, "headers": {"Retry-After": "1"}},
        "429.*wait 1 seconds",
        marks=pytest.mark.slow,
    ),
    ("commit", {"status": 500}, "500.*in some minutes"),
    ("commit", {"cut": "request"}, "connection.*check the network"),
    pytest.param("preupload", {"status": 500}, "500.*in some minutes", marks=pytest.mark.slow),
    pytest.param(
        "preupload", {"status": 429, "headers": {"Retry-After": "0"}}, "429", marks=pytest.mark.slow
    ),
    pytest.param(
        "lfs_upload", {"cut": "request"}, "connection.*check the network", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("route", "fault", "message"), LASTING)
def test_a_lasting_fault_leaves_nothing_there_and_everything_here(
    hub: HubServer, run_folder: Path, route: str, fault: dict, message: str
) -> None:
    before = contents(run_folder)
    hub.fail(route, **fault)
    with pytest.raises(ValueError, match=message) as refusal:
        publish(run_folder, REPO, load=False)
    said = str(refusal.value)
    assert said.startswith(f"{REPO}: ") and "run the command again" in said
    assert "\n" not in said and TOKEN not in said
    assert REPO not in hub.repositories or hub.history(REPO) == []
    assert contents(run_folder) == before
    # What the message says to do, once the fault is gone.
    hub.heal()
    publish(run_folder, REPO, load=False)
    assert set(hub.files(REPO)) == SENT and len(hub.history(REPO)) == 1


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("preupload", {"status": 503}),
        ("preupload", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("lfs_upload", {"cut": "request"}),
        ("lfs_upload", {"delay": 0.5}),
        ("commit", {"status": 500}),
        ("commit", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("commit", {"cut": "request"}),
        ("commit", {"cut": "answer"}),
        ("commit", {"delay": 0.5}),
    ],
)
def test_a_passing_fault_delays_one_commit(
    hub: HubServer, run_folder: Path, route: str, fault: dict
) -> None:
    hub.fail(route, times=1, **fault)
    made = publish(run_folder, REPO, load=False)
    # Also where the commit was made and only its answer lost.
    (commit,) = hub.history(REPO)
    assert made.commit == commit.oid and set(hub.files(REPO)) == SENT


def test_a_lost_answer_does_not_open_a_second_pull_request(
    hub: HubServer, run_folder: Path
) -> None:
    HfApi().create_repo(REPO)
    hub.fail("commit", cut="answer", times=1)
    with pytest.raises(ValueError, match="connection"):
        publish(run_folder, REPO, create_pr=True, load=False)
    assert hub.repositories[REPO].pull_requests == 1


def test_errors_are_one_line_of_the_command(
    hub: HubServer,
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for token, message in (("hf_" + "wrong" * 8, "401"), ("", "hf auth login")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert push(run_folder, REPO) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and len(errors.splitlines()) == 1 and message in errors
        assert not token or token not in errors
    assert set(hub.routes()) == {"whoami"}


@pytest.mark.slow
def test_a_folder_that_does_not_load_elsewhere_is_refused(run_folder: Path) -> None:
    check_loads(run_folder)
    code = run_folder / "modeling_esvit_common.py"
    original = code.read_text()
    code.unlink()
    with pytest.raises(ValueError, match="does not load in a process without this package"):
        check_loads(run_folder)
    code.write_text(original.replace("regions.mean(dim=1)", "regions.mean(dim=1) * 2"))
    assert code.read_text() != original
    with pytest.raises(ValueError, match="pooler_output differs"):
        check_loads(run_folder)
    code.write_text(original)
    weights = load_file(run_folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = torch.zeros(3)
    save_file(weights, run_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not load in a process with this package"):
        check_loads(run_folder)
