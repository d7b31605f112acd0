"""Find a data set by name or path: what a user types becomes one split of ``datasets.Dataset``, or
a one-line error.
"""

import glob
import json
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from PIL import Image

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import HUB_NAME

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


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
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _load_parquet_file(path, split)
    if path.is_dir():
        return _load_folder(path, split, config_name)
    if not HUB_NAME.fullmatch(name_or_path):
        raise ValueError(
            f"{name_or_path} does not exist; give a folder, a parquet file, or a name on the Hub"
        )
    return _load(
        name_or_path,
        f"'{name_or_path}' (not a path here, so taken as a name on the Hub)",
        split,
        config_name,
    )


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
        return list(json.loads((path / "dataset_dict.json").read_text())["splits"])
    if path.is_file() or (path / "state.json").is_file():
        return ["train"]
    if not _is_described(path):
        return [name for name, root in _split_roots(path).items() if _has_image(root)]
    try:
        return list(get_dataset_split_names(str(path)))
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read as a data set ({one_line(error)}); check the path"
        ) from error


def _load_parquet_file(path: Path, split: str) -> Dataset:
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
    if _is_described(path):
        return _load(str(path), str(path), split, config_name)
    roots = _split_roots(path)
    if not any(_has_image(root) for root in roots.values()):
        raise ValueError(
            f"{path} holds no parquet file and no image; check the path, or the endings of the "
            f"files"
        )
    # The patterns are given, because datasets would take words such as "train" in the names of
    # files for splits.
    data_files = {
        name: f"{glob.escape(str(root))}/**" for name, root in roots.items() if _has_image(root)
    }
    has_classes = not any(next(_images_in(root), None) for root in roots.values())
    return _load(
        "imagefolder", str(path), split, None, data_files=data_files, drop_labels=not has_classes
    )


def _is_described(path: Path) -> bool:
    """Tell whether datasets finds the splits by itself: a README may map files to splits and
    configurations.
    """
    return next(path.glob("**/*.parquet"), None) is not None or any(path.glob("metadata.*"))


def _load_saved(path: Path, split: str) -> Dataset:
    loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise ValueError(
                f"{path} has no split '{split}'; set --split to one of: {', '.join(loaded)}"
            )
        return loaded[split]
    if split != "train":
        raise ValueError(f"{path} is one data set without a split '{split}'; set --split train")
    return loaded


def _split_roots(path: Path) -> dict[str, Path]:
    """Map split names to folders: those named after splits if the folder holds nothing else, else
    the folder itself.
    """
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    roots = {
        name: folder
        for name, words in SPLIT_FOLDERS.items()
        for folder in sorted(folders)
        if folder.name.lower() in words
    }
    is_split = bool(roots) and len(roots) == len(folders) and not any(map(_is_image, entries))
    return roots if is_split else {"train": path}


def _is_image(path: Path) -> bool:
    return (
        path.suffix.lower() in Image.registered_extensions()
        and path.is_file()
        and not path.name.startswith(".")
    )


def _images_in(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if _is_image(entry))


def _has_image(folder: Path) -> bool:
    return any(_is_image(entry) for entry in folder.glob("**/*"))


def _load(
    builder: str,
    place: str,
    split: str,
    config_name: str | None,
    *,
    data_files: dict[str, str] | None = None,
    drop_labels: bool | None = None,
) -> Dataset:
    options = {} if drop_labels is None else {"drop_labels": drop_labels}
    try:
        return load_dataset(
            builder, name=config_name, split=split, data_files=data_files, **options
        )
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{place} cannot be loaded ({one_line(error)}); check the path or name, --split and "
            f"--config_name"
        ) from error
