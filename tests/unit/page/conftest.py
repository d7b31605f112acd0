"""A small network, as the page gets it."""

from pathlib import Path

import pytest
from tests.support.page import save_small_network

from esvit_hf.features.store import FeatureStore


@pytest.fixture(scope="package")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "small"
    save_small_network(folder)
    return folder


@pytest.fixture
def store(small_network: Path) -> FeatureStore:
    return FeatureStore(small_network.parent / "features", str(small_network), num_workers=0)
