"""What journeys of every framework share."""

import pytest
from tests.journeys.frameworks import FRAMEWORKS, Framework


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Framework:
    return FRAMEWORKS[request.param]
