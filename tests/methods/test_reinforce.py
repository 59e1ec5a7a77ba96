"""REINFORCE on raw rewards against its formulas, written out with loops."""

import dataclasses
import math

import pytest
import torch

from entrocraft.methods import get_method
from entrocraft.rollouts import StepInfo
from tests.methods.batches import LENGTHS, REWARDS, TARGET, advantages_of, hand_made, sign


def test_raft_trains_on_successes_alone():
    _, found = advantages_of("raft++")
    assert found == [1.0 if reward == 1 else 0.0 for reward in REWARDS]


def test_reinforce_rej_drops_groups_that_agree():
    _, found = advantages_of("reinforce_rej")
    expected = []
    for start in range(0, 16, 4):
        group = [sign(reward) for reward in REWARDS[start : start + 4]]
        mixed = 1.0 in group and -1.0 in group
        expected += group if mixed else [0.0] * 4
    assert found == expected


@pytest.mark.parametrize(("name", "kept", "value"), [("psr", 1.0, 1.0), ("nsr", -1.0, -1.0)])
def test_psr_and_nsr_equal_a_batch_without_the_other_rows(name, kept, value):
    _, found = advantages_of(name)
    stays = [sign(reward) == kept for reward in REWARDS]
    total = sum(LENGTHS)
    left = sum(length for length, stay in zip(LENGTHS, stays, strict=True) if stay)
    # the token mean of the loss over all rows is that over the rows that stay
    for stay, advantage in zip(stays, found, strict=True):
        assert advantage / total == pytest.approx(value / left if stay else 0.0)


def test_psr_without_a_success_trains_on_nothing():
    failures = hand_made([0.0] * 16)
    decision = get_method("psr").decide(failures, step=StepInfo(0))
    assert decision.useful == 0
    assert decision.metrics["entropy/empty"] == 1.0
    assert not decision.advantages.any()


def test_w_reinforce_weighs_successes():
    _, found = advantages_of("w_reinforce", weight=0.25)
    expected = {1.0: 0.25, -1.0: -1.0, 0.0: 0.0}
    assert found == [expected[sign(reward)] for reward in REWARDS]


def test_rewards_of_minus_one_mean_the_same_as_zero():
    signed = [-1 if reward == 0 else reward for reward in REWARDS]
    for name in ("raft++", "reinforce_rej", "psr", "nsr", "w_reinforce", "entropic_fork"):
        zero_one = get_method(name, TARGET).decide(hand_made(), step=StepInfo(0)).advantages
        plus_minus = get_method(name, TARGET).decide(hand_made(signed), step=StepInfo(0)).advantages
        assert torch.equal(zero_one, plus_minus), name


@pytest.mark.parametrize("name", ["psr", "nsr"])
def test_psr_and_nsr_drop_rollouts_where_the_loss_counts_rollouts(name):
    stats = dataclasses.replace(hand_made(), by_rollout=True)
    found = get_method(name).decide(stats, step=StepInfo(0)).advantages.tolist()
    kept = 1.0 if name == "psr" else -1.0
    stays = [sign(reward) == kept for reward in REWARDS]
    for stay, advantage in zip(stays, found, strict=True):
        assert advantage == pytest.approx(kept * 16 / sum(stays) if stay else 0.0)


@pytest.mark.parametrize(
    "name", ["raft++", "psr", "nsr", "reinforce_rej", "w_reinforce", "entropic_fork"]
)
def test_the_user_says_what_a_success_is(name):
    """One point for the answer, one for its form."""
    both = hand_made([2, 1, 1, 0] * 4)
    found = get_method(name, TARGET, success=1.5).decide(both, step=StepInfo(0)).advantages
    answers = (
        get_method(name, TARGET).decide(hand_made([1, 0, 0, 0] * 4), step=StepInfo(0)).advantages
    )
    assert torch.equal(found, answers)
    formed = get_method(name, TARGET).decide(both, step=StepInfo(0)).advantages
    assert not torch.equal(found, formed)


def test_a_success_is_told_in_the_trainers_precision():
    rewards = torch.tensor([0.7, 0.6, 0.7, 0.6] * 4).tolist()
    found = (
        get_method("raft++", success=0.7).decide(hand_made(rewards), step=StepInfo(0)).advantages
    )
    assert found.tolist() == [1.0, 0.0, 1.0, 0.0] * 4


@pytest.mark.parametrize("quantile", [0.2, 0.4, 0.75, 1.0])
def test_qae_on_binary_rewards(quantile):
    _, found = advantages_of("qae", quantile=quantile)
    for start in range(0, 16, 4):
        rows = [i for i in range(start, start + 4) if not math.isnan(REWARDS[i])]
        seen = [REWARDS[i] for i in rows]
        accuracy = sum(seen) / len(seen)
        baseline = 0.0 if accuracy <= 1 - quantile + 1e-12 else 1.0
        spread = torch.tensor(seen, dtype=torch.float64).std().item()
        for i in rows:
            assert found[i] == pytest.approx((REWARDS[i] - baseline) / (spread + 1e-6))
    assert found[15] == 0.0


def test_qae_takes_the_smallest_reward_that_a_share_does_not_exceed():
    rewards = [0.1, 0.9, 0.4, 0.2] * 4
    found = get_method("qae", quantile=0.5).decide(hand_made(rewards), step=StepInfo(0)).advantages
    for row, reward in enumerate(rewards):
        # of four rewards two do not exceed 0.2
        assert torch.sign(found[row]).item() == (reward > 0.2) - (reward < 0.2)


def test_maxrl_divides_by_the_mean():
    _, found = advantages_of("maxrl")
    for start in range(0, 16, 4):
        rows = [i for i in range(start, start + 4) if not math.isnan(REWARDS[i])]
        mean = sum(REWARDS[i] for i in rows) / len(rows)
        for i in rows:
            assert found[i] == pytest.approx((REWARDS[i] - mean) / mean if mean else 0.0)
    assert found[15] == 0.0
