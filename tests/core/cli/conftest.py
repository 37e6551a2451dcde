"""A folder with what commands are about, and a way to run them in this process."""

import importlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.core.cli.commands import FACTORY, Run, network

from rankfold.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The same in this process, which is left as it was."""
    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in ending}
    modules = set(sys.modules)

    def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["rankfold", *arguments])
        importlib.invalidate_caches()
        with pytest.raises(SystemExit) as left:
            main()
        written = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(arguments, left.value.code, written.out, written.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in {"mymodels", "loud", "script"} & (set(sys.modules) - modules):
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    (tmp_path / "mymodels.py").write_text(FACTORY)
    (tmp_path / "script.py").write_text("import sys; sys.exit()")
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    torch.save(network().state_dict(), tmp_path / "w.pt")
    halves = {"half": torch.randn(19, 23).bfloat16(), "kernel": torch.randn(7, 5, 3, 2).half()}
    save_file({**halves, "steps": torch.arange(3)}, tmp_path / "half.safetensors")
    (tmp_path / "shapes.json").write_text('{"nothing": [1]}')
    (tmp_path / "text.safetensors").write_text("this is not a checkpoint")
    cut = (tmp_path / "w.safetensors").read_bytes()[:-100]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    return tmp_path
