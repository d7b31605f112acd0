"""Resume points of a run: complete or absent, and with a manifest that tells whether one was
damaged since.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from safetensors import SafetensorError

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import digest_file, flush_to_disk
from esvit_hf.pretraining.checkpoint_files import (
    CHECKPOINT_FILES,
    MANIFEST,
    RunState,
    StateCopy,
    copy_state,
    read_state,
    write_state,
)

PARTIAL = ".partial"
RECIPE = "recipe.yaml"

_LISTED_FILES = [name for name in CHECKPOINT_FILES if name != MANIFEST]


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class ResumeError(ValueError):
    """A checkpoint belongs to a run with other settings."""


class Progress:
    """Where a run stands; saved and restored with a checkpoint.

    Args:
        total_batch: images of an optimizer step over all processes and micro-batches.
        num_processes: processes of the run.

    Attributes:
        step: optimizer steps done.
        broken_images: images replaced so far because they could not be decoded.
        skipped_steps: steps so far whose gradients overflowed in float16, so that the weights
            stayed.
        changes: sentences about fields of the recipe that were changed on the way.
    """

    def __init__(self, total_batch: int, num_processes: int) -> None:
        self.total_batch = total_batch
        self.num_processes = num_processes
        self.step = 0
        self.broken_images = 0
        self.skipped_steps = 0
        self.changes: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save."""
        return vars(self) | {"changes": list(self.changes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            ResumeError: if the checkpoint's steps are not those of this run.
        """
        changes = state["changes"]
        is_valid = isinstance(changes, list) and all(isinstance(each, str) for each in changes)
        if not is_valid or any(
            type(state[name]) is not int for name in {*vars(self)} - {"changes"}
        ):
            raise TypeError(f"its progress is {state}")
        if state["total_batch"] != self.total_batch:
            raise ResumeError(
                f"resume: the checkpoint counts steps of {state['total_batch']} images, this run "
                f"would take {self.total_batch}: set run.batch_size and run.accumulation_steps so "
                f"that batch_size x accumulation_steps x processes ({self.num_processes}) is "
                f"{state['total_batch']}"
            )
        if state["num_processes"] != self.num_processes:
            warnings.warn(
                f"the checkpoint was written by {state['num_processes']} processes and this run "
                f"has {self.num_processes}: stochastic depth draws other random numbers than the "
                f"run would have drawn",
                stacklevel=2,
            )
        self.step, self.broken_images = state["step"], state["broken_images"]
        self.skipped_steps, self.changes = state["skipped_steps"], list(changes)


class CheckpointWriter:
    """Saves checkpoints of a run while it goes on: its state is copied at once, and written by a
    thread, one checkpoint after the other.

    As a context it waits for what is being written.

    Args:
        accelerator: the process's accelerator; the main process writes.
        state: what to save; random states come on top.
        folder: folder of all checkpoints.
        kept: checkpoints kept, the newest included; None keeps all.
    """

    def __init__(
        self, accelerator: Accelerator, state: RunState, folder: Path, kept: int | None
    ) -> None:
        self.accelerator = accelerator
        self.state = state
        self.folder = folder
        self.kept = kept
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()

    def save(self, step: int) -> None:
        """Copy the state, and begin to write it; all processes have to call this.

        Args:
            step: optimizer steps done.

        Raises:
            CheckpointError: if the one before cannot be written, or this one cannot be copied;
                older checkpoints stay as they are.
        """
        self.wait()
        with _named_failure(self._aside(step)):
            copy = copy_state(self.accelerator, self.state)
        if copy is not None:
            self._running = self._pool.submit(self._write, copy, step)

    def check(self) -> None:
        """Find out whether a checkpoint could not be written, without waiting.

        Raises:
            CheckpointError: if so.
        """
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: if it cannot be.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, oldest first, once none is being written."""
        if self._running is not None:
            wait([self._running])
        return complete_checkpoints(self.folder)

    def _aside(self, step: int) -> Path:
        return (self.folder / checkpoint_name(step)).with_suffix(PARTIAL)

    def _write(self, copy: StateCopy, step: int) -> None:
        """Write a checkpoint aside and then by a rename; prune older ones."""
        aside = self._aside(step)
        final = aside.with_suffix("")
        for left_over in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(left_over)
        with _named_failure(aside):
            aside.mkdir(parents=True)
            write_state(copy, aside)
            appear(aside, final)
        older = [path for path in complete_checkpoints(self.folder) if path.name < final.name]
        for path in older[: max(0, len(older) + 1 - self.kept)] if self.kept else []:
            _remove(path)


def appear(aside: Path, final: Path) -> None:
    """Give a complete checkpoint its name, once it is on the disk.

    Args:
        aside: the checkpoint, beside its place.
        final: its place; what is there is replaced.
    """
    for path in (*aside.iterdir(), aside):
        flush_to_disk(path)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    flush_to_disk(final.parent)


@contextmanager
def _named_failure(aside: Path) -> Iterator[None]:
    """Say in one line why a checkpoint cannot be written, and give back the space that its parts
    take.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        complete = complete_checkpoints(aside.parent)
        last = f"the last complete one is {complete[-1]}" if complete else "there is no older one"
        raise CheckpointError(
            f"checkpoint {aside.stem} cannot be written to {aside.parent} "
            f"({one_line(error) or type(error).__name__}); {last}: make room there "
            f"(run.checkpoints_kept) or give another run.output_dir, and continue with "
            f"--run.resume true"
        ) from error


def _remove(checkpoint: Path) -> None:
    # Killed half-way it must not look complete.
    aside = checkpoint.with_suffix(PARTIAL)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def remove_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints of a run, so that another one can start in its folder."""
    shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)


def find_damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its manifest; return what is wrong with it, or None."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        facts = {name: (files[name]["bytes"], files[name]["sha256"]) for name in _LISTED_FILES}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, (size, digest) in facts.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if digest_file(path) != digest:
            return f"the content of {name} has changed"
    return None


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of a step; names sort as steps do."""
    return f"step-{step:09d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != PARTIAL)


def find_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest complete and undamaged checkpoint of a run; damaged ones are named in a
    warning.

    Args:
        output_dir: folder of the run.

    Returns:
        The folder of the checkpoint; None if the run ended before its first one.

    Raises:
        ValueError: if there is no run, or no checkpoint of it can be used.
    """
    folder = output_dir / "checkpoints"
    damage = None
    for checkpoint in reversed(complete_checkpoints(folder)):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        warnings.warn(f"{checkpoint} is damaged and is not used: {damage}", stacklevel=2)
    if damage is not None:
        raise ValueError(
            f"resume: every checkpoint in {folder} is damaged ({damage}): restore one from a copy, "
            f"or remove them to start again at step 0"
        )
    if (output_dir / RECIPE).is_file():
        return None
    raise ValueError(
        f"resume: {folder} holds no complete checkpoint; start without --run.resume, "
        "or set run.output_dir to the folder of the run to continue"
    )


def choose_checkpoint(output_dir: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """Decide where a run starts.

    Args:
        output_dir: folder of the run.
        resume: continue from the newest checkpoint.
        overwrite: start anew, whatever the folder holds.

    Returns:
        The checkpoint to load; None for a start at step 0.

    Raises:
        ValueError: as `find_checkpoint` does, or if a new run would replace the network or the
            checkpoints of another one.
    """
    if resume:
        return find_checkpoint(output_dir)
    if overwrite:
        return None
    if complete_checkpoints(output_dir / "checkpoints"):
        raise ValueError(
            f"run.output_dir {output_dir} holds the checkpoints of a run: continue it with "
            f"--run.resume true, replace it with --run.overwrite true, or give another "
            f"run.output_dir"
        )
    if (output_dir / "config.json").exists():
        raise ValueError(
            f"run.output_dir {output_dir} holds a network: replace it with --run.overwrite true, "
            f"or give another run.output_dir"
        )
    return None


def load_checkpoint(
    accelerator: Accelerator, state: RunState, checkpoint: Path, progress: Progress
) -> None:
    """Load a checkpoint into a run.

    Args:
        accelerator: the process's accelerator.
        state: where to load it to.
        checkpoint: folder of the checkpoint.
        progress: where the run stands, a record of its state.

    Raises:
        ValueError: it belongs to other networks or settings, or its files cannot be read.
    """
    try:
        read_state(accelerator, state, checkpoint)
        step = checkpoint_step(checkpoint)
        if progress.step != step:
            raise ValueError(f"it is of step {progress.step!r} and not of step {step}")
    except ResumeError:
        raise
    # Its content may come from elsewhere and be of any kind.
    except (
        *(OSError, SafetensorError, AttributeError, LookupError, OverflowError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        raise ValueError(
            f"resume: {checkpoint} does not fit the recipe ({one_line(error)}): give the recipe "
            f"that the run was started with, or start a new run in another run.output_dir"
        ) from error
