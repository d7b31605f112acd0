"""The pretraining loop: data in, metrics, checkpoints and a loadable teacher out."""

import math
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedModel

from esvit_hf.acceleration.threads import use_threads
from esvit_hf.common.accelerator_state import device_name, own_accelerator_state
from esvit_hf.common.errors import one_line
from esvit_hf.common.shared_objects import leave_objects_in_place
from esvit_hf.data.color import IMAGENET_MEAN, IMAGENET_STD, NUM_COLORS, augment
from esvit_hf.data.items import ItemSource
from esvit_hf.data.multicrop import CropBatch
from esvit_hf.data.sources import ImageSource
from esvit_hf.data.streaming import StreamSource
from esvit_hf.pretraining.build import build_parts, describe_model
from esvit_hf.pretraining.checkpoint import (
    RECIPE,
    CheckpointWriter,
    Progress,
    checkpoint_step,
    choose_checkpoint,
    load_checkpoint,
    remove_checkpoints,
)
from esvit_hf.pretraining.checkpoint_files import RunState
from esvit_hf.pretraining.images import load_training_images, make_crop_loader
from esvit_hf.pretraining.interruption import StopRequest
from esvit_hf.pretraining.launching import (
    COLLECTIVE_TIMEOUT,
    decide_together,
    make_accelerator,
)
from esvit_hf.pretraining.machine import look_at_machine
from esvit_hf.pretraining.memory import estimate_memory, memory_warning
from esvit_hf.pretraining.metrics_log import MetricsLog
from esvit_hf.pretraining.monitor import RunMonitor
from esvit_hf.pretraining.objectives.position import CropBoxes
from esvit_hf.pretraining.online_knn import OnlineKnn
from esvit_hf.pretraining.order import ImageOrder
from esvit_hf.pretraining.output_folder import locked_output
from esvit_hf.pretraining.publishing import RunPublisher, fetch_resume_point, remove_resume_point
from esvit_hf.pretraining.readings import Readings
from esvit_hf.pretraining.recipe import Recipe, recipe_yaml
from esvit_hf.pretraining.resuming import check_resumed_recipe, decides_steps
from esvit_hf.pretraining.run_folder import export_run
from esvit_hf.pretraining.schedules import largest_weight
from esvit_hf.pretraining.starting import Data, Model, Start
from esvit_hf.pretraining.step import DistillationStep, StepSchedules
from esvit_hf.pretraining.threads import choose_threads
from esvit_hf.pretraining.tracking import start_trackers


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

    def load_model(self) -> PreTrainedModel:
        """Load the teacher, in evaluation mode."""
        model: PreTrainedModel = AutoModel.from_pretrained(self.output_dir)
        return model.eval()


class Pretraining:
    """One run: everything between the recipe and the output folder.

    Args:
        recipe: the recipe.
        accelerator: the process's accelerator.
        source: the images; those of the recipe if None.
        knn_images: the images that the online k-NN classifies; those of the recipe if None.
        threads: number of threads that the user has set; None to choose it.

    Raises:
        ValueError: if data, model or settings do not fit together, before anything is computed.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        source: ImageSource | ItemSource | StreamSource | None = None,
        knn_images: ImageSource | None = None,
        threads: int | None = None,
    ) -> None:
        self.recipe = recipe
        self.given_threads = threads
        self.accelerator = accelerator
        fetched = recipe.run.resume and fetch_resume_point(recipe, accelerator)
        output = recipe.run.output_dir
        checkpoint = decide_together(
            accelerator,
            lambda: choose_checkpoint(
                output, resume=recipe.run.resume, overwrite=recipe.run.overwrite
            ),
        )
        pushes = recipe.hub.push and accelerator.is_main_process
        self.publisher = RunPublisher(recipe) if pushes else None
        self.source = load_training_images(recipe) if source is None else source
        self.knn: OnlineKnn | None = None
        self.shown: dict[str, str] = {}
        if recipe.run.knn_every_epochs:
            self.knn = OnlineKnn(recipe, self.source, accelerator, knn_images)
        self.teacher_views = sum(view.count for view in recipe.data.views if view.teacher)
        self.total_batch = self.images_of_a_step()
        steps_per_epoch = len(self.source) // self.total_batch
        self.total_steps = recipe.schedule.num_epochs * steps_per_epoch
        if recipe.schedule.max_steps is not None:
            self.total_steps = min(self.total_steps, recipe.schedule.max_steps)
        changes = self.check_changes(checkpoint) if checkpoint is not None else []
        self.build(steps_per_epoch)
        self.checkpoints = CheckpointWriter(
            accelerator, self.state, output / "checkpoints", recipe.run.checkpoints_kept
        )
        self.mean = recipe.data.image_mean or IMAGENET_MEAN
        self.std = recipe.data.image_std or IMAGENET_STD
        self.saved_step = 0
        if checkpoint is not None:
            self.load(checkpoint, fetched)
            self.saved_step = self.progress.step
            self.progress.changes += changes
        elif recipe.run.resume:
            accelerator.print(
                "resume: the run ended before its first checkpoint and starts again at step 0"
            )

    def check_changes(self, checkpoint: Path) -> list[str]:
        """Say which changes of the recipe a resumed run applies.

        Returns:
            A sentence for each of those that its steps depend on.

        Raises:
            ValueError: one cannot be applied.
        """
        step, saved = checkpoint_step(checkpoint), self.recipe.run.output_dir / RECIPE
        changes = decide_together(
            self.accelerator,
            lambda: check_resumed_recipe(
                self.recipe, saved, step=step, total_steps=self.total_steps
            ),
        )
        said = {name: f"from step {step} on, {change}" for name, change in changes.items()}
        for sentence in said.values():
            self.accelerator.print(f"resume: {sentence}")
        return [sentence for name, sentence in said.items() if decides_steps(name)]

    def load(self, checkpoint: Path, fetched: bool) -> None:
        """Load a checkpoint; one from the Hub that does not fit is removed again.

        Raises:
            ValueError: it does not fit.
        """
        try:
            load_checkpoint(self.accelerator, self.state, checkpoint, self.progress)
        except ValueError:
            if fetched and self.accelerator.is_main_process:
                remove_resume_point(self.recipe.run.output_dir)
            raise

    def build(self, steps_per_epoch: int) -> None:
        """Build networks and optimizer, and name what a checkpoint holds."""
        recipe, accelerator = self.recipe, self.accelerator
        set_seed(recipe.run.seed)
        parts = build_parts(recipe)
        machine = look_at_machine()
        self.threads = self.given_threads or choose_threads(recipe, parts, machine)
        warning = memory_warning(recipe, estimate_memory(recipe, parts), machine)
        if warning is not None and accelerator.is_main_process:
            warnings.warn(warning, stacklevel=2)
        schedules = StepSchedules.from_recipe(recipe, steps_per_epoch, self.total_batch)
        self.step = DistillationStep(recipe, parts, schedules, accelerator)
        self.progress = Progress(self.total_batch, accelerator.num_processes)
        self.monitor = self.make_monitor()
        self.order = ImageOrder(recipe, self.source, accelerator)
        self.state = RunState(
            self.step.student,
            self.step.teacher,
            self.step.centers,
            self.step.optimizer,
            {"progress": self.progress, "order": self.order, "monitor": self.monitor},
        )
        set_seed(recipe.run.seed, device_specific=True)

    def images_of_a_step(self) -> int:
        """Return the images of an optimizer step over all processes and micro-batches.

        Raises:
            ValueError: the data has fewer.
        """
        run, processes = self.recipe.run, self.accelerator.num_processes
        images = run.batch_size * run.accumulation_steps * processes
        if images > len(self.source):
            raise ValueError(
                f"a step takes {images} images (run.batch_size {run.batch_size} x "
                f"run.accumulation_steps {run.accumulation_steps} x {processes} processes) but the "
                f"data has {len(self.source)}: lower run.batch_size or run.accumulation_steps"
            )
        return images

    def make_monitor(self) -> RunMonitor:
        """Make the monitor, which knows what the signals of the objectives mean."""
        objectives = self.step.objectives
        num_prototypes = {name: self.recipe.heads_of(name).num_prototypes for name in objectives}
        total_weight = sum(largest_weight(each.settings) for each in objectives.values())
        return RunMonitor(
            total_weight * math.log(max(num_prototypes.values())),
            {name: each.rules(num_prototypes[name]) for name, each in objectives.items()},
            self.accelerator.device,
        )

    def run(self) -> PretrainingResult:
        """Train from the current step to the last one, or to a signal, and export the teacher."""
        output = self.recipe.run.output_dir
        with leave_objects_in_place(), use_threads(self.threads), self.checkpoints:
            self.start()
            signal = self.train()
            self.save()
        if self.accelerator.is_main_process:
            try:
                self.export(output)
            except (OSError, SafetensorError) as error:
                raise OSError(
                    f"the teacher cannot be written to {output} ({one_line(error)}); the "
                    f"checkpoint of step {self.progress.step} is complete: make room there, and "
                    f"run the same command with --run.resume true to write it again"
                ) from error
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.publisher is not None:
            self.publisher.finish(self.progress.step, interrupted=signal != 0)
        return PretrainingResult(output, self.progress.step, self.log.last, signal)

    def start(self) -> None:
        """Write the recipe, open the log, say what will be done, and measure the random teacher."""
        recipe, accelerator = self.recipe, self.accelerator
        output = recipe.run.output_dir
        if accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            if recipe.run.overwrite:
                remove_checkpoints(output)
            # The recipe of the whole run: with it a run starts anew.
            whole = replace(recipe, run=replace(recipe.run, resume=False, overwrite=False))
            (output / RECIPE).write_text(recipe_yaml(whole), encoding="utf-8")
        accelerator.wait_for_everyone()
        start_trackers(accelerator, recipe)
        self.log = MetricsLog(accelerator, output / "metrics.jsonl", self.progress.step)
        self.readings = Readings(
            accelerator,
            self.step.schedules,
            self.progress,
            self.monitor,
            self.log,
            self.checkpoints,
        )
        accelerator.print(
            f"{self.source.description}; {describe_model(self.step.teacher.backbone)}; "
            f"{self.total_steps} steps of {self.total_batch} images on "
            f"{accelerator.num_processes} x {accelerator.device}"
        )
        if self.threads != self.given_threads:
            accelerator.print(
                f"threads: {self.threads} in each process, as data-loading workers need cores too; "
                f"OMP_NUM_THREADS sets another number"
            )
        if recipe.data.channels != NUM_COLORS:
            accelerator.print(
                f"images of {recipe.data.channels} channels: saturation, hue and grayscale of the "
                f"views are left out"
            )
        if self.progress.step == 0:
            self.measure_knn()

    def train(self) -> int:
        """Take the steps; return the signal that ended them, 0 if there was none."""
        sampler = self.order.sampler(self.progress.step, self.total_steps)
        loader = make_crop_loader(self.recipe, self.source, sampler)
        bar = tqdm(
            total=self.total_steps * self.total_batch,
            initial=self.progress.step * self.total_batch,
            unit="img",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )
        self.readings.restart_clock()
        with StopRequest(self.accelerator.num_processes, COLLECTIVE_TIMEOUT) as stop, bar:
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
        return signal

    def train_step(self, batches: Iterator[CropBatch], bar: Any) -> None:
        """Take one optimizer step, and log, evaluate and save when it is time."""
        run, step = self.recipe.run, self.progress.step
        totals: list[Tensor] = []
        losses: list[dict[str, Tensor]] = []
        for number in range(run.accumulation_steps):
            crops, boxes = self.next_crops(batches)
            last = number == run.accumulation_steps - 1
            micro_batch = self.step.accumulate(
                crops, self.teacher_views, step, last=last, boxes=boxes
            )
            totals.append(micro_batch.total.detach())
            losses.append(micro_batch.losses)
        norm = self.step.update(step)
        loss = torch.stack(totals).mean()
        self.readings.observe(loss, norm)
        self.progress.step += 1
        bar.update(self.total_batch)
        if self.progress.step % run.logging_steps == 0 or self.progress.step == self.total_steps:
            logged = self.readings.log_step(
                {"loss": loss, "gradient_norm": norm}
                | {
                    f"{name}_loss": torch.stack([each[name] for each in losses]).mean()
                    for name in losses[0]
                }
                | self.step.signals(micro_batch)
            )
            self.shown["loss"] = f"{logged['loss']:.3f}"
        self.evaluate_and_save_when_due()
        bar.set_postfix(self.shown, refresh=False)

    def next_crops(self, batches: Iterator[CropBatch]) -> tuple[list[Tensor], CropBoxes]:
        """Fetch the next images of this process, and color and normalize their crops on its
        device; images that could not be decoded are named and counted.

        Returns:
            The crops, and where they lie in their images.
        """
        batch = next(batches)
        for index, reason in batch.broken:
            self.readings.newly_broken_images += 1
            tqdm.write(
                f"{self.source.describe(index)} cannot be decoded and is replaced by another: "
                f"{reason}"
            )
        batch = batch.to(self.accelerator.device, non_blocking=True)
        crops = [
            augment(crop, parameters, mean=self.mean, std=self.std)
            for crop, parameters in zip(batch.crops, batch.parameters, strict=True)
        ]
        return crops, CropBoxes(batch.boxes, batch.mirrored)

    def evaluate_and_save_when_due(self) -> None:
        """Measure the teacher at the end of epochs, and save a checkpoint every so many steps."""
        run, step = self.recipe.run, self.progress.step
        epoch, rest = divmod(step, self.step.schedules.steps_per_epoch)
        if self.knn is not None and (
            (rest == 0 and epoch % run.knn_every_epochs == 0) or step == self.total_steps
        ):
            self.measure_knn()
        self.checkpoints.check()
        # While the run may be diverging, its state must not push out an older, sound one.
        due = run.checkpoint_steps and step % run.checkpoint_steps == 0
        if due and not self.monitor.alarmed:
            self.save()
            if self.publisher is not None and step < self.total_steps:
                self.checkpoints.wait()
                self.publisher.push_beside(step, self.export)

    def measure_knn(self) -> None:
        """Log and show the teacher's k-NN accuracy, if the recipe asks for it."""
        if self.knn is None:
            return
        # Whole images would be further sizes to compile for.
        with torch.compiler.set_stance("force_eager"):
            measured = self.knn.measure(self.step.teacher)
        self.log.write(self.progress.step, measured)
        ((name, share),) = measured.items()
        self.shown["k-NN"] = f"{share:.1%}"
        if self.accelerator.is_main_process:
            # Above the bar, which it would tear otherwise.
            tqdm.write(f"step {self.progress.step}: {name} {share:.1%}")
        self.readings.restart_clock()

    def export(self, folder: Path) -> None:
        """Write the teacher as it is now, with all that belongs to it, to a folder."""
        export_run(
            replace(self.recipe, run=replace(self.recipe.run, output_dir=folder)),
            self.step.teacher,
            self.step.centers,
            steps=self.progress.step,
            total_batch=self.total_batch,
            metrics=self.log.last,
            machine=f"{self.accelerator.num_processes} x {device_name(self.accelerator.device)}",
            changes=self.progress.changes,
        )

    def save(self) -> None:
        """Begin to save a checkpoint if a step was taken since the last one, after making sure that
        the run is sound.

        Raises:
            CheckpointError: if it, or the one before, cannot be written.
            FloatingPointError: if the last loss is not finite; older checkpoints stay as they are.
        """
        if self.progress.step == self.saved_step:
            return
        self.readings.check_last_loss()
        self.log.flush()
        self.checkpoints.save(self.progress.step)
        self.saved_step = self.progress.step


@own_accelerator_state()
def pretrain(
    recipe: Recipe | str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: Data | None = None,
    output: str | Path | None = None,
    model: Model | None = None,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> PretrainingResult:
    """Pretrain a backbone as a recipe says, or with values that fit the machine and the images.

    Fields of the recipe that say `auto` are chosen, printed with their reasons, and written to
    `recipe.yaml` of the output folder. Ctrl-C ends the run after its step, with a checkpoint;
    `resume` goes on from there.

    Args:
        recipe: name of a shipped recipe, path of a YAML file, mapping of sections to fields, a
            recipe that was loaded, or a folder of images; the recipe `auto` if not given.
        overrides: values by name with dots, such as `{"schedule.num_epochs": 20}`, as the flags of
            `esvit pretrain`.
        data: images instead of the recipe's: a folder or a name on the Hub, a list of folders or
            image files, a `datasets.Dataset` or `DatasetDict`, or a map-style data set of images.
        output: folder of the run, instead of the recipe's.
        model: network to start from, instead of the recipe's: a folder, a name on the Hub, a model
            type, a configuration, or a loaded network, which is left as it is.
        threads: threads that compute in this process; chosen if not given.
        resume: continue the run in the output folder; give the other arguments as before.
        overwrite: start anew in an output folder that holds a run.

    Returns:
        Where the result is and what was measured.

    Raises:
        ValueError: for settings or data that cannot work.
        FloatingPointError: if the loss is no longer finite.
    """
    fields = {"run.output_dir": output, "run.resume": resume, "run.overwrite": overwrite}
    given = {name: value for name, value in fields.items() if value not in (None, False)}
    start = Start(recipe, overrides, data=data, model=model, fields=given)
    accelerator = make_accelerator(start.draft)
    with use_threads(threads), locked_output(start.draft.run.output_dir, accelerator):
        settled, source = start.settle(accelerator)
        knn_images = start.open_knn_images(settled)
        return Pretraining(settled, accelerator, source, knn_images, threads).run()
