"""Files of a run that were cut, changed or made up: one line that names the file, never a crash,
nothing executed.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from esvit_hf.figures.training_curves import plot_training, read_metrics
from esvit_hf.hub.heads_file import HEADS_FILE, SavedHead, read_heads, write_heads
from esvit_hf.hub.measurements import read_measurements
from esvit_hf.pretraining.build import build_parts, saved_heads
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import load_recipe

ON_A_FOLDER = [HealthCheck.function_scoped_fixture]


class Explode:
    """Pickled, it raises when somebody unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def heads() -> dict[str, SavedHead]:
    return {
        task: SavedHead(
            {"layers.0.weight": torch.ones(3, 2), "gain": torch.ones(4)}, torch.zeros(4)
        )
        for task in ("view", "region")
    }


def refuse(path: Path) -> None:
    with pytest.raises(ValueError, match=path.name) as error:
        read_heads(path)
    assert "replace or remove" in str(error.value)
    assert "\n" not in str(error.value)


def test_heads_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / HEADS_FILE
    write_heads(heads(), path)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 7), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refuse(path)


@settings(deadline=None, max_examples=100, suppress_health_check=ON_A_FOLDER)
@given(st.binary(max_size=300))
def test_any_bytes_are_no_heads(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / HEADS_FILE
    path.write_bytes(data)
    refuse(path)


@settings(deadline=None, max_examples=100, suppress_health_check=ON_A_FOLDER)
@given(st.integers(0, 2**16), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_as_heads(tmp_path: Path, place: int, value: int) -> None:
    path = tmp_path / HEADS_FILE
    write_heads(heads(), path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        assert set(read_heads(path)) <= {"view", "region"}
    except ValueError as error:
        assert HEADS_FILE in str(error) and "\n" not in str(error)


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    path = tmp_path / HEADS_FILE
    path.write_bytes(pickle.dumps(Explode()))
    refuse(path)
    torch.save({"view_head.weight": Explode()}, path)
    refuse(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("view_center", "view_middle"),
        ("region_center", "center"),
        ("view_head.gain", "view_head_gain"),
        ("view_head.gain", "other.gain"),
    ],
)
def test_renamed_keys_are_named(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / HEADS_FILE
    write_heads(heads(), path)
    tensors = {
        f"{task}_head.{name}": value
        for task, head in heads().items()
        for name, value in head.state.items()
    }
    tensors |= {f"{task}_center": head.center for task, head in heads().items()}
    tensors[new] = tensors.pop(old)
    save_file(tensors, path)
    refuse(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that starts from a small model with heads."""
    small = {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
    }
    heads = {"num_prototypes": 16, "hidden_dim": 8, "bottleneck_dim": 4}
    sections = {"data": {"dataset": "none"}, "heads": heads}
    parts = build_parts(load_recipe({**sections, "model": {"name": "esvit_swin", "config": small}}))
    folder = tmp_path_factory.mktemp("model")
    parts.teacher.backbone.model.save_pretrained(folder)
    write_heads(saved_heads(parts.teacher, parts.centers), folder / HEADS_FILE)
    return load_recipe({**sections, "model": {"name": str(folder)}})


@pytest.mark.parametrize("change", ["longer", "other_layer", "center", "region"])
def test_heads_of_another_shape_are_named(recipe: Recipe, change: str) -> None:
    path = Path(recipe.model.name) / HEADS_FILE
    whole = path.read_bytes()
    saved = read_heads(path)
    name = next(iter(saved["view"].state))
    if change == "longer":
        saved["view"].state[name] = torch.ones(99)
    elif change == "other_layer":
        saved["view"].state[f"{name}_renamed"] = saved["view"].state.pop(name)
    elif change == "center":
        saved["view"] = SavedHead(saved["view"].state, torch.zeros(99))
    else:
        saved["region"].state.pop(name)
    try:
        write_heads(saved, path)
        with pytest.raises(
            ValueError, match=f"{HEADS_FILE}: the (view|region) head does not fit the recipe"
        ) as error:
            build_parts(recipe)
        assert "\n" not in str(error.value)
    finally:
        path.write_bytes(whole)
    build_parts(recipe)


def test_code_of_a_model_runs_only_with_leave(tmp_path: Path) -> None:
    model, executed = tmp_path / "model", tmp_path / "executed"
    model.mkdir()
    classes = {"AutoConfig": "strange.StrangeConfig", "AutoModel": "strange.StrangeModel"}
    (model / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": classes}))
    (model / "strange.py").write_text(
        f"open({str(executed)!r}, 'w').close()\nraise RuntimeError('executed')\n"
    )
    strange = {"data": {"dataset": "none"}, "model": {"name": str(model)}}
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_parts(load_recipe(strange))
    assert not executed.exists()
    with pytest.raises(ValueError, match="executed"):
        build_parts(load_recipe(strange, {"model.trust_remote_code": True}))
    assert executed.exists()


def test_metrics_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        json.dumps({"step": step, "loss": 1.0 / step, "view_teacher_entropy": 1.0})
        for step in range(1, 4)
    ]
    whole = ("\n".join(lines) + "\n").encode()
    for length in range(len(whole) + 1):
        for tail in (b"", bytes(5), b"\xff\xfe"):
            path.write_bytes(whole[:length] + tail)
            complete = [json.loads(line) for line in lines[: whole[: length + 1].count(b"\n")]]
            read = read_metrics(path)
            assert read == complete or (tail and read == complete[:-1])
    path.write_bytes(whole[: len(whole) // 2])
    plot_training(path, num_prototypes=8).save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@settings(deadline=None, max_examples=50, suppress_health_check=ON_A_FOLDER)
@given(
    st.binary(max_size=60)
    | st.sampled_from([b"[1]", b"{}", b'[{"task": 1}]', b"null", b"[" * 5000])
)
def test_measurements_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "measurements.json"
    path.write_bytes(data)
    try:
        assert read_measurements(path) == []
    except ValueError as error:
        assert "measurements.json" in str(error) and "\n" not in str(error)
