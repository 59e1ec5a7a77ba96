"""The page without a browser: what is read, drawn, exported, commanded, and who may see it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from dash import Dash

from entrocraft.lab.watch import figures, page
from entrocraft.lab.watch.runs import RunReader
from entrocraft.lab.watch.server import serve
from entrocraft.steering import Steered, read_command
from tests.lab.report.test_report import records, write_run
from tests.lab.training.runs import obey_ctrl_c

STEERED = Steered(step=41, steps=80, schedule="linear(0.5, 0.3, 40)", initial=0.5)


@pytest.fixture
def live(tmp_path):
    """A run directory of 40 steps that says that it goes on."""
    path = write_run(tmp_path / "runs" / "live", records(), name="live")
    STEERED.write(path)
    return path


def only(path):
    [run], problems = RunReader([path]).read()
    assert problems == []
    return run


def test_runs_are_found_below_a_directory_and_read_again_when_they_grow(tmp_path, live):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / "study" / f"s{seed}", records(), name="tilt", seed=seed)
    trl = tmp_path / "runs" / "trl" / "checkpoint-3"
    trl.mkdir(parents=True)
    history = [{"step": step, "entropy": 0.4, "reward": 0.1} for step in (1, 2, 3)]
    (trl / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": history}))
    (tmp_path / "runs" / "starting").mkdir()
    (tmp_path / "runs" / "starting" / "metrics.jsonl").write_text("")

    reader = RunReader([tmp_path / "runs", tmp_path / "later"])
    runs, problems = reader.read()
    assert [run.label for run in runs] == ["live", "tilt seed 1", "tilt seed 2", "trl"]
    assert [run.live for run in runs] == [True, False, False, False]
    assert len(problems) == 1
    assert "wait for the first optimizer step" in problems[0]

    with (live / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 41, "reward": 0.5, "schedule": "0.45"}) + "\n")
    write_run(tmp_path / "later", records(), name="later")
    runs, _ = reader.read()
    assert (runs[0].last_step, runs[0].run.schedules) == (41, {41: "0.45"})
    assert runs[-1].label == "later"


def test_nothing_yet_is_said(tmp_path):
    runs, [problem] = RunReader([tmp_path / "absent"]).read()
    assert runs == []
    assert "as soon as it logs a step" in problem


@pytest.mark.parametrize("dark", [False, True])
def test_charts_show_target_reach_and_what_is_to_come(live, tmp_path, dark):
    run = only(live)
    drawn = figures.charts([run], dark)
    assert set(drawn) == set(figures.CHARTS)
    traces = {trace.get("name"): trace for trace in drawn["entropy"]["data"]}
    assert traces["target"]["y"][-1] == pytest.approx(0.3)
    assert traces["target, to come"]["x"][-1] == 80
    band = traces["within reach"]
    assert band["y"][0] == pytest.approx(traces["estimate"]["y"][0] + 0.004)
    json.dumps(drawn, allow_nan=False)  # what the browser gets

    other = only(write_run(tmp_path / "other", records(offset=0.1), name="other"))
    together = figures.charts([run, other], dark)["entropy"]["data"]
    probes = [trace for trace in together if "error_y" in trace]
    assert [trace["name"] for trace in probes] == ["live", "other"]
    assert len({trace["line"]["color"] for trace in probes}) == 2
    empty = figures.charts([], dark)["reward"]
    assert empty["layout"]["annotations"][0]["text"] == "not logged"


def test_the_export_has_what_the_charts_show(live):
    run = only(live)
    run.run.schedules[20] = "0.4"
    table = figures.exported([run])
    assert {"run", "step", "entropy/target", "entropy/probe", "reward", "eval/pass@4"} <= set(table)
    assert table.loc[table["step"] == 30, "schedule"].item() == "0.4"
    assert len(table) == len(run.run.frame)


def test_points_are_dragged_within_bounds(live):
    run = only(live)
    points = figures.draft_points(run, "piecewise([(0, 0.5), (40, 0.6), (80, 0.3)])")
    assert (
        figures.moved(points, 1, 50.4, 0.7123) == "piecewise([(0, 0.5), (50, 0.7123), (80, 0.3)])"
    )
    assert figures.moved(points, 1, 200, -1) == "piecewise([(0, 0.5), (79, 0), (80, 0.3)])"
    assert figures.moved(points, 0, None, 0.4) == "piecewise([(0, 0.4), (40, 0.6), (80, 0.3)])"
    assert figures.with_point(points).startswith("piecewise([(0, 0.5), (20, 0.55), (40, 0.6)")
    # other shapes are dragged by points on them
    assert figures.draft_points(run, "initial")[-1] == (80, 0.5)
    assert len(figures.draft_points(run, "cosine(initial, 0.2, 60)")) == figures.SAMPLED_POINTS
    shapes = figures.editor(run, "linear(0.5, 0.3, 80)", False)["layout"]["shapes"]
    assert [shape["type"] for shape in shapes] == ["circle", "circle"]


@pytest.fixture
def opened(live, monkeypatch):
    """The page's callbacks, and a way to say which control has called."""
    shown = page._Page(RunReader([live]))

    def called_by(name):
        monkeypatch.setattr(page, "ctx", type("Context", (), {"triggered_id": name}))

    return shown, called_by


def test_commands_reach_the_run_and_a_bad_schedule_does_not(live, opened):
    shown, called_by = opened
    called_by("apply")
    assert "follows it from its next batch" in shown.command(1, 0, 0, "live", "constant(0.4)")
    assert read_command(live).schedule == "constant(0.4)"
    for bad in ("liner(1, 2, 3)", "constant(0.1 - initial)", "", "__import__('os')"):
        assert shown.command(1, 0, 0, "live", bad).startswith("Not sent: ")
        figure, wrong, disabled, _ = shown.editor(bad, 0, "live", False, None)
        assert disabled
        assert wrong or not bad
        assert figure["data"], "the present schedule stays"
    assert read_command(live).number == 1

    called_by("pause")
    shown.command(1, 1, 0, "live", "")
    assert read_command(live).action == "pause"
    replace(STEERED, state="paused", number=2, error="no").write(live)
    hidden, _, _, refused, pause = shown.state(0, "live")
    assert (hidden, refused, pause) == (False, "The run refused: no", "Go on")
    called_by("apply")
    shown.command(2, 1, 0, "live", "0.4")
    assert read_command(live).action == "pause", "a new schedule does not end the pause"
    called_by("pause")
    shown.command(2, 2, 0, "live", "")
    assert read_command(live).action == "run"
    called_by("confirm")
    shown.command(2, 2, 1, "live", "")
    assert read_command(live).action == "stop"

    replace(STEERED, state="stopped").write(live)
    assert "no commands any more" in shown.command(3, 2, 1, "live", "0.4")
    assert shown.state(0, "live")[0] is True


def test_dragging_and_adding_change_the_draft(opened):
    shown, called_by = opened
    called_by("steered")
    draft = shown.draft("live", None, None, None)
    assert draft == "linear(0.5, 0.3, 40)"
    called_by("editor")
    dragged = {"shapes[1].xanchor": 60.2, "shapes[1].yanchor": 0.42}
    draft = shown.draft("live", dragged, None, draft)
    assert draft == "piecewise([(0, 0.5), (60, 0.42)])"
    called_by("add")
    assert shown.draft("live", None, 1, draft) == "piecewise([(0, 0.5), (30, 0.46), (60, 0.42)])"


def test_sample_rollouts_are_text(live, opened):
    shown, called_by = opened
    called_by("tick")
    assert "records rollouts" in str(shown.rollouts(0, ["live"], "latest", [])[2])
    rollout = {"prompt": "<script>", "completion": "2*3", "advantage": 0.5, "kept": True}
    rows = [{"step": step, "rollouts": [rollout | {"reward": step}]} for step in (0, 1)]
    (live / "rollouts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"st')
    options, _, shown_now = shown.rollouts(0, ["live"], "latest", [])
    assert [option["value"] for option in options] == ["latest", "1", "0"]
    assert "live, step 1" in str(shown_now)
    called_by("batch")
    assert "live, step 0" in str(shown.rollouts(0, ["live"], "0", options)[2])


def test_only_this_machine_or_a_token_gets_in(live):
    def client(host, token=None):
        app = page.build([live])
        assert isinstance(app, Dash)
        server, address = serve(app, host, 0, token)
        server.server_close()
        return app.server.test_client(), address

    local, address = client("127.0.0.1")
    assert "token" not in address
    assert local.get("/", base_url="http://localhost:8050").status_code == 200
    assert local.get("/", base_url="http://rebound.example").status_code == 403
    foreign = {"Origin": "http://other.example"}
    assert local.get("/", base_url="http://localhost", headers=foreign).status_code == 403

    remote, address = client("0.0.0.0")
    token = re.fullmatch(r"http://0\.0\.0\.0:\d+/\?token=(\S{20,})", address)[1]
    assert remote.get("/").status_code == 401
    assert remote.get("/_dash-layout").status_code == 401
    assert remote.get("/?token=guess").status_code == 401
    answer = remote.get(f"/?token={token}")
    assert (answer.status_code, answer.location) == (302, "/")
    assert remote.get("/").status_code == 200


def test_the_command_serves_until_ctrl_c_and_leaves_no_process(live):
    command = [sys.executable, "-m", "entrocraft", "watch", str(live), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=obey_ctrl_c,
    )
    try:
        address = process.stdout.readline().rpartition(" at ")[2].strip()
        with urllib.request.urlopen(address + "_dash-layout", timeout=30) as answer:
            assert b"chart-entropy" in answer.read()
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(ValueError, match="choose another port with --port"):
            serve(page.build([live]), "127.0.0.1", port, None)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
        assert (process.returncode, said, errors) == (0, "stopped; the runs go on\n", "")
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(address, timeout=5)
    finally:
        process.kill()
