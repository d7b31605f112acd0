"""What a checkpoint holds: the same state again, and nothing that runs or crashes."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from esvit_hf.pretraining.checkpoint import Progress, find_damage, load_checkpoint
from esvit_hf.pretraining.checkpoint_files import (
    CHECKPOINT_FILES,
    MANIFEST,
    RunState,
    copy_state,
    read_step,
    write_state,
)
from esvit_hf.pretraining.monitor import RunMonitor
from esvit_hf.pretraining.optimizer import build_optimizer

STEP = 7


class Tied(nn.Module):
    """Two names for one parameter, and a norm with counters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)


def make_run(seed: int = 0) -> tuple[Accelerator, RunState, Progress]:
    """A run that has taken one step."""
    torch.manual_seed(seed)
    student, teacher, centers = Tied(), Tied(), nn.BatchNorm1d(3)
    optimizer = build_optimizer(student)
    student.norm(student.second(student.first(torch.randn(5, 4)))).square().sum().backward()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    progress = Progress(total_batch=4, num_processes=1)
    progress.step = STEP + seed
    monitor = RunMonitor(1.0, {})
    monitor.losses = [0.1 + seed, float("inf")]
    records = {"progress": progress, "monitor": monitor}
    return Accelerator(cpu=True), RunState(student, teacher, centers, optimizer, records), progress


def write(accelerator: Accelerator, state: RunState, folder: Path) -> None:
    copy = copy_state(accelerator, state)
    assert copy is not None
    write_state(copy, folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / f"step-{STEP:09d}"
    folder.mkdir()
    accelerator, state, _ = make_run()
    write(accelerator, state, folder)
    return folder


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    folder = tmp_path / written.name
    folder.mkdir()
    for file in written.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def load(folder: Path) -> RunState:
    accelerator, state, progress = make_run(seed=1)
    load_checkpoint(accelerator, state, folder, progress)
    return state


def test_a_run_comes_back_as_it_was(written: Path) -> None:
    assert {file.name for file in written.iterdir()} == set(CHECKPOINT_FILES)
    assert find_damage(written) is None
    expected, found = make_run()[1], load(written)
    for name in ("student", "teacher", "centers", "optimizer"):
        before, after = expected.tensors(name), found.tensors(name)
        assert before.keys() == after.keys() and before
        for key in before:
            assert before[key].dtype == after[key].dtype and torch.equal(before[key], after[key])
    assert len(expected.tensors("optimizer")) == 3 * 5
    for name, record in expected.records.items():
        assert found.records[name].state_dict() == record.state_dict()
    assert read_step(written) == STEP


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        # The second of a pair of normal numbers is kept until it is asked for.
        return random.gauss(0, 1), np.random.normal(), np.random.rand(), float(torch.rand(()))

    folder = tmp_path / f"step-{STEP:09d}"
    folder.mkdir()
    accelerator, state, progress = make_run()
    draw()
    write(accelerator, state, folder)
    expected = draw()
    draw()
    load_checkpoint(accelerator, state, folder, progress)
    assert draw() == expected


def change(checkpoint: Path, *place: str, value: Any) -> None:
    """Change one value of the JSON."""
    content = inner = json.loads((checkpoint / "state.json").read_text())
    for key in place[:-1]:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[place[-1]] = value
    (checkpoint / "state.json").write_text(json.dumps(content))


STATES = ("random_states", "0")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("progress",), None),
        (("progress", "step"), STEP + 1),
        (("progress", "step"), "7"),
        (("progress", "broken_images"), [1]),
        (("monitor",), {}),
        (("monitor", "losses"), ["a"]),
        (("monitor", "norms"), 3),
        (("monitor", "streaks"), {"loss": {}}),
        (("monitor", "proven_step"), None),
        (("monitor", "peaks"), [1.0, 2.0, 3.0]),
        (("random_states",), None),
        (("random_states",), {"0": 1}),
        ((*STATES, "python"), [3, [1, 2], None]),
        ((*STATES, "python"), [3, [2**80] * 625, None]),
        ((*STATES, "numpy", "state", "pos"), 10**6),
        ((*STATES, "numpy", "state", "pos"), -5),
        ((*STATES, "numpy", "state", "key"), [1]),
        ((*STATES, "numpy", "bit_generator"), "PCG64"),
        ((*STATES, "torch"), "no number"),
        ((*STATES, "torch"), "00" * 5056),
        ((*STATES, "torch"), "00"),
    ],
)
def test_hostile_values_are_one_line(checkpoint: Path, place: tuple[str, ...], value: Any) -> None:
    change(checkpoint, *place, value=value)
    with pytest.raises(ValueError, match=r"^resume: .* does not fit the recipe \([^\n]*$"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", b""),
        ("state.json", b"\xff\xfe"),
        ("state.json", b"[" * 100_000),
        ("state.json", b"[]"),
        ("student.safetensors", b""),
        ("student.safetensors", b"\xff" * 8 + b"{}"),
        ("optimizer.safetensors", b"\x80\x04."),
    ],
)
def test_hostile_bytes_are_one_line(checkpoint: Path, file: str, content: bytes) -> None:
    (checkpoint / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"^resume: .* does not fit the recipe \([^\n]*$"):
        load(checkpoint)
    if file == "state.json":
        with pytest.raises(ValueError, match="state.json"):
            read_step(checkpoint)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_one_line_or_read(data: st.DataObject, tmp_path_factory: Any) -> None:
    accelerator, state, progress = make_run()
    folder = tmp_path_factory.mktemp("fuzz") / f"step-{STEP:09d}"
    folder.mkdir()
    write(accelerator, state, folder)
    path = folder / data.draw(st.sampled_from(sorted(set(CHECKPOINT_FILES) - {MANIFEST})))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_checkpoint(accelerator, state, folder, progress)
        except ValueError as error:
            assert str(error).startswith("resume: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"first.weight": torch.zeros(4, 5)}, r"first.weight is float32 \[4, 5\], the run has"),
        ({"first.weight": torch.zeros(4, 4).half()}, r"first.weight is float16"),
        ({"first.weight": torch.zeros(16)}, r"first.weight is float32 \[16\]"),
        ({"another": torch.zeros(1)}, "do not both have another"),
        ({"norm.num_batches_tracked": None}, "do not both have norm.num_batches_tracked"),
    ],
)
def test_tensors_of_another_network_are_named(
    checkpoint: Path, tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    path = checkpoint / "student.safetensors"
    changed = load_file(path) | tensors
    save_file({name: value for name, value in changed.items() if value is not None}, path)
    with pytest.raises(ValueError, match=f"does not fit the recipe .*{message}"):
        load(checkpoint)


@pytest.mark.parametrize("step", [-1, 10**9, 1.5, True, None, "../7"])
def test_a_step_that_is_none_is_refused(checkpoint: Path, step: Any) -> None:
    change(checkpoint, "progress", "step", value=step)
    with pytest.raises(ValueError, match="which is none"):
        read_step(checkpoint)
