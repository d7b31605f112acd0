"""Numbers of a run's steps: brought together from all processes, judged and logged."""

import math
import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from esvit_hf.pretraining.checkpoint import CheckpointWriter, Progress, checkpoint_name
from esvit_hf.pretraining.metrics_log import MetricsLog
from esvit_hf.pretraining.monitor import RunMonitor, check_finite
from esvit_hf.pretraining.step import StepSchedules


class Readings:
    """What is known of a run's steps since the last line of its log.

    Args:
        accelerator: the process's accelerator.
        schedules: schedules in steps.
        progress: where the run stands.
        monitor: judges the numbers.
        log: takes the lines.
        checkpoints: writes the run's checkpoints.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        schedules: StepSchedules,
        progress: Progress,
        monitor: RunMonitor,
        log: MetricsLog,
        checkpoints: CheckpointWriter,
    ) -> None:
        self.accelerator = accelerator
        self.schedules = schedules
        self.progress = progress
        self.monitor = monitor
        self.log = log
        self.checkpoints = checkpoints
        self.newly_broken_images = 0
        self.newly_skipped_steps = torch.zeros((), device=accelerator.device)
        self.last_loss: Tensor | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count the speed from here on."""
        self.timed_at, self.timed_step = time.perf_counter(), self.progress.step

    def observe(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Note the loss and the gradient norm of one step, scalars on the device, without waiting
        for them.
        """
        self.last_loss = loss
        scaled = self.accelerator.scaler is not None
        self.monitor.observe(loss, gradient_norm, scaled=scaled)
        if scaled:
            # Accelerate does not see the steps that a fused optimizer skips.
            self.newly_skipped_steps += ~gradient_norm.isfinite()

    def share(self, readings: Mapping[str, Tensor]) -> dict[str, float]:
        """Average numbers over the processes, and bring together what each of them counted: here
        the host waits.

        Args:
            readings: scalars on the device.

        Returns:
            The averages.
        """
        counts = torch.tensor([float(self.newly_broken_images)], device=self.accelerator.device)
        own = torch.cat(
            [
                torch.stack([value.float() for value in readings.values()]),
                self.monitor.peaks,
                self.newly_skipped_steps[None],
                counts,
            ]
        )
        rows = self.accelerator.gather(own[None])
        self.monitor.peaks = rows[:, -4:-2].amax(dim=0)
        # All processes skip the same steps.
        *averages, skipped, broken = torch.cat(
            [rows[:, :-4].mean(dim=0), rows[0, -2:-1], rows[:, -1:].sum(dim=0)]
        ).tolist()
        self.progress.skipped_steps += int(skipped)
        self.newly_skipped_steps.zero_()
        self.progress.broken_images += int(broken)
        self.newly_broken_images = 0
        return dict(zip(readings, averages, strict=True))

    def log_step(self, readings: Mapping[str, Tensor]) -> dict[str, float]:
        """Log the step that was taken last, and check that the run is sound.

        Args:
            readings: scalars on the device, by their names in `metrics.jsonl`.

        Returns:
            The line.

        Raises:
            FloatingPointError: if it has diverged.
        """
        averages = self.share(readings)
        scaler = self.accelerator.scaler
        if scaler is not None and not math.isfinite(averages["gradient_norm"]):
            del averages["gradient_norm"]
        loss_peak, norm_peak = self.monitor.peaks.tolist()
        done = self.progress.step
        timed_step, seconds = self.timed_step, self.seconds()
        logged = {
            "epoch": done / self.schedules.steps_per_epoch,
            **averages,
            "loss_peak": loss_peak,
            "gradient_norm_peak": norm_peak,
            **self.schedules.values(done - 1),
            "images_per_second": self.progress.total_batch * (done - timed_step) / seconds,
            "training_seconds": self.log.last.get("training_seconds", 0.0) + seconds,
            "broken_images": self.progress.broken_images,
        }
        if scaler is not None:
            logged["loss_scale"] = scaler.get_scale()
            logged["skipped_steps"] = self.progress.skipped_steps
        self.log.write(done, logged)
        try:
            self.monitor.update(logged, done)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self.describe_last_good()}") from None
        return logged

    def seconds(self) -> float:
        """Return the time since the last call, and count anew."""
        start = self.timed_at
        self.restart_clock()
        return self.timed_at - start

    def check_last_loss(self) -> None:
        """Check the loss of the last step.

        Raises:
            FloatingPointError: if it is not finite.
        """
        assert self.last_loss is not None
        loss = self.share({"loss": self.last_loss})["loss"]
        try:
            check_finite(loss, "loss", self.progress.step)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self.describe_last_good()}") from None

    def describe_last_good(self) -> str:
        """Say which checkpoint to go back to: the newest whose weights a later reading found
        sound.
        """
        names = [path.name for path in self.checkpoints.complete()]
        good = [name for name in names if name <= checkpoint_name(self.monitor.proven_step)]
        if not good:
            return "there is no good checkpoint to go back to"
        later = f"remove {', '.join(names[len(good) :])} and " if len(good) < len(names) else ""
        return (
            f"the last good checkpoint is {self.checkpoints.folder / good[-1]}: {later}continue "
            f"with --run.resume true"
        )
