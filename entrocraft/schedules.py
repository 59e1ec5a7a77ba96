"""Target entropy as a function of the optimizer step.

A schedule is a callable ``step -> nats per token``. Those made here print as the text that they can
be read back from: one notation serves Python, YAML and checkpoints. Plain functions of the step are
schedules too. Every level may be a number or relative to the first entropy that the run measures:

>>> schedule = linear("initial", "0.6*initial", steps=100)
>>> schedule
linear(initial, 0.6*initial, 100)
>>> anchored = anchor(schedule, 0.5)
>>> [round(anchored(step), 3) for step in (0, 50, 100, 500)]
[0.5, 0.4, 0.3, 0.3]
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from typing import Any

__all__ = [
    "Level",
    "Schedule",
    "anchor",
    "constant",
    "cosine",
    "exponential",
    "from_string",
    "is_anchored",
    "join",
    "linear",
    "piecewise",
    "points",
    "settles",
]

Schedule = Callable[[float], float]
"""Any callable from the optimizer step to the target entropy in nats per token."""

_LONGEST_TEXT = 20_000


@dataclass(frozen=True)
class Level:
    """An entropy level in nats per token: ``scale * initial + offset``; a number if scale is 0."""

    scale: float
    offset: float

    def __post_init__(self) -> None:
        _finite(self.scale)
        _finite(self.offset)

    def value(self, initial: float | None) -> float:
        """Return the level in nats per token, given the initial entropy."""
        if self.scale == 0:
            return self.offset
        if initial is None:
            raise ValueError(
                f"the level {self} is relative to the initial entropy, which a controller measures "
                "on its first batch; elsewhere call schedules.anchor(schedule, initial)"
            )
        return self.scale * initial + self.offset

    def __str__(self) -> str:
        if self.scale == 0:
            return _number(self.offset)
        text = "initial" if self.scale == 1 else f"{_number(self.scale)}*initial"
        if self.offset:
            text += f" {'+' if self.offset > 0 else '-'} {_number(abs(self.offset))}"
        return text


@dataclass(frozen=True, repr=False)
class _Curve:
    """Levels at growing steps, constant outside them; `kind` names the shape between two."""

    kind: str
    points: tuple[tuple[int, Level], ...]
    initial: float | None = None

    def __call__(self, step: float) -> float:
        step = _since_start(step)
        segment = sum(step > inner for inner, _ in self.points[1:-1])
        ends = self.points[segment : segment + 2]
        (begin, start), (end, stop) = ends[0], ends[-1]
        first, last = start.value(self.initial), stop.value(self.initial)
        progress = min(max(step - begin, 0.0) / (end - begin), 1.0) if end > begin else 1.0
        if self.kind == "exponential":
            if first <= 0 or last <= 0:
                raise ValueError(
                    f"{self!r} needs levels above 0, got {first:g} and {last:g}; use linear"
                )
            return first * (last / first) ** progress
        if self.kind == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return first * (1 - progress) + last * progress

    def __repr__(self) -> str:
        if self.kind == "piecewise":
            return f"piecewise([{', '.join(f'({step}, {level})' for step, level in self.points)}])"
        levels = ", ".join(str(level) for _, level in self.points)
        length = "" if self.kind == "constant" else f", {self.points[-1][0]}"
        return f"{self.kind}({levels}{length})"


@dataclass(frozen=True, repr=False)
class _Join:
    schedules: tuple[Schedule, ...]
    boundaries: tuple[int, ...]

    def __call__(self, step: float) -> float:
        step = _since_start(step)
        index = sum(step >= boundary for boundary in self.boundaries)
        return self.schedules[index](step - (self.boundaries[index - 1] if index else 0))

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.schedules))
        return f"join([{inner}], [{', '.join(map(str, self.boundaries))}])"


def constant(level: float | str) -> Schedule:
    """Hold one level (nats per token) forever.

    >>> constant(0.4)(1000)
    0.4
    """
    return _Curve("constant", ((0, _level(level)),))


def linear(start: float | str, end: float | str, steps: int) -> Schedule:
    """Go from `start` to `end` in a straight line over `steps` optimizer steps, then stay.

    >>> schedule = linear(0.6, 0.3, 300)
    >>> [round(schedule(step), 3) for step in (0, 100, 300, 301)]
    [0.6, 0.5, 0.3, 0.3]
    """
    return _ramp("linear", start, end, steps)


def cosine(start: float | str, end: float | str, steps: int) -> Schedule:
    """Half a cosine from `start` to `end`: ``start + (end - start) (1 - cos(pi t / steps)) / 2``.

    >>> schedule = cosine(0.6, 0.2, 100)
    >>> [round(schedule(step), 3) for step in (0, 25, 50, 100, 200)]
    [0.6, 0.541, 0.4, 0.2, 0.2]
    """
    return _ramp("cosine", start, end, steps)


def exponential(start: float | str, end: float | str, steps: int) -> Schedule:
    """Geometric interpolation: ``start (end / start)^(t / steps)``; both levels above 0.

    >>> schedule = exponential(0.8, 0.2, 100)
    >>> [round(schedule(step), 3) for step in (0, 50, 100)]
    [0.8, 0.4, 0.2]
    """
    curve = _ramp("exponential", start, end, steps)
    for _, level in curve.points:
        if level.scale == 0 and level.offset <= 0:
            raise ValueError(f"exponential needs levels above 0, got {level}; use linear or cosine")
    return curve


def piecewise(points: Sequence[tuple[int, float | str]]) -> Schedule:
    """Straight lines through (step, level) points, constant before the first and after the last.

    >>> triangle = piecewise([(0, 0.5), (50, 0.7), (100, 0.5)])
    >>> [round(triangle(step), 3) for step in (0, 25, 50, 75, 100, 200)]
    [0.5, 0.6, 0.7, 0.6, 0.5, 0.5]
    """
    pairs = list(points)
    if not pairs or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
        raise ValueError(f"piecewise needs a list of (step, level) pairs, got {points!r}")
    steps = [_step(step) for step, _ in pairs]
    for before, after in pairwise(steps):
        if after <= before:
            raise ValueError(f"piecewise needs growing steps, got {before} before {after}")
    levels = [_level(level) for _, level in pairs]
    return _Curve("piecewise", tuple(zip(steps, levels, strict=True)))


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Run schedules one after another; each counts its steps from its own boundary, as in optax.

    >>> step_up = join([constant(0.4), constant(0.5)], [50])
    >>> step_up(49), step_up(50)
    (0.4, 0.5)
    """
    steps = [_step(boundary) for boundary in boundaries]
    if len(schedules) != len(steps) + 1:
        raise ValueError(
            f"join needs one boundary fewer than schedules, got {len(schedules)} schedules and "
            f"{len(steps)} boundaries"
        )
    if any(after <= before for before, after in pairwise([0, *steps])):
        raise ValueError(f"join needs growing boundaries above 0, got {list(boundaries)}")
    for schedule in schedules:
        if not callable(schedule):
            raise ValueError(f"join needs schedules, got {schedule!r}")
    return _Join(tuple(schedules), tuple(steps))


def is_anchored(schedule: Schedule) -> bool:
    """Say whether the schedule can be evaluated without knowing the initial entropy.

    >>> is_anchored(constant(0.4)), is_anchored(linear("initial", 0.2, 100))
    (True, False)
    """
    if isinstance(schedule, _Join):
        return all(is_anchored(part) for part in schedule.schedules)
    if isinstance(schedule, _Curve) and schedule.initial is None:
        return all(level.scale == 0 for _, level in schedule.points)
    return True


def settles(schedule: Schedule) -> int | None:
    """Step from which on the schedule stays where it is; None if that is not known.

    >>> settles(join([constant(0.4), linear(0.4, 0.2, 100)], [50]))
    150
    """
    if isinstance(schedule, _Join):
        last = settles(schedule.schedules[-1])
        return None if last is None else schedule.boundaries[-1] + last
    return schedule.points[-1][0] if isinstance(schedule, _Curve) else None


def points(schedule: Schedule) -> list[tuple[int, float]] | None:
    """Return the (step, level) points of a schedule of straight lines; None of another schedule.

    >>> points(anchor(linear("initial", "0.5*initial", 100), 0.6))
    [(0, 0.6), (100, 0.3)]
    """
    if not isinstance(schedule, _Curve) or schedule.kind in ("cosine", "exponential"):
        return None
    return [(step, level.value(schedule.initial)) for step, level in schedule.points]


def anchor(schedule: Schedule, initial: float) -> Schedule:
    """Return the schedule with the initial entropy (nats per token) filled in.

    Plain callables are returned as they are.

    Raises:
        ValueError: `initial` is not a finite number of at least 0.
    """
    if not math.isfinite(initial) or initial < 0:
        raise ValueError(f"the initial entropy must be finite and at least 0 nats, got {initial}")
    if isinstance(schedule, _Join):
        parts = tuple(anchor(part, initial) for part in schedule.schedules)
        return replace(schedule, schedules=parts)
    return replace(schedule, initial=initial) if isinstance(schedule, _Curve) else schedule


def from_string(text: str) -> Schedule:
    """Parse a schedule written as a Python call; nothing is evaluated.

    >>> from_string("cosine(initial, 0.5*initial, 300)")
    cosine(initial, 0.5*initial, 300)
    >>> from_string("join([constant(0.5), linear(0.5, 0.3, 100)], [50])")(100)
    0.4
    >>> from_string("0.4")
    constant(0.4)

    Raises:
        ValueError: the text is not a schedule; the message quotes it and lists the forms.
    """
    try:
        found = _read(_parse(text))
        return found if callable(found) else constant(found)
    except _UNREADABLE as error:
        raise ValueError(
            f"not a schedule: {str(text)[:200]!r} ({str(error)[:200]}); write constant(h), "
            "linear(start, end, steps), cosine(...), exponential(...), piecewise([(step, h), ...]) "
            "or join([...], [boundary, ...]); a level is a number, initial, or e.g. 0.6*initial"
        ) from error


# what ast raises on hostile text; OverflowError is a number of 400 digits
_UNREADABLE = (SyntaxError, TypeError, ValueError, RecursionError, MemoryError, OverflowError)


def _parse(text: str) -> ast.expr:
    """Text to syntax tree, without evaluating anything."""
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        raise ValueError(f"text of at most {_LONGEST_TEXT} characters is expected")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the error says what is wrong
        return ast.parse(text.strip(), mode="eval").body


def _read(node: ast.expr) -> Any:
    """Syntax tree to a schedule, a level, or a list of them."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_read(part) for part in node.elts]
    if not isinstance(node, ast.Call):
        return _parse_level(node)
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in _FACTORIES:
        raise ValueError(f"{ast.unparse(node.func)!r} is no schedule")
    named = {str(keyword.arg): _read(keyword.value) for keyword in node.keywords}
    return _FACTORIES[name](*map(_read, node.args), **named)


_FACTORIES: dict[str, Callable[..., Schedule]] = {
    factory.__name__: factory
    for factory in (constant, linear, cosine, exponential, piecewise, join)
}


def _parse_level(node: ast.expr) -> Level:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _parse_level(_parse(node.value))
        if isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            return Level(0.0, float(node.value))
    if isinstance(node, ast.Name) and node.id == "initial":
        return Level(1.0, 0.0)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _parse_level(node.operand)
        return Level(-inner.scale, -inner.offset)
    if isinstance(node, ast.BinOp):
        left, right = _parse_level(node.left), _parse_level(node.right)
        if isinstance(node.op, (ast.Add, ast.Sub)):
            sign = 1 if isinstance(node.op, ast.Add) else -1
            return Level(left.scale + sign * right.scale, left.offset + sign * right.offset)
        if isinstance(node.op, ast.Mult) and (left.scale == 0 or right.scale == 0):
            number, other = (left, right) if left.scale == 0 else (right, left)
            return Level(number.offset * other.scale, number.offset * other.offset)
    raise ValueError(f"{ast.unparse(node)!r} is no entropy level")


def _level(level: float | str | Level) -> Level:
    """Read one level; numbers must be finite and at least 0 nats."""
    if isinstance(level, Level):
        parsed = level
    elif isinstance(level, str):
        try:
            parsed = _parse_level(_parse(level))
        except _UNREADABLE as error:
            raise ValueError(
                f"{level[:80]!r} is no entropy level ({str(error)[:80]}); "
                "give a number, initial, or e.g. 0.6*initial"
            ) from error
    else:
        parsed = Level(0.0, _finite(level))
    if parsed.scale == 0 and parsed.offset < 0:
        raise ValueError(
            f"entropy is never negative: a target of {parsed} nats per token cannot be reached; "
            "choose a level of at least 0"
        )
    return parsed


def _ramp(kind: str, start: float | str, end: float | str, steps: int) -> _Curve:
    first, last, count = _level(start), _level(end), _step(steps)
    if count < 1:
        raise ValueError(f"a schedule needs at least 1 step, got {steps}")
    return _Curve(kind, ((0, first), (count, last)))


def _since_start(step: float) -> float:
    if not math.isfinite(step):
        raise ValueError(f"a schedule needs a finite step, got {step}")
    return max(float(step), 0.0)


def _step(step: Any) -> int:
    if isinstance(step, Level) and step.scale == 0:
        step = step.offset
    number = float(step) if isinstance(step, Real) else math.nan
    if not 0 <= number < 1e15 or number != int(number):
        raise ValueError(f"steps are whole numbers of at least 0, got {step!r}")
    return int(number)


def _finite(number: float) -> float:
    value = float(number) if isinstance(number, Real) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"an entropy level must be a finite number, got {number!r}")
    return value


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
