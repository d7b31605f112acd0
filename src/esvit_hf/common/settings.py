"""Settings as dataclasses: each field states its default, its range and its help once, and plain
values of a file or a command line become checked settings.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "Setting",
    "SettingsError",
    "check_settings",
    "describe_unknown",
    "list_settings",
    "make_settings",
    "optional_kind",
    "setting",
]

_MAX_INTEGER = 2**31 - 1
_Settings = TypeVar("_Settings")
_Members = Callable[[], Mapping[str, type]]


class SettingsError(ValueError):
    """Settings that cannot work, with everything that is wrong with them.

    Args:
        problems: one sentence each, which starts with the name of the field.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


def setting(
    help: str,
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    members: _Members | None = None,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        help: what the field decides, in one sentence.
        default: its value if nothing is said; a field without it must be given.
        factory: makes the default where that is a list or a mapping.
        above: limit that a number must exceed.
        at_least: smallest number.
        at_most: largest number.
        members: for a mapping of settings, returns the settings class of each name.

    Returns:
        The field.
    """
    metadata = {"help": help, "above": above, "at_least": at_least, "at_most": at_most}
    return field(default=default, default_factory=factory, metadata=metadata | {"members": members})


@dataclass(frozen=True)
class Setting:
    """One field of nested settings.

    Attributes:
        name: name with dots, such as `optimizer.learning_rate`.
        kind: type of its values.
        entry: the field of the dataclass.
    """

    name: str
    kind: Any
    entry: Field[Any]

    @property
    def help(self) -> str:
        """What the field decides."""
        return str(self.entry.metadata["help"])

    @property
    def range(self) -> str:
        """The numbers that are allowed, in words; empty if all are."""
        return _range_in_words(self.entry.metadata)


def list_settings(kind: type, place: str = "") -> Iterator[Setting]:
    """List the fields of nested settings, depth first.

    Args:
        kind: dataclass whose fields are declared with `setting` or are such dataclasses.
        place: name with dots of the settings themselves.
    """
    for entry, field_kind in _entries(kind):
        name = _join(place, entry.name)
        members = entry.metadata.get("members")
        if is_dataclass(field_kind):
            yield from list_settings(field_kind, name)  # type: ignore[arg-type]
        elif members is not None:
            for member, member_kind in members().items():
                yield from list_settings(member_kind, _join(name, member))
        else:
            yield Setting(name, field_kind, entry)


def make_settings(
    kind: type[_Settings], values: Any, place: str = "", names: Sequence[str] = ()
) -> _Settings:
    """Turn plain values into settings, and check settings that were made by hand.

    Args:
        kind: dataclass whose fields are declared with `setting` or are such dataclasses.
        values: mapping of fields to values, or an instance.
        place: name with dots of the settings, for messages.
        names: names with dots of all fields, to guess what a wrong one means.

    Returns:
        The settings.

    Raises:
        SettingsError: a field does not exist or is missing, or a value has the wrong type or is out
            of range; all such problems together.
    """
    if isinstance(values, kind):
        values = _values(values)
    if not isinstance(values, Mapping):
        raise SettingsError([_wrong(place, "must be a mapping of fields to values", values)])
    made = _read_fields(kind, values, place, names or [each.name for each in list_settings(kind)])
    try:
        return kind(**made)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError([f"{place}: {error}"]) from error


def check_settings(settings: Any) -> None:
    """Check settings that were made by hand, and turn plain values in them into settings.

    Args:
        settings: a new instance, from its `__post_init__`.

    Raises:
        SettingsError: as `make_settings`.
    """
    for name, value in _read_fields(type(settings), _values(settings), "", ()).items():
        object.__setattr__(settings, name, value)


def _values(settings: Any) -> dict[str, Any]:
    return {entry.name: getattr(settings, entry.name) for entry in fields(settings)}


def _read_fields(
    kind: type, values: Mapping[str, Any], place: str, names: Sequence[str]
) -> dict[str, Any]:
    entries = _entries(kind)
    siblings = [entry.name for entry, _ in entries]
    problems = [
        describe_unknown(_join(place, str(name)), siblings, names)
        for name in values
        if name not in siblings
    ]
    made: dict[str, Any] = {}
    for entry, field_kind in entries:
        where = _join(place, entry.name)
        if entry.name not in values and not is_dataclass(field_kind):
            if entry.default is MISSING and entry.default_factory is MISSING:
                problems.append(f"{where} is missing")
            continue
        try:
            value = values.get(entry.name, {})
            made[entry.name] = _read_field(value, field_kind, entry, where, names)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return made


def _read_field(value: Any, kind: Any, entry: Field[Any], place: str, names: Sequence[str]) -> Any:
    if is_dataclass(kind):
        return make_settings(kind, value, place, names)  # type: ignore[arg-type]
    members = entry.metadata.get("members")
    if members is not None:
        return _make_members(members(), value, place, names)
    return _read_value(value, kind, entry.metadata, place)


def describe_unknown(name: str, siblings: Sequence[str], names: Sequence[str]) -> str:
    """Say that a field does not exist, and which one may be meant.

    Args:
        name: name with dots that was given.
        siblings: names of the fields that exist in the same place.
        names: names with dots of all fields.
    """
    place, _, leaf = name.rpartition(".")

    def likeness(candidate: str) -> tuple[float, float]:
        own = _ratio(leaf, candidate.rpartition(".")[2])
        whole = _ratio(name, candidate)
        return (own if place else max(own, whole)), whole

    near = difflib.get_close_matches(leaf, siblings, 1)
    best = _join(place, near[0]) if near else max(names, key=likeness, default="")
    if not near and (not best or likeness(best)[0] < 0.6):
        return f"{name} does not exist: {place or 'the recipe'} has {', '.join(siblings)}"
    return f"{name} does not exist: do you mean {best}?"


def _ratio(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


def optional_kind(kind: Any) -> tuple[Any, bool]:
    """Return a type without None, and whether None belonged to it."""
    if get_origin(kind) in (Union, UnionType):
        (present,) = (option for option in get_args(kind) if option is not NoneType)
        return present, True
    return kind, False


def _entries(kind: type) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return [(entry, hints[entry.name]) for entry in fields(kind)]


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _wrong(place: str, rule: str, value: Any) -> str:
    return f"{place} {rule}; it is {value!r}"


def _make_members(
    kinds: Mapping[str, type], values: Any, place: str, names: Sequence[str]
) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise SettingsError([_wrong(place, "must be a mapping", values)])
    made: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in values.items():
        if name not in kinds:
            problems.append(describe_unknown(_join(place, str(name)), list(kinds), names))
        elif value is not None:
            try:
                made[name] = make_settings(kinds[name], value, _join(place, name), names)
            except SettingsError as error:
                problems += error.problems
    if problems:
        raise SettingsError(problems)
    return made


def _read_value(value: Any, kind: Any, limits: Mapping[str, Any], place: str) -> Any:
    kind, optional = optional_kind(kind)
    if value is None:
        if optional:
            return None
        raise SettingsError([f"{place} must not be null"])
    if kind is Any:
        return value
    if is_dataclass(kind):
        return make_settings(kind, value, place)  # type: ignore[arg-type]
    if kind in (int, float):
        return _read_number(value, kind, limits, place)
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in options:
            raise SettingsError([_wrong(place, f"must be one of {', '.join(options)}", value)])
        return value
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise SettingsError([_wrong(place, "must be a list", value)])
        return _read_list(value, kind, limits, place)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise SettingsError([_wrong(place, "must be a mapping of names to values", value)])
        return dict(value)
    return _read_plain(value, kind, place)


def _read_plain(value: Any, kind: Any, place: str) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise SettingsError([_wrong(place, "must be true or false", value)])
        return value
    assert kind in (str, Path), kind
    if not isinstance(value, (str, kind)):
        raise SettingsError([_wrong(place, "must be text (in quotes if it looks else)", value)])
    if str(value) == "":
        raise SettingsError([f"{place} must not be empty"])
    return kind(value)


def _read_number(value: Any, kind: Any, limits: Mapping[str, Any], place: str) -> float:
    whole = kind is int
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise SettingsError([_wrong(place, f"must be a {'whole ' * whole}number", value)])
    if abs(value) == math.inf or value != value:
        raise SettingsError([_wrong(place, "must be a finite number", value)])
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise SettingsError([f"{place} must not exceed {_MAX_INTEGER}, it is far from it"])
    rule = _range_in_words(limits)
    if (
        (limits.get("above") is not None and not value > limits["above"])
        or (limits.get("at_least") is not None and not value >= limits["at_least"])
        or (limits.get("at_most") is not None and not value <= limits["at_most"])
    ):
        raise SettingsError([_wrong(place, f"must be {rule}", value)])
    return int(value) if whole else float(value)


def _read_list(value: Sequence[Any], kind: Any, limits: Mapping[str, Any], place: str) -> Any:
    origin, options = get_origin(kind), get_args(kind)
    kinds = options if origin is tuple else options * len(value)
    if len(kinds) != len(value):
        raise SettingsError([_wrong(place, f"must be a list of {len(kinds)} numbers", list(value))])
    made, problems = [], []
    for index, (item, item_kind) in enumerate(zip(value, kinds, strict=True)):
        try:
            made.append(_read_value(item, item_kind, limits, f"{place}[{index}]"))
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return origin(made)


def _range_in_words(limits: Mapping[str, Any]) -> str:
    above, at_least, at_most = (limits.get(name) for name in ("above", "at_least", "at_most"))
    if at_least is not None and at_most is not None:
        return f"from {at_least} to {at_most}"
    if above is not None:
        return f"above {above}" + (f", at most {at_most}" if at_most is not None else "")
    if at_least is not None:
        return f"{at_least} or more"
    return f"at most {at_most}" if at_most is not None else ""
