"""The pretraining loop: data in, metrics, checkpoints and a loadable teacher out."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, is_tensorboard_available, set_seed
from torch import Tensor
from tqdm import tqdm

from esvit_hf.data.color import augment
from esvit_hf.data.multicrop import CropBatch, MultiCropDataset, make_multicrop_loader
from esvit_hf.data.sampling import EpochSampler
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.evaluation.features import extract_features, shared_labels
from esvit_hf.evaluation.knn import knn_accuracy
from esvit_hf.pretraining.arguments import PretrainingArguments
from esvit_hf.pretraining.build import build_parts, describe_model
from esvit_hf.pretraining.checkpoint import Progress, find_checkpoint, save_checkpoint
from esvit_hf.pretraining.ema import set_teacher_mode
from esvit_hf.pretraining.export import export_run, make_processor, recipe_yaml
from esvit_hf.pretraining.monitor import CollapseMonitor, check_finite, teacher_entropy
from esvit_hf.pretraining.publishing import RunPublisher, fetch_resume_point
from esvit_hf.pretraining.step import DistillationStep, LossValues, StepSchedules


@dataclass(frozen=True)
class PretrainingResult:
    """What a run leaves behind.

    Attributes:
        output_dir: folder with teacher, processor, heads, card, metrics and checkpoints.
        steps: optimizer steps done.
        interrupted: whether a signal ended the run before its last step.
        metrics: the last numbers logged.
    """

    output_dir: Path
    steps: int
    interrupted: bool
    metrics: dict[str, Any]


class MetricsLog:
    """`metrics.jsonl` and the trackers, written by the main process.

    Args:
        accelerator: the process's accelerator, with its trackers started.
        path: the file, appended to.
        first_step: lines of later steps, left by a run that went on beyond its checkpoint, are dropped.
    """

    def __init__(self, accelerator: Accelerator, path: Path, first_step: int) -> None:
        self.accelerator = accelerator
        self.path = path
        self.last: dict[str, Any] = {}
        if accelerator.is_main_process:
            lines = path.read_text().splitlines() if first_step and path.exists() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first_step]
            path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log values of a step, counted from 1."""
        self.last.update(values)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying; a second SIGINT interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def make_accelerator(arguments: PretrainingArguments) -> Accelerator:
    """Start Accelerate with the recipe's precision and trackers."""
    trackers = [name for name in arguments.trackers if name != "auto"]
    if "auto" in arguments.trackers and is_tensorboard_available():
        trackers.append("tensorboard")
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(
            project_dir=str(arguments.output_dir), logging_dir=str(arguments.output_dir / "logs")
        ),
    )


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
        pushes = arguments.push_to_hub and self.accelerator.is_main_process
        self.publisher = RunPublisher(arguments) if pushes else None
        if arguments.resume:
            fetch_resume_point(arguments, self.accelerator)
            self.checkpoint: Path | None = find_checkpoint(arguments.output_dir)
        else:
            self.checkpoint = None
        self.source = self.load_source(arguments.train_split)
        self.knn_source = self.load_source(arguments.knn_split) if arguments.knn_every_epochs else None
        if self.knn_source is not None:
            shared_labels(self.source, self.knn_source)
        self.total_batch = arguments.batch_size * arguments.accumulation_steps * self.accelerator.num_processes
        if self.total_batch > len(self.source):
            raise ValueError(
                f"a step takes {self.total_batch} images (batch_size {arguments.batch_size} x accumulation_steps "
                f"{arguments.accumulation_steps} x {self.accelerator.num_processes} processes) but the data has "
                f"{len(self.source)}: lower batch_size or accumulation_steps"
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
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.step.teacher, self.step.centres, self.progress)
        set_seed(arguments.seed, device_specific=True)
        if self.checkpoint is not None:
            self.accelerator.load_state(str(self.checkpoint))
        self.monitor = CollapseMonitor(arguments.num_prototypes)
        self.broken_images = 0
        self.last_losses: list[LossValues] = []

    def load_source(self, split: str) -> ImageSource:
        """Open one split of the recipe's data set."""
        return load_image_source(
            self.arguments.dataset,
            split=split,
            config_name=self.arguments.dataset_config,
            image_column=self.arguments.image_column,
            label_column=self.arguments.label_column,
        )

    def run(self) -> PretrainingResult:
        """Train from the current step to the last one, or to a signal, and export the teacher."""
        arguments, accelerator = self.arguments, self.accelerator
        output = arguments.output_dir
        if accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            (output / "recipe.yaml").write_text(recipe_yaml(arguments))
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
        sampler = EpochSampler(
            len(self.source),
            arguments.batch_size,
            arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation=arguments.accumulation_steps,
            start_step=self.progress.step,
            total_steps=self.total_steps,
        )
        dataset = MultiCropDataset(self.source, arguments.views, arguments.seed, arguments.max_broken_fraction)
        loader = make_multicrop_loader(dataset, sampler, num_workers=arguments.num_workers)
        bar = tqdm(
            total=self.total_steps * self.total_batch,
            initial=self.progress.step * self.total_batch,
            unit="img",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )
        self.timed_at, self.timed_step = time.perf_counter(), self.progress.step
        with stop_on_signal() as signals, bar:
            batches = iter(loader)
            while self.progress.step < self.total_steps and not signals:
                self.train_step(batches, bar)
        interrupted = self.progress.step < self.total_steps
        self.save()
        if accelerator.is_main_process:
            self.export(output)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        if self.publisher is not None:
            self.publisher.finish(self.progress.step, interrupted=interrupted)
        return PretrainingResult(output, self.progress.step, interrupted, self.log.last)

    def train_step(self, batches: Iterator[CropBatch], bar: Any) -> None:
        """Take one optimizer step, and log, evaluate and save when it is time."""
        arguments, step = self.arguments, self.progress.step
        teacher_views = sum(view.count for view in arguments.views if view.teacher)
        losses: list[LossValues] = []
        for micro_batch in range(arguments.accumulation_steps):
            batch = next(batches)
            self.report_broken(batch)
            batch = batch.to(self.accelerator.device, non_blocking=True)
            crops = [augment(crop, parameters) for crop, parameters in zip(batch.crops, batch.parameters, strict=True)]
            last = micro_batch == arguments.accumulation_steps - 1
            losses.append(self.step.accumulate(crops, teacher_views, step, last=last))
        norm = self.step.update(step)
        self.progress.step += 1
        bar.update(self.total_batch)
        if self.progress.step % arguments.logging_steps == 0 or self.progress.step == self.total_steps:
            self.log_step(step, losses, norm, bar)
        self.last_losses = losses
        end_of_epoch = self.progress.step % self.step.schedules.steps_per_epoch == 0
        epoch = self.progress.step // self.step.schedules.steps_per_epoch
        if self.knn_source is not None and (
            (end_of_epoch and epoch % arguments.knn_every_epochs == 0) or self.progress.step == self.total_steps
        ):
            self.evaluate_knn()
        if arguments.checkpoint_steps and self.progress.step % arguments.checkpoint_steps == 0:
            self.save()
            if self.publisher is not None and self.progress.step < self.total_steps:
                self.publisher.push_beside(self.progress.step, self.export)

    def export(self, folder: Path) -> None:
        """Write the teacher as it is now, with all that belongs to it, to a folder."""
        export_run(
            replace(self.arguments, output_dir=folder),
            self.step.teacher,
            self.step.centres,
            steps=self.progress.step,
            total_batch=self.total_batch,
            metrics=self.log.last,
        )

    def report_broken(self, batch: CropBatch) -> None:
        """Name the images of a batch that could not be decoded, and count them."""
        for index, reason in batch.broken:
            self.broken_images += 1
            tqdm.write(f"image {index} cannot be decoded and is replaced by another: {reason}")

    def mean(self, values: list[Tensor | None]) -> float | None:
        """Average a loss over micro-batches and processes; the one place that waits for the device."""
        present = [value for value in values if value is not None]
        if not present:
            return None
        return float(self.accelerator.reduce(torch.stack(present).mean(), reduction="mean"))

    def log_step(self, step: int, losses: list[LossValues], norm: Tensor | None, bar: Any) -> None:
        """Log one step and check that the run is sound."""
        total = self.mean([values.total.detach() for values in losses])
        assert total is not None
        schedules = self.step.schedules
        now, done = time.perf_counter(), step + 1
        speed = self.total_batch * (done - self.timed_step) / (now - self.timed_at)
        self.timed_at, self.timed_step = now, done
        values: dict[str, Any] = {
            "epoch": done / schedules.steps_per_epoch,
            "loss": total,
            "view_loss": self.mean([values.view for values in losses]),
            "region_loss": self.mean([values.region for values in losses]),
            "learning_rate": schedules.learning_rate(step),
            "weight_decay": schedules.weight_decay(step),
            "teacher_momentum": schedules.teacher_momentum(step),
            "teacher_temperature": schedules.teacher_temperature(self.step.epoch(step)),
            "gradient_norm": None if norm is None else float(norm),
            "images_per_second": speed,
            "broken_images": self.broken_images,
        }
        for task in self.step.centres:
            entropies = self.task_entropy(task, step)
            if entropies is not None:
                values[f"{task}_teacher_entropy"], values[f"{task}_mean_target_entropy"] = entropies
        self.log.write(done, {key: value for key, value in values.items() if value is not None})
        bar.set_postfix(loss=f"{total:.3f}", refresh=False)
        check_finite(total, done)
        task = "view" if "view" in self.step.centres else "region"
        self.monitor.update(values[f"{task}_teacher_entropy"], values[f"{task}_mean_target_entropy"], done)

    def task_entropy(self, task: str, step: int) -> tuple[float, float] | None:
        """Entropy of the teacher's last targets of a task, or None while the task is off."""
        output = self.step.teacher_output
        assert output is not None
        bottleneck = output.views if task == "view" else (output.regions[0][:, :1] if output.regions else None)
        if bottleneck is None:
            return None
        single, mean = teacher_entropy(
            bottleneck,
            self.step.teacher_head(task).prototypes(),
            self.step.centre(task).centre,
            self.step.schedules.teacher_temperature(self.step.epoch(step)),
        )
        return float(single), float(mean)

    def evaluate_knn(self) -> None:
        """Classify the k-NN split by the training split's labels with the teacher's features, and log it."""
        assert self.knn_source is not None
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
        neighbours = self.arguments.knn_neighbours
        accuracy = knn_accuracy(train.values, train_labels, test.values, test_labels, k=(neighbours,))
        top1 = next(iter(accuracy.values()))[0]
        set_teacher_mode(self.step.teacher)
        self.timed_at, self.timed_step = time.perf_counter(), self.progress.step
        self.log.write(self.progress.step, {f"knn{neighbours}_top1": top1})

    def save(self) -> None:
        """Save a checkpoint, after making sure that the run is sound.

        Raises:
            FloatingPointError: if the last loss is not finite; older checkpoints stay as they are.
        """
        if not self.last_losses:
            return
        loss = self.mean([values.total.detach() for values in self.last_losses])
        assert loss is not None
        check_finite(loss, self.progress.step)
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
