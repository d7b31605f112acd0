"""Command lines made from functions: every spelling, and one line for what is wrong."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from esvit_hf.common.command_line import check_options, describe, nearest, parse_function

if TYPE_CHECKING:
    from torch.nn import Module as Network


@dataclass(frozen=True)
class Probe:
    """A linear probe.

    Args:
        epochs: passes over 100% of the features.
        rates: learning rates.
        deep: more layers.
        blocks: numbers of last blocks.
    """

    epochs: int = 100
    rates: float | list[float] = field(default_factory=lambda: [0.1])
    deep: bool = True
    blocks: tuple[int, ...] = (1, 4)


@dataclass(frozen=True)
class Logistic:
    """Logistic regression, without options."""


def measure(
    model: "str | Path | Network",
    others: list[str],
    *,
    output: str | Path,
    k: int | list[int] = [10, 20],  # noqa: B006 - never changed
    names: str | Sequence[str] = "all",
    layer: int | None = None,
    precision: Literal["no", "bf16"] = "no",
    config: dict[str, Any] | None = None,
    augment: bool = False,
    keep: bool = True,
    progress: Callable[[int], None] | None = None,
    probe: Probe = Probe(),  # noqa: B008 - frozen
    **tasks: Any,
) -> None:
    """Measure a network.

    Args:
        model: Hub name or folder.
        others: more of them.
        output: file to write.
        k: numbers of neighbors.
        names: of data sets.
        layer: hidden state.
        precision: number format.
        config: fields of the configuration.
        augment: crop 100% at random.
        keep: keep the features.
        progress: called with each step.
        probe: options of the probe.
        tasks: options of other tasks.
    """


DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(measure).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in ("output", "progress")
}
NEEDED = ["model", "a", "b", "--output", "out"]


def parse(*words: str, **options: Any) -> dict[str, Any]:
    return parse_function(measure, [*NEEDED, *words], program="esvit measure", **options)


def test_defaults_and_places() -> None:
    expected = {"model": "model", "others": ["a", "b"], "output": "out"}
    assert parse() == expected | DEFAULTS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--k", "3"], {"k": 3}),
        (["--k=[3,4]"], {"k": [3, 4]}),
        (["--names", "one"], {"names": "one"}),
        (["--names", "[one,two]"], {"names": ["one", "two"]}),
        (["--layer", "-1"], {"layer": -1}),
        (["--layer", "null"], {"layer": None}),
        (["--precision", "bf16"], {"precision": "bf16"}),
        (["--config", "{size: 3, heads: [1,2]}"], {"config": {"size": 3, "heads": [1, 2]}}),
        (["--config.size", "3", "--config.name=x"], {"config": {"size": 3, "name": "x"}}),
        (["--augment"], {"augment": True}),
        (["--augment", "true"], {"augment": True}),
        (["--augment", "False"], {"augment": False}),
        (["--augment=true"], {"augment": True}),
        (["--no_augment"], {"augment": False}),
        (["--keep"], {"keep": True}),
        (["--no_keep"], {"keep": False}),
        (["--keep", "false"], {"keep": False}),
        (["--no_keep", "--keep"], {"keep": True}),
        (["--probe.epochs", "3"], {"probe": Probe(3)}),
        (["--probe.rates", "[0.1,1]"], {"probe": Probe(rates=[0.1, 1.0])}),
        (["--no_probe.deep"], {"probe": Probe(deep=False)}),
        (["--probe.blocks", "[2]"], {"probe": Probe(blocks=(2,))}),
        (["--probe.deep", "false"], {"probe": Probe(deep=False)}),
        (["--output", "https://host//file"], {"output": "https://host//file"}),
    ],
)
def test_spellings(words: list[str], expected: dict[str, Any]) -> None:
    got = parse(*words)
    assert {name: got[name] for name in expected} == expected
    assert {name: got[name] for name in DEFAULTS.keys() - expected.keys()} == {
        name: DEFAULTS[name] for name in DEFAULTS.keys() - expected.keys()
    }


def test_a_boolean_takes_no_word_that_is_none_of_its_own() -> None:
    words = ["--augment", "model", "a", "b", "--output", "out", "--keep"]
    got = parse_function(measure, words, program="esvit measure")
    assert (got["model"], got["others"]) == ("model", ["a", "b"])
    assert got["augment"] and got["keep"]


def test_groups_are_passed_if_something_in_them_is_given() -> None:
    groups = {"knn": Probe, "linear": Probe, "logistic": Logistic}
    got = parse("--knn.epochs", "3", groups=groups)
    assert got["knn"] == Probe(3)
    assert not {"linear", "logistic"} & set(got)


def test_options_from_python() -> None:
    options = {"epochs": 3, "rates": [1, 0.5], "blocks": [2]}
    assert check_options(Probe, options, "probe") == {
        "epochs": 3,
        "rates": [1.0, 0.5],
        "blocks": (2,),
    }
    with pytest.raises(ValueError) as error:
        check_options(Probe, {"epoch": 1, "rates": "x", "deep": [1], "zzz": 2}, "probe")
    assert str(error.value) == (
        "probe has no option 'epoch': did you mean epochs?; "
        "probe.rates is 'x': give a number or a list of numbers; "
        "probe.deep is [1]: give true or false; "
        "probe has no option 'zzz': it has epochs, rates, deep, blocks"
    )


USAGE = "esvit measure MODEL OTHERS ... --output PATH [--flag value ...]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "x"], "--k is 'x': give an integer or a list of integers"),
        (["--k", "[1,x]"], "--k is '[1,x]': give an integer or a list of integers"),
        (["--k=1.5"], "--k is '1.5': give an integer or a list of integers"),
        (["--k"], "--k has no value: give an integer or a list of integers"),
        (["--output"], "--output has no value: give a path"),
        (["--layer", "last"], "--layer is 'last': give an integer"),
        (["--precision", "fp8"], "--precision is 'fp8': give no or bf16"),
        (["--config", "3"], "--config is '3': give a mapping such as '{name: value}'"),
        (["--augment=maybe"], "--augment is 'maybe': give true or false"),
        (["--probe.epochs", "x"], "--probe.epochs is 'x': give an integer"),
        (["--probe.rates", "[a]"], "--probe.rates is '[a]': give a number or a list of numbers"),
        (
            ["--probe.epoch", "3"],
            "esvit measure has no flag --probe.epoch: did you mean --probe.epochs?",
        ),
        (["--outptu", "x"], "esvit measure has no flag --outptu: did you mean --output?"),
        (["--no-augment"], "esvit measure has no flag --no-augment: did you mean --augment?"),
        (["--no_k"], "esvit measure has no flag --no_k: did you mean --k?"),
        (["--progress", "3"], "esvit measure has no flag --progress: did you mean --probe.rates?"),
        (["--zzz=3"], "esvit measure has no flag --zzz"),
        (
            ["--outptu", "x", "--k", "x", "--layer", "--probe.epochs=y", "--no_probe.deep"],
            "esvit measure has no flag --outptu: did you mean --output?; "
            "--k is 'x': give an integer or a list of integers; "
            "--layer has no value: give an integer; --probe.epochs is 'y': give an integer",
        ),
        (["--output", "[1", "--k=x"], "--k is 'x': give an integer or a list of integers"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(*words)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], f"MODEL, OTHERS, --output are missing: {USAGE}"),
        (["model", "a"], f"--output is missing: {USAGE}"),
        (["--output", "out", "model"], f"OTHERS is missing: {USAGE}"),
        (["m", "a", "--output", "o", "b"], f"'b' is too much: {USAGE}"),
    ],
)
def test_missing_and_surplus_words(words: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_function(measure, words, program="esvit measure")
    assert str(error.value) == message


def test_the_help_is_written_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--help", groups={"knn": Probe})
    assert not stopped.value.code
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: {USAGE} Measure a network.")
    for part in (
        "MODEL Hub name or folder.",
        "--output PATH file to write.",
        "--k INTEGER|[...] numbers of neighbors. (default: [10,20])",
        "--names TEXT|[...] of data sets. (default: all)",
        "--layer INTEGER hidden state. --precision no|bf16 number format. (default: no)",
        "--config {...} fields of the configuration.",
        "--augment, --no_augment crop 100% at random.",
        "--keep, --no_keep keep the features. (default: true)",
        "probe: A linear probe. --probe.epochs INTEGER passes over 100% of the features.",
        "knn: A linear probe. --knn.epochs INTEGER",
        "--knn.blocks [...] numbers of last blocks. (default: [1,4])",
    ):
        assert part in text
    for inner in ("NoneType", "Union", "null", "--k+", "progress", "tasks"):
        assert inner not in text


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (float | None, "a number"),
        (str | Path, "a path"),
        (str | list[str], "a text or a list of texts"),
        (Literal["a", "b", "c"], "a, b or c"),
        (dict[str, int], "a mapping such as '{name: value}'"),
        (list[Probe], "a list"),
        (tuple[float, ...], "a list of numbers"),
        (Probe, "a Probe"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_the_nearest_name() -> None:
    assert nearest("evalute", ["evaluate", "export"]) == ": did you mean evaluate?"
    assert nearest("?", ["evaluate"]) == ""
