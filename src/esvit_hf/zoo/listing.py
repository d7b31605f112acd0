"""The zoo's checkpoints as records."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.zoo.entries import ENTRIES, ZooEntry

__all__ = ["EntryFilter", "list_checkpoints"]


@dataclass(frozen=True)
class EntryFilter:
    """Which entries of the zoo.

    Args:
        arch: part of the network's name, for example swin or Swin-T.
        objectives: V for the view loss alone, V+R with the region loss.
        data: part of the training data's name, for example imagenet.
    """

    arch: str | None = None
    objectives: Literal["V", "V+R"] | None = None
    data: str | None = None

    def fits(self, entry: ZooEntry) -> bool:
        """Tell whether an entry is one of them."""
        return (
            (self.arch is None or self.arch.lower() in entry.architecture.title.lower())
            and self.objectives in (None, entry.objectives)
            and (self.data is None or self.data.lower() in entry.data.name.lower())
        )


@flat_arguments
def list_checkpoints(chosen: EntryFilter) -> list[dict[str, Any]]:
    """List the checkpoints of the zoo: the authors' released ones, and this project's own.

    Returns:
        A record for each, with `name`, `kind` (`released` or `ours`), `architecture`, `objectives`,
        `data`, `training`, `license`, `release` (the authors' numbers, top-1 in percent) and
        `measurements` (numbers measured with this package).

    Raises:
        ValueError: nothing fits.
    """
    found = [entry for entry in ENTRIES if chosen.fits(entry)]
    if not found:
        raise ValueError(
            f"no entry of the zoo fits: networks are "
            f"{_names(entry.architecture.title for entry in ENTRIES)}; data are "
            f"{_names(entry.data.name for entry in ENTRIES)}"
        )
    return [_record(entry) for entry in found]


def _names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _record(entry: ZooEntry) -> dict[str, Any]:
    measurements = [asdict(measurement) for measurement in entry.measurements]
    return {"kind": entry.kind, **asdict(entry), "measurements": measurements}
