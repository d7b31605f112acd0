"""Functions with the fields of shared options as their arguments."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from esvit_hf.common.arguments import PythonOnly, argument_types, flat_arguments, read_docstring
from esvit_hf.common.options import Batches, Compute, DataSource, DataSplit, ModelSource

if TYPE_CHECKING:
    from torch.nn import Module as Network


@dataclass(frozen=True)
class Probe:
    """A probe.

    Attributes:
        epochs: passes.
    """

    epochs: int = 100


@flat_arguments
def measure(
    model: ModelSource,
    image: str | Path,
    data: DataSplit,
    *,
    output: Path,
    count: int = 9,
    compute: Compute,
    probe: Probe = Probe(),  # noqa: B008 - frozen
    **others: Any,
) -> dict[str, Any]:
    """Measure something.

    In two paragraphs.

    Args:
        image: image file, whose text
            has two lines.
        output: file to write.
        count: number: of neighbors.
        probe: options of the probe.
        others: what else there is.

    Returns:
        All of it.
    """
    return {"model": model, "data": data, "compute": compute, "probe": probe, "others": others}


def test_the_fields_are_arguments() -> None:
    assert list(inspect.signature(measure).parameters) == [
        *("model", "image", "dataset", "output", "count", "probe"),
        *("processor", "revision", "trust_remote_code"),
        *("config_name", "image_column", "label_column", "max_image_pixels", "split"),
        *("batch_size", "num_workers", "mixed_precision", "others"),
    ]
    kinds = [each.kind for each in inspect.signature(measure).parameters.values()]
    assert kinds[:3] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 3
    assert set(kinds[3:-1]) == {inspect.Parameter.KEYWORD_ONLY}
    types = argument_types(measure)
    assert types["model"] == str | Path and types["image"] == str | Path
    assert types["mixed_precision"] == Literal["no", "bf16", "fp16"]


def test_the_options_arrive_whole() -> None:
    got = measure("m", "i", "d", output="o", revision="r", split="s", batch_size=3, more=1)
    assert got == {
        "model": ModelSource("m", revision="r"),
        "data": DataSplit("d", split="s"),
        "compute": Compute(batch_size=3),
        "probe": Probe(),
        "others": {"more": 1},
    }
    got = measure(model="m", image="i", dataset="d", output="o", probe=Probe(3))
    assert got["probe"] == Probe(3)


def test_wrong_arguments_name_the_function() -> None:
    with pytest.raises(TypeError, match=r"measure\(\) missing a required argument: 'output'"):
        measure("m", "i", "d")

    @flat_arguments
    def small(batches: Batches) -> Batches:
        """Return the options."""
        return batches

    with pytest.raises(TypeError, match=r"small\(\) got an unexpected keyword argument 'batch'"):
        small(batch=3)
    assert small(num_workers=0) == Batches(num_workers=0)


def test_every_text_is_in_the_docstring_once() -> None:
    text = measure.__doc__ or ""
    documented = read_docstring(measure)
    assert text.startswith("Measure something.\n\nIn two paragraphs.\n\nArgs:\n    model: Hub name")
    assert text.endswith("Returns:\n    All of it.")
    assert list(documented.arguments) == list(inspect.signature(measure).parameters)
    assert documented.arguments["image"] == "image file, whose text has two lines."
    assert documented.arguments["count"] == "number: of neighbors."
    assert (
        documented.arguments["config_name"] == read_docstring(DataSource).arguments["config_name"]
    )
    assert max(map(len, text.splitlines())) <= 96


def test_a_parameter_without_a_text_takes_the_shared_one() -> None:
    @flat_arguments
    def transfer(models: list[str], *, revision: str | None = None) -> None:
        """Transfer.

        Args:
            models: one or two.
        """

    assert read_docstring(transfer).arguments == {
        "models": "one or two.",
        "revision": read_docstring(ModelSource).arguments["revision"],
    }

    def undocumented(unheard_of: int) -> None:
        """Fail."""

    with pytest.raises(AssertionError, match="unheard_of"):
        flat_arguments(undocumented)


def test_types_for_type_checkers_alone_are_named() -> None:
    def evaluate(model: "str | Network", run: "Callable[..., Any] | None" = None) -> None: ...

    types = argument_types(evaluate)
    assert types["model"] == str | PythonOnly
    assert types["run"] == Callable[..., Any] | None


def test_a_dataclass_has_the_texts_of_its_bases() -> None:
    assert list(read_docstring(Compute).arguments) == [
        *("batch_size", "num_workers", "mixed_precision"),
    ]
    assert read_docstring(Probe) == ("A probe.", {"epochs": "passes."}, "")
