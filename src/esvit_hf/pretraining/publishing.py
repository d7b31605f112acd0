"""A run on the Hub: pushes beside the training, the last one after it, and the resume point for
another machine.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import disable_progress_bars
from safetensors import SafetensorError
from tqdm.auto import tqdm

from esvit_hf.common.files import link_or_copy
from esvit_hf.hub.errors import explained
from esvit_hf.hub.push import Publication, how_to_push, prepare_repository, publish
from esvit_hf.pretraining.checkpoint import (
    PARTIAL,
    RECIPE,
    appear,
    checkpoint_name,
    complete_checkpoints,
    find_damage,
)
from esvit_hf.pretraining.checkpoint_files import CHECKPOINT_FILES, read_step
from esvit_hf.pretraining.launching import decide_together
from esvit_hf.pretraining.recipe import Recipe

__all__ = ["RunPublisher", "fetch_resume_point", "remove_resume_point"]

RESUME_FOLDER = "last-checkpoint"
"""Where a repository holds the resume point of a run."""

METRICS_FILE = "metrics.jsonl"


class RunPublisher:
    """The pushes of one run, made by its main process.

    Pushes of `every_save` and `checkpoint` run in a thread of huggingface_hub while training goes
    on. While one is under way the next is left out: the one after it, or the last, brings what is
    newest. A push that fails is reported and changes nothing else.

    Args:
        recipe: the recipe, with `hub.model_id`.

    Raises:
        ValueError: nobody is logged in or the rights do not suffice, before anything is trained.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.hub.model_id is not None
        self.recipe = recipe
        self.repo_id = recipe.hub.model_id
        self.stage = recipe.run.output_dir / ".hub"
        self.api = HfApi()
        self.running: Future[None] | None = None
        # The bars of uploads would tear that of the training.
        disable_progress_bars()
        prepare_repository(self.repo_id, private=recipe.hub.private)

    def push_beside(self, step: int, export: Callable[[Path], None]) -> None:
        """Push what there is after a step, in the background, if the strategy asks for it.

        Args:
            step: optimizer steps done; their checkpoint is saved.
            export: writes the result so far to a folder; called at once.
        """
        if self.recipe.hub.strategy == "end":
            return
        if self.running is not None and not self.running.done():
            tqdm.write(f"step {step} is not pushed: the push before it is still under way")
            return
        # The card's title is the folder's name.
        model = self.stage / self.recipe.run.output_dir.resolve().name
        try:
            shutil.rmtree(self.stage, ignore_errors=True)
            model.mkdir(parents=True)
            export(model)
            for name in (METRICS_FILE, RECIPE):
                shutil.copyfile(self.recipe.run.output_dir / name, model / name)
            self._keep_checkpoint()
        except (OSError, SafetensorError) as error:
            self._report_failure(step, error)
            return
        self.running = self.api.run_as_future(self._push, model, step)

    def finish(self, step: int, *, interrupted: bool) -> None:
        """Wait for the push under way, then push the result of the run; say how to do it by hand if
        that fails.

        Args:
            step: optimizer steps done.
            interrupted: a signal ended the run; strategy `end` then has nothing to push.
        """
        try:
            if self.running is not None:
                self.running.result()
            if interrupted and self.recipe.hub.strategy == "end":
                self._say_how_to_push("the run was interrupted and is not pushed")
                return
            shutil.rmtree(self.stage, ignore_errors=True)
            self._keep_checkpoint()
            made = self._publish(self.recipe.run.output_dir, step, load=True)
            tqdm.write(f"pushed to {made.url}, commit {made.commit}")
        except (ValueError, OSError, SafetensorError) as error:
            self._say_how_to_push(f"the result could not be pushed: {error}")
        except KeyboardInterrupt:
            self._say_how_to_push("the push was interrupted")
            raise
        finally:
            shutil.rmtree(self.stage, ignore_errors=True)

    def _keep_checkpoint(self) -> None:
        """Keep the newest checkpoint for the push: the run may remove its own in the meantime."""
        checkpoints = complete_checkpoints(self.recipe.run.output_dir / "checkpoints")
        if self.recipe.hub.strategy == "checkpoint" and checkpoints:
            kept = self.stage / "checkpoints" / checkpoints[-1].name
            shutil.copytree(checkpoints[-1], kept, copy_function=link_or_copy)

    def _push(self, model: Path, step: int) -> None:
        try:
            made = self._publish(model, step, load=False)
            tqdm.write(f"step {step} is pushed to {made.url}, commit {made.commit}")
        except (ValueError, OSError, SafetensorError) as error:
            self._report_failure(step, error)

    def _report_failure(self, step: int, error: Exception) -> None:
        tqdm.write(
            f"step {step} could not be pushed: {error}; training goes on, later saves are pushed "
            f"again"
        )

    def _publish(self, model: Path, step: int, *, load: bool) -> Publication:
        kept = complete_checkpoints(self.stage / "checkpoints")
        return publish(
            model,
            self.repo_id,
            private=self.recipe.hub.private,
            extra_files={
                f"{RESUME_FOLDER}/{name}": checkpoint / name
                for checkpoint in kept
                for name in CHECKPOINT_FILES
            },
            load=load,
            trust_remote_code=self.recipe.model.trust_remote_code,
            message=f"Pretraining, step {step}",
        )

    def _say_how_to_push(self, reason: str) -> None:
        private = self.recipe.hub.private
        tqdm.write(
            f"{reason}; {how_to_push(self.recipe.run.output_dir, self.repo_id, private=private)}"
        )


def fetch_resume_point(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Bring the resume point of a run from the Hub, unless there is one here; one process does it
    for all.

    Args:
        recipe: the recipe.
        accelerator: the process's accelerator.

    Returns:
        Whether it was brought.

    Raises:
        ValueError: the repository has none, is not readable, or what it has is no resume point.
    """
    folder, repo_id = recipe.run.output_dir / "checkpoints", recipe.hub.model_id

    def fetch() -> bool:
        if repo_id is None or complete_checkpoints(folder):
            return False
        _fetch(repo_id, folder)
        return True

    return decide_together(accelerator, fetch)


def remove_resume_point(output_dir: Path) -> None:
    """Remove what `fetch_resume_point` brought, so that a later run does not take it for its own.

    Args:
        output_dir: folder of the run.
    """
    shutil.rmtree(output_dir / "checkpoints")
    for name in (METRICS_FILE, RECIPE):
        (output_dir / name).unlink(missing_ok=True)


def _fetch(repo_id: str, folder: Path) -> None:
    with explained(repo_id):
        try:
            files = {
                name: Path(hf_hub_download(repo_id, name))
                for name in (
                    *(f"{RESUME_FOLDER}/{name}" for name in CHECKPOINT_FILES),
                    *(METRICS_FILE, RECIPE),
                )
            }
        except EntryNotFoundError as error:
            raise ValueError(
                f"{repo_id} has no {RESUME_FOLDER} that can be reached: it is there after a run "
                f"with --hub.strategy checkpoint; start without --run.resume"
            ) from error
    downloaded = files[f"{RESUME_FOLDER}/{CHECKPOINT_FILES[0]}"].parent
    damage = find_damage(downloaded)
    if damage is not None:
        raise ValueError(
            f"{repo_id}: its {RESUME_FOLDER} is damaged, or was pushed to while it was read "
            f"({damage}): try again, or start without --run.resume"
        )
    final = folder / checkpoint_name(read_step(downloaded))
    aside = final.with_suffix(PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in CHECKPOINT_FILES:
        shutil.copyfile(downloaded / name, aside / name)
    for name in (METRICS_FILE, RECIPE):
        shutil.copyfile(files[name], folder.parent / name)
    appear(aside, final)
