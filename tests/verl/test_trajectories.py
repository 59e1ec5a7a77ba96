"""verl's rows as rollouts: one decision for a session, the decision that TRL gets."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")

from entrocraft import EntropyController, RolloutBatch
from entrocraft.effects import rollout_effects
from entrocraft.methods import get_method
from entrocraft.rollouts import StepInfo
from entrocraft.verl.trajectories import Rows, Trajectories
from tests.trl.runs import Recording, WitnessGRPO, make_trainer, tiny_model


def make_rows(seed=0, prompts=6, generations=4, width=7, **changes):
    """Rows of one turn each, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    count = prompts * generations
    keys = [f"uid{p}_{g}_0" for p in range(prompts) for g in range(generations)]
    order = torch.randperm(count, generator=generator).tolist()
    lengths = torch.randint(1, width + 1, (count,), generator=generator)
    mask = torch.arange(width) < lengths[:, None]
    values = {
        "keys": [keys[i] for i in order],
        "advantages": normal(count)[:, None] * mask,
        "mask": mask,
        "logprobs": -normal(count, width).abs(),
        "entropies": normal(count, width).abs(),
        "sensitivity": 0.1 * normal(count, width),
        "rewards": (normal(count) > 0).float(),
    }
    return Rows(**(values | changes))


def test_the_same_batch_gives_the_decision_that_the_trl_adapter_gets():
    rows = make_rows()
    prompt = torch.tensor([int(key[3 : key.index("_")]) for key in rows.keys])
    plain = RolloutBatch(
        step=3,
        advantages=rows.advantages[:, 0],
        mask=rows.mask,
        logprobs=rows.logprobs,
        entropies=rows.entropies,
        sensitivity=rows.sensitivity,
        rewards=rows.rewards,
        group=prompt,
        optimizer_steps=2,
    )
    for rule, effect in (("tilt", "logit"), ("tilt", "sampled"), ("sign", None), ("switch", None)):
        ours, theirs = (EntropyController(0.4, rule, effect, seed=3) for _ in range(2))
        rollouts = Trajectories(rows)
        for _ in range(3):
            decision = ours.decide(rollouts.stats(), StepInfo(3, 2))
            expected = theirs.decide(plain)
            assert torch.equal(decision.weights, expected.weights)
            assert torch.equal(decision.advantages, expected.advantages)
            assert decision.metrics == pytest.approx(expected.metrics)
        assert 0 < int((expected.weights == 0).sum()) < len(expected.weights)
        trained = rollouts.advantages(rollouts.stats(), decision)
        assert torch.allclose(trained, expected.advantages.float()[:, None] * rows.mask)
    for name in ("w_reinforce", "qae", "entropic_fork"):
        method, other = (get_method(name, 0.4) for _ in range(2))
        decision = method.decide(Trajectories(rows).stats(), StepInfo(3))
        assert torch.equal(decision.advantages, other.decide(plain).advantages)


def test_a_batch_of_trls_trainer_gives_the_decision_that_trl_took():
    settings = {"seed": 3, "remeasure": 0, "effect": "logit"}
    # verl's adapter has the batch scored when it decides, and so has TRL's by a pass of its own
    control = Recording("linear(initial, 2.5, 4)", extra_pass=True, **settings)
    trainer = make_trainer(cls=WitnessGRPO, model=tiny_model(ends=True), entropy_control=control)
    trainer.train()
    verls = EntropyController("linear(initial, 2.5, 4)", **settings)
    rejected = 0
    for batch, (_, step), taken in zip(
        trainer.batches, control.asked, control.answered, strict=True
    ):
        count = len(batch["advantages"])
        mask = batch["completion_mask"].bool()
        rows = Rows(
            keys=[f"prompt{row // 4}_{row % 4}_0" for row in range(count)],
            advantages=batch["advantages"][:, None] * mask,
            mask=mask,
            logprobs=batch["signals"].logprobs,
            entropies=batch["signals"].entropies,
            sensitivity=batch["signals"].sensitivity,
            rewards=torch.zeros(count),
        )
        rollouts = Trajectories(rows)
        decision = verls.decide(rollouts.stats(), step)
        assert torch.equal(decision.weights, taken.weights)
        trained = rollouts.advantages(rollouts.stats(), decision)
        assert torch.allclose(trained, batch["decided"][:, None] * mask)
        rejected += int((decision.weights == 0).sum())
    assert rejected > 0


def test_rows_of_one_session_share_its_fate():
    rows = make_rows(prompts=3, generations=2)
    # the second turn of every session; its reward is the session's
    again = make_rows(seed=1, prompts=3, generations=2)
    place = {key: row for row, key in enumerate(again.keys)}
    order = torch.tensor([place[key] for key in rows.keys])
    both = Rows(
        keys=[*rows.keys, *(key[:-1] + "1" for key in rows.keys)],
        advantages=torch.cat(
            [rows.advantages, rows.advantages.sum(1, keepdim=True).sign() * again.mask[order]]
        ),
        mask=torch.cat([rows.mask, again.mask[order]]),
        logprobs=torch.cat([rows.logprobs, again.logprobs[order]]),
        entropies=torch.cat([rows.entropies, again.entropies[order]]),
        sensitivity=torch.cat([rows.sensitivity, again.sensitivity[order]]),
        rewards=torch.cat([rows.rewards, 5 + again.rewards[order]]),
    )
    rollouts = Trajectories(both)
    assert len(rollouts) == 6
    stats = rollouts.stats()
    inside = torch.where(both.mask, both.entropies, 0.0).sum(1).double()
    assert torch.allclose(stats.entropy, inside[:6] + inside[6:])
    assert torch.equal(stats.tokens, both.mask.sum(1)[:6].double() + both.mask.sum(1)[6:])
    assert torch.equal(stats.rewards, both.rewards[6:].double())
    assert sorted(stats.group.tolist()) == [0, 0, 1, 1, 2, 2]
    decision = EntropyController(0.1, "sign").decide(stats, StepInfo(0))
    assert 0 < int((decision.weights == 0).sum()) < 6
    trained = rollouts.advantages(stats, decision)
    for row in range(6):
        weight = float(decision.weights[row])
        assert torch.equal(trained[row], weight * both.advantages[row])
        assert torch.equal(trained[6 + row], weight * both.advantages[6 + row])


def test_advantages_of_tokens_keep_their_effect():
    rows = make_rows()
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(rows.mask.shape, generator=generator) * rows.mask
    rows = make_rows(advantages=tokens)
    stats = Trajectories(rows).stats()
    effect = (tokens * rows.sensitivity * rows.mask).sum(1).double()
    assert torch.allclose(stats.advantages * stats.sensitivity, effect, atol=1e-6)
    mean = (tokens.sum(1) / rows.mask.sum(1)).double()
    assert torch.equal(stats.advantages.sign(), mean.sign())
    size = (tokens.square().sum(1) / rows.mask.sum(1)).sqrt().double()
    assert torch.allclose(stats.advantages.abs(), size)
    decision = EntropyController(0.1).decide(stats, StepInfo(0))
    trained = Trajectories(rows).advantages(stats, decision)
    assert torch.allclose(trained, tokens * decision.weights.float()[:, None])


@pytest.mark.parametrize("level", ["sign", "sampled", "logit"])
def test_the_effect_of_token_advantages_is_a_sum_over_tokens_at_every_level(level):
    plain = make_rows()
    tokens = torch.randn(plain.mask.shape, generator=torch.Generator().manual_seed(5))
    tokens[:2] = 1.5  # two rollouts whose tokens have the same one
    rows = replace(plain, advantages=tokens * plain.mask)
    count = rows.mask.sum()
    mean = torch.where(rows.mask, rows.logprobs, 0.0).sum() / count
    sensitivity = {
        "sign": torch.full_like(tokens, -1.0),
        "sampled": mean - rows.logprobs,
        "logit": rows.sensitivity,
    }[level]
    expected = (tokens * sensitivity * rows.mask).double().sum(1) / count
    found = rollout_effects(Trajectories(rows).stats(), level)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert Trajectories(plain).stats().advantage_tokens is None


def test_rollouts_without_advantage_keep_their_sensitivity():
    rows = make_rows()
    rows.advantages[:3] = 0.0
    stats = Trajectories(rows).stats()
    expected = torch.where(rows.mask, rows.sensitivity, 0.0).sum(1).double()
    assert torch.allclose(stats.sensitivity, expected)
    assert not stats.advantages[:3].any()


def test_what_cannot_be_read_is_named():
    rows = make_rows()
    rows.logprobs[4, 0] = torch.nan
    with pytest.raises(ValueError, match=f"logprobs of the row {rows.keys[4]} are not finite"):
        Trajectories(rows).stats()
    with pytest.raises(ValueError, match="the row 'abc' is not named uid_session_index"):
        make_rows(keys=["abc"] * 24)


def test_prompts_with_one_reward_have_no_advantage():
    rows = make_rows(prompts=3)
    prompt = torch.tensor([int(key[3]) for key in rows.keys])
    rewards = torch.where(prompt == 1, 0.1, rows.rewards)
    advantages = torch.where(prompt == 1, 0.11, 1.0)[:, None] * rows.mask
    settled = Trajectories(
        replace(rows, rewards=rewards, advantages=advantages)
    ).without_rounding_noise()
    alike = torch.stack([rewards[prompt == p].std() == 0 for p in range(3)])
    assert bool(alike[1])
    assert not bool(alike.all())
    for row, p in enumerate(prompt.tolist()):
        expected = torch.zeros(7) if alike[p] else advantages[row]
        assert torch.equal(settled.rows.advantages[row], expected)
    decision = EntropyController(0.4).decide(settled.stats(), StepInfo(0))
    trained = settled.advantages(settled.stats(), decision)
    assert not trained[prompt == 1].any()


def test_a_rollout_without_another_of_its_prompt_keeps_its_advantage():
    rows = make_rows(prompts=5, generations=1)
    assert torch.equal(Trajectories(rows).without_rounding_noise().rows.advantages, rows.advantages)


def test_a_mean_over_rows_weighs_the_tokens_of_short_rollouts_more():
    rows = make_rows()
    assert Trajectories(rows).stats().token_weight is None
    stats = Trajectories(replace(rows, mean_of_rows=True)).stats()
    torch.testing.assert_close(stats.token_weight, 1 / stats.tokens)
    # two rows of one rollout count twice
    keys = ["u_0_0", "u_0_1", "u_1_0"]
    small = make_rows(prompts=1, generations=3, keys=keys, mean_of_rows=True)
    stats = Trajectories(small).stats()
    lengths = small.mask.sum(1).double()
    torch.testing.assert_close(
        stats.token_weight, torch.stack([2 / (lengths[0] + lengths[1]), 1 / lengths[2]])
    )
