"""The result of a run as a folder that `AutoModel.from_pretrained` loads: teacher, processor, heads, model card."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from esvit_hf.heads_file import HEADS_FILE, write_heads
from esvit_hf.models.image_processing_esvit import EsvitImageProcessor
from esvit_hf.pretraining.arguments import PretrainingArguments
from esvit_hf.pretraining.build import saved_heads
from esvit_hf.pretraining.model import DistillationNetwork

CARD_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A {{ model_type }} network ({{ parameters }} parameters) pretrained without labels by self-distillation
([EsViT](https://arxiv.org/abs/2106.09785)){{ tasks }}, with esvit-hf.

```python
import esvit_hf
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{{ name }}")
model = AutoModel.from_pretrained("{{ name }}").eval()
features = model(**processor(image, return_tensors="pt")).pooler_output
```

## Training

{{ steps }} optimizer steps on `{{ dataset }}`, {{ total_batch }} images a step.

{% if metrics %}Measured during this run (`metrics.jsonl`):

| | |
|---|---|
{% for key, value in metrics.items() %}| {{ key }} | {{ value }} |
{% endfor %}{% endif %}
The recipe:

```yaml
{{ recipe }}```
"""


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
    path = Path(arguments.dataset)
    return path.resolve().name if path.exists() else arguments.dataset


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
    centres: nn.ModuleDict,
    *,
    steps: int,
    total_batch: int,
    metrics: dict[str, Any],
) -> None:
    """Write the teacher, its processor, its heads and a card to the run's output folder.

    Args:
        arguments: the recipe.
        teacher: the teacher network.
        centres: centres of the tasks.
        steps: optimizer steps done.
        total_batch: images of an optimizer step.
        metrics: last measured numbers, for the card.
    """
    output: Path = arguments.output_dir
    model = teacher.backbone.model
    model.save_pretrained(output)
    make_processor(arguments).save_pretrained(output)
    write_heads(saved_heads(teacher, centres), output / HEADS_FILE)
    tasks = [name for name, head in (("view loss", teacher.view_head), ("region loss", teacher.region_head)) if head]
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="image-feature-extraction",
            tags=["self-supervised-learning", "esvit", "arxiv:2106.09785"],
        ),
        template_str=CARD_TEMPLATE,
        title=output.name,
        name=output.name,
        model_type=model.config.model_type,
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        tasks=f" with the {' and the '.join(tasks)}",
        steps=steps,
        dataset=dataset_name(arguments),
        total_batch=total_batch,
        metrics=metrics,
        recipe=recipe_yaml(replace(arguments, dataset=dataset_name(arguments), output_dir=Path(output.name))),
    )
    card.save(output / "README.md")
