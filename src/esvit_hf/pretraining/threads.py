"""How many threads compute in a run on a CPU, whose data-loading workers need cores too."""

import os

import torch

from esvit_hf.pretraining.distillation import DistillationParts
from esvit_hf.pretraining.machine import Machine
from esvit_hf.pretraining.memory import count_operations
from esvit_hf.pretraining.recipe import Recipe

__all__ = ["choose_threads"]

_MOST_OPERATIONS = 5 * 10**9
"""Operations of a forward pass of a batch up to which a further thread gains little.

The demo's has 1.2 G: a second thread gains nothing on two idle cores, and loses 40 % beside a busy
process. With the 3.9 G of `tiny_imagenet` it gains 9 % on idle cores. `swin_64px` has 40 G.
"""


def choose_threads(recipe: Recipe, parts: DistillationParts, machine: Machine) -> int | None:
    """Leave a core to each data-loading worker where a step is small.

    In a larger one more threads gain more than its workers need. The choice depends on nothing that
    is measured, so that a resumed run makes it again.

    Args:
        recipe: the recipe.
        parts: student and teacher, on the CPU; they stay as they are.
        machine: what there is.

    Returns:
        The number of threads; None to leave it as it is: there is nothing to gain, or the user has
        chosen it.
    """
    threads = max(1, machine.cores - recipe.data.num_workers)
    before = torch.get_num_threads()
    # `accelerate launch` and torchrun set the variable as well.
    is_chosen = "OMP_NUM_THREADS" in os.environ or before < machine.cores
    if machine.device != "cpu" or is_chosen or threads >= before:
        return None
    operations = recipe.run.batch_size * count_operations(recipe, parts)
    return threads if operations <= _MOST_OPERATIONS else None
