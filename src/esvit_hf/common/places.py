"""Mistyped names of networks and data sets, found before anything is loaded."""

import difflib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from esvit_hf.common.errors import NoSuchModelError, one_line
from esvit_hf.common.files import HUB_NAME, expand_home

__all__ = ["check_model_place", "check_on_hub", "find_path", "is_cached", "similar_path"]

_PATH_START = re.compile(r"\.{0,2}[/\\]|\.{1,2}$|~|[A-Za-z]:\\")
_FILE_ENDING = re.compile(
    r"\.(bin|ckpt|csv|gif|jpe?g|json|jsonl|onnx|parquet|pkl|png|pth?|safetensors|tar|tiff?|tsv|txt"
    r"|webp|ya?ml|zip)$",
    re.IGNORECASE,
)
_NOT_FOUND = (401, 403, 404)


def find_path(name_or_path: str) -> Path | None:
    """Tell paths from names on the Hub.

    Args:
        name_or_path: either.

    Returns:
        The path, which may not exist; None for what can be a name on the Hub alone.
    """
    path = Path(expand_home(name_or_path))
    # NAME/MODEL may be on the Hub, unless there is a folder NAME here.
    if (
        path.exists()
        or _PATH_START.match(name_or_path)
        or ("/" not in name_or_path and _FILE_ENDING.search(name_or_path))
        or not HUB_NAME.fullmatch(name_or_path)
        or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
    ):
        return path
    return None


def similar_path(path: Path, others: Iterable[str] = ()) -> str:
    """Propose what exists and resembles a path that does not.

    Args:
        path: the path.
        others: further names that exist.

    Returns:
        `: did you mean PATH?`, or nothing.
    """
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*beside, *others], n=1)
    return f": did you mean {path.with_name(near[0])}?" if near else ""


def check_model_place(
    name_or_path: str, *, revision: str | None = None, is_network: bool = True
) -> None:
    """Refuse a network that can be neither on disk nor on the Hub, without waiting.

    Args:
        name_or_path: folder or Hub name; one that is in the cache is not asked for.
        revision: branch, tag or commit on the Hub.
        is_network: a folder must hold the configuration of a network.

    Raises:
        NoSuchModelError: there is none, or the Hub cannot be asked.
        ValueError: the folder's config.json is no JSON.
    """
    path = find_path(name_or_path)
    if path is not None:
        if path.is_dir() and is_network and not (path / "config.json").is_file():
            inside = sorted(each.parent for each in path.glob("*/config.json"))
            hint = f": did you mean {inside[0]}?" if inside else ""
            raise NoSuchModelError(
                name_or_path,
                f"cannot load a model from {name_or_path!r}: the folder holds no config.json"
                f"{hint or ': give a folder that a run or save_pretrained has written'}",
            )
        if path.is_dir():
            _check_configuration(path)
            return
        if path.is_file():
            raise NoSuchModelError(
                name_or_path,
                f"cannot load a model from {name_or_path!r}, which is a file: give the folder of a "
                f"network; esvit convert turns a checkpoint of the authors into one",
            )
        raise NoSuchModelError(
            name_or_path,
            f"cannot load a model from {name_or_path!r}: there is no such folder"
            f"{similar_path(path)}",
        )
    if name_or_path.startswith("esvit_"):
        raise NoSuchModelError(
            name_or_path,
            f"cannot load a model from {name_or_path!r}: there is no such folder"
            f"{similar_path(Path(name_or_path))}",
        )
    if is_cached("model", name_or_path):
        return
    if problem := check_on_hub(HfApi().model_info, name_or_path, revision=revision):
        raise NoSuchModelError(
            name_or_path,
            f"cannot load a model from {name_or_path!r}: there is no such folder"
            f"{similar_path(Path(name_or_path))}, and {problem}",
        )


def _check_configuration(folder: Path) -> None:
    """Refuse a configuration that was cut: not every reader of it names the file."""
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"cannot load a model from {str(folder)!r}: its config.json is damaged "
            f"({one_line(error)}): download or save the folder again"
        ) from error


def is_cached(kind: Literal["dataset", "model"], name: str) -> bool:
    """Tell whether files of a repository are in the cache of the Hub.

    Args:
        kind: of repository.
        name: of the repository.
    """
    return any(
        Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind)).glob(
            "snapshots/*"
        )
    )


def check_on_hub(ask: Callable[..., Any], name: str, **options: Any) -> str | None:
    """Ask the Hub for a repository once.

    Args:
        ask: method of `HfApi` that describes one.
        name: of the repository.
        options: further arguments.

    Returns:
        What is wrong and what to do; None if it is there, or if asking again may help.
    """
    try:
        ask(name, timeout=constants.HF_HUB_ETAG_TIMEOUT, **options)
    except GatedRepoError:
        return "the Hub gives this repository to those alone who asked for access: ask on its page"
    except RevisionNotFoundError:
        return f"the repository on the Hub has no revision {options['revision']!r}"
    except OfflineModeIsEnabled:
        return "the Hub is switched off (HF_HUB_OFFLINE), and the cache does not hold it"
    except HfHubHTTPError as error:
        if error.response.status_code not in _NOT_FOUND:
            return None
        return "the Hub has no such repository; log in with `hf auth login` if it is private"
    except (HTTPError, OSError) as error:
        return f"the Hub cannot be reached ({one_line(error, 200)}), and the cache does not hold it"
    return None
