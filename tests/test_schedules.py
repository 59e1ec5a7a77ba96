"""Schedules as whole curves against numpy, and their text notation."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrocraft import schedules

STEPS = np.arange(0, 251)
EXPECTED = {
    "linear": lambda first, last, share: first + (last - first) * share,
    "cosine": lambda first, last, share: first + (last - first) * (1 - np.cos(np.pi * share)) / 2,
    "exponential": lambda first, last, share: first * (last / first) ** share,
}


def share(step, steps=100):
    return np.minimum(step / steps, 1.0)


def curve(schedule, steps=STEPS):
    return np.array([schedule(int(step)) for step in steps])


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize(("first", "last"), [(0.6, 0.3), (0.3, 0.9), (0.5, 0.5)])
@pytest.mark.parametrize("steps", [1, 7, 200])
def test_ramps_follow_their_formula_and_stay_at_their_end(kind, first, last, steps):
    schedule = getattr(schedules, kind)(first, last, steps)
    expected = EXPECTED[kind](first, last, share(STEPS, steps))
    np.testing.assert_allclose(curve(schedule), expected, rtol=1e-12)
    assert schedule(10**9) == pytest.approx(last, rel=1e-12)


def test_constant_is_flat():
    assert curve(schedules.constant(0.4)).tolist() == [0.4] * len(STEPS)


@pytest.mark.parametrize("kind", EXPECTED)
def test_steps_before_the_start_and_fractions(kind):
    schedule = getattr(schedules, kind)(0.6, 0.3, 100)
    assert schedule(-5) == 0.6
    assert 0.3 < schedule(50.5) < schedule(50)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_level_of_zero_is_allowed_where_it_has_a_meaning(kind):
    assert getattr(schedules, kind)(0.5, 0, 10)(10) == 0


@pytest.mark.parametrize("step", [math.nan, math.inf, -math.inf])
def test_a_schedule_needs_a_finite_step(step):
    with pytest.raises(ValueError, match="finite step"):
        schedules.linear(0.6, 0.3, 100)(step)


def test_piecewise_is_numpy_interp():
    points = [(5, 0.5), (50, 0.7), (51, 0.2), (100, 0.4)]
    expected = np.interp(STEPS, [step for step, _ in points], [level for _, level in points])
    np.testing.assert_allclose(curve(schedules.piecewise(points)), expected, rtol=1e-12)


def test_piecewise_with_one_point_is_constant():
    assert set(curve(schedules.piecewise([(30, 0.4)]))) == {0.4}


def test_join_hands_over_at_the_boundary_and_restarts_the_clock():
    parts = [schedules.linear(0.6, 0.4, 50), schedules.constant(0.9), lambda step: 0.001 * step]
    joined = schedules.join(parts, [50, 120])
    expected = np.where(
        STEPS < 50, 0.6 - 0.2 * STEPS / 50, np.where(STEPS < 120, 0.9, 0.001 * (STEPS - 120))
    )
    np.testing.assert_allclose(curve(joined), expected, rtol=1e-12, atol=1e-15)


def test_join_of_one_schedule_is_that_schedule():
    inner = schedules.cosine(0.6, 0.2, 100)
    np.testing.assert_array_equal(curve(schedules.join([inner], [])), curve(inner))


@pytest.mark.parametrize(
    ("text", "initial", "expected"),
    [
        ("constant(initial)", 0.7, lambda t: 0.7 + 0 * t),
        ("linear(initial, 0.5*initial, 200)", 0.8, lambda t: 0.8 - 0.4 * share(t, 200)),
        ("linear(initial, initial - 0.2, 100)", 0.8, lambda t: 0.8 - 0.2 * share(t)),
        ("linear(2*initial + 0.1, 0.3, 100)", 0.5, lambda t: 1.1 - 0.8 * share(t)),
        ("linear(initial + 0.5*initial, 0.3, 100)", 0.6, lambda t: 0.9 - 0.6 * share(t)),
        ("linear(1 + -0.5*initial, 0.3, 100)", 0.8, lambda t: 0.6 - 0.3 * share(t)),
        ("linear(-initial + 1, 0.3, 100)", 0.4, lambda t: 0.6 - 0.3 * share(t)),
        ("exponential(initial, initial*0.25, 100)", 0.8, lambda t: 0.8 / 4 ** share(t)),
        ("piecewise([(0, initial), (100, 0.2)])", 0.6, lambda t: 0.6 - 0.4 * share(t)),
        (
            "join([constant(initial), constant(0.5*initial)], [9])",
            0.4,
            lambda t: 0.4 - 0.2 * (t >= 9),
        ),
    ],
)
def test_levels_relative_to_the_initial_entropy(text, initial, expected):
    schedule = schedules.from_string(text)
    assert not schedules.is_anchored(schedule)
    with pytest.raises(ValueError, match=re.escape("schedules.anchor(schedule, initial)")):
        schedule(3)
    anchored = schedules.anchor(schedule, initial)
    assert schedules.is_anchored(anchored)
    np.testing.assert_allclose(curve(anchored), expected(STEPS), rtol=1e-12)
    assert not schedules.is_anchored(schedule), "anchor must not change its argument"


def test_anchor_leaves_absolute_schedules_and_plain_functions_as_they_are():
    def plain(step):
        return 0.5 - 0.001 * step

    assert schedules.anchor(plain, 0.3) is plain
    assert schedules.is_anchored(plain)
    absolute = schedules.linear(0.6, 0.3, 100)
    np.testing.assert_array_equal(curve(schedules.anchor(absolute, 2.0)), curve(absolute))


@pytest.mark.parametrize("initial", [math.nan, math.inf, -0.1])
def test_anchor_wants_a_possible_entropy(initial):
    with pytest.raises(ValueError, match=re.escape(str(initial))):
        schedules.anchor(schedules.constant("initial"), initial)


def test_an_exponential_that_turns_out_to_reach_zero_says_so():
    schedule = schedules.anchor(schedules.exponential("initial", "initial - 0.5", 10), 0.4)
    with pytest.raises(ValueError, match=r"above 0, got 0\.4 and -0\.1; use linear"):
        schedule(5)
    for start, end, initial in (("initial", 0.3, 0.0), (0.3, "initial", 0.0)):
        schedule = schedules.anchor(schedules.exponential(start, end, 10), initial)
        with pytest.raises(ValueError, match="above 0, got"):
            schedule(5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.constant(-0.1), "-0.1 nats per token cannot be reached"),
        (lambda: schedules.constant(math.nan), "must be a finite number, got nan"),
        (lambda: schedules.constant(None), "must be a finite number, got None"),
        (lambda: schedules.Level("0.5", 0.0), "must be a finite number, got '0.5'"),
        (lambda: schedules.linear(0.6, 0.3, "5"), "whole numbers of at least 0, got '5'"),
        (lambda: schedules.linear(0.6, 0.3, 1e15), "whole numbers of at least 0, got 1000000"),
        (lambda: schedules.linear(math.inf, 0.3, 10), "must be a finite number, got inf"),
        (lambda: schedules.linear(0.6, 0.3, 0), "at least 1 step, got 0"),
        (lambda: schedules.linear(0.6, 0.3, -5), "at least 0, got -5"),
        (lambda: schedules.linear(0.6, 0.3, 2.5), "whole numbers of at least 0, got 2.5"),
        (lambda: schedules.linear(0.6, 0.3, math.inf), "whole numbers of at least 0, got inf"),
        (lambda: schedules.linear(0.6, "final", 10), "'final' is no entropy level"),
        (lambda: schedules.linear("0.6 +", 0.3, 10), "give a number, initial, or e.g. 0.6"),
        (lambda: schedules.constant("initial*initial"), "give a number, initial, or e.g. 0.6"),
        (lambda: schedules.exponential(0.6, 0, 10), "above 0, got 0; use linear or cosine"),
        (lambda: schedules.piecewise([]), "list of (step, level) pairs, got []"),
        (lambda: schedules.piecewise([(0, 0.1, 2)]), "list of (step, level) pairs"),
        (lambda: schedules.piecewise([(5, 0.1), (5, 0.2)]), "growing steps, got 5 before 5"),
        (lambda: schedules.piecewise([(9, 0.1), (5, 0.2)]), "growing steps, got 9 before 5"),
        (lambda: schedules.join([lambda t: 1.0], [5]), "got 1 schedules and 1 boundaries"),
        (lambda: schedules.join([lambda t: 1.0] * 2, [0]), "growing boundaries above 0, got [0]"),
        (lambda: schedules.join([lambda t: 1.0, 0.4], [5]), "needs schedules, got 0.4"),
    ],
)
def test_errors_name_value_and_remedy(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


numbers = st.floats(0, 1e6, allow_nan=False) | st.integers(0, 10**6).map(float)
relative = st.builds(
    lambda scale, offset: str(schedules.Level(scale, offset)),
    st.floats(-1e3, 1e3).filter(bool),
    st.floats(-1e3, 1e3),
)
levels = numbers | relative | st.just("initial")
positive = st.floats(1e-6, 1e6) | st.just("initial")
lengths = st.integers(1, 10**9)
leaves = st.one_of(
    st.builds(schedules.constant, levels),
    st.builds(schedules.linear, levels, levels, lengths),
    st.builds(schedules.cosine, levels, levels, lengths),
    st.builds(schedules.exponential, positive, positive, lengths),
    st.dictionaries(st.integers(0, 10**6), levels, min_size=1, max_size=5).map(
        lambda points: schedules.piecewise(sorted(points.items(), key=lambda pair: pair[0]))
    ),
)
any_schedule = st.recursive(
    leaves,
    lambda inner: st.integers(1, 3).flatmap(
        lambda count: st.builds(
            lambda parts, bounds: schedules.join(parts, sorted(bounds)),
            st.lists(inner, min_size=count, max_size=count),
            st.sets(st.integers(1, 10**6), min_size=count - 1, max_size=count - 1),
        )
    ),
    max_leaves=6,
)


@given(any_schedule)
def test_text_round_trip(schedule):
    assert schedules.from_string(repr(schedule)) == schedule


@pytest.mark.parametrize(
    ("scale", "offset", "text"),
    [
        (0.0, 0.25, "0.25"),
        (0.0, 2.0, "2"),
        (1.0, 0.0, "initial"),
        (0.6, 0.0, "0.6*initial"),
        (2.0, 0.0, "2*initial"),
        (-1.0, 1.0, "-1*initial + 1"),
        (1.0, 0.5, "initial + 0.5"),
        (0.5, -0.25, "0.5*initial - 0.25"),
    ],
)
def test_how_levels_are_written(scale, offset, text):
    assert str(schedules.Level(scale, offset)) == text


def test_the_longest_text_and_the_last_step():
    assert schedules.from_string("0.4".ljust(20_000)) == schedules.constant(0.4)
    with pytest.raises(ValueError, match="at most 20000 characters"):
        schedules.from_string("0.4".ljust(20_001))
    assert schedules.linear(0.6, 0.3, 999_999_999_999_999)(10**15) == 0.3


def test_a_long_table_reads_back():
    table = schedules.piecewise([(step, 1 / (step + 1.5)) for step in range(300)])
    assert schedules.from_string(repr(table)) == table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" linear( 0.6,\n 0.3, 300 ) ", schedules.linear(0.6, 0.3, 300)),
        ("linear(start=0.6, end=0.3, steps=300)", schedules.linear(0.6, 0.3, 300)),
        ("linear(0.6, steps=3e2, end=0.3)", schedules.linear(0.6, 0.3, 300)),
        ("linear('initial', '0.5*initial', 9)", schedules.linear("initial", "0.5*initial", 9)),
        ("linear(0.6, 0.3, 200 + 100)", schedules.linear(0.6, 0.3, 300)),
        ("0.4", schedules.constant(0.4)),
        ("initial", schedules.constant("initial")),
        ("piecewise(((0, 1), (5, 2)))", schedules.piecewise([(0, 1), (5, 2)])),
    ],
)
def test_accepted_spellings(text, expected):
    assert schedules.from_string(text) == expected


HOSTILE = [
    "",
    "   ",
    "__import__('os').system('true')",
    "linear(__import__('os').getpid(), 0.3, 100)",
    "().__class__.__base__.__subclasses__()",
    "linear(0.6, 0.3)",
    "linear(0.6, 0.3, 100, 5)",
    "linear(0.6, 0.3, start=0.1)",
    "linear(*[0.6, 0.3, 100])",
    "linear(**{})",
    "linear(0.6, 0.3, 10.5)",
    "linear(0.6, 0.3, initial)",
    "linear(0.6, 0.3, 1e400)",
    "linear(0.6, 0.3, 1e300)",
    "constant(1" + "0" * 400 + ")",
    "constant(1e308 + 1e308)",
    "constant(1e200*(1e200*initial))",
    "constant(0.0*1e999)",
    "constant(2**9999999)",
    "constant(9**9**9**9)",
    "constant(1/0)",
    "constant(True)",
    "constant(None)",
    "constant(1j)",
    "constant(b'1')",
    "constant('constant(1)')",
    "constant(nan)",
    "constant(-0.1)",
    "step(0.6)",
    "schedules.linear(0.6, 0.3, 100)",
    "(lambda: 0.5)()",
    "piecewise(5)",
    "piecewise([5])",
    "piecewise([(1, 2, 3)])",
    "join([0.4, constant(0.5)], [5])",
    "join([constant(0.4)], 5)",
    "linear(constant(0.6), 0.3, 100)",
    "linear(0.6, [0.3], 100)",
    "linear(0.6, 0.3, 100, **{})",
    "linear(0.6, 0.3, 100)(5)",
    "constant([0.4])",
    "[constant(0.4)]",
    "[]",
    "piecewise(constant(0.4))",
    "piecewise([constant(0.4), (5, 0.3)])",
    "piecewise([(initial, 0.3)])",
    "piecewise([([5], 0.3)])",
    "join(constant(0.4), [])",
    "join([constant(0.4), constant(0.3)], [constant(5)])",
    "join([constant(0.4), constant(0.3)], [initial])",
    "linear(0.6, 0.3, 100); import os",
    "linear(0.6, 0.3, 100",
    "\x00",
    "-" * 5000 + "1",
    "~" * 19000 + "1",
    "(" * 5000,
    "[" * 19000,
    "+".join(["1"] * 9000),
    "join([" * 150 + "constant(1)" + "], [])" * 150,
    "lambda:" * 2500 + "1",
    "1" * 19000,
    "x" * 10_000_000,
    None,
    7,
    b"constant(0.4)",
    ["constant(0.4)"],
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_a_short_value_error(text):
    with pytest.raises(ValueError, match=re.escape("write constant(h), linear(")) as caught:
        schedules.from_string(text)
    assert len(str(caught.value)) < 1000


HOSTILE_LEVELS = [
    text for text in HOSTILE if isinstance(text, str) and not text.startswith("linear(0")
]


@pytest.mark.parametrize("text", HOSTILE_LEVELS, ids=range(len(HOSTILE_LEVELS)))
def test_hostile_levels_are_value_errors_too(text):
    with pytest.raises(ValueError, match="entropy") as caught:
        schedules.linear(text, 0.3, 10)
    assert len(str(caught.value)) < 500


@given(st.text(max_size=60) | st.text("linearconst()[],.*+-0123456789e ", max_size=60))
def test_any_text_gives_a_schedule_or_a_value_error(text):
    try:
        schedule = schedules.from_string(text)
    except ValueError:
        return
    assert math.isfinite(schedules.anchor(schedule, 0.5)(3))


def test_nothing_is_evaluated(monkeypatch):
    def refuse(*_):
        raise AssertionError("text was evaluated")

    monkeypatch.setattr("builtins.eval", refuse)
    monkeypatch.setattr("builtins.exec", refuse)
    monkeypatch.setattr("builtins.__import__", refuse)
    assert schedules.from_string("linear(0.6, 0.2 + 0.1, 300)")(300) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="not a schedule"):
        schedules.from_string("linear(eval('1'), 0.3, 300)")
