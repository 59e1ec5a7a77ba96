"""Clip-Cov and KL-Cov against their published losses, differentiated by autograd."""

import json

import pytest
import torch

from entrocraft.methods import get_method
from tests.methods.batches import hosted_gradient, ppo, published_gradient, token_batch


def covariances(batch):
    """Token by token, with plain loops."""
    places = [tuple(place) for place in batch.mask.nonzero().tolist()]
    mean_a = sum(batch.advantages[i].item() for i, _ in places) / len(places)
    mean_l = sum(batch.logprobs[i, t].item() for i, t in places) / len(places)
    return {
        (i, t): (batch.advantages[i].item() - mean_a) * (batch.logprobs[i, t].item() - mean_l)
        for i, t in places
    }


@pytest.mark.parametrize("seed", range(3))
def test_clip_cov(seed):
    batch = token_batch(seed)
    lower, upper = 0.3, 1.0
    method = get_method("clip_cov", ratio=1.0, lower=lower, upper=upper)
    stopped = batch.clipped(1.0, 1.0)
    inside = {
        place
        for place, value in covariances(batch).items()
        if lower < value < upper and not stopped[place]
    }
    assert inside
    keep = torch.ones_like(batch.mask, dtype=torch.float64)
    for place in inside:
        keep[place] = 0.0
    expected = published_gradient(lambda a, p: ppo(batch, a, p, 1.0, 1.0, dual=10.0) * keep, batch)
    assert torch.allclose(hosted_gradient(method, batch), expected)


def test_clip_cov_draws_as_many_as_its_share_allows():
    batch = token_batch(1, rows=40, width=40)
    method = get_method("clip_cov", ratio=0.01, lower=0.1, upper=5.0, seed=3)
    count = int(0.01 * int(batch.mask.sum()))
    candidates = {place for place, value in covariances(batch).items() if 0.1 < value < 5.0}
    assert len(candidates) > 10 * count > 0
    draws = []
    for _ in range(3):
        zeroed = (method.reweigh(batch) == 0) & batch.mask
        draws.append({tuple(place) for place in zeroed.nonzero().tolist()})
        assert len(draws[-1]) == count
        assert draws[-1] <= candidates
    assert draws[0] != draws[1] != draws[2]
    resumed = get_method("clip_cov", ratio=0.01, lower=0.1, upper=5.0, seed=3)
    state = method.state_dict() | {"draws": 1}
    resumed.load_state_dict(json.loads(json.dumps(state)))
    again = (resumed.reweigh(batch) == 0) & batch.mask
    assert {tuple(place) for place in again.nonzero().tolist()} == draws[1]
    least = get_method("clip_cov", ratio=0.0, lower=0.1, upper=5.0)
    assert int(((least.reweigh(batch) == 0) & batch.mask).sum()) == 1


@pytest.mark.parametrize("ratio", [1e-6, 0.3])
def test_kl_cov(ratio):
    batch = token_batch(2)
    ranked = sorted(covariances(batch).items(), key=lambda item: -item[1])
    count = max(1, int(ratio * len(ranked)))
    chosen = torch.zeros_like(batch.mask, dtype=torch.float64)
    for place, _ in ranked[:count]:
        chosen[place] = 1.0

    def loss(a, logprobs):
        log_ratio = logprobs - batch.old_logprobs
        return -a * log_ratio.exp() + 0.7 * chosen * log_ratio.abs()

    found = hosted_gradient(get_method("kl_cov", ratio=ratio, beta=0.7), batch)
    assert torch.allclose(found, published_gradient(loss, batch))


def test_kl_cov_penalizes_nothing_while_on_policy():
    batch = token_batch(2)
    still = token_batch(2, logprobs=batch.old_logprobs)
    found = get_method("kl_cov", ratio=1.0).reweigh(still)
    assert torch.equal(found, still.token_advantages)
    assert torch.equal(get_method("kl_cov", ratio=0).reweigh(batch), batch.token_advantages)


def test_advantages_of_single_tokens_are_taken_as_they_are():
    batch = token_batch(2)
    wide = token_batch(2, advantages=batch.token_advantages)
    for name in ("clip_cov", "kl_cov"):
        options = {"ratio": 0.3} | ({"lower": 0.1} if name == "clip_cov" else {})
        one, other = (get_method(name, **options).reweigh(tokens) for tokens in (batch, wide))
        assert not torch.equal(one, batch.token_advantages)
        assert torch.equal(one, other)
