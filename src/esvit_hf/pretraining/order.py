"""From a recipe to the order of the images, for data by index and for streams."""

from typing import Any

from accelerate import Accelerator

from esvit_hf.data.items import ItemSource
from esvit_hf.data.sampling import EpochSampler
from esvit_hf.data.sources import ImageSource
from esvit_hf.data.streaming import StreamSource
from esvit_hf.pretraining.checkpoint import ResumeError
from esvit_hf.pretraining.recipe import Recipe


class ImageOrder:
    """Which images a process sees at which step; a checkpoint remembers what that depends on.

    Args:
        recipe: the recipe.
        source: the images.
        accelerator: the process's accelerator.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: ImageSource | ItemSource | StreamSource,
        accelerator: Accelerator,
    ) -> None:
        self.recipe = recipe
        self.source = source
        self.accelerator = accelerator

    def sampler(self, start_step: int, total_steps: int) -> EpochSampler:
        """Build the sampler of this process.

        Args:
            start_step: optimizer steps that are done already.
            total_steps: optimizer steps of the whole run, those done included.
        """
        recipe = self.recipe
        return self.source.sampler(
            recipe.run.batch_size,
            recipe.run.seed,
            num_workers=recipe.data.num_workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=recipe.run.accumulation_steps,
            start_step=start_step,
            total_steps=total_steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the order depends on."""
        return dict(self.sampler(0, 0).order_settings)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint comes from the same order.

        Raises:
            ResumeError: naming what differs.
        """
        mine = self.state_dict()
        for name in state.keys() | mine.keys():
            if state.get(name) != mine.get(name):
                raise ResumeError(
                    f"resume: {name} was {state.get(name)} and is {mine.get(name)}; images would "
                    f"be repeated and skipped: set it back, or start a new run"
                )
