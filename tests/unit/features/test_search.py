"""Nearest neighbors: exact over blocks and ties."""

import pytest
import torch
import torch.nn.functional as F

from esvit_hf.features.search import nearest_neighbors


@pytest.mark.parametrize("columns", [40, 4000])
def test_neighbors_are_exact_over_long_rows(columns: int) -> None:
    generator = torch.Generator().manual_seed(4)
    train, test = (torch.randn(rows, 8, generator=generator) for rows in (4000, 64))
    cosines, indices = nearest_neighbors(train, test, 7, block_bytes=2 * 4 * 8 * columns)
    expected = (F.normalize(test) @ F.normalize(train).T).sort(dim=1, descending=True)
    torch.testing.assert_close(cosines, expected.values[:, :7])
    assert torch.equal(indices, expected.indices[:, :7])


@pytest.mark.parametrize("columns", [50, 800, 5000])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_equal_similarities_are_taken_from_the_lowest_index(columns: int, k: int) -> None:
    # Rows of few directions with exact products, so that every row ties with hundreds of others.
    generator = torch.Generator().manual_seed(5)
    directions = torch.cat([torch.eye(4), -torch.eye(4)])
    train = directions[torch.randint(8, (5000,), generator=generator)]
    test = directions[torch.randint(8, (20,), generator=generator)]
    _, indices = nearest_neighbors(train, test, k, block_bytes=2 * 4 * 4 * columns)
    expected = (test @ train.T).sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(indices, expected)
