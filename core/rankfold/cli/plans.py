"""Plans that lie on disk: in a folder, in a file with a whole model, or in a file of their own."""

from __future__ import annotations

from pathlib import Path

from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan
from rankfold.storage.model_files import known_kind, plan_in
from rankfold.storage.saved_plan import PLAN, read_plan, saved_at


def plan_at(source: Path) -> Plan:
    """Return the plan of a folder, of a file with a whole model, or of a file that is a plan.

    Raises:
        RankfoldError: there is none, or it cannot be read.
    """
    if known_kind(source) is not None:
        return plan_in(source)
    if not source.is_file():
        return read_plan(source).plan
    if source.name == PLAN and saved_at(source.parent) is not None:
        return read_plan(source.parent).plan
    try:
        return Plan.from_json(source.read_bytes())
    except OSError as error:
        raise RankfoldError(f"{str(source)!r} cannot be read: {error}") from None
