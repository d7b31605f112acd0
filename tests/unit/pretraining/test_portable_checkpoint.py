"""Resume points as tensors and JSON: the same files again, nothing that could run, nothing outside
the folder.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import load
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from esvit_hf.pretraining.checkpoint import find_damage, write_manifest
from esvit_hf.pretraining.portable_checkpoint import (
    _put_together,
    _take_apart,
    read_portable,
    write_portable,
)

NAME = "step-000000007"


def equal(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with every kind of file that Accelerate writes."""
    folder = tmp_path / "checkpoints" / NAME
    folder.mkdir(parents=True)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, betas=(0.8, 0.99))
    network(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    shared = torch.randn(4)
    torch.save(
        {"first": shared, "second": shared[1:], "none": None}, folder / "custom_checkpoint_0.pkl"
    )
    states = {
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
        "step": 0,
    }
    torch.save(states, folder / "random_states_0.pkl")
    (folder / "extra.json").write_text(json.dumps({"loss": float("nan"), "names": ["a", 1, None]}))
    write_manifest(folder)
    return folder


def test_a_checkpoint_comes_back_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    write_portable(checkpoint, tmp_path / "point.safetensors")
    made = read_portable(tmp_path / "point.safetensors", tmp_path / "elsewhere")
    assert made == tmp_path / "elsewhere" / NAME
    assert {path.name for path in made.iterdir()} == {path.name for path in checkpoint.iterdir()}
    assert find_damage(made) is None
    assert [path.name for path in made.parent.iterdir()] == [NAME]
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"):
        assert equal(*(load(folder / name, weights_only=True) for folder in (checkpoint, made))), (
            name
        )
    assert equal(load_file(checkpoint / "model.safetensors"), load_file(made / "model.safetensors"))
    assert (made / "extra.json").read_text() == (checkpoint / "extra.json").read_text()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-9, 9), inner)
        | st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor)
        | st.lists(st.integers(0, 2**32 - 1), max_size=3).map(
            lambda numbers: np.array(numbers, dtype=np.uint32)
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_any_structure_survives_json(value: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    structure = json.loads(json.dumps(_take_apart(value, "file", tensors)))
    assert equal(_put_together(structure, tensors), value)


@pytest.mark.parametrize("value", [{1.5: 1}, {"a": {1, 2}}, [Path("x")], b"bytes", object(), 1j])
def test_what_is_neither_tensor_nor_json_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="^optimizer.bin.*(neither|JSON)"):
        _take_apart(value, "optimizer.bin", {})


def test_a_pickle_that_would_run_code_is_not_read(checkpoint: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state": Payload()}, checkpoint / "custom_checkpoint_0.pkl")
    with pytest.raises(ValueError, match="custom_checkpoint_0.pkl"):
        write_portable(checkpoint, tmp_path / "point.safetensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("checkpoint_name", "file_name"),
    [
        ("../step-000000007", "a.bin"),
        ("step-7", "a.bin"),
        (NAME, "../a.bin"),
        (NAME, "/a.bin"),
        (NAME, ".a"),
        (NAME, ""),
    ],
)
def test_names_from_elsewhere_stay_in_the_folder(
    tmp_path: Path, checkpoint_name: str, file_name: str
) -> None:
    metadata = {"checkpoint": checkpoint_name, "files": json.dumps({file_name: {"value": 1}})}
    save_file({"x": torch.zeros(1)}, tmp_path / "point.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="outside its folder"):
        read_portable(tmp_path / "point.safetensors", tmp_path / "run" / "checkpoints")
    assert [path.name for path in tmp_path.iterdir()] == ["point.safetensors"]


def test_damaged_files_are_named_and_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    point = tmp_path / "point.safetensors"
    write_portable(checkpoint, point)
    with safe_open(point, framework="pt") as file:
        metadata = dict(file.metadata())
    whole = point.read_bytes()
    point.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="point.safetensors is no readable resume point"):
        read_portable(point, tmp_path / "elsewhere")
    for changed in (
        {},
        {"files": "{"},
        {"files": '{"a.bin": {"code": 1}}'},
        {"files": '{"a.bin": {"tensor": "absent"}}'},
    ):
        save_file(
            {"x": torch.zeros(1)},
            point,
            metadata={**metadata, **changed} if changed else {"format": "pt"},
        )
        with pytest.raises(ValueError, match="point.safetensors is no readable resume point"):
            read_portable(point, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("file_name", "structure"),
    [
        ("model.safetensors", {"value": 1}),
        ("model.safetensors", {"dict": [["a", {"value": "no tensor"}]]}),
        ("optimizer.bin", {"dict": [[["unhashable"], {"value": 1}]]}),
        ("optimizer.bin", {"list": 5}),
        ("optimizer.bin", {"value": 1, "list": []}),
        ("optimizer.bin", "text"),
    ],
)
def test_hostile_contents_are_one_line_and_leave_nothing(
    tmp_path: Path, file_name: str, structure: Any
) -> None:
    metadata = {"checkpoint": NAME, "files": json.dumps({file_name: structure})}
    save_file({"x": torch.zeros(1)}, tmp_path / "point.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="is no readable resume point"):
        read_portable(tmp_path / "point.safetensors", tmp_path / "checkpoints")
    assert list(tmp_path.glob("checkpoints/*")) == []


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    deep = '{"list": [' * 5000 + '{"value": 1}' + "]}" * 5000
    metadata = {"checkpoint": NAME, "files": f'{{"optimizer.bin": {deep}}}'}
    save_file({"x": torch.zeros(1)}, tmp_path / "point.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="is no readable resume point"):
        read_portable(tmp_path / "point.safetensors", tmp_path / "checkpoints")
