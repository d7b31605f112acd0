"""What `docs/extending.md` shows runs as it stands there, without a change in the package."""

import importlib.util
import runpy
import sys

import numpy as np
import pytest
import torch
from tests.support.documents import python_block
from tests.support.paths import FASHION_MNIST
from tests.support.process_group import run_on_processes
from tests.support.small_runs import assert_equal_runs, read_metrics, small_run
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import load_image_source
from esvit_hf.figures.training_curves import plot_training
from esvit_hf.hub.cards import check_card
from esvit_hf.hub.heads_file import HEADS_FILE, read_heads
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.objectives.base import Comparison, Projection
from esvit_hf.pretraining.objectives.registry import OBJECTIVES
from esvit_hf.pretraining.recipe_reading import read_recipe
from esvit_hf.reference.to_reference import convert_to_reference

MASKED = ("--objectives", "{view: {weight: 0.5}, masked: {weight: 0.5, share: 0.4}}")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "masked.py"
    path.write_text(python_block("extending.md", "An objective"))
    return path


def load_script(path):
    """A script as a module; who calls takes it out of `sys.modules` again."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the module of their class.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def masked(script):
    """The script as a module; what it registers is gone after the test."""
    yield load_script(script)
    del OBJECTIVES["masked"], sys.modules["masked"]


def test_an_objective_from_outside_trains_resumes_and_exports(masked, tmp_path):
    pretrain(small_run(tmp_path / "whole", *MASKED))
    pretrain(small_run(tmp_path / "parts", *MASKED, "--schedule.max_steps", "4"))
    pretrain(small_run(tmp_path / "parts", *MASKED, "--run.resume", "true"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    run = tmp_path / "parts"
    line = read_metrics(run)[-1]
    halves = 0.5 * line["view_loss"] + 0.5 * line["masked_loss"]
    assert line["loss"] == pytest.approx(halves, rel=1e-5)
    assert {"masked_teacher_entropy", "masked_teacher_spread", "masked_center_norm"} <= line.keys()
    assert read_recipe([str(run / "recipe.yaml")]).objectives["masked"].share == 0.4
    assert AutoModel.from_pretrained(run).config.embed_dim == 8
    check_card(run)
    assert "with the view loss and the masked loss" in (run / "README.md").read_text()
    labels = [
        each.get_label() for each in plot_training(run / "metrics.jsonl", 32).figure.axes[0].lines
    ]
    assert labels == ["total", "view", "masked"]
    heads = read_heads(run / HEADS_FILE)
    assert heads.keys() == {"view", "masked"}
    with pytest.raises(ValueError, match="no place for the head of masked"):
        convert_to_reference(str(run), with_heads=True)
    still = ("--model.name", str(run), "--model.config", "{}", "--optimizer.learning_rate", "1e-12")
    pretrain(small_run(tmp_path / "next", *MASKED, *still, "--schedule.max_steps", "1"))
    continued = read_heads(tmp_path / "next" / HEADS_FILE)["masked"]
    for name, value in heads["masked"].state.items():
        torch.testing.assert_close(continued.state[name], value)


def test_the_example_compares_hidden_regions_alone(masked):
    torch.manual_seed(0)
    objective = masked.MaskedObjective(masked.MaskedSettings(share=0.5, cells=2))
    crops = [torch.rand(3, 3, size, size) + 1 for size in (8, 8, 4)]
    seen, hidden = objective.prepare_student_crops(crops, 2)
    assert torch.equal(seen[2], crops[2])
    regions = [(crop[:, 0, ::2, ::2] == 0).flatten(1) for crop in seen[:2]]
    assert 0 < torch.stack(regions).sum() < 2 * 3 * 16
    student_head, teacher_head = (
        ProjectionHead(5, 6, hidden_dim=7, bottleneck_dim=4) for _ in range(2)
    )
    features = [torch.randn(views, 3, 16, 5) for views in (3, 2)]
    student, teacher = student_head(features[0]), teacher_head(features[1])
    center, projections = torch.randn(6), ([student], [teacher])
    comparison = Comparison(
        *(Projection([each], found) for each, found in zip(features, projections, strict=True)),
        *(student_head, teacher_head, center, 0.1, 0.05, hidden),
    )
    log_student = F.log_softmax(student[:2] @ student_head.prototypes().T / 0.1, dim=-1)
    target = F.softmax((teacher @ teacher_head.prototypes().T - center) / 0.05, dim=-1)
    losses = -(target * log_student).sum(dim=-1)
    torch.testing.assert_close(objective.loss(comparison), losses[torch.stack(regions)].mean())


def run_script(words):
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


@pytest.mark.distributed
def test_the_script_runs_on_two_processes(script, tmp_path):
    words = {
        "data.dataset": FASHION_MNIST,
        "data.train_split": "train[:64]",
        "data.num_workers": 0,
        "model.config": "{image_size: 32, embed_dim: 8, depths: [1, 1], num_heads: [1, 2], "
        "window_size: 4}",
        "heads.num_prototypes": 32,
        "objectives": "{view: {}, masked: {start_epoch: 1}}",
        "schedule.num_epochs": 2,
        "optimizer.warmup_epochs": 0,
        "run.batch_size": 16,
        "run.logging_steps": 1,
        "run.knn_every_epochs": 0,
        "run.trackers": "[]",
        "run.output_dir": tmp_path,
    }
    flags = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    run_on_processes(2, run_script, [str(script), "pretrain", "demo", *flags])
    lines = read_metrics(tmp_path)
    assert ["masked_loss" in line for line in lines] == [False, False, True, True]


@pytest.fixture
def mixer(tmp_path):
    """The network of the document as a module; what it registers is gone after the test."""
    path = tmp_path / "mixer.py"
    path.write_text(python_block("extending.md", "A network"))
    module = load_script(path)
    yield module
    del sys.modules["mixer"]
    CONFIG_MAPPING._extra_content.pop("mixer")
    MODEL_MAPPING._extra_content.pop(module.MixerConfig)


def test_a_network_from_outside_is_pretrained_loaded_and_evaluated(mixer, tmp_path):
    name, config = "--model.name", "{image_size: 32, hidden_size: 8, depth: 2}"
    pretrain(small_run(tmp_path / "run", name, "mixer", "--model.config", config))
    assert len(read_metrics(tmp_path / "run")) == 3
    network = AutoModel.from_pretrained(tmp_path / "run")
    assert isinstance(network, mixer.MixerModel) and network.config.depth == 2
    backbone = load_backbone(str(tmp_path / "run"))
    assert backbone(torch.rand(1, 3, 32, 16)).grid == (8, 4)
    assert backbone.pooled_blocks(torch.rand(1, 3, 32, 32), 2).shape == (1, 16)


def test_arrays_become_images_with_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "from_arrays.py"
    path.write_text(python_block("extending.md", "A data format"))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "arrays.npz", images=images, labels=np.array([1, 0, 1]))
    monkeypatch.setattr(sys, "argv", ["", f"{tmp_path}/arrays.npz", f"{tmp_path}/out"])
    runpy.run_path(str(path), run_name="__main__")
    source = load_image_source(str(tmp_path / "out"))
    assert source.labels.tolist() == [1, 0, 1] and source.class_names == ["0", "1"]
    for expected, image in zip(images, source.read(range(3)), strict=True):
        assert np.array_equal(expected, np.asarray(image))
