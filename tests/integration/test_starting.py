"""Pretraining from Python and with values that are chosen: data and networks of any kind, and a
process that is left as it was.
"""

import gc
import json
import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image
from tests.support.paths import FASHION_MNIST
from tests.support.small_runs import assert_equal_runs, read_metrics
from torch.utils.data import get_worker_info
from transformers import ResNetConfig, ResNetModel

from esvit_hf import EsvitSwinConfig, EsvitSwinModel, pretrain
from esvit_hf.acceleration.threads import use_threads
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.commands.main import main
from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.pretraining.machine import look_at_machine
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.step import DistillationStep

TINY: dict[str, Any] = {
    "heads": {"num_prototypes": 32, "hidden_dim": 16, "bottleneck_dim": 8},
    "data.views": [
        {"count": 2, "size": 32, "scale": [0.4, 1.0], "teacher": True},
        {"count": 1, "size": 16, "scale": [0.1, 0.4]},
    ],
    "data.num_workers": 0,
    "run.trackers": [],
    "run.logging_steps": 1,
    "schedule.num_epochs": 2,
}
"""What makes a run of the recipe `auto` one of seconds."""
CONFIG = EsvitSwinConfig(
    image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, drop_path_rate=0.0
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for index, row in enumerate(load_dataset(str(FASHION_MNIST), split="train[:12]")):
        place = folder / ("left" if index < 6 else "right")
        place.mkdir(exist_ok=True)
        row["image"].convert("RGB").save(place / f"{index:02}.png")
    return folder


def start_of(output: Path) -> dict[str, torch.Tensor]:
    """Weights of the network that a run was started from."""
    return dict(EsvitSwinModel.from_pretrained(output / "start").state_dict())


def test_a_folder_alone_gives_a_network_and_says_what_was_chosen(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = pretrain(data=photos, output=tmp_path / "run", model=CONFIG, overrides=TINY)
    assert result.steps == 2 * (12 // 4)
    assert result.load_model().config.embed_dim == 8
    printed = capsys.readouterr().out
    assert "run.batch_size:" in printed and "4 (12 images; needs about" in printed
    assert "optimizer.warmup_epochs:" in printed and "0.2 (a tenth of 2 epochs)" in printed
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.run.batch_size, recipe.optimizer.warmup_epochs) == (4, 0.2)
    assert "threads:" not in printed
    # A recipe that was written chooses nothing: it gives the same run on any machine.
    again = pretrain(tmp_path / "run" / "recipe.yaml", output=tmp_path / "again")
    assert "chosen" not in capsys.readouterr().out and again.steps == result.steps
    assert_equal_runs(tmp_path / "run", tmp_path / "again")

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores, update = look_at_machine().cores, DistillationStep.update
    computing: list[int] = []

    def recorded(self: DistillationStep, step: int) -> torch.Tensor:
        computing.append(torch.get_num_threads())
        return update(self, step)

    monkeypatch.setattr(DistillationStep, "update", recorded)
    beside = {**TINY, "data.num_workers": 1, "schedule.max_steps": 1}
    with use_threads(cores + 1):
        pretrain(data=photos, output=tmp_path / "beside", model=CONFIG, overrides=beside)
        assert torch.get_num_threads() == cores + 1
        pretrain(data=photos, output=tmp_path / "b", model=CONFIG, overrides=beside, threads=2)
    fewer = max(1, cores - 1)
    assert computing == [fewer, 2]
    assert capsys.readouterr().out.count(f"threads: {fewer} in each process") == 1


def test_the_command_chooses_and_goes_on_with_what_it_chose(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**TINY, "model.name": "esvit_swin", "run.checkpoint_steps": 2}
    small["model.config"] = {
        name: getattr(CONFIG, name)
        for name in ("image_size", "embed_dim", "depths", "num_heads", "window_size")
    }

    def esvit(output: str, *more: str) -> None:
        flags = [f"--{name}={json.dumps(value)}" for name, value in small.items()]
        flags = [flag.replace('"esvit_swin"', "esvit_swin") for flag in flags]
        words = ["pretrain", str(photos), *flags, "--run.output_dir", str(tmp_path / output)]
        assert main([*words, *more]) == 0

    esvit("whole", "--print_recipe")
    printed = load_recipe(read_yaml(capsys.readouterr().out))
    assert printed.run.batch_size == 4 and not (tmp_path / "whole").exists()
    esvit("whole")
    assert load_recipe(tmp_path / "whole" / "recipe.yaml") == printed
    esvit("parts", "--schedule.max_steps", "3")
    # Another machine might choose another precision; the run keeps its own.
    written = tmp_path / "parts" / "recipe.yaml"
    assert printed.run.mixed_precision in ("no", "bf16")
    esvit("parts", "--run.resume")
    assert "run.mixed_precision" in capsys.readouterr().out
    assert load_recipe(written).run.mixed_precision == printed.run.mixed_precision
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


class Pairs:
    """Images and labels, as in the data sets of torchvision."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self.files[index]), index


def test_data_of_any_kind_gives_the_same_run(photos: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(photos), split="train")
    assert isinstance(rows, Dataset)
    kinds = {
        "folder": str(photos),
        "rows": rows,
        "folders": [photos / "left", str(photos / "right")],
        "files": sorted(photos.rglob("*.png")),
        "pairs": Pairs(photos),
        "images": [image for image, _ in map(Pairs(photos).__getitem__, range(12))],
    }
    named = {}
    for kind, data in kinds.items():
        pretrain(data=data, output=tmp_path / kind, model=CONFIG, overrides=TINY)
        assert_equal_runs(tmp_path / "folder", tmp_path / kind)
        named[kind] = load_recipe(tmp_path / kind / "recipe.yaml").data.dataset
        assert str(photos) not in (tmp_path / kind / "README.md").read_text()
    assert named["folders"] == "left, right"
    assert named["rows"] == named["pairs"] == named["images"] == "in-memory data set"


class Watched(Pairs):
    """Leaves a file behind where the garbage collector would write to the objects of the parent."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if get_worker_info() is not None and not gc.get_freeze_count():
            (self.files[index].parent / "collected").touch()
        return super().__getitem__(index)


@pytest.mark.usefixtures("nothing_frozen")
def test_a_worker_shares_the_objects_of_the_training(photos: Path, tmp_path: Path) -> None:
    changes = {**TINY, "data.num_workers": 1}
    pretrain(data=Watched(photos), output=tmp_path, model=CONFIG, overrides=changes)
    assert not gc.get_freeze_count() and not [*photos.rglob("collected")]


def test_labeled_splits_in_memory_have_an_online_knn(photos: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(photos), split="train")
    changes = {**TINY, "schedule.max_steps": 1, "run.knn_every_epochs": 1, "run.knn_neighbors": 1}
    words: dict[str, Any] = {"output": tmp_path / "run", "model": CONFIG, "overrides": changes}
    with pytest.raises(ValueError, match=r"a single split: give a datasets\.DatasetDict"):
        pretrain(data=rows, **words)
    with pytest.raises(ValueError, match="in-memory data set has no split 'test'"):
        pretrain(data=DatasetDict(train=rows), **words)
    # Each image is its own nearest neighbor.
    pretrain(data=DatasetDict(train=rows, test=rows.select([2, 9])), **words)
    found = [line for line in read_metrics(tmp_path / "run") if "knn1_top1" in line]
    assert [(line["step"], line["knn1_top1"]) for line in found] == [(0, 1.0), (1, 1.0)]
    # Without it, labels of any kind are no matter.
    odd = rows.remove_columns("label").add_column("label", [[0.5]] * len(rows))
    words |= {"output": tmp_path / "odd", "overrides": {**changes, "run.knn_every_epochs": 0}}
    assert pretrain(data=DatasetDict(train=odd), **words).steps == 1


@pytest.mark.parametrize("kind", ["ours", "backbone", "foreign"])
def test_a_loaded_network_is_continued_and_left_as_it_was(
    kind: str, photos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    if kind == "foreign":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        network: Any = ResNetModel(ResNetConfig(layer_type="basic", **sizes))
    else:
        network = EsvitSwinModel(CONFIG)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config = dict(vars(network.config))
    model = RegionBackbone(network) if kind == "backbone" else network
    result = pretrain(data=photos, output=tmp_path, model=model, overrides=TINY)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert vars(network.config) == config
    assert type(result.load_model()) is type(network)
    if kind != "foreign":
        assert all(torch.equal(value, before[name]) for name, value in start_of(tmp_path).items())
    changed = [
        not torch.equal(value, before[name])
        for name, value in result.load_model().state_dict().items()
    ]
    assert any(changed)
    assert "weights of `start`" in (tmp_path / "README.md").read_text()


def test_an_output_is_kept_until_it_may_be_overwritten(photos: Path, tmp_path: Path) -> None:
    def run(**more: Any) -> int:
        return pretrain(data=photos, output=tmp_path, model=CONFIG, overrides=TINY, **more).steps

    assert run() == 6
    kept = sorted((tmp_path / "checkpoints").iterdir())
    with pytest.raises(ValueError, match="holds the checkpoints of a run: continue it with"):
        run()
    # What cannot start removes nothing.
    with pytest.raises(ValueError, match="does not exist"):
        pretrain(data=photos / "none.x y", output=tmp_path, overrides=TINY, overwrite=True)
    with pytest.raises(ValueError, match="run.overwrite must be false with run.resume"):
        run(resume=True, overwrite=True)
    assert sorted((tmp_path / "checkpoints").iterdir()) == kept
    TINY["schedule.num_epochs"] = 1
    try:
        assert run(overwrite=True) == 3
    finally:
        TINY["schedule.num_epochs"] = 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000003"]
    assert read_metrics(tmp_path)[-1]["step"] == 3
    assert not load_recipe(tmp_path / "recipe.yaml").run.overwrite


def test_the_process_is_left_as_it_was(photos: Path, tmp_path: Path) -> None:
    def state() -> list[object]:
        return [
            *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)),
            logging.root.level,
            list(logging.root.handlers),
            transformers.logging.get_verbosity(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
        ]

    before = state()
    for precision in ("bf16", "no"):
        changes = {**TINY, "run.mixed_precision": precision}
        output = tmp_path / precision
        pretrain(data=photos, output=output, model=CONFIG, threads=1, overrides=changes)
        assert state() == before
    # Not in the main thread, which alone may handle signals.
    failures: list[BaseException] = []

    def work() -> None:
        try:
            pretrain(data=photos, output=tmp_path / "thread", model=CONFIG, overrides=TINY)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == [] and state() == before
    assert (tmp_path / "thread" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": {"train": []}}, "data is of type dict: give a folder"),
        ({"data": []}, "data has no images"),
        ({"data": iter([])}, "data is of type list_iterator: give a folder"),
        ({"model": torch.nn.Linear(1, 1)}, "model is of type Linear: give a folder"),
        ({"threads": 0}, "threads is 0: give 1 or more"),
        ({"overrides": {"run.batch_siz": 1}}, "did you mean run.batch_size?"),
        # What takes no time to find out comes before what does.
        ({"data": "/no/data", "model": "/no/model"}, "load a model from '/no/model'"),
        ({"data": "/no/data", "recipe": "demo", "overrides": {"model.config.a": 1}}, "no field a"),
        (
            {"recipe": "demo", "overrides": {"model.config.embed_dim": "many"}},
            "model.config does not fit a network of type 'esvit_swin' .*'embed_dim'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: dict[str, Any], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(**{"data": photos, "output": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_said_before_the_first_step(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esvit_hf.pretraining.machine.free_memory", lambda: 10**6)
    with pytest.warns(UserWarning, match="may need about .* GB, but 0.0 GB are free"):
        pretrain(data=photos, output=tmp_path, model=CONFIG, overrides=TINY)
