"""The result of a run as a folder that `AutoModel.from_pretrained` loads: teacher, processor,
heads, model card.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from esvit_hf.common.files import give_usual_modes
from esvit_hf.hub.cards import CardFacts, write_card
from esvit_hf.hub.heads_file import HEADS_FILE, write_heads
from esvit_hf.hub.measurements import MEASUREMENTS_FILE
from esvit_hf.hub.network_rows import count_operations, describe_time, network_rows
from esvit_hf.hub.recipe_file import public_place, public_recipe
from esvit_hf.hub.training_data import find_training_data
from esvit_hf.models.image_processing_esvit import EsvitImageProcessor
from esvit_hf.pretraining.build import saved_heads, starts_from_scratch
from esvit_hf.pretraining.distillation import DistillationNetwork
from esvit_hf.pretraining.recipe import Recipe, recipe_yaml

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def dataset_name(recipe: Recipe) -> str:
    """Return the data set's name without the folders of this machine."""
    return public_place(recipe.data.dataset).removeprefix("./")


def make_processor(recipe: Recipe) -> EsvitImageProcessor:
    """Build the evaluation transform that belongs to the recipe's largest view."""
    crop = max(view.size for view in recipe.data.views)
    data = recipe.data
    statistics = {"image_mean": data.image_mean, "image_std": data.image_std}
    return EsvitImageProcessor(
        num_channels=data.channels,
        value_range=data.value_range,
        **(statistics if data.image_mean else {}),
        size={"shortest_edge": round(crop * recipe.data.eval_resize_ratio)},
        crop_size={"height": crop, "width": crop},
    )


def export_run(
    recipe: Recipe,
    teacher: DistillationNetwork,
    centers: nn.ModuleDict,
    *,
    steps: int,
    total_batch: int,
    metrics: dict[str, Any],
    machine: str = "",
    changes: Sequence[str] = (),
) -> None:
    """Write the teacher, its processor, its heads and a card to the run's output folder.

    Args:
        recipe: the recipe.
        teacher: the teacher network.
        centers: centers of the objectives.
        steps: optimizer steps done.
        total_batch: images of an optimizer step.
        metrics: last measured numbers, for the card.
        machine: what it was trained on, such as `2 x cpu`.
        changes: sentences about fields of the recipe that were changed on the way.
    """
    output: Path = recipe.run.output_dir
    model = teacher.backbone.model
    model.save_pretrained(output)
    make_processor(recipe).save_pretrained(output)
    write_heads(saved_heads(teacher, centers), output / HEADS_FILE)
    give_usual_modes(output)
    # Numbers of an earlier teacher in the same folder are not this one's.
    (output / MEASUREMENTS_FILE).unlink(missing_ok=True)
    write_card(
        output,
        _run_facts(
            recipe,
            teacher,
            steps=steps,
            total_batch=total_batch,
            metrics=metrics,
            machine=machine,
            changes=changes,
        ),
    )


def _run_facts(
    recipe: Recipe,
    teacher: DistillationNetwork,
    *,
    steps: int,
    total_batch: int,
    metrics: dict[str, Any],
    machine: str,
    changes: Sequence[str],
) -> CardFacts:
    model, name, dataset = (
        teacher.backbone.model,
        recipe.run.output_dir.resolve().name,
        dataset_name(recipe),
    )
    start = public_place(recipe.model.name)
    losses = [f"the {name} loss" for name in teacher.heads]
    known = find_training_data(dataset)
    if known is not None:
        datasets = [known.hub_id] if known.hub_id else []
    else:
        on_hub = _HUB_NAME.fullmatch(recipe.data.dataset)
        datasets = [dataset] if on_hub and not Path(dataset).exists() else []
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = max(view.size for view in recipe.data.views)
    seconds = metrics.get("training_seconds")
    return CardFacts(
        title=name,
        name=name,
        summary=(
            f"A network of type `{model.config.model_type}` with {parameters:,} parameters, "
            f"pretrained without labels on `{dataset}` with {' and '.join(losses)} of "
            f"[EsViT](https://arxiv.org/abs/2106.09785), by esvit-hf."
        ),
        model_type=model.config.model_type,
        limits=known.limits
        if known
        else f"What the network knows comes from the pictures of `{dataset}`.",
        network=network_rows(
            model.config.to_dict(),
            parameters,
            operations=count_operations(model, (recipe.data.channels, size, size)),
            training_time=f"{describe_time(seconds)} on {machine}" if seconds else None,
            license_name=recipe.hub.license,
        ),
        license=recipe.hub.license,
        training={
            "start": "random weights" if starts_from_scratch(recipe) else f"weights of `{start}`",
            "data": f"`{dataset}`",
            "optimizer steps": steps,
            "images of a step": total_batch,
            **({"changed on the way": "; ".join(changes)} if changes else {}),
        },
        command="esvit pretrain recipe.yaml",
        command_remark="The run, with the recipe below, which is in this folder as well:",
        datasets=datasets,
        base_model=None
        if starts_from_scratch(recipe) or Path(recipe.model.name).exists()
        else start,
        recipe=public_recipe(recipe_yaml(recipe)),
        during_run=metrics,
        has_heads=True,
    )
