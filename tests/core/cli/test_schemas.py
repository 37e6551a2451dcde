"""The JSON schemas: as published, and of what they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.core.cli.commands import Run

from rankfold.cli.options import Recipe
from rankfold.cli.schemas import SCHEMAS, schema_text
from rankfold.plan.plan import LayerPlan, Plan

PUBLISHED = Path(__file__).parents[3] / "docs" / "schemas"


@pytest.mark.parametrize("what", SCHEMAS)
def test_the_published_schema_is_that_of_the_code(what: str) -> None:
    text = (PUBLISHED / f"{what}.json").read_text()
    assert text == f"{schema_text(what)}\n", (
        f"run: rankfold schema {what} > docs/schemas/{what}.json"
    )


@pytest.mark.parametrize("what", SCHEMAS)
def test_a_command_prints_it(what: str, tmp_path: Path, run: Run) -> None:
    assert json.loads(run("schema", what, cwd=tmp_path).stdout) == json.loads(schema_text(what))


def test_every_field_is_described() -> None:
    definitions = {
        **json.loads(schema_text("plan"))["$defs"],
        **json.loads(schema_text("recipe"))["$defs"],
    }
    for struct in (Plan, LayerPlan, Recipe):
        properties = definitions[struct.__name__]["properties"]
        assert list(properties) == list(struct.__struct_fields__)
        assert all(len(value["description"]) > 8 for value in properties.values())
    assert definitions["Recipe"]["additionalProperties"] is False
    assert "null" not in json.dumps(definitions["Recipe"])


def test_another_schema_is_refused(tmp_path: Path, run: Run) -> None:
    done = run("schema", "model", cwd=tmp_path)
    assert done.returncode == 2
    assert "schema 'model' is unknown; use plan or recipe" in done.stderr
