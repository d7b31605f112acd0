"""The card of a classifier that was trained on labeled images, with what it reached."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedConfig

from esvit_hf.common.files import HUB_NAME, public_name
from esvit_hf.hub.cards import CardFacts, write_card
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, write_measurements

__all__ = ["write_classifier_card"]


def write_classifier_card(
    folder: Path,
    config: PreTrainedConfig,
    accuracies: Mapping[str, float],
    *,
    source: str,
    task: str,
    dataset: str,
    split: str,
    protocol: str,
    settings: Mapping[str, object],
    command: Sequence[str],
) -> None:
    """Write measurements and card beside a saved classifier; of folders of this machine they give
    the name alone.

    Args:
        folder: of the classifier.
        config: its configuration.
        accuracies: what it reached in percent, by the metric's name.
        source: Hub name or folder of the network that it started from, or words for another one.
        task: how it was trained, such as `linear probe`.
        dataset: Hub name or folder of the images.
        split: images that were classified.
        protocol: how it was trained and measured, in one line.
        settings: what else decided the number, such as images, augmentation and seed, by name.
        command: words of the command line that repeats it.
    """
    name, network, images = folder.resolve().name, public_name(source), public_name(dataset)
    line = shlex.join(map(public_name, command))
    measurements = [
        Measurement(task, images, split, metric, value, protocol, line)
        for metric, value in accuracies.items()
    ]
    write_measurements(measurements, folder / MEASUREMENTS_FILE)
    facts = CardFacts(
        title=name,
        name=name,
        summary=(
            f"A network of type `{config.model_type}` (`{network}`) as a classifier of "
            f"{config.num_labels} classes, trained on `{images}` ({task}) by esvit-hf."
        ),
        model_type=config.model_type,
        limits=(
            f"The classifier knows the classes of `{images}` and gives one of them to any image."
        ),
        training={"start": f"`{network}`", task: protocol, "test images": split, **settings},
        command=line,
        command_remark="Trained and measured with:",
        base_model=source if HUB_NAME.fullmatch(source) and not Path(source).exists() else None,
        classes=config.num_labels or 0,
    )
    write_card(folder, facts)
