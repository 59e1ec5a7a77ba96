"""From run directories to figures and one self-contained page.

Everything here is drawn from ``metrics.jsonl`` and ``config.yaml`` alone, so a report can be made
of a run that is still going, was killed, or was copied from another machine.

    from entrocraft.lab.report import write_report
    write_report(["runs/tilt", "runs/plain"], "report/")

Names load on first use: importing this package imports neither matplotlib, Jinja2 nor rich.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entrocraft.lab.report.figures import control_figure, entropy_figure, reward_figure
    from entrocraft.lab.report.groups import (
        Cell,
        Group,
        Row,
        describe_group,
        group_summaries,
        group_table,
        table_rows,
    )
    from entrocraft.lab.report.intervals import Spread
    from entrocraft.lab.report.page import write_report
    from entrocraft.lab.report.runs import Run, RunError, load_run, load_runs
    from entrocraft.lab.report.summary import PassAtK, Summary, describe, summarize, verdict
    from entrocraft.lab.report.svg import save_png, to_svg
    from entrocraft.lab.report.table import render_table

_HOME = {
    "Cell": "groups",
    "Group": "groups",
    "PassAtK": "summary",
    "Row": "groups",
    "Run": "runs",
    "RunError": "runs",
    "Spread": "intervals",
    "Summary": "summary",
    "control_figure": "figures",
    "describe": "summary",
    "describe_group": "groups",
    "entropy_figure": "figures",
    "group_summaries": "groups",
    "group_table": "groups",
    "load_run": "runs",
    "load_runs": "runs",
    "render_table": "table",
    "reward_figure": "figures",
    "save_png": "svg",
    "summarize": "summary",
    "table_rows": "groups",
    "to_svg": "svg",
    "verdict": "summary",
    "write_report": "page",
}

__all__ = [
    "Cell",
    "Group",
    "PassAtK",
    "Row",
    "Run",
    "RunError",
    "Spread",
    "Summary",
    "control_figure",
    "describe",
    "describe_group",
    "entropy_figure",
    "group_summaries",
    "group_table",
    "load_run",
    "load_runs",
    "render_table",
    "reward_figure",
    "save_png",
    "summarize",
    "table_rows",
    "to_svg",
    "verdict",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
