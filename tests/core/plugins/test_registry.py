"""Plugins: broken ones are reported and harm nobody, and the built-ins are plugins."""

import importlib.metadata
import subprocess
import sys
import tomllib
import types
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import rankfold as rf
from rankfold.decompose.svd import SVD
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.hookspecs import AdapterSpec, LayerRule, ParameterRule, hookimpl
from rankfold.plugins.registry import Registry, registry

ROOT = Path(__file__).parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Named:
    """A decomposition in everything but its name."""

    def __init__(self, name: object) -> None:
        self.name = name

    def __getattr__(self, part: str) -> object:
        return getattr(SVD, part)


def declaring(**hooks: object) -> dict[str, object]:
    return {"RANKFOLD_API": (1, 0), **{name: hookimpl(hook) for name, hook in hooks.items()}}


def raising() -> None:
    raise RuntimeError("broken on purpose")


class OfNoException(BaseException):
    pass


class TextlessError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


def raised(error: BaseException) -> object:
    raise error


class NamedOnce(Named):
    """A decomposition whose name is a property that can be asked for once."""

    def __init__(self) -> None:
        self.names = ["once"]

    @property
    def name(self) -> str:
        return self.names.pop()


class Unnamed:
    """Has every part but raises when asked for its name, and for what it is."""

    def __getattribute__(self, part: str) -> object:
        return raised(OfNoException()) if part in ("name", "from_text") else raising

    def __repr__(self) -> str:
        raise SystemExit("no text")


def unknown_argument(colour: object) -> tuple[()]:
    return ()


BROKEN = {
    "no_api": ({}, "api"),
    "api_too_new": ({"RANKFOLD_API": (1, 9)}, "api"),
    "api_of_another_major": ({"RANKFOLD_API": (2, 0)}, "api"),
    "api_that_is_text": ({"RANKFOLD_API": "1.0"}, "api"),
    "unknown_argument": (declaring(rankfold_adapters=unknown_argument), "register"),
    "unknown_hook": (declaring(rankfold_colours=lambda: ()), "check"),
    "unmarked_hook": ({"RANKFOLD_API": (1, 0), "rankfold_policies": lambda: ()}, "check"),
    "raises": (declaring(rankfold_decompositions=raising), "declare"),
    "garbage": (declaring(rankfold_decompositions=lambda: [1, 2]), "declare"),
    "no_iterable": (declaring(rankfold_policies=lambda: 5), "declare"),
    "no_adapter_spec": (declaring(rankfold_adapters=lambda: ["torch"]), "declare"),
    "letters_for_wrapper_parts": (
        declaring(
            rankfold_adapters=lambda: [AdapterSpec("a", ("a:B",), "a:C", wrapper_parts="_in")]
        ),
        "declare",
    ),
    "no_rule": (declaring(rankfold_layer_rules=lambda: [None]), "declare"),
    "taken_name": (declaring(rankfold_decompositions=lambda: [Named("svd")]), "declare"),
    "base_exception": (
        declaring(rankfold_policies=lambda: raised(OfNoException())),
        "declare",
    ),
    "generator_exit": (declaring(rankfold_adapters=lambda: raised(GeneratorExit())), "declare"),
    "textless": (declaring(rankfold_layer_rules=lambda: raised(TextlessError())), "declare"),
    "lazy": (
        declaring(rankfold_policies=lambda: (raised(OfNoException()) for _ in "a")),
        "declare",
    ),
    "twice": (declaring(rankfold_decompositions=lambda: [Named("a"), Named("a")]), "declare"),
    "blank_name": (declaring(rankfold_decompositions=lambda: [Named(" ")]), "declare"),
    "unprintable": (declaring(rankfold_decompositions=lambda: [Named("\x1b[2J")]), "declare"),
    "number_for_a_name": (declaring(rankfold_decompositions=lambda: [Named(5)]), "declare"),
    "raising_name": (declaring(rankfold_decompositions=lambda: [Unnamed()]), "declare"),
    "raising_part": (declaring(rankfold_policies=lambda: [Unnamed()]), "declare"),
    "no_name": (declaring(rankfold_decompositions=lambda: [Named("")]), "declare"),
}


IMPORTS = ("exits", "syntax", "missing", "base")


def entry(monkeypatch: pytest.MonkeyPatch, name: str, content: dict[str, object]) -> EntryPoint:
    module = types.ModuleType(f"plugin_{name}")
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return EntryPoint(name, module.__name__, "rankfold")


def installed() -> list[EntryPoint]:
    return list(importlib.metadata.entry_points(group="rankfold"))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    registry.cache_clear()
    yield monkeypatch
    registry.cache_clear()


def test_broken_plugins_side_by_side_are_each_reported_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "plugin_exits.py").write_text("raise SystemExit('gone')")
    (tmp_path / "plugin_syntax.py").write_text("def (")
    (tmp_path / "plugin_base.py").write_text("class Own(BaseException): ...\nraise Own")
    monkeypatch.syspath_prepend(tmp_path)
    points = [entry(monkeypatch, name, content) for name, (content, _) in BROKEN.items()]
    points += [EntryPoint(n, f"plugin_{n}", "rankfold") for n in IMPORTS]
    points.append(EntryPoint("rankfold", "plugin_raises", "rankfold"))
    good = entry(monkeypatch, "good", declaring(rankfold_decompositions=lambda: [Named("thirds")]))
    found = Registry()
    found.load([*points, good, *installed()])
    stages = {problem.plugin: problem.stage for problem in found.problems}
    expected = {name: stage for name, (_, stage) in BROKEN.items()}
    imports = dict.fromkeys(IMPORTS, "import")
    assert stages == {**expected, **imports, "rankfold": "register"}
    assert len(found.problems) == len(stages)
    assert "good" in found.plugins
    assert {"thirds", "svd", "tucker2", "cp"} <= set(found.decompositions)
    assert set(registry().policies) == set(found.policies)


def test_a_broken_plugin_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = declaring(
        rankfold_decompositions=lambda: [Named("fine")], rankfold_policies=lambda: [object]
    )
    found = Registry()
    found.load([entry(monkeypatch, "halves", halves)])
    assert found.decompositions == {}
    assert found.plugins == {}


def test_a_name_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    once = declaring(rankfold_decompositions=lambda: [NamedOnce()])
    found = Registry()
    found.load([entry(monkeypatch, "once", once)])
    assert list(found.decompositions) == ["once"]
    assert found.declared == {"once": ["decomposition once"]}


def test_a_plugin_that_is_listed_twice_stays_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = entry(monkeypatch, "twice", declaring(rankfold_decompositions=lambda: [Named("two")]))
    found = Registry()
    found.load([twice, twice])
    assert list(found.plugins) == ["twice"]
    assert found._manager.get_plugin("twice") is not None
    assert [problem.stage for problem in found.problems] == ["register"]


def test_the_interrupt_of_the_user_ends_the_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = declaring(rankfold_policies=lambda: raised(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Registry().load([entry(monkeypatch, "waiting", waiting)])


def test_a_distribution_with_a_damaged_list_hides_no_plugin(
    fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, listed in (("damaged", "[rankfold]\nno_value"), ("nameless", "[rankfold]\nb = c")):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(listed)
    fresh.syspath_prepend(tmp_path)
    assert {"rankfold", "torch"} <= set(registry().plugins)
    assert [problem.plugin for problem in registry().problems] == ["b"]


def test_threads_share_one_registry(fresh: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: registry(), range(8)))
    assert all(other is found[0] for other in found)
    assert {"rankfold", "torch"} <= set(found[0].plugins)


def test_a_plugin_that_asks_for_the_registry_gets_what_there_is(
    fresh: pytest.MonkeyPatch,
) -> None:
    asking = declaring(rankfold_decompositions=lambda: [registry().decompositions["svd"]])
    point = entry(fresh, "asking", asking)
    fresh.setattr("rankfold.plugins.registry.entry_points", lambda group: [*installed(), point])
    (problem,) = registry().problems
    assert "'svd' is already registered" in problem.error


def test_the_built_ins_win_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    first = entry(monkeypatch, "aaa", declaring(rankfold_decompositions=lambda: [Named("svd")]))
    found = Registry()
    found.load([first, *installed()])
    assert found.decompositions["svd"] is SVD
    assert [problem.plugin for problem in found.problems] == ["aaa"]


def test_strict_raises_at_the_first_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(rf.RankfoldError, match=r"plugin 'raises' failed at declare.*on purpose"):
        Registry(strict=True).load([entry(monkeypatch, "raises", BROKEN["raises"][0])])


def test_plugins_are_left_out_by_the_environment(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("RANKFOLD_DISABLE_PLUGINS", "jax, timm")
    assert not {"nnx", "linen"} & set(registry().adapters)
    assert not {"jax", "timm"} & set(registry().plugins)
    assert "torch" in registry().adapters


def test_strictness_is_asked_for_by_the_environment(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("RANKFOLD_STRICT_PLUGINS", "1")
    assert registry().strict
    registry.cache_clear()
    fresh.setenv("RANKFOLD_STRICT_PLUGINS", "0")
    assert not registry().strict


def test_an_observer_hears_of_layers_and_a_raising_one_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []

    def listen(report: LayerPlan) -> None:
        heard.append(report.path)

    def fail(report: LayerPlan) -> None:
        raise SystemExit("deaf")

    found = Registry()
    found.load(
        [
            entry(monkeypatch, "a_fails", declaring(rankfold_layer_done=fail)),
            entry(monkeypatch, "b_listens", declaring(rankfold_layer_done=listen)),
        ]
    )
    found.layer_done(LayerPlan(path="fc"))
    assert heard == ["fc"]
    assert [(p.plugin, p.stage) for p in found.problems] == [("a_fails", "layer_done")]


@pytest.mark.parametrize("event", ["model_done", "model_expanded"])
def test_an_observer_hears_of_models_and_a_raising_one_is_recorded(
    event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[object, Plan]] = []

    def listen(model: object, plan: Plan) -> None:
        heard.append((model, plan))

    def fail(model: object, plan: Plan) -> None:
        raise RuntimeError("deaf")

    found = Registry()
    found.load(
        [
            entry(monkeypatch, "a_fails", declaring(**{f"rankfold_{event}": fail})),
            entry(monkeypatch, "b_listens", declaring(**{f"rankfold_{event}": listen})),
        ]
    )
    model, plan = object(), Plan(layers=())
    getattr(found, event)(model, plan)
    assert heard == [(model, plan)]
    assert [(p.plugin, p.stage) for p in found.problems] == [("a_fails", event)]


def test_a_rule_that_says_badly_what_it_folds_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = LayerRule("torch", "a:B", read="c:d", folds=True)  # type: ignore[arg-type]
    found = Registry()
    found.load([entry(monkeypatch, "folds", declaring(rankfold_layer_rules=lambda: [rule]))])
    assert "say in words what it folds" in str(found.problems[0])


def test_no_adapter_names_the_problems_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Registry()
    found.load([entry(monkeypatch, "raises", BROKEN["raises"][0])])
    with pytest.raises(rf.RankfoldError, match=r"builtins\.int.*'raises' failed at declare"):
        found.adapter(5)


def test_an_adapter_that_cannot_be_imported_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AdapterSpec("numbers", ("builtins:int",), "no.such.module:Adapter")
    found = Registry()
    found.load([entry(monkeypatch, "numbers", declaring(rankfold_adapters=lambda: [spec]))])
    with pytest.raises(rf.RankfoldError, match="no adapter"):
        found.adapter(5)
    assert [(p.plugin, p.stage) for p in found.problems] == [("numbers", "adapter")]


def test_layer_rules_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = LayerRule("torch", "a:B", "c:d")
    found = Registry()
    found.load([entry(monkeypatch, "rules", declaring(rankfold_layer_rules=lambda: [rule]))])
    assert found.rules == [rule]


@pytest.mark.parametrize(
    "rule", [LayerRule("nxn", "a:B", "c:d"), ParameterRule("nxn", "a:B", ("w",))]
)
def test_a_rule_for_an_unknown_adapter_is_told_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, rule: LayerRule | ParameterRule
) -> None:
    other = declaring(rankfold_adapters=lambda: [AdapterSpec("late", ("a:B",), "a:C")])
    rules = [rule, LayerRule("late", "a:B", "c:d")]
    content = declaring(rankfold_layer_rules=lambda: rules)
    found = Registry(strict=True)
    found.load([entry(monkeypatch, "a_rules", content), entry(monkeypatch, "b_late", other)])
    (problem,) = found.problems
    assert (problem.plugin, problem.stage) == ("a_rules", "layer rules")
    assert problem.error == "'a:B' is for an unknown adapter, 'nxn'; known: late"
    assert "a_rules" in found.plugins


def test_a_policy_that_judges_what_it_cannot_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = type("Odd", (rf.VBMF,), {"name": "odd", "judges": "all"})
    found = Registry()
    found.load([entry(monkeypatch, "odd", declaring(rankfold_policies=lambda: [policy]))])
    (problem,) = found.problems
    assert "judges is 'all'" in str(problem)


def test_parameter_rules_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ParameterRule("torch", "a.*:B*", ("c",))
    found = Registry()
    found.load([entry(monkeypatch, "rules", declaring(rankfold_layer_rules=lambda: [rule]))])
    assert found.parameter_rules == [rule]
    assert found.declared["rules"] == ["parameter rule a.*:B*"]


@pytest.mark.parametrize("rule", [("torch", "a", ("c",)), ("torch", "a:B", "c")])
def test_a_malformed_parameter_rule_is_a_problem(
    rule: tuple[str, str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, made = Registry(), ParameterRule(*rule)
    found.load([entry(monkeypatch, "rules", declaring(rankfold_layer_rules=lambda: [made]))])
    assert [(p.plugin, p.stage) for p in found.problems] == [("rules", "declare")]


@pytest.mark.parametrize("names", [["svd", "magic"], ["SVD"], []])
def test_unknown_methods_are_an_error_that_lists_the_known(names: list[str]) -> None:
    with pytest.raises(rf.RankfoldError, match="methods: "):
        registry().methods(names)


def test_every_built_in_is_declared_by_an_entry_point() -> None:
    declared = PYPROJECT["project"]["entry-points"]["rankfold"]
    for folder, hook in (
        ("decompose", "rankfold_decompositions"),
        ("policies", "rankfold_policies"),
    ):
        for file in (ROOT / "core" / "rankfold" / folder).glob("*.py"):
            if f"def {hook}" in file.read_text():
                assert declared[file.stem] == f"rankfold.{folder}.{file.stem}"


def test_packages_are_what_the_folders_hold() -> None:
    named = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    parents = PYPROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]
    held = [
        f"{parent}/{child.name}"
        for parent in parents
        for child in (ROOT / parent).iterdir()
        if child.is_dir() and child.name != "__pycache__"
    ]
    assert sorted(held) == sorted(named)
    assert all((ROOT / package / "py.typed").is_file() for package in named)


FRAMEWORKS = ("torch", "jax", "flax", "onnx", "tensorly", "scipy")


@pytest.mark.parametrize(
    "code",
    [
        "import rankfold",
        "from rankfold.plugins.registry import registry; assert registry().adapters",
    ],
)
def test_no_framework_is_loaded(code: str) -> None:
    check = f"import sys; bad = set({FRAMEWORKS!r}) & set(sys.modules); assert not bad, bad"
    command = [sys.executable, "-W", "error", "-c", f"{code}; {check}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
