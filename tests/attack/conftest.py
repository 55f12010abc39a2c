"""How many attacks, and which."""

import pytest


@pytest.fixture(scope="session")
def n_attacks(request: pytest.FixtureRequest) -> int:
    """The least number of cases of each kind."""
    return request.config.getoption("--attacks")


@pytest.fixture(scope="session")
def attack_seed(request: pytest.FixtureRequest) -> int:
    """The seed that chooses the cases."""
    return request.config.getoption("--attack-seed")
