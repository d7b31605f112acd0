"""Runs the reference's nine optimizer steps with our own step, on one or several processes."""

import torch
from accelerate import Accelerator
from tests.support.golden import load_golden

from esvit_hf.data.views import ViewSpec
from esvit_hf.pretraining import PretrainingArguments
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.step import DistillationStep, StepSchedules
from esvit_hf.reference.from_reference import split_reference_state_dict


def make_step(case, *, accelerator, batch_size, accumulation_steps=1):
    """Build the golden's student and teacher with our own classes."""
    model, training = case.spec["model"], case.spec["training"]
    fields = (
        "image_size",
        "patch_size",
        "embed_dim",
        "depths",
        "num_heads",
        "window_size",
        "mlp_ratio",
    )
    arguments = PretrainingArguments(
        dataset="none",
        model="esvit_swin",
        model_config={name: model[name] for name in fields} | {"drop_path_rate": 0.0},
        num_prototypes=model["head"]["out_dim"],
        head_hidden_dim=model["head"]["hidden_dim"],
        head_bottleneck_dim=model["head"]["bottleneck_dim"],
        train_prototype_gain=not model["head"]["norm_last_layer"],
        view_weight=0.5 if model["dense"] else 1.0,
        region_weight=0.5 if model["dense"] else 0.0,
        views=[
            ViewSpec(count=2, size=64, scale=(0.4, 1.0), teacher=True),
            ViewSpec(count=training["local_crops"], size=32, scale=(0.05, 0.4)),
        ],
        num_epochs=training["epochs"],
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        learning_rate=training["lr"] * 256 / training["batch"],
        min_learning_rate=training["min_lr"],
        warmup_epochs=training["warmup_epochs"],
        weight_decay=training["weight_decay"],
        weight_decay_end=training["weight_decay_end"],
        teacher_momentum=training["momentum_teacher"],
        warmup_teacher_temperature=training["warmup_teacher_temp"],
        teacher_temperature=training["teacher_temp"],
        warmup_teacher_temperature_epochs=training["warmup_teacher_temp_epochs"],
        clip_gradient=training["clip_grad"],
        freeze_last_layer_epochs=training["freeze_last_layer"],
    )
    parts = build_parts(arguments)
    load_networks(parts, reference_state(case.tensors, "init."))
    schedules = StepSchedules.from_arguments(
        arguments, training["iters_per_epoch"], training["batch"]
    )
    return DistillationStep(arguments, parts, schedules, accelerator)


def reference_state(tensors, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def load_networks(parts, state):
    for network in (parts.student, parts.teacher):
        backbone, view_head, region_head = split_reference_state_dict(state)
        network.backbone.model.load_state_dict(backbone)
        network.view_head.load_state_dict(view_head)
        if network.region_head is not None:
            network.region_head.load_state_dict(region_head)


def crops_of(case, step, images=slice(None)):
    views = 2 + case.spec["training"]["local_crops"]
    return [case.tensors[f"step{step}.crops.{view}"][images].float() for view in range(views)]


def assert_same_network(network, state):
    expected = split_reference_state_dict(state)
    modules = (network.backbone.model, network.view_head, network.region_head)
    for module, tensors in zip(modules, expected, strict=True):
        if module is None:
            continue
        actual = module.state_dict()
        assert actual.keys() == tensors.keys()
        for name, tensor in tensors.items():
            # A tensor as a whole: attention does not depend on the key bias, so the gradient of its
            # single elements is rounding noise, which AdamW blows up to full steps in the reference
            # and here.
            error = torch.linalg.vector_norm(actual[name] - tensor) / torch.linalg.vector_norm(
                tensor
            )
            assert error <= 1e-3, f"{name}: relative error {error:.1e}"


def assert_end_of_trajectory(case, step):
    assert_same_network(step.student, reference_state(case.tensors, "final.student."))
    assert_same_network(step.teacher, reference_state(case.tensors, "final.teacher."))
    for task, center in step.centers.items():
        torch.testing.assert_close(
            center.center[None], case.tensors[f"center_{task}"], rtol=1e-3, atol=1e-6
        )


def run(case, accelerator, images_of_micro_batches):
    """Take the nine steps; check every loss and everything at the end."""
    micro_batches = len(images_of_micro_batches)
    batch_size = len(range(case.spec["training"]["batch"])[images_of_micro_batches[0]])
    step = make_step(
        case, accelerator=accelerator, batch_size=batch_size, accumulation_steps=micro_batches
    )
    for index in range(9):
        losses = []
        for number, images in enumerate(images_of_micro_batches):
            values = step.accumulate(
                crops_of(case, index, images), 2, index, last=number == micro_batches - 1
            )
            losses.append(values.total.detach())
        step.update(index)
        mean = accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        torch.testing.assert_close(mean.double(), case.tensors["losses"][index], rtol=1e-5, atol=0)
    assert_end_of_trajectory(case, step)


def run_share(name, mode):
    """What each of several processes runs, on one of the three images ("split") or on all of them
    ("same").
    """
    accelerator = Accelerator()
    rank = accelerator.process_index
    run(load_golden(name), accelerator, [slice(rank, rank + 1) if mode == "split" else slice(None)])
