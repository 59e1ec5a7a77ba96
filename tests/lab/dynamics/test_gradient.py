"""The gradient level against token-by-token derivatives and against real optimizer steps."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from entrocraft.effects import token_statistics
from entrocraft.lab.dynamics.gradient import PolicyBatch, TokenPolicy, push, read_gradient
from tests.trl.runs import VOCABULARY, tiny_model

WORDS, ROLLOUTS, LENGTH = 11, 6, 5


class Bag(nn.Module):
    """Next token from the mean embedding of those so far; input and output embeddings are tied."""

    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(width, WORDS)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        embedded = self.embedding(ids[:, :-1])
        count = torch.arange(1, ids.shape[1], device=ids.device)[:, None]
        log_p = self.head(self.inner(embedded.cumsum(1) / count)).log_softmax(-1)
        chosen = log_p.gather(-1, ids[:, 1:, None])[..., 0]
        return chosen, -(log_p.exp() * log_p).sum(-1)


def bag(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Bag(**options).double()


def rollouts(seed=0, coefficients=None):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (ROLLOUTS, 1), generator=generator)
    mask = torch.arange(LENGTH) < lengths
    if coefficients is None:
        coefficients = torch.ones(ROLLOUTS, LENGTH)
    return PolicyBatch(
        inputs=(torch.randint(0, WORDS, (ROLLOUTS, LENGTH + 1), generator=generator),),
        mask=mask,
        coefficients=coefficients * mask / mask.sum(),
        advantages=torch.randn(ROLLOUTS, generator=generator),
    )


def part(batch, rows):
    return PolicyBatch(
        tuple(value[rows] for value in batch.inputs),
        batch.mask[rows],
        batch.coefficients[rows],
        batch.advantages[rows],
    )


def trainable(policy):
    return [p for p in policy.parameters() if p.requires_grad]


def mean_entropy(policy, batch):
    return policy(*batch.inputs)[1][batch.mask].mean()


def loss_of(policy, batch, weights=1.0):
    scale = batch.coefficients * (weights * batch.advantages)[:, None]
    return -(scale * policy(*batch.inputs)[0])[batch.mask].sum()


def by_hand(policy, batch, direction):
    """c_jt <grad log pi, u>, one backward pass a token."""
    logprobs = policy(*batch.inputs)[0]
    expected = torch.zeros_like(logprobs)
    for j, t in batch.mask.nonzero().tolist():
        gradients = torch.autograd.grad(
            logprobs[j, t], list(direction), retain_graph=True, allow_unused=True
        )
        expected[j, t] = sum(
            (g.double() * u.double()).sum()
            for g, u in zip(gradients, direction.values(), strict=True)
            if g is not None
        )
    return (batch.coefficients * expected).detach()


def some_direction(policy, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {
        p: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        for p in trainable(policy)
    }


def assert_same(got, expected, rtol=1e-5):
    size = float(expected.abs().max())
    torch.testing.assert_close(got.double(), expected.double(), rtol=rtol, atol=rtol * size)


def read(policy, batches, optimizer=None, lr=0.1, **options):
    # with a large eps the first step is not the mere sign of a gradient, which rounding can turn
    optimizer = optimizer or torch.optim.AdamW(trainable(policy), lr=lr, eps=1.0)
    return read_gradient(policy, optimizer, batches, **options)


def test_the_push_is_the_slope_of_each_token_along_a_direction():
    policy = bag()
    batch = rollouts(coefficients=torch.rand(ROLLOUTS, LENGTH) + 0.5)
    direction = some_direction(policy)
    found = batch.coefficients * push(policy, [batch], direction)
    expected = by_hand(policy, batch, direction)
    assert int((expected == 0).sum()) == int((~batch.mask).sum()) > 0
    assert_same(found, expected)


def test_effects_are_pushes_along_the_optimizers_direction():
    policy, batch = bag(), rollouts(coefficients=torch.rand(ROLLOUTS, LENGTH) + 0.5)
    reading = read(policy, [batch])
    assert_same(reading.effects, by_hand(policy, batch, reading.response.direction))


def change_by_step(policy, optimizer, batch, weights, max_norm=None):
    """Real change of the mean entropy in one step on a copy, and the real clipping factor."""
    policy, optimizer = copy.deepcopy((policy, optimizer))
    optimizer.zero_grad()
    before = mean_entropy(policy, batch).item()
    loss_of(policy, batch, weights).backward()
    clip = 1.0
    if max_norm:
        norm = float(nn.utils.clip_grad_norm_(policy.parameters(), max_norm))
        clip = min(1.0, max_norm / norm)
    optimizer.step()
    return mean_entropy(policy, batch).item() - before, clip


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_a_real_step_changes_entropy_as_predicted(max_norm, weight_decay):
    policy, batch = bag(), rollouts()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=weight_decay)
    for seed in range(100):  # Adam's second moment outweighs what one batch adds to it
        optimizer.zero_grad()
        loss_of(policy, rollouts(seed + 1)).backward()
        optimizer.step()
    reading = read(policy, [batch], optimizer, max_grad_norm=max_norm)
    assert (reading.clip < 0.9) == (max_norm is not None)
    effects = batch.advantages * reading.effects.sum(1)
    pending = reading.response.pending
    plain, clip = change_by_step(policy, optimizer, batch, torch.ones(ROLLOUTS), max_norm)
    assert reading.clip == pytest.approx(clip, rel=1e-4)
    assert float(effects.sum()) + pending == pytest.approx(plain, rel=0.01)
    for kept in torch.eye(ROLLOUTS).bool().logical_not():
        # what is dropped changes the norm, so the clipping that was foreseen is taken out
        real, clip = change_by_step(policy, optimizer, batch, kept, max_norm)
        own = float(effects[kept].sum()) * clip / reading.clip
        assert own + pending == pytest.approx(real, rel=0.03, abs=0.01 * abs(own))
        lost = float(effects[~kept].sum())
        if max_norm is None:  # neither momentum nor decay hides what a rollout does by itself
            assert plain - real == pytest.approx(lost, rel=0.05, abs=0.01 * abs(own))


@pytest.mark.parametrize("max_norm", [None, 1e-6])
def test_the_very_first_step_of_adam(max_norm):
    policy, batch = bag(), rollouts()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0)
    reading = read(policy, [batch], optimizer, max_grad_norm=max_norm)
    # D is |g| and eps, of the clipped g: without the coming gradient nothing would bound it
    predicted = (batch.advantages * reading.effects.sum(1)).sum()
    everything = torch.ones(ROLLOUTS)
    real, _ = change_by_step(policy, optimizer, batch, everything, max_norm)
    assert float(predicted) == pytest.approx(real, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, ROLLOUTS - 1), max_size=3, unique=True), st.integers(0, 99))
def test_passes_add_up_to_one_batch(cuts, seed):
    policy, batch = bag(), rollouts(seed)
    edges = [0, *sorted(cuts), ROLLOUTS]
    parts = [part(batch, slice(*pair)) for pair in itertools.pairwise(edges)]
    options = {"max_grad_norm": 0.01}
    whole = read(policy, [batch], **options)
    cut = read(policy, parts, **options)
    assert_same(cut.effects, whole.effects)
    assert cut.clip == pytest.approx(whole.clip)


@pytest.mark.parametrize("by", ["requires_grad", "optimizer"])
def test_what_is_frozen_takes_no_part(by):
    policy, batch = bag(), rollouts()
    policy.embedding.requires_grad_(by != "requires_grad")
    moved = [*policy.inner.parameters(), policy.head.bias]
    optimizer = torch.optim.AdamW(moved, lr=0.1)
    reading = read(policy, [batch], optimizer)
    assert {id(p) for p in reading.response.direction} == {id(p) for p in moved}
    assert_same(reading.effects, by_hand(policy, batch, reading.response.direction))


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_nothing_of_the_trainer_is_changed(mode):
    policy, batch = bag(dropout=0.5), rollouts()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
    loss_of(policy, batch).backward()
    optimizer.step()
    policy.train(mode == "train")
    if mode == "mixed":
        policy.inner.train()
    gradients = [p.grad.clone() for p in policy.parameters()]
    state = copy.deepcopy((policy.state_dict(), optimizer.state_dict()))
    modes = [module.training for module in policy.modules()]
    generator = torch.get_rng_state()
    read(policy, [batch], optimizer)
    after = policy.state_dict(), optimizer.state_dict()
    torch.testing.assert_close(after, state, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in policy.parameters()], gradients, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in policy.modules()] == modes


def test_modes_come_back_after_an_error():
    policy, batch = bag(), rollouts()
    direction = some_direction(policy)
    policy.train()
    with pytest.raises(IndexError):
        push(policy, [replace(batch, inputs=(batch.inputs[0] + WORDS,))], direction)
    assert all(module.training for module in policy.modules())


def test_tokens_are_pushed_without_dropout():
    policy, batch = bag(dropout=0.5), rollouts()
    policy.train()
    reading = read(policy, [batch])
    policy.eval()
    assert_same(reading.effects, by_hand(policy, batch, reading.response.direction))


def test_a_caller_without_gradients_and_a_batch_without_tokens():
    policy, batch = bag(), rollouts()
    expected = read(policy, [batch]).effects
    with torch.no_grad():
        assert torch.equal(read(policy, [batch]).effects, expected)
    nothing = replace(batch, mask=torch.zeros_like(batch.mask))
    reading = read(policy, [nothing], max_grad_norm=1.0)
    assert not bool(reading.effects.any())
    assert reading.clip == 1


# a causal language model as the policy


def texts(seed=0, rows=4, length=10, keep=6):
    """Ids, attention mask with left padding, and a response mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (rows, length), generator=generator)
    attention = torch.ones_like(ids)
    attention[1, :2] = attention[2:, :3] = 0
    mask = torch.ones(rows, keep, dtype=torch.bool)
    mask[0, 4:] = False
    advantages = torch.randn(rows, generator=generator)
    ids = ids * attention
    return PolicyBatch((ids, attention, keep), mask, mask / mask.sum(), advantages)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_policy_says_what_the_models_logits_say(temperature, tied):
    model = tiny_model(sharpness=3.0, tie_word_embeddings=tied)
    ids, attention, keep = texts().inputs
    logprobs, entropies = TokenPolicy(model, temperature)(ids, attention, keep)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -keep - 1 : -1]
    expected = token_statistics(logits, ids[:, -keep:], temperature)
    torch.testing.assert_close(logprobs, expected.logprob, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropies, expected.entropy, rtol=1e-4, atol=1e-5)
    # padding on the left changes nothing
    alone, _ = TokenPolicy(model, temperature)(ids[2:3, 3:], attention[2:3, 3:], keep)
    torch.testing.assert_close(logprobs[2:3], alone, rtol=1e-4, atol=1e-4)

    parameters = trainable(model)
    log_p = (logits / temperature).log_softmax(-1)
    direct = (
        log_p.gather(-1, ids[:, -keep:, None]).sum(),
        -(log_p.exp() * log_p).sum(),
    )
    for ours, theirs in zip((logprobs.sum(), entropies.sum()), direct, strict=True):
        got = torch.autograd.grad(ours, parameters, retain_graph=True)
        want = torch.autograd.grad(theirs, parameters, retain_graph=True)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b, rtol=1e-3)


def test_logits_of_minus_infinity_have_gradients():
    model = tiny_model(sharpness=3.0)
    head = model.get_output_embeddings()
    head.register_parameter("bias", nn.Parameter(torch.zeros(VOCABULARY), requires_grad=False))
    policy, batch = TokenPolicy(model), texts()
    head.bias[0] = -1e4  # no probability, but a finite logit
    expected = read(policy, [batch]).effects
    head.bias[0] = -torch.inf
    assert_same(read(policy, [batch]).effects, expected)


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_of_a_transformer_by_hand(tied):
    policy = TokenPolicy(tiny_model(sharpness=3.0, tie_word_embeddings=tied).double(), 0.7)
    batch = texts(rows=3)
    reading = read(policy, [batch])
    expected = by_hand(policy, batch, reading.response.direction)
    assert_same(reading.effects, expected, rtol=1e-4)


def test_adapters_alone_are_moved():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny_model(sharpness=3.0).double(), config)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    policy, batch = TokenPolicy(model), texts(rows=2)
    reading = read(policy, [batch])
    assert {id(p) for p in reading.response.direction} == {id(p) for p in trainable(model)}
    assert_same(reading.effects, by_hand(policy, batch, reading.response.direction), rtol=1e-4)


def correlation(a, b, mask):
    return float(torch.corrcoef(torch.stack([a[mask].double(), b[mask].double()]))[0, 1])


def test_bfloat16_weights_keep_what_differences_would_lose():
    low = TokenPolicy(tiny_model().bfloat16())
    exact = TokenPolicy(copy.deepcopy(low.model).float())
    batch = texts(rows=8)
    truth = read(exact, [batch], lr=1e-3)
    expected, direction = truth.effects, truth.response.direction
    ours = correlation(read(low, [batch], lr=1e-3).effects, expected, batch.mask)
    naive = []
    for scale in (1.0, 10.0, 100.0):  # from lost in rounding to far from linear
        moved = copy.deepcopy(low)
        with torch.no_grad():
            for p, u in zip(moved.parameters(), direction.values(), strict=True):
                p += (scale * u).to(p.dtype)
            difference = moved(*batch.inputs)[0] - low(*batch.inputs)[0]
        naive.append(correlation(difference, expected, batch.mask))
    assert ours > 0.999
    assert 1 - ours < 0.1 * (1 - max(naive))
