"""A run that is killed, in training and while it saves, ends where an undisturbed one does; `make
chaos` kills more.
"""

import torch
from tests.support.chaos import differences, survive


def test_a_killed_run_equals_an_undisturbed_one(tmp_path):
    report = survive(kills=2, steps=60, seed=0, folder=tmp_path)
    assert [kill["ended"] for kill in report["kills"]] == [False] * 2
    assert any(kill["while_saving"] for kill in report["kills"])
    assert report["compared"] > 50
    assert report["differences"] == []


def test_a_single_bit_is_a_difference():
    first = {"a": [torch.zeros(2), {"b": (1, 2.0)}]}
    assert differences(first, {"a": [torch.zeros(2), {"b": (1, 2.0)}]}) == []
    assert differences(first, {"a": [torch.tensor([0.0, 1e-45]), {"b": (1, 2.0)}]}) == ["/a/0"]
    assert differences(first, {"a": [torch.zeros(2), {"b": (1, 2.5)}]}) == ["/a/1/b/1"]
