"""The pretraining loop: data in, metrics, checkpoints and a loadable teacher out."""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    is_tensorboard_available,
    set_seed,
)
from torch import Tensor
from tqdm import tqdm

from esvit_hf.data.color import augment
from esvit_hf.data.multicrop import CropBatch, MultiCropDataset, make_multicrop_loader
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.data.streaming import StreamSource, open_stream
from esvit_hf.evaluation.classifiers.nearest_neighbors import knn_accuracy
from esvit_hf.features.extraction import extract_features, shared_labels
from esvit_hf.pretraining.build import build_parts, describe_model
from esvit_hf.pretraining.checkpoint import (
    RECIPE,
    Progress,
    checkpoint_name,
    choose_checkpoint,
    complete_checkpoints,
    save_checkpoint,
)
from esvit_hf.pretraining.ema import set_teacher_mode
from esvit_hf.pretraining.interruption import StopRequest, leave_signals_to_the_run
from esvit_hf.pretraining.metrics_log import MetricsLog
from esvit_hf.pretraining.monitor import RunMonitor, check_finite
from esvit_hf.pretraining.order import ImageOrder
from esvit_hf.pretraining.publishing import RunPublisher, fetch_resume_point
from esvit_hf.pretraining.recipe import PretrainingArguments
from esvit_hf.pretraining.run_folder import export_run, make_processor, recipe_yaml
from esvit_hf.pretraining.step import DistillationStep, LossValues, StepSchedules

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before the run ends with an error."""


@dataclass(frozen=True)
class PretrainingResult:
    """What a run leaves behind.

    Attributes:
        output_dir: folder with teacher, processor, heads, card, metrics and checkpoints.
        steps: optimizer steps done.
        metrics: the last numbers logged.
        signal: signal that ended the run before its last step; 0 if there was none.
    """

    output_dir: Path
    steps: int
    metrics: dict[str, Any]
    signal: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run before its last step."""
        return self.signal != 0


def check_engine(kind: DistributedType) -> None:
    """Refuse what takes optimizer steps of its own.

    Raises:
        ValueError: for DeepSpeed and Megatron-LM.
    """
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{kind.value} takes the optimizer step inside the backward pass, where the clipping "
            f"of each gradient, the frozen prototypes and the schedules of this recipe cannot "
            f"reach: launch with examples/accelerate/fsdp2_zero2.yaml, which shards the same state"
        )


def make_accelerator(arguments: PretrainingArguments) -> Accelerator:
    """Start Accelerate with the recipe's precision and trackers.

    Raises:
        ValueError: if it was launched with an engine that does not fit.
    """
    trackers = [name for name in arguments.trackers if name != "auto"]
    if "auto" in arguments.trackers and is_tensorboard_available():
        trackers.append("tensorboard")
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(
            project_dir=str(arguments.output_dir), logging_dir=str(arguments.output_dir / "logs")
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )
    check_engine(accelerator.distributed_type)
    return accelerator


class Pretraining:
    """One run: everything between the recipe and the output folder.

    Args:
        arguments: the recipe.

    Raises:
        ValueError: if data, model or settings do not fit together, before anything is computed.
    """

    def __init__(self, arguments: PretrainingArguments) -> None:
        self.arguments = arguments
        self.accelerator = make_accelerator(arguments)
        if arguments.resume:
            fetch_resume_point(arguments, self.accelerator)
        self.checkpoint = choose_checkpoint(
            self.accelerator, arguments.output_dir, resume=arguments.resume
        )
        pushes = arguments.push_to_hub and self.accelerator.is_main_process
        self.publisher = RunPublisher(arguments) if pushes else None
        self.source: ImageSource | StreamSource
        self.source = (
            self.open_stream() if arguments.streaming else self.load_source(arguments.train_split)
        )
        self.knn_source = (
            self.load_source(arguments.knn_split) if arguments.knn_every_epochs else None
        )
        if self.knn_source is not None:
            assert isinstance(self.source, ImageSource)
            shared_labels(self.source, self.knn_source)
        self.total_batch = (
            arguments.batch_size * arguments.accumulation_steps * self.accelerator.num_processes
        )
        if self.total_batch > len(self.source):
            raise ValueError(
                f"a step takes {self.total_batch} images (batch_size {arguments.batch_size} x "
                f"accumulation_steps {arguments.accumulation_steps} x "
                f"{self.accelerator.num_processes} processes) but the data has {len(self.source)}: "
                f"lower batch_size or accumulation_steps"
            )
        steps_per_epoch = len(self.source) // self.total_batch
        self.total_steps = arguments.num_epochs * steps_per_epoch
        if arguments.max_steps is not None:
            self.total_steps = min(self.total_steps, arguments.max_steps)
        set_seed(arguments.seed)
        parts = build_parts(arguments)
        self.processor = make_processor(arguments)
        schedules = StepSchedules.from_arguments(arguments, steps_per_epoch, self.total_batch)
        self.step = DistillationStep(arguments, parts, schedules, self.accelerator)
        self.progress = Progress(self.total_batch, self.accelerator.num_processes)
        self.monitor = RunMonitor(
            arguments.num_prototypes,
            arguments.view_weight + arguments.region_weight,
            self.accelerator.device,
        )
        self.order = ImageOrder(arguments, self.source, self.accelerator)
        self.accelerator.register_for_checkpointing(
            self.step.teacher, self.step.centers, self.progress, self.monitor, self.order
        )
        set_seed(arguments.seed, device_specific=True)
        if self.checkpoint is not None:
            self.accelerator.load_state(str(self.checkpoint))
        elif arguments.resume:
            self.accelerator.print(
                "resume: the run ended before its first checkpoint and starts again at step 0"
            )
        self.newly_broken_images = 0
        self.last_loss: Tensor | None = None

    def load_source(self, split: str) -> ImageSource:
        """Open one split of the recipe's data set."""
        return load_image_source(
            self.arguments.dataset,
            split=split,
            config_name=self.arguments.dataset_config,
            image_column=self.arguments.image_column,
            label_column=self.arguments.label_column,
        )

    def open_stream(self) -> StreamSource:
        """Open the recipe's shards."""
        return open_stream(
            self.arguments.dataset,
            split=self.arguments.train_split,
            config_name=self.arguments.dataset_config,
            image_column=self.arguments.image_column,
            shuffle_buffer=self.arguments.shuffle_buffer,
        )

    def run(self) -> PretrainingResult:
        """Train from the current step to the last one, or to a signal, and export the teacher."""
        arguments, accelerator = self.arguments, self.accelerator
        output = arguments.output_dir
        if accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            (output / RECIPE).write_text(recipe_yaml(arguments))
        accelerator.wait_for_everyone()
        accelerator.init_trackers("")
        self.log = MetricsLog(accelerator, output / "metrics.jsonl", self.progress.step)
        accelerator.print(
            f"{self.source.description}; {describe_model(self.step.teacher.backbone)}; "
            f"{self.total_steps} steps of {self.total_batch} images on "
            f"{accelerator.num_processes} x {accelerator.device}"
        )
        if self.progress.step == 0 and self.knn_source is not None:
            self.evaluate_knn()
        sampler = self.order.sampler(self.progress.step, self.total_steps)
        dataset = MultiCropDataset(
            self.source, arguments.views, arguments.seed, arguments.max_broken_fraction
        )
        loader = make_multicrop_loader(dataset, sampler, num_workers=arguments.num_workers)
        loader.worker_init_fn = leave_signals_to_the_run
        bar = tqdm(
            total=self.total_steps * self.total_batch,
            initial=self.progress.step * self.total_batch,
            unit="img",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )
        self.timed_at, self.timed_step = time.perf_counter(), self.progress.step
        with StopRequest(accelerator.num_processes, COLLECTIVE_TIMEOUT) as stop, bar:
            batches, signal = iter(loader), 0
            try:
                while self.progress.step < self.total_steps and not (signal := stop.poll()):
                    self.train_step(batches, bar)
            except BaseException as error:
                # Its frames hold the loader's iterator, as the loader does: its workers would keep
                # the process alive.
                traceback.clear_frames(error.__traceback__)
                raise
            finally:
                del batches, loader
        self.save()
        if accelerator.is_main_process:
            self.export(output)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        if self.publisher is not None:
            self.publisher.finish(self.progress.step, interrupted=signal != 0)
        return PretrainingResult(output, self.progress.step, self.log.last, signal)

    def train_step(self, batches: Iterator[CropBatch], bar: Any) -> None:
        """Take one optimizer step, and log, evaluate and save when it is time."""
        arguments, step = self.arguments, self.progress.step
        teacher_views = sum(view.count for view in arguments.views if view.teacher)
        losses: list[LossValues] = []
        for micro_batch in range(arguments.accumulation_steps):
            batch = next(batches)
            self.report_broken(batch)
            batch = batch.to(self.accelerator.device, non_blocking=True)
            crops = [
                augment(crop, parameters)
                for crop, parameters in zip(batch.crops, batch.parameters, strict=True)
            ]
            last = micro_batch == arguments.accumulation_steps - 1
            losses.append(self.step.accumulate(crops, teacher_views, step, last=last))
        norm = self.step.update(step)
        self.last_loss = torch.stack([values.total.detach() for values in losses]).mean()
        self.monitor.observe(self.last_loss, norm)
        self.progress.step += 1
        bar.update(self.total_batch)
        if (
            self.progress.step % arguments.logging_steps == 0
            or self.progress.step == self.total_steps
        ):
            self.log_step(step, losses, norm, bar)
        end_of_epoch = self.progress.step % self.step.schedules.steps_per_epoch == 0
        epoch = self.progress.step // self.step.schedules.steps_per_epoch
        if self.knn_source is not None and (
            (end_of_epoch and epoch % arguments.knn_every_epochs == 0)
            or self.progress.step == self.total_steps
        ):
            self.evaluate_knn()
        # While the run may be diverging, its state must not push out an older, sound one.
        due = arguments.checkpoint_steps and self.progress.step % arguments.checkpoint_steps == 0
        if due and not self.monitor.alarmed:
            self.save()
            if self.publisher is not None and self.progress.step < self.total_steps:
                self.publisher.push_beside(self.progress.step, self.export)

    def export(self, folder: Path) -> None:
        """Write the teacher as it is now, with all that belongs to it, to a folder."""
        export_run(
            replace(self.arguments, output_dir=folder),
            self.step.teacher,
            self.step.centers,
            steps=self.progress.step,
            total_batch=self.total_batch,
            metrics=self.log.last,
        )

    def report_broken(self, batch: CropBatch) -> None:
        """Name the images of a batch that could not be decoded, and count them."""
        for index, reason in batch.broken:
            self.newly_broken_images += 1
            tqdm.write(
                f"{self.source.describe(index)} cannot be decoded and is replaced by another: "
                f"{reason}"
            )

    def share_readings(self, readings: dict[str, Tensor]) -> dict[str, float]:
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
                counts,
            ]
        )
        rows = self.accelerator.gather(own[None])
        self.monitor.peaks = rows[:, -3:-1].amax(dim=0)
        *averages, broken = torch.cat([rows[:, :-3].mean(dim=0), rows[:, -1:].sum(dim=0)]).tolist()
        self.progress.broken_images += int(broken)
        self.newly_broken_images = 0
        return dict(zip(readings, averages, strict=True))

    def log_step(self, step: int, losses: list[LossValues], norm: Tensor, bar: Any) -> None:
        """Log one step and check that the run is sound.

        Raises:
            FloatingPointError: if it has diverged.
        """
        assert self.last_loss is not None
        readings = {"loss": self.last_loss, "gradient_norm": norm}
        for name in ("view", "region"):
            values = [getattr(loss, name) for loss in losses]
            if values[0] is not None:
                readings[f"{name}_loss"] = torch.stack(values).mean()
        readings |= self.step.teacher_signals(step)
        averages = self.share_readings(readings)
        loss_peak, norm_peak = self.monitor.peaks.tolist()
        schedules = self.step.schedules
        now, done = time.perf_counter(), step + 1
        speed = self.total_batch * (done - self.timed_step) / (now - self.timed_at)
        self.timed_at, self.timed_step = now, done
        logged = {
            "epoch": done / schedules.steps_per_epoch,
            **averages,
            "loss_peak": loss_peak,
            "gradient_norm_peak": norm_peak,
            "learning_rate": schedules.learning_rate(step),
            "weight_decay": schedules.weight_decay(step),
            "teacher_momentum": schedules.teacher_momentum(step),
            "teacher_temperature": schedules.teacher_temperature(self.step.epoch(step)),
            "images_per_second": speed,
            "broken_images": self.progress.broken_images,
        }
        if self.accelerator.scaler is not None:
            logged["loss_scale"] = self.accelerator.scaler.get_scale()
        self.log.write(done, logged)
        bar.set_postfix(loss=f"{logged['loss']:.3f}", refresh=False)
        try:
            self.monitor.update(logged, done)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self.describe_last_good()}") from None

    def describe_last_good(self) -> str:
        """Say which checkpoint to go back to: the newest whose weights a later reading found
        sound.
        """
        folder = self.arguments.output_dir / "checkpoints"
        names = [path.name for path in complete_checkpoints(folder)]
        good = [name for name in names if name <= checkpoint_name(self.monitor.proven_step)]
        if not good:
            return "there is no good checkpoint to go back to"
        later = f"remove {', '.join(names[len(good) :])} and " if len(good) < len(names) else ""
        return (
            f"the last good checkpoint is {folder / good[-1]}: {later}continue with --resume true"
        )

    def evaluate_knn(self) -> None:
        """Classify the k-NN split by the training split's labels with the teacher's features, and
        log it.
        """
        assert self.knn_source is not None and isinstance(self.source, ImageSource)
        train, test = (
            extract_features(
                self.step.teacher.backbone,
                source,
                self.processor,
                batch_size=max(256, self.arguments.batch_size),
                num_workers=self.arguments.num_workers,
                accelerator=self.accelerator,
            )
            for source in (self.source, self.knn_source)
        )
        train_labels, test_labels = shared_labels(self.source, self.knn_source)
        neighbors = self.arguments.knn_neighbors
        accuracy = knn_accuracy(
            train.values, train_labels, test.values, test_labels, k=(neighbors,)
        )
        top1 = next(iter(accuracy.values()))[0]
        set_teacher_mode(self.step.teacher)
        self.timed_at, self.timed_step = time.perf_counter(), self.progress.step
        self.log.write(self.progress.step, {f"knn{neighbors}_top1": top1})

    def save(self) -> None:
        """Save a checkpoint, after making sure that the run is sound.

        Raises:
            FloatingPointError: if the last loss is not finite; older checkpoints stay as they are.
        """
        if self.last_loss is None:
            return
        loss = self.share_readings({"loss": self.last_loss})["loss"]
        try:
            check_finite(loss, "loss", self.progress.step)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self.describe_last_good()}") from None
        self.log.flush()
        save_checkpoint(
            self.accelerator,
            self.arguments.output_dir / "checkpoints",
            self.progress.step,
            self.arguments.checkpoints_kept,
        )


def pretrain(arguments: PretrainingArguments) -> PretrainingResult:
    """Pretrain a backbone as the recipe says.

    Args:
        arguments: the recipe.

    Returns:
        Where the result is and what was measured.

    Raises:
        ValueError: for settings or data that cannot work.
        FloatingPointError: if the loss is no longer finite.
    """
    return Pretraining(arguments).run()
