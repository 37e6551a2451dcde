"""Accuracy against multiply-accumulates: `python -m tests.benchmarks.accuracy`; see `__main__`."""
