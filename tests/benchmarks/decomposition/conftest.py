"""Which cases run, with how many threads, and where the rows go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.decomposition import machine, report, threads
from tests.benchmarks.decomposition.comparison import Row, Side, outcomes
from tests.benchmarks.decomposition.sections import Section

_ROWS = pytest.StashKey[list[Row]]()
_FILE = Path(__file__).parents[3] / "docs" / "results" / "decomposition.md"
_FINISHED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives a test the cases of its module: all of them, or the small ones."""
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.CASES if _measures(metafunc.config) else metafunc.module.SMOKE
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _equal_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread where nothing is measured: several test processes may share the cores."""
    with threads.limited(threads.count() if _measures(request.config) else 1):
        yield


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., Row]:
    """Compares our forms with peers, keeps the row for the file and checks the figures."""

    def compare(
        section: Section,
        layer: str,
        ranks: Sequence[int],
        own: Sequence[Side],
        peers: Sequence[Side],
        count: int = 1,
    ) -> Row:
        found = outcomes([*own, *peers], benchmark)
        split = len(own)
        text = ", ".join(map(str, ranks))
        row = Row(section, layer, text, count, tuple(found[:split]), tuple(found[split:]))
        if not benchmark.disabled:
            request.config.stash.setdefault(_ROWS, []).append(row)
            print("\n" + report.line(row))
        row.check()
        return row

    return compare


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the tables of what was measured."""
    rows = session.config.stash.get(_ROWS, [])
    if rows and exitstatus in _FINISHED:
        file = Path(os.environ.get("RANKFOLD_BENCHMARK_OUTPUT", _FILE))
        with threads.limited(threads.count()):
            report.write(file, rows, machine.statement())
        print(f"\nwritten to {file}")


def _measures(config: pytest.Config) -> bool:
    """Whether the `benchmark` fixture measures: it never does in the workers of xdist."""
    enabled = config.getoption("benchmark_enable") or not config.getoption("benchmark_disable")
    return bool(enabled) and not hasattr(config, "workerinput")
