"""Calls in one process, each with its own mixed precision."""

import pytest
from accelerate import Accelerator

from esvit_hf.common.accelerator_state import own_accelerator_state


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
