"""Features kept on disk: computed once for a model, a data set and a transform, then shared by
every task.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.common.errors import one_line
from esvit_hf.common.files import check_writable, digest_file, expand_home
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.extraction import Features, compute_features, load_image_processor

__all__ = ["FeatureStore", "default_features_folder"]

# To be raised when the same network, images and transform no longer give the same features.
_FORMAT = 1
_SOFTWARE = ("esvit-hf", "numpy", "pillow", "torch", "transformers")
_NETWORK_FILES = (
    *("config.json", "model*.safetensors", "pytorch_model*.bin", "*.index.json", "*.py"),
    # PEFT's, which AutoModel loads on top.
    "adapter_*",
)


def default_features_folder() -> Path:
    """Return the folder that features are kept in unless another is named:
    `~/.cache/esvit_hf/features`.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "esvit_hf" / "features"


class FeatureStore:
    """Features of one model, computed when they are first asked for and read from disk afterwards.

    An entry belongs to the weights (commit on the Hub, or digest of the files of a folder), the
    data (its fingerprint), the transform (configuration of the image processor), the mixed
    precision and the versions of what computes, not to names. It is one safetensors file, named
    after its content, and one JSON file that says what it is; both appear under their names only
    when they are complete. An entry that is damaged, or says that it is something else, is named
    in a warning and computed again. Several processes, of one run or of many, may share a folder.

    Args:
        folder: where entries are kept; made with the first one. Features of a loaded network, which
            has no name to find them by, are kept nowhere.
        model: Hub name or folder of any vision model that AutoModel loads, or a loaded network.
        processor: Hub name or folder whose image processor prepares the images, or the processor;
            the model's own if None.
        revision: branch, tag or commit of the model on the Hub.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
        accelerator: device, processes and mixed precision; by default what the environment says.

    Raises:
        ValueError: the folder cannot be made, or a loaded network comes without a processor.
    """

    def __init__(
        self,
        folder: Path,
        model: str | RegionBackbone,
        *,
        processor: str | Callable[..., Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int = 64,
        num_workers: int = 2,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.folder = expand_home(folder)
        self.model = expand_home(model) if isinstance(model, str) else model
        self.accelerator = accelerator or Accelerator()
        self._processor = processor
        self._revision = revision
        self._trust_remote_code = trust_remote_code
        self._batch_size = batch_size
        self._num_workers = num_workers
        if isinstance(model, RegionBackbone):
            if processor is None:
                raise ValueError(
                    "a loaded network does not say how its images are prepared: give processor, a "
                    "name or an image processor"
                )
            return
        try:
            check_writable(self.folder)
        except OSError as error:
            raise ValueError(
                f"features cannot be kept in {folder} ({error}): name another folder"
            ) from error

    @functools.cached_property
    def backbone(self) -> RegionBackbone:
        """The network, in evaluation mode on the accelerator's device; loaded when it is first
        needed.

        Raises:
            ValueError: it cannot be loaded.
        """
        backbone = self.model
        if isinstance(backbone, str):
            backbone = load_backbone(
                backbone, revision=self._revision, trust_remote_code=self._trust_remote_code
            )
        return backbone.to(self.accelerator.device).eval()

    @functools.cached_property
    def processor(self) -> Callable[..., Any]:
        """The image processor.

        Raises:
            ValueError: the model has none.
        """
        source = self._processor or self.model
        if not isinstance(source, str):
            return source
        return load_image_processor(
            source,
            revision=None if self._processor else self._revision,
            trust_remote_code=self._trust_remote_code,
        )

    @functools.cached_property
    def model_revision(self) -> str:
        """The model's commit on the Hub, or `sha256:` and the digest of configuration, weights and
        code of a folder; of a loaded network "in memory".

        Raises:
            ValueError: there is no model.
        """
        if isinstance(self.model, RegionBackbone):
            return "in memory"
        folder = Path(self.model)
        if folder.is_dir():
            files = sorted({path for pattern in _NETWORK_FILES for path in folder.glob(pattern)})
            digest = hashlib.sha256()
            for path in files:
                digest.update(f"{path.name}\0{digest_file(path)}\0".encode())
            return f"sha256:{digest.hexdigest()}"
        try:
            config = hf_hub_download(self.model, "config.json", revision=self._revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot load a model from {self.model!r} ({one_line(error)}): give a Hub name or "
                f"a folder with config.json and model.safetensors"
            ) from error
        return Path(config).parent.name

    def features(self, source: ImageSource, *, blocks: int = 1) -> Features:
        """Features of every image, from disk if they are there.

        An entry of more blocks than asked for serves fewer; an entry of fewer is replaced. Every
        process must call this and holds the complete result.

        Args:
            source: the images.
            blocks: 1 for the view feature; more for the pooled features of that many last blocks,
                concatenated.

        Returns:
            The features, with the labels of `source`.

        Raises:
            ValueError: as `compute_features`.
        """
        if isinstance(self.model, RegionBackbone):
            return self._extract(source, blocks)
        entry = _Entry(self.folder, self.identity(source))
        stored, fault = None, None
        try:
            stored = entry.read()
        except _UnusableEntryError as error:
            fault = str(error)
        usable = stored is not None and len(stored[1]) >= blocks >= 1
        # One process without the entry, for example on a machine with a disk of its own, makes all
        # compute.
        if all(gather_object([usable])):
            assert stored is not None
            labels = None if source.labels is None else torch.from_numpy(source.labels).long()
            return Features(stored[0], labels, stored[1]).last_blocks(blocks)
        if fault is not None and self.accelerator.is_local_main_process:
            warnings.warn(f"{entry.index} {fault}: its features are computed again", stacklevel=2)
        features = self._extract(source, blocks)
        if self.accelerator.is_local_main_process:
            try:
                entry.write(features, {"model": self.model, "data": source.description})
            except (OSError, SafetensorError) as error:
                warnings.warn(
                    f"features cannot be kept in {self.folder} ({error}) and will be computed "
                    f"again: make room, or name another folder",
                    stacklevel=2,
                )
        self.accelerator.wait_for_everyone()
        return features

    def _extract(self, source: ImageSource, blocks: int) -> Features:
        return compute_features(
            self.backbone,
            source,
            self.processor,
            blocks=blocks,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            accelerator=self.accelerator,
        )

    def identity(self, source: ImageSource) -> dict[str, Any]:
        """Say all that decides the features of some images.

        Args:
            source: the images.

        Returns:
            Weights, data, transform, number format and the versions of what computes, as JSON
            knows them.

        Raises:
            ValueError: there is no model, or it has no image processor.
        """
        return {
            "format": _FORMAT,
            "model_revision": self.model_revision,
            "data_fingerprint": source.fingerprint,
            "images": len(source),
            "transform": json.loads(self.processor.to_json_string()),  # type: ignore[attr-defined]
            "mixed_precision": self.accelerator.mixed_precision,
            "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
        }


class _UnusableEntryError(Exception):
    """What is wrong with an entry, as the end of a sentence about its index."""


@dataclass(frozen=True)
class _Entry:
    """The two files of one set of features.

    Attributes:
        folder: folder of all entries.
        identity: all that decides the features.
    """

    folder: Path
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def index(self) -> Path:
        return self.folder / f"{self.name}.json"

    def data(self, digest: str) -> Path:
        return self.folder / f"{self.name}-{digest[:16]}.safetensors"

    def read(self) -> tuple[Tensor, tuple[int, ...]] | None:
        """Features (N, D) and the width of each block; None if there is no entry."""
        if not self.index.exists():
            return None
        record = self._read_index()
        digest, block_widths = record["sha256"], tuple(record["block_widths"])
        path = self.data(digest)
        if not path.is_file():
            raise _UnusableEntryError(f"has lost its file {path.name}")
        try:
            intact = digest_file(path) == digest
            values = load_file(path).get("features") if intact else None
        except (OSError, SafetensorError) as error:
            raise _UnusableEntryError(f"has an unreadable file {path.name} ({error})") from error
        expected = (self.identity["images"], sum(block_widths))
        if values is None or tuple(values.shape) != expected or values.dtype != torch.float32:
            raise _UnusableEntryError(f"has a damaged file {path.name}")
        return values, block_widths

    def write(self, features: Features, origin: dict[str, str]) -> None:
        """Write the features, then the index that makes them known, then remove what the index
        named before.
        """
        try:
            replaced: str | None = self._read_index()["sha256"]
        except _UnusableEntryError:
            replaced = None
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f".{self.name}.") as partial:
            data, index = Path(partial) / "features.safetensors", Path(partial) / "index.json"
            save_file({"features": features.values.contiguous()}, data)
            digest = digest_file(data)
            record = {
                "origin": origin,
                "identity": self.identity,
                "block_widths": features.block_widths,
                "sha256": digest,
            }
            index.write_text(json.dumps(record, indent=2) + "\n")
            # safetensors writes files for their owner alone, but a folder may be shared.
            data.chmod(index.stat().st_mode)
            data.replace(self.data(digest))
            index.replace(self.index)
        if replaced is not None and replaced != digest:
            self.data(replaced).unlink(missing_ok=True)

    def _read_index(self) -> dict[str, Any]:
        try:
            record = json.loads(self.index.read_text())
        except (OSError, ValueError) as error:
            raise _UnusableEntryError(f"is unreadable ({error})") from error
        if not isinstance(record, dict) or record.get("identity") != self.identity:
            raise _UnusableEntryError("belongs to other features")
        widths, digest = record.get("block_widths"), record.get("sha256")
        if (
            not isinstance(widths, list)
            or not widths
            or not all(isinstance(width, int) and width > 0 for width in widths)
            or not isinstance(digest, str)
            or not digest.isalnum()
        ):
            raise _UnusableEntryError("lacks the width of the blocks or the digest")
        return record
