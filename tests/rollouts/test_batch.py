"""Rollout batches: sums over the mask, the standard error, and what is refused."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from entrocraft import RolloutBatch
from entrocraft.rollouts import RolloutStats, StepInfo


def make(rows=6, width=5, seed=0, **changes) -> RolloutBatch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    batch = RolloutBatch(
        step=0,
        advantages=uniform(rows) - 0.5,
        mask=torch.arange(width) < lengths[:, None],
        logprobs=-2 * uniform(rows, width),
        entropies=uniform(rows, width),
        sensitivity=uniform(rows, width) - 0.5,
        rewards=(uniform(rows) > 0.5).double(),
        group=torch.arange(rows) // 2,
    )
    return replace(batch, **changes)


def test_sums_are_masked_sums():
    batch = make()
    stats = batch.stats()
    mask = batch.mask.numpy()
    for name, field in (("logprobs", "logprob"), ("entropies", "entropy"), ("sensitivity",) * 2):
        expected = (getattr(batch, name).numpy() * mask).sum(1)
        np.testing.assert_allclose(getattr(stats, field), expected, rtol=1e-12)
    np.testing.assert_array_equal(stats.tokens, mask.sum(1))
    assert stats.total_tokens == mask.sum()
    assert stats.mean_entropy() == pytest.approx(batch.entropies[batch.mask].mean().item())
    assert len(stats) == 6


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_outside_the_mask_does_not_count(junk):
    batch = make()
    spoilt = {
        name: torch.where(batch.mask, getattr(batch, name), junk)
        for name in ("logprobs", "entropies", "sensitivity")
    }
    clean, dirty = batch.stats(), replace(batch, **spoilt).stats()
    for name in ("logprob", "entropy", "sensitivity", "tokens"):
        assert torch.equal(getattr(clean, name), getattr(dirty, name))


def test_mask_may_be_of_any_type():
    batch = make()
    for dtype in (torch.int64, torch.float32, torch.uint8):
        assert torch.equal(replace(batch, mask=batch.mask.to(dtype)).stats().entropy,
                           batch.stats().entropy)  # fmt: skip


def test_a_batch_knows_its_place_in_the_run():
    batch = make(step=7, optimizer_steps=2.5, momentum=0.3)
    assert batch.step_info() == StepInfo(7, 2.5, 0.3)
    assert make().step_info() == StepInfo(0, 1, None)


def test_a_batch_without_a_response_token_has_no_entropy():
    stats = make(mask=torch.zeros(6, 5)).stats()
    for ask in (stats.mean_entropy, stats.entropy_stderr):
        with pytest.raises(ValueError, match=re.escape("check the mask (true on response tokens)")):
            ask()


def test_active_rollouts_have_tokens_and_an_advantage():
    mask = torch.ones(6, 5)
    mask[1] = 0
    advantages = torch.tensor([0.5, 0.5, 0.0, -0.5, -0.0, 1e-30], dtype=torch.float64)
    stats = make(mask=mask, advantages=advantages, rewards=None).stats()
    assert stats.active.tolist() == [True, False, False, True, False, True]


def test_without_entropies_the_sampled_logprobs_estimate_them():
    stats = make(entropies=None).stats()
    assert torch.equal(stats.entropy, -stats.logprob)


def test_low_precision_is_added_up_in_double():
    rows = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    batch = RolloutBatch(0, torch.ones(1), torch.ones(1, 4096), -rows, rows)
    assert batch.stats().mean_entropy() == pytest.approx(float(rows[0, 0]), rel=1e-12)


def test_a_batch_that_needs_grad_is_read_without_it():
    batch = make()
    assert (
        not replace(batch, logprobs=batch.logprobs.requires_grad_()).stats().logprob.requires_grad
    )


def test_stderr_of_single_token_rollouts_is_the_textbook_one():
    values = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2], dtype=torch.float64)
    batch = RolloutBatch(0, torch.ones(5), torch.ones(5, 1), -values[:, None], values[:, None])
    expected = values.std().item() / math.sqrt(5)
    assert batch.stats().entropy_stderr() == pytest.approx(expected, rel=1e-12)


def test_stderr_counts_prompts_not_rollouts():
    # four identical rollouts a prompt bring no news beyond the first
    values = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2], dtype=torch.float64)
    many = values.repeat_interleave(4)[:, None]
    group = torch.tensor([7, -3, 100, 5, 0]).repeat_interleave(4)
    batch = RolloutBatch(0, torch.ones(20), torch.ones(20, 1), -many, many, group=group)
    expected = values.std().item() / math.sqrt(5)
    assert batch.stats().entropy_stderr() == pytest.approx(expected, rel=1e-12)
    assert replace(batch, group=None).stats().entropy_stderr() < 0.6 * expected


def test_rollouts_without_tokens_are_no_sample():
    values = torch.tensor([[0.1], [0.5], [0.3], [0.0]], dtype=torch.float64)
    mask = torch.tensor([[1], [1], [1], [0]])
    stats = RolloutBatch(0, torch.ones(4), mask, -values, values).stats()
    assert stats.entropy_stderr() == pytest.approx(float(values[:3].std()) / math.sqrt(3))


def test_two_prompts_have_a_stderr():
    values = torch.tensor([[0.1], [0.5]], dtype=torch.float64)
    stats = RolloutBatch(0, torch.ones(2), torch.ones(2, 1), -values, values).stats()
    assert stats.entropy_stderr() == pytest.approx(float(values.std()) / math.sqrt(2))


def test_stderr_covers_the_truth_with_unequal_lengths():
    generator = np.random.default_rng(0)
    scores = []
    for _ in range(300):
        lengths = generator.integers(1, 20, size=40)
        level = 0.5 + 0.02 * lengths + 0.1 * generator.standard_normal(40)
        mask = torch.arange(20) < torch.tensor(lengths)[:, None]
        entropies = torch.tensor(np.maximum(level, 0))[:, None].expand(40, 20)
        stats = RolloutBatch(0, torch.ones(40), mask, -entropies, entropies).stats()
        truth = 0.5 + 0.02 * (np.arange(1, 20) ** 2).mean() / np.arange(1, 20).mean()
        scores.append((stats.mean_entropy() - truth) / stats.entropy_stderr())
    assert np.std(scores) == pytest.approx(1.0, abs=0.2)


def test_stderr_of_one_cluster_is_unknown():
    assert make(rows=1).stats().entropy_stderr() == math.inf
    assert make(rows=4, group=torch.zeros(4, dtype=torch.long)).stats().entropy_stderr() == math.inf


ODD = torch.arange(6)[:, None] == 1  # one rollout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": torch.ones(6)}, "mask must be (B, T), got shape (6,)"),
        ({"mask": torch.ones(0, 5)}, "the rollout batch is empty"),
        ({"advantages": torch.zeros(5)}, "advantages has shape (5,), expected (6,) ((B,) as in"),
        ({"advantages": torch.zeros(6, 5)}, "advantages has shape (6, 5), expected (6,)"),
        ({"rewards": torch.zeros(6, 1)}, "rewards has shape (6, 1), expected (6,)"),
        ({"group": torch.zeros(7)}, "group has shape (7,), expected (6,)"),
        ({"token_weight": torch.zeros(6, 5)}, "token_weight has shape (6, 5), expected (6,)"),
        ({"token_weight": torch.full((6,), math.inf)}, "token_weight[0] is inf"),
        ({"logprobs": torch.zeros(6, 4)}, "logprobs has shape (6, 4), expected (6, 5) ((B, T)"),
        ({"entropies": torch.zeros(5, 6)}, "entropies has shape (5, 6), expected (6, 5)"),
        ({"sensitivity": torch.zeros(6)}, "sensitivity has shape (6,), expected (6, 5)"),
        (
            {"entropies": -torch.eye(6)[:, :5], "mask": torch.eye(6)[:, :5].bool() & ODD},
            "entropies of rollout 1 add up to -1 nats; entropy is never negative: pass -sum p",
        ),
        (
            {"logprobs": torch.eye(6)[:, :5], "mask": torch.eye(6)[:, :5].bool() & ODD},
            "logprobs of rollout 1 add up to 1 nats; a log-probability is never positive: pass",
        ),
    ],
)
def test_errors_name_field_value_and_remedy(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**changes).stats()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["logprobs", "entropies", "sensitivity"])
def test_a_token_that_is_not_finite_is_named(name, bad):
    values = getattr(make(), name).clone()
    values[2, 0] = bad
    message = f"{name}[2, 0] is {bad} inside the mask; {name} must be finite in 32 bits: mask"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**{name: values}).stats()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_advantage_that_is_not_finite_is_named(bad):
    advantages = make().advantages.clone()
    advantages[4] = bad
    message = f"advantages[4] is {bad}; advantages must be finite in 32 bits: give"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(advantages=advantages).stats()


def test_rewards_may_be_missing_for_single_rollouts():
    rewards = torch.tensor([0.0, 1.0, math.nan, 1.0, 0.0, 1.0])
    stats = make(rewards=rewards).stats()
    assert isinstance(stats, RolloutStats)
    assert bool(stats.rewards[2].isnan())


def rewarded(rewards, advantages, generations=4):
    count = len(rewards)
    return make(
        count,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.arange(count) // generations,
    ).stats()


@pytest.mark.parametrize("generations", [6, 8, 16])
@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, 1 / 3, 12.3, 0.0, 1.0])
@pytest.mark.parametrize("scaled", [True, False])
def test_rounding_in_a_constant_reward_group_is_no_advantage(generations, reward, scaled):
    rewards = torch.full((3, generations), reward)
    rewards[0, ::2] += 1.0
    advantages = rewards - rewards.mean(1, keepdim=True)
    if scaled:
        advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
    stats = rewarded(rewards.flatten().tolist(), advantages.flatten().tolist(), generations)
    assert stats.active.sum() == generations
    assert torch.equal(stats.advantages[:generations].float(), advantages[0])


def test_rounding_is_what_the_previous_test_is_about():
    rewards = torch.full((8,), 0.1)
    noise = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    assert 0 < float(noise.abs().max()) < 1e-3


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_what_counts_as_rounding_goes_with_the_size_of_the_advantages(size):
    rewards = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    advantages = [1e-6, -1e-6, 1e-5, 0.0, 1.0, -1.0, 1.0, -1.0]
    found = rewarded(rewards, [size * value for value in advantages]).advantages / size
    assert found.tolist() == pytest.approx([0.0, 0.0, *advantages[2:]])


def test_real_advantages_of_a_constant_reward_group_stay():
    raw = [0.1, 0.1, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0]
    assert rewarded(raw, raw).advantages.tolist() == raw
    less = [-0.3] * 4 + [0.6] * 4
    assert rewarded(raw, less).advantages.tolist() == less
    # without rewards nobody knows
    assert make(advantages=torch.full((6,), 1e-5), rewards=None).stats().active.all()


def test_constant_reward_groups():
    rewards = [1.0, 1.0, math.nan, 1.0, 0.0, 1.0, 0.0, 0.0, *[math.nan] * 4, *[0.3] * 3, 0.1 + 0.2]
    stats = rewarded(rewards, [0.5] * 16)
    assert stats.constant_reward.tolist() == [True] * 4 + [False] * 8 + [True] * 4
    other = [-1.0, math.nan, -1.0, -1.0, *[1000.0] * 3, 1000.0005, *[1000.0] * 3, 1000.1]
    stats = rewarded(other, [0.5] * 12)
    assert stats.constant_reward.tolist() == [True] * 8 + [False] * 4
    assert not make(rewards=None).stats().constant_reward.any()
    assert not make(group=None).stats().constant_reward.any()
