"""Routes from a name to what it leads to, as source has them written."""

import ast
from textwrap import dedent

import pytest

from rankfold_torch.usage.names import ANY, BELOW, BULK, Bindings, joined, routes

SELF = {"self": frozenset({()})}


def expression(text: str) -> set[tuple[str, ...]]:
    return set(routes(ast.parse(text, mode="eval").body, SELF))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("self.a.weight", {("a", "weight")}),
        ("self.a[0].weight", {("a", "0", "weight")}),
        ("self.a[i]", {("a", ANY)}),
        ("self.a if x else self.b", {("a",), ("b",)}),
        ("self.a or self.b", {("a",), ("b",)}),
        ("(c := self.a)", {("a",)}),
        ("[layer for layer in x]", set()),
        ("getattr(self, 'a').weight", {("a", "weight")}),
        ("getattr(self, name)", {(ANY,)}),
        ("self.get_parameter('a.weight')", {("a", "weight")}),
        ("self.get_parameter(name)", {(BULK, ANY)}),
        ("self.get_submodule(name).weight", {(BELOW, "weight")}),
        ("next(self.a.parameters())", {("a", BULK, ANY)}),
        ("list(self.layers)", {("layers",)}),
        ("self.__dict__['_modules']['a'].weight", {("a", "weight")}),
        ("vars(self)['a']", {("a",)}),
        ("self._parameters['weight']", {("weight",)}),
        ("other.a", set()),
        ("f(self.a)", set()),
    ],
)
def test_an_expression_leads_where_it_is_written_to(
    text: str, expected: set[tuple[str, ...]]
) -> None:
    assert expression(text) == expected


def test_iterating_over_all_modules_leads_to_what_they_say_already() -> None:
    assert joined({("a", BELOW)}, ANY) == {("a", BELOW)}
    assert joined({("a",)}, ANY, "weight") == {("a", ANY, "weight")}


def bound(source: str) -> dict[str, set[tuple[str, ...]]]:
    bindings = Bindings("self", SELF)
    for _ in range(2):  # a loop is read after what stands in it
        bindings.read(ast.parse(dedent(source)))
    return {name: set(leads) for name, leads in bindings.names.items() if name != "self"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a = self.a; a = self.b", {"a": {("a",), ("b",)}}),
        ("a, (b, c) = self.x, (self.y, 1)", {"a": {("x",)}, "b": {("y",)}, "c": set()}),
        ("a, b = self.pair", {"a": {("pair", ANY)}, "b": {("pair", ANY)}}),
        ("for a in self.layers: pass", {"a": {("layers", ANY)}}),
        ("a, *rest = self.layers", {"a": {("layers", ANY)}, "rest": {("layers",)}}),
        ("for a in (self.x, *self.y): pass", {"a": {("x",), ("y", ANY)}}),
        ("for a, i in [(self.x, 1), (self.y, 2)]: pass", {"a": {("x",), ("y",)}, "i": set()}),
        (
            "for both in zip([self.x], x): pass",
            {"both": set(), "both[0]": {("x",)}, "both[1]": set()},
        ),
        ("for i, a in enumerate(self.layers): pass", {"i": set(), "a": {("layers", ANY)}}),
        ("for x, a in zip(xs, self.layers): pass", {"x": set(), "a": {("layers", ANY)}}),
        (
            "for both in zip(self.x, self.y):\n a, b = both",
            {
                "both": set(),
                "both[0]": {("x", ANY)},
                "both[1]": {("y", ANY)},
                "a": {("x", ANY)},
                "b": {("y", ANY)},
            },
        ),
        ("for name, p in self.named_parameters(): pass", {"name": set(), "p": {(BULK, ANY)}}),
        ("for name in self.state_dict(): pass", {"name": set()}),
        ("with self.a as a: pass", {"a": set()}),
        ("def inner():\n b = self.b", {}),
        ("self = other.a", {}),
    ],
)
def test_local_names_stand_for_what_they_are_bound_to(
    source: str, expected: dict[str, set[tuple[str, ...]]]
) -> None:
    assert bound(source) == expected


def test_what_is_assigned_is_kept_in_order_and_none_where_it_cannot_be_told() -> None:
    bindings = Bindings("self", SELF)
    bindings.read(ast.parse("a = 1\na = self.b\nfor a in x: pass\na += 1"))
    first, second, *others = bindings.assigned["a"]
    assert first is not None
    assert second is not None
    assert (ast.unparse(first), ast.unparse(second)) == ("1", "self.b")
    assert others == [None, None]
