"""What distillation gains, and what of it: `python -m tests.benchmarks.distillation`."""
