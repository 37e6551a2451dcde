"""Recipes: what they may say, and what is said of those that are wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.core.cli.commands import Run

import rankfold as rf
from rankfold.cli.options import Recipe
from rankfold.cli.recipes import merged, overrides_of, policy_of, read_recipe

RECIPE = """
target = "mymodels:make"
weights = "w.safetensors"
output = "out"
methods = ["svd", "tucker2"]
exclude = "0"
inputs = [1, 3, 6, 6]
placement = "classical"
seed = 5

[policy]
name = "budget"
params = "3/5"
multiple_of = 2

[overrides]
"4" = "ranks:3"
"2" = { name = "ranks", ranks = [3, 4] }
"""


def test_a_recipe_is_what_its_options_are(folder: Path, run: Run) -> None:
    (folder / "r.toml").write_text(RECIPE)
    done = run("compress", "--config", "r.toml", "--dry-run", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    options = (
        *("--methods", "svd,tucker2", "--exclude", "0", "--inputs", "1,3,6,6"),
        *("--placement", "classical", "--seed", "5", "--policy", "budget:params=3/5,multiple_of=2"),
        *("--override", "4=ranks:3", "--override", "2=ranks:3,4", "--weights", "w.safetensors"),
    )
    plain = run("compress", "mymodels:make", *options, "--dry-run", "--json", cwd=folder)
    assert plain.returncode == 0, plain.stderr
    assert rf.Plan.from_json(done.stdout) == rf.Plan.from_json(plain.stdout)


def test_flags_come_before_a_recipe(folder: Path, run: Run) -> None:
    (folder / "r.toml").write_text(RECIPE)
    command = ("compress", "--config", "r.toml", "--policy", "ratio:1/4", "-o", "other")
    done = run(*command, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert rf.Plan.from_json(done.stdout).policy == "Ratio(share=0.25)"
    assert not (folder / "out").exists()
    assert (folder / "other").is_dir()


def test_inspect_takes_the_recipe_of_compress(folder: Path, run: Run) -> None:
    (folder / "r.toml").write_text('target = "w.safetensors"\noutput = "out"\npolicy = "ranks:2"\n')
    done = run("inspect", "--config", "r.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "w.safetensors: parameters left by ranks:2" in done.stdout


WRONG = {
    'polcy = "vbmf"': "field 'polcy' is unknown; use target, output, weights, policy",
    'seed = "3"': "seed = '3': expected int, got str; it takes: Seed of all randomness",
    "weights = 3": "weights = 3: expected str, got int; it takes: The weights",
    "include = [1]": r"include = \[1\]: expected str, got int; it takes: Glob pattern",
    'loss = "mse"': "loss = 'mse': invalid enum value 'mse'; it takes:.*cross_entropy, or outputs",
    'policy = "magic"': "policy 'magic' is unknown; use one of budget",
    'policy = { name = "budget", mac = 1 }': "policy budget: 'mac=1'.*fields are params, macs",
    "policy = { macs = 0.5 }": "give its name",
    'policy = { name = "energy", share = "much" }': "energy: share=much cannot be read",
    'overrides = { "4" = "ranks:0" }': "rank 0",
    "seed =": "cannot be read: Invalid value",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_with_file_field_value_and_remedy(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(rf.RankfoldError, match=rf"recipe '.*r\.toml'.*{WRONG[text]}"):
        read_recipe(tmp_path / "r.toml")


def test_a_recipe_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rf.RankfoldError, match="recipe '"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(rf.RankfoldError, match="recipe '"):
        read_recipe(tmp_path)


def test_a_field_of_a_policy_that_is_a_function_is_imported() -> None:
    table = {"name": "budget", "drop": 0.01, "evaluate": "math:isfinite"}
    import math

    assert policy_of(table) == rf.Budget(drop=0.01, evaluate=math.isfinite)
    assert policy_of("budget:drop=0.01,evaluate=math:isfinite") == policy_of(table)
    with pytest.raises(rf.RankfoldError, match="'math:none' cannot be imported"):
        policy_of("budget:drop=0.01,evaluate=math:none")


def test_lists_that_are_empty_leave_the_recipe_alone(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('exclude = ["a"]\noverrides = ["b=energy:0.5"]\n')
    recipe = merged(Recipe(exclude=[], seed=0), tmp_path / "r.toml")
    assert recipe.exclude == ["a"]
    assert recipe.seed == 0
    assert overrides_of(recipe) == {"b": rf.Energy(0.5)}


def documented() -> list[str]:
    page = Path(__file__).parents[3] / "docs" / "reference" / "command-line.md"
    return re.findall(r"^```toml\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def test_the_recipes_of_the_documentation_are_read(tmp_path: Path) -> None:
    recipes = documented()
    assert recipes
    for text in recipes:
        (tmp_path / "r.toml").write_text(text)
        recipe = read_recipe(tmp_path / "r.toml")
        assert recipe.target
        assert recipe.policy
