"""Runs on the Hub: pushes beside training that stall and break nothing, and resuming on another
machine.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file
from tests.support.hub_server import OWNER, TOKEN, HubServer
from tests.support.small_networks import export_small_run
from tests.support.small_runs import assert_equal_runs, command, read_metrics, small_run

from esvit_hf.commands.main import main
from esvit_hf.hub.heads_file import HEADS_FILE
from esvit_hf.hub.push import publish, push_command
from esvit_hf.pretraining.checkpoint_files import CHECKPOINT_FILES
from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.publishing import RESUME_FOLDER, RunPublisher

REPO = f"{OWNER}/run"


def pushed_run(output_dir: Path, strategy: str, *overrides: str):
    hub_fields = ("--hub.push", "true", "--hub.model_id", REPO, "--hub.strategy", strategy)
    return small_run(output_dir, *hub_fields, *overrides)


def test_another_machine_resumes_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    drop_path = ("--model.config.drop_path_rate", "0.3")
    pretrain(small_run(tmp_path / "whole", *drop_path))
    # A machine that is lost right after a push.
    first = pushed_run(tmp_path / "first", "checkpoint", *drop_path)
    pretrain(small_run(first.run.output_dir, *drop_path, "--schedule.max_steps", "4"))
    publisher = RunPublisher(first)
    publisher.push_beside(4, export)
    assert publisher.running is not None
    publisher.running.result()
    assert {HEADS_FILE, "model.safetensors", "metrics.jsonl"} <= set(hub.files(REPO))
    assert {f"{RESUME_FOLDER}/{name}" for name in CHECKPOINT_FILES} <= set(hub.files(REPO))
    assert not [name for name in hub.files(REPO) if name.endswith((".bin", ".pkl"))]
    # Another machine: an empty folder, and the name of the repository.
    pretrain(
        small_run(tmp_path / "second", *drop_path, "--hub.model_id", REPO, "--run.resume", "true")
    )
    assert_equal_runs(tmp_path / "whole", tmp_path / "second")
    assert [line["step"] for line in read_metrics(tmp_path / "second")] == [2, 4, 6]


@pytest.mark.slow
def test_a_run_is_pushed_with_its_resume_point(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ("--run.checkpoint_steps", "2", "--schedule.max_steps", "4")
    pretrain(pushed_run(tmp_path / "first", "checkpoint", *fields))
    assert [commit.message for commit in hub.history(REPO)] == [
        "Pretraining, step 2",
        "Pretraining, step 4",
    ]
    assert not (tmp_path / "first" / ".hub").exists()
    assert TOKEN not in repr(hub.files(REPO)) + (tmp_path / "first" / "recipe.yaml").read_text()
    said = capsys.readouterr().out
    assert "step 2 is pushed to" in said and f"pushed to {hub.url}/{REPO}, commit" in said
    pretrain(small_run(tmp_path / "second", "--hub.model_id", REPO, "--run.resume", "true"))
    pretrain(small_run(tmp_path / "whole"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "second")


def test_there_is_nothing_to_resume_from(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    resume = ("--hub.model_id", REPO, "--run.resume", "true")
    for message in ("404", "has no last-checkpoint"):
        with pytest.raises(ValueError, match=message):
            pretrain(small_run(tmp_path / "out", *resume))
        publish(run_folder, REPO, load=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("--hub.push", "true"), "hub.model_id"),
        (("--hub.model_id", "run"), "has no owner"),
        (("--hub.model_id", "a/b/c"), "repo_id 'a/b/c'"),
        (("--hub.push", "true", "--hub.model_id", "other/run"), "403.*write access"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_training(
    hub: HubServer, tmp_path: Path, fields: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(small_run(tmp_path / "out", *fields))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def publisher(hub: HubServer, tmp_path: Path) -> RunPublisher:
    recipe = pushed_run(tmp_path / "run", "every_save")
    recipe.run.output_dir.mkdir()
    (recipe.run.output_dir / "metrics.jsonl").write_text("")
    (recipe.run.output_dir / "recipe.yaml").write_text("{}")
    return RunPublisher(recipe)


def export(folder: Path) -> None:
    export_small_run("esvit_swin", folder)


def test_a_slow_push_is_not_waited_for_and_the_next_is_left_out(
    hub: HubServer, publisher: RunPublisher, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail("preupload", delay=1.5, times=1)
    started = time.monotonic()
    publisher.push_beside(1, export)
    assert publisher.running is not None and not publisher.running.done()
    publisher.push_beside(2, export)
    # Not a measure of speed: nobody has waited for the Hub.
    assert not publisher.running.done() and time.monotonic() - started < 1.5
    publisher.running.result()
    publisher.push_beside(3, export)
    publisher.running.result()
    assert [commit.message for commit in hub.history(REPO)] == [
        "Pretraining, step 1",
        "Pretraining, step 3",
    ]
    assert "step 2 is not pushed" in capsys.readouterr().out


def test_a_failed_push_is_reported_and_the_next_one_works(
    hub: HubServer, publisher: RunPublisher, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail("commit", status=500)
    publisher.push_beside(1, export)
    assert publisher.running is not None
    publisher.running.result()
    assert "step 1 could not be pushed: someone/run: the Hub answers 500" in capsys.readouterr().out
    assert hub.routes().count("commit") == 3 and hub.history(REPO) == []
    hub.heal()
    publisher.push_beside(2, export)
    publisher.running.result()
    assert [commit.message for commit in hub.history(REPO)] == ["Pretraining, step 2"]


def test_a_full_disk_stops_the_push_alone(
    hub: HubServer, publisher: RunPublisher, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    publisher.push_beside(1, fail)
    assert publisher.running is None
    assert (
        "step 1 could not be pushed: [Errno 28] No space left on device" in capsys.readouterr().out
    )
    publisher.push_beside(2, export)
    publisher.running.result()
    assert [commit.message for commit in hub.history(REPO)] == ["Pretraining, step 2"]


def test_an_interrupted_run_says_how_to_push_it(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = RunPublisher(pushed_run(tmp_path / "run", "end"))
    publisher.push_beside(1, export)
    publisher.finish(1, interrupted=True)
    assert push_command(tmp_path / "run", REPO) in capsys.readouterr().out
    assert hub.history(REPO) == [] and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_one_of_two_processes_pushes_and_both_resume(hub: HubServer, tmp_path: Path) -> None:
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]

    def run(output: str, *fields: str) -> None:
        sizes = (
            "--run.batch_size",
            "8",
            "--data.num_workers",
            "0",
            "--run.mixed_precision",
            "no",
            "--run.logging_steps",
            "1",
        )
        words = command(tmp_path / output, *sizes, *fields)
        subprocess.run(
            launcher + words, env=environment, check=True, capture_output=True, timeout=200
        )

    pushes = ("--hub.push", "true", "--hub.model_id", REPO, "--hub.strategy", "checkpoint")
    run("whole", "--schedule.max_steps", "4")
    run("first", "--schedule.max_steps", "2", *pushes)
    assert [commit.message for commit in hub.history(REPO)] == ["Pretraining, step 2"]
    assert hub.routes().count("create") == 2  # before training, and before the commit
    run("second", "--schedule.max_steps", "4", "--hub.model_id", REPO, "--run.resume", "true")
    assert_equal_runs(tmp_path / "whole", tmp_path / "second")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": "request"}, {"status": 403}])
def test_a_run_ends_normally_while_the_hub_fails(
    hub: HubServer, tmp_path: Path, fault: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = pushed_run(tmp_path / "out", "every_save", "--run.checkpoint_steps", "1")
    hub.fail("commit", **fault)
    result = pretrain(recipe)
    assert result.steps == 6 and not result.interrupted
    output = capsys.readouterr().out
    assert "could not be pushed" in output and TOKEN not in output
    assert hub.history(REPO) == []
    pretrain(small_run(tmp_path / "alone", "--run.checkpoint_steps", "1"))
    assert_equal_runs(tmp_path / "out", tmp_path / "alone")
    command = push_command(tmp_path / "out", REPO)
    assert command in output
    hub.heal()
    assert main(shlex.split(command)[1:]) == 0
    (commit,) = hub.history(REPO)
    assert (
        commit.files["model.safetensors"].content
        == (tmp_path / "out" / "model.safetensors").read_bytes()
    )


@pytest.mark.slow
def test_a_run_ends_normally_while_the_hub_is_slow(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("preupload", delay=2.0)
    result = pretrain(pushed_run(tmp_path / "out", "every_save", "--run.checkpoint_steps", "1"))
    assert result.steps == 6
    first, *_, last = hub.history(REPO)
    assert (first.message, last.message) == ("Pretraining, step 1", "Pretraining, step 6")
    assert (
        last.files["model.safetensors"].content
        == (tmp_path / "out" / "model.safetensors").read_bytes()
    )


def test_pretraining_continues_from_a_repository_with_its_heads(
    hub: HubServer, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run_folder, REPO, load=False)
    sizes = (
        "--heads.num_prototypes",
        "16",
        "--heads.hidden_dim",
        "8",
        "--heads.bottleneck_dim",
        "4",
    )
    fields = (
        *sizes,
        "--model.name",
        REPO,
        "--model.config",
        "{}",
        "--optimizer.learning_rate",
        "1e-12",
        "--schedule.max_steps",
        "1",
    )
    heads = load_file(run_folder / HEADS_FILE)
    for output in ("online", "offline"):
        pretrain(small_run(tmp_path / output, *fields))
        continued = load_file(tmp_path / output / HEADS_FILE)
        for name in heads:
            if "center" not in name:
                assert (heads[name] - continued[name]).abs().max() < 1e-6, name
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
