"""Runs the reference's nine optimizer steps with our own step, on one or several processes."""

import torch
from accelerate import Accelerator
from tests.support.golden import load_golden

from esvit_hf.data.views import ViewSpec
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.recipe_reading import load_recipe
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
    recipe = load_recipe(
        {},
        {
            "data.dataset": "none",
            "model.name": "esvit_swin",
            "model.config": {name: model[name] for name in fields} | {"drop_path_rate": 0.0},
            "heads.num_prototypes": model["head"]["out_dim"],
            "heads.hidden_dim": model["head"]["hidden_dim"],
            "heads.bottleneck_dim": model["head"]["bottleneck_dim"],
            "heads.train_prototype_gain": not model["head"]["norm_last_layer"],
            "objectives": {"view": {"weight": 0.5}, "region": {"weight": 0.5}}
            if model["dense"]
            else {"view": {"weight": 1.0}},
            "data.views": [
                ViewSpec(count=2, size=64, scale=(0.4, 1.0), teacher=True),
                ViewSpec(count=training["local_crops"], size=32, scale=(0.05, 0.4)),
            ],
            "schedule.num_epochs": training["epochs"],
            "run.batch_size": batch_size,
            "run.accumulation_steps": accumulation_steps,
            "optimizer.learning_rate": training["lr"] * 256 / training["batch"],
            "optimizer.min_learning_rate": training["min_lr"],
            "optimizer.warmup_epochs": training["warmup_epochs"],
            "optimizer.weight_decay": training["weight_decay"],
            "optimizer.weight_decay_end": training["weight_decay_end"],
            "schedule.teacher_momentum": training["momentum_teacher"],
            "schedule.warmup_teacher_temperature": training["warmup_teacher_temp"],
            "schedule.teacher_temperature": training["teacher_temp"],
            "schedule.warmup_teacher_temperature_epochs": training["warmup_teacher_temp_epochs"],
            "optimizer.clip_gradient": training["clip_grad"],
            "schedule.freeze_last_layer_epochs": training["freeze_last_layer"],
        },
    )
    parts = build_parts(recipe)
    load_networks(parts, reference_state(case.tensors, "init."))
    schedules = StepSchedules.from_recipe(recipe, training["iters_per_epoch"], training["batch"])
    return DistillationStep(recipe, parts, schedules, accelerator)


def reference_state(tensors, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def load_networks(parts, state):
    for network in (parts.student, parts.teacher):
        backbone, *heads = split_reference_state_dict(state)
        network.backbone.model.load_state_dict(backbone)
        for name, head in zip(("view", "region"), heads, strict=True):
            if name in network.heads:
                network.heads[name].load_state_dict(head)


def crops_of(case, step, images=slice(None)):
    views = 2 + case.spec["training"]["local_crops"]
    return [case.tensors[f"step{step}.crops.{view}"][images].float() for view in range(views)]


def assert_same_network(network, state):
    expected = [tensors for tensors in split_reference_state_dict(state) if tensors]
    modules = (network.backbone.model, *network.heads.values())
    for module, tensors in zip(modules, expected, strict=True):
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
    for objective, center in step.centers.items():
        torch.testing.assert_close(
            center.center[None], case.tensors[f"center_{objective}"], rtol=1e-3, atol=1e-6
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
