"""Accelerate as a run needs it: precision, trackers, and the engines that fit."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
)

from esvit_hf.common.accelerator_state import start_accelerator
from esvit_hf.common.errors import one_line
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.tracking import make_trackers

Decision = TypeVar("Decision")

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before the run ends with an error."""


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Start Accelerate with the recipe's precision and trackers.

    Raises:
        ValueError: if it was launched with an engine that does not fit, for fp16 on a CPU, or for
            a tracker that is not installed.
    """
    accelerator = start_accelerator(
        recipe.run.mixed_precision,
        setting="run.mixed_precision",
        log_with=make_trackers(recipe) or None,
        project_config=ProjectConfiguration(
            project_dir=str(recipe.run.output_dir), logging_dir=str(recipe.run.output_dir / "logs")
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )
    check_engine(accelerator.distributed_type, has_flat_parameters=not accelerator.is_fsdp2)
    return accelerator


def check_engine(kind: DistributedType, *, has_flat_parameters: bool = False) -> None:
    """Refuse what takes optimizer steps of its own, or hides the parameters of a network.

    Args:
        kind: engine that the processes were launched with.
        has_flat_parameters: FSDP joins parameters, as its version 1 does.

    Raises:
        ValueError: for DeepSpeed, Megatron-LM and FSDP of version 1.
    """
    if kind is DistributedType.FSDP and has_flat_parameters:
        raise ValueError(
            "FSDP of version 1 joins the parameters of a network, so that teacher and checkpoints "
            "cannot find theirs: set fsdp_version to 2, as in examples/accelerate/fsdp2_zero2.yaml"
        )
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{kind.value} takes the optimizer step inside the backward pass, where the clipping "
            f"of each gradient, the frozen prototypes and the schedules of this recipe cannot "
            f"reach: launch with examples/accelerate/fsdp2_zero2.yaml, which shards the same state"
        )


def decide_together(accelerator: Accelerator, decide: Callable[[], Decision]) -> Decision:
    """Decide something in one process for all of them.

    Args:
        accelerator: the process's accelerator.
        decide: called by the main process alone.

    Returns:
        What was decided, in every process.

    Raises:
        ValueError: in every process, if `decide` raises it or an OSError.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = decide()
        except (ValueError, OSError) as error:
            found[1] = one_line(error, None)
    broadcast_object_list(found)
    decision, problem = found
    if problem is not None:
        raise ValueError(problem)
    return decision
