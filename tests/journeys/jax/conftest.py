"""The fixtures of the Flax tests, for journeys through the whole library, too."""

from tests.jax.conftest import *  # noqa: F403 - fixtures
