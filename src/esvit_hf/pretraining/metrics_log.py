"""`metrics.jsonl`: the numbers of a run, one line a step, cut at the checkpoint that a run
continues from.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from esvit_hf.common.files import flush_to_disk


class MetricsLog:
    """`metrics.jsonl` and the trackers, written by the main process.

    Args:
        accelerator: the process's accelerator, with its trackers started.
        path: the file, appended to.
        first_step: lines of later steps, left by a run that went on beyond its checkpoint, are
            dropped.

    Attributes:
        last: the newest value of every number.
    """

    def __init__(self, accelerator: Accelerator, path: Path, first_step: int) -> None:
        self.accelerator = accelerator
        self.path = path
        self.last: dict[str, Any] = {}
        if accelerator.is_main_process:
            self._keep_lines(first_step)

    def _keep_lines(self, first_step: int) -> None:
        text = self.path.read_text(errors="replace") if first_step and self.path.exists() else ""
        kept = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                values = json.loads(line)
                step = values.pop("step")
            except (ValueError, AttributeError, KeyError):
                warnings.warn(f"{self.path}: line {number} was cut and is dropped", stacklevel=2)
                continue
            if step <= first_step:
                kept.append(f"{line}\n")
                self.last.update(values)
        aside = self.path.with_suffix(".partial")
        aside.write_text("".join(kept))
        flush_to_disk(aside)
        aside.replace(self.path)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log values of a step, counted from 1; JSON has no number for those that are not finite,
        which are left out.
        """
        values = {
            name: value
            for name, value in values.items()
            if not isinstance(value, float) or math.isfinite(value)
        }
        self.last.update(values)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self.accelerator.log(values, step=step)

    def flush(self) -> None:
        """Bring all lines to the disk: a checkpoint must not be newer than the lines before it."""
        if self.accelerator.is_main_process and self.path.exists():
            flush_to_disk(self.path)
