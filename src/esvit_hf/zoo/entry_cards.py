"""Cards of the zoo's entries, and the table of those that the authors released."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.markdown import format_table
from esvit_hf.hub.cards import (
    CardFacts,
    ReportedAccuracies,
    make_card,
    replace_section,
    write_card,
)
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, write_measurements
from esvit_hf.hub.network_rows import network_rows
from esvit_hf.hub.training_data import IMAGENET_1K
from esvit_hf.reference.architectures import RESNET_50, SWIN_TINY_W7
from esvit_hf.zoo.entries import AUTHORS_COMMIT, AUTHORS_REPOSITORY, ENTRIES, Release, ZooEntry

__all__ = ["entry_facts", "released_table", "write_cards"]

_AUTHORS_URL = f"https://github.com/{AUTHORS_REPOSITORY}/tree/{AUTHORS_COMMIT}"
# The authors trained on 16 devices; their batch is 16 times that of the recipe's processes.
_PROCESSES = 16
# How the authors' code measures; for a ResNet it has no linear probe.
_LINEAR_PROBE = (
    "Linear probe: one linear layer on the frozen features of the last four blocks, 100 epochs of "
    "SGD with random crops and flips, the learning rate chosen for each checkpoint."
)
_UNKNOWN_LINEAR_PROBE = (
    "Linear probe: the authors' code has none for a ResNet, so that its details are not known."
)
_KNN = (
    "k-NN: votes of the most similar images by cosine, weighted by exp(similarity / 0.07), for 10, "
    "20, 100 and 200 of them. Test images: shorter side to 256 pixels, center crop of 224."
)
# What the recipe of the paper's Swin-T says.
_RECIPE_BATCH, _RECIPE_EPOCHS = 512, 300


def entry_facts(entry: ZooEntry) -> CardFacts:
    """Say what a card says of an entry.

    Args:
        entry: the record.

    Returns:
        All but what is measured.
    """
    architecture, release = entry.architecture, entry.release
    losses = "the view loss" if entry.objectives == "V" else "the view loss and the region loss"
    window = (
        f", windows of {architecture.window} x {architecture.window} tokens"
        if architecture.window
        else ""
    )
    summary = (
        f"{architecture.title}{window}, {architecture.parameters:,} parameters, pretrained without "
        f"labels on {entry.data.name} with {losses} of [EsViT](https://arxiv.org/abs/2106.09785)."
    )
    if release is None:
        remark = "The run, in this project's repository:"
    else:
        remark = f"The same with esvit-hf, in its repository, on {_PROCESSES} devices:"
        summary += (
            f" The weights are those of the teacher in the authors' `{release.file}`, under the "
            f"names that esvit-hf gives them: no value was changed."
        )
    if entry.view_only_sibling:
        summary += f" Without the region loss: `{entry.view_only_sibling}`."
    return CardFacts(
        title=entry.name,
        name=entry.name,
        summary=summary,
        model_type=architecture.model_type,
        limits=entry.data.limits,
        network=network_rows(
            architecture.fields,
            architecture.parameters,
            operations=architecture.operations,
            training_time=entry.training.time,
            license_name=entry.license,
        ),
        picture=f"{entry.name}.webp" if entry.picture_caption else None,
        picture_caption=entry.picture_caption,
        comparison=entry.comparison,
        training=_training_rows(entry),
        command=_training_command(entry),
        command_remark=remark,
        license=entry.license,
        license_remark=_license_remark(entry),
        datasets=[entry.data.hub_id] if entry.data.hub_id else [],
        has_heads=True,
        reported=_reported(release),
        reported_url=_AUTHORS_URL if release else "",
        reported_remark=_reported_remark(entry),
    )


def _training_rows(entry: ZooEntry) -> dict[str, Any]:
    training = entry.training
    rows: dict[str, Any] = {
        "network": f"`{entry.architecture.model_type}`",
        "data": entry.data.name,
        "images of a step": training.batch,
        "epochs": training.epochs,
    }
    # It needs PyTorch, which the list of commands does without.
    from esvit_hf.reference.from_reference import REFERENCE_HEADS

    view, region = REFERENCE_HEADS
    losses = [view]
    if training.region_start_epoch is not None:
        start = training.region_start_epoch
        losses.append(region + (f" from epoch {start} on" if start else ""))
    return {**rows, "losses": ", ".join(losses)}


def _training_command(entry: ZooEntry) -> str:
    training = entry.training
    if entry.release is None:
        return f"accelerate launch examples/pretrain.py {training.recipe}"
    words = [
        "accelerate",
        "launch",
        "--num_processes",
        str(_PROCESSES),
        "examples/pretrain.py",
        training.recipe,
    ]
    if entry.architecture is not SWIN_TINY_W7:
        words += [
            "--model.name",
            entry.architecture.model_type,
            "--model.config",
            json.dumps(entry.architecture.fields),
        ]
    if entry.data is not IMAGENET_1K:
        words += ["--data.dataset", f"path/to/{entry.data.folder}", "--run.knn_every_epochs", "0"]
    if training.batch != _RECIPE_BATCH:
        words += ["--run.batch_size", str(training.batch // _PROCESSES)]
    if training.epochs != _RECIPE_EPOCHS:
        words += ["--schedule.num_epochs", str(training.epochs)]
    if training.region_start_epoch is None:
        words += ["--objectives", "{view: {weight: 1}}"]
    elif training.region_start_epoch:
        words += ["--objectives.region.start_epoch", str(training.region_start_epoch)]
    words += ["--run.output_dir", f"outputs/{entry.name}"]
    return shlex.join(words)


def _reported(release: Release | None) -> list[ReportedAccuracies]:
    if release is None:
        return []
    return [
        ReportedAccuracies(
            f"README of {AUTHORS_REPOSITORY}", release.readme.linear, release.readme.knn
        ),
        ReportedAccuracies("paper", release.paper.linear, release.paper.knn),
    ]


def _reported_remark(entry: ZooEntry) -> str:
    release = entry.release
    if release is None:
        return ""
    linear = _UNKNOWN_LINEAR_PROBE if entry.architecture is RESNET_50 else _LINEAR_PROBE
    epochs = f"The name of the authors' k-NN log says epoch {release.knn_epoch}"
    if release.linear_epoch:
        epochs += f", that of their log of the linear probe epoch {release.linear_epoch}"
    return "\n\n".join([linear, _KNN, f"{epochs}. {release.remark}".strip()])


def _license_remark(entry: ZooEntry) -> str:
    if entry.release is None:
        return ""
    return (
        f"The weights are the authors' to distribute. [{AUTHORS_REPOSITORY}]({_AUTHORS_URL}), "
        f"where they list them, is under the MIT license and names no other one for the weights."
    )


def released_table() -> str:
    """Write the table of the authors' checkpoints.

    Returns:
        Markdown, a row for each.
    """
    return format_table(
        [
            {
                "name": f"`{entry.name}`",
                "network": entry.architecture.title,
                "window": entry.architecture.window or "",
                "objectives": entry.objectives,
                "data": entry.data.name,
                "linear": f"{entry.release.readme.linear:.1f}",
                "k-NN": f"{entry.release.readme.knn:.1f}",
            }
            for entry in ENTRIES
            if entry.release is not None
        ]
    )


@flat_arguments
def write_cards(
    output: str | Path, *, page: str | Path | None = None, folders: str | Path | None = None
) -> dict[str, Any]:
    """Write the cards of all entries of the zoo, and their table into a text.

    Args:
        output: folder for the cards, one file each; it holds the pictures of those that have one.
        page: text whose part between '<!-- zoo: begin -->' and '<!-- zoo: end -->' becomes the
            table.
        folders: folder with model folders of entries, by name; they get card, picture,
            measurements and the code of this package as it is now.

    Returns:
        The folder and the number of cards.

    Raises:
        ValueError: the text has no such part.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in ENTRIES:
        facts = entry_facts(entry)
        make_card(facts, entry.measurements).save(folder / f"{entry.name}.md")
        if folders is not None and (model := Path(folders) / entry.name).is_dir():
            if facts.picture is not None:
                shutil.copyfile(folder / facts.picture, model / facts.picture)
            _complete(model, entry)
    if page is not None:
        path = Path(page)
        text = replace_section(path.read_text(encoding="utf-8"), "zoo", released_table(), path)
        path.write_text(text, encoding="utf-8")
    return {"output": str(folder), "cards": len(ENTRIES)}


def _complete(folder: Path, entry: ZooEntry) -> None:
    # It needs transformers, which the list of commands does without.
    from esvit_hf.hub.completion import write_own_code

    write_own_code(folder)
    write_measurements(entry.measurements, folder / MEASUREMENTS_FILE)
    write_card(folder, entry_facts(entry))
