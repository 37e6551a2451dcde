"""The fixtures of the PyTorch tests, for journeys through the whole library, too."""

from tests.torch.conftest import *  # noqa: F403 - fixtures
from tests.torch.conftest import _one_thread, _seeded  # noqa: F401 - fixtures
