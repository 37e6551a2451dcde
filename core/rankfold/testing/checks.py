"""Every check there is."""

from rankfold.testing import keeping, learning, reading, replacing
from rankfold.testing.check import Check

CHECKS: dict[str, Check] = {
    found.name: found
    for module in (reading, replacing, keeping, learning)
    for found in vars(module).values()
    if isinstance(found, Check)
}
"""All checks by name, in an order in which no check comes before those it rests on."""
