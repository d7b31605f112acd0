"""What of a folder goes to the Hub: a copy of exactly that, and the check that nothing else is in
it.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from esvit_hf.hub.recipe_file import RECIPE_FILE, public_recipe

__all__ = ["check_files", "copy_for_hub", "foreign_code"]

_OWN_CODE = Path(__file__).parents[1] / "models"
_BELONGS = re.compile(r".*\.(safetensors|json|md|py|png|svg|webp)|metrics\.jsonl|recipe\.yaml")
# What training programs leave beside a model; it stays here.
_LEFT_OUT = re.compile(r"\..*|__pycache__|checkpoints|checkpoint-\d+|logs|runs|training_args\.bin")
_TOKEN = re.compile(r"\bhf_(?:oauth_|jwt_)?[A-Za-z0-9]{30,}")
# Two or more parts at the start of a word: no part of a web address or pattern, no `and/or`.
_ABSOLUTE_PATH = re.compile(
    r"(?<![\w/.:~<>)\]}*?+@%&!-])(?:/(?:[\w.~@+-]+/)+[\w.~@+-]+|[A-Za-z]:\\[\w.~-]+)"
)


def copy_for_hub(source: Path, target: Path) -> list[str]:
    """Copy what of a model folder belongs on the Hub.

    Args:
        source: folder of a model, such as the output of a run.
        target: folder to write; its parent exists.

    Returns:
        Names in `source` that stay behind: checkpoints, logs, hidden files.

    Raises:
        ValueError: something is missing, or is there that does not belong on the Hub.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder: give the folder of a saved model")
    missing = [name for name in ("config.json", "*.safetensors") if not any(source.glob(name))]
    if missing:
        raise ValueError(
            f"{source} has no {' and no '.join(missing)}: save the model with save_pretrained"
        )
    left_out = []
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if _LEFT_OUT.fullmatch(entry.name):
            left_out.append(entry.name)
        elif entry.is_file() and _BELONGS.fullmatch(entry.name):
            if entry.name == RECIPE_FILE:
                text = public_recipe(entry.read_text(encoding="utf-8"))
                (target / entry.name).write_text(text, encoding="utf-8")
            else:
                shutil.copyfile(entry, target / entry.name)
        else:
            raise ValueError(
                f"{entry} does not belong on the Hub, where safetensors, json, md, py and figures "
                f"(png, svg, webp) go: move it out of the folder"
            )
    return left_out


def foreign_code(folder: Path) -> list[str]:
    """Find code that loading a folder would run and that is not what this package writes.

    Args:
        folder: of a model, that has passed `check_files`.

    Returns:
        Names of files, and of classes that a JSON file takes from another place.
    """
    files = [
        path.name
        for path in sorted(folder.rglob("*.py"))
        if not (_OWN_CODE / path.name).is_file()
        or path.read_bytes() != (_OWN_CODE / path.name).read_bytes()
    ]
    places = [
        place
        for path in sorted(folder.glob("*.json"))
        for place in _places_of_code(json.loads(path.read_text(encoding="utf-8")))
    ]
    return files + places


def check_files(folder: Path) -> None:
    """Check that a built folder holds tensors as safetensors, text that says nothing of this
    machine, and no token.

    Args:
        folder: what is about to be published.

    Raises:
        ValueError: a file is unreadable, or has a token or an absolute path in it; the token is not
            shown.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        if not _BELONGS.fullmatch(name):
            raise ValueError(f"{name} does not belong on the Hub: remove it")
        if path.suffix in (".png", ".webp"):
            continue
        for text in _texts(path, name):
            if _TOKEN.search(text):
                raise ValueError(
                    f"{name} contains an access token: remove it, and revoke the token in your "
                    f"settings"
                )
            if found := _ABSOLUTE_PATH.search(text):
                raise ValueError(
                    f"{name} contains the path {found[0]!r} of this machine: remove it"
                )


def _texts(path: Path, name: str) -> Iterator[str]:
    """Yield all text of a file: what is written in it, or the metadata of its tensors."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                yield from (tensors.metadata() or {}).values()
        elif path.suffix == ".json":
            yield from _strings(json.loads(path.read_text(encoding="utf-8")))
        else:
            yield path.read_text(encoding="utf-8")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{name} is not readable ({error}): write it again") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _places_of_code(value: Any) -> Iterator[str]:
    """Yield the classes that transformers would take from another folder or repository."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "auto_map":
                yield from (text for text in _strings(item) if "--" in text)
            else:
                yield from _places_of_code(item)
