"""A run that is steered while it goes, through the file beside it."""

import json
import re
import shutil
import threading
import time

import pytest

from entrocraft import EntropyControlWarning
from entrocraft.lab.cli import main
from entrocraft.lab.records import read_records, read_rollouts
from entrocraft.lab.report import load_run, write_report
from entrocraft.lab.training import rollouts, run
from entrocraft.lab.training.progress import RunProgress
from entrocraft.steering import give_command, read_steered
from tests.lab.training.runs import config_file, keys, make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def at_step(monkeypatch):
    """Do something when the record of a step is written: {step: function}."""
    actions = {}
    show = RunProgress.__call__

    def call(self, record):
        show(self, record)
        if action := actions.pop(record["step"], None):
            action()

    monkeypatch.setattr(RunProgress, "__call__", call)
    monkeypatch.setattr(run, "write_report", lambda *paths: None)  # the slowest part
    return actions


def start(home, out, **changes):
    values = keys(home, out, steps=9, save_every=3, evaluation={"probe_every": 0, "every": 0})
    values["control"] = {"schedule": "constant(1.5)"}
    return main(["train", config_file(out.with_suffix(".yaml"), values | changes)])


def records(out):
    return [
        {k: v for k, v in r.items() if k != "seconds"} for r in read_records(out / "metrics.jsonl")
    ]


def targets(out):
    return [record["entropy/target"] for record in records(out) if "entropy/target" in record]


def test_a_change_is_obeyed_at_the_next_batch_logged_resumed_and_replayed(
    home, tmp_path, at_step, monkeypatch
):
    monkeypatch.setattr(rollouts, "BATCHES", 5)
    out = tmp_path / "run"
    at_step[3] = lambda: give_command(out, schedule="piecewise([(0, 1.0), (10, 2.0)])")
    assert start(home, out) == 0
    wanted = [1.5] * 4 + [1.0 + 0.1 * step for step in range(4, 9)]
    assert targets(out) == pytest.approx(wanted)
    whole = records(out)
    assert {r["step"]: r["schedule"] for r in whole if "schedule" in r} == {
        4: "piecewise([(0, 1), (10, 2)])"
    }
    said = read_steered(out)
    assert (said.state, said.step, said.steps, said.error) == ("ended", 9, 9, None)

    # the report says which schedule ruled when
    assert load_run(out).schedules == {4: "piecewise([(0, 1), (10, 2)])"}
    text = write_report([out]).read_text()
    assert re.search(r"from step 4</dt><dd>piecewise\(\[\(0, 1\), \(10, 2\)\]\)", text)
    state = json.loads((out / "checkpoints/checkpoint-9/trainer_state.json").read_text())
    assert next(log for log in state["log_history"] if "schedule" in log)["step"] == 4

    # sample rollouts, in the order of their predicted effect
    samples = read_rollouts(out / "rollouts.jsonl")
    assert [record["step"] for record in samples] == [0, 2, 4, 6, 8], "thinned out at 5 batches"
    for record in samples:
        effects = [rollout["predicted_effect"] for rollout in record["rollouts"]]
        assert len(effects) == rollouts.PER_BATCH
        assert effects == sorted(effects)
        assert all(rollout["prompt"] for rollout in record["rollouts"])

    # killed after the change: from the checkpoint at step 6
    shutil.rmtree(out / "checkpoints/checkpoint-9")
    (out / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in whole[:8]))
    assert start(home, out) == 0
    assert records(out) == whole
    assert read_rollouts(out / "rollouts.jsonl") == samples

    # a new run makes the changes of another again, at their steps
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(out / "steered.json", again)
    with pytest.warns(EntropyControlWarning, match="changed again at step 4"):
        assert start(home, again) == 0
    assert records(again) == whole


def test_a_run_killed_before_its_first_checkpoint_repeats_the_change(home, tmp_path, at_step):
    out = tmp_path / "run"

    def kill():
        raise KeyboardInterrupt

    at_step[2] = lambda: give_command(out, schedule="1.8")
    at_step[4] = kill
    assert start(home, out, save_every=9) == 130
    with pytest.warns(EntropyControlWarning, match="changed again at step 3"):
        assert start(home, out, save_every=9, resume=True) == 0
    assert targets(out) == [1.5] * 3 + [1.8] * 6


def test_what_cannot_be_followed_is_refused_and_changes_nothing(home, tmp_path, at_step):
    out, errors = tmp_path / "run", []

    def ask(schedule, step):
        def action():
            errors.append(read_steered(out).error)
            give_command(out, schedule=schedule)

        at_step[step] = action

    for step, bad in enumerate(["liner(1, 2, 3)", "constant(50)", "__import__('os')"], start=1):
        ask(bad, step)
    at_step[4] = lambda: (out / "steer.json").write_text('{"number": "x"}')
    with pytest.warns(EntropyControlWarning) as warned:
        assert start(home, out, steps=6) == 0
    assert targets(out) == [1.5] * 6
    said = read_steered(out)
    assert "expected a number above 0" in said.error
    assert said.changes == ()
    told = " ".join(str(one.message) for one in warned)
    for text in ("'liner(1, 2, 3)'", "above log(vocabulary)", "__import__", *errors[1:]):
        assert text in told


def test_pause_waits_and_stop_ends_with_a_checkpoint(home, tmp_path, at_step, capsys):
    out, waited = tmp_path / "run", []

    def pause():
        give_command(out, "pause")

        def go_on():
            deadline = time.monotonic() + 20
            while read_steered(out).state != "paused" and time.monotonic() < deadline:
                time.sleep(0.02)
            before = len(records(out))
            time.sleep(0.7)  # longer than a step
            waited.append(len(records(out)) - before)
            give_command(out)

        threading.Thread(target=go_on).start()

    at_step[1] = pause
    at_step[4] = lambda: give_command(out, "stop")
    assert start(home, out, save_every=9) == 130
    assert waited == [0]
    assert "the same command goes on from step 6" in capsys.readouterr().err
    assert [r["step"] for r in records(out)] == list(range(6))
    assert read_steered(out).state == "stopped"
    # the command to stop has been obeyed: the run that resumes is not stopped again
    assert start(home, out, save_every=9) == 0
    assert [r["step"] for r in records(out)] == list(range(9))


def test_several_updates_a_batch_change_the_schedule_between_batches(home, tmp_path, at_step):
    out = tmp_path / "run"
    at_step[2] = lambda: give_command(out, schedule="1.8")  # in the middle of a batch
    assert start(home, out, updates=2, steps=8) == 0
    assert [r["step"] for r in records(out) if "schedule" in r] == [4]
    assert targets(out) == [1.5, 1.5, 1.8, 1.8]
