"""Folders of image files: which files are images, and to which split and class they belong.

Splits and labels are decided split by split, and links are followed. What is left out is counted
and said in a warning.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature

from esvit_hf.data.array_files import ARRAY_ENDINGS
from esvit_hf.data.decoding import image_endings

__all__ = ["SPLIT_FOLDERS", "ImageFolder", "list_image_folder"]

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in SPLIT_FOLDERS.items() for word in words}
_REASONS_SHOWN = 10


@dataclass(frozen=True)
class ImageFolder:
    """All files below a folder.

    Attributes:
        path: the folder.
        images: paths of the image files from the folder on, sorted.
        others: path of each entry that is left out, and why.
    """

    path: Path
    images: list[str]
    others: list[tuple[str, str]]

    def splits(self) -> dict[str, str]:
        """Find the folders that stand for splits.

        Folders named after splits are splits if all images lie in them, if there are two of them,
        or if there is one for training with folders inside. Otherwise they are classes that happen
        to have such names. Names that only contain a split's, such as `train2017`, count where
        all images lie in them and there are two splits. Where all images lie in one other folder,
        its folders count; around classes such a folder is skipped, too.

        Returns:
            How the paths of each split's images start; that of all images is `train` where no
            folder stands for a split.

        Raises:
            ValueError: two folders stand for one split.
        """
        found: dict[str, str] = {}
        for outer, folders in self._single_folders(""):
            found = found or self._splits_below(outer, folders)
        return {
            split: self._around_classes(start) for split, start in (found or {"train": ""}).items()
        }

    def _single_folders(self, start: str) -> Iterator[tuple[str, set[str]]]:
        """Go down as long as all images lie in one folder: each folder and those in it."""
        while True:
            folders = {_first_folder(image) for image in self._below(start)}
            yield start, folders
            if len(folders) != 1 or "" in folders:
                return
            start += f"{folders.pop()}/"

    def _around_classes(self, start: str) -> str:
        """Skip folders that are alone, down to one with several; stay where there is none."""
        *_, (inner, folders) = self._single_folders(start)
        return start if folders == {""} else inner

    def _splits_below(self, outer: str, folders: set[str]) -> dict[str, str]:
        """Find the splits among some folders; empty where there are none."""
        named: dict[str, str] = {}
        alike: dict[str, list[str]] = {}
        for folder in sorted(folders):
            split = _SPLITS.get(folder.lower())
            if split in named:
                raise ValueError(
                    f"{self.path} has two folders for the split '{split}', {named[split]} and "
                    f"{outer}{folder}/: rename or move one of them"
                )
            if split is not None:
                named[split] = f"{outer}{folder}/"
            if (near := _split_in_name(folder)) is not None:
                alike.setdefault(near, []).append(f"{outer}{folder}/")
        if len(alike) > 1 and sum(map(len, alike.values())) == len(folders) == len(alike):
            return {split: starts[0] for split, starts in alike.items()}
        inside = {split: self._below(start) for split, start in named.items()}
        is_all = sum(map(len, inside.values())) == len(self.images)
        has_training_classes = any(map(_first_folder, inside.get("train", ())))
        return named if is_all or len(named) > 1 or has_training_classes else {}

    def read(self, splits: Sequence[str]) -> dict[str, Dataset]:
        """Make a table of each split, and say in a warning what is left out.

        A split has labels if most of its images lie in folders: the first folder is the class,
        but for one around all others.

        Args:
            splits: some of the splits that there are.

        Returns:
            Rows of each split, with the column `image`, and `label` if all of them have labels.
        """
        starts = self.splits()
        notes = self._notes_beside_splits(starts) + self._notes_about_names(starts)
        paths, labels = {}, {}
        for split in splits:
            paths[split], labels[split], note = _divide(self._below(starts[split]), split)
            notes += note
        reasons = Counter(
            reason
            for path, reason in self.others
            if any(path.startswith(starts[split]) for split in splits)
        )
        if reasons:
            shown = (f"{reason} ({count})" for reason, count in reasons.most_common(_REASONS_SHOWN))
            notes.append(f"not taken for images: {', '.join(shown)}")
        if notes:
            warnings.warn(f"{self.path}: {'; '.join(notes)}", stacklevel=2)
        classes = sorted({name for names in labels.values() for name in names or ()})
        is_labeled = all(names is not None for names in labels.values())
        return {
            split: self._table(
                starts[split], paths[split], labels[split] if is_labeled else None, classes
            )
            for split in splits
        }

    def _below(self, start: str) -> list[str]:
        """Paths of the images that start in one way, without this start."""
        return [image[len(start) :] for image in self.images if image.startswith(start)]

    def _notes_beside_splits(self, starts: dict[str, str]) -> list[str]:
        beside = [image for image in self.images if not image.startswith(tuple(starts.values()))]
        folders = Counter(_first_folder(image) for image in beside)
        return [
            f"left out, as it belongs to no split: {_count_images(count)} "
            f"{f'in {folder}/' if folder else 'beside the folders'}"
            for folder, count in folders.items()
        ]

    def _notes_about_names(self, starts: dict[str, str]) -> list[str]:
        below = (image for start in starts.values() for image in self._below(start))
        parents = {image.rpartition("/")[0] for image in below}
        folders = sorted({folder for parent in parents for folder in parent.split("/")})
        alike = {folder: split for folder in folders if (split := _split_in_name(folder))}
        # One alone may well be a class, such as train_station.
        several = len(set(alike.values())) > 1
        called = [folder for folder in alike if several or folder.lower() in _SPLITS]
        return [f"no splits, but classes or parts of them: {', '.join(called)}"] if called else []

    def _table(
        self, start: str, paths: list[str], labels: list[str] | None, classes: list[str]
    ) -> Dataset:
        root = self.path.absolute()
        columns: dict[str, list[Any]] = {"image": [f"{root}/{start}{path}" for path in paths]}
        features = Features({"image": Value("string")})
        if labels is not None:
            numbers = {name: number for number, name in enumerate(classes)}
            columns["label"] = [numbers[name] for name in labels]
            features["label"] = ClassLabel(names=classes)
        return Dataset.from_dict(columns, features=features).cast_column("image", ImageFeature())


def list_image_folder(path: Path) -> ImageFolder:
    """List all files below a folder.

    Args:
        path: the folder.

    Returns:
        Images by their endings, and what is left out: hidden entries, files of other endings, links
        to nothing or to a folder above.

    Raises:
        ValueError: a folder cannot be read.
    """
    images, others = [], []
    try:
        for entry, reason in _walk(str(path), "", frozenset(), image_endings()):
            if reason is None:
                images.append(entry)
            else:
                others.append((entry, reason))
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}): check its permissions"
        ) from error
    if not images:
        # Beside pictures such files are something else, such as masks or kept features.
        images = [entry for entry, reason in others if reason in ARRAY_ENDINGS]
        others = [(entry, reason) for entry, reason in others if reason not in ARRAY_ENDINGS]
    return ImageFolder(path, sorted(images), others)


def _walk(
    root: str, start: str, above: frozenset[tuple[int, int]], endings: frozenset[str]
) -> Iterator[tuple[str, str | None]]:
    """Paths from the root on, each with the reason why it is left out, None for images."""
    folder = f"{root}/{start}"
    status = Path(folder).stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        yield start, "links to a folder above"
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = start + entry.name
            if entry.name.startswith("."):
                yield path, "hidden"
            elif not _is_text(entry.name):
                yield path, "names that are no text"
            elif entry.is_dir():
                yield from _walk(root, f"{path}/", above | {identity}, endings)
            elif not entry.is_file():
                yield path, "links to nothing"
            else:
                ending = Path(entry.name).suffix.lower()
                yield path, None if ending in endings else ending or "without an ending"


def _divide(images: list[str], split: str) -> tuple[list[str], list[str] | None, list[str]]:
    """Choose the images of a split and the class of each, None without labels; and what to say."""
    loose = [image for image in images if not _first_folder(image)]
    inside = [image for image in images if _first_folder(image)]
    if len(loose) >= len(inside):
        notes = [
            f"{split} has no labels: {_count_images(len(loose))} beside its folders, {len(inside)} "
            f"in them"
        ]
        return images, None, notes if inside else []
    notes = [
        f"left out: {_count_images(len(loose))} beside the class folders of {split} (first "
        f"{next(iter(loose), None)})"
    ]
    return inside, [_first_folder(image) for image in inside], notes if loose else []


def _split_in_name(folder: str) -> str | None:
    """Find the only split that a folder's name speaks of, such as `val2017` or `test_images`."""
    words = re.split("[^a-z]+", folder.lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def _is_text(name: str) -> bool:
    """Tell whether a file's name can be written down as Unicode."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first_folder(path: str) -> str:
    folder, slash, _ = path.partition("/")
    return folder if slash else ""


def _count_images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
