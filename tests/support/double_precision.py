"""Real runs in float64, one after the other.

In float32 a comparison of weights says little: AdamW turns gradients that are pure rounding noise
(those of the key biases) into full steps. In float64 that noise is below AdamW's epsilon.
"""

import torch
from accelerate.state import AcceleratorState

from esvit_hf.data.color import augment
from esvit_hf.pretraining import loop
from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.recipe_reading import read_recipe


def pretrain_in_double_precision(runs):
    """Run some command lines; the process is of no use for anything else afterwards."""
    torch.set_default_dtype(torch.float64)
    loop.augment = lambda *crops, **options: augment(*crops, **options).double()
    # Processes that meet a second time would find the addresses of the first time in their store.
    torch.distributed.destroy_process_group = lambda group=None: None
    for words in runs:
        pretrain(read_recipe(words))
        AcceleratorState._reset_state(reset_partial_state=True)
