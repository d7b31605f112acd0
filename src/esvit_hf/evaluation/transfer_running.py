"""Measuring models on one transfer data set after the other, with finished results kept."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import public_name, write_aside
from esvit_hf.evaluation.classifiers.logistic_regression import (
    HALVINGS,
    STRENGTHS,
    logistic_probe,
)
from esvit_hf.evaluation.scoring import score
from esvit_hf.evaluation.splits import overlapping_images
from esvit_hf.evaluation.transfer_data import TransferData, load_transfer_data
from esvit_hf.evaluation.transfer_datasets import TransferDataset
from esvit_hf.evaluation.transfer_report import TransferResult, TransferRow
from esvit_hf.features.extraction import Features
from esvit_hf.features.store import FeatureStore

__all__ = ["TransferRunner"]

# To be raised when the same features and labels no longer give the same numbers.
_FORMAT = 1


@dataclass(frozen=True)
class TransferRunner:
    """Measures one data set after the other.

    Attributes:
        stores: features of each model.
        folder: where finished results are kept.
        validation_fraction: held-out share where a data set has no validation images.
        seed: of the held-out draw.
        max_image_pixels: images with more pixels count as broken.
    """

    stores: list[FeatureStore]
    folder: Path
    validation_fraction: float
    seed: int
    max_image_pixels: int

    @property
    def _is_main(self) -> bool:
        return self.stores[0].accelerator.is_main_process

    def measure(self, dataset: TransferDataset, path: str | None) -> TransferRow:
        """Measure every model; the row is complete on the first process alone."""
        data, reason = None, ""
        try:
            data = load_transfer_data(dataset, path, max_image_pixels=self.max_image_pixels)
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
            [self._read(dataset, key) for key in keys] if self._is_main else []
        )
        (kept,) = broadcast_object_list([kept])
        # Features first, which all processes compute, then what the first process does alone.
        features = [
            None
            if result
            else {name: store.features(source) for name, source in data.sources.items()}
            for store, result in zip(self.stores, kept, strict=True)
        ]
        if not self._is_main:
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
            validation_fraction=result.validation_share if validation is None else None,
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
        record = {"key": key, "result": asdict(result)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_aside(self._file(dataset, key)) as path:
            path.write_text(json.dumps(record, indent=2) + "\n")


def _public(error: ValueError, path: str | None) -> str:
    """The message in one line, without the folders of a local copy: the report may be published."""
    message = one_line(error, limit=2000)
    if path is None:
        return message
    return message.replace(str(Path(path).expanduser()), public_name(path)).replace(
        path, public_name(path)
    )
