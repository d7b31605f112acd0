"""A released checkpoint becomes the folder that its Hub repository holds, if it is what its record
says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from esvit_hf.hub.cards import check_card, write_card
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, write_measurements
from esvit_hf.reference.folders import (
    check_free,
    load_model,
    read_reference_heads,
    write_model,
    write_new,
)
from esvit_hf.reference.from_reference import (
    REFERENCE_HEADS,
    find_family,
    read_reference_checkpoint,
)
from esvit_hf.zoo.entries import ZooEntry, find_entry
from esvit_hf.zoo.entry_cards import entry_facts

__all__ = ["build_folder"]

_VIEW, _REGION = REFERENCE_HEADS
_HEADS = {"V": [_VIEW], "V+R": [_VIEW, _REGION]}


def build_folder(name: str, *, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Turn a released checkpoint of the authors into a Hub folder: model, image processor, heads
    and card.

    The file is compared with the record of the entry first. The folder appears under its name only
    when it is complete.

    Args:
        name: entry of the zoo.
        checkpoint: the file that the authors released for it.
        output: folder to write; it must not exist or be empty.

    Returns:
        What was written: `output`, `model_type`, `parameters` (of the model), `heads` (their
        objectives).

    Raises:
        ValueError: there is no such entry, the file is not what its record says, or the folder is
            not free.
    """
    entry = find_entry(name)
    if entry.release is None:
        raise ValueError(
            f"{name} is a network of this project, not of the authors: `esvit pretrain "
            f"{entry.training.recipe}` trains it"
        )
    check_free(output)
    content = read_reference_checkpoint(checkpoint)
    model = _load_as_recorded(entry, content, checkpoint)
    heads = read_reference_heads(content, checkpoint, "teacher", None)
    if list(heads) != _HEADS[entry.objectives]:
        raise _disagreement(
            entry, checkpoint, "objectives with a head", list(heads), _HEADS[entry.objectives]
        )
    with write_new(output) as folder:
        write_model(model, heads, folder)
        if entry.measurements:
            write_measurements(entry.measurements, folder / MEASUREMENTS_FILE)
        write_card(folder, entry_facts(entry))
        check_card(folder)
    return {
        "output": str(output),
        "model_type": model.config.model_type,
        "parameters": entry.architecture.parameters,
        "heads": list(heads),
    }


def _load_as_recorded(
    entry: ZooEntry, content: Mapping[str, Any], checkpoint: Path
) -> PreTrainedModel:
    architecture = entry.architecture
    family = find_family(content, checkpoint, "teacher")
    if family != architecture.family:
        raise _disagreement(entry, checkpoint, "family of the network", family, architecture.family)
    fields = architecture.fields
    model = load_model(
        content,
        checkpoint,
        "teacher",
        family,
        {name: fields[name] for name in architecture.untraced},
    )
    for name in architecture.shape:
        value = getattr(model.config, name)
        if (value := list(value) if isinstance(value, tuple) else value) != fields[name]:
            raise _disagreement(entry, checkpoint, name, value, fields[name])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != architecture.parameters:
        raise _disagreement(
            entry, checkpoint, "number of parameters", parameters, architecture.parameters
        )
    return model


def _disagreement(
    entry: ZooEntry, checkpoint: Path, what: str, found: object, recorded: object
) -> ValueError:
    return ValueError(
        f"{str(checkpoint)!r} is not the checkpoint of {entry.name}: {what} is {found} in the file "
        f"and {recorded} in the record; give the file or the entry that belongs to it"
    )
