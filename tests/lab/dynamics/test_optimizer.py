"""The linearized step against steps that torch's own optimizers take."""

import copy

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from entrocraft.lab.dynamics.optimizer import optimizer_momentum, step_response

SHAPES = ((3, 4), (5,), ())


def normal(generator, dtype=torch.float64):
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]


def make(cls, seed=0, steps=3, second_group=None, dtype=torch.float64, **options):
    """Optimizer of three parameters after `steps` random steps, and slope and gradient for them."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(value) for value in normal(generator, dtype)]
    groups = [{"params": parameters[:1]} | (second_group or {}), {"params": parameters[1:]}]
    optimizer = cls(groups, **options)
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
    pushed = response.share * -inner(response.direction, gradient)
    return pushed + response.momentum_share * response.pending + response.decay


def assert_next_step(cls, **options):
    optimizer, slope, gradient = make(cls, **options)
    response = step_response(optimizer, slope, gradient)
    moved = step(optimizer, gradient)
    # as stats of many terms cancel, "close" is measured by the sum without signs
    size = sum(float((slope[p].double() * moved[p]).abs().sum()) for p in slope)
    assert next_change(response, gradient) == pytest.approx(
        inner(slope, moved), rel=1e-5, abs=2e-5 * size + 1e-12
    )


rates = st.floats(1e-4, 0.5)
common = {
    "seed": st.integers(0, 99),
    "steps": st.integers(0, 4),
    "lr": rates,
    "weight_decay": st.just(0.0) | st.floats(0.01, 1),
    "maximize": st.booleans(),
    "second_group": st.none() | st.fixed_dictionaries({"lr": rates}),
}
adam = common | {
    "betas": st.tuples(st.floats(0, 0.95), st.floats(0.5, 0.999)),
    "eps": st.sampled_from([1e-8, 1e-3, 1.0]),
    "amsgrad": st.booleans(),
}


def sgd(nesterov):
    free = {"momentum": st.floats(0.1 if nesterov else 0, 0.9), "nesterov": st.just(nesterov)}
    return free | {"dampening": st.just(0.0) if nesterov else st.floats(0, 0.9)}


sgds = st.one_of(*(st.fixed_dictionaries(common | sgd(nesterov)) for nesterov in (False, True)))


@settings(max_examples=100, deadline=None)
@given(sgds)
def test_the_next_step_of_sgd(options):
    assert_next_step(torch.optim.SGD, **options)


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(adam | {"decoupled_weight_decay": st.booleans()}))
def test_the_next_step_of_adam(options):
    assert_next_step(torch.optim.Adam, **options)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries(adam))
def test_the_next_step_of_adamw(options):
    assert_next_step(torch.optim.AdamW, **options)


def coast(optimizer, slope, gradient, steps):
    """Change of the quantity by one step with `gradient` and `steps` more with none."""
    total = inner(slope, step(optimizer, gradient))
    nothing = {p: torch.zeros_like(g) for p, g in gradient.items()}
    return total + sum(inner(slope, step(optimizer, nothing)) for _ in range(steps))


@settings(max_examples=25, deadline=None)
@given(sgds)
def test_all_that_sgd_makes_of_a_gradient_in_the_end(options):
    optimizer, slope, gradient = make(torch.optim.SGD, **options | {"weight_decay": 0.0})
    response = step_response(optimizer, slope, gradient)
    expected = response.pending - inner(response.direction, gradient)
    total = coast(optimizer, slope, gradient, 300)
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-4 * options["lr"])


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_all_that_adam_makes_of_a_gradient_in_the_end(cls, beta1):
    optimizer, slope, gradient = make(cls, betas=(beta1, 1 - 1e-6), weight_decay=0.0)
    for state in optimizer.state.values():  # late: no bias is left to correct, D hardly changes
        state["step"].fill_(1.5e7)
        state["exp_avg_sq"].copy_(torch.rand_like(state["exp_avg_sq"]) + 0.1)
    response = step_response(optimizer, slope, gradient)
    expected = response.pending - inner(response.direction, gradient)
    assert coast(optimizer, slope, gradient, 300) == pytest.approx(expected, rel=1e-3)
    assert response.share == pytest.approx(1 - beta1)
    assert response.momentum == beta1


def test_sgd_by_hand():
    p = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.5)
    slope = {p: torch.tensor(3.0)}
    fresh = step_response(optimizer, slope)
    assert float(fresh.direction[p]) == pytest.approx(3.0)  # 0.1 * 3 / (1 - 0.9)
    assert fresh.share == pytest.approx(0.1)
    assert fresh.pending == 0
    assert fresh.decay == pytest.approx(-0.3)  # 0.1 * 0.5 * 2 * 3
    assert fresh.momentum == 0.9
    step(optimizer, {p: torch.tensor(4.0)})  # the buffer is 4 + 0.5 * 2
    later = step_response(optimizer, slope)
    assert later.pending == pytest.approx(-13.5)  # 0.1 * 5 * 0.9 / (1 - 0.9) * 3
    assert later.momentum_share == pytest.approx(0.1)


def test_groups_of_different_momenta_add_up_when_they_push_one_way():
    fast = {"momentum": 0.0}
    optimizer, slope, _ = make(torch.optim.SGD, second_group=fast, lr=0.1, momentum=0.9)
    response = step_response(optimizer, slope, slope)
    assert next_change(response, slope) == pytest.approx(inner(slope, step(optimizer, slope)))
    assert 0.1 < response.share < 1
    assert response.momentum == 0.9


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_what_the_slope_leaves_out_is_fixed(cls):
    optimizer, slope, gradient = make(cls, lr=0.1, weight_decay=0.1)
    first, *_ = slope
    alone = {first: slope[first]}
    stranger = torch.nn.Parameter(torch.ones(2))
    response = step_response(optimizer, alone | {stranger: torch.ones(2)}, gradient)
    assert list(response.direction) == [first]
    assert next_change(response, gradient) == pytest.approx(
        inner(alone, step(optimizer, gradient)), rel=1e-4
    )


def test_a_fresh_adam_needs_the_gradient_to_bound_what_was_never_trained():
    optimizer, slope, gradient = make(torch.optim.Adam, steps=0, lr=0.1)
    without, given_it = (step_response(optimizer, slope, g) for g in (None, gradient))
    for parameter, h in slope.items():
        # the first step is lr * sign(g): D is |g|
        expected = 0.1 * h / gradient[parameter].abs()
        torch.testing.assert_close(given_it.direction[parameter], expected.float())
        torch.testing.assert_close(without.direction[parameter], (0.1 * h / 1e-8).float())


def test_an_accelerated_optimizer_is_looked_into():
    optimizer, slope, gradient = make(torch.optim.AdamW, lr=0.1)
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    assert wrapped is not optimizer
    got, expected = (vars(step_response(o, slope, gradient)) for o in (wrapped, optimizer))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_bfloat16(cls):
    options = {"lr": 0.1, "weight_decay": 0.1}
    if cls is torch.optim.SGD:
        options["momentum"] = 0.9
    low, exact = (
        step_response(*make(cls, dtype=dtype, **options))
        for dtype in (torch.bfloat16, torch.float64)
    )
    for a, b in zip(low.direction.values(), exact.direction.values(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0)
    for name in ("share", "pending", "momentum_share", "decay"):
        assert getattr(low, name) == pytest.approx(getattr(exact, name), rel=0.05)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1, "maximize": True}),
        (torch.optim.AdamW, {}),
    ],
)
def test_nothing_is_changed(cls, options, steps):
    optimizer, slope, gradient = make(cls, steps=steps, lr=0.1, **options)
    inputs = [*slope, *slope.values(), *gradient.values()]
    before = copy.deepcopy(optimizer.state_dict()), [value.clone() for value in inputs]
    step_response(optimizer, slope, gradient)
    torch.testing.assert_close((optimizer.state_dict(), inputs), before, rtol=0, atol=0)
    assert len(optimizer.state) == (3 if steps else 0)


@pytest.mark.parametrize("cls", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam])
def test_an_unknown_optimizer_is_named(cls):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=rf"SGD, Adam and AdamW, not {cls.__name__};.*'logit'"):
        step_response(cls([p], lr=0.1), {p: torch.ones(2)})


def test_an_optimizer_of_other_parameters():
    optimizer, slope, _ = make(torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="holds none of the parameters"):
        step_response(optimizer, {torch.nn.Parameter(p.detach()): h for p, h in slope.items()})


@pytest.mark.parametrize("zero", ["slope", "gradient"])
def test_zeros_leave_the_share_what_it_is(zero):
    optimizer, slope, gradient = make(torch.optim.SGD, lr=0.1, momentum=0.9)
    nothing = {p: torch.zeros_like(p) for p in slope}
    if zero == "slope":
        slope = nothing
    else:
        gradient = nothing
    response = step_response(optimizer, slope, gradient)
    assert response.share == pytest.approx(0.1)
    assert response.momentum_share == pytest.approx(0.1)
    assert (response.pending == 0) == (zero == "slope")


@pytest.mark.parametrize(
    ("cls", "options", "second_group", "expected"),
    [
        (torch.optim.SGD, {}, None, 0.0),
        (torch.optim.SGD, {"momentum": 0.8}, None, 0.8),
        (torch.optim.SGD, {"momentum": 0.8}, {"momentum": 0.95}, 0.95),
        (torch.optim.SGD, {"momentum": 0.8}, {"momentum": 0.3}, 0.8),
        (torch.optim.Adam, {"betas": (0.7, 0.99)}, None, 0.7),
        (torch.optim.AdamW, {}, {"betas": (0.5, 0.99)}, 0.9),
        (torch.optim.RMSprop, {"momentum": 0.9}, None, None),
    ],
)
def test_momentum_of_an_optimizer(cls, options, second_group, expected):
    optimizer, slope, _ = make(cls, lr=0.1, second_group=second_group, **options)
    assert optimizer_momentum(optimizer) == expected
    assert optimizer_momentum(Accelerator(cpu=True).prepare(optimizer)) == expected
    if expected is not None:
        assert step_response(optimizer, slope).momentum == expected


def test_no_optimizer_has_no_momentum():
    assert optimizer_momentum(None) is None
