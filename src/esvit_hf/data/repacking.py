"""From a data pack of the reference implementation to parquet shards, as `datasets` and streaming
read them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import Features, Value
from datasets import Image as ImageFeature
from tqdm.auto import tqdm

from esvit_hf.common.files import expand_home, write_aside
from esvit_hf.common.limits import MAX_IMAGE_PIXELS, check_least
from esvit_hf.data.decoding import UndecodableImageError, open_image
from esvit_hf.data.packs import BrokenRowError, Pack, open_pack

ROW_GROUP_IMAGES = 100
"""Images of a row group, as `datasets` writes them; streaming reads one at once."""
METADATA_KEY = "esvit_repack"


def repack(
    source: Path,
    output: Path,
    *,
    shard_size: int = 10_000,
    split: str = "train",
    shuffle_seed: int | None = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> dict[str, Any]:
    """Write a pack as parquet shards, as :func:`esvit_hf.commands.shards.repack` says."""
    source, output = expand_home(source), expand_home(output)
    check_least(shard_size=(shard_size, 1), max_image_pixels=(max_image_pixels, 1))
    pack = open_pack(source)
    if len(pack) == 0:
        raise ValueError(f"{source} has no rows; check the path")
    order = np.arange(len(pack))
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(len(pack))
    features = Features({"image": ImageFeature(), "label": Value(_label_type(pack))})
    output.mkdir(parents=True, exist_ok=True)
    count = -(-len(pack) // shard_size)
    origin = {
        "rows": len(pack),
        "shard_size": shard_size,
        "shuffle_seed": shuffle_seed,
        "max_image_pixels": max_image_pixels,
    }
    images = broken = 0
    for shard in tqdm(range(count), unit="shard"):
        path = output / f"{split}-{shard:05d}-of-{count:05d}.parquet"
        rows = order[shard * shard_size : (shard + 1) * shard_size]
        if not path.is_file():
            _write_shard(pack, rows, path, features, origin)
        found = _read_report(path, origin)
        if len(found) == len(rows):
            path.unlink()
            raise ValueError(
                f"no row of {path.name} holds an image, the last one: {found[-1]}; check {source}"
            )
        images, broken = images + len(rows) - len(found), broken + len(found)
        for line in found:
            tqdm.write(f"left out: {line}")
    return {"output": str(output), "shards": count, "images": images, "left_out": broken}


def _label_type(pack: Pack) -> str:
    """Decide by the first sound row whether labels are numbers or names."""
    for row in range(len(pack)):
        try:
            return "int64" if isinstance(pack.read(row)[2], int) else "string"
        except BrokenRowError:
            continue
    raise ValueError("no row of the pack can be read; check that it is a pack of images")


def _write_shard(
    pack: Pack, rows: np.ndarray, path: Path, features: Features, origin: dict[str, Any]
) -> None:
    """Write one shard, with a report of what was left out in its metadata."""
    kind = int if features["label"].dtype == "int64" else str
    broken: list[str] = []
    with (
        write_aside(path) as aside,
        pyarrow.parquet.ParquetWriter(aside, features.arrow_schema) as writer,
    ):
        for start in range(0, len(rows), ROW_GROUP_IMAGES):
            images, labels = [], []
            for row in rows[start : start + ROW_GROUP_IMAGES].tolist():
                try:
                    name, data, label = pack.read(row)
                    if not isinstance(label, kind):
                        raise BrokenRowError(
                            f"the label {label!r} is of another kind than the others"
                        )
                    open_image(data, max_image_pixels=origin["max_image_pixels"])
                except (BrokenRowError, UndecodableImageError) as error:
                    broken.append(f"{pack.describe(row)}: {error}")
                    continue
                images.append({"bytes": data, "path": name})
                labels.append(label)
            if images:
                table = pyarrow.table(
                    {"image": images, "label": labels}, schema=features.arrow_schema
                )
                writer.write_table(table, row_group_size=ROW_GROUP_IMAGES)
        writer.add_key_value_metadata(
            {METADATA_KEY: json.dumps({"origin": origin, "left_out": broken})}
        )


def _read_report(path: Path, origin: dict[str, Any]) -> list[str]:
    """Return the rows that a shard leaves out, after checking that it belongs to this run."""
    try:
        report = json.loads(pyarrow.parquet.read_metadata(path).metadata[METADATA_KEY.encode()])
        found, left_out = report["origin"], report["left_out"]
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} was not written by esvit repack: remove it or give another output folder"
        ) from error
    if found != origin:
        raise ValueError(
            f"{path} was written with {found} and not with {origin}: give another output folder"
        )
    return list(left_out)
