"""Dry runs, plans, JSON, data and interrupts of `rankfold compress`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.core.cli.commands import Run, network, process

import rankfold as rf
from rankfold.checkpoints import shards
from rankfold.cli import compress as command

MODEL = ("compress", "mymodels:make", "--weights", "w.safetensors")
CHECKPOINT = ("compress", "w.safetensors")
POLICY = ("--policy", "energy:0.6")


@pytest.mark.parametrize("what", [MODEL, CHECKPOINT], ids=["model", "checkpoint"])
def test_a_dry_run_plans_and_writes_nothing(what: tuple[str, ...], folder: Path, run: Run) -> None:
    before = sorted(folder.iterdir())
    done = run(*what, *POLICY, "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "nothing written" in done.stdout
    assert [p for p in sorted(folder.iterdir()) if p.name != "__pycache__"] == before
    written = run(*what, *POLICY, "-o", "out", cwd=folder)
    totals = re.findall(r"\d of \d layers replaced; parameters[^;]*", written.stdout)
    assert totals == re.findall(r"\d of \d layers replaced; parameters[^;]*", done.stdout)


@pytest.mark.parametrize("what", [MODEL, CHECKPOINT], ids=["model", "checkpoint"])
def test_a_plan_from_a_dry_run_gives_what_its_policy_gives(
    what: tuple[str, ...], folder: Path, run: Run
) -> None:
    planned = run(*what, *POLICY, "--seed", "3", "--dry-run", "--json", cwd=folder)
    (folder / "p.json").write_text(planned.stdout)
    done = run(*what, "--plan", "p.json", "-o", "a", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert run(*what, *POLICY, "--seed", "3", "-o", "b", cwd=folder).returncode == 0
    first, second = (load_file(folder / out / "weights.safetensors") for out in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    plans = [json.loads((folder / out / "plan.json").read_text())["plan"] for out in "ab"]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("what", [MODEL, CHECKPOINT], ids=["model", "checkpoint"])
def test_an_edited_plan_is_obeyed_and_a_wrong_one_refused(
    what: tuple[str, ...], folder: Path, run: Run
) -> None:
    layers = (rf.LayerPlan(path="2", method="tucker2", ranks=(4, 5)),)
    (folder / "p.json").write_text(rf.Plan(layers=layers).to_json())
    done = run(*what, "--plan", "p.json", "-o", "out", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    plan = rf.Plan.from_json(done.stdout)
    assert plan["2"].ranks == (4, 5)
    assert plan["0"].reason == "not in the plan"
    for path, ranks, said in (
        ("2", (400, 5), "rank"),
        ("9", (4, 5), "layer '9' of the plan is not in the model"),
    ):
        wrong = (rf.LayerPlan(path=path, method="tucker2", ranks=ranks),)
        (folder / "p.json").write_text(rf.Plan(layers=wrong).to_json())
        done = run(*what, "--plan", "p.json", "-o", "none", cwd=folder)
        assert done.returncode == 2
        assert said in done.stderr
        assert not (folder / "none").exists()


def test_the_folder_of_a_result_is_a_plan_too(folder: Path, run: Run) -> None:
    assert run(*MODEL, *POLICY, "-o", "a", cwd=folder).returncode == 0
    assert run(*MODEL, "--plan", "a", "-o", "b", cwd=folder).returncode == 0
    first, second = (load_file(folder / out / "weights.safetensors") for out in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_json_is_all_there_is_on_standard_output(folder: Path, run: Run) -> None:
    score = "def score(model): return 1.0"
    (folder / "loud.py").write_text(f"print('loading')\nfrom mymodels import make\n{score}\n")
    what = ("compress", "loud:make", "--weights", "w.safetensors")
    done = process(*what, *POLICY, "-o", "out", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    plan = rf.Plan.from_json(done.stdout)
    assert plan.policy == "Energy(share=0.6)"
    assert done.stderr == "loading\n"
    drop = ("--policy", "budget:drop=0.1,evaluate=loud:score")
    searched = run(*MODEL, *drop, "-o", "b", "--json", cwd=folder)
    assert rf.Plan.from_json(searched.stdout).trials
    assert searched.stderr == "loading\n"
    saved = json.loads((folder / "out" / "plan.json").read_text())["plan"]
    assert saved == json.loads(done.stdout)


def test_the_command_of_a_plan_makes_it_again(folder: Path, run: Run) -> None:
    options = (
        *("--policy", "budget:params=0.6,multiple_of=2", "--methods", "svd,tucker2"),
        *("--exclude", "0", "--override", "4=ranks:3", "--placement", "classical", "--seed", "5"),
    )
    plan = rf.Plan.from_json(run(*MODEL, *options, "--dry-run", "--json", cwd=folder).stdout)
    words = plan.command.split()
    assert words[:5] == ["rankfold", "compress", "MODEL", "-o", "OUTPUT"]
    again = run(*MODEL, *words[5:], "--dry-run", "--json", cwd=folder)
    assert rf.Plan.from_json(again.stdout) == plan


DATA = {
    "a shape": ("1,3,6,6", None),
    "a file": ("x.npz", None),
    "a function": ("mydata:inputs", None),
    "batches in a file": (None, "c.safetensors"),
    "batches of a function": ("2,3,6,6", "mydata:batches"),
    "batches that are an object": ("x.npz", "mydata:BATCHES"),
}


@pytest.mark.parametrize("kind", DATA)
def test_a_factory_takes_inputs_and_calibration_data(kind: str, folder: Path, run: Run) -> None:
    generator = torch.Generator().manual_seed(0)
    examples = torch.randn(48, 3, 6, 6, generator=generator)
    np.savez(folder / "x.npz", x=np.zeros((1, 3, 6, 6)))
    save_file({"x": examples}, folder / "c.safetensors")
    (folder / "mydata.py").write_text(
        "import torch\nfrom safetensors.torch import load_file\n"
        "def inputs(): return torch.zeros(1, 3, 6, 6)\n"
        "BATCHES = load_file('c.safetensors')['x'].split(16)\n"
        "def batches(): return BATCHES\n"
    )
    inputs, calibration = DATA[kind]
    options = [*POLICY]
    options += ["--inputs", inputs] if inputs else []
    options += ["--calibration", calibration, "--loss", "cross_entropy"] if calibration else []
    done = run(*MODEL, *options, "-o", "out", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    plan = rf.Plan.from_json(done.stdout)
    assert plan.macs is not None
    known: dict[str, Any] = {"inputs": torch.zeros(2 if inputs == "2,3,6,6" else 1, 3, 6, 6)}
    if calibration:
        known |= {"calibration": examples.split(16), "loss": "cross_entropy"}
    expected = rf.compress(network(), rf.Energy(0.6), **known).plan
    assert [layer.ranks for layer in plan.layers] == [layer.ranks for layer in expected.layers]
    assert plan.macs == expected.macs
    measured, wanted = (
        [layer.measured for layer in p.layers if layer.measured is not None]
        for p in (plan, expected)
    )
    assert len(measured) == (2 if calibration else 0)
    assert measured == pytest.approx(wanted, rel=1e-4)


def test_without_a_refit_weights_are_those_of_the_factors(folder: Path, run: Run) -> None:
    save_file({"x": torch.randn(32, 3, 6, 6)}, folder / "c.safetensors")
    options = (*POLICY, "--calibration", "c.safetensors", "--dry-run", "--json")
    assert run(*MODEL, *options, cwd=folder).returncode == 0
    done = run(*MODEL, *options[:-2], "--no-refit", "-o", "out", "--json", cwd=folder)
    plan = rf.Plan.from_json(done.stdout)
    assert not any(layer.refit for layer in plan.layers)
    assert "--no-refit" in plan.command


WRONG = {
    "no output": (CHECKPOINT, "--output is missing; name the folder to write with -o"),
    "no target": (("compress", "-o", "out"), "Missing argument TARGET"),
    "a policy beside a plan": (
        (*CHECKPOINT, "-o", "out", "--plan", "p.json", *POLICY),
        "--policy has been decided by the plan",
    ),
    "an override without a policy": (
        (*CHECKPOINT, "-o", "out", "--override", "4"),
        "override '4'; write PATTERN=POLICY",
    ),
    "calibration of a checkpoint": (
        (*CHECKPOINT, "-o", "out", "--calibration", "c.npz"),
        "--calibration is for models",
    ),
    "a pattern of no tensor": (
        (*CHECKPOINT, "--dry-run", "--drop", "x*"),
        "drop: 'x*' matches no tensor",
    ),
    "no plan": ((*CHECKPOINT, "-o", "out", "--plan", "w.safetensors"), "not a rankfold plan"),
    "no shape": ((*MODEL, "-o", "out", "--inputs", "1,x"), "inputs '1,x'; write a shape"),
    "no type": ((*MODEL, "-o", "out", "--inputs", "1,3:int5"), "write a shape as 1,3,224,224"),
    "too large": ((*MODEL, "-o", "out", "--inputs", "99999,99999"), "write a shape"),
    "no batches": ((*MODEL, "-o", "out", "--calibration", "c"), "calibration 'c'; name an .npz"),
    "no such function": (
        (*MODEL, "-o", "out", "--calibration", "mymodels:none"),
        "batches 'mymodels:none' cannot be imported",
    ),
    "inputs of another shape": ((*MODEL, "-o", "out", "--inputs", "1,4,6,6"), "fails"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_line(name: str, folder: Path, run: Run) -> None:
    arguments, said = WRONG[name]
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (folder / "out").exists()


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_says_that_nothing_was_written(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankfold.checkpoints.planning.planned", interrupted)
    monkeypatch.setattr(command, "compress", interrupted)
    for what in (CHECKPOINT, MODEL):
        done = run(*what, "-o", "out", cwd=folder)
        assert done.returncode == 130
        assert done.stderr == "rankfold: interrupted; nothing was written\n"


def test_an_interrupt_says_that_what_is_finished_is_kept(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shards._Fresh, "finish", interrupted)
        done = run(*CHECKPOINT, "-o", "out", cwd=folder)
    assert done.returncode == 130
    assert "what is finished is kept for the same command" in done.stderr
    monkeypatch.setattr("rankfold.checkpoints.planning.planned", interrupted)
    assert run(*CHECKPOINT, "-o", "out", cwd=folder).returncode == 0  # its plan was kept
