"""Transfer: one model or two on many data sets, by logistic regression on frozen features."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from esvit_hf.evaluation.logistic import HALVINGS, STRENGTHS, logistic_probe
from esvit_hf.evaluation.report import public_name
from esvit_hf.evaluation.scoring import score
from esvit_hf.evaluation.splits import overlapping_images
from esvit_hf.evaluation.transfer_data import TransferData, load_transfer_data
from esvit_hf.evaluation.transfer_datasets import TRANSFER_DATASETS, TransferDataset
from esvit_hf.evaluation.transfer_report import TransferResult, TransferRow, summary, write_report
from esvit_hf.features.extraction import Features
from esvit_hf.features.store import FeatureStore, default_features_folder

__all__ = ["transfer"]

# To be raised when the same features and labels no longer give the same numbers.
_FORMAT = 1


def transfer(
    models: list[str],
    *,
    report: Path,
    datasets: list[str] | str = "all",
    local_copies: dict[str, str] = {},  # noqa: B006 - shown by --help, never changed
    validation_fraction: float = 0.2,
    seed: int = 0,
    features_folder: Path | None = None,
    processor: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any] | None:
    """Transfer to the 18 data sets of the paper: logistic regression on frozen features, one table.

    The L2 strength is chosen on validation images, the last fit is on training and validation
    images. A data set that is not there is listed with the reason. Finished data sets are kept in
    the report's folder, and used again while the model, the images and the settings are the same.
    The last line of the output is a JSON object.

    Args:
        models: one or two Hub names or folders of vision models that AutoModel loads.
        report: folder for transfer.md, transfer.json and measurements.json.
        datasets: all, one name, or several as '["CIFAR-10","MNIST"]'.
        local_copies: local copies by name, as '{"CIFAR-10":"path"}'; others are looked for on the
            Hub.
        validation_fraction: held-out share of the training images where a data set has no
            validation images.
        seed: of the held-out draw.
        features_folder: where features are kept; ~/.cache/esvit_hf/features if not given.
        processor: Hub name or folder whose image processor prepares the images; the models' own if
            not given.
        trust_remote_code: run code that the models' repositories ship.
        batch_size: images at once on each device while features are computed.
        num_workers: processes that decode images, for each device.
        mixed_precision: number format of the features' computation.

    Returns:
        The report's folder, what was measured, what is missing, the mean and the wins; None on
        processes but the first.

    Raises:
        ValueError: a model, a name, a path or a setting does not work; the message names the
            remedy.
    """
    chosen = _choose(datasets, local_copies)
    if not 1 <= len(models) <= 2:
        raise ValueError(f"{len(models)} models are given: name one, or two to compare")
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"validation_fraction is {validation_fraction}: choose a share between 0 and 1, such "
            f"as 0.2"
        )
    try:
        (report / "results").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--report {report} is no folder to write to ({error}): name another one"
        ) from error
    accelerator = Accelerator(mixed_precision=mixed_precision)
    stores = [
        FeatureStore(
            features_folder or default_features_folder(),
            model,
            processor=processor,
            trust_remote_code=trust_remote_code,
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
        for model in models
    ]
    for store in stores:
        # A model that cannot be used is an error of the whole run, not of one data set.
        store.processor, store.backbone  # noqa: B018
    runner = _Runner(stores, report / "results", validation_fraction, seed)
    progress = tqdm(
        chosen, desc="transfer", unit="data set", disable=not accelerator.is_main_process
    )
    rows = [runner.measure(dataset, local_copies.get(dataset.name)) for dataset in progress]
    if not accelerator.is_main_process:
        return None
    options = {
        "validation_fraction": (validation_fraction, 0.2),
        "seed": (seed, 0),
        "processor": (processor, None),
        "trust_remote_code": (trust_remote_code, False),
        "mixed_precision": (mixed_precision, "no"),
    }
    words = [
        word
        for name, (value, usual) in options.items()
        if value != usual
        for word in (f"--{name}", str(value))
    ]
    write_report(
        rows, models, [store.model_revision for store in stores], local_copies, report, words
    )
    return {"report": str(report), **summary(rows, models)}


@dataclass(frozen=True)
class _Runner:
    """Measures one data set after the other.

    Attributes:
        stores: features of each model.
        folder: where finished results are kept.
        validation_fraction: held-out share where a data set has no validation images.
        seed: of the held-out draw.
    """

    stores: list[FeatureStore]
    folder: Path
    validation_fraction: float
    seed: int

    @property
    def is_main(self) -> bool:
        return self.stores[0].accelerator.is_main_process

    def measure(self, dataset: TransferDataset, path: str | None) -> TransferRow:
        """Measure every model; the row is complete on the first process alone."""
        data, reason = None, ""
        try:
            data = load_transfer_data(dataset, path)
        except ValueError as error:
            reason = _public(error, path)
        # A data set that one process misses is missing for all: they compute together.
        reason = next(filter(None, gather_object([reason])), "")
        if data is None or reason:
            return TransferRow(dataset, status="not available", remarks=[reason])
        remarks = [dataset.note] if dataset.note and path is None else []
        remarks += data.remarks + (
            [] if dataset.sizes_verified else ["published sizes are not verified"]
        )
        try:
            results = self._results(dataset, data)
        except ValueError as error:
            return TransferRow(dataset, status="failed", remarks=[_public(error, path), *remarks])
        return TransferRow(dataset, status="measured", remarks=remarks, results=results)

    def _results(self, dataset: TransferDataset, data: TransferData) -> list[TransferResult]:
        keys = [self._key(store, dataset, data) for store in self.stores]
        kept: list[TransferResult | None] = (
            [self._read(dataset, key) for key in keys] if self.is_main else []
        )
        (kept,) = broadcast_object_list([kept])
        # Features first, which all processes compute, then what the first process does alone.
        features = [
            None
            if result
            else {name: store.features(source) for name, source in data.sources.items()}
            for store, result in zip(self.stores, kept, strict=True)
        ]
        if not self.is_main:
            return []
        results = []
        for key, result, rows in zip(keys, kept, features, strict=True):
            if result is None:
                assert rows is not None
                result = self._probe(dataset, data, rows)
                self._write(dataset, key, result)
            results.append(result)
        return results

    def _probe(
        self, dataset: TransferDataset, data: TransferData, features: Mapping[str, Features]
    ) -> TransferResult:
        validation = (
            (features["validation"].values, data.labels["validation"])
            if "validation" in features
            else None
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            result = logistic_probe(
                features["train"].values,
                data.labels["train"],
                features["test"].values,
                strengths=STRENGTHS,
                halvings=HALVINGS,
                validation=validation,
                validation_fraction=self.validation_fraction,
                multi_label=dataset.multi_label,
                metric=dataset.metric,
                seed=self.seed,
                device=self.stores[0].accelerator.device,
            )
        complaints = {str(warning.message) for warning in caught}
        for name, source in data.sources.items():
            repeated = overlapping_images(source, data.sources["test"]) if name != "test" else []
            if repeated:
                complaints.add(f"{len(repeated)} test images are {name} images too")
        return TransferResult(
            value=100 * score(dataset.metric, result.scores, data.labels["test"]),
            strength=result.strength,
            validation_value=100 * result.validation[result.strength],
            train_images=len(data.labels["train"]),
            validation_images=None if validation is None else len(data.labels["validation"]),
            validation_fraction=self.validation_fraction if validation is None else None,
            test_images=len(data.labels["test"]),
            warnings=sorted(complaints),
        )

    def _key(
        self, store: FeatureStore, dataset: TransferDataset, data: TransferData
    ) -> dict[str, Any]:
        """All that decides a result, as JSON knows it."""
        return {
            "format": _FORMAT,
            "dataset": dataset.name,
            "metric": dataset.metric,
            "features": {name: store.identity(source) for name, source in data.sources.items()},
            "labels": data.label_digest,
            "search": [list(STRENGTHS), HALVINGS],
            "validation_fraction": None
            if "validation" in data.sources
            else self.validation_fraction,
            "seed": self.seed,
        }

    def _file(self, dataset: TransferDataset, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{re.sub('[^a-z0-9]+', '-', dataset.name.lower())}-{digest}.json"

    def _read(self, dataset: TransferDataset, key: dict[str, Any]) -> TransferResult | None:
        path = self._file(dataset, key)
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
            return TransferResult(**record["result"]) if record["key"] == key else None
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(
                f"{path} is damaged ({error}): {dataset.name} is measured again", stacklevel=2
            )
            return None

    def _write(self, dataset: TransferDataset, key: dict[str, Any], result: TransferResult) -> None:
        path = self._file(dataset, key)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"key": key, "result": asdict(result)}, indent=2) + "\n")
        partial.replace(path)


def _public(error: ValueError, path: str | None) -> str:
    """The message in one line, without the folders of a local copy: the report may be published."""
    message = " ".join(str(error).split())
    if path is None:
        return message
    return message.replace(str(Path(path).expanduser()), public_name(path)).replace(
        path, public_name(path)
    )


def _choose(datasets: list[str] | str, local_copies: Mapping[str, str]) -> list[TransferDataset]:
    known = {dataset.name: dataset for dataset in TRANSFER_DATASETS}
    names = (
        list(known) if datasets == "all" else [datasets] if isinstance(datasets, str) else datasets
    )
    for option, given in (("--datasets", names), ("--local_copies", local_copies)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"{option} names {unknown[0]!r}: choose all, or from {', '.join(known)}"
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--datasets names {names}: name at least one, and none twice")
    for name, path in local_copies.items():
        if not Path(path).expanduser().exists():
            raise ValueError(
                f"--local_copies gives {path} for {name}, which does not exist: correct the path"
            )
    return [known[name] for name in names]
