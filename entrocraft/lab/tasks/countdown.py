"""Countdown: reach a target from given numbers, each used exactly once.

A tiny reasoner answers with an expression, ``3*7+8``, or, with ``worked``, with a chain that
states every intermediate result, ``3*7=21+8=29``. Most targets have many solutions.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from entrocraft.lab.tasks.base import ANSWER_INSTRUCTION, LibraryTask, Problem, check_range
from entrocraft.lab.tasks.expressions import evaluate, evaluate_chain, normalize

_OPERATORS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
# One step of a chain: the operator and number before each stated result.
_STEP = re.compile(r"([-+*/])(\d+)=")


def legal_step(value: int, operator: str, number: int, limit: int) -> int | None:
    """Result of one step where it is an integer in [0, limit], else ``None``.

    >>> legal_step(21, "/", 7, 99), legal_step(21, "/", 4, 99), legal_step(3, "-", 4, 99)
    (3, None, None)
    """
    if operator == "/" and (number == 0 or value % number):
        return None
    result = _OPERATORS[operator](value, number)
    return result if 0 <= result <= limit else None


@functools.lru_cache(maxsize=1 << 16)
def solution_chains(
    numbers: tuple[int, ...], target: int, operators: str, limit: int
) -> tuple[str, ...]:
    """Every left-to-right chain of all numbers that reaches the target, sorted.

    Intermediate results are in [0, ``limit``].

    >>> solution_chains((2, 3), 6, "+-*/", 99)
    ('2*3=6', '3*2=6')
    """

    def extend(chain: str, value: int, left: tuple[int, ...]) -> Iterator[str]:
        if not left and value == target:
            yield chain
        for index, number in enumerate(left):
            if number in left[:index]:
                continue
            rest = left[:index] + left[index + 1 :]
            if not chain:
                yield from extend(str(number), number, rest)
                continue
            for operator in operators:
                result = legal_step(value, operator, number, limit)
                if result is not None:
                    yield from extend(f"{chain}{operator}{number}={result}", result, rest)

    return tuple(sorted(extend("", 0, numbers)))


def random_chain(
    numbers: tuple[int, ...], operators: str, limit: int, rng: random.Random
) -> str | None:
    """Chain of random legal steps over all the numbers, or ``None`` at a dead end."""
    first, *rest = rng.sample(numbers, len(numbers))
    chain, value = str(first), first
    for number in rest:
        steps = [(op, legal_step(value, op, number, limit)) for op in operators]
        legal = [(op, result) for op, result in steps if result is not None]
        if not legal:
            return None
        operator, value = rng.choice(legal)
        chain += f"{operator}{number}={value}"
    return chain


def bare_expression(chain: str) -> str:
    """The expression of a chain of steps, with the fewest parentheses.

    >>> bare_expression("3+7=10*2=20-4=16")
    '(3+7)*2-4'
    """
    expression = chain[: len(chain) - len(chain.lstrip("0123456789"))]
    loose = False
    for operator, number in _STEP.findall(chain):
        if operator in "*/" and loose:
            expression = f"({expression})"
        expression += operator + number
        loose = operator in "+-"
    return expression


@dataclass
class CountdownTask(LibraryTask):
    """Countdown problems that some left-to-right chain of steps solves.

    Attributes:
        min_numbers, max_numbers: how many numbers are given.
        min_value, max_value: range of the given numbers.
        min_target, max_target: range of the target.
        operators: operators of problems and demonstrations, out of ``+-*/``.
        max_intermediate: largest intermediate result in demonstrations.
        worked: demonstrations state every intermediate result, ``3*7=21+8=29``; otherwise they are
            bare expressions, ``3*7+8``, shorter and with more to choose per token.
    """

    name: ClassVar[str] = "countdown"

    min_numbers: int = 3
    max_numbers: int = 3
    min_value: int = 1
    max_value: int = 20
    min_target: int = 1
    max_target: int = 99
    operators: str = "+-*/"
    max_intermediate: int = 99
    worked: bool = False

    def __post_init__(self) -> None:
        check_range(self, "numbers", 2, 6)
        check_range(self, "value", 1)
        check_range(self, "target", 1)
        if not self.operators or not set(self.operators) <= set("+-*/"):
            raise ValueError(f"operators={self.operators!r}; use one or more of '+-*/'")
        if self.max_intermediate < max(self.max_value, self.min_target):
            bounds = f"max_value={self.max_value} or min_target={self.min_target}"
            raise ValueError(
                f"max_intermediate={self.max_intermediate} is below {bounds}; raise it"
            )

    def library_options(self) -> dict[str, Any]:
        """Options of the library's countdown dataset."""
        ranges = [f"{end}_{of}" for of in ("numbers", "value", "target") for end in ("min", "max")]
        return {name: getattr(self, name) for name in ranges} | {"operators": tuple(self.operators)}

    def candidate(self, entry: dict[str, Any]) -> Problem | None:
        """Problem of a library entry whose own answer holds; the library rounds divisions."""
        numbers = tuple(int(number) for number in entry["metadata"]["numbers"])
        target = int(entry["metadata"]["target"])
        problem = Problem(
            key=f"{','.join(map(str, sorted(numbers)))}={target}",
            prompt=f"{' '.join(map(str, numbers))}={target}:",
            question=f"{entry['question'].strip()}\n\n{ANSWER_INSTRUCTION}",
            answer=entry["answer"],
            metadata={"numbers": list(numbers), "target": target},
        )
        holds = self.score(problem, entry["answer"]) and self._solutions(problem)
        return problem if holds else None

    def _solutions(self, problem: Problem) -> tuple[str, ...]:
        numbers = tuple(sorted(problem.metadata["numbers"]))
        target = problem.metadata["target"]
        return solution_chains(numbers, target, self.operators, self.max_intermediate)

    def demonstration(self, problem: Problem, rng: random.Random, skill: float = 1.0) -> str:
        """With probability ``skill`` a uniform draw from the solving chains, else a random chain.

        A random chain rarely reaches the target.
        """
        chain = rng.choice(self._solutions(problem)) if rng.random() < skill else None
        numbers = tuple(problem.metadata["numbers"])
        while chain is None:  # some chain stays within the limits: a solution does
            chain = random_chain(numbers, self.operators, self.max_intermediate, rng)
        return chain if self.worked else bare_expression(chain)

    def score(self, problem: Problem, answer: str) -> float:
        """1.0 where the target is reached with each given number exactly once, else 0.0."""
        text = normalize(answer)
        result = evaluate_chain(text) if "=" in text else evaluate(text)
        if result is None or result.value != problem.metadata["target"]:
            return 0.0
        return float(sorted(result.numbers) == sorted(problem.metadata["numbers"]))
