"""The code of the documentation and of public docstrings runs; every hook is documented."""

import doctest
import inspect
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold import plugins, testing
from rankfold.plugins import hookspecs

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "examples" not in p.parts)


BLOCK = re.compile(r"^(?:<!-- needs: (.*?) -->\n)?```python\n(.*?)^```$", flags=re.M | re.S)


def code(page: Path) -> list[tuple[str | None, str]]:
    """The blocks of a page with the packages that each needs besides what development installs.

    Each has as many empty lines in front as there are lines above it: where a class is defined,
    rankfold reads the source of its methods, which Python then finds in the page.
    """
    text = page.read_text()
    return [
        (match[1], "\n" * text.count("\n", 0, match.start(2)) + match[2])
        for match in BLOCK.finditer(text)
    ]


def blocks(page: Path) -> list[str]:
    """The blocks of a page that run with what development installs."""
    return [block for packages, block in code(page) if packages is None]


def demanding_blocks() -> list[pytest.ParameterSet]:
    """The other blocks, with the packages that each needs."""
    return [
        pytest.param(page, packages.split(", "), block, id=f"{page.stem}-{packages}")
        for page in PAGES
        for packages, block in code(page)
        if packages is not None
    ]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: "/".join(p.parts[-2:])
)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # pages write files by their names alone
    namespace: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)
    assert "rf" in namespace


@pytest.mark.filterwarnings("default")  # of other packages on one another
@pytest.mark.parametrize(("page", "packages", "block"), demanding_blocks())
def test_the_code_that_needs_a_package_runs(page: Path, packages: list[str], block: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    namespace: dict[str, object] = {}
    for part in (blocks(page)[0], block):
        exec(compile(part, str(page), "exec"), namespace)
    assert "rf" in namespace


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return _Net()

    namespace: dict[str, object] = {
        "model": make(),
        "MyModel": make,
        "x": torch.randn(1, 3, 12, 12),
        "fine_tune": lambda model: None,
        "w": torch.randn(64, 48, 3, 3).numpy(),
        "w2": torch.randn(40, 30).numpy(),
        "b": torch.randn(40).numpy(),
        "matrix": torch.randn(20, 30).numpy(),
    }
    for block in blocks(ROOT / "README.md"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "out" / "plan.json").is_file()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stage1 = nn.Sequential(nn.Conv2d(16, 32, 3))
        self.stage2 = nn.Conv2d(32, 64, 3)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("name", sorted(rf.__all__))
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"np": np, "torch": torch, "nn": nn, "rf": rf}
    [example] = doctest.DocTestFinder(recurse=False).find(
        getattr(rf, name), name, module=False, globs=names
    )
    log: list[str] = []
    outcome = doctest.DocTestRunner().run(example, out=log.append)
    assert outcome.attempted
    assert not outcome.failed, "".join(log)


def test_every_public_name_is_in_the_reference() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    paths = [path for page in pages for path in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    documented = [pkgutil.resolve_name(path) for path in paths]
    names = {rf: dir(rf), plugins: plugins.__all__, testing: testing.__all__}
    missing = [
        f"{module.__name__}.{name}"
        for module, listed in names.items()
        for name in listed
        if not any(getattr(module, name) is value for value in documented)
    ]
    assert missing == []


def test_the_messages_that_are_explained_are_those_of_the_code() -> None:
    files = [f for folder in ("core", "backends", "plugins") for f in (ROOT / folder).rglob("*.py")]
    # A message that is broken into several literals is one text again.
    source = "".join(re.sub(r'"\s*\n\s*f?"', "", file.read_text()) for file in files)
    page = (ROOT / "docs" / "explanation" / "messages.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", page, re.M)
    parts = [part.strip() for cell in cells for part in re.split(r"\.\.\.|`, `|`", cell)]
    assert len(parts) > 100
    assert [part for part in parts if part not in source] == []


def hooks() -> list[str]:
    return [
        name
        for name, value in vars(hookspecs).items()
        if inspect.isfunction(value) and name.startswith("rankfold_")
    ]


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_is_documented_with_its_arguments(hook: str) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"`{hook}({arguments})`" in (ROOT / "docs" / "how-to" / "plugins.md").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
