"""The report of runs as one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from entrocraft.lab.report import figures, style, summary
from entrocraft.lab.report.runs import Run, differing_settings, grouped, load_runs
from entrocraft.lab.report.table import text_table


def write_report(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write ``report.html``, ``entropy.png`` and ``summary.json`` for one or several runs.

    Args:
        run_dirs: run directories, in the order in which they shall appear.
        output: directory for the three files, made if it does not exist; a path that ends in
            ``.html`` names the page itself. Default for one run: its own directory.

    Returns:
        The path of the page.

    Raises:
        RunError: a run cannot be read.
        ValueError: no run, or several runs and no ``output``.
    """
    if isinstance(run_dirs, (str, Path)):
        run_dirs = [run_dirs]
    if not run_dirs:
        raise ValueError("no run directories; give at least one")
    if output is None and len(run_dirs) > 1:
        raise ValueError(f"{len(run_dirs)} runs; say where the shared report goes with output")
    runs = load_runs(run_dirs)
    page = Path(run_dirs[0] if output is None else output)
    page = page if page.suffix == ".html" else page / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    style.save_png(figures.entropy_figure(runs), page.with_name("entropy.png"))
    numbers = [asdict(summary.summarize(run)) for run in runs]
    text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
    page.with_name("summary.json").write_text(text + "\n", encoding="utf-8")
    page.write_text(_render(runs), encoding="utf-8")
    return page


def _render(runs: Sequence[Run]) -> str:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    summaries, groups = [summary.summarize(run) for run in runs], grouped(runs)
    drawn = (figures.entropy_figure, figures.reward_figure, figures.control_figure)
    looks = {name: look["color"] for name, look in figures.looks_of(groups).items()}
    return environment.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else ", ".join(groups),
        runs=list(zip(runs, summaries, strict=True)),
        groups=groups,
        table=text_table(summaries),
        every=text_table([replace(s, group=s.name) for s in summaries]),
        colors=looks if len(groups) <= figures.TOGETHER else {n: style.color_of(n) for n in groups},
        pictures=[_picture(draw, runs) for draw in drawn],
        differing=differing_settings([members[0] for members in groups.values()]),
        to_yaml=lambda config: yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def _picture(
    draw: Callable[[Sequence[Run], float], Figure | None], runs: Sequence[Run]
) -> list[str] | None:
    """Return the figure as two data URIs: for a normal page and for a phone."""
    uris = []
    for width in (style.WIDE, style.NARROW):
        if (figure := draw(runs, width)) is None:
            return None
        buffer = io.BytesIO()
        with style.style():
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        uris.append("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode())
    return uris
