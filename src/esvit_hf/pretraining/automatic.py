"""Fields of a recipe that say `auto`: values that fit the machine and the images, each with its
reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from esvit_hf.common.files import expand_home
from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.data.views import dino_views
from esvit_hf.hub.heads_file import find_heads, read_heads
from esvit_hf.pretraining.build import build_backbone, build_parts, starts_from_scratch
from esvit_hf.pretraining.checkpoint import RECIPE
from esvit_hf.pretraining.machine import Machine
from esvit_hf.pretraining.memory import MemoryNeed, estimate_memory
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import (
    automatic_fields,
    load_recipe,
    read_field,
    replace_field,
    with_usual_values,
)
from esvit_hf.registration.families import FAMILIES

__all__ = [
    "Choice",
    "apply_choices",
    "choose_batch_size",
    "choose_compilation",
    "choose_momentum",
    "choose_network",
    "choose_num_epochs",
    "choose_precision",
    "choose_temperature_warmup",
    "choose_values",
    "choose_view_sizes",
    "choose_warmup",
    "choose_workers",
    "describe_choices",
    "draft_recipe",
    "recall_choices",
]

SMALL, LARGE = "swin_64px", "swin_tiny_w7_in1k"
"""The shipped recipes whose networks are chosen from."""

_LARGE_NEEDS = 8 * 10**9
_MOST_EPOCHS = 300
_MOST_WARMUP = 10.0
_LARGEST_BATCH = 64
_STEPS_AN_EPOCH = 3
_FEWEST_STEPS_TO_COMPILE = 2_000
_SHARE_OF_MEMORY = 0.6
_MOST_WORKERS = 8
_FEWEST_EPOCHS = {"cpu": 10, "other": 100}
_IMAGES_SEEN = {"cpu": 15_000, "other": 10_000_000}
_USUAL_IMAGE_SIZE = 224
_HEADS = ("heads.num_prototypes", "heads.hidden_dim", "heads.bottleneck_dim")


@dataclass(frozen=True)
class Choice:
    """A value that was chosen.

    Attributes:
        field: name with a dot.
        value: plain value of the field.
        why: what it depends on, in a few words.
    """

    field: str
    value: Any
    why: str


def choose_precision(machine: Machine) -> Choice:
    """Choose the number format by the device."""
    field = "run.mixed_precision"
    place = "processor" if machine.device == "cpu" else f"device ({machine.device})"
    if machine.has_bfloat16:
        return Choice(field, "bf16", f"the {place} multiplies bfloat16 fast")
    if machine.device == "cuda":
        return Choice(field, "fp16", "the GPU has no bfloat16")
    return Choice(field, "no", f"the {place} is not known to multiply bfloat16 fast")


def choose_network(machine: Machine) -> tuple[str, str]:
    """Choose the shipped recipe whose network fits the device, by its memory.

    Returns:
        Name of the recipe, and why.
    """
    if machine.device == "cpu":
        return SMALL, "small enough to train without a GPU"
    free = f"{machine.device_memory / 1e9:.1f} GB are free on {machine.device}"
    if machine.device_memory < _LARGE_NEEDS:
        return SMALL, f"{free}, and a larger network needs {_LARGE_NEEDS / 1e9:.0f}"
    return LARGE, free


def choose_view_sizes(image_size: int, stride: int) -> tuple[int, int]:
    """Choose the sides of global and local views for a network.

    Args:
        image_size: side of the images that the network was made for, in pixels.
        stride: pixels of a region's side.

    Returns:
        Both sides, multiples of the stride, about in the paper's ratio of 224 to 96.
    """
    large = max(1, image_size // stride)
    return large * stride, max(1, round(large * 96 / 224)) * stride


def choose_num_epochs(num_images: int, machine: Machine) -> Choice:
    """Choose the passes over the data by the number of images: few images need many."""
    kind = "cpu" if machine.device == "cpu" else "other"
    fewest, seen = _FEWEST_EPOCHS[kind], _IMAGES_SEEN[kind]
    epochs = min(_MOST_EPOCHS, max(fewest, round(seen / num_images)))
    why = f"{num_images:,} images, which are seen {epochs * num_images:,} times in all"
    return Choice("schedule.num_epochs", epochs, why)


def choose_warmup(num_epochs: int) -> Choice:
    """Choose the epochs until the peak learning rate: a tenth, at most the paper's ten."""
    warmup, why = num_epochs / 10, f"a tenth of {num_epochs} epochs"
    if warmup > _MOST_WARMUP:
        warmup, why = _MOST_WARMUP, f"enough for {num_epochs} epochs"
    return Choice("optimizer.warmup_epochs", warmup, why)


def choose_temperature_warmup(num_epochs: int) -> Choice:
    """Choose the epochs until the teacher's last temperature: a tenth, as in the paper."""
    return Choice(
        "schedule.warmup_teacher_temperature_epochs",
        num_epochs // 10,
        f"a tenth of {num_epochs} epochs",
    )


def choose_momentum(total_steps: int) -> Choice:
    """Choose how slowly the teacher follows: over a fortieth of a short run, as in the paper for
    10,000 steps and more.
    """
    momentum = round(min(0.996, max(0.98, 1 - 40 / total_steps)), 4)
    return Choice("schedule.teacher_momentum", momentum, f"the run has {total_steps:,} steps")


def choose_workers(machine: Machine) -> Choice:
    """Choose the data-loading processes by the cores."""
    if machine.device == "cpu":
        workers, why = machine.cores // 4, "most cores train"
    else:
        workers, why = machine.cores - 1, "one core starts the work of the device"
    workers = min(_MOST_WORKERS, max(1, workers))
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
    return Choice("data.num_workers", workers, f"{cores}, of which {why}")


def choose_batch_size(
    need: MemoryNeed,
    machine: Machine,
    num_images: int,
    num_workers: int,
    accumulation_steps: int = 1,
) -> Choice:
    """Choose the largest power of two that fits into memory, and gives an epoch a few steps.

    Args:
        need: what the networks need.
        machine: what there is.
        num_images: images of the data.
        num_workers: data-loading processes.
        accumulation_steps: forward passes of a step.
    """
    share = num_images // (_STEPS_AN_EPOCH * machine.processes * accumulation_steps)
    size = _LARGEST_BATCH
    while size > 1 and size > share:
        size //= 2
    why = f"{num_images:,} images" if size < _LARGEST_BATCH else "the largest that is tried"
    limit = size
    while size > 1 and not need.fits(machine, size, num_workers, _SHARE_OF_MEMORY):
        size //= 2
    used = need.on_device(size)
    if machine.device == "cpu":
        used += need.on_host(size, num_workers)
    free = f"{machine.device_memory / 1e9:.1f} GB that are free"
    memory = f"needs about {used / 1e9:.1f} of the {free}"
    return Choice("run.batch_size", size, memory if size < limit else f"{why}; {memory}")


def choose_compilation(machine: Machine, model_type: str, total_steps: int) -> Choice:
    """Choose whether blocks are compiled: on GPUs, for networks and runs that are worth it.

    Args:
        machine: what there is.
        model_type: of the network, as transformers names it.
        total_steps: optimizer steps of the run.
    """
    field = "run.compile"
    if machine.device != "cuda":
        return Choice(field, False, f"it was not seen to pay on {machine.device}")
    if not machine.has_compiler:
        return Choice(field, False, "there is no Triton, or no C compiler for it")
    if total_steps < _FEWEST_STEPS_TO_COMPILE:
        return Choice(field, False, f"{total_steps:,} steps do not win back the first one's minute")
    if model_type not in FAMILIES.values():
        return Choice(field, False, "only the networks of this package are known to compile")
    return Choice(field, True, "on a GPU it makes fewer and larger kernels of a block")


def draft_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check a recipe before its automatic fields have values.

    Args:
        values: mapping of sections to fields.

    Returns:
        The recipe with usual values in these fields.

    Raises:
        ValueError: as `load_recipe`.
    """
    return load_recipe(with_usual_values(values))


def recall_choices(values: Mapping[str, Any], output_dir: Path) -> list[Choice]:
    """Find the automatic fields of a run in its folder, to go on with them.

    Args:
        values: mapping of sections to fields.
        output_dir: folder of the run.

    Returns:
        The values that the run was started with; nothing if there is no run.
    """
    path = output_dir / RECIPE
    if not path.is_file():
        return []
    saved = read_yaml(path.read_text(encoding="utf-8"))
    names = automatic_fields(values)
    if "model.name" in names and "config" not in values["model"]:
        names.append("model.config")
    found = {name: read_field(saved, name) for name in names}
    why = "as the run was started"
    return [Choice(name, value, why) for name, value in found.items() if value is not None]


def choose_values(values: Mapping[str, Any], machine: Machine, num_images: int) -> list[Choice]:
    """Choose all automatic fields.

    Args:
        values: mapping of sections to fields.
        machine: what there is.
        num_images: images of the data.

    Returns:
        The choices, in the order in which they were made.

    Raises:
        ValueError: as `load_recipe` and `build_parts`.
    """
    asked = automatic_fields(values)
    chosen: list[Choice] = []
    current = dict(values)

    def take(choice: Choice) -> None:
        if choice.field in asked or choice.field == "model.config":
            chosen.append(choice)
            replace_field(current, choice.field, choice.value)

    take(choose_precision(machine))
    for choice in _choose_network_fields(current, asked, machine):
        take(choice)
    take(choose_num_epochs(num_images, machine))
    epochs = draft_recipe(current).schedule.num_epochs
    take(choose_warmup(epochs))
    take(choose_temperature_warmup(epochs))
    take(choose_workers(machine))
    if "run.batch_size" in asked:
        draft = draft_recipe(current)
        need, steps = estimate_memory(draft, build_parts(draft)), draft.run.accumulation_steps
        take(choose_batch_size(need, machine, num_images, draft.data.num_workers, steps))
    run = draft_recipe(current).run
    images = run.batch_size * run.accumulation_steps * machine.processes
    total_steps = max(1, epochs * (num_images // images))
    take(choose_momentum(total_steps))
    if "run.compile" in asked:
        take(choose_compilation(machine, _model_type(draft_recipe(current)), total_steps))
    return chosen


def apply_choices(values: Mapping[str, Any], choices: Sequence[Choice]) -> dict[str, Any]:
    """Return the values of a recipe with what was chosen."""
    applied = dict(values)
    for choice in choices:
        replace_field(applied, choice.field, choice.value)
    return applied


def describe_choices(choices: Sequence[Choice]) -> str:
    """Write choices as a table of fields, values and reasons."""
    width = max(len(choice.field) for choice in choices) + 1
    lines = [
        f"  {f'{choice.field}:'.ljust(width)} {_in_words(choice)} ({choice.why})"
        for choice in choices
    ]
    return "\n".join(["chosen for this machine and these images; every field is a flag:", *lines])


def _choose_network_fields(
    values: Mapping[str, Any], asked: Sequence[str], machine: Machine
) -> Iterator[Choice]:
    """The network, its views and heads, and the learning rate: of a shipped recipe, and what a
    given model asks for instead.
    """
    name, why = choose_network(machine)
    shipped = load_recipe(name)
    fields = asdict(shipped)
    of_model: dict[str, Any] = {}
    if "model.name" in asked:
        yield Choice("model.name", shipped.model.name, f"of {name}, {why}")
        if "config" not in values["model"]:
            yield Choice("model.config", shipped.model.config, f"of {name}")
    else:
        draft = draft_recipe(values)
        if any(field.startswith("heads.") for field in asked):
            of_model |= _brought_heads(draft)
        if "data.views" in asked:
            of_model["data.views"] = _views_of_model(draft)
    for field in ("data.views", *_HEADS, "optimizer.learning_rate"):
        section, _, part = field.partition(".")
        source = "of the model" if field in of_model else f"of {name}"
        yield Choice(field, of_model.get(field, fields[section][part]), source)


def _model_type(recipe: Recipe) -> str:
    if starts_from_scratch(recipe):
        return recipe.model.name
    place = expand_home(recipe.model.name)
    fields, _ = PretrainedConfig.get_config_dict(place, revision=recipe.model.revision)
    return str(fields.get("model_type"))


def _brought_heads(recipe: Recipe) -> dict[str, Any]:
    """Widths of the heads that lie beside the weights of a model."""
    scratch = starts_from_scratch(recipe)
    path = None if scratch else find_heads(recipe.model.name, recipe.model.revision)
    if path is None:
        return {}
    state = next(iter(read_heads(path).values())).state
    num_prototypes, bottleneck_dim = state["prototype_direction"].shape
    hidden_dim = state["layers.0.weight"].shape[0]
    return dict(zip(_HEADS, (num_prototypes, hidden_dim, bottleneck_dim), strict=True))


def _views_of_model(recipe: Recipe) -> list[dict[str, Any]]:
    """The paper's views in the sizes of a model, whose regions are counted on an empty image."""
    backbone = build_backbone(recipe).eval().float()
    size = getattr(backbone.model.config, "image_size", None)
    size = size if isinstance(size, int) else _USUAL_IMAGE_SIZE
    with torch.inference_mode():
        rows, _ = backbone(torch.zeros(1, recipe.data.channels, size, size)).grid
    large, small = choose_view_sizes(size, -(-size // rows))
    return [asdict(view) for view in dino_views(global_size=large, local_size=small)]


def _in_words(choice: Choice) -> str:
    if choice.field == "data.views":
        return ", ".join(f"{view['count']} of {view['size']} pixels" for view in choice.value)
    if isinstance(choice.value, Mapping):
        return ", ".join(f"{name} {value}" for name, value in choice.value.items()) or "as it is"
    return f"{choice.value:g}" if isinstance(choice.value, float) else str(choice.value)
