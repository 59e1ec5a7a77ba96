"""Clip-Cov, KL-Cov and DPPO against verl's registered losses; run by `make test-verl`."""

from dataclasses import replace

import pytest
import torch

from entrocraft.methods import get_method
from entrocraft.rollouts.tokens import TokenBatch

verl_losses = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")


def verl_gradient(name, batch, bound=1.0, **settings):
    """Of verl's registered loss, summed over tokens, in each token's log-probability."""
    from verl.workers.config import ActorConfig, PolicyLossConfig

    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=bound,
        clip_ratio_low=bound,
        clip_ratio_high=bound,
        policy_loss=PolicyLossConfig(loss_mode=name, **settings),
    )
    logprobs = batch.logprobs.clone().requires_grad_()
    loss, _ = verl_losses.get_policy_loss_fn(name)(
        old_log_prob=batch.old_logprobs,
        log_prob=logprobs,
        advantages=batch.advantages[:, None].expand_as(logprobs).contiguous(),
        response_mask=batch.mask.to(logprobs.dtype),
        loss_agg_mode="token-mean",
        config=config,
    )
    loss.backward()
    return logprobs.grad * batch.mask.sum()


def our_gradient(method, batch):
    """Of PPO's loss with the method's clip options, summed over tokens."""
    options = method.trainer_options
    advantages = method.reweigh(batch)
    logprobs = batch.logprobs.clone().requires_grad_()
    ratio = (logprobs - batch.old_logprobs).exp()
    clipped = ratio.clamp(1 - options["epsilon"], 1 + options["epsilon_high"])
    (-torch.min(ratio * advantages, clipped * advantages))[batch.mask].sum().backward()
    return logprobs.grad


def rollouts(seed, rows=48, width=32, spread=0.5):
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    old = -1.5 * normal().abs()
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    return TokenBatch(
        step=0,
        advantages=torch.randn(rows, generator=generator, dtype=torch.float64),
        mask=torch.arange(width) < lengths[:, None],
        logprobs=old + spread * normal(),
        old_logprobs=old,
        entropies=normal().abs(),
        old_entropies=normal().abs(),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [2e-4, 0.01, 1.0])
def test_clip_cov_equals_verls(monkeypatch, seed, ratio):
    batch = rollouts(seed)
    method = get_method("clip_cov", ratio=ratio, lower=0.2, upper=2.0, seed=seed)
    found = our_gradient(method, batch)
    # verl draws from the global generator; give it the draw that ours made
    generator = torch.Generator().manual_seed(seed * 1_000_003)
    drawn = torch.randperm
    settings = {"clip_cov_ratio": ratio, "clip_cov_lb": 0.2, "clip_cov_ub": 2.0}
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randperm", lambda count: drawn(count, generator=generator))
        expected = verl_gradient("clip_cov", batch, **settings)
    assert torch.equal(found == 0, expected == 0)
    assert torch.allclose(found, expected)
    plain = our_gradient(get_method("clip_cov", ratio=0, lower=900, upper=901), batch)
    assert not torch.allclose(found, plain)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("ratio", "beta"), [(2e-4, 1.0), (0.05, 0.1), (1.0, 2.0)])
def test_kl_cov_equals_verls(seed, ratio, beta):
    batch = rollouts(seed)
    found = our_gradient(get_method("kl_cov", ratio=ratio, beta=beta), batch)
    expected = verl_gradient("kl_cov", batch, kl_cov_ratio=ratio, ppo_kl_coef=beta)
    assert torch.allclose(found, expected)
    assert not torch.allclose(found, our_gradient(get_method("kl_cov", ratio=0), batch))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "bound"), [("tv", 0.1), ("kl", 0.02)])
def test_dppo_equals_verls(seed, kind, bound):
    batch = rollouts(seed)
    batch = replace(batch, logprobs=batch.logprobs.clamp(max=-1e-3))  # no probability above 1
    # verl's config has 3 for its cap
    found = our_gradient(get_method("dppo", divergence=kind, bound=bound, cap=3.0), batch)
    expected = verl_gradient(f"dppo_{kind}", batch, bound)
    assert 0 < int((found[batch.mask] == 0).sum()) < int(batch.mask.sum())
    assert torch.equal(found == 0, expected == 0)
    assert torch.allclose(found, expected)
