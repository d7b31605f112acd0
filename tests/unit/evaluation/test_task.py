"""The contract of a task, by the one that the documentation adds from outside the package."""

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support.documents import python_block
from tests.support.paths import FASHION_MNIST
from tests.support.shades import save_small_swin

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.main import main
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.evaluation.knn import KnnTask
from esvit_hf.evaluation.splits import load_splits
from esvit_hf.evaluation.task import (
    TASKS,
    EvaluationData,
    Needs,
    Task,
    TaskResult,
    make_tasks,
    register_task,
)
from esvit_hf.features.extraction import compute_features, load_image_processor

SPLITS = {"train_split": "train[:40]", "test_split": "test[:20]"}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder `model`, and a registry that forgets what a test adds."""
    known = dict(TASKS)
    save_small_swin(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    TASKS.clear()
    TASKS.update(known)


@pytest.fixture
def retrieval(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The documentation's task as a module."""
    code = python_block("extending.md", "An evaluation task")
    module = types.ModuleType("retrieval")
    monkeypatch.setitem(sys.modules, "retrieval", module)
    exec(compile(code, "retrieval.py", "exec"), module.__dict__)
    return module


def recall(k: int) -> float:
    """The documentation's number in another way."""
    backbone, processor = load_backbone("model"), load_image_processor("model")
    splits = load_splits(str(FASHION_MNIST), **SPLITS)
    train, test = (
        F.normalize(compute_features(backbone, source, processor).values)
        for source in (splits.train, splits.test)
    )
    best = (test @ train.T).argsort(dim=1, descending=True)[:, :k]
    pairs = zip(best, splits.test_labels, strict=True)
    hits = [bool((splits.train_labels[row] == label).any()) for row, label in pairs]
    return round(100 * sum(hits) / len(hits), 3)


def test_a_task_from_outside_the_package_is_evaluated_and_reported(
    retrieval: types.ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    splits = [word for name, value in SPLITS.items() for word in (f"--{name}", value)]
    words = ["evaluate", "model", str(FASHION_MNIST), *splits, "--num_workers", "0"]
    words += ["--tasks", "knn,retrieval", "--knn.k", "[1]", "--retrieval.k", "[1,5]"]
    assert main([*words, "--report", "out"]) == 0
    numbers = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    expected = [{"k": k, "recall": recall(k)} for k in (1, 5)]
    assert numbers["tasks"]["retrieval"] == {"recall": expected}
    assert 0 < expected[0]["recall"] < expected[1]["recall"]
    assert numbers["command"].endswith("--knn.k '[1]' --retrieval.k '[1,5]'")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "## Retrieval" in page and "![retrieval](retrieval.png)" in page
    assert (tmp_path / "out" / "retrieval.png").stat().st_size > 1000
    scores = json.loads((tmp_path / "out" / "measurements.json").read_text())
    assert {score["metric"] for score in scores} >= {"recall_at_1", "recall_at_5"}

    found = evaluate(
        "model", FASHION_MNIST, tasks=["retrieval"], retrieval={"k": [5]}, num_workers=0, **SPLITS
    )
    assert found is not None and found["tasks"]["retrieval"]["recall"] == expected[1:]


def test_its_options_are_in_the_help(
    retrieval: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--retrieval.k" in words and "numbers of training images to look at" in words


@dataclass(frozen=True)
class EveryNeed(Task):
    """A task that asks for everything, and says what it got."""

    name = "every_need"

    def needs(self) -> Needs:
        return Needs(blocks=2, network=True, regions=True, attention=True)

    def check(self, data: EvaluationData) -> None:
        assert data.train is None
        if len(data.splits.train) < 40:
            raise ValueError("give 40 images")

    def run(self, data: EvaluationData) -> TaskResult:
        assert data.train is not None
        two, one = data.last_blocks(2)[0], data.last_blocks(1)[0]
        numbers: dict[str, Any] = {
            "widths": list(data.train.block_widths),
            "ends_alike": torch.equal(two[:, -one.shape[1] :], one),
            "channels": data.store.backbone.feature_dim,
        }
        return TaskResult("every need", "Everything.", numbers, [])


def test_a_task_gets_what_it_needs(tmp_path: Path) -> None:
    register_task(EveryNeed)
    words: dict[str, Any] = {"tasks": "every_need", "num_workers": 0}
    found = evaluate("model", FASHION_MNIST, report=tmp_path / "out", **words, **SPLITS)
    assert found is not None
    expected = {"widths": [8, 16], "ends_alike": True, "channels": 16}
    assert found["tasks"]["every_need"] == expected
    assert "| widths | 8, 16 |" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValueError, match="give 40 images"):
        evaluate("model", FASHION_MNIST, **words, **{**SPLITS, "train_split": "train[:30]"})


def test_tasks_come_in_the_order_of_the_report() -> None:
    made = make_tasks(["few_shot", "knn"], {"knn": {"k": [3]}})
    assert [task.name for task in made] == ["knn", "few_shot"]
    assert made[0] == KnnTask(k=[3])


def test_a_name_must_fit_a_flag() -> None:
    named = type("Named", (EveryNeed,), {"name": "every need"})
    with pytest.raises(ValueError, match="'every need': use letters"):
        register_task(named)
