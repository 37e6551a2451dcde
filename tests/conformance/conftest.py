from __future__ import annotations

import os

# compiles faster; two workers do not fight over the cores
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
)
