"""Self-distillation with a view loss and a region loss: recipe, step and loop."""

from esvit_hf.pretraining.arguments import PretrainingArguments, parse_arguments
from esvit_hf.pretraining.loop import PretrainingResult, pretrain

__all__ = ["PretrainingArguments", "PretrainingResult", "parse_arguments", "pretrain"]
