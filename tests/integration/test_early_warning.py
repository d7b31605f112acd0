"""Runs that are made to fail, each in its own way, and what they say about it; a sound run says
nothing.
"""

import json
import re
import warnings

import pytest
from tests.support.chaos import command

from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.recipe_reading import read_recipe


def run(output_dir, *overrides, steps=25):
    small = (
        "--heads.num_prototypes",
        "32",
        "--heads.hidden_dim",
        "16",
        "--heads.bottleneck_dim",
        "8",
        "--data.num_workers",
        "0",
    )
    schedule = (
        "--optimizer.warmup_epochs",
        "0",
        "--schedule.freeze_last_layer_epochs",
        "0",
        "--run.logging_steps",
        "1",
        "--run.checkpoint_steps",
        "0",
    )
    words = command(output_dir, steps, resume=False)[1:]
    return pretrain(
        read_recipe([*words, *small, *schedule, "--model.config.drop_path_rate", "0", *overrides])
    )


def test_a_sound_run_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(tmp_path, steps=40)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {
        "view_teacher_entropy",
        "view_teacher_spread",
        "view_center_norm",
        "region_match_diversity",
    } <= line.keys()
    assert {
        "region_mean_target_entropy",
        "gradient_norm",
        "gradient_norm_peak",
        "loss_peak",
    } <= line.keys()
    assert 0 < line["region_match_diversity"] < 1 and 0 < line["view_teacher_spread"] < 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("--schedule.teacher_temperature", "50", "--schedule.warmup_teacher_temperature", "50"),
            "uniform.*lower schedule.teacher_temperature",
        ),
        (
            ("--heads.center_momentum", "1", "--optimizer.learning_rate", "0.05"),
            "nearly the same target: lower heads.center_momentum",
        ),
        (
            ("--optimizer.learning_rate", "10"),
            "outputs are nearly the same for every image: lower optimizer.learning_rate",
        ),
    ],
)
def test_a_collapse_is_named_with_its_remedy(tmp_path, overrides, message):
    with pytest.warns(UserWarning, match=message):
        run(tmp_path, *overrides)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_learning_rate_that_is_too_high_stops_the_run(tmp_path):
    # Which of the three comes first depends on the processor's rounding.
    with pytest.raises(
        FloatingPointError,
        match="(untrained student|exploded|norm is inf): lower optimizer.learning_rate",
    ):
        run(
            tmp_path,
            "--optimizer.learning_rate",
            "1000",
            "--schedule.freeze_last_layer_epochs",
            "4",
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_diverges_late_names_its_last_good_checkpoint(tmp_path):
    sound, ruined = (
        ("--run.checkpoint_steps", "2", "--run.checkpoints_kept", "9"),
        ("--optimizer.learning_rate", "1e30"),
    )
    run(tmp_path, *sound, steps=6)
    words = command(tmp_path, 12, resume=True)[1:]
    small = (
        "--heads.num_prototypes",
        "32",
        "--heads.hidden_dim",
        "16",
        "--heads.bottleneck_dim",
        "8",
        "--data.num_workers",
        "0",
    )
    recipe = read_recipe(
        [
            *words,
            *small,
            *sound,
            *ruined,
            "--run.logging_steps",
            "1",
            "--optimizer.warmup_epochs",
            "0",
            "--model.config.drop_path_rate",
            "0",
        ]
    )
    with pytest.raises(FloatingPointError) as caught:
        pretrain(recipe)
    good = re.search(
        r"last good checkpoint is \S*step-0+(\d+): (.*)continue with --run.resume true",
        str(caught.value),
    )
    assert good is not None and good[1] == "6", caught.value
    assert not (tmp_path / "checkpoints" / "step-000000006.partial").exists()
