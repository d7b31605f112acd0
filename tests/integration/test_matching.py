"""Runs with other ways to match regions than the paper's, from the recipe to the log."""

import json

import pytest
import torch
from tests.support.small_runs import assert_equal_runs, read_metrics, small_run

from esvit_hf.hub.heads_file import HEADS_FILE, read_heads
from esvit_hf.pretraining.loop import pretrain

NAMES = ("view", "region")
POSITION = {"rule": "position", "min_regions": 4}
MIXTURE = {"rule": "mixture", "position_share": 0.7, "center_features": True, "image_center": 0.5}


@pytest.mark.parametrize("matching", [POSITION, MIXTURE], ids=["position", "mixture"])
def test_a_run_with_its_own_matching_trains_and_resumes(matching, tmp_path):
    region = {
        "matching": matching,
        "num_prototypes": 24,
        "student_temperature": 0.15,
        "teacher_temperature": 0.06,
        "center_momentum": 0.8,
        "weight_end": 0.0,
        "weight_shape": "linear",
    }
    words = ("--objectives.region", json.dumps(region), "--run.logging_steps", "1")
    pretrain(small_run(tmp_path / "whole", *words))
    pretrain(small_run(tmp_path / "parts", *words, "--schedule.max_steps", "4"))
    pretrain(small_run(tmp_path / "parts", *words, "--run.resume", "true"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    lines = read_metrics(tmp_path / "parts")
    assert lines[0]["region_weight"] == 0.5 > lines[-1]["region_weight"] > 0
    for line in lines:
        assert line["view_weight"] + line["region_weight"] == pytest.approx(1)
        sum_of_losses = sum(line[f"{name}_weight"] * line[f"{name}_loss"] for name in NAMES)
        assert line["loss"] == pytest.approx(sum_of_losses, rel=1e-5)
    assert 0 < lines[-1]["region_image_share"] < 1 < lines[-1]["region_effective_dimensions"]
    heads = read_heads(tmp_path / "parts" / HEADS_FILE)
    assert [len(heads[name].center) for name in NAMES] == [32, 24]
    # Another run goes on from both heads.
    start = ("--model.name", str(tmp_path / "parts"), "--model.config", "{}")
    still = ("--optimizer.learning_rate", "1e-12", "--schedule.max_steps", "1")
    pretrain(small_run(tmp_path / "next", *words, *start, *still))
    continued = read_heads(tmp_path / "next" / HEADS_FILE)
    for name, value in heads["region"].state.items():
        torch.testing.assert_close(continued["region"].state[name], value)
