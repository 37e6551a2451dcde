"""Results on standard output, and what is said where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.core.cli.commands import network

import rankfold as rf
from rankfold.cli.results import print_json, quiet, show
from rankfold.errors import RankfoldError
from rankfold.plan.plan import LayerPlan, Plan

CHECKPOINT = ("compress", "w.safetensors", "-o", "out")
PLAN = Plan(layers=(LayerPlan(path="a[b]", op="Linear 7→5", reason="tied"),))


@pytest.mark.parametrize(
    ("output", "end"),
    [(None, "; nothing written"), (Path("a\x1b[2Jb"), r"; written to a\x1b[2Jb")],
)
def test_a_table_ends_with_where_the_result_is(
    output: Path | None, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(PLAN, output, as_json=False)
    out = capsys.readouterr().out
    assert "a[b]" in out
    assert out.rstrip("\n").endswith(end)


def test_json_is_the_plan_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(as_json=True):
        print("loading the model")
    show(PLAN, Path("out"), as_json=True)
    written = capsys.readouterr()
    assert Plan.from_json(written.out) == PLAN
    assert written.err == "loading the model\n"
    with quiet(as_json=False):
        print("loading the model")
    assert capsys.readouterr().out == "loading the model\n"


def test_other_values_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"a": (1, 2.5)}])
    assert json.loads(capsys.readouterr().out) == [{"a": [1, 2.5]}]


@pytest.mark.parametrize(
    ("output", "done"), [(None, "nothing was written"), (Path("out"), "was written to 'out'")]
)
@pytest.mark.parametrize("as_json", [True, False])
def test_a_closed_output_is_an_error_that_says_what_was_done(
    as_json: bool, output: Path | None, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(RankfoldError, match=f"{done}, but the plan not .*it is closed"):
        show(PLAN, output, as_json=as_json)


@pytest.mark.parametrize(
    ("redirection", "cause"),
    [("> /dev/full", "No space left"), (">&-", "closed"), ("| true", "Broken pipe")],
)
def test_the_error_of_an_unwritable_output_says_where_the_result_is(
    folder: Path, redirection: str, cause: str
) -> None:
    script = f'set -o pipefail; "$@" {redirection}'
    command = [sys.executable, "-m", "rankfold.cli", *CHECKPOINT]
    shell = ["bash", "-c", script, "bash", *command]
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("rankfold: the result was written to 'out', but ")
    assert done.stderr.count("\n") == 1
    assert cause in done.stderr
    assert rf.load(network(), folder / "out")
