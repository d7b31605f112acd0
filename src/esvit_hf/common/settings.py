"""Settings as dataclasses: each field states its default, its range and its help once, and plain
values of a file or a command line become checked settings.
"""

import difflib
import functools
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
    members: Callable[[], Mapping[str, type]] | None = None,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        help: what the field decides, in one sentence.
        default: its value if nothing is said; a field without it must be given.
        factory: makes the default where that is a list or a mapping.
        above: limit that every number in the field must exceed.
        at_least: smallest number.
        at_most: largest number.
        members: for a mapping of settings, returns the settings class of each name.

    Returns:
        The field.
    """
    limits = {"above": above, "at_least": at_least, "at_most": at_most}
    metadata = {"help": help, "members": members, **limits}
    return field(default=default, default_factory=factory, metadata=metadata)


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
    def limits(self) -> str:
        """The numbers that are allowed, in words; empty if all are."""
        return _limits_in_words(self.entry.metadata)

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return _is_required(self.entry)

    @property
    def default(self) -> Any:
        """Its value if nothing is said; None for a field that must be given."""
        if self.entry.default_factory is not MISSING:
            return self.entry.default_factory()
        return None if self.required else self.entry.default


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
            assert isinstance(field_kind, type)
            yield from list_settings(field_kind, name)
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
        names: names with dots of all fields around, to guess what a wrong one means.

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
    names = names or [each.name for each in list_settings(kind)]
    made = _read_fields(kind, values, place, names)
    try:
        return kind(**made)
    except SettingsError as error:
        raise SettingsError([_join(place, problem) for problem in error.problems]) from error


def check_settings(settings: Any) -> None:
    """Check settings that were made by hand, and turn plain values in them into settings.

    Args:
        settings: a new instance, from its `__post_init__`.

    Raises:
        SettingsError: as `make_settings`.
    """
    for name, value in _read_fields(type(settings), _values(settings), "", ()).items():
        object.__setattr__(settings, name, value)


def describe_unknown(name: str, siblings: Sequence[str], names: Sequence[str]) -> str:
    """Say that a field does not exist, and which one may be meant.

    Args:
        name: name with dots that was given.
        siblings: names of the fields that exist in the same place.
        names: names with dots of all fields.
    """
    place, _, leaf = name.rpartition(".")
    near = [_join(place, each) for each in difflib.get_close_matches(leaf, siblings, 1)]
    leaves = [each.rpartition(".")[2] for each in names]
    close = difflib.get_close_matches(leaf, leaves, 1, 0.8)
    elsewhere = [each for each in names if each.rpartition(".")[2] in close]
    near += difflib.get_close_matches(name, elsewhere, 1, 0.0)
    near += difflib.get_close_matches(name, names, 1, 0.8 if place else 0.6)
    shown = name if name.isprintable() else repr(name)
    if near:
        return f"{shown} does not exist: did you mean {near[0]}?"
    return f"{shown} does not exist: use one of {', '.join(siblings)}"


def optional_kind(kind: Any) -> tuple[Any, bool]:
    """Return a type without None, and whether None belonged to it."""
    if get_origin(kind) in (Union, UnionType):
        (present,) = (option for option in get_args(kind) if option is not NoneType)
        return present, True
    return kind, False


@functools.cache
def _entries(kind: type) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return [(entry, hints[entry.name]) for entry in fields(kind)]


def _values(settings: Any) -> dict[str, Any]:
    return {entry.name: getattr(settings, entry.name) for entry in fields(settings)}


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _wrong(place: str, rule: str, value: Any) -> str:
    return f"{place} {rule}; it is {value!r}"


def _is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _read_fields(
    kind: type, values: Mapping[str, Any], place: str, names: Sequence[str]
) -> dict[str, Any]:
    """Read the values that are given; those that are not have a default."""
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
        # Settings that are left out may still miss a field that has to be given.
        if entry.name not in values and not is_dataclass(field_kind):
            problems += [f"{where} is missing"] if _is_required(entry) else []
            continue
        try:
            value = values.get(entry.name, {})
            made[entry.name] = _read_field(value, field_kind, entry.metadata, where, names)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return made


def _read_field(
    value: Any, kind: Any, metadata: Mapping[str, Any], place: str, names: Sequence[str]
) -> Any:
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return make_settings(kind, value, place, names)
    if metadata.get("members") is not None:
        return _read_members(value, metadata["members"](), place, names)
    return _read_value(value, kind, metadata, place)


def _read_members(
    values: Any, kinds: Mapping[str, type], place: str, names: Sequence[str]
) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise SettingsError([_wrong(place, "must be a mapping of names to settings", values)])
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
    origin, options = get_origin(kind), get_args(kind)
    if kind in (int, float):
        return _read_number(value, kind, limits, place)
    if origin in (list, tuple):
        return _read_list(value, kind, limits, place)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return make_settings(kind, value, place)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise SettingsError([_wrong(place, "must be a mapping of names to values", value)])
        return dict(value)
    if origin is Literal:
        if value not in options:
            raise SettingsError([_wrong(place, f"must be one of {', '.join(options)}", value)])
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise SettingsError([_wrong(place, "must be true or false", value)])
        return value
    return _read_text(value, kind, place)


def _read_text(value: Any, kind: Any, place: str) -> Any:
    assert kind in (str, Path), kind
    if not isinstance(value, (str, Path)):
        raise SettingsError([_wrong(place, "must be text, in quotes if need be", value)])
    if str(value) == "":
        raise SettingsError([f"{place} must not be empty"])
    return kind(value)


def _read_number(value: Any, kind: type, limits: Mapping[str, Any], place: str) -> int | float:
    whole = kind is int
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise SettingsError([_wrong(place, f"must be a {'whole ' * whole}number", value)])
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise SettingsError([f"{place} must lie within {_MAX_INTEGER} of 0"])
    if not math.isfinite(value):
        raise SettingsError([_wrong(place, "must be a finite number", value)])
    above, at_least, at_most = (limits.get(name) for name in ("above", "at_least", "at_most"))
    if (
        (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise SettingsError([_wrong(place, f"must be {_limits_in_words(limits)}", value)])
    return int(value) if whole else float(value)


def _read_list(value: Any, kind: Any, limits: Mapping[str, Any], place: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise SettingsError([_wrong(place, "must be a list", value)])
    container, kinds = get_origin(kind), get_args(kind)
    if container is list:
        kinds *= len(value)
    if len(kinds) != len(value):
        raise SettingsError([_wrong(place, f"must be a list of {len(kinds)} numbers", value)])
    made: list[Any] = []
    problems: list[str] = []
    for index, (item, item_kind) in enumerate(zip(value, kinds, strict=True)):
        try:
            made.append(_read_value(item, item_kind, limits, f"{place}[{index}]"))
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return container(made)


def _limits_in_words(limits: Mapping[str, Any]) -> str:
    above, at_least, at_most = (limits.get(name) for name in ("above", "at_least", "at_most"))
    if at_least is not None and at_most is not None:
        return f"from {at_least} to {at_most}"
    words = [f"above {above}"] if above is not None else []
    words += [f"{at_least} or more"] if at_least is not None else []
    words += [f"at most {at_most}"] if at_most is not None else []
    return ", ".join(words)
