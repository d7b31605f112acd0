"""Self-distillation with a view loss and a region loss: recipe, step and loop."""

from .arguments import PretrainingArguments, parse_arguments
from .loop import PretrainingResult, pretrain

__all__ = ["PretrainingArguments", "PretrainingResult", "parse_arguments", "pretrain"]
