"""The study behind `entrocraft dynamics`: theorem, statistics, held updates, the command."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from entrocraft.effects import token_statistics
from entrocraft.lab.cli import main
from entrocraft.lab.dynamics import trials
from entrocraft.lab.dynamics.bench import Bench
from entrocraft.lab.dynamics.config import DynamicsConfig
from entrocraft.lab.dynamics.figure import draw
from entrocraft.lab.dynamics.summary import (
    _interval,
    explained,
    leave_one_out,
    predictions_of,
    read_results,
    sign_agreement,
    summarize,
)
from entrocraft.lab.dynamics.theorem import check_theorem, output_space_baseline
from entrocraft.lab.dynamics.trials import KINDS, LEVELS, RULES, draw_keep, try_patterns
from entrocraft.lab.models import ReasonerConfig, build_reasoner, build_tokenizer


def entropy(logits):
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def some_logits(sharpness, count=40, words=9):
    generator = torch.Generator().manual_seed(int(10 * sharpness))
    logits = sharpness * torch.randn(count, words, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, words, (count,), generator=generator)


# ------------------------------------------------------------------- theorem


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_the_baseline_is_the_papers_sum_over_a_real_softmax_step(sharpness):
    logits, tokens = some_logits(sharpness)
    logprob, baseline = output_space_baseline(logits, tokens)
    p = logits.softmax(-1)
    for row, k in enumerate(tokens.tolist()):
        dz = torch.nn.functional.one_hot(tokens[row], 9) - p[row]
        dp = (torch.diag(p[row]) - torch.outer(p[row], p[row])) @ dz
        osb = -sum(dp[i] / dp[k] * p[row, i].log() for i in range(9) if i != k)
        torch.testing.assert_close(baseline[row], osb, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(logprob[row], p[row, k].log())


@pytest.mark.parametrize("advantage", [1.5, -0.7])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_the_condition_says_which_way_entropy_really_goes(sharpness, advantage):
    logits, tokens = some_logits(sharpness, count=200)
    logprob, baseline = output_space_baseline(logits, tokens)
    step = 1e-6 * advantage * (torch.nn.functional.one_hot(tokens, 9) - logits.softmax(-1))
    change = (entropy(logits + step) - entropy(logits - step)) / 2
    met = logprob > baseline
    clear = change.abs() > 1e-13  # the rest is below what float64 resolves
    assert int(clear.sum()) > 150
    assert torch.equal(met[clear], (advantage * change <= 0)[clear])
    assert met.any()
    assert not met.all()


def test_baseline_and_logit_sensitivity_are_the_same_statement():
    logits, tokens = some_logits(2.0)
    logprob, baseline = output_space_baseline(logits, tokens, temperature=0.7)
    opposed = -token_statistics(logits, tokens, temperature=0.7).sensitivity
    p = (logits / 0.7).softmax(-1)
    p_k, square = logprob.exp(), p.square().sum(-1)
    expected = p_k * (1 - 2 * p_k + square) * (logprob - baseline)
    torch.testing.assert_close(opposed.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_nearly_certain_token_has_a_finite_baseline_and_a_certain_one_meets_the_condition():
    logits = torch.tensor([[40.0, 0.0, 0.0], [2000.0, 0.0, 0.0]])
    logprob, baseline = output_space_baseline(logits, torch.tensor([0, 0]))
    # two equal others: dp_i / dp_k = -1/2, so OSB = log p_i
    assert float(baseline[0]) == pytest.approx(-40.0, rel=1e-6)
    assert baseline[1] == -torch.inf
    assert bool((logprob > baseline).all())


def test_chunks_of_positions_give_the_same_baseline(monkeypatch):
    from entrocraft.lab.dynamics import theorem

    logits, tokens = some_logits(1.0)
    whole = output_space_baseline(logits, tokens)
    monkeypatch.setattr(theorem, "_CHUNK_ELEMENTS", 50)
    for one, other in zip(whole, output_space_baseline(logits, tokens), strict=True):
        torch.testing.assert_close(one, other)


def test_counts_by_sign_of_the_advantage():
    logprob = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [-1.0, 0.0], [-1.0, -1.0]])
    baseline = torch.tensor([[-2.0, -0.5], [-2.0, -9.0], [0.5, 0.0], [-9.0, -9.0]])
    sensitivity = -torch.tensor([[0.1, -0.2], [0.1, 0.3], [-0.1, 5.0], [1.0, 1.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    up, down = check_theorem(
        logprob, baseline, sensitivity, mask, advantages=torch.tensor([1.0, 2.0, -1.0, 0.0])
    )
    assert (up["advantage"], down["advantage"]) == ("positive", "negative")
    assert (up["tokens"], up["tokens_met"], up["sequences"]) == (4, 3, 2)
    # the first sequence meets Theorem 2 by its sums, although its entropy change goes the other way
    assert (up["sequences_met"], up["sequences_opposed"], up["sequences_all_met"]) == (2, 1, 1)
    assert (down["tokens"], down["tokens_met"], down["sequences_met"]) == (1, 0, 0)


# ---------------------------------------------------------------- statistics


def test_explained_share_and_sign_agreement():
    y = np.array([1.0, -1.0, 2.0, -2.0])
    assert explained(y, y) == 1
    assert explained(np.zeros(4), y) == 0
    assert sign_agreement(np.array([0.1, -0.1, -0.1, 0.1]), y) == 0.5
    assert np.isnan(explained(y, np.ones(4)))
    # knowing each group's mean explains much of the whole and nothing inside the groups
    means = np.array([1.5, -1.5, 1.5, -1.5])
    assert explained(means, y) == pytest.approx(0.9)
    assert explained(means, y, means) == 0


def test_the_line_of_the_others_is_what_refitting_gives():
    generator = np.random.default_rng(0)
    x = generator.normal(size=12)
    y = 0.3 + 2 * x + generator.normal(size=12)
    left_out = leave_one_out(x, y)
    for i in range(12):
        slope, offset = np.polyfit(np.delete(x, i), np.delete(y, i), 1)
        assert left_out[i] == pytest.approx(offset + slope * x[i])
    np.testing.assert_allclose(leave_one_out(np.ones(12), y), (y.sum() - y) / 11)


def test_the_interval_covers_the_value_and_is_reproducible():
    generator = np.random.default_rng(1)
    y = generator.normal(size=60)
    predicted = y + 0.3 * generator.normal(size=60)
    low, high = _interval(explained, predicted, y)
    assert low < explained(predicted, y) < high
    assert (low, high) == _interval(explained, predicted, y)
    # percentiles of 2000 draws of pairs
    draws = np.random.default_rng(0).integers(0, 60, (2000, 60))
    values = [explained(predicted[draw], y[draw]) for draw in draws]
    np.testing.assert_allclose((low, high), np.percentile(values, [2.5, 97.5]))


def test_the_gain_is_fitted_to_the_cheap_levels_only():
    generator = np.random.default_rng(2)
    frame = pd.DataFrame(
        [
            {"stage": stage, "sampled": x, "gradient": x, "post_update": gain * x + 0.1 * stage}
            for stage, gain in ((10, 2.0), (50, -3.0))
            for x in generator.normal(size=8)
        ]
    )
    before = frame.copy()
    np.testing.assert_array_equal(predictions_of(frame, "gradient"), frame["gradient"])
    np.testing.assert_allclose(predictions_of(frame, "sampled"), frame["post_update"])
    pd.testing.assert_frame_equal(frame, before)


def test_every_second_pattern_is_random_and_the_others_keep_one_sign():
    generator = torch.Generator().manual_seed(0)
    effects = {
        level: torch.randn(500, generator=generator, dtype=torch.float64)
        for level in ("gradient", "logit")
    }
    assert set(KINDS[::2]) == {"random"}
    for kind in KINDS:
        keep = draw_keep(kind, effects, generator)
        level, _, direction = kind.partition(" ")
        if direction:
            wanted = (1 if direction == "up" else -1) * effects[level] > 0
            assert bool(keep[wanted].all())


# -------------------------------------------------------------- the real thing

SHAPE = ReasonerConfig(hidden_size=16, layers=1, heads=2, intermediate_size=16, max_positions=128)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    tokenizer = build_tokenizer(SHAPE.max_positions)
    tokenizer.save_pretrained(root / "plain")
    build_reasoner(SHAPE, tokenizer).save_pretrained(root / "plain")
    return root


def keys(home, output, training=None, **changes):
    base = {
        "output": str(output),
        "stages": [6, 8],
        "batches": 1,
        "patterns": 4,
        "reach_batches": 1,
        "probe_prompts": 8,
        "learning_rate": 1e-3,
        "task": {"name": "chain_sum", "train_size": 20},
        "training": {
            "cache_dir": str(home / "cache"),
            "prompts": 4,
            "generations": 4,
            "max_completion_length": 6,
        }
        | (training or {}),
    }
    return base | changes


@pytest.fixture
def paid(monkeypatch):
    """Reward that differs inside nearly every group, whatever an untrained model writes."""
    from entrocraft.lab.tasks import get_task

    checksum = staticmethod(lambda problem, text: float(sum(map(ord, text)) % 2))
    monkeypatch.setattr(type(get_task("chain_sum")), "verify", checksum)


def command(home, tmp_path, values, *flags):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(values))
    return main(["dynamics", str(home / "plain"), str(file), *flags])


def test_the_command_writes_everything_and_goes_on_where_it_was_stopped(
    home, tmp_path, paid, monkeypatch, capsys
):
    from entrocraft.lab.dynamics import study

    monkeypatch.setattr(trials, "INNER_UPDATES", (1, 2))
    monkeypatch.setattr(trials, "CLIPS", (0.2,))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert command(home, tmp_path, keys(home, whole)) == 0
    shown = capsys.readouterr().out
    assert "dynamics.png" in shown
    assert {path.name for path in whole.iterdir()} - {".lock"} == {"dynamics.json", "dynamics.png"}
    results = json.loads((whole / "dynamics.json").read_text())
    assert results["config"]["model"] == str(home / "plain")
    assert len(results["patterns"]) == 8
    assert len(results["reach"]) == 2 * len(RULES) * 2
    assert {row["stage"] for row in results["summary"]["patterns"]} == {6, 8, "all"}
    for row in results["patterns"]:
        assert row["post_update"] != 0
        assert row["gradient"] == pytest.approx(row["post_update"], abs=0.01)
    for row in results["summary"]["reach"]:
        if row["rule"] == "plain":
            assert row["probe_against_plain"] == 0

    # stopped before the last part
    tried = study.try_rules

    def stop(bench, *rest):
        if bench.trainer.state.global_step == 8:
            raise KeyboardInterrupt
        return tried(bench, *rest)

    monkeypatch.setattr(study, "try_rules", stop)
    assert command(home, tmp_path, keys(home, stopped)) == 130
    assert "summary" not in json.loads((stopped / "dynamics.json").read_text())

    seen = []

    def count(name):
        function = getattr(study, name)

        def counted(bench, *rest):
            seen.append((name, bench.trainer.state.global_step))
            return function(bench, *rest)

        monkeypatch.setattr(study, name, counted)

    monkeypatch.setattr(study, "try_rules", tried)
    for name in ("try_rules", "try_patterns"):
        count(name)
    assert command(home, tmp_path, keys(home, stopped)) == 0
    assert seen == [("try_rules", 8)], "only what was missing"
    again = json.loads((stopped / "dynamics.json").read_text())
    for part in ("patterns", "theorem", "reach", "summary"):
        assert again[part] == results[part], "the same numbers as without a stop"
    assert command(home, tmp_path, keys(home, stopped)) == 0
    assert seen == [("try_rules", 8)], "a finished study computes nothing"

    assert command(home, tmp_path, keys(home, stopped), "--learning_rate", "0.01") == 1
    assert "learning_rate=0.001" in capsys.readouterr().err


def test_a_training_run_is_not_written_into(home, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("{}")
    assert command(home, tmp_path, keys(home, tmp_path)) == 1
    assert "holds a training run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [2]}, "not linear"),
        ({"stages": []}, "not linear"),
        ({"stages": [10, 11], "batches": 2}, "steps apart"),
        ({"patterns": 1}, "patterns is 1"),
        ({"reach_batches": 3}, "reach_batches is 3"),
        ({"training": {"trainer": {"seed": 3}}}, "own key"),
        ({"training": {"control": {"rule": "tilt"}}}, "training.control is set by the study"),
        ({"training": {"promts": 3}}, "promts"),
    ],
)
def test_bad_input_is_named(home, tmp_path, changes, message, capsys):
    assert command(home, tmp_path, keys(home, tmp_path / "out", **changes)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dynamics-1e-4", "dynamics-3e-4"])
def test_committed_results_are_read_and_drawn(name, tmp_path):
    from entrocraft.lab.report import save_png

    results = read_results(f"benchmarks/results/{name}.json")
    again = summarize({part: results[part] for part in ("patterns", "theorem", "reach")})
    for part, rows in again.items():
        theirs = [row for row in results["summary"][part] if row.get("way") != "fitted"]
        assert len(rows) == len(theirs)
        if rows:
            mine, other = pd.DataFrame(rows), pd.DataFrame(theirs)
            names = ("level", "stage", "advantage", "rule", "direction", "clip", "updates")
            keys = [name for name in names if name in mine]
            mine, other = (
                frame[mine.columns].fillna(-1.0).sort_values(keys, key=lambda c: c.astype(str))
                for frame in (mine, other)
            )
            pd.testing.assert_frame_equal(
                mine.reset_index(drop=True), other.reset_index(drop=True), check_dtype=False
            )
    assert save_png(draw(results), tmp_path / "figure.png").stat().st_size > 1e4


def held(home, tmp_path, check, stages=(6, 8), **changes):
    """Run `check(bench)` in the middle of a real training and return its trainer."""
    from transformers import TrainerCallback

    from entrocraft.lab.models import load_model
    from entrocraft.lab.tasks import get_task
    from entrocraft.lab.training.trainer import build_trainer

    values = keys(home, tmp_path, changes)
    values |= {"task": DynamicsConfig().task, "stages": list(stages)}
    config = DynamicsConfig(**values, model=str(home / "plain")).plain_training()
    model, tokenizer = load_model(config.model)
    task = get_task("chain_sum")
    trainer = build_trainer(
        config, model, tokenizer, task, task.problems("train", 20, 0), chat=False
    )
    trainer.entropy_control = None

    class Hold(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 6 and check is not None:
                check(Bench(trainer, seed=5))

    trainer.add_callback(Hold())
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch": 4}, {"algorithm": "rloo"}, {"trainer": {"loss_type": "grpo"}}]
)
def test_the_training_does_not_notice_that_it_was_looked_at(home, tmp_path, paid, changes):
    def look(bench):
        before = [p.clone() for p in bench.model.parameters()]
        try_patterns(bench, 2, seed=0, offset=0)
        with bench.undone():
            bench.update(bench.advantages, bench.logprob, clip=0.2)
            assert any(
                not torch.equal(a, b) for a, b in zip(before, bench.model.parameters(), strict=True)
            )

    looked = held(home, tmp_path / "a", look, **changes)
    plain = held(home, tmp_path / "b", None, **changes)
    for one, other in zip(looked.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch": 4}, {"algorithm": "rloo", "micro_batch": 4}]
)
def test_anchored_effects_are_the_derivative_of_real_updates(home, tmp_path, paid, changes):
    found = []

    def look(bench):
        anchor, effects = bench.read_anchored()
        shift = torch.randn(16, generator=torch.Generator().manual_seed(1))

        def change(keep):
            before = bench.entropy()
            with bench.undone():
                bench.update(keep * bench.advantages)
                return bench.entropy() - before

        half = torch.full((16,), 0.5)
        found.append((anchor, change(half)))
        real = (change(half + 0.05 * shift) - change(half - 0.05 * shift)) / 0.1
        found.append((float(effects @ shift.double()), real))

    held(home, tmp_path, look, **changes)
    (anchor, again), (predicted, real) = found
    assert anchor == pytest.approx(again, abs=1e-9)
    assert real != 0
    assert predicted == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_an_undone_update_is_the_trainers_own(home, tmp_path, paid, algorithm, micro_batch):
    """What the bench does to all rollouts is what TRL's loop does with the same batch."""
    seen = {}

    def look(bench):
        trainer = bench.trainer
        with bench.undone():
            bench.update(bench.advantages)
            seen["mine"] = [p.detach().clone() for p in bench.model.parameters()]
        batch = dict(bench._batch)
        trainer._generate_and_score_completions = lambda inputs: dict(batch)

    options = {"algorithm": algorithm, "micro_batch": micro_batch}
    trainer = held(home, tmp_path / "a", look, stages=[6], **options)
    for mine, theirs in zip(seen["mine"], trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_a_summary_of_one_stage_has_no_pool():
    rows = [
        {"stage": 6, "step": 6, "post_update": 0.1 * i, "kind": "random", "kept": 0.5}
        | dict.fromkeys(LEVELS, 0.1 * i)
        for i in range(5)
    ]
    found = summarize({"patterns": rows, "theorem": [], "reach": []})
    assert {row["stage"] for row in found["patterns"]} == {6}
    assert all(row["r2"] == pytest.approx(1) for row in found["patterns"])
    assert found["reach"] == []
