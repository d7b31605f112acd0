"""Threads of a part of the work."""

import pytest
import torch

from esvit_hf.acceleration.threads import use_threads


def test_threads_are_those_of_the_call() -> None:
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with use_threads(None):
        assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads is 0: give 1 or more"), use_threads(0):
        pass
