"""No file of the packages is so long that it has more than one subject."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 400


def test_no_file_is_longer_than_a_subject() -> None:
    lines = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for folder in ("core", "backends", "plugins")
        for file in (ROOT / folder).rglob("*.py")
    }
    assert lines
    assert {file: count for file, count in lines.items() if count > LONGEST} == {}
