"""The page: what is on it, and what happens on it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from entrocraft.lab.watch import figures
from entrocraft.lab.watch.runs import RunReader, Watched
from entrocraft.steering import STEERED_FILE, give_command

UPDATE = 1000  # milliseconds
_MOST_SHOWN = 6  # runs that are ticked when the page is opened
_HOW = (
    "None of these runs takes commands now. Runs of `entrocraft train` do while they go; a TRL "
    "script's do with `trainer.add_callback(entrocraft.trl.Steering(trainer))`."
)
_COMMANDS = threading.Lock()  # commands are numbered


def build(paths: Sequence[Path], update: int = UPDATE) -> Dash:
    """Return the page that follows the runs in these directories.

    Args:
        paths: run directories, or directories above them.
        update: milliseconds between two looks at their files.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Dash(
        __name__,
        title="entrocraft watch",
        update_title="",
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        add_log_handler=False,
    )
    app.layout = lambda: _layout(update)
    _Page(RunReader(paths), fresh=update / 2000).connect(app)
    return app


class _Page:
    """The callbacks, over one reader for all visitors."""

    def __init__(self, reader: RunReader, fresh: float = 0.0) -> None:
        self._reader, self._lock = reader, threading.Lock()
        self._fresh, self._when = fresh, -math.inf  # seconds for which a look at the files serves

    def runs(self) -> tuple[list[Watched], list[str]]:
        with self._lock:
            if time.monotonic() - self._when > self._fresh:
                self._found, self._when = self._reader.read(), time.monotonic()
            return self._found

    def run(self, label: str | None) -> Watched | None:
        return next((run for run in self.runs()[0] if run.label == label), None)

    def connect(self, app: Dash) -> None:
        app.clientside_callback(
            "() => window.matchMedia('(prefers-color-scheme: dark)').matches",
            Output("dark", "data"),
            Input("dark", "id"),
        )
        app.callback(
            Output("chosen", "options"),
            Output("chosen", "value"),
            Output("steered", "options"),
            Output("steered", "value"),
            Output("problems", "children"),
            Input("tick", "n_intervals"),
            State("chosen", "options"),
            State("chosen", "value"),
            State("steered", "value"),
        )(self.choices)
        app.callback(
            *(Output(f"chart-{name}", "figure") for name in figures.CHARTS),
            Output("drawn", "data"),
            Input("tick", "n_intervals"),
            Input("chosen", "value"),
            Input("dark", "data"),
            State("drawn", "data"),
            running=[(Output("tick", "disabled"), True, False)],  # no looks pile up
        )(self.charts)
        app.callback(
            Output("download", "data"),
            Input("export", "n_clicks"),
            State("chosen", "value"),
            prevent_initial_call=True,
        )(self.export)
        app.callback(
            Output("steer", "hidden"),
            Output("how", "hidden"),
            Output("state", "children"),
            Output("refused", "children"),
            Output("pause", "children"),
            Input("tick", "n_intervals"),
            Input("steered", "value"),
        )(self.state)
        app.callback(
            Output("draft", "value"),
            Input("steered", "value"),
            Input("editor", "relayoutData"),
            Input("add", "n_clicks"),
            State("draft", "value"),
        )(self.draft)
        app.callback(
            Output("editor", "figure"),
            Output("wrong", "children"),
            Output("apply", "disabled"),
            Output("edited", "data"),
            Input("draft", "value"),
            Input("tick", "n_intervals"),
            Input("steered", "value"),
            Input("dark", "data"),
            State("edited", "data"),
        )(self.editor)
        app.callback(
            Output("said", "children"),
            Input("apply", "n_clicks"),
            Input("pause", "n_clicks"),
            Input("confirm", "submit_n_clicks"),
            State("steered", "value"),
            State("draft", "value"),
            prevent_initial_call=True,
        )(self.command)
        app.clientside_callback(
            "clicks => Boolean(clicks)", Output("confirm", "displayed"), Input("stop", "n_clicks")
        )
        app.callback(
            Output("batch", "options"),
            Output("batch", "value"),
            Output("rollouts", "children"),
            Input("tick", "n_intervals"),
            Input("chosen", "value"),
            Input("batch", "value"),
            State("batch", "options"),
        )(self.rollouts)

    def choices(self, tick: Any, options: Any, chosen: Any, steered: str | None) -> tuple:
        """Runs that can be ticked, and those that can be steered."""
        runs, problems = self.runs()
        labels = [run.label for run in runs]
        known = [option["value"] for option in options or []]
        if not known:
            chosen = labels[:_MOST_SHOWN]
        elif len(known) < _MOST_SHOWN:  # runs that have begun meanwhile
            chosen = [*chosen, *(label for label in labels if label not in known)]
        live = [run.label for run in runs if run.live]
        value = steered if steered in live else next(iter(live), None)
        return (
            no_update if labels == known else [{"label": x, "value": x} for x in labels],
            no_update if known and labels == known else [x for x in chosen if x in labels],
            [{"label": x, "value": x} for x in live],
            no_update if value == steered else value,
            [html.P(problem, className="problem") for problem in problems],
        )

    def charts(self, tick: Any, chosen: Any, dark: Any, drawn: Any) -> tuple:
        """All charts, if there is something new to draw."""
        runs = [run for run in self.runs()[0] if run.label in (chosen or [])]
        sign = [[r.label, r.last_step, len(r.run.frame), _now(r)] for r in runs]
        sign.append([bool(dark)])
        if sign == drawn:
            return (no_update,) * (len(figures.CHARTS) + 1)
        found = figures.charts(runs, bool(dark))
        return (*(found[name] for name in figures.CHARTS), sign)

    def export(self, clicks: Any, chosen: Any) -> Any:
        """The table behind the charts as a CSV file."""
        runs = [run for run in self.runs()[0] if run.label in (chosen or [])]
        table = figures.exported(runs)
        return dcc.send_data_frame(table.to_csv, "entrocraft.csv", index=False)

    def state(self, tick: Any, label: str | None) -> tuple:
        """What the steered run says of itself."""
        run = self.run(label)
        if run is None or run.steered is None or not run.live:
            return True, False, "", "", "Pause"
        said = run.steered
        file = run.run.path / STEERED_FILE
        ago = max(time.time() - file.stat().st_mtime, 0.0) if file.exists() else 0.0
        heard = f", {_duration(ago)} ago" if ago >= 5 else ""
        text = [
            html.Span(said.state, className=f"badge {said.state}"),
            f" step {said.step} of {said.steps}{heard}",
        ]
        refused = f"The run refused: {said.error}" if said.error else ""
        return False, True, text, refused, "Go on" if said.state == "paused" else "Pause"

    def draft(self, label: str | None, dragged: Any, added: Any, draft: str | None) -> Any:
        """The draft: of a run that is chosen, the present schedule; else what was dragged."""
        run = self.run(label)
        if run is None:
            return no_update
        if ctx.triggered_id not in ("editor", "add") or not draft:
            return run.schedule or ""
        try:
            points = figures.draft_points(run, draft or "")
            if ctx.triggered_id == "add":
                return figures.with_point(points)
            return _dragged(points, dragged or {})
        except ValueError:
            return no_update

    def editor(
        self, draft: str | None, tick: Any, label: str | None, dark: Any, edited: Any
    ) -> tuple:
        """The draft as a curve, and what is wrong with it."""
        run = self.run(label)
        # drawn again seldom: a drag does not outlive it
        grown = run and run.last_step * 50 // run.steps
        sign = [label, draft, bool(dark), grown, run and _now(run)]
        if run is None or sign == edited:
            return no_update, no_update, no_update, no_update
        try:
            figure, wrong = figures.editor(run, draft, bool(dark)), ""
        except ValueError as error:
            figure, wrong = figures.editor(run, None, bool(dark)), str(error)
        return figure, wrong, bool(wrong) or not draft, sign

    def command(
        self, apply: Any, pause: Any, stop: Any, label: str | None, draft: str | None
    ) -> str:
        """Ask the run for something."""
        run = self.run(label)
        if run is None or run.steered is None or not run.live:
            return "This run takes no commands any more."
        paused = run.steered.state == "paused"
        action, schedule = "pause" if paused else "run", None
        if ctx.triggered_id == "apply":
            try:
                run.curve(draft or "")
            except ValueError as error:
                return f"Not sent: {error}"
            schedule, text = draft, "The run follows it from its next batch on."
        elif ctx.triggered_id == "confirm":
            action, text = "stop", "The run ends after its batch, with a checkpoint."
        elif paused:
            action, text = "run", "The run goes on."
        else:
            action, text = "pause", "The run waits before its next batch."
        try:
            with _COMMANDS:
                command = give_command(run.run.path, action, schedule)
        except (OSError, ValueError) as error:
            return f"Not sent: {error}"
        return f"Command {command.number} sent. {text}"

    def rollouts(self, tick: Any, chosen: Any, batch: Any, options: Any) -> tuple:
        """Sample rollouts of the first ticked run that has any."""
        for run in self.runs()[0]:
            records = run.rollouts() if run.label in (chosen or []) else []
            if records:
                break
        else:
            text = "None of the runs shown records rollouts; those of entrocraft train do."
            return [], "latest", html.P(text, className="soft")
        steps = ["latest", *(str(record["step"]) for record in reversed(records))]
        batch = batch if batch in steps else "latest"
        if ctx.triggered_id == "tick" and options and len(options) == len(steps):
            return no_update, no_update, no_update
        found = records[-1] if batch == "latest" else records[-steps.index(batch)]
        title = html.P(f"{run.label}, step {found['step']}", className="soft")
        cards = [_rollout(rollout) for rollout in found["rollouts"]]
        named = [{"label": s if s == "latest" else f"step {s}", "value": s} for s in steps]
        return named, batch, [title, html.Div(cards, className="rollouts")]


def _layout(update: int) -> Any:
    charts = [
        html.Section(
            [html.H2(title), _plot(f"chart-{name}", _CONFIG)],
            className=f"card chart {name}",
        )
        for name, title in figures.CHARTS.items()
    ]
    edits: Any = {"edits": {"shapePosition": True}}
    steer = html.Section(
        [
            html.H2("Steer"),
            html.Div(dcc.Markdown(_HOW), id="how", className="soft"),
            html.Div(
                [
                    html.Div(
                        [
                            dcc.Dropdown(id="steered", clearable=False, searchable=False),
                            html.Div(id="state"),
                            html.Button("Pause", id="pause"),
                            html.Button("Stop", id="stop", className="danger"),
                        ],
                        className="row",
                    ),
                    _plot("editor", _CONFIG | edits),
                    html.Label("Schedule, by optimizer step of the run", htmlFor="draft"),
                    dcc.Textarea(id="draft", spellCheck=False, rows=3),
                    html.Div(
                        [
                            html.Button("Add a point", id="add"),
                            html.Button("Apply", id="apply", className="primary"),
                            html.Span(id="said", className="soft", role="status"),
                        ],
                        className="row",
                    ),
                    html.P(id="wrong", className="problem"),
                    html.P(id="refused", className="problem"),
                    html.P("Drag the points, or type.", className="soft"),
                ],
                id="steer",
                hidden=True,
            ),
        ],
        className="card steer",
    )
    rollouts = html.Section(
        [
            html.H2("Sample rollouts"),
            dcc.Dropdown(
                id="batch", value="latest", options=["latest"], clearable=False, searchable=False
            ),
            html.Div(id="rollouts"),
        ],
        className="card samples",
    )
    head = html.Header(
        [
            html.H1("entrocraft watch"),
            dcc.Checklist(id="chosen", options=[], value=[], className="runs"),
            html.Button("Export CSV", id="export"),
        ]
    )
    hidden = [
        dcc.Interval(id="tick", interval=update),
        dcc.Store(id="dark"),
        dcc.Store(id="drawn"),
        dcc.Store(id="edited"),
        dcc.Download(id="download"),
        dcc.ConfirmDialog(id="confirm", message="End this run after its present batch?"),
    ]
    grid = html.Div([*charts, steer, rollouts], className="grid")
    return html.Main([head, html.Div(id="problems"), grid, *hidden])


_CONFIG: Any = {"displaylogo": False, "displayModeBar": False, "scrollZoom": False}


def _plot(name: str, config: Any) -> Any:
    blank = {"layout": {"xaxis": {"visible": False}, "yaxis": {"visible": False}} | figures.CLEAR}
    graph = dcc.Graph(
        id=name, figure=blank, config=config, responsive=True, style={"height": "100%"}
    )
    return html.Div(graph, className="plot")


def _rollout(rollout: dict[str, Any]) -> Any:
    """One rollout as a card."""
    state = "kept" if rollout.get("kept") else "rejected"
    shown = state if rollout.get("advantage") else "no gradient"
    facts = [
        html.Div([html.Dt(name.replace("_", " ")), html.Dd(_number(rollout[name]))])
        for name in ("reward", "advantage", "predicted_effect", "keep_probability")
        if isinstance(rollout.get(name), (int, float))
    ]
    return html.Article(
        [
            html.Span(shown, className=f"badge {state}"),
            html.Dl(facts),
            html.Pre(str(rollout.get("prompt", "")), className="prompt"),
            html.Pre(str(rollout.get("completion", ""))),
        ]
    )


def _number(value: float) -> str:
    """Three digits; what is all but 0 as 0."""
    return f"{value:.3g}" if abs(value) >= 1e-6 else "0"


def _dragged(points: Sequence[tuple[int, float]], dragged: dict[str, Any]) -> Any:
    """The draft after a drag, which the browser tells as {"shapes[2].xanchor": 41.3, ...}."""
    for number in range(len(points)):
        x, y = (dragged.get(f"shapes[{number}].{axis}anchor") for axis in "xy")
        if x is not None or y is not None:
            return figures.moved(points, number, x, y)
    return no_update


def _now(run: Watched) -> Any:
    return run.steered and [run.steered.state, run.steered.schedule]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
