"""Find a data set by name or path: what a user types becomes one split of ``datasets.Dataset``, or
a one-line error.
"""

import glob
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
from datasets import (
    Dataset,
    DatasetDict,
    ReadInstruction,
    concatenate_datasets,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi

from esvit_hf.common.errors import one_line
from esvit_hf.common.places import check_on_hub, find_path, is_cached, similar_path
from esvit_hf.data.image_folder import SPLIT_FOLDERS, ImageFolder, list_image_folder

ARCHIVES = {".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"}
UNPACK = "unpack it and give the folder of its files (pretraining can stream .tar files)"
UNREADABLE = (DatasetsError, OSError, ValueError, RuntimeError)
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def load_dataset_split(name_or_path: str, *, split: str, config_name: str | None = None) -> Dataset:
    """Load one split of a data set from the Hub or from disk.

    Args:
        name_or_path: name on the Hub, a folder of parquet files, one parquet file, a folder that
            ``save_to_disk`` wrote, or a folder of image files.
        split: which part of the data; slices such as ``train[:10%]`` work.
        config_name: configuration of a data set that has several.

    Returns:
        The rows.

    Raises:
        ValueError: the data cannot be found or read, or lacks the split; the message names the
            remedy.
    """
    path = _find_on_disk(name_or_path)
    if path is not None:
        return (
            _load_folder(path, split, config_name)
            if path.is_dir()
            else _load_parquet_file(path, split)
        )
    return _load(
        name_or_path,
        f"'{name_or_path}' (not a path here, so taken as a name on the Hub)",
        split,
        config_name,
    )


def split_names(name_or_path: str, config_name: str | None = None) -> list[str]:
    """Name the splits of a data set.

    Args:
        name_or_path: as for :func:`load_dataset_split`.
        config_name: configuration of a data set that has several.

    Returns:
        The names that :func:`load_dataset_split` knows.

    Raises:
        ValueError: the data cannot be found or read.
    """
    path = _find_on_disk(name_or_path)
    if path is not None:
        return local_split_names(path)
    try:
        return list(get_dataset_split_names(name_or_path, config_name))
    except UNREADABLE as error:
        raise ValueError(
            f"{name_or_path} cannot be found or read ({one_line(error)}); check the path or name, "
            f"and --config_name"
        ) from error


def local_split_names(path: Path) -> list[str]:
    """Name the splits of a data set on disk.

    Args:
        path: a folder of parquet files, one parquet file, a folder that ``save_to_disk`` wrote, or
            a folder of images.

    Returns:
        The names that :func:`load_dataset_split` knows.

    Raises:
        ValueError: the folder cannot be read as a data set.
    """
    if (path / "dataset_dict.json").is_file():
        try:
            return list(json.loads((path / "dataset_dict.json").read_text())["splits"])
        except (KeyError, *UNREADABLE) as error:
            raise _damaged_folder(path, error) from error
    if path.is_file() or (path / "state.json").is_file():
        return ["train"]
    folder = list_image_folder(path)
    if not _is_described(folder):
        return list(folder.splits()) if folder.images else []
    try:
        return list(get_dataset_split_names(str(path)))
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as a data set ({one_line(error)}); check the path"
        ) from error


def _find_on_disk(name_or_path: str) -> Path | None:
    """Return the path of data on disk, None for a name on the Hub.

    Raises:
        ValueError: it is neither.
    """
    path = find_path(name_or_path)
    if path is None:
        check_hub_data(name_or_path)
    if path is None or path.exists():
        return path
    if "://" in name_or_path:
        raise ValueError(
            f"{name_or_path} is an address, which pretraining can read while it streams; for "
            f"everything else get the data and give its folder"
        )
    raise ValueError(
        f"{name_or_path} does not exist{similar_path(path)}; give a folder, a parquet file, or a "
        f"name on the Hub"
    )


def check_hub_data(name: str) -> None:
    """Refuse a data set that the Hub does not have, without waiting.

    Args:
        name: of the data set; one that is in the cache is not asked for.

    Raises:
        ValueError: there is none, or the Hub cannot be asked.
    """
    prepared = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if prepared.is_dir() or is_cached("dataset", name):
        return
    if problem := check_on_hub(HfApi().dataset_info, name):
        raise ValueError(
            f"{name} does not exist here{similar_path(Path(name))}, and as a name on the Hub it "
            f"cannot be used: {problem}"
        )


def _load_parquet_file(path: Path, split: str) -> Dataset:
    if path.suffix in ARCHIVES:
        raise ValueError(f"{path} is an archive: {UNPACK}")
    if path.suffix != ".parquet":
        raise ValueError(f"{path} is a file but no parquet file; give a .parquet file or a folder")
    asked = split.split("[")[0]
    words_in_name = set(re.split(r"\W|_", path.stem))
    known = {"train"} | {
        name for name, words in SPLIT_FOLDERS.items() if words_in_name & set(words)
    }
    if asked not in known:
        raise ValueError(
            f"{path} is one file without a split '{asked}'; set --split train or give its folder"
        )
    return _load("parquet", str(path), split, None, data_files={asked: glob.escape(str(path))})


def _load_folder(path: Path, split: str, config_name: str | None) -> Dataset:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _load_saved(path, split)
    folder = list_image_folder(path)
    if _is_described(folder):
        return _load(str(path), str(path), split, config_name)
    archives = [other for other, reason in folder.others if reason in ARCHIVES]
    if not folder.images and archives:
        raise ValueError(f"{path} holds no image, but archives such as {archives[0]}: {UNPACK}")
    if not folder.images:
        raise ValueError(
            f"{path} holds no parquet file and no image; check the path, or the endings of the "
            f"files"
        )
    return take_slices(path, split, list(folder.splits()), folder.read)


def _is_described(folder: ImageFolder) -> bool:
    """Tell whether datasets finds the splits by itself: a README may map files to splits and
    configurations.
    """
    starts = ("", *folder.splits().values())
    described = {f"{start}{name}" for start in starts for name in METADATA_FILES}
    return any(path in described or path.endswith(".parquet") for path, _ in folder.others)


def _load_saved(path: Path, split: str) -> Dataset:
    try:
        loaded = load_from_disk(str(path))
    except (KeyError, *UNREADABLE) as error:
        raise _damaged_folder(path, error) from error
    rows = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    return take_slices(path, split, list(rows), lambda names: {name: rows[name] for name in names})


def _damaged_folder(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} looks like a folder of save_to_disk but cannot be read "
        f"({type(error).__name__}: {one_line(error)}): save the data set again"
    )


def take_slices(
    place: str | Path,
    split: str,
    available: Sequence[str],
    read: Callable[[Sequence[str]], dict[str, Dataset]],
) -> Dataset:
    """Read splits and take the parts that are asked for, as `datasets` does for its own.

    Args:
        place: path or name of the data, for messages.
        split: name of a split, or slices such as `train[:10%]+test`.
        available: names of the splits that there are.
        read: from names of splits to their rows.

    Returns:
        The rows.

    Raises:
        ValueError: there is no such split or slice.
    """
    asked = list(dict.fromkeys(part.split("[")[0].strip() for part in split.split("+")))
    missing = [name for name in asked if name not in available]
    if missing:
        raise ValueError(
            f"{place} has no split '{missing[0]}'; set --split to one of: {', '.join(available)}"
        )
    rows = read(asked)
    lengths = {name: len(part) for name, part in rows.items()}
    try:
        slices = ReadInstruction.from_spec(split).to_absolute(lengths)
    except ValueError as error:
        raise ValueError(
            f"{place}: the split '{split}' cannot be read ({one_line(error)}); set --split to one "
            f"of {', '.join(available)}, or to a slice such as {asked[0]}[:10%]"
        ) from error
    # A range that is empty must not start behind the end.
    parts = [
        rows[part.splitname].select(range(part.from_, part.to) if part.from_ < part.to else ())
        for part in slices
    ]
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _load(
    builder: str,
    place: str,
    split: str,
    config_name: str | None,
    *,
    data_files: dict[str, str] | None = None,
) -> Dataset:
    try:
        return load_dataset(builder, name=config_name, split=split, data_files=data_files)
    except UNREADABLE as error:
        raise ValueError(
            f"{place} cannot be loaded ({one_line(error)}); check the path or name, --split and "
            f"--config_name"
        ) from error
