"""Stock verl's whole loop on the CPU with entropy control, by every way in.

One run each of: the launcher with several updates a batch; two workers, rows of padding,
checkpoints and a resume; partial rollouts; bypass mode. Ray, FSDP2, agent loop and weight transfer
are verl's.
"""

import json

import pytest

pytest.importorskip("verl", reason="verl is not installed")

from tests.verl import runs as verl_runs

pytestmark = pytest.mark.slow

SCHEDULE = "linear(initial, 0.5*initial, 40)"
PLUGIN = ("entrocraft.verl",)


def controlled(**more):
    return {"entrocraft.schedule": SCHEDULE, "entrocraft.seed": 3} | more


def targets(metrics):
    return [step["entropy/target"] for step in metrics]


def line(metrics, steps_a_batch):
    """The schedule at each training step."""
    initial = metrics[0]["entropy/measured"]
    return [initial * (1 - 0.5 * steps_a_batch * i / 40) for i in range(len(metrics))]


def check(metrics):
    """What holds in every controlled run."""
    for step in metrics:
        # verl's own entropy is the mean per token under loss_agg_mode token-mean, its default
        assert step["entropy/measured"] == pytest.approx(step["actor/entropy"], abs=2e-3)
        assert 0 < step["entropy/kept_fraction"] <= 1
        assert step["entropy/reachable_up"] >= 0 >= step["entropy/reachable_down"]
    assert min(step["entropy/kept_fraction"] for step in metrics) < 1


def test_the_launcher_with_two_updates_a_batch(tmp_path):
    metrics = verl_runs.run(
        tmp_path,
        module="entrocraft.verl",
        steps=3,
        mini_batch=4,
        reward="checksum",
        overrides=controlled(),
    )
    check(metrics)
    assert targets(metrics) == pytest.approx(line(metrics, 2))
    for step in metrics:
        # the batch was scored again after its update
        assert abs(step["entropy/post_update_change"]) < 1
        assert step["entropy/post_update_change_stderr"] > 0
        # rejected rollouts train nothing: some rows have the advantage 0
        assert step["critic/advantages/min"] < 0 < step["critic/advantages/max"]
    log = (tmp_path / "run.log").read_text()
    assert "EntropyControlSync" in log or "entrocraft_sync" in log


def test_two_workers_padding_checkpoints_and_a_resume(tmp_path):
    # 24 rollouts are no multiple of two workers' mini-batches of 16: 8 rows of padding
    options = {
        "trainer_mode": "entrocraft_sync",
        "plugins": PLUGIN,
        "workers": 2,
        "prompts": 6,
        "mini_batch": 4,
        "reward": "checksum",
        "overrides": controlled(**{"trainer.save_freq": 1}),
    }
    first = verl_runs.run(tmp_path, steps=2, **options)
    check(first)
    states = {}
    for step in (1, 2):
        file = tmp_path / "checkpoints" / f"global_step_{step}" / "entrocraft.json"
        states[step] = json.loads(file.read_text())
        assert states[step]["method"]["decisions"] == step
        # 32 rows with padding in mini-batches of 16
        assert states[step]["optimizer_steps"] == 2 * step
    resumed = verl_runs.run(tmp_path, steps=3, name="resumed", **options)
    assert len(resumed) == 1
    check(resumed)
    initial = first[0]["entropy/measured"]
    assert targets(resumed) == [pytest.approx(initial * (1 - 0.5 * 4 / 40))]
    last = tmp_path / "checkpoints" / "global_step_3" / "entrocraft.json"
    later = json.loads(last.read_text())
    assert later["method"]["decisions"] == 3
    assert later["method"]["initial"] == states[2]["method"]["initial"]
    assert later["optimizer_steps"] == 6


def test_partial_rollouts_by_the_entry_point(tmp_path):
    metrics = verl_runs.run(
        tmp_path,
        steps=3,
        trainer_mode="entrocraft_colocate_async",
        environment={"VERL_USE_EXTERNAL_PLUGINS": "auto"},
        reward="checksum",
        overrides=controlled(**{"entrocraft.effect": "sampled", "entrocraft.remeasure": 0}),
    )
    check(metrics)
    assert targets(metrics) == pytest.approx(line(metrics, 1))
    assert max(step["training/off_policy/trajectory_staleness/max"] for step in metrics) > 0
    assert "entropy/post_update_change" not in metrics[0]


def test_bypass_mode_makes_no_pass_that_verl_leaves_out(tmp_path):
    options = {
        "trainer_mode": "entrocraft_sync",
        "plugins": PLUGIN,
        "reward": "checksum",
    }
    bypass = controlled(**{"algorithm.rollout_correction.bypass_mode": True})
    metrics = verl_runs.run(
        tmp_path, steps=2, overrides=bypass | {"trainer.save_freq": 1}, **options
    )
    for step in metrics:
        assert "actor/entropy" not in step
        assert "entropy/post_update_change" not in step  # there is nothing to compare with
        # an untrained policy is near uniform over its tokens
        assert 3.5 < step["entropy/measured"] < 4.5
        assert step["entropy/kept_fraction"] < 1 or step["entropy/saturated"] == 0
    assert targets(metrics) == pytest.approx(line(metrics, 1))
    # by path, from the step before the last, into another folder
    old = tmp_path / "checkpoints" / "global_step_1"
    again = verl_runs.run(
        tmp_path,
        steps=2,
        name="by-path",
        overrides=bypass
        | {
            "trainer.resume_mode": "resume_path",
            "trainer.resume_from_path": str(old),
            "trainer.default_local_dir": str(tmp_path / "other"),
            "trainer.save_freq": 1,
        },
        **options,
    )
    assert targets(again) == pytest.approx(targets(metrics)[1:])
    state = json.loads((tmp_path / "other" / "global_step_2" / "entrocraft.json").read_text())
    assert state["method"]["decisions"] == 2
    assert state["optimizer_steps"] == 2
