"""How many 5-way kernels of exact CP rank are recovered at that rank.

    python -m tests.benchmarks.exact_rank

90 kernels of 3-D convolutions: six pairs of a shape and a rank, below and above the channels, three
kinds of factors, five seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from rankfold.decompose.tensor_algebra import khatri_rao
from rankfold.linalg import Array
from rankfold.ops import Conv
from rankfold.ops.reference import reconstruct

CASES = (
    ((32, 16, 3, 3, 3), 14),
    ((32, 16, 3, 3, 3), 20),
    ((48, 32, 3, 3, 3), 30),
    ((48, 32, 3, 3, 3), 40),
    ((64, 32, 3, 3, 3), 24),
    ((64, 32, 3, 3, 3), 48),
)
FACTORS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "independent": lambda rng, size, rank: rng.standard_normal((size, rank)),
    "alike": lambda rng, size, rank: (
        rng.standard_normal((size, 1)) + 0.7 * rng.standard_normal((size, rank))
    ),
    "positive": lambda rng, size, rank: rng.random((size, rank)),
}
SEEDS = 5
RECOVERED = 1e-3


def exact(shape: tuple[int, ...], rank: int, kind: str, seed: int) -> Array:
    """Draw a kernel of that CP rank."""
    rng = np.random.default_rng((seed, rank))
    first, *others = (FACTORS[kind](rng, size, rank) for size in shape)
    kernel: Array = (first @ khatri_rao(others).T).reshape(shape)
    return kernel


def errors() -> Iterator[tuple[str, float]]:
    """Yield the name of each case and the relative error of its decomposition."""
    import rankfold as rf

    for shape, rank in CASES:
        for kind in FACTORS:
            for seed in range(SEEDS):
                op = Conv(exact(shape, rank, kind, seed))
                difference = reconstruct(op, rf.cp(op, rank)) - op.weight
                error = float(np.linalg.norm(difference) / np.linalg.norm(op.weight))
                sizes = "x".join(map(str, shape))
                yield f"{sizes} of rank {rank}, {kind}, seed {seed}", error


if __name__ == "__main__":
    count = missed = 0
    for name, error in errors():
        count += 1
        if error > RECOVERED:
            missed += 1
            print(f"{name}: relative error {error:.1e}")
    print(f"{missed} of {count} kernels are more than {RECOVERED:.1%} off")
