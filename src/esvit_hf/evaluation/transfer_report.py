"""The table of a transfer evaluation, as Markdown, JSON and measurements."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esvit_hf.common.files import public_name
from esvit_hf.common.markdown import format_columns
from esvit_hf.evaluation.transfer_datasets import METRIC_LABELS, TRANSFER_DATASETS, TransferDataset
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, write_measurements

__all__ = [
    "TransferResult",
    "TransferRow",
    "datasets_table",
    "format_transfer",
    "summary",
    "write_report",
]


@dataclass(frozen=True)
class TransferResult:
    """What one model reached on one data set.

    Attributes:
        value: the metric on the test images, in percent.
        strength: the chosen L2 strength.
        validation_value: the metric on the validation images, in percent, before the last fit.
        train_images: number of training images.
        validation_images: number of validation images; None if a share of the training images was
            held out.
        validation_fraction: that share.
        test_images: number of test images.
        warnings: what the search complained about.
    """

    value: float
    strength: float
    validation_value: float
    train_images: int
    validation_images: int | None
    validation_fraction: float | None
    test_images: int
    warnings: list[str]


@dataclass(frozen=True)
class TransferRow:
    """One line of the table.

    Attributes:
        dataset: the data set.
        status: `measured`, `not available` or `failed`.
        remarks: the reason of a failure first, then what a reader must know about the numbers.
        results: one a model, none if it could not be measured.
    """

    dataset: TransferDataset
    status: str
    remarks: list[str]
    results: list[TransferResult] = field(default_factory=list)


def summary(rows: Sequence[TransferRow], models: Sequence[str]) -> dict[str, Any]:
    """Say in a few numbers what came out.

    Args:
        rows: the table.
        models: one or two models.

    Returns:
        Of the measured data sets the value of each model in percent, of missing and failed ones
        the reason, the mean of each model over the measured ones, and for two models on how many
        sets each is better and how many are ties.
    """
    measured = [row for row in rows if row.status == "measured"]
    numbers: dict[str, Any] = {
        "measured": {
            row.dataset.name: [result.value for result in row.results] for row in measured
        },
        "not_available": {
            row.dataset.name: row.remarks[0] for row in rows if row.status == "not available"
        },
        "failed": {row.dataset.name: row.remarks[0] for row in rows if row.status == "failed"},
        "models": display_names(models),
    }
    if measured:
        values = [[row.results[index].value for row in measured] for index in range(len(models))]
        numbers["mean"] = [sum(column) / len(column) for column in values]
        if len(models) == 2:
            pairs = list(zip(*values, strict=True))
            numbers["wins"] = [
                sum(first > second for first, second in pairs),
                sum(a < b for a, b in pairs),
            ]
            numbers["ties"] = len(pairs) - sum(numbers["wins"])
    return numbers


def format_transfer(report: Mapping[str, Any]) -> str:
    """Write the values of a transfer for people.

    Args:
        report: what `transfer` returns.

    Returns:
        Lines of text, in columns; no text if nothing was measured.
    """
    if not report["measured"]:
        return ""
    metrics = {dataset.name: METRIC_LABELS[dataset.metric] for dataset in TRANSFER_DATASETS}
    rows = [["data set", "metric", *report["models"]]]
    rows += [
        [name, metrics[name], *(f"{value:.2f}" for value in values)]
        for name, values in report["measured"].items()
    ]
    rows.append(["mean", "", *(f"{value:.2f}" for value in report["mean"])])
    return format_columns(rows)


def display_names(models: Sequence[str]) -> list[str]:
    """Name models without the folders of a machine.

    Args:
        models: Hub names or folders.

    Returns:
        One name each, numbered if they are equal.
    """
    names = [public_name(model) for model in models]
    return (
        names
        if len(set(names)) == len(names)
        else [f"{name} ({index})" for index, name in enumerate(names, 1)]
    )


def write_report(
    rows: Sequence[TransferRow],
    models: Sequence[str],
    revisions: Sequence[str],
    local_copies: Mapping[str, str],
    folder: Path,
    options: Sequence[str] = (),
) -> None:
    """Write `transfer.md`, `transfer.json` and, for each model, the measurements.

    Args:
        rows: the table.
        models: one or two models.
        revisions: commit or digest of the weights of each.
        local_copies: local copies by name of the data set.
        folder: where to write.
        options: words of the command line that change the numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = _command(models, [row.dataset.name for row in rows], local_copies, options)
    page = f"{_markdown(rows, models)}\n```bash\n{command}\n```\n"
    (folder / "transfer.md").write_text(page, encoding="utf-8")
    table = [
        {
            "dataset": row.dataset.name,
            "metric": METRIC_LABELS[row.dataset.metric],
            "status": row.status,
            "remarks": row.remarks,
            "results": [asdict(result) for result in row.results],
        }
        for row in rows
    ]
    record = {
        **summary(rows, models),
        "revisions": list(revisions),
        "command": command,
        "table": table,
    }
    (folder / "transfer.json").write_text(json.dumps(record, indent=2) + "\n")
    files = (MEASUREMENTS_FILE, MEASUREMENTS_FILE.replace(".", "-2."))
    for file in files[len(models) :]:
        # Of an earlier run that compared two models.
        (folder / file).unlink(missing_ok=True)
    for index, (model, file) in enumerate(zip(models, files, strict=False)):
        measurements = [
            Measurement(
                task="transfer",
                dataset=row.dataset.name,
                split="test",
                metric=METRIC_LABELS[row.dataset.metric],
                value=row.results[index].value,
                protocol=_protocol(row.results[index]),
                command=_command([model], [row.dataset.name], local_copies, options),
            )
            for row in rows
            if row.status == "measured"
        ]
        write_measurements(measurements, folder / file)


def datasets_table() -> str:
    """Render the data sets as a Markdown table.

    Returns:
        The table of the documentation.
    """
    lines = [
        "| data set | metric | train + validation | test | name on the Hub | splits | columns | "
        "remarks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset in TRANSFER_DATASETS:
        train = str(dataset.train_images) + (
            f" + {dataset.validation_images}" if dataset.validation_images else ""
        )
        unverified = "" if dataset.sizes_verified else " (unverified)"
        splits = [dataset.train_split, dataset.validation_split or "held out", dataset.test_split]
        columns = [dataset.image_column or "by type", dataset.label_column or "by type"]
        hub = dataset.hub_name is not None
        cells = [
            dataset.name,
            METRIC_LABELS[dataset.metric],
            train + unverified,
            f"{dataset.test_images}{unverified}",
            f"`{dataset.hub_name}`" if hub else "none",
            " / ".join(splits) if hub else "",
            " / ".join(columns) if hub else "",
            dataset.note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _markdown(rows: Sequence[TransferRow], models: Sequence[str]) -> str:
    numbers = summary(rows, models)
    names = numbers["models"]
    lines = [
        "# Transfer",
        "",
        "Logistic regression on frozen features: the L2 strength chosen on validation images, the "
        "last fit on training and validation images. Numbers are percent on the test images.",
        "",
        f"| data set | metric | {' | '.join(names)} | train + validation | test | remarks |",
        "|---|---|" + "---|" * len(names) + "---|---|---|",
    ]
    for row in rows:
        cells = [row.dataset.name, METRIC_LABELS[row.dataset.metric]]
        remarks = list(row.remarks)
        if row.results:
            best = max(result.value for result in row.results)
            shown = [f"{result.value:.2f}" for result in row.results]
            compared = len(names) == 2 and len({result.value for result in row.results}) == 2
            cells += [
                f"**{text}**" if compared and result.value == best else text
                for text, result in zip(shown, row.results, strict=True)
            ]
            cells += [_training_images(row.results[0]), str(row.results[0].test_images)]
            remarks += sorted({warning for result in row.results for warning in result.warnings})
        else:
            cells += [row.status] * len(names) + ["", ""]
        lines.append(f"| {' | '.join(cells)} | {'; '.join(remarks).replace('|', chr(92) + '|')} |")
    if "mean" in numbers:
        means = " | ".join(f"{value:.2f}" for value in numbers["mean"])
        lines.append(f"| mean of {len(numbers['measured'])} | | {means} | | | |")
    if "wins" in numbers:
        wins = " | ".join(map(str, numbers["wins"]))
        lines.append(f"| wins | | {wins} | | | {numbers['ties']} ties |")
    return "\n".join(lines) + "\n"


def _training_images(result: TransferResult) -> str:
    if result.validation_images is not None:
        return f"{result.train_images} + {result.validation_images}"
    return f"{result.train_images}, {100 * (result.validation_fraction or 0):.2g} % held out"


def _protocol(result: TransferResult) -> str:
    share = result.validation_fraction
    chosen = "validation images" if share is None else f"{100 * share:.2g} % held out of train"
    return (
        f"logistic regression on frozen view features, L2 strength {result.strength:.4g} chosen on "
        f"{chosen}, last fit on train + validation"
    )


def _command(
    models: Sequence[str],
    datasets: Sequence[str],
    local_copies: Mapping[str, str],
    options: Sequence[str],
) -> str:
    """Write the command line that gives the numbers, without folders of a machine."""
    names = datasets[0] if len(datasets) == 1 else json.dumps(datasets)
    words = ["esvit", "transfer", *models, "--report", "transfer", *options]
    if len(datasets) < len(TRANSFER_DATASETS):
        words += ["--datasets", names]
    copies = {name: public_name(local_copies[name]) for name in datasets if name in local_copies}
    return shlex.join(
        [*map(public_name, words), *(["--local_copies", json.dumps(copies)] if copies else [])]
    )
