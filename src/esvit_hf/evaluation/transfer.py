"""The verb `transfer`: one model or two on many data sets, by logistic regression on frozen
features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from esvit_hf.common.accelerator_state import own_accelerator_state, start_accelerator
from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.files import check_writable
from esvit_hf.common.limits import check_least
from esvit_hf.common.options import Compute, DataSource
from esvit_hf.evaluation.command_words import flag
from esvit_hf.evaluation.transfer_datasets import TRANSFER_DATASETS, TransferDataset
from esvit_hf.evaluation.transfer_report import summary, write_report

__all__ = ["transfer"]


@flat_arguments
@own_accelerator_state()
def transfer(
    models: Sequence[str | Path],
    *,
    report: str | Path,
    datasets: str | Sequence[str] = "all",
    local_copies: dict[str, str | Path] = {},  # noqa: B006 - shown by --help, never changed
    validation_fraction: float = 0.2,
    seed: int = 0,
    features_folder: str | Path | None = None,
    processor: str | Path | None = None,
    trust_remote_code: bool = False,
    max_image_pixels: int = DataSource.max_image_pixels,
    batch_size: int = Compute.batch_size,
    num_workers: int = Compute.num_workers,
    mixed_precision: Literal["no", "bf16", "fp16"] = Compute.mixed_precision,
) -> dict[str, Any] | None:
    """Transfer to the 18 data sets of the paper: logistic regression on frozen features, one table.

    The L2 strength is chosen on validation images, the last fit is on training and validation
    images. A data set that is not there is listed with the reason. Finished data sets are kept in
    the report's folder, and used again while the model, the images and the settings are the same.

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

    Returns:
        The report's folder, what was measured, what is missing, the mean and the wins; None on
        processes but the first.

    Raises:
        ValueError: a model, a name, a path or a setting does not work, or no data set could be
            measured; the message names the remedy.
    """
    check_least(
        batch_size=(batch_size, 1),
        num_workers=(num_workers, 0),
        max_image_pixels=(max_image_pixels, 1),
    )
    copies = {name: str(path) for name, path in local_copies.items()}
    chosen = _choose(datasets, copies)
    names = [str(model) for model in models]
    folder = Path(report)
    if not 1 <= len(names) <= 2:
        raise ValueError(f"{len(names)} models are given: name one, or two to compare")
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"validation_fraction is {validation_fraction}: choose a share between 0 and 1, such "
            f"as 0.2"
        )
    try:
        check_writable(folder / "results")
    except OSError as error:
        raise ValueError(
            f"--report {folder} is no folder to write to ({error}): name another one"
        ) from error
    # Imported late: the help of the command line comes from this module, without torch.

    from esvit_hf.evaluation.transfer_running import TransferRunner
    from esvit_hf.features.store import FeatureStore, default_features_folder

    accelerator = start_accelerator(mixed_precision)
    stores = [
        FeatureStore(
            Path(features_folder or default_features_folder()),
            model,
            processor=None if processor is None else str(processor),
            trust_remote_code=trust_remote_code,
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
        for model in names
    ]
    for store in stores:
        # A model that cannot be used is an error of the whole run, not of one data set.
        store.backbone, store.processor  # noqa: B018
    runner = TransferRunner(stores, folder / "results", validation_fraction, seed, max_image_pixels)
    progress = tqdm(
        chosen, desc="transfer", unit="data set", disable=not accelerator.is_main_process
    )
    rows = [runner.measure(dataset, copies.get(dataset.name)) for dataset in progress]
    if not accelerator.is_main_process:
        return None
    options = {
        "validation_fraction": (validation_fraction, 0.2),
        "seed": (seed, 0),
        "processor": (processor, None),
        "trust_remote_code": (trust_remote_code, False),
        "max_image_pixels": (max_image_pixels, DataSource.max_image_pixels),
        "mixed_precision": (mixed_precision, "no"),
    }
    words = [word for name, (value, usual) in options.items() for word in flag(name, value, usual)]
    revisions = [store.model_revision for store in stores]
    write_report(rows, names, revisions, copies, folder, words)
    if not any(row.results for row in rows):
        raise ValueError(
            f"no data set could be measured ({rows[0].dataset.name}: {rows[0].remarks[0]}): "
            f"{folder / 'transfer.md'} has the reason of each"
        )
    return {"report": str(folder), **summary(rows, names)}


def _choose(
    datasets: str | Sequence[str], local_copies: Mapping[str, str]
) -> list[TransferDataset]:
    known = {dataset.name: dataset for dataset in TRANSFER_DATASETS}
    names = (
        list(known) if datasets == "all" else [datasets] if isinstance(datasets, str) else datasets
    )
    for option, given, choice in (
        ("--datasets", names, "all, or from"),
        ("--local_copies", local_copies, "from"),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{option} names {unknown[0]!r}: choose {choice} {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--datasets names {names}: name at least one, and none twice")
    for name, path in local_copies.items():
        if not Path(path).expanduser().exists():
            raise ValueError(
                f"--local_copies gives {path} for {name}, which does not exist: correct the path"
            )
    return [known[name] for name in names]
