from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from rankfold.cli.options import Recipe, described, with_options


def test_every_field_is_described_in_the_help() -> None:
    for name in Recipe.__struct_fields__:
        assert described(name).strip()
    assert "budget:params=0.5" in described("policy")


def test_a_function_gets_fields_as_keywords_behind_its_own() -> None:
    def command(dry: bool = False, **options: Any) -> None:
        """Do something."""

    function = with_options(command, ("policy", "seed", "include"))
    parameters = inspect.signature(function).parameters
    assert list(parameters) == ["dry", "policy", "seed", "include"]
    assert all(parameters[name].default is None for name in ("policy", "seed", "include"))
    assert parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_command_line_takes_the_first_type_of_a_field() -> None:
    def command(**options: Any) -> None:
        """Do something."""

    hints = get_type_hints(with_options(command), include_extras=True)
    kinds = {name: get_args(get_args(hints[name])[0])[0] for name in Recipe.__struct_fields__}
    assert kinds["policy"] is str  # in a recipe a table, too
    assert kinds["include"] == list[str]
    assert kinds["placement"] is str  # of the words of a Literal
    assert kinds["output"] is Path
    assert kinds["refit"] is bool


def test_a_field_that_there_is_not_is_refused_in_a_recipe() -> None:
    with pytest.raises(msgspec.ValidationError, match="polcy"):
        msgspec.json.decode(b'{"polcy": "vbmf"}', type=Recipe)
