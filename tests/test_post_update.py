"""The post-update change: exact expectation on an enumerable policy, and its standard error."""

import itertools
import math

import numpy as np
import pytest
import torch

from entrocraft.method import Method
from entrocraft.post_update import (
    change_stats,
    choose_prompts,
    post_update_change,
    report_change,
    report_running_change,
)
from tests.batches import controller, make_batch

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
    return change_stats(mask, before[0], after[0], before[1], after[1]), before[0].sum(1).exp()


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
    stats = change_stats(mask, logprobs, logprobs, before, before + 0.01)
    change, stderr = post_update_change(stats, torch.arange(32) // 4)
    assert change == pytest.approx(0.01)
    assert stderr < 1e-6


def test_padding_and_empty_rollouts_do_not_count():
    nothing = math.nan
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    old = torch.tensor([[-1.0, -1.0, nothing], [-1.0, nothing, nothing], [nothing] * 3])
    stats = change_stats(mask, old, old, -old, -2 * old)
    change, stderr = post_update_change(stats)
    assert change == pytest.approx(1.0)
    assert math.isfinite(stderr)
    assert post_update_change(stats[1:])[1] == math.inf
    with pytest.raises(ValueError, match="no response token"):
        post_update_change(stats[2:])


def test_runaway_ratios_are_cut():
    mask, old = torch.ones(2, 3), torch.full((2, 3), -50.0)
    stats = change_stats(mask, old, torch.zeros(2, 3), -old, -old)
    assert float(stats[:, 2].max()) == pytest.approx(1 + 2 * math.exp(2))


class Listening(Method):
    """Writes down what it is told."""

    def __init__(self, seed=0, remeasure=1.0):
        super().__init__()
        self.seed, self.remeasure, self.told = seed, remeasure, []

    def post_update(self, change, stderr, trained=True):
        self.told.append((change, stderr, trained))


def moved(group, by):
    """Statistics (B, 4) of rollouts of 5 tokens whose entropy has moved by this (B,)."""
    mask, logprobs = torch.ones(len(group), 5), torch.full((len(group), 5), -1.0)
    before = torch.full((len(group), 5), 0.5, dtype=torch.float64)
    return change_stats(mask, logprobs, logprobs, before, before + by[:, None])


# numbers of prompts are names
@pytest.mark.parametrize("names", [range(10), [7, 3, 90, 11, 5, 40, 2, 1, 0, 66]])
def test_prompts_left_out_are_measured_apart_if_there_are_enough(names):
    prompt = torch.arange(40) // 4
    group = torch.tensor(list(names))[prompt]
    trained = torch.zeros(40)
    trained[[0, 5, 9, 14]] = torch.tensor([1.0, -1.0, 0.5, -0.2])  # prompts 0 to 3
    stats = moved(group, torch.where(prompt > 3, 0.01, 0.03))
    method = Listening()
    metrics = report_change(method, stats, trained, group)
    assert [told[2] for told in method.told] == [False, True]
    assert [told[0] for told in method.told] == pytest.approx([0.01, 0.03])
    assert metrics["entropy/post_update_change"] == pytest.approx(0.01), "without the bias"
    trained[16] = 1.0
    method = Listening()
    metrics = report_change(method, stats, trained, group)
    assert method.told == [(pytest.approx(0.018), pytest.approx(method.told[0][1]), True)]
    assert metrics == {
        "entropy/post_update_change": method.told[0][0],
        "entropy/post_update_change_stderr": method.told[0][1],
    }


def test_advantages_of_both_signs_do_not_make_a_prompt_left_out():
    group = torch.arange(40) // 4
    trained = torch.tensor([1.0, -1.0, 0.0, 0.0] * 10)
    method = Listening()
    report_change(method, moved(group, torch.full((40,), 0.01)), trained, group)
    assert [told[2] for told in method.told] == [True]


def test_where_nothing_was_scored_nothing_is_told():
    method, group = Listening(), torch.arange(8)
    assert report_change(method, torch.zeros(8, 4), torch.zeros(8), group) == {}
    assert method.told == []
    # all that was left out has no token
    stats = moved(group, torch.full((8,), 0.01))
    stats[1:] = 0
    metrics = report_change(method, stats, torch.eye(8)[0], group)
    assert [told[2] for told in method.told] == [True]
    assert list(metrics) == ["entropy/post_update_change"], "one prompt has no standard error"


@pytest.mark.filterwarnings("ignore::entrocraft.EntropyControlWarning")
def test_which_prompts_were_measured_matters_to_the_controller():
    """A change on prompts trained on may be a bias; on prompts left out it is rather believed."""
    believed = {}
    for trained in (True, False):
        steered = controller(0.8)
        for step in range(30):
            batch = make_batch(step, entropies=None)  # sampled tokens alone tell little
            estimate = steered.decide(batch).metrics["entropy/estimate"]
            steered.post_update(-0.001, 0.0001, trained=trained)
        believed[trained] = estimate
    assert believed[False] < believed[True] - 0.002


# ---------------------------------------------------------------- which prompts


@pytest.mark.parametrize(
    ("share", "prompts", "count"), [(0.25, 16, 4), (0.25, 3, 1), (0.01, 9, 1), (0.5, 7, 4)]
)
def test_a_share_of_the_prompts_is_chosen_anew_at_every_step(share, prompts, count):
    chosen = [tuple(choose_prompts(Listening(3, share), s, prompts).tolist()) for s in range(60)]
    for rows in chosen:
        assert len(rows) == count
        assert list(rows) == sorted(set(rows))
        assert 0 <= rows[0] <= rows[-1] < prompts
    assert {row for rows in chosen for row in rows} == set(range(prompts))
    again = [tuple(choose_prompts(Listening(3, share), s, prompts).tolist()) for s in range(60)]
    assert chosen == again, "a resumed run makes the same choice"
    other = [tuple(choose_prompts(Listening(4, share), s, prompts).tolist()) for s in range(60)]
    elsewhere = [
        tuple(choose_prompts(Listening(3, share), s, prompts, rank=1).tolist()) for s in range(60)
    ]
    assert chosen != other
    assert chosen != elsewhere


def test_all_prompts_are_all():
    assert choose_prompts(Listening(), 5, 6).tolist() == list(range(6))


def test_a_change_in_proportion_to_the_updates_done_is_told_for_all_of_them():
    """Rollouts scored after 1, 2 and 3 of 4 updates: the entropy moved by 0.02 a quarter."""
    heard = []

    class Listener(Method):
        def post_update(self, change, stderr, trained=True):
            heard.append((change, stderr, trained))

    generator = torch.Generator().manual_seed(0)
    rows = 60
    done = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64).repeat_interleave(rows // 3)
    tokens = torch.randint(3, 9, (rows,), generator=generator).double()
    before = tokens * (0.5 + 0.2 * torch.rand(rows, generator=generator, dtype=torch.float64))
    noise = 1e-4 * tokens * torch.randn(rows, generator=generator, dtype=torch.float64)
    stats = torch.stack([tokens, before, tokens, before + tokens * 0.08 * done + noise], dim=1)
    metrics = report_running_change(Listener(), stats, done, torch.arange(rows))
    ((change, stderr, trained),) = heard
    assert change == pytest.approx(0.08, abs=3 * stderr)
    assert 0 < stderr < 1e-3
    assert not trained
    assert metrics["entropy/post_update_change"] == change
    assert metrics["entropy/post_update_change_stderr"] == stderr


def test_nothing_is_told_of_a_single_prompt():
    stats = torch.tensor([[4.0, 2.0, 4.0, 2.1]], dtype=torch.float64)
    done = torch.tensor([0.5], dtype=torch.float64)
    assert report_running_change(Method(), stats, done, torch.tensor([0])) == {}
