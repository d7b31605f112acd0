"""The result of a run as a folder that `AutoModel.from_pretrained` loads: teacher, processor,
heads, model card.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from esvit_hf.hub.cards import CardFacts, write_card
from esvit_hf.hub.heads_file import HEADS_FILE, write_heads
from esvit_hf.hub.measurements import MEASUREMENTS_FILE
from esvit_hf.hub.training_data import find_training_data
from esvit_hf.models.image_processing_esvit import EsvitImageProcessor
from esvit_hf.pretraining.build import saved_heads, starts_from_scratch
from esvit_hf.pretraining.model import DistillationNetwork
from esvit_hf.pretraining.recipe import PretrainingArguments


def recipe_yaml(arguments: PretrainingArguments) -> str:
    """Return the resolved recipe as YAML that `esvit pretrain` reads again."""
    fields = asdict(arguments)
    fields["output_dir"] = str(arguments.output_dir)
    fields["views"] = [
        {name: list(value) if isinstance(value, tuple) else value for name, value in view.items()}
        for view in fields["views"]
    ]
    return yaml.safe_dump(fields, sort_keys=False)


def dataset_name(arguments: PretrainingArguments) -> str:
    """Return the data set's name without the folders of this machine."""
    return _public_name(arguments.dataset)


def _public_name(name_or_path: str) -> str:
    path = Path(name_or_path)
    return path.resolve().name if path.exists() else name_or_path


def make_processor(arguments: PretrainingArguments) -> EsvitImageProcessor:
    """Build the evaluation transform that belongs to the recipe's largest view."""
    crop = max(view.size for view in arguments.views)
    return EsvitImageProcessor(
        size={"shortest_edge": round(crop * arguments.eval_resize_ratio)},
        crop_size={"height": crop, "width": crop},
    )


def export_run(
    arguments: PretrainingArguments,
    teacher: DistillationNetwork,
    centers: nn.ModuleDict,
    *,
    steps: int,
    total_batch: int,
    metrics: dict[str, Any],
) -> None:
    """Write the teacher, its processor, its heads and a card to the run's output folder.

    Args:
        arguments: the recipe.
        teacher: the teacher network.
        centers: centers of the tasks.
        steps: optimizer steps done.
        total_batch: images of an optimizer step.
        metrics: last measured numbers, for the card.
    """
    output: Path = arguments.output_dir
    model = teacher.backbone.model
    model.save_pretrained(output)
    make_processor(arguments).save_pretrained(output)
    write_heads(saved_heads(teacher, centers), output / HEADS_FILE)
    # Numbers of an earlier teacher in the same folder are not this one's.
    (output / MEASUREMENTS_FILE).unlink(missing_ok=True)
    write_card(
        output,
        _run_facts(arguments, teacher, steps=steps, total_batch=total_batch, metrics=metrics),
    )


def _run_facts(
    arguments: PretrainingArguments,
    teacher: DistillationNetwork,
    *,
    steps: int,
    total_batch: int,
    metrics: dict[str, Any],
) -> CardFacts:
    model, name, dataset = (
        teacher.backbone.model,
        arguments.output_dir.resolve().name,
        dataset_name(arguments),
    )
    start = _public_name(arguments.model)
    losses = [
        f"the {task} loss"
        for task in ("view", "region")
        if getattr(teacher, f"{task}_head") is not None
    ]
    known = find_training_data(dataset)
    if known is not None:
        datasets = [known.hub_id] if known.hub_id else []
    else:
        datasets = [] if Path(arguments.dataset).exists() else [dataset]
    parameters = sum(parameter.numel() for parameter in model.parameters())
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
        training={
            "start": "random weights"
            if starts_from_scratch(arguments)
            else f"weights of `{start}`",
            "data": f"`{dataset}`",
            "optimizer steps": steps,
            "images of a step": total_batch,
        },
        command="esvit pretrain recipe.yaml",
        command_remark="The run, with the recipe below, which is in this folder as well:",
        datasets=datasets,
        base_model=None
        if starts_from_scratch(arguments) or Path(arguments.model).exists()
        else start,
        recipe=recipe_yaml(replace(arguments, dataset=dataset, model=start, output_dir=Path(name))),
        during_run=metrics,
        has_heads=True,
    )
