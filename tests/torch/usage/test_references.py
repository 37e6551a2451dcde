"""In which manner, and under which conditions, a function uses what its names lead to."""

import ast
from textwrap import dedent

import pytest

from rankfold_torch.usage.names import ANY, BULK, Route
from rankfold_torch.usage.references import Reference, references


def read(body: str) -> list[Reference]:
    lines = "\n".join(f"    {line}" for line in dedent(body).strip().splitlines())
    function = ast.parse(f"def forward(self, x, share=False):\n{lines}").body[0]
    assert isinstance(function, ast.FunctionDef)
    return references(function, "self")


@pytest.mark.parametrize(
    ("body", "route", "manner"),
    [
        ("return self.a(x)", ("a",), "called"),
        ("return self.a(input=x)", ("a",), "called"),
        ("return self.a(x, None)", ("a",), "extended"),
        ("return x @ self.a.weight", ("a", "weight"), "used"),
        ("return linear(x, self.a.weight)", ("a", "weight"), "used"),
        ("w = self.a.weight\nreturn x @ w", ("a", "weight"), "used"),
        ("return self.a.weight", ("a", "weight"), "returned"),
        ("self.a.stride = 2", ("a", "stride"), "set"),
        ("setattr(self.a, 'stride', 2)", ("a", "stride"), "set"),
        ("self.a.__dict__.update(stride=2)", ("a", "__dict__"), "set"),
        ("nn.init.zeros_(self.a.weight)", ("a", "weight"), "written"),
        ("isinstance(self.a, Linear)", ("a",), "asked"),
        ("type(self.a)", ("a", "__class__"), "asked"),
        ("rest.append(self.a)", ("a",), "kept"),
        ("Wrapper(self.a)", ("a",), "kept"),
        ("for layer in self.layers: pass", ("layers",), "iterated"),
        ("for layer in self.layers:\n  x = layer(x)", ("layers", ANY), "called"),
        ("x.to(self.a.weight)", ("a", "weight"), "seen"),
        ("self.a.weight is None", ("a", "weight"), "seen"),
        ("self.a.weight > 0", ("a", "weight"), "used"),
        ("functional_call(self.a, state, x)", ("a", BULK), "used"),
        ("later = lambda: x @ self.a.weight", ("a", "weight"), "used"),
    ],
)
def test_a_use_has_its_manner(body: str, route: Route, manner: str) -> None:
    assert (route, manner) in {(use.route, use.manner) for use in read(body)}


def test_a_parameter_of_a_nested_function_hides_the_name() -> None:
    uses = read("def inner(self): return self.a.weight\nreturn inner(x)")
    assert [use for use in uses if use.route[:1] == ("a",)] == []


def conditions(body: str) -> list[tuple[str, bool]]:
    """Those of the only use of `self.a`, innermost last; "" stands for what cannot be told."""
    (use,) = (use for use in read(body) if use.route == ("a",))
    return [((c.test and ast.unparse(c.test)) or "", c.holds) for c in use.branch]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("if self.fast: return self.a(x)", [("self.fast", True)]),
        ("if self.fast: return x\nreturn self.a(x)", [("self.fast", False)]),
        ("if self.fast: x = 1\nelse: return x\nreturn self.a(x)", [("self.fast", True)]),
        ("return x if share else self.a(x)", [("share", False)]),
        ("return share and self.fast and self.a(x)", [("share", True), ("self.fast", True)]),
        ("return share or self.a(x)", [("share", False)]),
        ("while share: x = self.a(x)", [("share", True)]),
        ("try: pass\nexcept KeyError: x = self.a(x)", [("", True)]),
        ("match x:\n  case 1: return self.a(x)", [("", True)]),
        ("return [self.a(i) for i in x if share]", [("share", True)]),
        ("if share:\n  if not self.fast: self.a(x)", [("share", True), ("not self.fast", True)]),
    ],
)
def test_a_use_has_the_conditions_of_its_branch(
    body: str, expected: list[tuple[str, bool]]
) -> None:
    assert conditions(body) == expected


def test_an_option_and_what_is_assigned_are_known_to_the_conditions() -> None:
    (use,) = (use for use in read("y = self.fast\nif y: self.a(x)") if use.route == ("a",))
    (condition,) = use.branch
    assert condition.scope.self_name == "self"
    assert condition.scope.optional == {"share"}
    (value,) = condition.scope.assigned["y"]
    assert value is not None
    assert ast.unparse(value) == "self.fast"
