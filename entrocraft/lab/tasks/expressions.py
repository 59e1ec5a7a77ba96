"""Bounded arithmetic: the value of an expression or a chain of steps, without evaluating text.

The text is checked against a whitelist of characters and parsed into a syntax tree
(:func:`ast.parse` builds a tree and runs nothing), whose value is computed with exact fractions.
Only ``+ - * /``, parentheses, a sign and integers exist; powers, names, calls, floats and
everything else yield ``None``. Length, number of nodes and magnitude are bounded, so that no text
can take long.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 256
MAX_NODES = 128
MAX_MAGNITUDE = 10**12

_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_NUMBER = re.compile(r"-?[0-9]{1,13}")
_STEP = re.compile(r"(-?[0-9]{1,13}) ?([+\-*/]) ?([0-9]{1,13})")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
# what stands for each plain text: typographic signs and LaTeX commands
_SPELLINGS = {
    "*": ("×", "·", "⋅", "\\times", "\\cdot"),
    "/": ("÷", "\\div"),
    "-": ("−", "–"),
    "(": ("\\left(",),
    ")": ("\\right)",),
    " ": ("\\,",),
    "": ("$",),
}


@dataclass(frozen=True)
class Evaluation:
    """The exact value of an expression and the integers it used, in reading order."""

    value: Fraction
    numbers: tuple[int, ...]


def normalize(text: str) -> str:
    """Rewrite the usual typographic and LaTeX operators to ``+ - * /``.

    >>> normalize("$3 \\\\times 7 − 4$")
    '3 * 7 - 4'
    """
    for plain, spellings in _SPELLINGS.items():
        for spelling in spellings:
            text = text.replace(spelling, plain)
    return text.strip()


def evaluate(text: str) -> Evaluation | None:
    """Evaluate an expression of integers, ``+ - * /``, parentheses and spaces exactly.

    ``None`` where the text is anything else, divides by zero, is longer than ``MAX_CHARACTERS``,
    has more than ``MAX_NODES`` nodes, or passes through a number beyond ``MAX_MAGNITUDE``.

    >>> evaluate("(3 + 7) / 4")
    Evaluation(value=Fraction(5, 2), numbers=(3, 7, 4))
    >>> evaluate("9**9**9") is None and evaluate("1/0") is None
    True
    """
    if len(text) > MAX_CHARACTERS or not _ALLOWED.fullmatch(text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    for count, _ in enumerate(ast.walk(tree)):
        if count > MAX_NODES:
            return None
    numbers: list[int] = []
    value = _walk(tree.body, numbers)
    return None if value is None else Evaluation(value, tuple(numbers))


def _walk(node: ast.expr, numbers: list[int]) -> Fraction | None:
    """Value of a node, or ``None``; appends the integers met to ``numbers``."""
    if isinstance(node, ast.Constant):
        # bool is a subclass of int, hence type() rather than isinstance().
        if type(node.value) is not int or node.value > MAX_MAGNITUDE:
            return None
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        operand = _walk(node.operand, numbers)
        if operand is None or not isinstance(node.op, (ast.USub, ast.UAdd)):
            return None
        return -operand if isinstance(node.op, ast.USub) else operand
    if not isinstance(node, ast.BinOp):
        return None
    left = _walk(node.left, numbers)
    right = _walk(node.right, numbers)
    apply = _OPERATORS.get(type(node.op))
    if left is None or right is None or apply is None or (apply is operator.truediv and not right):
        return None
    value = apply(left, right)
    within = abs(value.numerator) <= MAX_MAGNITUDE and value.denominator <= MAX_MAGNITUDE
    return value if within else None


def evaluate_chain(text: str) -> Evaluation | None:
    """Evaluate a chain of steps such as ``3*7=21+8=29-4=25``, checking every stated result.

    The first step may be any expression, so that ``(3+7)*8-4=76`` is a chain too. Each stated
    result is an integer and opens the next step, which is one operator and one new number; it is
    not among the numbers used. ``None`` where a result is wrong or the text is no such chain.

    >>> evaluate_chain("3*7=21+8=29-4=25")
    Evaluation(value=Fraction(25, 1), numbers=(3, 7, 8, 4))
    >>> evaluate_chain("3*7=22+8=30") is None
    True
    """
    first, *rest = (segment.strip() for segment in text.split("="))
    result = evaluate(first) if rest and len(text) <= MAX_CHARACTERS else None
    if result is None:
        return None
    numbers = list(result.numbers)
    for segment in rest[:-1]:
        step = _STEP.fullmatch(segment)
        if step is None or int(step[1]) != result.value:
            return None
        # the stated result keeps its sign: (-2)*3, not -(2*3)
        result = evaluate(f"({step[1]}){step[2]}{step[3]}")
        if result is None:
            return None
        numbers.append(int(step[3]))
    if not _NUMBER.fullmatch(rest[-1]) or int(rest[-1]) != result.value:
        return None
    return Evaluation(result.value, tuple(numbers))
