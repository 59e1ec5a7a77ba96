"""Decisions land where they belong: in the loss, once per generation batch, and in the logs."""

import dataclasses
import warnings
from collections import Counter

import pandas
import pytest
import torch
import trl

from entrocraft import Decision, EntropyController, EntropyControlWarning, schedules
from entrocraft.method import Method
from entrocraft.rollouts import StepInfo
from entrocraft.trl import EntropyControlMixin
from tests.trl.runs import (
    ALIGNED,
    PROMPTS,
    REUSED,
    TOKENIZER,
    VOCABULARY,
    WITNESSES,
    Recording,
    WitnessGRPO,
    make_trainer,
    rows,
)

EVERY_ROW = {
    "target",
    "measured",
    "estimate",
    "pressure",
    "kept_fraction",
    "saturated",
    "predicted_change",
    "reachable_up",
    "reachable_down",
}


def rollouts(batch, advantages):
    """The rollouts of a batch with the advantage that each carries, order left aside."""
    prompts, completions = batch["prompt_ids"].tolist(), batch["completion_ids"].tolist()
    texts = (tuple(p + c) for p, c in zip(prompts, completions, strict=True))
    return Counter(zip(texts, advantages.float().tolist(), strict=True))


# ---------------------------------------------------------------- in the loss


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_loss_sees_the_decisions_advantages(kind):
    control = Recording("linear(initial, 1.5, 8)", seed=3)
    trainer = make_trainer(kind, WITNESSES[kind], entropy_control=control, max_steps=8, **REUSED)
    trainer.train()
    # 16 rollouts serve 8 micro-batches of 4, of which 2 make an optimizer step
    rate = trainer.args.learning_rate
    expected = [StepInfo(step, 4, 0.9, rate, 1.0) for step in (0, 4)]
    assert [step for _, step in control.asked] == expected
    assert len(trainer.micro_batches) == 16
    for index, (batch, decision) in enumerate(zip(trainer.batches, control.answered, strict=True)):
        assert torch.equal(batch["decided"], decision.advantages.float())
        expected = rollouts(batch, decision.advantages)
        for half in range(2):
            start = 8 * index + 4 * half
            seen = Counter()
            for micro in trainer.micro_batches[start : start + 4]:
                seen += rollouts(micro, micro["advantages"])
            assert seen == expected
        voted = batch["advantages"] != 0
        kept = decision.weights[voted] > 0
        assert kept.any()
        assert not kept.all()
        assert torch.equal(
            batch["decided"], batch["advantages"] * decision.weights.to(torch.float32)
        )
    assert trainer.last_decision is control.answered[-1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ALIGNED, [(0, 1), (1, 1), (2, 1)]),
        ({"num_iterations": 3}, [(0, 3)]),
        (
            {
                "per_device_train_batch_size": 4,
                "steps_per_generation": 2,
                "gradient_accumulation_steps": 4,
            },
            # two generation batches make one optimizer step
            [(0, 0.5), (0, 0.5), (1, 0.5), (1, 0.5), (2, 0.5), (2, 0.5)],
        ),
    ],
)
def test_a_schedule_counts_optimizer_steps(settings, expected):
    control = Recording("linear(3, 2, 3)")
    trainer = make_trainer(entropy_control=control, max_steps=3, **settings)
    trainer.train()
    asked = [(step.step, step.optimizer_steps) for _, step in control.asked]
    assert asked == expected
    targets = [answer.metrics["entropy/target"] for answer in control.answered]
    assert targets == pytest.approx([3 - step / 3 for step, _ in expected])


def test_any_method_can_be_hosted():
    class Half(Method):
        """Trains on the better half of the rollouts."""

        def __init__(self):
            super().__init__()
            self.prepared = []

        def prepare(self, *, vocabulary=None, steps=None):
            self.prepared.append((vocabulary, steps))

        def decide(self, batch, step=None):
            weights = (batch.advantages >= batch.advantages.median()).double()
            return Decision(weights, weights, batch.advantages * weights, {"half/kept": 0.5})

    method = Half()
    trainer = make_trainer("grpo", WitnessGRPO, entropy_control=method, max_steps=2)
    trainer.train()
    assert method.prepared[0] == (VOCABULARY, 2)
    for batch in trainer.batches:
        before = batch["advantages"]
        kept = before >= before.double().median()
        assert torch.equal(batch["decided"], before * kept)
    assert rows(trainer)[0]["half/kept"] == 0.5


# ---------------------------------------------------------------- how it is asked for


@pytest.mark.parametrize(
    "control",
    [
        "linear(3, 2, 4)",
        schedules.linear(3, 2, 4),
        lambda step: 3 - step / 4,
        EntropyController("linear(3, 2, 4)", seed=42),
    ],
    ids=["text", "schedule", "function", "controller"],
)
def test_every_way_to_give_a_schedule_is_the_same(control):
    trainer = make_trainer(entropy_control=control)
    assert trainer.args.seed == trainer.entropy_control.seed == 42, (
        "draws follow the trainer's seed"
    )
    trainer.train()
    assert [row["entropy/target"] for row in rows(trainer)] == pytest.approx([3, 2.75, 2.5, 2.25])
    reference = make_trainer(entropy_control="linear(3, 2, 4)")
    reference.train()
    assert rows(trainer) == rows(reference)


def test_a_number_is_a_constant_target():
    trainer = make_trainer(entropy_control=3, max_steps=2)
    trainer.train()
    assert [row["entropy/target"] for row in rows(trainer)] == [3, 3]


def test_a_users_own_trainer():
    class Mine(EntropyControlMixin, trl.GRPOTrainer):
        """Spreads advantages over tokens, after the decision."""

        losses = 0

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.losses += 1
            spread = inputs["advantages"][:, None].expand(inputs["completion_ids"].shape)
            return super().compute_loss(model, inputs | {"advantages": spread}, *args, **kwargs)

    trainer = make_trainer("grpo", Mine, entropy_control=2.5)
    trainer.train()
    assert trainer.losses == 4
    reference = make_trainer(entropy_control=2.5)
    reference.train()
    names = ("grad_norm", "entropy/kept_fraction", "entropy/measured")
    for row, expected in zip(rows(trainer), rows(reference), strict=True):
        assert [row[n] for n in names] == pytest.approx([expected[n] for n in names], rel=1e-4)


def test_advantages_by_token_are_refused_with_the_remedy():
    class Tokenwise(trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            shape = output["completion_ids"].shape
            output["advantages"] = output["advantages"][:, None].expand(shape)
            return output

    class Mine(EntropyControlMixin, Tokenwise):
        pass

    trainer = make_trainer("grpo", Mine, entropy_control=2.5)
    with pytest.raises(ValueError, match=r"found shape \(16, \d+\).*in _compute_loss"):
        trainer.train()


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    "schedule", ["constant(4.7)", "linear(2, 9, 4)", "linear(initial, 5, 4)", -0.1]
)
@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1}])
def test_a_schedule_that_cannot_be_met_stops_the_run_before_any_update(schedule, length):
    trainer = make_trainer(entropy_control=2.0)
    before = weights_of(trainer)
    model = trainer.model
    with pytest.raises(ValueError, match=r"above log\(vocabulary\) = 4\.57|at least 0"):
        make_trainer(model=model, entropy_control=schedule, **length).train()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_whole_run_is_checked_once_its_length_is_known():
    trainer = make_trainer(entropy_control="linear(2, 5, 36)", max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match=r"at step 31, above log\(vocabulary\)"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert trainer.last_decision is None


@pytest.mark.skipif(
    "entropy_coef" not in {field.name for field in dataclasses.fields(trl.GRPOConfig)},
    reason="this TRL has no entropy bonus",
)
@pytest.mark.parametrize("bonus", [{"entropy_coef": 0.01}, {"use_adaptive_entropy": True}])
def test_an_entropy_bonus_beside_control_is_warned_of(bonus):
    with pytest.warns(EntropyControlWarning, match="work against each other"):
        make_trainer(entropy_control=2.5, **bonus)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EntropyControlWarning)
        make_trainer(entropy_control=None, **bonus)
        make_trainer(entropy_control=2.5)


def test_a_controller_that_was_in_another_trainer_is_warned_of():
    control = EntropyController(2.5)
    make_trainer(entropy_control=control)
    with pytest.warns(EntropyControlWarning, match="keeps the state it has from there"):
        make_trainer(entropy_control=control)


# ---------------------------------------------------------------- logs


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_logged_rows_carry_the_metrics(kind):
    trainer = make_trainer(kind, entropy_control="linear(initial, 2.0, 24)", max_steps=24)
    trainer.train()
    logged = rows(trainer)
    for row in logged:
        assert {f"entropy/{name}" for name in EVERY_ROW} <= set(row)
    assert logged[0]["entropy/target"] == logged[0]["entropy/measured"]
    assert all(0 <= row["entropy/kept_fraction"] <= 1 for row in logged)


def test_metrics_are_averaged_over_logging_steps():
    trainer = make_trainer(entropy_control="linear(3, 2, 4)", logging_steps=2)
    trainer.train()
    assert [row["entropy/target"] for row in rows(trainer)] == pytest.approx([2.875, 2.375])


def test_the_completions_table_says_what_was_kept(tmp_path):
    control = Recording("linear(initial, 1.5, 4)")
    trainer = make_trainer(
        "grpo",
        WitnessGRPO,
        entropy_control=control,
        output_dir=str(tmp_path),
        log_completions=True,
        eval_dataset=PROMPTS.select(range(2)),
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=4,
    )
    trainer.train()

    def table(step):
        return pandas.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")

    for step, (batch, answer) in enumerate(
        zip(trainer.batches, control.answered, strict=True), start=1
    ):
        texts = TOKENIZER.batch_decode(batch["completion_ids"], skip_special_tokens=True)
        kept = (answer.weights > 0).tolist()
        assert all(kept) == (step == 1)  # the first batch of a run is kept as it is
        if step < 4:
            assert table(step)["completion"].tolist() == texts
            assert table(step)["kept"].tolist() == kept
            # what TRL logs as advantages stays what the rewards said
            assert table(step)["advantage"].tolist() == batch["advantages"].tolist()
    # the table after evaluation: the newest of the last batch, then 2 prompts evaluated 4 times
    mixed = table(4)
    assert mixed["completion"].tolist()[:8] == texts[8:]
    assert mixed["kept"].tolist() == [*kept[8:], *[None] * 8]
