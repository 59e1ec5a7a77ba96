"""From run directories to figures, a table and one self-contained page.

    from entrocraft.lab.report import write_report
    write_report(["runs/tilt", "runs/plain"], "report/")

A run that is still going or was killed has a report too. Names load on first use: importing this
package imports neither pandas, matplotlib, Jinja2 nor rich.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "entrocraft.lab.records": ("RunError",),
    "entrocraft.lab.report.figures": ("control_figure", "entropy_figure", "reward_figure"),
    "entrocraft.lab.report.page": ("write_report",),
    "entrocraft.lab.report.runs": ("Run", "load_run", "load_runs"),
    "entrocraft.lab.report.style": ("color_of", "save_png"),
    "entrocraft.lab.report.summary": ("Summary", "summarize"),
    "entrocraft.lab.report.table": ("group_table", "render_table"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
