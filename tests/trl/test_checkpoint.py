"""A resumed run decides as if it had never been interrupted, and says so where it cannot."""

import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from entrocraft import EntropyController, EntropyControlWarning
from tests.trl.runs import PLAIN, Recording, make_trainer, rows

SCHEDULE = "linear(initial, 2.0, 6)"


def start(path, control, kind="grpo", resume=None, **settings):
    """Train to step 6, saving at 3; or go on from a checkpoint."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3} | settings
    cls = PLAIN[kind] if control == "plain" else None
    own = {} if cls else {"entropy_control": control}
    trainer = make_trainer(kind, cls, output_dir=str(path), **own, **settings)
    trainer.train(resume_from_checkpoint=resume and str(path / resume))
    return trainer


def saved_state(path, step=3):
    return json.loads((path / f"checkpoint-{step}" / "trainer_state.json").read_text())


@pytest.fixture(autouse=True)
def _no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EntropyControlWarning)
        # the runs here are small and short, and some begin control in the middle
        for text in ("each optimizer step", "the schedule .* the run ends", "the schedule asks"):
            warnings.filterwarnings("ignore", text, EntropyControlWarning)
        yield


@pytest.mark.parametrize("rule", ["tilt", "sign"])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_resuming_continues_exactly(kind, rule, tmp_path):
    whole = Recording(SCHEDULE, rule=rule, seed=5)
    uninterrupted = start(tmp_path, whole, kind)
    saved = saved_state(tmp_path)["stateful_callbacks"]["EntropyControlState"]
    assert saved["attributes"]["method_state"]["decisions"] == 3

    half = Recording(SCHEDULE, rule=rule, seed=5)
    resumed = start(tmp_path, half, kind, resume="checkpoint-3")
    assert rows(resumed)[3:] == rows(uninterrupted)[3:]
    assert {"reward", "grad_norm", "entropy/measured"} <= set(rows(resumed)[5])
    assert len(half.answered) == 3
    for mine, reference in zip(half.answered, whole.answered[3:], strict=True):
        assert mine.weights.tolist() == reference.weights.tolist()
    assert half.state_dict() == whole.state_dict()
    # not by accident: without the state it would be another run
    forgetful = EntropyController(SCHEDULE, rule=rule, seed=5)
    forgetful.load_state_dict = lambda state: None
    other = start(tmp_path, forgetful, kind, resume="checkpoint-3")
    assert rows(other)[3:] != rows(uninterrupted)[3:]


def test_resuming_with_trls_own_restoring_of_callbacks(tmp_path):
    uninterrupted = start(tmp_path, SCHEDULE)
    resumed = start(
        tmp_path, SCHEDULE, resume="checkpoint-3", restore_callback_states_from_checkpoint=True
    )
    assert rows(resumed)[3:] == rows(uninterrupted)[3:]
    assert saved_state(tmp_path, 6)["stateful_callbacks"]["EntropyControlState"]["attributes"][
        "method_state"
    ] == (resumed.entropy_control.state_dict())


def test_resuming_twice(tmp_path):
    uninterrupted = start(tmp_path, SCHEDULE, save_steps=2)
    start(tmp_path, SCHEDULE, save_steps=2, resume="checkpoint-2")
    resumed = start(tmp_path, SCHEDULE, save_steps=2, resume="checkpoint-4")
    assert rows(resumed)[4:] == rows(uninterrupted)[4:]


def test_a_checkpoint_without_control_warns_and_goes_on(tmp_path):
    start(tmp_path, "plain")
    control = Recording(SCHEDULE)
    with pytest.warns(EntropyControlWarning, match="step 3 was written without entropy control"):
        resumed = start(tmp_path, control, resume="checkpoint-3")
    assert [step.step for _, step in control.asked] == [3, 4, 5]
    assert len(rows(resumed)) == 6
    assert saved_state(tmp_path, 6)["stateful_callbacks"]["EntropyControlState"]["attributes"][
        "method_state"
    ] == (control.state_dict())


@pytest.mark.parametrize("control", [None, "plain"])
def test_a_checkpoint_with_control_can_be_resumed_without(control, tmp_path):
    start(tmp_path, SCHEDULE)
    resumed = start(tmp_path, control, resume="checkpoint-3")
    assert len(rows(resumed)) == 6
    assert "entropy/measured" in rows(resumed)[2]
    assert "entropy/measured" not in rows(resumed)[3]


def test_another_schedule_on_resuming_is_warned_of(tmp_path):
    start(tmp_path, SCHEDULE)
    with pytest.warns(EntropyControlWarning, match="used with the new settings"):
        resumed = start(tmp_path, "linear(initial, 2.5, 6)", resume="checkpoint-3")
    assert rows(resumed)[5]["entropy/target"] > 2.5


def test_another_rule_on_resuming_is_refused_by_name(tmp_path):
    start(tmp_path, EntropyController(2.0, rule="sign"))
    with pytest.raises(ValueError, match="resume with the rule that wrote it"):
        start(tmp_path, 2.0, resume="checkpoint-3")


def test_a_longer_schedule_is_checked_on_resuming(tmp_path):
    start(tmp_path, "linear(2, 3, 6)", max_steps=6)
    with pytest.raises(ValueError, match=r"above log\(vocabulary\)"):
        start(tmp_path, lambda step: 2 + step / 6, resume="checkpoint-6", max_steps=20)


# ---------------------------------------------------------------- a killed process


def script(path, *options):
    return [sys.executable, "-m", "tests.trl.runs", "train", str(path), *options]


def journal(path):
    """The last row written for each step."""
    lines = (path / "journal.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


@pytest.mark.slow
def test_a_killed_run_ends_as_the_uninterrupted_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(script(whole), check=True, timeout=240, capture_output=True)

    process = subprocess.Popen(script(killed, "--hold-at", "5"), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (killed / "holding").exists():
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert sorted(journal(killed)) == [1, 2, 3, 4, 5]
    assert Path(killed / "checkpoint-3").exists()

    subprocess.run(script(killed, "--resume"), check=True, timeout=240, capture_output=True)
    assert journal(killed) == journal(whole)
    assert sorted(journal(whole)) == list(range(1, 9))


def test_a_second_training_from_the_start_remembers_nothing_of_the_first(tmp_path):
    control = EntropyController(SCHEDULE)
    trainer = start(tmp_path, control)
    first = control.state_dict()
    trainer.train()
    second = control.state_dict()
    assert second["decisions"] == first["decisions"] == 6
    # the policy has moved on since, so "initial" is another level now
    anchors = [state["initial"] for state in (first, second)]
    assert anchors[1] == rows(trainer)[-6]["entropy/measured"] != anchors[0]


def test_resuming_inside_a_rollout_batch_warns(tmp_path):
    cycle = {"num_iterations": 2, "save_steps": 3, "max_steps": 4}
    make_trainer(
        entropy_control=SCHEDULE, output_dir=str(tmp_path), save_strategy="steps", **cycle
    ).train()
    resumed = make_trainer(
        entropy_control=SCHEDULE, output_dir=str(tmp_path), save_strategy="steps", **cycle
    )
    with pytest.warns(EntropyControlWarning, match="middle of a rollout batch"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
