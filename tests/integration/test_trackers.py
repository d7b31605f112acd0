"""Experiment trackers: their packages, without a network."""

import pytest
from tests.support.small_runs import small_run

from esvit_hf.pretraining.loop import pretrain


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[aim]", "run.trackers names aim, which is not installed: pip install aim, or leave it"),
        ("[wanbd]", "run.trackers names 'wanbd', which does not exist: did you mean wandb"),
        ("[xyz]", "'xyz', which does not exist: use auto, aim, .*mlflow"),
    ],
)
def test_a_tracker_that_is_missing_is_refused_before_anything_is_made(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        pretrain(small_run(tmp_path / "run", "--run.trackers", names))
    assert not (tmp_path / "run").exists()


@pytest.mark.tracking
@pytest.mark.parametrize("experiment", [None, "birds"])
def test_mlflow_has_name_experiment_recipe_and_numbers(tmp_path, monkeypatch, experiment):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    if experiment:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    words = ("--run.trackers", "[mlflow]", "--schedule.max_steps", "4")
    pretrain(small_run(tmp_path / "mine", *words))
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment or "esvit-hf")
    (run,) = client.search_runs([found.experiment_id])
    assert run.info.run_name == "mine" and run.info.status == "FINISHED"
    assert run.data.params["heads.num_prototypes"] == "32"
    assert run.data.params["model.config.embed_dim"] == "8"
    history = client.get_metric_history(run.info.run_id, "view_loss")
    assert [point.step for point in history] == [2, 4]


@pytest.mark.tracking
@pytest.mark.parametrize("project", [None, "birds"])
def test_wandb_has_name_project_recipe_and_numbers(tmp_path, monkeypatch, project):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    if project:
        monkeypatch.setenv("WANDB_PROJECT", project)
    made = []
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **words: made.append(start(**words)) or made[-1])
    words = ("--run.trackers", "[wandb]", "--schedule.max_steps", "4")
    pretrain(small_run(tmp_path / "mine", *words))
    (run,) = made
    assert (run.name, run.project) == ("mine", project or "esvit-hf")
    assert run.config["heads.num_prototypes"] == 32
    assert run.config["data.views"][0]["teacher"] is True
    (records,) = (tmp_path / "mine" / "wandb").rglob("*.wandb")
    assert b"view_loss" in records.read_bytes()
