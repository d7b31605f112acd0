"""Calls in one process, each with its own mixed precision."""

import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import PartialState
from tests.support.new_pages import pages_of_a_photograph
from tests.support.process_group import run_on_processes
from tests.support.small_runs import small_run

import esvit_hf
from esvit_hf.common.accelerator_state import own_accelerator_state, start_accelerator
from esvit_hf.pretraining.loop import pretrain


def start_and_count_pages() -> None:
    assert max(pages_of_a_photograph() for _ in range(4)) > 1000
    start_accelerator("no")
    assert [pages_of_a_photograph() for _ in range(4)][-1] < 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_a_process_that_computes_on_a_cpu_keeps_its_memory() -> None:
    run_on_processes(1, start_and_count_pages)


def test_accelerate_refuses_a_second_choice() -> None:
    Accelerator(mixed_precision="no")
    with pytest.raises(ValueError, match="already"):
        Accelerator(mixed_precision="bf16")


def test_every_call_chooses() -> None:
    @own_accelerator_state()
    def measure(mixed_precision: str) -> str:
        return str(Accelerator(mixed_precision=mixed_precision).mixed_precision)

    mine = Accelerator(mixed_precision="no")
    assert [measure(name) for name in ("bf16", "no", "bf16")] == ["bf16", "no", "bf16"]
    # The caller's own goes on as before, and so does its process.
    assert mine.mixed_precision == Accelerator().mixed_precision == "no"
    assert mine.is_main_process


def test_an_error_in_a_call_changes_nothing() -> None:
    mine = Accelerator(mixed_precision="no")
    with pytest.raises(RuntimeError, match="stopped"), own_accelerator_state():
        Accelerator(mixed_precision="bf16")
        raise RuntimeError("stopped")
    assert mine.mixed_precision == "no"


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with own_accelerator_state():
        PartialState._reset_state()
        yield
    PartialState._reset_state()


REFUSED = "mixed_precision is fp16, but the run is on a CPU.*: set {} to bf16 or no"


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    "call",
    [
        lambda folder: esvit_hf.evaluate(folder, "none", mixed_precision="fp16"),
        lambda folder: esvit_hf.transfer([folder], report=folder, mixed_precision="fp16"),
        lambda folder: esvit_hf.extract_features(
            folder, "none", output=folder / "x.safetensors", mixed_precision="fp16"
        ),
    ],
)
def test_float16_on_a_cpu_is_refused_not_ignored(
    call: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=REFUSED.format("mixed_precision")):
        call(tmp_path)


@pytest.mark.usefixtures("cpu")
def test_a_recipe_with_float16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=REFUSED.format(r"run\.mixed_precision")):
        pretrain(small_run(tmp_path, "--run.mixed_precision", "fp16"))
