"""Resume points of a run: complete or absent."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

PARTIAL = ".partial"


class Progress:
    """Number of optimizer steps done, saved and restored with a checkpoint."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.step = state["step"]


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, kept: int) -> Path:
    """Write everything that a run needs to go on, aside and then by a rename; prune older checkpoints.

    Args:
        accelerator: holds student, optimizer, random states and the registered teacher, centres and progress.
        folder: folder of all checkpoints.
        step: optimizer steps done.
        kept: checkpoints kept.

    Returns:
        The folder of the checkpoint.
    """
    final = folder / f"step-{step:09d}"
    partial = folder / f"{final.name}{PARTIAL}"
    if accelerator.is_main_process and partial.exists():
        shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in complete_checkpoints(folder)[:-kept]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != PARTIAL)


def find_checkpoint(output_dir: Path) -> Path:
    """Return the newest complete checkpoint of a run.

    Raises:
        ValueError: if there is none.
    """
    checkpoints = complete_checkpoints(output_dir / "checkpoints")
    if not checkpoints:
        raise ValueError(
            f"resume: {output_dir / 'checkpoints'} holds no complete checkpoint; start without --resume, "
            "or set output_dir to the folder of the run to continue"
        )
    return checkpoints[-1]
