"""Puts parts of files outside docs/ into pages of the site; mkdocs calls it for each page.

A line `<!-- include: README.md#What is supported -->` is replaced by what stands below that heading,
one without a heading, `<!-- include: CHANGELOG.md -->`, by the file below its title.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_INCLUDE = re.compile(r"^<!-- include: ([^#\n]+?)(?:#(.+?))? -->$", re.M)
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of a page with the parts that it asks for."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if not target.startswith("docs/"):
            return text  # what is not in docs/ is not on the site
        return f"[{text}]({posixpath.relpath(target.removeprefix('docs/'), folder or '.')})"

    def part(match: re.Match[str]) -> str:
        name, heading = match.groups()
        return _LINK.sub(link, section((_ROOT / name).read_text(), heading))

    return _INCLUDE.sub(part, markdown)


def section(text: str, heading: str | None) -> str:
    """Return what stands below a heading of the second level, or below the title.

    Raises:
        ValueError: there is no such heading.
    """
    if heading is None:
        return text.partition("\n")[2]
    _, start, rest = text.partition(f"\n## {heading}\n")
    if not start:
        raise ValueError(f"no heading {heading!r}; see the includes in docs/")
    return rest.partition("\n## ")[0]
