"""How many threads compute beside data-loading workers."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.small_runs import small_run

from esvit_hf.acceleration.threads import use_threads
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.machine import Machine
from esvit_hf.pretraining.threads import choose_threads

MACHINE = Machine("cpu", 10**9, 10**9, 4, 1, True, True)
WIDE = "{image_size: 32, embed_dim: 128, depths: [4], num_heads: [4], window_size: 4}"


@pytest.fixture(autouse=True)
def _unchosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(("workers", "threads"), [(0, None), (1, 3), (3, 1), (9, 1)])
def test_workers_of_a_small_network_get_cores(
    workers: int, threads: int | None, tmp_path: Path
) -> None:
    recipe = small_run(tmp_path, "--data.num_workers", str(workers))
    with use_threads(4):
        assert choose_threads(recipe, build_parts(recipe), MACHINE) == threads


def test_processes_share_the_cores(tmp_path: Path) -> None:
    recipe = small_run(tmp_path, "--data.num_workers", "1")
    with use_threads(8):
        assert choose_threads(recipe, build_parts(recipe), MACHINE) == 3


def test_what_the_user_chose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_run(tmp_path, "--data.num_workers", "2")
    parts = build_parts(recipe)
    with use_threads(3):
        assert choose_threads(recipe, parts, MACHINE) is None
    with use_threads(4):
        assert choose_threads(recipe, parts, replace(MACHINE, device="cuda")) is None
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert choose_threads(recipe, parts, MACHINE) is None


@pytest.mark.parametrize(("batch_size", "threads"), [(8, 3), (64, None)])
def test_a_large_step_keeps_all_cores(batch_size: int, threads: int | None, tmp_path: Path) -> None:
    words = ["--model.config", WIDE, "--run.batch_size", str(batch_size)]
    recipe = small_run(tmp_path, "--data.num_workers", "1", *words)
    with use_threads(4):
        assert choose_threads(recipe, build_parts(recipe), MACHINE) == threads
