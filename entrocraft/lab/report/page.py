"""The report of runs as one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from entrocraft.lab.report import figures, style, summary
from entrocraft.lab.report.runs import Run, differing_settings, grouped, load_runs
from entrocraft.lab.report.table import text_table


def write_report(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write ``report.html``, ``entropy.png`` and ``summary.json`` for one or several runs.

    ``output`` is the directory of the three files, made if it does not exist, or a path of the page
    that ends in ``.html``; for one run its own directory if left out. Returns the page's path.

    Raises:
        RunError: a run cannot be read.
        ValueError: no run, or several runs and no ``output``.
    """
    run_dirs = [run_dirs] if isinstance(run_dirs, (str, Path)) else run_dirs
    if not run_dirs:
        raise ValueError("no run directories; give at least one")
    if output is None and len(run_dirs) > 1:
        raise ValueError(
            f"{len(run_dirs)} runs; say where the shared report goes with output (--output DIR)"
        )
    runs = load_runs(run_dirs)
    page = Path(run_dirs[0] if output is None else output)
    page = page.parent if page.is_file() and page.suffix != ".html" else page
    page = page if page.suffix == ".html" else page / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    style.save_png(figures.entropy_figure(runs), page.with_name("entropy.png"))
    summaries = [summary.summarize(run) for run in runs]
    text = json.dumps([asdict(s) for s in summaries], indent=2, ensure_ascii=False, allow_nan=False)
    page.with_name("summary.json").write_text(text + "\n", encoding="utf-8")
    page.write_text(_render(runs, summaries), encoding="utf-8")
    return page


def _render(runs: Sequence[Run], summaries: Sequence[summary.Summary]) -> str:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    groups = grouped(runs)
    drawn = (figures.entropy_figure, figures.reward_figure, figures.control_figure)
    looks = {name: look["color"] for name, look in figures.looks_of(groups).items()}
    return environment.get_template("page.html").render(
        title=" · ".join(groups) if len(groups) <= figures.TOGETHER else f"{len(groups)} methods",
        runs=list(zip(runs, summaries, strict=True)),
        groups=groups,
        table=text_table(summaries),
        every=text_table([replace(s, group=f"{s.name}, seed {s.seed}") for s in summaries]),
        colors=looks if len(groups) <= figures.TOGETHER else {n: style.color_of(n) for n in groups},
        pictures=[_picture(draw, runs) for draw in drawn],
        constants=summary,
        differing=differing_settings([members[0] for members in groups.values()]),
        to_yaml=lambda config: yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def _picture(draw: Callable[..., Figure | None], runs: Sequence[Run]) -> list[str]:
    """Return the figure as two data URIs, for a normal page and for a phone; none without one."""
    uris = []
    for width in (style.WIDE, style.NARROW):
        if (figure := draw(runs, width)) is not None:
            buffer = io.BytesIO()
            with style.style():
                figure.savefig(buffer, format="svg", metadata={"Date": None})
            uris.append("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode())
    return uris
