"""Self-distillation with a view loss and a region loss: recipe, step and loop."""

from esvit_hf.pretraining.loop import PretrainingResult, pretrain
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import load_recipe, read_recipe

__all__ = ["PretrainingResult", "Recipe", "load_recipe", "pretrain", "read_recipe"]
