"""Six optimizer steps on two processes with replicas and with FSDP2 shards, through a checkpoint in
the middle.
"""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from esvit_hf.data.views import ViewSpec
from esvit_hf.models.modeling_esvit_swin import EsvitSwinBlock
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.checkpoint_files import RunState, copy_state, read_state, write_state
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.step import DistillationStep, StepSchedules

IMAGES = 4


class ShardingAccelerator:
    """Prepares a network as Accelerate does for FSDP2 on GPUs; on CPU Accelerate itself makes
    replicas instead.
    """

    def __init__(self, accelerator: Accelerator, *, reshard: bool) -> None:
        self.accelerator = accelerator
        self.reshard = reshard

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)

    def prepare(self, network, optimizer):
        before = list(network.parameters())
        mesh = init_device_mesh("cpu", (self.accelerator.num_processes,))
        for module in network.modules():
            if isinstance(module, EsvitSwinBlock):
                fully_shard(module, mesh=mesh, reshard_after_forward=self.reshard)
        fully_shard(network, mesh=mesh, reshard_after_forward=self.reshard)
        shards = dict(zip(before, network.parameters(), strict=True))
        for group in optimizer.param_groups:
            group["params"] = [shards[parameter] for parameter in group["params"]]
        return network, optimizer

    def unwrap_model(self, network):
        return network

    def unscale_gradients(self, optimizer):
        """There is no float16 here."""


def make_step(accelerator):
    """Student, teacher and optimizer, in shards if the accelerator makes them."""
    recipe = load_recipe(
        {},
        {
            "data.dataset": "none",
            "model.config": {
                "image_size": 32,
                "embed_dim": 8,
                "depths": [1, 2],
                "num_heads": [1, 2],
                "window_size": 4,
            }
            | {"drop_path_rate": 0.0},
            # In the first three steps the head of the regions gets no gradient.
            "objectives.region.start_epoch": 1,
            "heads.num_prototypes": 32,
            "heads.hidden_dim": 16,
            "heads.bottleneck_dim": 8,
            "data.views": [
                ViewSpec(count=2, size=32, scale=(0.4, 1.0), teacher=True),
                ViewSpec(2, 16, (0.1, 0.4)),
            ],
            "run.batch_size": IMAGES,
            "schedule.num_epochs": 5,
            "optimizer.warmup_epochs": 0,
        },
    )
    torch.manual_seed(0)
    parts = build_parts(recipe)
    return DistillationStep(
        recipe, parts, StepSchedules.from_recipe(recipe, 3, 2 * IMAGES), accelerator
    )


def state_of(step):
    """What a checkpoint of such a run holds."""
    return RunState(step.student, step.teacher, step.centers, step.optimizer, {})


def numbers(accelerator, step, steps):
    """Losses and gradient norms of some steps, then the teacher's parameters."""
    seen = []
    for index in steps:
        generator = torch.Generator().manual_seed(index)
        own = slice(accelerator.process_index * IMAGES, (accelerator.process_index + 1) * IMAGES)
        crops = [
            torch.randn(2 * IMAGES, 3, side, side, generator=generator)[own]
            for side in (32, 32, 16, 16)
        ]
        loss = step.accumulate(crops, 2, index, last=True).total.detach()
        seen += [accelerator.reduce(loss, reduction="mean"), step.update(index)]
    return torch.cat(
        [torch.stack(seen), *(parameter.flatten() for parameter in step.teacher.parameters())]
    )


@contextmanager
def shared_folder(accelerator):
    """A folder of all processes, until all are done with it."""
    place = [tempfile.mkdtemp() if accelerator.is_main_process else None]
    yield Path(broadcast_object_list(place)[0])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(place[0])


def compare_shards_with_replicas():
    """What each of the processes runs."""
    torch.set_default_dtype(torch.float64)
    accelerator = Accelerator(cpu=True)
    replicas = numbers(accelerator, make_step(accelerator), range(6))
    engines = [
        accelerator,
        *(ShardingAccelerator(accelerator, reshard=reshard) for reshard in (False, True)),
    ]
    for engine in engines:
        first = make_step(engine)
        numbers(engine, first, range(3))
        with shared_folder(accelerator) as folder:
            copy = copy_state(accelerator, state_of(first))
            if copy is not None:
                write_state(copy, folder)
            accelerator.wait_for_everyone()
            # Every engine goes on from every other's checkpoint.
            for reader in engines:
                second = make_step(reader)
                read_state(accelerator, state_of(second), folder)
                torch.testing.assert_close(
                    numbers(reader, second, range(3, 6)), replicas[6:], rtol=1e-9, atol=1e-9
                )
    accelerator.end_training()
