"""Where rows of features go: one file or many, written part by part, continued after a stop."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from esvit_hf.common.files import check_writable, write_aside
from esvit_hf.features.row_files import WRITERS, WRITERS_OF_REGIONS, companion, write_rows

__all__ = ["PartRecord", "RowOutput"]

SHARD_NAME = "features-{shard:05d}.parquet"
_SHARD_FIELD = re.compile(r"\{shard(:[^{}]*)?\}")


@dataclass(frozen=True)
class PartRecord:
    """What was written of a part.

    Attributes:
        rows: number of rows.
        dimension: channels of a feature, 0 without rows.
        broken: what is wrong with the images left out, by name.
    """

    rows: int
    dimension: int
    broken: dict[str, str]


class RowOutput:
    """A file, or the shards of a folder.

    Parts are kept as they are computed: as shards, or for a single file in a hidden folder beside
    it. A record in that folder says that a part is complete, so that a run that was stopped goes on
    behind it. The folder disappears when all is done.

    Args:
        output: file to write, its ending says the format; or a folder, or a pattern with `{shard}`,
            for one file a part.
        regions: whether rows have regions.
        overwrite: replace what is there, also what a stopped run left.

    Attributes:
        state: the hidden folder.

    Raises:
        ValueError: a name or format that does not work, a place that cannot be written to, or
            something is there already; the message names the remedy.
    """

    def __init__(self, output: str | Path, *, regions: bool, overwrite: bool) -> None:
        path = Path(output).expanduser()
        if str(output).endswith("/") or path.is_dir() or (not path.suffix and path.name):
            path = path / SHARD_NAME
        self._path = path
        self._pattern = _SHARD_FIELD.search(path.name)
        self._overwrite = overwrite
        name = re.sub(r"[^\w.-]", "_", path.name)
        self.state = path.with_name(f".{name}.parts")
        self._check_name(regions)
        self._check_place()

    @property
    def has_shards(self) -> bool:
        """Whether every part is a file of its own."""
        return self._pattern is not None

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse to go on with what a stopped run left if it does not fit; write nothing.

        Args:
            settings: all that decides the rows, as JSON knows it.

        Raises:
            ValueError: a stopped run with other settings left parts.
        """
        kept = self.state / "settings.json"
        if self._overwrite or not kept.is_file():
            return
        earlier = json.loads(kept.read_text())
        different = [
            name
            for name in sorted({*earlier, *settings})
            if earlier.get(name) != settings.get(name)
        ]
        if different:
            raise ValueError(
                f"{self._path} was begun with another {' and another '.join(different)}: call it "
                f"as before to go on, or start anew with --overwrite"
            )

    def is_kept(self, number: int) -> bool:
        """Tell whether a part need not be computed, as a stopped run left it complete."""
        return not self._overwrite and self._record(number).is_file()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Prepare to write, on one process, after `check`.

        Args:
            settings: as for `check`.
        """
        if self._overwrite:
            shutil.rmtree(self.state, ignore_errors=True)
            for path in self._existing() if self.has_shards else ():
                path.unlink()
        self.state.mkdir(parents=True, exist_ok=True)
        with write_aside(self.state / "settings.json") as aside:
            aside.write_text(json.dumps(settings, indent=2) + "\n")

    def write_part(
        self, number: int, table: pyarrow.Table | None, broken: Mapping[str, str]
    ) -> None:
        """Keep a part.

        Args:
            number: of the part.
            table: its rows, None if there are none.
            broken: what is wrong with the images left out, by name.
        """
        rows = dimension = 0
        if table is not None:
            rows, dimension = table.num_rows, table.schema.field("feature").type.list_size
            write_rows(self._part(number), iter([table]), rows)
        record = {"rows": rows, "dimension": dimension, "broken": dict(broken)}
        with write_aside(self._record(number)) as aside:
            aside.write_text(json.dumps(record) + "\n")

    def finish(self, parts: int) -> tuple[list[Path], list[PartRecord]]:
        """Put the parts together and tidy up, on one process, when all parts are complete.

        Args:
            parts: number of parts.

        Returns:
            The files with rows, and the records of all parts.

        Raises:
            ValueError: there is no row at all.
        """
        records = [
            PartRecord(**json.loads(self._record(number).read_text())) for number in range(parts)
        ]
        filled = [self._part(number) for number in range(parts) if records[number].rows]
        if filled and not self.has_shards:
            rows = sum(record.rows for record in records)
            write_rows(self._path, _read_tables(filled), rows)
            filled = [self._path]
        shutil.rmtree(self.state)
        if not filled:
            name, reason = next(iter(records[0].broken.items()))
            raise ValueError(
                f"none of the images can be decoded, the first is {name} ({reason}): check the data"
            )
        return filled, records

    def _check_name(self, regions: bool) -> None:
        endings = ", ".join(WRITERS)
        if self._path.suffix not in WRITERS:
            raise ValueError(
                f"--output is {self._path}: give a name that ends in {endings}, or a folder (with "
                f"a slash at its end)"
            )
        if regions and self._path.suffix not in WRITERS_OF_REGIONS:
            raise ValueError(
                f"--output is {self._path}, which cannot hold regions: give a name that ends in "
                f"{' or '.join(WRITERS_OF_REGIONS)}"
            )
        if self._pattern is None and "{" in self._path.name:
            raise ValueError(
                f"--output is {self._path}: number the files by {{shard}} or {{shard:05d}}"
            )
        if self._pattern is not None:
            try:
                self._part(0)
            except ValueError as error:
                raise ValueError(
                    f"--output is {self._path} ({error}): number the files by {{shard}} or "
                    f"{{shard:05d}}"
                ) from error

    def _check_place(self) -> None:
        folder = self._path.parent
        try:
            check_writable(folder)
        except OSError as error:
            raise ValueError(
                f"--output is {self._path}, and nothing can be written to {folder} ({error}): "
                f"choose another place"
            ) from error
        there = next(iter(self._existing()), None)
        if there is not None and not self._overwrite and not self.state.is_dir():
            raise ValueError(
                f"{there} is there already: choose another --output, or replace it with --overwrite"
            )

    def _existing(self) -> list[Path]:
        """Files of this output that are there."""
        if self._pattern is None:
            return [path for path in (self._path, companion(self._path)) if path.is_file()]
        start, end = (
            self._path.name[: self._pattern.start()],
            self._path.name[self._pattern.end() :],
        )
        shard = re.compile(rf"{re.escape(start)}\d+{re.escape(end)}(\.rows\.csv)?")
        folder = self._path.parent
        return [path for path in folder.glob("*") if shard.fullmatch(path.name)]

    def _part(self, number: int) -> Path:
        if self._pattern is None:
            return self.state / f"{number:05d}.parquet"
        start, end = self._pattern.span()
        name = self._path.name
        shard = format(number, (self._pattern[1] or ":")[1:])
        return self._path.with_name(f"{name[:start]}{shard}{name[end:]}")

    def _record(self, number: int) -> Path:
        return self.state / f"{number:05d}.json"


def _read_tables(paths: list[Path]) -> Iterator[pyarrow.Table]:
    for path in paths:
        # Memory that is given back at once: rows of the whole file pass through here.
        yield pyarrow.parquet.read_table(path, use_threads=False)
