"""Weighted k-NN of 10,000 test images among 50,000, against scikit-learn and the formula written
straightforwardly.
"""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Prepare, Row, Run, compare, interleave, peak_memory
from esvit_hf.evaluation.classifiers.nearest_neighbors import knn_predictions

TRAIN_IMAGES, TEST_IMAGES, WIDTH, CLASSES = 50_000, 10_000, 384, 1000
NEIGHBORS = 20
TEMPERATURE = 0.07


def draw_features() -> tuple[Tensor, Tensor, Tensor]:
    """Features of train (N, D) and test (M, D) in clusters, and the classes of train (N,)."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    train_labels = torch.randint(CLASSES, (TRAIN_IMAGES,), generator=generator)
    test_labels = torch.randint(CLASSES, (TEST_IMAGES,), generator=generator)
    train, test = (
        centers[labels] + 2 * torch.randn(len(labels), WIDTH, generator=generator)
        for labels in (train_labels, test_labels)
    )
    return train, train_labels, test


def prepare_ours() -> Run:
    train, labels, test = draw_features()

    def run() -> Tensor:
        ranked = knn_predictions(train, labels, test, k=(NEIGHBORS,), temperature=(TEMPERATURE,))
        return ranked[NEIGHBORS, TEMPERATURE][:, 0]

    return run


def prepare_plain() -> Run:
    train, labels, test = draw_features()

    def run() -> Tensor:
        similarity = F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
        cosines, neighbors = similarity.topk(NEIGHBORS, dim=1)
        votes = F.one_hot(labels[neighbors], CLASSES) * (cosines / TEMPERATURE).exp().unsqueeze(2)
        return votes.sum(dim=1).argmax(dim=1)

    return run


def prepare_scikit_learn() -> Run:
    train, labels, test = (values.numpy() for values in draw_features())

    def run() -> np.ndarray:
        unit_train, unit_test = (
            values / np.linalg.norm(values, axis=1, keepdims=True) for values in (train, test)
        )
        # On unit vectors the Euclidean distance ranks as the cosine does, and is scikit-learn's
        # fastest metric.
        search = NearestNeighbors(n_neighbors=NEIGHBORS, algorithm="brute").fit(unit_train)
        distances, neighbors = search.kneighbors(unit_test)
        votes = np.zeros((len(test), CLASSES))
        weights = np.exp((1 - distances**2 / 2) / TEMPERATURE)
        np.add.at(votes, (np.arange(len(test))[:, None], labels[neighbors]), weights)
        return np.asarray(votes.argmax(axis=1))

    return run


MEMORY_CASES: dict[str, Prepare] = {
    "ours": prepare_ours,
    "plain formula": prepare_plain,
    "scikit-learn": prepare_scikit_learn,
}


def measure(rounds: int = 3) -> list[Row]:
    """Return the rows of this topic."""
    seconds = interleave({name: prepare() for name, prepare in MEMORY_CASES.items()}, rounds=rounds)
    memory = {name: peak_memory("knn", name) for name in MEMORY_CASES}
    name = f"k-NN, {TRAIN_IMAGES} x {TEST_IMAGES} x {WIDTH}, k {NEIGHBORS}"
    return [
        compare(f"{name}: time", seconds.pop("ours"), seconds, reach=0.7),
        compare(
            f"{name}: peak extra memory",
            memory.pop("ours"),
            memory,
            against="plain formula",
            reach=0.2,
            unit="MiB",
            scale=2**-20,
        ),
    ]
