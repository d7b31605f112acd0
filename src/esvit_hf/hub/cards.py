"""Model cards: one template, filled from what is known of a network and from what was measured with
it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import validate_repo_id
from jinja2 import Template

from esvit_hf.common.errors import one_line
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, read_measurements
from esvit_hf.hub.network_rows import LICENSE_ROW

__all__ = [
    "CARD_FILE",
    "CardFacts",
    "ReportedAccuracies",
    "card_license",
    "check_card",
    "make_card",
    "replace_section",
    "update_card",
    "write_card",
]

CARD_FILE = "README.md"
"""Name of the card in a model's folder."""

_TEMPLATE = (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8")
_PAPER = "2106.09785"

# Tasks as the Hub calls them.
_FEATURES, _CLASSIFICATION = "image-feature-extraction", "image-classification"
# Metrics of our records that the Hub calls accuracy.
_ACCURACIES = ("top1", "top5", "mean_per_class")
# Metadata that every network of this project has. A license is its owner's choice.
_REQUIRED = ("library_name", "pipeline_tag", "tags")
# Our largest card has two kilobytes of metadata; far more is an accident, such as a list with a
# number for each step.
_LARGEST_METADATA = 50_000


@dataclass(frozen=True)
class ReportedAccuracies:
    """Numbers that others have published for a network.

    Attributes:
        source: who says so.
        linear: top-1 accuracy of a linear probe on ImageNet-1K in percent.
        knn: the same of a k-NN classifier.
    """

    source: str
    linear: float
    knn: float


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside measured numbers.

    Attributes:
        title: heading.
        name: of the repository or folder.
        summary: what it is, a paragraph.
        model_type: of the configuration.
        limits: what the training images do to the features, in sentences.
        network: what a user has to know about its size and cost, by name.
        picture: name of an image beside the card that shows what the network does, None without.
        picture_caption: what it shows, and the command that made it.
        training: facts about the training, by their names; the card has no such part without them.
        command: that trains such a network.
        command_remark: what the command is.
        license: as the Hub spells it, None if the owner has not chosen one.
        license_remark: whose license it is and for what.
        datasets: Hub repositories of the training images.
        base_model: Hub repository whose weights it started from, None if there is none.
        classes: number of classes that it tells apart, 0 if it is no classifier.
        recipe: of the run as YAML.
        during_run: numbers that the run itself logged last, by their names.
        has_heads: whether the heads of pretraining are in the folder.
        comparison: what other networks reach on the same data, in sentences.
        reported: numbers of others; the first are those of exactly these weights.
        reported_url: where they stand.
        reported_remark: how they were measured, and what else a reader of them has to know.
    """

    title: str
    name: str
    summary: str
    model_type: str
    limits: str
    network: Mapping[str, Any] = field(default_factory=dict)
    picture: str | None = None
    picture_caption: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    command_remark: str = ""
    license: str | None = None
    license_remark: str = ""
    datasets: Sequence[str] = ()
    base_model: str | None = None
    classes: int = 0
    recipe: str = ""
    during_run: Mapping[str, Any] = field(default_factory=dict)
    has_heads: bool = False
    comparison: str = ""
    reported: Sequence[ReportedAccuracies] = ()
    reported_url: str = ""
    reported_remark: str = ""


def make_card(
    facts: CardFacts, measurements: Sequence[Measurement] = (), figures: Sequence[str] = ()
) -> ModelCard:
    """Fill the template.

    Args:
        facts: what is known of the network.
        measurements: what was measured with it.
        figures: names of the images beside the card.

    Returns:
        The card.
    """
    results = _merge_results(_reported_results(facts), measurements)
    pipeline_tag = _CLASSIFICATION if facts.classes else _FEATURES
    data = ModelCardData(
        base_model=facts.base_model,
        license=facts.license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["self-supervised-learning", "esvit", facts.model_type, f"arxiv:{_PAPER}"],
        datasets=list(facts.datasets) or None,
        metrics=_metrics(results),
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        facts=facts,
        **_use_variables(facts.name, pipeline_tag),
        **_measured_variables(measurements, figures),
    )


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write a folder's card, with the measurements and figures that the folder has.

    Args:
        folder: of the model.
        facts: what is known of the network.

    Raises:
        ValueError: the folder's measurements are unreadable.
    """
    make_card(facts, _folder_measurements(folder), _folder_figures(folder)).save(folder / CARD_FILE)


def update_card(folder: Path, name: str | None = None, license_name: str | None = None) -> None:
    """Bring a folder's card up to date with its measurements and figures.

    Args:
        folder: of the model, with a card of this package.
        name: Hub repository that the card's examples shall load; left as it is if not given.
        license_name: license of the weights as the Hub spells it; left as it is if not given.

    Raises:
        ValueError: there is no card of this package, or the measurements are unreadable.
    """
    path = folder / CARD_FILE
    card, _ = _read_card(path)
    data = _data(card)
    text = replace_section(card.text, "measured", _measured_section(folder), path)
    if name is not None:
        text = replace_section(
            text, "use", _render_block("use", _use_variables(name, data.pipeline_tag)), path
        )
    if license_name is not None:
        data.license = license_name
        row = rf"^\| {LICENSE_ROW} \| .* \|$"
        text = re.sub(row, f"| {LICENSE_ROW} | {license_name} |", text, flags=re.MULTILINE)
    reported = [result for result in data.eval_results or () if result.source_url is not None]
    results = _merge_results(reported, _folder_measurements(folder))
    data.eval_results, data.metrics = results or None, _metrics(results)
    data.model_name = (name or data.model_name or folder.resolve().name) if results else None
    card.text = text
    card.save(path)


def check_card(folder: Path) -> None:
    """Check a folder's card as the Hub would, without a network.

    Args:
        folder: of the model.

    Raises:
        ValueError: the card is missing, its metadata are not what the Hub takes, it shows a figure
            that is not there, or it differs from the folder's measurements.
    """
    path = folder / CARD_FILE
    card, metadata = _read_card(path)
    problems = [*_metadata_problems(metadata, _data(card)), *_text_problems(card.text, folder)]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")


def card_license(folder: Path) -> str | None:
    """Read which license a folder's card names; None if it names none.

    Args:
        folder: of the model.

    Raises:
        ValueError: the card cannot be read.
    """
    return _data(_read_card(folder / CARD_FILE)[0]).license


def _read_card(path: Path) -> tuple[ModelCard, dict[str, Any]]:
    """Read a card and, as they stand in the file, its metadata."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"{path} is no readable card ({error}): write the card of the model first"
        ) from error
    block = REGEX_YAML_BLOCK.search(content)
    if block is None:
        raise ValueError(
            f"{path} does not start with metadata between two lines of ---: write the card again"
        )
    if (size := len(block[2].encode())) > _LARGEST_METADATA:
        raise ValueError(
            f"the metadata of {path} have {size} bytes, more than {_LARGEST_METADATA}: shorten them"
        )
    try:
        return ModelCard(content), yaml.safe_load(block[2]) or {}
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {path} cannot be read: {one_line(error)}") from error


def _metadata_problems(metadata: Mapping[str, Any], data: ModelCardData) -> Iterator[str]:
    # Takes seconds to import.
    from transformers.pipelines import get_supported_tasks

    for name in _REQUIRED:
        if not metadata.get(name):
            yield f"the metadata lack {name}"
    for name in ("license", "library_name", "pipeline_tag"):
        if name in metadata and not isinstance(metadata[name], str):
            yield f"{name} is {metadata[name]!r}, not a word"
    for name in ("tags", "datasets", "metrics"):
        values = metadata.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            yield f"{name} is {values!r}, not a list of words"
    tasks = get_supported_tasks()
    if (task := metadata.get("pipeline_tag")) and task not in tasks:
        yield f"pipeline_tag is {task!r}, which is none of {', '.join(tasks)}"
    if metadata.get("license") == "other" and not (
        metadata.get("license_name") and metadata.get("license_link")
    ):
        yield "license is 'other': add license_name and license_link"
    datasets = metadata.get("datasets")
    for dataset in datasets if isinstance(datasets, list) else []:
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            yield f"datasets: {error}"
    if "model-index" in metadata:
        yield from _result_problems(metadata["model-index"], data)


def _result_problems(model_index: Any, data: ModelCardData) -> Iterator[str]:
    results = data.eval_results or []
    if not results:
        yield "model-index has no results"
    elif _model_index(data.model_name, results) != model_index:
        yield (
            "model-index is not what the library writes for its results: names, sources or data "
            "sets are mixed up"
        )
    for result in results:
        name = result.metric_name or result.metric_type
        if not isinstance(result.metric_value, int | float) or not math.isfinite(
            result.metric_value
        ):
            yield f"the value of {name} is {result.metric_value!r}, not a number"
        if result.verified:
            yield f"{name} claims to be verified, which only the Hub can do"
        if result.source_url is not None and not str(result.source_url).startswith(
            ("https://", "http://")
        ):
            yield f"the source of {name} is {result.source_url!r}, not an address"


def _model_index(name: str | None, results: list[EvalResult]) -> list[dict[str, Any]] | None:
    try:
        return eval_results_to_model_index(str(name), results)
    except TypeError:
        # A list where a word belongs: the results cannot even be told apart.
        return None


def _text_problems(text: str, folder: Path) -> Iterator[str]:
    for image in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text):
        if not image.startswith(("https://", "http://")) and not (folder / image).is_file():
            yield f"it shows {image}, which is not in the folder"
    section = _find_section(text, "measured")
    if section is not None and section != _measured_section(folder):
        yield (
            f"it does not say what {MEASUREMENTS_FILE} and the figures of the folder say: update it"
        )


def _measured_section(folder: Path) -> str:
    return _render_block(
        "measured", _measured_variables(_folder_measurements(folder), _folder_figures(folder))
    )


def _find_section(text: str, name: str) -> str | None:
    match = re.search(_section_pattern(name), text, flags=re.DOTALL)
    return match[2] if match else None


def _section_pattern(name: str) -> str:
    return rf"(<!-- {name}: begin -->\n)(.*?)(\n<!-- {name}: end -->)"


def replace_section(text: str, name: str, section: str, path: Path) -> str:
    """Replace a part of a text that stands between two comments.

    Args:
        text: Markdown with `<!-- NAME: begin -->` and `<!-- NAME: end -->` on lines of their own.
        name: of the part.
        section: what stands between them afterwards.
        path: where the text was read, for errors.

    Returns:
        The text.

    Raises:
        ValueError: the comments are not there.
    """
    if _find_section(text, name) is None:
        raise ValueError(
            f"{path} lacks the comments '<!-- {name}: begin -->' and '<!-- {name}: end -->': put "
            f"them where the part is"
        )
    return re.sub(
        _section_pattern(name),
        lambda match: match[1] + section + match[3],
        text,
        count=1,
        flags=re.DOTALL,
    )


def _render_block(name: str, variables: Mapping[str, Any]) -> str:
    template = Template(_TEMPLATE)
    return "".join(template.blocks[name](template.new_context(dict(variables))))


def _use_variables(name: str, pipeline_tag: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "is_folder": "/" not in name,
        "auto_class": "AutoModelForImageClassification"
        if pipeline_tag == _CLASSIFICATION
        else "AutoModel",
    }


def _measured_variables(
    measurements: Sequence[Measurement], figures: Sequence[str]
) -> dict[str, Any]:
    rows = [
        {name: _cell(value) for name, value in asdict(row).items() if name != "command"}
        for row in measurements
    ]
    commands = dict.fromkeys("\n".join(row.command.splitlines()) for row in measurements)
    return {
        "measurements": rows,
        "has_random": any(row.random_network is not None for row in measurements),
        "commands": list(commands),
        "figures": list(figures),
    }


def _cell(value: str | float | None) -> str:
    """Write a value so that it stays one cell of a Markdown table."""
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(value.split()).replace("|", "\\|")
    return str(round(value, 2))


def _data(card: ModelCard) -> ModelCardData:
    assert isinstance(card.data, ModelCardData)
    return card.data


def _folder_measurements(folder: Path) -> list[Measurement]:
    path = folder / MEASUREMENTS_FILE
    return read_measurements(path) if path.is_file() else []


def _folder_figures(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def _reported_results(facts: CardFacts) -> list[EvalResult]:
    if not facts.reported:
        return []
    first = facts.reported[0]
    return [
        EvalResult(
            task_type=_CLASSIFICATION,
            dataset_type="ILSVRC/imagenet-1k",
            dataset_name="ImageNet-1K",
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=f"{protocol} top-1 (%), reported by the authors",
            metric_value=value,
            verified=False,
            source_name=first.source,
            source_url=facts.reported_url,
        )
        for protocol, value in (("linear probe", first.linear), ("k-NN", first.knn))
    ]


def _measured_result(measurement: Measurement) -> EvalResult:
    accuracy = measurement.metric in _ACCURACIES
    return EvalResult(
        task_type=_CLASSIFICATION if accuracy else _FEATURES,
        dataset_type=measurement.dataset,
        dataset_name=measurement.dataset,
        dataset_split=measurement.split,
        metric_type="accuracy" if accuracy else measurement.metric,
        metric_name=f"{measurement.task} {measurement.metric}, {measurement.protocol}",
        metric_value=measurement.value,
        verified=False,
    )


def _merge_results(
    reported: Sequence[EvalResult], measurements: Sequence[Measurement]
) -> list[EvalResult]:
    measured = [_measured_result(measurement) for measurement in measurements]
    # A model index has one source for all results of a data set: where there are numbers of our
    # own, they stand alone.
    taken = {result.unique_identifier for result in measured}
    return [*(result for result in reported if result.unique_identifier not in taken), *measured]


def _metrics(results: Sequence[EvalResult]) -> list[str] | None:
    return sorted({result.metric_type for result in results}) or None
