"""The token batch: advantages, ratios, clipping and means of tokens."""

import math

import pytest
import torch

from entrocraft.rollouts import TokenBatch


def make(advantages, ratio=None, **changes):
    mask = torch.tensor([[True, True, True], [True, False, False]])
    old = torch.full((2, 3), -1.0)
    new = old if ratio is None else old + torch.tensor(ratio).log()
    fields = {"logprobs": new, "old_logprobs": old, "entropies": -new, "old_entropies": -old}
    return TokenBatch(0, torch.tensor(advantages), mask, **(fields | changes))


def test_a_token_has_its_rollouts_advantage_or_its_own():
    assert make([0.5, -2.0]).token_advantages.tolist() == [[0.5, 0.5, 0.5], [-2.0, 0, 0]]
    own = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    expected = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0, 0]])
    torch.testing.assert_close(make(own).token_advantages, expected)


def test_the_ratio_outside_the_mask_is_1():
    ratio = [[1.0, 2.0, 0.5], [3.0, 9.0, 9.0]]
    expected = torch.tensor([[1.0, 2.0, 0.5], [3.0, 1.0, 1.0]])
    torch.testing.assert_close(make([1.0, 1.0], ratio).ratio, expected)
    nan = torch.full((2, 3), math.nan)
    tokens = make([1.0, 1.0])
    junk = torch.where(tokens.mask, tokens.logprobs, nan)
    assert make([1.0, 1.0], logprobs=junk).ratio.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("advantage", "expected"), [(1.0, [False, True, False]), (-1.0, [False, False, True])]
)
def test_clipped_tokens_are_those_whose_gradient_is_taken_away(advantage, expected):
    tokens = make([advantage, 0.0], [[1.1, 1.5, 0.6], [5.0, 1.0, 1.0]])
    assert tokens.clipped(0.2, 0.3).tolist() == [expected, [False] * 3]


def test_the_edges_of_the_range_are_not_clipped():
    for advantage in (1.0, -1.0):
        tokens = make([advantage, 0.0], [[1.0, 2.0, 0.5], [1.0, 1.0, 1.0]])
        clipped = [False, advantage > 0, advantage < 0]
        assert tokens.clipped(0.0, 0.0).tolist() == [clipped, [False] * 3]


def test_a_token_without_an_advantage_has_no_gradient_to_take_away():
    for ratio in (0.1, 10.0):
        assert not make([0.0, 0.0], [[ratio] * 3] * 2).clipped(0.2, 0.2).any()
    assert make([0.5, 0.5], [[0.1] * 3] * 2).clipped(0.2, 0.2).sum() == 0


def test_means_are_added_up_in_double():
    values = torch.tensor([[2.0**25, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert make([1.0, 1.0]).mean(values) == (2**25 + 3) / 4


def test_the_mean_is_over_response_tokens_of_all_processes():
    tokens = make([1.0, 1.0])
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, math.inf]])
    assert tokens.mean(values) == 3.0
    assert tokens.mean(values, where=values > 1.5) == pytest.approx(11 / 3)
    assert tokens.mean(values, where=values < 0, none=-7.0) == -7.0
    assert tokens.mean(values, where=values < 0) == 0
    other = torch.tensor([8.0, 1.0], dtype=torch.float64)
    shared = make([1.0, 1.0], total=lambda sums: sums + other)
    assert shared.mean(values) == 4.0
    assert shared.mean(values, where=values < 0) == 8.0
