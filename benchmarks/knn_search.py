"""Exact nearest neighbors among many rows of features, against FAISS and a search in plain PyTorch.

`python -m benchmarks.knn_search` prints seconds, and the memory that each search needs beyond the
features. Those of ImageNet-1k are `--train_images 1280000 --test_images 50000`. FAISS takes part
where faiss-cpu is installed.
"""

import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import MEBIBYTE, Run, interleave, measure_peak
from esvit_hf.features.search import nearest_neighbors

NEIGHBORS = 20
PLAIN_ROWS = 256
"""Test rows that the plain search compares at once."""
LEAST_IN_COMMON = 0.999
"""Share of neighbors that two searches have in common; equal ones may change places by rounding."""

Search = Callable[[Tensor, Tensor], Tensor]


def search_ours(train: Tensor, test: Tensor) -> Tensor:
    return nearest_neighbors(train, test, NEIGHBORS)[1]


def search_plain(train: Tensor, test: Tensor) -> Tensor:
    normalized = F.normalize(train, dim=1)
    found = [
        (rows @ normalized.T).topk(NEIGHBORS, dim=1).indices
        for rows in F.normalize(test, dim=1).split(PLAIN_ROWS)
    ]
    return torch.cat(found)


def search_faiss(train: Tensor, test: Tensor) -> Tensor:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(F.normalize(train, dim=1).numpy())
    _, indices = index.search(F.normalize(test, dim=1).numpy(), NEIGHBORS)
    return torch.from_numpy(indices)


def draw_features(train_images: int, test_images: int, width: int) -> tuple[Tensor, Tensor]:
    """Features of train (N, D) and test (M, D)."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(train_images, width, generator=generator),
        torch.randn(test_images, width, generator=generator),
    )


def prepare(search: Search, train_images: int, test_images: int, width: int) -> Run:
    return partial(search, *draw_features(train_images, test_images, width))


def peak_in_own_process(search: Search, *sizes: int) -> float:
    """Peak memory in MiB beyond the features."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(measure_peak, partial(prepare, search, *sizes)).result() / MEBIBYTE


def main(
    train_images: int = 128_000,
    test_images: int = 5_000,
    width: int = 768,
    rounds: int = 3,
) -> None:
    """Print time and memory of each search.

    Args:
        train_images: rows that are searched.
        test_images: rows whose neighbors are searched.
        width: channels of a row.
        rounds: runs of each search that count.
    """
    searches: dict[str, Search] = {"ours": search_ours, "plain PyTorch": search_plain}
    if importlib.util.find_spec("faiss") is not None:
        searches["FAISS, flat"] = search_faiss
    sizes = (train_images, test_images, width)
    memory = {name: peak_in_own_process(search, *sizes) for name, search in searches.items()}
    train, test = draw_features(*sizes)
    found: dict[str, Tensor] = {}

    def run(name: str) -> None:
        found[name] = searches[name](train, test)

    seconds = interleave({name: partial(run, name) for name in searches}, rounds=rounds, warmup=0)
    for name, neighbors in found.items():
        common = float((neighbors == found["ours"]).float().mean())
        assert common >= LEAST_IN_COMMON, f"neighbors of {name} differ: {common:.4f} in common"
    for name in searches:
        ratio = seconds["ours"] / seconds[name]
        print(f"{seconds[name]:8.2f} s {memory[name]:8.0f} MiB  {name} (ours takes {ratio:.2f})")


if __name__ == "__main__":
    auto_cli(main)
