"""Fixtures of the tests of all networks."""

import pytest
from tests.support.networks import NETWORKS, Network


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request) -> Network:
    return request.param
