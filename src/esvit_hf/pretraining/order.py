"""From a recipe to the order of the images, for data by index and for streams."""

from typing import Any

from accelerate import Accelerator

from esvit_hf.data.sampling import EpochSampler, StreamSampler
from esvit_hf.data.sources import ImageSource
from esvit_hf.data.streaming import StreamSource
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
        source: ImageSource | StreamSource,
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
        place: dict[str, int] = {
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
            "accumulation": recipe.run.accumulation_steps,
            "start_step": start_step,
            "total_steps": total_steps,
        }
        if isinstance(self.source, ImageSource):
            return EpochSampler(len(self.source), recipe.run.batch_size, recipe.run.seed, **place)
        return StreamSampler(
            self.source.index.sizes,
            recipe.run.batch_size,
            recipe.run.seed,
            shuffle_buffer=recipe.data.shuffle_buffer,
            readers_per_process=self.readers_per_process,
            **place,
        )

    @property
    def readers_per_process(self) -> int:
        """Workers of the loader, or the process itself."""
        return max(1, self.recipe.data.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Return what the order depends on."""
        state = {"images in the data": len(self.source), "seed": self.recipe.run.seed}
        if isinstance(self.source, StreamSource):
            state |= {
                "chunks of the shards": len(self.source.index.sizes),
                "batch_size": self.recipe.run.batch_size,
                "shuffle_buffer": self.recipe.data.shuffle_buffer,
                "processes x num_workers": self.accelerator.num_processes
                * self.readers_per_process,
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint comes from the same order.

        Raises:
            ValueError: naming what differs.
        """
        mine = self.state_dict()
        for name in state.keys() | mine.keys():
            if state.get(name) != mine.get(name):
                raise ValueError(
                    f"resume: {name} was {state.get(name)} and is {mine.get(name)}; images would "
                    f"be repeated and skipped: set it back, or start a new run"
                )
