"""Settings as dataclasses: plain values become checked settings, and every mistake is named with
its remedy.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from esvit_hf.common.settings import (
    SettingsError,
    check_settings,
    list_settings,
    make_settings,
    setting,
)


@dataclass(frozen=True)
class Wheel:
    size: float = setting("diameter", above=0, at_most=2)
    spokes: tuple[int, int] = setting("smallest and largest number", (8, 36), at_least=2)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.spokes[0] > self.spokes[1]:
            raise SettingsError(["spokes must have the smallest first"])


@dataclass(frozen=True)
class Basket:
    volume: float = setting("liters", 10.0, at_least=0)


@dataclass(frozen=True)
class Frame:
    color: Literal["red", "blue"] = setting("paint", "red")
    owner: str | None = setting("name", None)
    folder: Path = setting("place", Path("shed"))
    stolen: bool = setting("whether it is gone", False)


@dataclass(frozen=True)
class Bike:
    wheel: Wheel
    frame: Frame = Frame()
    gears: int = setting("number of gears", 7, at_least=1, at_most=27)
    spare: list[Wheel] = setting("wheels to take along", factory=list)
    baskets: dict[str, Basket] = setting(
        "baskets by place", factory=dict, members=lambda: {"front": Basket, "back": Basket}
    )
    extras: dict[str, Any] = setting("whatever else", factory=dict)


def problems(values: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        make_settings(Bike, values)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


def test_plain_values_become_settings() -> None:
    values = {
        "wheel": {"size": 1, "spokes": [10, 20]},
        "frame": {"color": "blue", "owner": None, "folder": "cellar"},
        "spare": [{"size": 0.5}, Wheel(0.7)],
        "baskets": {"front": {"volume": 3}, "back": None},
        "extras": {"bell": [1, "loud"]},
    }
    bike = make_settings(Bike, values)
    assert bike == Bike(
        wheel=Wheel(1.0, (10, 20)),
        frame=Frame("blue", None, Path("cellar")),
        spare=[Wheel(0.5), Wheel(0.7)],
        baskets={"front": Basket(3.0)},
        extras={"bell": [1, "loud"]},
    )
    assert isinstance(bike.wheel.size, float) and isinstance(bike.frame.folder, Path)
    assert make_settings(Bike, bike) == bike


def test_all_problems_are_told_at_once() -> None:
    values = {
        "wheel": {"size": 3, "spokes": [1, 2, 3]},
        "frame": {"color": "green", "owner": 3, "stolen": "yes", "folder": ""},
        "gears": 2.5,
        "spare": [{"size": 1}, {"spokes": [3, 2]}],
        "baskets": {"front": {"volume": -1}},
        "extras": {1: 2},
    }
    assert problems(values) == [
        "wheel.size must be above 0, at most 2; it is 3",
        "wheel.spokes must be a list of 2 numbers; it is [1, 2, 3]",
        "frame.color must be one of red, blue; it is 'green'",
        "frame.owner must be text, in quotes if need be; it is 3",
        "frame.folder must not be empty",
        "frame.stolen must be true or false; it is 'yes'",
        "gears must be a whole number; it is 2.5",
        "spare[1].size is missing",
        "baskets.front.volume must be 0 or more; it is -1",
        "extras must be a mapping of names to values; it is {1: 2}",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gears": 28}, "gears must be from 1 to 27; it is 28"),
        ({"gears": True}, "gears must be a whole number; it is True"),
        ({"gears": 2**70}, "gears must lie within 2147483647 of 0"),
        ({"gears": None}, "gears must not be null"),
        ({"wheel": {"size": float("nan")}}, "wheel.size must be a finite number; it is nan"),
        ({"wheel": {"size": 10**400}}, "wheel.size must lie within 2147483647 of 0"),
        ({"wheel": {"size": 1, "spokes": [9, 3]}}, "wheel.spokes must have the smallest first"),
        ({"wheel": {"size": 1, "spokes": [1, 3]}}, "wheel.spokes[0] must be 2 or more; it is 1"),
        ({"wheel": 3}, "wheel must be a mapping of fields to values; it is 3"),
        ({"wheel": {}}, "wheel.size is missing"),
        ({"spare": "many"}, "spare must be a list; it is 'many'"),
        ({"baskets": []}, "baskets must be a mapping of names to settings; it is []"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(values: dict[str, Any], message: str) -> None:
    assert problems({"wheel": {"size": 1}} | values) == [message]


def test_settings_that_are_left_out_may_miss_a_field() -> None:
    assert problems({}) == ["wheel.size is missing"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gear": {}}, "gear does not exist: did you mean gears?"),
        ({"size": 2}, "size does not exist: did you mean wheel.size?"),
        (
            {"wheel": {"size": 1, "spoke": 2}},
            "wheel.spoke does not exist: did you mean wheel.spokes?",
        ),
        (
            {"frame": {"gears": 3}},
            "frame.gears does not exist: did you mean gears?",
        ),
        (
            {"baskets": {"bac": {}}},
            "baskets.bac does not exist: did you mean baskets.back?",
        ),
        (
            {"baskets": {"back": {"volum": 2}}},
            "baskets.back.volum does not exist: did you mean baskets.back.volume?",
        ),
        (
            {"spare": [{"size": 1, "spok": 3}]},
            "spare[0].spok does not exist: did you mean spare[0].spokes?",
        ),
        (
            {"frame": {"\n": {}}},
            "'frame.\\n' does not exist: use one of color, owner, folder, stolen",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(values: dict[str, Any], message: str) -> None:
    assert problems({"wheel": {"size": 1}} | values) == [message]


def test_settings_made_by_hand_are_checked() -> None:
    assert Wheel(1, [4, 5]).spokes == (4, 5)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"^size must be above 0, at most 2; it is 9$"):
        replace(Wheel(1), size=9)


def test_every_field_is_listed_with_its_help_default_and_limits() -> None:
    listed = {each.name: each for each in list_settings(Bike)}
    assert list(listed) == [
        *("wheel.size", "wheel.spokes"),
        *("frame.color", "frame.owner", "frame.folder", "frame.stolen"),
        *("gears", "spare", "baskets.front.volume", "baskets.back.volume", "extras"),
    ]
    assert [name for name, each in listed.items() if each.required] == ["wheel.size"]
    gears = listed["gears"]
    assert (gears.help, gears.default, gears.limits) == ("number of gears", 7, "from 1 to 27")
    assert listed["spare"].default == [] and listed["wheel.size"].default is None
