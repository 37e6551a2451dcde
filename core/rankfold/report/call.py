"""The call that made a plan, as it can be written again."""

from __future__ import annotations

import re

from rankfold.console import printable
from rankfold.report.facts import PlanFacts

_FUNCTION = re.compile(r"evaluate=[^,)]+")


def call_of(plan: PlanFacts, *, informed: bool) -> tuple[str, str]:
    """Return the call that made a plan, and what its names of data stand for; "" if unknown.

    Args:
        plan: the plan.
        informed: whether there are errors of outputs.
    """
    if not plan.call:
        return "", ""
    # Data have no text. What the plan shows of them tells which there were.
    of_model = not plan.call.startswith("rf.compress_checkpoint(")
    data: dict[str, str] = {}
    if plan.macs is not None and of_model:
        data["inputs=x"] = "x is your example input"
    elif plan.macs is not None:
        data["inputs=shapes"] = "shapes are those of the inputs of layers"
    if (informed or plan.loss is not None) and of_model:
        data["calibration=batches"] = "batches are your calibration data"
    elif informed:
        data["moments=file"] = "file holds the moments of your calibration data"
    # A function is told by its name, which may be that of a lambda.
    asked, functions = _FUNCTION.subn("evaluate=evaluate", printable(plan.call).removesuffix(")"))
    names = list(data.values())
    if functions:
        names.append("evaluate gives the score of a model")
    text = ", ".join([asked, *data])
    name = "small" if of_model else "plan"
    return f"import rankfold as rf\n\n{name} = {text})", " and ".join(names)
