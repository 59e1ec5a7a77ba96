"""The linearized step against steps that torch's own optimizer takes."""

import copy

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from entrocraft.lab.dynamics.optimizer import step_response

SHAPES = ((3, 4), (5,), ())


def normal(generator, dtype=torch.float64):
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]


def make(seed=0, steps=3, second_group=None, dtype=torch.float64, **options):
    """AdamW of three parameters after `steps` random steps, and slope and gradient for them."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(value) for value in normal(generator, dtype)]
    groups = [{"params": parameters[:1]} | (second_group or {}), {"params": parameters[1:]}]
    optimizer = torch.optim.AdamW(groups, **options)
    for _ in range(steps):
        step(optimizer, dict(zip(parameters, normal(generator, dtype), strict=True)))
    slope, gradient = (
        dict(zip(parameters, normal(generator, dtype), strict=True)) for _ in range(2)
    )
    return optimizer, slope, gradient


def step(optimizer, gradient):
    """Take one step and return how far each parameter went."""
    before = {p: p.detach().double().clone() for p in gradient}
    for parameter, value in gradient.items():
        parameter.grad = value.clone()
    optimizer.step()
    return {p: p.detach().double() - before[p] for p in gradient}


def inner(a, b):
    return sum(float((a[p].double() * b[p].double()).sum()) for p in a)


def next_change(response, gradient):
    own = {p: gradient[p] for p in response.direction}
    return response.pending - inner(response.direction, own)


rates = st.floats(1e-4, 0.5)
options_of_adamw = {
    "seed": st.integers(0, 99),
    "steps": st.integers(0, 4),
    "lr": rates,
    "weight_decay": st.just(0.0) | st.floats(0.01, 1),
    "second_group": st.none() | st.fixed_dictionaries({"lr": rates}),
    "betas": st.tuples(st.floats(0, 0.95), st.floats(0.5, 0.999)),
    "eps": st.sampled_from([1e-8, 1e-3, 1.0]),
}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(options_of_adamw))
def test_the_next_step(options):
    optimizer, slope, gradient = make(**options)
    responses = [step_response(optimizer, slope, gradient, exact) for exact in (False, True)]
    moved = step(optimizer, gradient)
    # as sums of many terms cancel, "close" is measured by the sum without signs
    size = sum(float((slope[p].double() * moved[p]).abs().sum()) for p in slope)
    for response in responses:
        assert next_change(response, gradient) == pytest.approx(
            inner(slope, moved), rel=1e-5, abs=2e-5 * size + 1e-12
        )


def test_what_is_pending_is_the_step_of_no_gradient():
    optimizer, slope, gradient = make(lr=0.1, weight_decay=0.1, betas=(0.9, 1 - 1e-12))
    for state in optimizer.state.values():  # a second moment that no gradient changes
        state["exp_avg_sq"].copy_(torch.rand_like(state["exp_avg_sq"]) + 0.1)
        state["step"].fill_(1e9)
    response = step_response(optimizer, slope, gradient)
    nothing = {p: torch.zeros_like(g) for p, g in gradient.items()}
    with_none = step_response(optimizer, slope, nothing)
    assert response.pending == pytest.approx(with_none.pending)


def test_by_hand():
    p = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5, eps=0.0)
    slope, gradient = {p: torch.tensor(3.0)}, {p: torch.tensor(-4.0)}
    # the first step is lr * sign(g)
    response = step_response(optimizer, slope, gradient)
    assert float(response.direction[p]) == pytest.approx(0.1 * 3 / 4)
    assert response.pending == pytest.approx(-0.1 * 0.5 * 2 * 3)
    # whose derivative is 0
    exact = step_response(optimizer, slope, gradient, through_second_moment=True)
    assert float(exact.direction[p]) == pytest.approx(0, abs=1e-9)
    assert exact.pending == pytest.approx(0.1 * 3 - 0.3)


@pytest.mark.parametrize("steps", [0, 3])
def test_through_the_second_moment_it_is_the_derivative_of_the_real_next_step(steps):
    optimizer, slope, gradient = make(lr=0.01, weight_decay=0.1, steps=steps)
    gradient = {p: 3.0 * g for p, g in gradient.items()}  # larger than what came before
    generator = torch.Generator().manual_seed(7)
    change = dict(zip(slope, normal(generator), strict=True))
    response = step_response(optimizer, slope, gradient, through_second_moment=True)
    state, start = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in slope]

    def moved(size):
        optimizer.load_state_dict(copy.deepcopy(state))
        with torch.no_grad():
            for p, value in zip(slope, start, strict=True):
                p.copy_(value)
        return inner(slope, step(optimizer, {p: gradient[p] + size * change[p] for p in slope}))

    small = 1e-5
    real = (moved(small) - moved(-small)) / (2 * small)
    assert -inner(response.direction, change) == pytest.approx(real, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("through_second_moment", [False, True])
def test_what_was_never_trained_has_a_finite_response(through_second_moment):
    optimizer, slope, gradient = make(steps=0, lr=0.1)
    first, *_ = gradient
    gradient[first][0] = 0.0
    response = step_response(optimizer, slope, gradient, through_second_moment)
    assert all(bool(u.isfinite().all()) for u in response.direction.values())


def test_what_the_slope_or_the_gradient_leaves_out_is_fixed():
    optimizer, slope, gradient = make(lr=0.1, weight_decay=0.1)
    first, second, _ = slope
    stranger = torch.nn.Parameter(torch.ones(2))
    kept = {first: slope[first], second: slope[second], stranger: torch.ones(2)}
    response = step_response(optimizer, kept, {first: gradient[first], stranger: torch.ones(2)})
    assert list(response.direction) == [first]
    moved = step(optimizer, gradient)
    assert next_change(response, gradient) == pytest.approx(
        inner({first: slope[first]}, moved), rel=1e-4
    )


def test_an_accelerated_optimizer_is_looked_into():
    optimizer, slope, gradient = make(lr=0.1)
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    assert wrapped is not optimizer
    got, expected = (vars(step_response(o, slope, gradient)) for o in (wrapped, optimizer))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_bfloat16():
    low, exact = (
        step_response(*make(dtype=dtype, lr=0.1, weight_decay=0.1))
        for dtype in (torch.bfloat16, torch.float64)
    )
    for a, b in zip(low.direction.values(), exact.direction.values(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0)
    assert low.pending == pytest.approx(exact.pending, rel=0.05)


@pytest.mark.parametrize("steps", [0, 2])
def test_nothing_is_changed(steps):
    optimizer, slope, gradient = make(steps=steps, lr=0.1)
    inputs = [*slope, *slope.values(), *gradient.values()]
    before = copy.deepcopy(optimizer.state_dict()), [value.clone() for value in inputs]
    step_response(optimizer, slope, gradient)
    torch.testing.assert_close((optimizer.state_dict(), inputs), before, rtol=0, atol=0)
    assert len(optimizer.state) == (3 if steps else 0)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"maximize": True}),
    ],
)
def test_other_optimizers_are_named(cls, options):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = cls([p], lr=0.1, **options)
    with pytest.raises(ValueError, match=rf"steps of {cls.__name__} cannot be .* torch's AdamW"):
        step_response(optimizer, {p: torch.ones(2)}, {p: torch.ones(2)})
