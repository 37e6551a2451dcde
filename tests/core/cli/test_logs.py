"""Progress in a log, where standard error is no terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import time
from rankfold.cli.logs import progress_logged
from rankfold import progress
progress._SILENCE = 0.1
def work():
    with progress.progress("planning", 8) as advance:
        for index in range(8):
            advance(f"layer{index}")
            time.sleep(0.05)
work()
with progress_logged():
    work()
work()
"""


def test_a_command_logs_progress_and_a_library_call_does_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    # Eight items in 0.4 s: at most a line each 0.1 s, and none outside of the command.
    assert 1 <= len(lines) <= 4
    line = r"\d{4}-\d\d-\d\d .* planning \d/8 \(\d+ %\), 0:00:0\d left: layer\d"
    assert all(re.fullmatch(line, text) for text in lines)
    assert done.stdout == ""
