"""What a decision knows of a batch: which tokens count, what is active, what the loss weighs."""

import pytest
import torch
import trl

from entrocraft import FeedbackSettings, SelectionSettings
from entrocraft.lab.dynamics.loss import loss_coefficients
from tests.trl.runs import (
    TOKENIZER,
    WITNESSES,
    Recording,
    Witness,
    WitnessGRPO,
    make_trainer,
    rows,
    tiny_model,
)


def partial(completions, **columns):
    """Scores only texts of odd checksum."""
    stats = [sum(map(ord, text)) for text in completions]
    return [float(total % 7) if total % 2 else None for total in stats]


def rarely(completions, **columns):
    """Scores nothing but texts that hold a small letter."""
    return [0.5 if any(map(str.islower, text)) else None for text in completions]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_raw_rewards_and_groups_reach_the_switch_rule(kind):
    control = Recording(
        0.5, rule="switch", feedback=FeedbackSettings(band=0.05)
    )  # far below: only successes train
    trainer = make_trainer(
        kind,
        WITNESSES[kind],
        entropy_control=control,
        reward_funcs=[partial, rarely],
        reward_weights=[1.0, 0.5],
        max_steps=3,
        max_completion_length=4,
        log_completions=True,
    )
    trainer.train()
    unscored = 0
    for (stats, _), batch, answer in zip(
        control.asked, trainer.batches, control.answered, strict=True
    ):
        texts = TOKENIZER.batch_decode(batch["completion_ids"], skip_special_tokens=True)
        scores = torch.tensor(
            [
                [torch.nan if s is None else s for s in pair]
                for pair in zip(partial(texts), rarely(texts), strict=True)
            ]
        )
        expected = (scores * torch.tensor([1.0, 0.5])).nansum(1)
        expected[scores.isnan().all(1)] = torch.nan
        torch.testing.assert_close(stats.rewards, expected.double(), equal_nan=True)
        unscored += int(expected.isnan().sum())
        assert stats.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
        for group in range(4):
            assert len({tuple(p) for p in batch["prompt_ids"][stats.group == group].tolist()}) == 1
        success = torch.where(expected.isnan(), False, expected >= 0.5)
        assert torch.equal(batch["decided"], success.float())
        assert torch.equal(answer.advantages, success.double())
    assert unscored > 0


class Tooled(trl.GRPOTrainer):
    """Stands for a run with tools: every second token comes from a tool."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        output["tool_mask"] = torch.ones_like(output["completion_mask"])
        output["tool_mask"][:, 1::2] = 0
        return output


def test_tokens_of_tools_are_outside():
    class Mine(WitnessGRPO, Tooled):
        pass

    control = Recording(2.5, effect="logit")
    trainer = make_trainer("grpo", Mine, entropy_control=control, max_steps=2)
    trainer.train()
    for (stats, _), batch in zip(control.asked, trainer.batches, strict=True):
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
        assert torch.equal(stats.tokens, mask.sum(1).double())
        assert (stats.tokens < batch["completion_mask"].sum(1)).any()
        for name, found in [("entropies", stats.entropy), ("sensitivity", stats.sensitivity)]:
            tokens = getattr(batch["signals"], name).double()
            torch.testing.assert_close(found, torch.where(mask, tokens, 0).sum(1))


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_truncated_completions_are_outside(kind):
    control = Recording(2.5)
    trainer = make_trainer(
        kind,
        WITNESSES[kind],
        model=tiny_model(ends=True),
        entropy_control=control,
        mask_truncated_completions=True,
        max_steps=3,
    )
    trainer.train()
    for (stats, _), batch in zip(control.asked, trainer.batches, strict=True):
        ended = (batch["completion_ids"] == TOKENIZER.eos_token_id).any(1)
        assert torch.equal(stats.tokens > 0, ended)
        assert ended.any()
        assert not ended.all()


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_batch_without_any_token_is_left_to_trl(kind):
    control = Recording(2.5)
    trainer = make_trainer(
        kind,
        WITNESSES[kind],
        entropy_control=control,
        mask_truncated_completions=True,
        generation_kwargs={"suppress_tokens": [TOKENIZER.eos_token_id]},
        log_completions=True,
        max_steps=2,
    )
    trainer.train()
    assert control.asked == []
    assert trainer.last_decision is None
    for batch in trainer.batches:
        assert torch.equal(batch["decided"], batch["advantages"])
    assert [row["grad_norm"] for row in rows(trainer)] == [0, 0]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_rewards_that_are_all_alike_are_no_vote(kind):
    """0.1 is not exact: TRL's advantages are its last digit."""
    control = Recording(2.5)
    trainer = make_trainer(
        kind,
        WITNESSES[kind],
        entropy_control=control,
        num_generations=8,
        reward_funcs=lambda completions, **columns: [0.1] * len(completions),
        max_steps=2,
    )
    trainer.train()
    assert bool(trainer.batches[0]["advantages"].any()), "TRL's rounding is what this is about"
    for decision in control.answered:
        assert decision.useful == 0
        assert decision.metrics["entropy/empty"] == 1
        assert not decision.advantages.any()


@pytest.mark.parametrize(
    ("loss_type", "averages"),
    [("grpo", True), ("sapo", True), ("dapo", False), ("dr_grpo", False), ("cispo", False)],
)
def test_methods_know_what_the_loss_puts_on_a_token(loss_type, averages):
    class Asking(WitnessGRPO):
        def _decide_on(self, output):
            mask, signals = output["completion_mask"].bool(), self._signals.ask(output)
            slopes = loss_coefficients(self, output, mask, signals.logprobs, signals.entropies)
            self.by_loss = (slopes.sum(1) / mask.sum(1)).double()
            super()._decide_on(output)

    control = Recording(2.5)
    model = tiny_model(ends=True)
    trainer = make_trainer(
        "grpo", Asking, model=model, entropy_control=control, loss_type=loss_type, max_steps=1
    )
    trainer.train()
    [(stats, _)] = control.asked
    assert (stats.token_weight is not None) == averages
    weight = torch.ones(16).double() if stats.token_weight is None else stats.token_weight
    assert len(stats.tokens.unique()) > 2
    torch.testing.assert_close(
        weight / weight.sum(), trainer.by_loss / trainer.by_loss.sum(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("shape", [(16, 1), (16, 8)])
def test_ratios_to_vllms_policy_weigh_the_effects(shape):
    ratios = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(0))
    ratios[:5] = 0.0  # too far off: TRL leaves them out

    class FromVllm(trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            width = output["completion_ids"].shape[1]
            output["importance_sampling_ratio"] = ratios[:, :width]
            return output

    class Mine(Witness, FromVllm):
        pass

    control = Recording(2.5, effect="logit")
    trainer = make_trainer("grpo", Mine, entropy_control=control, max_steps=1)
    trainer.train()
    [(stats, _)], [batch] = control.asked, trainer.batches
    assert not stats.advantages[:5].any()
    assert torch.equal(stats.advantages[5:].float(), batch["advantages"][5:])
    assert not batch["decided"][:5].any()
    per_token = batch["signals"].sensitivity * batch["completion_mask"]
    expected = (per_token * batch["importance_sampling_ratio"]).double().sum(1)
    torch.testing.assert_close(stats.sensitivity, expected)


@pytest.mark.parametrize("extra_pass", [False, True])
@pytest.mark.parametrize(("target", "sign"), [(4.5, 1), (0.1, -1)])
def test_constant_reward_groups_join_through_the_trainer(target, sign, extra_pass):
    """Every rollout is right, so that the estimator's advantages are all 0."""

    def always_right(completions, **columns):
        return [1.0] * len(completions)

    joining = SelectionSettings(constant_reward_groups=True)
    control = Recording(target, effect="logit", selection=joining, extra_pass=extra_pass, seed=0)
    make_trainer(entropy_control=control, max_steps=3, reward_funcs=always_right).train()
    pairs = list(zip(control.asked, control.answered, strict=True))
    if not extra_pass:
        assert not bool(pairs.pop(0)[1].advantages.any()), "nothing is known before the first batch"
    for (batch, _), decision in pairs:
        assert not bool(batch.advantages.any())
        used = decision.advantages != 0
        assert bool(used.any())
        assert bool((decision.advantages[used] == 1).all())
        assert bool((sign * batch.sensitivity[used] > 0).all())
        assert bool((decision.probabilities[sign * batch.sensitivity < 0] == 0).all())
