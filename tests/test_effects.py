"""Token statistics against finite differences and brute force; rollout effects by hand."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrocraft.effects import LEVELS, BatchMeans, rollout_effects, token_statistics
from entrocraft.rollouts import RolloutStats


def entropy(logits: torch.Tensor) -> torch.Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def logits_and_tokens(shape=(3, 7), vocabulary=11, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(*shape, vocabulary, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, vocabulary, shape, generator=generator)


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("advantage", [1.0, -2.5])
def test_sensitivity_is_the_derivative_of_entropy_along_the_softmax_step(spread, advantage):
    logits, tokens = logits_and_tokens(spread=spread)
    p = logits.softmax(-1)
    direction = advantage * (torch.nn.functional.one_hot(tokens, p.shape[-1]) - p)
    eta = 1e-5
    change = (entropy(logits + eta * direction) - entropy(logits - eta * direction)) / (2 * eta)
    predicted = advantage * token_statistics(logits, tokens).sensitivity.double()
    torch.testing.assert_close(predicted, change, rtol=2e-5, atol=2e-6)


def test_sensitivity_is_minus_s_minus_m_and_has_mean_zero_under_the_policy():
    logits, _ = logits_and_tokens((5,), 11)
    p = logits.softmax(-1)
    surprise = p * (p.log() + entropy(logits)[:, None])  # S_k for every token k
    mean = (p * surprise).sum(-1)  # E_k[S_k] = M
    everything = torch.arange(11).expand(5, 11)
    got = token_statistics(logits[:, None].expand(5, 11, 11), everything)
    torch.testing.assert_close(
        got.sensitivity.double(), mean[:, None] - surprise, rtol=1e-5, atol=1e-6
    )
    average = (p * got.sensitivity.double()).sum(-1)
    torch.testing.assert_close(average, torch.zeros_like(average), rtol=0, atol=1e-6)
    assert bool((mean > 0).all())


def test_rewarding_a_likely_token_lowers_entropy_and_an_unlikely_one_raises_it():
    logits = torch.tensor([3.0, 1.0, 0.0, -2.0]).expand(2, 4)
    likely, unlikely = token_statistics(logits, torch.tensor([0, 1])).sensitivity
    assert likely < 0 < unlikely


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_logprob_and_entropy_are_those_of_the_tempered_distribution(temperature):
    logits, tokens = logits_and_tokens()
    got = token_statistics(logits, tokens, temperature)
    reference = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(
        got.logprob.double(), reference.log_prob(tokens), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(got.entropy.double(), reference.entropy(), rtol=1e-5, atol=1e-6)
    same = token_statistics(logits / temperature, tokens)
    torch.testing.assert_close(got.sensitivity, same.sensitivity, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 5, 20, 21, 1000])
def test_chunks_do_not_change_the_result(chunk):
    logits, tokens = logits_and_tokens()
    for whole, cut in zip(
        token_statistics(logits, tokens), token_statistics(logits, tokens, chunk=chunk), strict=True
    ):
        assert torch.equal(whole, cut)


@pytest.mark.parametrize("chunk", [None, 1, 4, 1000])
def test_projected_states_give_what_their_logits_give(chunk):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(3, 7, 6, generator=generator)
    head = torch.randn(13, 6, generator=generator)
    tokens = torch.randint(0, 13, (3, 7), generator=generator)
    direct = token_statistics(states @ head.T, tokens)
    through = token_statistics(states, tokens, project=lambda part: part @ head.T, chunk=chunk)
    for a, b in zip(direct, through, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_projection_never_sees_more_than_a_chunk(monkeypatch):
    monkeypatch.setattr("entrocraft.effects._CHUNK_ELEMENTS", 1000)
    head, seen = torch.randn(100, 6), []

    def project(part):
        seen.append(len(part))
        return part @ head.T

    states, tokens = torch.randn(4, 25, 6), torch.zeros(4, 25, dtype=torch.long)
    token_statistics(states, tokens, project=project)
    assert sum(seen) == 100
    assert max(seen) == 10
    seen.clear()
    token_statistics(states, tokens, project=project, chunk=7)
    assert max(seen) == 7


def test_a_slice_of_logits_is_read_in_place():
    logits, tokens = logits_and_tokens((3, 8))
    for view, ids in (
        (logits[:, :-1], tokens[:, :-1]),
        (logits.transpose(0, 1), tokens.T),
        (logits[::2, 1:], tokens[::2, 1:]),
        (logits, tokens),
    ):
        storage, seen = logits.untyped_storage().data_ptr(), []

        def project(part, seen=seen, storage=storage):
            seen.append(len(part))
            assert part.untyped_storage().data_ptr() == storage
            return part

        expected = token_statistics(view.contiguous(), ids.contiguous())
        for got, want in zip(token_statistics(view, ids, project=project), expected, strict=True):
            assert torch.equal(got, want)
        assert sum(seen) == ids.numel()


def test_no_tensor_of_all_logits_is_made(monkeypatch):
    largest = 0
    original = torch.Tensor.log_softmax

    def watch(self, *args, **kwargs):
        nonlocal largest
        largest = max(largest, self.numel())
        return original(self, *args, **kwargs)

    monkeypatch.setattr("entrocraft.effects._CHUNK_ELEMENTS", 500)
    monkeypatch.setattr(torch.Tensor, "log_softmax", watch)
    logits, tokens = logits_and_tokens((4, 25), 100)
    token_statistics(logits, tokens)
    assert largest == 500


def test_extreme_and_masked_logits():
    inf = math.inf
    logits = torch.tensor(
        [
            [1e4, -1e4, 0.0, -inf],  # certain
            [1e4, 1e4, -1e4, -inf],  # fair coin
            [-inf, 0.0, -inf, -inf],  # the only token left
            [0.0, math.log(3), -inf, -inf],
            [-1e4, -1e4, -1e4, -1e4],
        ]
    )
    got = token_statistics(logits, torch.tensor([0, 1, 1, 1, 2]))
    assert all(bool(row.isfinite().all()) for row in got)
    quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    expected = torch.tensor([0.0, math.log(2), 0.0, quarter, math.log(4)])
    torch.testing.assert_close(got.entropy, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        got.logprob, torch.tensor([0.0, -math.log(2), 0.0, math.log(0.75), -math.log(4)])
    )
    assert got.sensitivity[[0, 1, 2, 4]].abs().max() < 1e-6


def test_a_token_of_probability_zero_has_a_finite_sensitivity():
    logits = torch.tensor([[0.0, math.log(3), -math.inf], [0.0, -3e4, 3e4]])
    got = token_statistics(logits, torch.tensor([2, 1]))
    assert got.logprob[0] == -math.inf
    assert bool(got.sensitivity.isfinite().all())
    p = torch.tensor([0.25, 0.75])
    mean = (p**2 * (p.log() - (p * p.log()).sum())).sum()
    torch.testing.assert_close(got.sensitivity[0], mean)


def test_bfloat16_logits_are_worked_on_in_float32():
    logits, tokens = logits_and_tokens()
    low = logits.bfloat16()
    got, expected = token_statistics(low, tokens), token_statistics(low.double(), tokens)
    assert all(row.dtype == torch.float32 for row in got)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_shapes_types_and_gradients():
    logits, tokens = logits_and_tokens((2, 3, 4))
    got = token_statistics(logits.requires_grad_(), tokens.int())
    assert all(row.shape == (2, 3, 4) and not row.requires_grad for row in got)
    single = token_statistics(logits[0, 0, 0], tokens[0, 0, 0])
    assert torch.equal(single.entropy, got.entropy[0, 0, 0])
    assert (
        token_statistics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).logprob.numel() == 0
    )


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    st.floats(0.1, 10),
    st.data(),
)
def test_statistics_are_always_in_their_bounds(row, temperature, data):
    token = data.draw(st.integers(0, len(row) - 1))
    got = token_statistics(torch.tensor([row]), torch.tensor([token]), temperature)
    assert -1e-5 <= float(got.entropy) <= math.log(len(row)) + 1e-5
    assert float(got.logprob) <= 1e-6
    assert abs(float(got.sensitivity)) <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, "states have shape (2, 3, 5) and tokens (2, 4)"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0, got nan"),
        ({"chunk": 0}, "chunk must be at least 1 position, got 0"),
        ({"chunk": -1}, "chunk must be at least 1 position, got -1"),
    ],
)
def test_bad_settings(arguments, message):
    settings_ = {"states": torch.zeros(2, 3, 5), "tokens": torch.zeros(2, 3)} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        token_statistics(**settings_)


def batch():
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 9, size=5)
    logprobs = [-generator.exponential(size=length) for length in lengths]
    sensitivity = [generator.normal(size=length) for length in lengths]
    advantages = generator.normal(size=5)
    advantages[3] = 0
    stats = RolloutStats(
        advantages=torch.tensor(advantages),
        tokens=torch.tensor(lengths).double(),
        logprob=torch.tensor([row.sum() for row in logprobs]),
        entropy=torch.ones(5, dtype=torch.float64),
        sensitivity=torch.tensor([row.sum() for row in sensitivity]),
    )
    return stats, advantages, logprobs, sensitivity


@pytest.mark.parametrize("level", LEVELS)
def test_rollout_effects_by_brute_force(level):
    stats, advantages, logprobs, sensitivity = batch()
    every = np.concatenate(logprobs)
    token = {
        "sign": [-np.ones_like(row) for row in logprobs],
        "sampled": [-(row - every.mean()) for row in logprobs],
        "logit": sensitivity,
    }[level]
    expected = [a * sum(row) / len(every) for a, row in zip(advantages, token, strict=True)]
    np.testing.assert_allclose(rollout_effects(stats, level), expected, rtol=1e-12, atol=1e-15)
    assert rollout_effects(stats, level)[3] == 0


@pytest.mark.parametrize("level", ["sign", "sampled", "logit"])
def test_a_loss_that_averages_over_rollouts_first(level):
    stats, advantages, logprobs, sensitivity = batch()
    # each rollout's tokens share one fifth; the whole is scaled to tokens, as every level is
    shares = [np.full(len(row), 1 / len(row) / len(logprobs)) for row in logprobs]
    baseline = sum(float(share @ row) for share, row in zip(shares, logprobs, strict=True))
    token = {
        "sign": [-np.ones_like(row) for row in logprobs],
        "sampled": [-(row - baseline) for row in logprobs],
        "logit": sensitivity,
    }[level]
    expected = [a * float(c @ r) for a, c, r in zip(advantages, shares, token, strict=True)]
    for scale in (1.0, 17.0):
        weighed = replace(stats, token_weight=scale / stats.tokens)
        np.testing.assert_allclose(rollout_effects(weighed, level), expected, rtol=1e-12)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_a_part_of_a_batch_is_judged_like_the_whole_with_the_wholes_means(level, weighed):
    stats = batch()[0]
    if weighed:
        stats = replace(stats, token_weight=1 / stats.tokens)
    whole, means = rollout_effects(stats, level), BatchMeans.of(stats)
    for rows in ([0], [3, 1], [4, 2, 0]):
        part = take(stats, rows)
        np.testing.assert_allclose(rollout_effects(part, level, means), whole[rows], rtol=1e-12)
    assert means.tokens == float(stats.tokens.sum())
    share = float((stats.token_weight * stats.tokens).sum()) if weighed else means.tokens
    assert means.weight == pytest.approx(share / means.tokens)
    alone = rollout_effects(take(stats, [4, 2, 0]), level)
    assert not np.allclose(alone, whole[[4, 2, 0]]), "the means must have been needed"


def take(stats, rows):
    columns = {name: value[rows] for name, value in vars(stats).items() if torch.is_tensor(value)}
    return replace(stats, **columns)


@pytest.mark.parametrize("level", ["sign", "sampled"])
def test_advantages_that_differ_from_token_to_token(level):
    stats, _, logprobs, _ = batch()
    generator = np.random.default_rng(4)
    own = [generator.normal(size=len(row)) for row in logprobs]
    stats = replace(
        stats,
        advantages=torch.ones(5, dtype=torch.float64),
        advantage_tokens=torch.tensor([row.sum() for row in own]),
        advantage_logprob=torch.tensor(
            [float(a @ row) for a, row in zip(own, logprobs, strict=True)], dtype=torch.float64
        ),
    )
    every = np.concatenate(logprobs)
    token = {
        "sign": [-np.ones_like(row) for row in logprobs],
        "sampled": [-(row - every.mean()) for row in logprobs],
    }[level]
    expected = [float(a @ row) / len(every) for a, row in zip(own, token, strict=True)]
    np.testing.assert_allclose(rollout_effects(stats, level), expected, rtol=1e-12, atol=1e-15)


def test_levels_that_cannot_be_served():
    stats = batch()[0]
    bare = RolloutStats(stats.advantages, stats.tokens, stats.logprob, stats.entropy)
    with pytest.raises(ValueError, match=r"'logit' needs RolloutBatch\.sensitivity .*'sampled'"):
        rollout_effects(bare, "logit")
    with pytest.raises(ValueError, match="unknown effect level 'hessian'; choose one of sign"):
        rollout_effects(stats, "hessian")


def test_a_loss_that_weighs_no_token_is_refused():
    stats = batch()[0]
    with pytest.raises(ValueError, match="token_weight"):
        rollout_effects(replace(stats, token_weight=torch.zeros(5).double()), "sampled")
