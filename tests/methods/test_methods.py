"""Every peer against its formula, written out anew: loops for rollouts, autograd for tokens."""

import dataclasses
import inspect
import json
import math

import pytest
import torch

from entrocraft import RolloutBatch
from entrocraft.methods import METHODS, TokenBaseline, follows_target, get_method, options_of
from entrocraft.methods.base import BASELINES
from entrocraft.rollouts import RolloutStats
from entrocraft.rollouts.tokens import TokenBatch

REWARDS = [1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, math.nan]
LENGTHS = [3, 5, 2, 7, 4, 4, 1, 6, 2, 2, 3, 9, 5, 0, 6, 4]
MEASURED = 0.7
TARGET = 0.45


def hand_made(rewards=REWARDS) -> RolloutStats:
    """Four groups of four: mixed, all wrong, all right, mixed with one unscored."""
    tokens = torch.tensor(LENGTHS, dtype=torch.float64)
    values = torch.tensor(rewards, dtype=torch.float64)
    group = torch.arange(16) // 4
    advantages = torch.zeros(16, dtype=torch.float64)
    for start in range(0, 16, 4):
        rows = values[start : start + 4]
        known = rows[~rows.isnan()]
        advantages[start : start + 4] = torch.nan_to_num(rows - known.mean())
    return RolloutStats(
        advantages=advantages,
        tokens=tokens,
        logprob=-tokens,
        entropy=MEASURED * tokens,
        rewards=values,
        group=group,
    )


def advantages_of(name, step=0, **options):
    method = get_method(name, TARGET, **options)
    return method, method.decide(hand_made(), step=step).advantages.tolist()


def sign(reward):
    return 0.0 if math.isnan(reward) else (1.0 if reward >= 0.5 else -1.0)


# ---------------------------------------------------------------- advantages of rollouts


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
    decision = get_method("psr").decide(failures, step=0)
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
        zero_one = get_method(name, TARGET).decide(hand_made(), step=0).advantages
        plus_minus = get_method(name, TARGET).decide(hand_made(signed), step=0).advantages
        assert torch.equal(zero_one, plus_minus), name


@pytest.mark.parametrize("name", ["psr", "nsr"])
def test_psr_and_nsr_drop_rollouts_where_the_loss_counts_rollouts(name):
    stats = dataclasses.replace(hand_made(), by_rollout=True)
    found = get_method(name).decide(stats, step=0).advantages.tolist()
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
    found = get_method(name, TARGET, success=1.5).decide(both, step=0).advantages
    answers = get_method(name, TARGET).decide(hand_made([1, 0, 0, 0] * 4), step=0).advantages
    assert torch.equal(found, answers)
    formed = get_method(name, TARGET).decide(both, step=0).advantages
    assert not torch.equal(found, formed)


def test_a_success_is_told_in_the_trainers_precision():
    rewards = torch.tensor([0.7, 0.6, 0.7, 0.6] * 4).tolist()
    found = get_method("raft++", success=0.7).decide(hand_made(rewards), step=0).advantages
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
    found = get_method("qae", quantile=0.5).decide(hand_made(rewards), step=0).advantages
    for row, reward in enumerate(rewards):
        # of four rewards two do not exceed 0.2
        assert torch.sign(found[row]).item() == (reward > 0.2) - (reward < 0.2)


def test_entropic_as_in_the_fork():
    method = get_method("entropic_fork", TARGET, kp=0.8, ki=0.05)
    integral = 0.0
    for step in range(4):
        found = method.decide(hand_made(), step=step).advantages.tolist()
        error = MEASURED - TARGET
        alpha = integral + 0.8 * error
        integral += 0.05 * error
        for reward, advantage in zip(REWARDS, found, strict=True):
            expected = {1.0: 1 + alpha, -1.0: -(1 - alpha), 0.0: 0.0}[sign(reward)]
            assert advantage == pytest.approx(expected)


# ---------------------------------------------------------------- weights of tokens


def token_batch(seed=0, rows=8, width=12, **changes) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = torch.arange(width) < lengths[:, None]
    old_logprobs = -2 * normal().abs() - 0.01
    values = {
        "step": 0,
        "advantages": torch.randn(rows, generator=generator, dtype=torch.float64),
        "mask": mask,
        "logprobs": (old_logprobs + 0.4 * normal()).clamp(max=-1e-3),
        "old_logprobs": old_logprobs,
        "entropies": 0.8 * normal().abs(),
        "old_entropies": 0.8 * normal().abs(),
        "sensitivity": 0.2 * normal(),
    }
    return TokenBatch(**(values | changes))


def hosted_gradient(method, batch):
    """Of TRL's loss, summed over tokens, in each token's log-probability."""
    options = {"epsilon": 0.2, "epsilon_high": None, "delta": None} | method.trainer_options
    advantages = method.reweigh(batch)
    assert advantages.shape == batch.mask.shape
    assert not advantages[~batch.mask].any()
    logprobs = batch.logprobs.clone().requires_grad_()
    ratio = (logprobs - batch.old_logprobs).exp()
    high = options["epsilon"] if options["epsilon_high"] is None else options["epsilon_high"]
    clipped = ratio.clamp(1 - options["epsilon"], 1 + high)
    bounded = ratio if options["delta"] is None else ratio.clamp(max=options["delta"])
    loss = -torch.min(bounded * advantages, clipped * advantages)
    loss[batch.mask].sum().backward()
    return logprobs.grad


def published_gradient(loss, batch):
    """Of a published loss, `loss(A, log p) -> (b, T)`, summed over response tokens."""
    logprobs = batch.logprobs.clone().requires_grad_()
    values = loss(batch.advantages[:, None].expand_as(logprobs), logprobs)
    values[batch.mask].sum().backward()
    return logprobs.grad


def ppo(batch, a, logprobs, low=0.2, high=0.2, dual=None):
    ratio = (logprobs - batch.old_logprobs).exp()
    loss = torch.max(-a * ratio, -a * ratio.clamp(1 - low, 1 + high))
    if dual is not None:
        loss = torch.where(a < 0, torch.min(loss, -a * dual), loss)
    return loss


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
    state = method.state_dict() | {"memory": {"draws": 1}}
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


@pytest.mark.parametrize("level", [0.1, 0.6, 3.0])
def test_entropic(level):
    threshold, shares = 0.6, (0.25, 0.5)
    method = get_method("entropic", TARGET, kp=0.7, ki=0.3, threshold=threshold)
    summed = 0.0
    for step, share in enumerate(shares):
        base = token_batch(step)
        batch = token_batch(step, entropies=level * base.entropies, share=share)
        error = batch.entropies[batch.mask].mean().item() - TARGET
        alpha = max(-1.0, min(1.0, 0.7 * error + 0.3 * summed))
        summed += error * share
        likely = (batch.logprobs.exp() > threshold).double()
        assert 0 < likely[batch.mask].sum() < batch.mask.sum()

        def loss(a, p, batch=batch, alpha=alpha, likely=likely):
            ratio = (p - batch.old_logprobs).exp()
            return ppo(batch, a, p) + alpha * -ratio * a.abs() * likely

        assert torch.allclose(hosted_gradient(method, batch), published_gradient(loss, batch))
        assert batch.clipped(0.2, 0.2).any()
    assert method.memory()["sum"] == pytest.approx(summed)


def test_clip_b():
    batch = token_batch(4, rows=30)
    s = batch.logprobs.exp() * (batch.entropies + batch.logprobs)
    values = s[batch.mask]
    mean, spread = values.mean(), values.std(unbiased=False)
    keep = torch.zeros_like(batch.mask)
    for i, t in batch.mask.nonzero().tolist():
        fine = (s[i, t] - mean) >= -0.6 * spread
        keep[i, t] = batch.advantages[i] >= 0 or fine
    gone = int((batch.mask & ~keep).sum())
    assert 0 < gone < 0.3 * int(batch.mask.sum())
    found = get_method("clip_b", mu=0.6).reweigh(batch)
    # a token mean over all tokens that equals the one over those that stay
    expected = batch.advantages[:, None] * keep * (batch.mask.sum() / keep.sum())
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("max_fraction", [1.0, 0.02, 0.0])
def test_clip_v(max_fraction):
    batch = token_batch(5, rows=30)
    x = batch.sensitivity
    spread = x[batch.mask].std(unbiased=False)
    over = [
        (i, t)
        for i, t in batch.mask.nonzero().tolist()
        if batch.advantages[i] <= 0 and x[i, t] > 0.4 * spread
    ]
    count = int(batch.mask.sum())
    assert len(over) > 0.03 * count
    if len(over) / count > max_fraction:
        limit = max(int(max_fraction * count), 1)
        over = sorted(over, key=lambda place: -x[place].item())[:limit]
    keep = batch.mask.clone()
    for place in over:
        keep[place] = False
    found = get_method("clip_v", mu=0.4, max_fraction=max_fraction).reweigh(batch)
    assert torch.allclose(found, batch.advantages[:, None] * keep * (count / keep.sum()))


def test_erc():
    batch = token_batch(6)
    keep = torch.zeros_like(batch.mask, dtype=torch.float64)
    for i, t in batch.mask.nonzero().tolist():
        ratio = (batch.entropies[i, t] + 1e-8) / (batch.old_entropies[i, t] + 1e-8)
        keep[i, t] = float(0.5 < ratio < 1.5)
    assert 0 < keep[batch.mask].sum() < batch.mask.sum()
    found = hosted_gradient(get_method("erc", low=0.5, high=1.5), batch)
    assert torch.allclose(found, published_gradient(lambda a, p: ppo(batch, a, p) * keep, batch))


@pytest.mark.parametrize("mode", ["linear", "exponential"])
def test_steer(mode):
    batch = token_batch(7)
    change = {}
    for i, t in batch.mask.nonzero().tolist():
        p, old = batch.logprobs[i, t].exp(), batch.old_logprobs[i, t].exp()
        move = p * (1 - p) * (p.log() + batch.entropies[i, t])
        change[i, t] = abs(batch.advantages[i] / old * move).item()
    low, high = min(change.values()), max(change.values())
    weight = torch.zeros_like(batch.logprobs)
    for place, value in change.items():
        if mode == "linear":
            weight[place] = 1.2 - (value - low) * (1.2 - 0.8) / (high - low)
        else:
            weight[place] = max(0.8, math.exp(math.log(0.8) / max(high, 0.02) * value))

    def loss(a, p):
        return ppo(batch, a, p, 0.2, 0.28, dual=10.0) * weight

    found = hosted_gradient(get_method("steer", mode=mode), batch)
    assert torch.allclose(found, published_gradient(loss, batch), atol=1e-7)


def test_ce_gppo():
    base = token_batch(8, rows=40)
    batch = token_batch(8, rows=40, logprobs=base.old_logprobs + 3.5 * base.sensitivity)
    e, c, b1, b2 = 0.2, 1.8, 0.4, 0.9
    branches = set()

    def loss(a, p):
        ratio = (p - batch.old_logprobs).exp()
        out = torch.zeros_like(ratio)
        for i, t in batch.mask.nonzero().tolist():
            r, adv = ratio[i, t], a[i, t]
            if adv < 0 and r < 1 - e:
                branch, value = "below", -b1 * (1 - e) / r.detach() * r * adv
            elif adv > 0 and r > 1 + e:
                branch, value = "above", -b2 * (1 + e) / r.detach() * r * adv
            elif adv < 0 and r > c:
                branch, value = "dual", -adv * c + 0 * r
            else:
                branch, value = "free", -r * adv
            branches.add(branch)
            out[i, t] = value
        return out

    method = get_method("ce_gppo", beta1=b1, beta2=b2, low=e, high=e, dual=c)
    assert torch.allclose(hosted_gradient(method, batch), published_gradient(loss, batch))
    assert branches == {"below", "above", "dual", "free"}


# ---------------------------------------------------------------- the bonus, extra rollouts


@pytest.mark.parametrize("clamp", [0.0, 0.2, 0.55])
def test_aents_clamped_entropy(clamp):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=generator, dtype=torch.float64)
    found = get_method("aent", clamp=clamp).bonus_entropy(logits)
    for row, value in zip(logits.tolist(), found.tolist(), strict=True):
        kept = sorted(row)[int(11 * clamp) :]
        total = sum(math.exp(x) for x in kept)
        chances = [math.exp(x) / total for x in kept]
        assert value == pytest.approx(-sum(p * math.log(p) for p in chances))


def test_aent_adapts_its_coefficient_by_its_own_bounds():
    method = get_method("aent", bonus=0.001, low=0.3, high=0.6, rate=0.01, warmup=2)
    coefficient = 0.001
    for step, entropy in enumerate([0.1, 0.1, 0.1, 0.45, 0.9, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]):
        method.decide(hand_made(), step=step)
        if step >= 2:
            error = min(0.0, entropy - 0.3) + max(0.0, entropy - 0.6)
            coefficient = min(0.01, max(1e-5, coefficient - 0.01 * error))
        assert method.stepped(entropy)["entropy_coef"] == pytest.approx(coefficient)
    assert coefficient == 0.01


def test_aent_follows_a_schedule_by_the_whole_entropy():
    method = get_method("aent", "linear(0.5, 0.9, 4)", rate=0.01, bonus=0.004)
    coefficient = 0.004
    for step in range(4):
        decision = method.decide(hand_made(), step=step)
        assert decision.settings == {"entropy_coef": pytest.approx(coefficient)}
        coefficient -= 0.01 * (MEASURED - (0.5 + 0.1 * step))
        assert method.stepped(123.0)["entropy_coef"] == pytest.approx(coefficient)


def test_aepo_asks_for_hot_rollouts_below_its_target_and_cold_ones_above():
    hot = get_method("aepo", MEASURED).decide(hand_made(), step=0).extra
    assert (hot.temperature, hot.taken, hot.rows, hot.share) == (1.2, 1.0, 60, 0.25)
    cold = get_method("aepo", MEASURED - 0.01).decide(hand_made(), step=0).extra
    assert (cold.temperature, cold.taken) == (0.8, 0.5)
    assert cold.least_advantage == 0.05
    assert cold.advantage == 1.0


def test_the_adaptive_bonus_hands_the_schedule_to_the_trainer():
    method = get_method("adaptive_bonus", "linear(0.6, 0.2, 4)")
    targets = [method.decide(hand_made(), step=step).settings for step in range(5)]
    assert [s["entropy_target"] for s in targets] == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2])


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name):
    method = get_method(name)
    method.prepare(vocabulary=50, steps=100)
    decision = method.decide(hand_made(), step=0)
    assert decision.advantages.shape == decision.weights.shape == (16,)
    assert decision.metrics["entropy/measured"] == pytest.approx(MEASURED)
    # an unscored rollout, or one without tokens, never is what is trained on
    assert decision.advantages[15] == 0
    state = json.loads(json.dumps(method.state_dict()))
    fresh = get_method(name)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    following, repeated = (m.decide(hand_made(), step=1) for m in (method, fresh))
    assert torch.equal(following.advantages, repeated.advantages)
    assert method.state_dict() == fresh.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_comes_from(name):
    text = inspect.getdoc(BASELINES[name])
    assert "Source:" in text
    options = options_of(name)
    for option in options:
        assert f"    {option}:" in text, option
    if BASELINES[name].coefficient is not None:
        assert BASELINES[name].coefficient in options
    if issubclass(BASELINES[name], TokenBaseline):
        assert BASELINES[name].scope in ("update", "batch")


def test_methods_with_a_target_follow_a_schedule():
    followers = {name for name in METHODS if follows_target(name)}
    assert followers == {"adaptive_bonus", "entropic", "entropic_fork", "aent", "aepo"}
    for name in METHODS:
        method = get_method(name, "linear(initial, 0.5*initial, 10)")
        metrics = method.decide(hand_made(), step=0).metrics
        assert metrics["entropy/target"] == pytest.approx(MEASURED)
        assert method.target(10) == pytest.approx(MEASURED / 2)


def test_a_batch_is_decided_on_like_its_sums():
    mask = torch.ones(4, 3, dtype=torch.bool)
    batch = RolloutBatch(
        step=7,
        advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]),
        mask=mask,
        logprobs=-torch.ones(4, 3),
        rewards=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        group=torch.tensor([0, 0, 1, 1]),
    )
    for name in METHODS:
        whole = get_method(name, "linear(2, 1, 10)").decide(batch)
        summed = get_method(name, "linear(2, 1, 10)").decide(batch.stats(), step=7)
        assert torch.equal(whole.advantages, summed.advantages)
        assert whole.metrics == summed.metrics
        assert whole.metrics["entropy/target"] == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_method("clip-cov"), "unknown method 'clip-cov'; did you mean 'clip_cov'?"),
        (lambda: get_method("nsr", weight=1), "'nsr' has no option 'weight'; it has success"),
        (lambda: get_method("dr_grpo", a=1), "'dr_grpo' has no option 'a'; it has none"),
        (lambda: get_method("psr", success=math.inf), "success is inf; use a finite number"),
        (lambda: get_method("aent", low=0.6), "high is 0.5; use a finite number at least 0.6"),
        (lambda: get_method("aent", 0.4, low=0.2), "low is 0.2, and the schedule 0.4 takes its"),
        (lambda: get_method("aent", 0.4, high=0.5), "high is 0.5.*leave it out, or have no sched"),
        (lambda: get_method("qae", quantil=1), "has no option 'quantil'; it has quantile"),
        (lambda: get_method("qae", quantile=1.5), "quantile is 1.5; use a finite number above 0"),
        (lambda: get_method("clip_higher", high=-1), "high is -1; use a finite number at least 0"),
        (lambda: get_method("erc", low=1.3), "high is 1.2; use a finite number above 1.3"),
        (lambda: get_method("steer", mode="cubic"), "mode is 'cubic'; use 'linear'"),
        (lambda: get_method("entropic", kp=math.nan), "kp is nan; use a finite number"),
        (lambda: get_method("entropic", -0.1), "a target of -0.1 nats per token cannot be"),
        (lambda: get_method("aepo", 9.0).prepare(vocabulary=50), "above log"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        call()


def test_a_batch_that_lacks_what_a_method_needs():
    without_rewards = dataclasses.replace(hand_made(), rewards=None)
    without_groups = dataclasses.replace(hand_made(), group=None)
    with pytest.raises(ValueError, match="'raft\\+\\+' trains on raw rewards"):
        get_method("raft++").decide(without_rewards, step=0)
    with pytest.raises(ValueError, match="'qae' compares the rollouts of a prompt"):
        get_method("qae").decide(without_groups, step=0)
    empty = dataclasses.replace(hand_made(), tokens=torch.zeros(16, dtype=torch.float64))
    with pytest.raises(ValueError, match="no response token"):
        get_method("nsr").decide(empty, step=0)


def test_a_decision_that_fails_changes_nothing():
    method = get_method("entropic_fork", "linear(initial, 0.5*initial, 10)")
    before = method.state_dict()
    with pytest.raises(ValueError, match="raw rewards"):
        method.decide(dataclasses.replace(hand_made(), rewards=None), step=0)
    assert method.state_dict() == before


def test_states_of_other_methods_are_refused():
    method = get_method("entropic")
    with pytest.raises(ValueError, match="written by the method 'aent', not by 'entropic'"):
        method.load_state_dict(get_method("aent").state_dict())
    with pytest.raises(ValueError, match="not a state of the method 'entropic'"):
        method.load_state_dict({"version": 2, "settings": "EntropyController"})
