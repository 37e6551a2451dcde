"""The conformance kit for framework adapters: what every backend must do, as runnable checks.

A backend describes itself by a `Harness`. `check_adapter(harness)` runs every check and reports;
`rankfold.testing.suite.AdapterSuite` is the same as a pytest class to subclass. rankfold's own
backends run it, too.
"""

from rankfold.testing.harness import Harness, Unsupported
from rankfold.testing.runner import CHECKS, CheckResult, check_adapter

__all__ = ["CHECKS", "CheckResult", "Harness", "Unsupported", "check_adapter"]
