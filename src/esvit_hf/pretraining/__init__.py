"""Self-distillation with a view loss and a region loss: recipe, step and loop."""

from esvit_hf.pretraining.loop import PretrainingResult, pretrain
from esvit_hf.pretraining.recipe import PretrainingArguments, parse_arguments

__all__ = ["PretrainingArguments", "PretrainingResult", "parse_arguments", "pretrain"]
