"""Values that fit machine and images: each choice at its edges, and all of them together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.paths import FASHION_MNIST, ROOT

from esvit_hf.common.yaml_text import write_yaml
from esvit_hf.pretraining.automatic import (
    Choice,
    apply_choices,
    choose_batch_size,
    choose_compilation,
    choose_momentum,
    choose_network,
    choose_num_epochs,
    choose_precision,
    choose_temperature_warmup,
    choose_values,
    choose_view_sizes,
    choose_warmup,
    choose_workers,
    describe_choices,
    draft_recipe,
    recall_choices,
)
from esvit_hf.pretraining.machine import Machine
from esvit_hf.pretraining.memory import MemoryNeed
from esvit_hf.pretraining.recipe import AUTOMATIC
from esvit_hf.pretraining.recipe_reading import automatic_fields, load_recipe, read_values

GIGABYTE = 10**9
CPU = Machine("cpu", 16 * GIGABYTE, 16 * GIGABYTE, 2, 1, True, True)
GPU = Machine("cuda", 40 * GIGABYTE, 60 * GIGABYTE, 16, 1, True, True)


@pytest.mark.parametrize(
    ("machine", "precision"),
    [
        (CPU, "bf16"),
        (replace(CPU, has_bfloat16=False), "no"),
        (GPU, "bf16"),
        (replace(GPU, has_bfloat16=False), "fp16"),
        (replace(GPU, device="mps", has_bfloat16=False), "no"),
    ],
)
def test_precision(machine: Machine, precision: str) -> None:
    assert choose_precision(machine).value == precision


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (replace(CPU, device_memory=500 * GIGABYTE), "swin_64px"),
        (replace(GPU, device_memory=8 * GIGABYTE - 1), "swin_64px"),
        (replace(GPU, device_memory=8 * GIGABYTE), "swin_tiny_w7_in1k"),
    ],
)
def test_network(machine: Machine, name: str) -> None:
    assert choose_network(machine)[0] == name


@pytest.mark.parametrize(
    ("image_size", "stride", "sizes"),
    [
        (224, 32, (224, 96)),
        (224, 16, (224, 96)),
        (64, 32, (64, 32)),
        (48, 16, (48, 16)),
        (518, 14, (518, 224)),
        (8, 32, (32, 32)),
        (240, 32, (224, 96)),
    ],
)
def test_view_sizes(image_size: int, stride: int, sizes: tuple[int, int]) -> None:
    assert choose_view_sizes(image_size, stride) == sizes


@pytest.mark.parametrize(
    ("images", "machine", "epochs"),
    [
        (1, CPU, 300),
        (50, CPU, 300),
        (100, CPU, 150),
        (1_500, CPU, 10),
        (10**6, CPU, 10),
        (100, GPU, 300),
        (50_000, GPU, 200),
        (1_281_167, GPU, 100),
    ],
)
def test_epochs(images: int, machine: Machine, epochs: int) -> None:
    assert choose_num_epochs(images, machine).value == epochs


@pytest.mark.parametrize(
    ("epochs", "warmup", "temperature"), [(1, 0.1, 0), (10, 1, 1), (100, 10, 10), (300, 10, 30)]
)
def test_warmups(epochs: int, warmup: float, temperature: int) -> None:
    assert choose_warmup(epochs).value == warmup
    assert choose_temperature_warmup(epochs).value == temperature


@pytest.mark.parametrize(
    ("steps", "momentum"), [(1, 0.98), (2000, 0.98), (4000, 0.99), (10_000, 0.996), (10**6, 0.996)]
)
def test_momentum(steps: int, momentum: float) -> None:
    assert choose_momentum(steps).value == momentum


@pytest.mark.parametrize(
    ("cores", "machine", "workers"),
    [(1, CPU, 1), (2, CPU, 1), (8, CPU, 2), (64, CPU, 8), (1, GPU, 1), (4, GPU, 3), (16, GPU, 8)],
)
def test_workers(cores: int, machine: Machine, workers: int) -> None:
    assert choose_workers(replace(machine, cores=cores)).value == workers


@pytest.mark.parametrize(
    ("images", "megabytes", "changes", "size"),
    [
        (1, 1, {}, 1),
        (5, 1, {}, 1),
        (100, 1, {}, 32),
        (192, 1, {}, 64),
        (10**6, 1, {}, 64),
        (10**6, 100, {}, 64),
        (10**6, 200, {}, 32),
        (10**6, 10**6, {}, 1),
        (192, 1, {"processes": 4}, 16),
        (192, 1, {"device": "cuda", "device_memory": GIGABYTE}, 1),
    ],
)
def test_batch_size(images: int, megabytes: int, changes: dict[str, Any], size: int) -> None:
    need = MemoryNeed(GIGABYTE // 2, megabytes * 10**6, views=0, saved=0)
    assert choose_batch_size(need, replace(CPU, **changes), images, 1).value == size


def test_a_step_of_several_batches_leaves_an_epoch_its_steps() -> None:
    assert choose_batch_size(MemoryNeed(0, 0, 0, 0), CPU, 192, 1, accumulation_steps=4).value == 16


@pytest.mark.parametrize(
    ("machine", "model", "steps", "compiles"),
    [
        (GPU, "esvit_cvt", 10_000, True),
        (GPU, "vit", 10_000, False),
        (GPU, "esvit_swin", 500, False),
        (replace(GPU, has_compiler=False), "esvit_swin", 10_000, False),
        (CPU, "esvit_swin", 10_000, False),
    ],
)
def test_compilation(machine: Machine, model: str, steps: int, compiles: bool) -> None:
    assert choose_compilation(machine, model, steps).value is compiles


def test_every_field_is_chosen_and_said_with_its_reason() -> None:
    values = read_values("auto", {"data.dataset": "photos"})
    assert automatic_fields(values) == list(AUTOMATIC)
    choices = choose_values(values, CPU, 100)
    fields = [choice.field for choice in choices]
    assert sorted(fields) == sorted([*AUTOMATIC, "model.config"])
    recipe, shipped = load_recipe(apply_choices(values, choices)), load_recipe("swin_64px")
    assert (recipe.model, recipe.heads) == (shipped.model, shipped.heads)
    assert recipe.data.views == shipped.data.views
    assert (recipe.schedule.num_epochs, recipe.run.batch_size) == (150, 32)
    table = describe_choices(choices)
    for choice in choices:
        assert f"  {choice.field}: " in table and f"({choice.why})" in table
    assert max(map(len, table.splitlines())) <= 200


def test_a_large_device_gets_the_network_of_the_paper() -> None:
    values = read_values("auto", {"data.dataset": "photos", "run.batch_size": 8})
    recipe = load_recipe(apply_choices(values, choose_values(values, GPU, 10_000)))
    shipped = load_recipe("swin_tiny_w7_in1k")
    assert (recipe.model, recipe.heads) == (shipped.model, shipped.heads)
    assert recipe.data.views == shipped.data.views


def test_what_is_given_stays() -> None:
    given = {
        "data.dataset": "photos",
        "model.config": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
        "schedule.num_epochs": 5,
        "data.num_workers": 0,
        "objectives.region.start_epoch": 2,
    }
    values = read_values("auto", given)
    recipe = load_recipe(apply_choices(values, choose_values(values, CPU, 100)))
    assert recipe.model.config == given["model.config"]
    assert (recipe.schedule.num_epochs, recipe.optimizer.warmup_epochs) == (5, 0.5)
    assert recipe.data.num_workers == 0


def test_one_field_of_any_recipe_may_be_auto() -> None:
    values = read_values("demo", {"schedule.num_epochs": "auto"})
    (choice,) = choose_values(values, CPU, 1000)
    assert choice == Choice(
        "schedule.num_epochs", 15, "1,000 images, which are seen 15,000 times in all"
    )


def test_views_and_heads_are_those_of_a_model_that_is_given() -> None:
    folder = ROOT / "examples" / "checkpoints" / "esvit_swin_tiny_imagenet"
    values = read_values("auto", {"data.dataset": "photos", "model.name": str(folder)})
    recipe = load_recipe(apply_choices(values, choose_values(values, CPU, 100)))
    assert recipe.model.config == {}
    assert [view.size for view in recipe.data.views] == [48, 48, 16]
    heads = recipe.heads
    assert (heads.num_prototypes, heads.hidden_dim, heads.bottleneck_dim) == (1024, 256, 64)


def test_a_draft_is_checked_before_anything_is_chosen() -> None:
    with pytest.raises(ValueError, match="data.dataset is missing; run.seed must be a whole"):
        draft_recipe(read_values("auto", {"run.seed": "one"}))
    late = {"data.dataset": str(FASHION_MNIST), "objectives.region.start_epoch": 200}
    assert draft_recipe(read_values("auto", late)).objectives["region"].start_epoch == 200


def test_a_run_that_goes_on_keeps_what_was_chosen(tmp_path: Path) -> None:
    values = read_values("auto", {"data.dataset": "photos"})
    assert recall_choices(values, tmp_path) == []
    chosen = apply_choices(values, choose_values(values, CPU, 100))
    (tmp_path / "recipe.yaml").write_text(write_yaml(chosen))
    other = read_values("auto", {"data.dataset": "photos", "run.seed": 1})
    recalled = apply_choices(other, recall_choices(other, tmp_path))
    assert load_recipe(recalled) == load_recipe(apply_choices(chosen, [Choice("run.seed", 1, "")]))
