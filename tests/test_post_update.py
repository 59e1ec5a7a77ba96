"""The realized change: exact expectation on an enumerable policy, and its standard error."""

import itertools
import math

import numpy as np
import pytest
import torch

from entrocraft.post_update import change_sums, post_update_change, untouched

LENGTH, VOCABULARY = 3, 4


def policy(seed, like=None, size=0.5):
    """Logits of a tree policy: the distribution at each position depends on all tokens before."""
    generator = torch.Generator().manual_seed(seed)
    tree = {}
    for length in range(LENGTH):
        for prefix in itertools.product(range(VOCABULARY), repeat=length):
            noise = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
            tree[prefix] = noise if like is None else like[prefix] + size * noise
    return tree


def score(tree, sequence):
    """Log-probability of each token and entropy of each position."""
    logprobs, entropies = [], []
    for position, token in enumerate(sequence):
        log_p = tree[tuple(sequence[:position])].log_softmax(-1)
        logprobs.append(float(log_p[token]))
        entropies.append(float(-(log_p.exp() * log_p).sum()))
    return logprobs, entropies


def everything():
    return list(itertools.product(range(VOCABULARY), repeat=LENGTH))


def sums_of(old, new, sequences):
    before, after = (
        [
            torch.tensor(rows, dtype=torch.float64)
            for rows in zip(*(score(tree, s) for s in sequences), strict=True)
        ]
        for tree in (old, new)
    )
    mask = torch.ones(len(sequences), LENGTH)
    return change_sums(mask, before[0], after[0], before[1], after[1]), before[0].sum(1).exp()


def true_entropy(tree):
    total = 0.0
    for sequence in everything():
        logprobs, entropies = score(tree, sequence)
        total += math.exp(sum(logprobs)) * sum(entropies) / LENGTH
    return total


def test_the_expectation_is_the_change_of_the_mean_entropy():
    old = policy(0)
    new = policy(1, old, size=0.3)
    stats, probabilities = sums_of(old, new, everything())
    expected = (stats * probabilities[:, None]).sum(0)
    assert float(expected[2]) == pytest.approx(LENGTH), "the weights average to 1"
    change = float(expected[3] / expected[2] - expected[1] / expected[0])
    assert change == pytest.approx(true_entropy(new) - true_entropy(old), abs=1e-12)
    # without the weights of the tokens before, the answer is another one
    unweighted = sum(
        float(p) * (sum(score(new, s)[1]) - sum(score(old, s)[1])) / LENGTH
        for s, p in zip(everything(), probabilities, strict=True)
    )
    assert abs(unweighted - change) > 1e-3


def test_samples_scatter_as_the_standard_error_says():
    old = policy(0)
    new = policy(1, old, size=0.1)
    truth = true_entropy(new) - true_entropy(old)
    sequences = everything()
    stats, probabilities = sums_of(old, new, sequences)
    generator = np.random.default_rng(0)
    weights = np.array(probabilities) / float(probabilities.sum())
    surprises = []
    for _ in range(400):
        drawn = generator.choice(len(sequences), 64, p=weights)
        change, stderr = post_update_change(stats[drawn], torch.arange(64) // 4)
        surprises.append((change - truth) / stderr)
    assert abs(np.mean(surprises)) < 0.2
    assert 0.85 < np.std(surprises) < 1.25


def test_prompts_that_differ_drop_out():
    """Entropy differs a lot between prompts; what moved is the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(32, 1, generator=generator).expand(32, 5)
    mask, logprobs = torch.ones(32, 5), torch.full((32, 5), -1.0)
    stats = change_sums(mask, logprobs, logprobs, before, before + 0.01)
    change, stderr = post_update_change(stats, torch.arange(32) // 4)
    assert change == pytest.approx(0.01)
    assert stderr < 1e-6


def test_padding_and_empty_rollouts_do_not_count():
    nothing = math.nan
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    old = torch.tensor([[-1.0, -1.0, nothing], [-1.0, nothing, nothing], [nothing] * 3])
    stats = change_sums(mask, old, old, -old, -2 * old)
    change, stderr = post_update_change(stats)
    assert change == pytest.approx(1.0)
    assert math.isfinite(stderr)
    assert post_update_change(stats[1:])[1] == math.inf
    with pytest.raises(ValueError, match="no response token"):
        post_update_change(stats[2:])


def test_runaway_ratios_are_cut():
    mask, old = torch.ones(2, 3), torch.full((2, 3), -50.0)
    stats = change_sums(mask, old, torch.zeros(2, 3), -old, -old)
    assert float(stats[:, 2].max()) == pytest.approx(1 + 2 * math.exp(2))


def test_prompts_left_out_are_asked_if_there_are_enough():
    group = torch.arange(40) // 4
    advantages = torch.zeros(40)
    advantages[[0, 5, 9, 14]] = torch.tensor([1.0, -1.0, 0.5, -0.2])  # prompts 0 to 3
    assert torch.equal(untouched(advantages, group), group > 3)
    advantages[16] = 1.0
    assert untouched(advantages, group) is None
    # numbers of prompts are names
    names = torch.tensor([7, 3, 90, 11, 5, 40, 2, 1, 0, 66])[group]
    advantages[16] = 0.0
    assert torch.equal(untouched(advantages, names), group > 3)
