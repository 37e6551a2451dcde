"""How long decompositions take, ours and those of other libraries, in turns in one process.

    python -m pytest tests/benchmarks/decomposition --benchmark-enable -s

measures every comparison and writes docs/results/decomposition.md; give it a machine with nothing
else to do. `-k tucker`, `-k cp`, `-k evbmf`, `-k svd` choose a subject, `-k vgg` or
`-k "svd and 768x768"` less than one. Only the tables of what was run are replaced, each as a whole;
the tables of the file that were measured under another statement at its top (machine, threads,
versions) are dropped, for one file speaks of one machine. Nothing is written where a run is broken
off. Environment variables:

* RANKFOLD_BENCHMARK_THREADS: the number of threads of every BLAS pool and of PyTorch; all cores
  that the process may use unless told.
* RANKFOLD_BENCHMARK_LONG=1 adds the 11008x4096 matrix, of which a full SVD takes minutes.
* RANKFOLD_BENCHMARK_OUTPUT: another file to write.

Without `--benchmark-enable`, in the ordinary suite, the same tests run at one small shape each,
compare errors and ranks alone, and write nothing.

A test module names its cases in `CASES` and the small ones in `SMOKE`; `conftest` picks. `weights`
makes the weights, `ours` and `peers` are what is compared, `comparison` runs it, `turns` measures,
`sections` says what the tables are and `report` writes them under what `machine` states.
"""
