"""The file beside a pretrained model that lets pretraining continue: heads and centers of its
objectives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["HEADS_FILE", "SavedHead", "find_heads", "read_heads", "write_heads"]

HEADS_FILE = "pretraining_heads.safetensors"
"""Name of the file in the model's folder."""

_CENTER = "_center"


@dataclass(frozen=True)
class SavedHead:
    """The projection head of one objective and the center of its teacher.

    Attributes:
        state: state dict of the head.
        center: (K,) center of the teacher's logits.
    """

    state: dict[str, Tensor]
    center: Tensor


def find_heads(name_or_path: str, revision: str | None = None) -> Path | None:
    """Look for the file in a model's folder or Hub repository.

    Args:
        name_or_path: folder or Hub name.
        revision: branch, tag or commit on the Hub.

    Returns:
        Its path on this machine, None if the model brings no heads.

    Raises:
        ValueError: the Hub cannot be asked, and the cache does not know either.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder / HEADS_FILE if (folder / HEADS_FILE).is_file() else None
    try:
        return Path(hf_hub_download(name_or_path, HEADS_FILE, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except (HTTPError, LocalEntryNotFoundError) as error:
        # The cache notes what the Hub does not have, with an object of its own.
        if try_to_load_from_cache(name_or_path, HEADS_FILE, revision=revision) is _CACHED_NO_EXIST:
            return None
        raise ValueError(
            f"whether {name_or_path!r} brings {HEADS_FILE} is not known without the Hub: run once "
            f"with a connection, or `hf download {name_or_path}` and give the folder that it names"
        ) from error


def write_heads(heads: Mapping[str, SavedHead], path: Path) -> None:
    """Write heads and centers as `NAME_head.*` and `NAME_center`.

    Args:
        heads: by the name of their objective.
        path: file to write.
    """
    tensors: dict[str, Tensor] = {}
    for objective, head in heads.items():
        tensors |= {
            f"{objective}_head.{name}": tensor.cpu().contiguous()
            for name, tensor in head.state.items()
        }
        tensors[f"{objective}{_CENTER}"] = head.center.cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def read_heads(path: Path) -> dict[str, SavedHead]:
    """Read what `write_heads` wrote.

    Args:
        path: the file.

    Returns:
        The heads that the file has, by the name of their objective.

    Raises:
        ValueError: the file is unreadable, holds something else, or a head without its center.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is not a readable file of heads ({error}): replace or remove it"
        ) from error
    heads = {}
    for center in [name for name in tensors if name.endswith(_CENTER) and "." not in name]:
        objective = center.removesuffix(_CENTER)
        prefix = f"{objective}_head."
        names = [name for name in tensors if name.startswith(prefix)]
        if not names:
            raise ValueError(f"{path} has {center} without {prefix}*: replace or remove the file")
        state = {name.removeprefix(prefix): tensors.pop(name) for name in names}
        heads[objective] = SavedHead(state, tensors.pop(center))
    if tensors:
        raise ValueError(
            f"{path} has tensors of no head with a center, such as {next(iter(tensors))}: replace "
            f"or remove it"
        )
    return heads
