"""A recipe that changes between the parts of a run: applied and said, or refused before anything is
computed.
"""

import json
import runpy
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file
from tests.support.paths import ROOT
from tests.support.small_runs import VIEWS, read_metrics, small_run

from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.pretraining import loop
from esvit_hf.pretraining.checkpoint import CheckpointWriter
from esvit_hf.pretraining.checkpoint_files import describe_file, write_manifest
from esvit_hf.pretraining.loop import pretrain


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    pretrain(small_run(folder, "--schedule.max_steps", "2", "--run.checkpoint_steps", "1"))
    return folder


@pytest.fixture
def nothing_is_built(monkeypatch):
    def refuse(recipe):
        raise AssertionError("a network was built")

    monkeypatch.setattr(loop, "build_parts", refuse)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--heads.num_prototypes", "64"), "heads.num_prototypes was 32 and is 64.*set it back"),
        (("--heads.batch_norm", "true"), "heads.batch_norm was False and is True"),
        (("--model.config.embed_dim", "16"), "model.config.embed_dim was 8 and is 16"),
        (("--model.name", "vit", "--model.config", "{}"), "model.name was 'esvit_swin' and is"),
        (
            ("--objectives", "{view: {weight: 1}}"),
            "objectives.region was given and is not given, which",
        ),
        (("--objectives.region.weight", "1"), "objectives.region.weight was 0.5 and is 1.0"),
        (("--run.seed", "1"), "run.seed was 0 and is 1"),
        (("--data.train_split", "train[:9000]"), "data.train_split was 'train' and is 'train"),
        (("--schedule.max_steps", "1"), "has done 2 steps and would end after 1: raise"),
        (("--optimizer.learning_rate", "0.1"), "finished at step 2.*learning_rate was 0.002"),
    ],
)
def test_what_a_run_cannot_change_is_refused(finished, nothing_is_built, overrides, message):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    words = ("--schedule.max_steps", "2", "--run.resume", "true", *overrides)
    with pytest.raises(ValueError, match=message):
        pretrain(small_run(finished, *words))
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_other_changes_are_applied_and_said(tmp_path, capsys):
    pretrain(small_run(tmp_path / "run", "--schedule.max_steps", "2"))
    words = ("--run.resume", "true", "--schedule.max_steps", "4", "--optimizer.learning_rate", "1")
    pretrain(small_run(tmp_path / "run", *words, "--data.num_workers", "1"))
    said = capsys.readouterr().out
    assert "resume: from step 2 on, optimizer.learning_rate was 0.002 and is 1.0" in said
    assert "schedule.max_steps was 2 and is 4" in said and "data.num_workers was 0" in said
    assert "output_dir was" not in said and "resume was" not in said
    first, second = (line["learning_rate"] for line in read_metrics(tmp_path / "run"))
    assert second > 100 * first


def test_the_card_says_what_was_changed_on_the_way(tmp_path):
    folder = tmp_path / "run"
    words = ("--run.resume", "true", "--schedule.max_steps")
    pretrain(small_run(folder, "--schedule.max_steps", "1", "--optimizer.learning_rate", "1"))
    assert "changed on the way" not in (folder / "README.md").read_text()
    pretrain(small_run(folder, *words, "2", "--optimizer.learning_rate", "2"))
    pretrain(small_run(folder, *words, "3", "--optimizer.learning_rate", "2"))
    (row,) = [
        line for line in (folder / "README.md").read_text().splitlines() if "on the way" in line
    ]
    assert row == (
        "| changed on the way | from step 1 on, optimizer.learning_rate was 1.0 and is 2.0 |"
    )
    recipe = read_yaml((folder / "recipe.yaml").read_text())
    assert recipe["run"]["resume"] is False


def test_more_neighbors_than_images_are_refused_before_training(tmp_path, nothing_is_built):
    words = ("--run.knn_every_epochs", "1", "--run.knn_neighbors", "10001")
    with pytest.raises(ValueError, match="knn_neighbors is 10001, but .* 10000 images: lower it"):
        pretrain(small_run(tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("swin", {"image_size": 224}, "'swin' cannot take crops of 16 x 16 .*esvit_swin, vit"),
        ("esvit_swin", {"num_channels": 1}, "the network takes 1 channels, and data.image_mean"),
    ],
)
def test_a_network_that_cannot_take_the_crops_is_refused(tmp_path, name, fields, message):
    small = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 7}
    words = ("--model.name", name, "--model.config", json.dumps(small | fields))
    with pytest.raises(ValueError, match=message):
        pretrain(small_run(tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_the_last_checkpoint_is_written_once(tmp_path, monkeypatch):
    saved = []
    save = CheckpointWriter.save
    monkeypatch.setattr(
        CheckpointWriter, "save", lambda self, step: (saved.append(step), save(self, step))
    )
    words = ("--schedule.max_steps", "2", "--run.checkpoint_steps", "1")
    pretrain(small_run(tmp_path, *words))
    assert saved == [1, 2]


def test_a_finished_demo_refuses_another_learning_rate(tmp_path, monkeypatch, capsys):
    words = ("--schedule.max_steps", "1", "--run.knn_every_epochs", "0")
    pretrain(small_run(tmp_path / "run", *words))
    recipe = read_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    same = [
        *("--data.dataset", recipe["data"]["dataset"], "--data.num_workers", "0"),
        *("--data.views", VIEWS),
        *("--model.config", json.dumps(recipe["model"]["config"])),
        *("--heads", json.dumps(recipe["heads"]), "--run", json.dumps(recipe["run"])),
        *("--schedule", json.dumps(recipe["schedule"])),
        *("--optimizer", json.dumps(recipe["optimizer"])),
        *("--objectives", json.dumps(recipe["objectives"])),
    ]
    demo = str(ROOT / "examples" / "demo.py")
    monkeypatch.setattr(sys, "argv", [demo, *same, "--optimizer.learning_rate", "0.1"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(demo, run_name="__main__")
    said = capsys.readouterr()
    assert end.value.code == 2, said.err
    message = "error: resume: the run is finished at step 1, and optimizer.learning_rate was 0.002"
    assert message in said.err
    assert "top-1" not in said.out


def test_a_teacher_that_cannot_be_written_is_one_line_and_written_by_a_resumed_run(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    words = ("--schedule.max_steps", "1")
    with pytest.raises(OSError, match="teacher cannot be written .*step 1 is complete: make room"):
        pretrain(small_run(tmp_path, *words))
    (tmp_path / "model.safetensors").rmdir()
    pretrain(small_run(tmp_path, *words, "--run.resume", "true"))
    assert (tmp_path / "model.safetensors").stat().st_size > 1000
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_all_files_of_a_run_have_the_modes_of_the_umask(finished, tmp_path):
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {path.name for path in files if path.stat().st_mode != usual} == set()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b"no tensors"),
        lambda folder: torch.save({"a": 1}, folder / "teacher.safetensors"),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: save_file({"a": torch.zeros(1)}, folder / "student.safetensors"),
    ],
)
def test_a_checkpoint_of_something_else_is_one_line(finished, tmp_path, spoil):
    shutil.copytree(finished, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000002"
    spoil(checkpoint)
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, {path.name: describe_file(path) for path in checkpoint.iterdir()})
    with pytest.raises(ValueError, match="resume: .*step-000000002 does not fit the recipe"):
        pretrain(small_run(tmp_path / "run", "--run.resume", "true"))
